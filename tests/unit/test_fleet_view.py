"""How a fleet's run looks while it goes on, from what is told of it."""

from __future__ import annotations

import io

from xenlab.cli.terminal import Terminal
from xenlab.fleet.record import HostState
from xenlab.fleet.view import View
from xenlab.fleet.work import HostOutcome

CHAPTERS = ["00_ingredients", "01_partitions"]


def shown(terminal: bool, hosts: int = 4) -> tuple[View, io.StringIO, Terminal]:
    """A view of some hosts on nine lines, what was printed, and the console."""
    out = io.StringIO()
    console = Terminal(
        file=out, width=100, height=9, force_terminal=terminal, color_system=None
    )  # fmt: skip
    states = {f"h{number}": HostState() for number in range(hosts)}
    return View(console, states, CHAPTERS), out, console


def chapter(view: View, host: str, name: str, status: str, changed: int = 0) -> None:
    told = {"host": host, "what": "chapter", "chapter": name, "status": status}
    view.told(told | {"changed": changed})


def test_hosts_that_run_stand_on_top_and_each_chapter_is_a_cell() -> None:
    view, out, console = shown(terminal=True, hosts=5)
    for host in ("h1", "h4"):
        view.told({"host": host, "what": "began", "run": "r", "worker": "w"})
        chapter(view, host, "00_ingredients", "done", changed=2)
        chapter(view, host, "01_partitions", "running")
    view.told({"host": "h4", "what": "step", "title": "01.2 Write the table"})
    chapter(view, "h1", "01_partitions", "failed")
    view.ended(HostOutcome("h1", "failed", "the disk is too small\nTry: another"))
    assert "h1: failed  0.0 s  the disk is too small" in out.getvalue()
    out.truncate(0)
    console.print(view)
    lines = [line.split() for line in out.getvalue().strip("\0\n").splitlines()]
    assert lines[0] == ["host", "00", "01", "time"]
    assert lines[1] == ["h4", "+", "▸", "0:00", "01.2", "Write", "the", "table"]
    assert lines[2] == ["h1", "+", "✗", "0:00", "failed"]
    # there is no room for more, but all are counted
    assert lines[3] == ["h0", "·", "·", "0:00", "not", "run"]
    assert " ".join(lines[4]) == "1 running, 1 failed, 3 not run"


def test_where_there_is_no_terminal_each_end_is_a_line() -> None:
    view, out, _ = shown(terminal=False)
    with view:
        view.connected("", 2)
        view.told({"host": "h0", "what": "began", "run": "r", "worker": "w"})
        chapter(view, "h0", "00_ingredients", "running")
        chapter(view, "h0", "00_ingredients", "done")
        view.told({"host": "h0", "what": "asked", "title": "boot the machine"})
        view.ended(HostOutcome("h0", "done", seconds=3))
    assert out.getvalue().splitlines() == [
        "4 hosts, 2 at a time",
        "h0: 00_ingredients: done",
        "h0: waiting for you: boot the machine",
        "h0: done  3.0 s",
    ]


def test_what_a_host_says_moves_nothing_on_the_terminal() -> None:
    view, out, _ = shown(terminal=True)
    view.told({"host": "h0", "what": "asked", "title": "look \x1b]52;c;AAAA\x07here"})
    assert "\x1b]52" not in out.getvalue() and "here" in out.getvalue()
