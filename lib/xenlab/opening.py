"""Opening a chapter: its parameters, its run folder, its journal."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xenlab import hidden
from xenlab.chapter import Chapter
from xenlab.journal import Journal
from xenlab.machine_lock import Hold
from xenlab.parameters import from_notebook
from xenlab.runfolder import kept_file
from xenlab.view import Silent, View


def open_chapter(
    name: str,
    namespace: Mapping[str, Any],
    view: View | None = None,
    stop: threading.Event | None = None,
) -> Chapter:
    """Open a chapter for the parameters found in a notebook's namespace.

    The run folder is ``$XENLAB_RUN``, or a new one under ``runs/``; ``$XENLAB_MODE`` is "apply"
    or "plan", and ``$XENLAB_DESTROY`` names what may be destroyed of what xenlab made. Raises
    BadInput before anything is touched, NoConnection if the host cannot be reached.
    """
    site = from_notebook(dict(namespace))
    hidden.declared(site.secrets)
    folder = os.environ.get("XENLAB_RUN")
    journal = Journal(Path(folder) if folder else new_run_folder(runs_folder(), site.site))
    mode = os.environ.get("XENLAB_MODE", "apply")
    hold = _hold(Path(folder), name) if folder else Hold.STEP
    destroy = tuple(os.environ.get("XENLAB_DESTROY", "").split())
    return Chapter(
        name,
        site,
        journal,
        view or Silent(),
        mode=mode,
        hold=hold,
        stop=stop,
        destroy=destroy,
    )


def _hold(folder: Path, name: str) -> Hold:
    """A run has the machine to itself until its last chapter is closed."""
    record = kept_file(folder, "run.json")
    chapters = json.loads(record.read_text())["chapters"] if record.exists() else [name]
    return Hold.CHAPTER if chapters[-1] == name else Hold.RUN


def runs_folder() -> Path:
    """Where run folders are kept: ``$XENLAB_RUNS``, else ``runs`` beside ``notebooks``."""
    if "XENLAB_RUNS" in os.environ:
        return Path(os.environ["XENLAB_RUNS"])
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir():
            return folder / "runs"
    return here / "runs"


def new_run_folder(runs: Path, site: str) -> Path:
    """A fresh folder ``<UTC>-<site>``, mode 0700; never one that is there already."""
    runs.mkdir(parents=True, exist_ok=True)
    while True:
        folder = runs / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{site}"
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            time.sleep(1)
            continue
        return folder
