"""Opening a chapter: its parameters, its run folder, its journal."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xenlab.chapter import events, selected
from xenlab.chapter.chapter import Chapter
from xenlab.chapter.machine_lock import Hold
from xenlab.chapter.planned import Planned
from xenlab.chapter.recorder import declared_secrets
from xenlab.chapter.selected import Selected
from xenlab.durable import new_run_folder, runs_folder
from xenlab.journal import Journal
from xenlab.site.schema import from_notebook

SINK = "_xenlab_sink"
"""The variable by which a chapter's cells are told who shows their steps (an `events.Sink`)."""

STOP = "_xenlab_stop"
"""The variable that holds what stops them once it is set (a `threading.Event`)."""

CONNECTION = "_xenlab_connection"
"""The variable that holds the connection of a run (an `SSH`), which its chapters hand on."""

RUNBOOK = "_xenlab_runbook"
"""The variable that holds what a chapter's cells get where no chapter is opened, only written."""


def open_chapter(
    name: str,
    namespace: Mapping[str, Any],
    sink: events.Sink = events.ignore,
    stop: threading.Event | None = None,
) -> Chapter:
    """Open a chapter for the parameters found in a notebook's namespace.

    The run folder is ``$XENLAB_RUN``, or a new one in `runs_folder`; ``$XENLAB_MODE`` is "apply"
    or "plan", ``$XENLAB_DESTROY`` names what may be destroyed of what xenlab made, and
    ``$XENLAB_STEPS`` which steps are left out. Raises BadInput before anything is touched,
    NoConnection if the host cannot be reached.
    """
    site = from_notebook(dict(namespace))
    declared_secrets(site.masked)
    folder = os.environ.get("XENLAB_RUN")
    journal = Journal(Path(folder) if folder else new_run_folder(runs_folder(), site.site))
    mode = os.environ.get("XENLAB_MODE", "apply")
    hold = Hold.within(Path(folder), name) if folder else Hold.STEP
    destroy = tuple(os.environ.get("XENLAB_DESTROY", "").split())
    return Chapter(
        name,
        site,
        journal,
        sink,
        mode=mode,
        hold=hold,
        stop=stop,
        destroy=destroy,
        selected=Selected.of_text(os.environ.get(selected.VARIABLE, "")),
        planned=Planned.of_run(Path(folder)) if folder else None,
        connection=namespace.get(CONNECTION),
    )
