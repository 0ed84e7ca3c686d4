"""Chapter 11: domains are created, visited, rebooted, shut down, destroyed, and left running.

What is shown on one domain is shown on the first of the site.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from xenlab.chapter import Chapter
from xenlab.errors import CommandFailed
from xenlab.resources.base import Resource
from xenlab.resources.guestaccess import GuestAnswers
from xenlab.resources.present import PathsExist
from xenlab.resources.shown import Shown


def configurations_written(book: Chapter) -> Resource:
    """The domains' configuration files."""
    return PathsExist(tuple(book.toolstack.config_path(d.name) for d in book.site.domains))


def booted(book: Chapter) -> Resource:
    """The first domain, running, its boot followed up to the login prompt."""
    return book.toolstack.running(_first(book), console=True)


def visited(book: Chapter) -> Resource:
    """The first domain's console was opened and left."""
    return _shown(book, "console", book.toolstack.console(_first(book)))


def rebooted(book: Chapter) -> Resource:
    """The first domain was rebooted."""
    return _shown(book, "reboot", book.toolstack.rebooted(_first(book)))


def stopped(book: Chapter) -> Resource:
    """The first domain was shut down."""
    return _shown(book, "shutdown", book.toolstack.stopped(_first(book)))


def running(book: Chapter) -> Resource:
    """The first domain, running."""
    return book.toolstack.running(_first(book))


def destroyed(book: Chapter) -> Resource:
    """The first domain was destroyed."""
    return _shown(book, "destroy", book.toolstack.destroyed(_first(book)))


def all_running(book: Chapter) -> Resource:
    """Every domain runs, and has shown its login prompt."""
    return book.toolstack.all_running([d.name for d in book.site.domains])


def all_answer(book: Chapter) -> dict[str, Resource]:
    """Every guest answers over SSH with the built kernel."""
    return {d.name: GuestAnswers(d.name, book.guest(d.name)) for d in book.site.domains}


def domains(book: Chapter) -> Callable[[], pd.DataFrame]:
    """The table of domains, read when the step runs."""
    return lambda: found_domains(book, [d.name for d in book.site.domains])


def found_domains(book: Chapter, names: Sequence[str]) -> pd.DataFrame:
    """The table of domains; in a plan for a machine without Xen, those that would run."""
    try:
        return book.toolstack.domains(book.target)
    except CommandFailed:
        if book.mode == "apply":
            raise
        return pd.DataFrame({"name": names, "state": "would run"})


def at_hand(book: Chapter, names: Sequence[str]) -> list[str]:
    """Which of these guests can be looked at: all; in a plan, which waits for none, who runs."""
    return list(names) if book.mode == "apply" else now_running(book, names)


def now_running(book: Chapter, names: Sequence[str]) -> list[str]:
    """Which of these guests run."""
    table = found_domains(book, names)
    running = {str(row["name"]) for row in table.to_dict("records") if row["state"] == "running"}
    return [name for name in names if name in running]


def _first(book: Chapter) -> str:
    return book.site.domains[0].name


def _shown(book: Chapter, what: str, action: Resource) -> Resource:
    """Once for the domain as the site wants it."""
    return Shown(f"{what}-{_first(book)}", action, repr(book.site.domains[0]))
