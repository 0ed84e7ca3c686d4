"""What a machine prints reaches no terminal as a command; the record has it as it was."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text
from tests.ssh.small import Site

from xenlab.chapter import events
from xenlab.chapter.card import Card
from xenlab.chapter.notebook import TextSink
from xenlab.cli.terminal import Terminal
from xenlab.masking import clean
from xenlab.resources.base import Asked, Difference

CLIPBOARD = "\x1b]52;c;ZXZpbA==\x07"
EVIL = f"one{CLIPBOARD}two\x1b[2J\x1b[1Athree\x9b31mfour\x1bPq#0\x1b\\\x08\u202efive"
PLAIN = "onetwothreefourfive"
END = "twothreefourfive"
"""What is left in any case: rich drops a bell, so that what it ended is shown as text."""

COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def test_nothing_of_a_step_is_a_command_to_a_terminal(site: Site) -> None:
    site.chapter(
        "01_first",
        "import pandas as pd",
        f'chapter.facts("01.1 A table", pd.DataFrame([{{{EVIL!r}: {EVIL!r}}}]), note={EVIL!r})',
        f'chapter.run("01.2 Told", Told(Command.script(\'printf %s "$1"; exit 3\', {EVIL!r})),'
        " on=chapter.host)",
    )
    done = site.xenlab("run", "-f", "site.yaml")
    run = site.run_folders()[-1]
    shown = {
        "run": done.stdout + done.stderr,
        "show": site.xenlab("show", str(run)).stdout,
        "report": (run / "report.html").read_text(),
        **outputs(run / "01_first.ipynb"),
    }
    assert END in shown["run"] and PLAIN in shown["report"]
    for name, text in shown.items():
        assert COMMANDS.findall(text) == [], name
    kept = b"".join(path.read_bytes() for path in (run / "output").iterdir())
    assert EVIL.encode() in kept


def outputs(notebook: Path) -> dict[str, str]:
    """What each cell shows, in each form that a reader may choose."""
    found: dict[str, str] = {}
    for number, cell in enumerate(json.loads(notebook.read_text())["cells"]):
        for output in cell.get("outputs", ()):
            forms = {key: output[key] for key in ("text", "traceback") if key in output}
            for kind, text in (forms | output.get("data", {})).items():
                found[f"cell {number}, {kind}"] = "".join(text)
    return found


def test_no_way_to_the_terminal_is_open() -> None:
    out = io.StringIO()
    terminal = Terminal(file=out, force_terminal=True, width=200)
    table = Table(EVIL, title=Text(EVIL))
    table.add_row(Text(EVIL, style="bold red"))
    terminal.print(table)
    terminal.print(EVIL, markup=False)
    terminal.print(Text(EVIL), soft_wrap=True)
    with terminal.status(Text(EVIL)):
        terminal.print("done")
    printed = out.getvalue()
    assert "\x1b[" in printed, "its own colours stay"
    assert "\x1b]" not in printed and "\x9b" not in printed and "\x1bP" not in printed
    assert "\x1b[2J" not in printed
    assert printed.count(END) >= 5


def test_a_chapter_as_text_is_plain() -> None:
    out = io.StringIO()
    sink = TextSink(out)
    for event in (
        events.Opened("01_first", "site", EVIL, "apply", Path("/run")),
        events.Started("01.1 Look"),
        events.Progress(Asked(EVIL), None),
        events.Differs("", Difference(EVIL, diff=EVIL, rows=({"now": EVIL},))),
        events.Table(pd.DataFrame({EVIL: [EVIL]})),
        events.Finished("failed", 1.0, EVIL),
    ):
        sink.on(event)
    assert COMMANDS.findall(out.getvalue()) == []
    assert out.getvalue().count(PLAIN) >= 7


def test_a_card_is_plain_in_every_part() -> None:
    card = Card("01.1 Look", message=EVIL, doing=EVIL, asked=EVIL, note=EVIL, folder=EVIL)
    card.take(events.Differs(EVIL, Difference(EVIL, diff=EVIL, rows=({"now": EVIL},))))
    card.take(events.Output("stdout", EVIL, "change"))
    card.take(events.Table(pd.DataFrame({EVIL: [EVIL]})))
    for status in ("running", "failed", "ok"):
        card.status = status
        assert COMMANDS.findall(card.html()) == []
        assert PLAIN in card.html()


@given(st.text(st.sampled_from("\x1b[]52;cP\\\x07\x9b\x9d\x9c\r\nma?(")))
def test_whatever_comes_is_plain_and_stays_so(text: str) -> None:
    once = clean(text)
    assert COMMANDS.findall(once) == []
    assert clean(once) == once


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x1b\\text", "text"),
        ("\x1b]52;c;not ended", "52;c;not ended"),
        ("10 %\r20 %\r\ndone\r\n", "20 %\ndone\n"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("\x1b(B\x1b)0ä €", "ä €"),
    ],
)
def test_sequences(text: str, shown: str) -> None:
    assert clean(text) == shown
