"""Events: what the recorder (trace/sitecustomize.py) has written down, put in order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

CONTROLLER = "controller"


@dataclass(frozen=True)
class Event:
    """A command (``run``), an ``upload`` or a ``close`` of a transport; times in seconds.

    ``input`` and ``output`` are names of blobs, "" where there was none. ``error`` is the name
    of the exception that ended it, ``status`` the exit status where there is one.
    """

    kind: str
    transport: str
    thread: str
    start: float
    end: float
    text: str = ""
    input: str = ""
    output: str = ""
    status: int = -1
    error: str = ""
    local: str = ""
    remote: str = ""

    @property
    def refused(self) -> bool:
        """Whether nothing was sent, since nobody could connect."""
        return self.error in ("ConnectionRefused", "HostKeyRefused")

    @property
    def command(self) -> str:
        """The shell text as a person would write it: in a chroot without ``exec``."""
        return (
            self.text.removeprefix("exec ") if self.text.startswith("exec chroot ") else self.text
        )


def load(folder: Path) -> list[Event]:
    """All events of a recording, by their start.

    What a process closes at its very end is left out: a plain script keeps its connection.
    """
    found: list[Event] = []
    for path in sorted(folder.glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        own = [Event(**{**line, "thread": f"{path.stem}-{line['thread']}"}) for line in lines]
        own.sort(key=lambda event: event.start)
        last = {event.transport: event for event in own}
        found += [e for e in own if e.kind != "close" or last[e.transport] is not e]
    return sorted(found, key=lambda event: event.start)


def by_chapter(
    events: Iterable[Event], ends: Sequence[tuple[str, float]]
) -> list[tuple[str, list[Event]]]:
    """The events of each chapter, of which ``ends`` says when it ended, in order."""
    found: dict[str, list[Event]] = {name: [] for name, _ in ends}
    for event in events:
        name = next((name for name, end in ends if event.start <= end), ends[-1][0])
        found[name].append(event)
    return list(found.items())


def blocks(events: Iterable[Event]) -> list[list[list[Event]]]:
    """Blocks that follow each other; each holds lanes that ran side by side, in order.

    A block ends where nothing was under way at all: what comes later may need what came before.
    """
    clusters: list[list[Event]] = []
    reach = float("-inf")
    for event in sorted(events, key=lambda event: event.start):
        if event.start >= reach:
            clusters.append([])
        clusters[-1].append(event)
        reach = max(reach, event.end)
    found: list[list[list[Event]]] = []
    for cluster in clusters:
        lanes = _lanes(cluster)
        if len(lanes) == 1 and found and len(found[-1]) == 1:
            found[-1][0].extend(lanes[0])
        else:
            found.append(lanes)
    return found


def _lanes(cluster: list[Event]) -> list[list[Event]]:
    ordered = sorted(cluster, key=lambda event: (event.thread, event.start))
    lanes = [list(own) for _, own in groupby(ordered, key=lambda event: event.thread)]
    return sorted(lanes, key=lambda lane: lane[0].start)
