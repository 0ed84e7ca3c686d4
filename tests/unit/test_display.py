"""What a step looks like: escaped, calm about hostile text, bounded in size and in updates."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook
from papermill.exceptions import PapermillExecutionError

from xenlab.chapter import events
from xenlab.chapter.card import COLOURS, SHOWN_BYTES, TAIL_LINES, Card, diff_lines, duration
from xenlab.chapter.notebook import TextSink
from xenlab.masking import clean
from xenlab.resources.base import Difference

HOSTILE = "<script>alert(1)</script> \" ' & </pre></details> <img src=x onerror=alert(2)>"


def printed(text: str) -> events.Output:
    return events.Output("stdout", text, "change")


class Page(HTMLParser):
    """Collects the tags and checks that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.words = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in {"img", "br"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_everything_hostile_is_escaped() -> None:
    card = Card(f"04.2 {HOSTILE}", status="failed", seconds=1, message=HOSTILE)
    card.differences = [
        (HOSTILE, Difference(HOSTILE, f"--- a\n+++ b\n+{HOSTILE}\n")),
        ("", Difference("rows", rows=({HOSTILE: HOSTILE},))),
    ]
    card.take(printed(HOSTILE + "\n"))
    card.take(events.Table(pd.DataFrame({HOSTILE: [HOSTILE]})))
    page = Page(card.html())
    assert "script" not in page.tags and "img" not in page.tags
    assert not {name for name in page.attributes if name.startswith("on")}
    assert page.words.count(HOSTILE) >= 8


@given(st.text(), st.text(), st.text(), st.sampled_from([*COLOURS, "never heard of"]))
def test_any_text_gives_a_whole_page(title: str, output: str, diff: str, status: str) -> None:
    card = Card(title, status=status, message=output, doing=title, done=0.5)
    card.take(printed(output))
    card.differences = [(title, Difference(title, diff))]
    Page(card.html())


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_clean_text_has_no_control_characters(text: str) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", clean(text))
    assert clean(clean(text)) == clean(text)


def test_terminal_output_becomes_plain_lines() -> None:
    assert clean("\x1b[1;31mred\x1b[0m\r\nplain\n") == "red\nplain\n"
    assert clean(" 10%\r 50%\r100%\r\nnext") == "100%\nnext"
    assert clean("\x1b]0;title\x07shown") == "shown"


def test_a_page_uses_only_what_jupyterlab_keeps_of_an_untrusted_notebook() -> None:
    card = Card("04.2 Write", status="running", doing="writing", done=0.4)
    card.take(printed("x\n"))
    card.take(events.Picture(b"png"))
    text = card.html()
    assert "currentColor" not in text and "var(" not in text and "<style" not in text
    assert {"id", "onclick", "href"} & Page(text).attributes == set()
    styles = re.findall(r"[a-z-]+(?=:)", " ".join(re.findall(r'style="([^"]*)"', text)))
    assert set(styles) <= {
        "background-color", "border", "border-bottom", "border-left", "border-radius", "color",
        "cursor", "display", "font-family", "font-size", "font-weight", "height", "line-height",
        "margin", "max-height", "max-width", "opacity", "overflow", "overflow-wrap", "padding",
        "text-align", "vertical-align", "white-space", "width",
    }  # fmt: skip


def test_long_output_is_cut_and_says_where_the_whole_is() -> None:
    card = Card("04.2 Build", status="changed", seconds=1, folder="runs/x/output")
    for number in range(200_000):
        card.take(printed(f"line {number}\n"))
    text = card.html()
    assert len(text) < SHOWN_BYTES + 8192
    assert "output, 200000 lines" in text and "runs/x/output" in text
    assert "line 199999" in text and "line 100\n" not in text


def test_short_output_stands_whole() -> None:
    card = Card("04.2 Build", status="changed", seconds=1, folder="runs/x/output")
    card.take(printed("one\ntwo\n"))
    assert "output, 2 lines" in card.html() and "runs/x/output" not in card.html()


def test_a_running_step_shows_the_last_lines_and_how_far_it_is() -> None:
    card = Card("04.2 Build", note="since 16:00:00 UTC", doing="compiling", done=1.7)
    for number in range(100):
        card.take(printed(f"line {number}.\n"))
    text = card.html()
    assert "line 99." in text and f"line {100 - TAIL_LINES}." in text
    assert f"line {99 - TAIL_LINES}." not in text
    assert '<progress max="1" value="1.000"' in text and "compiling" in text
    assert "since 16:00:00 UTC" in text


def test_what_a_person_is_asked_for_stands_out_until_the_step_is_over() -> None:
    card = Card("04.8 Boot", doing="waiting until the disk answers", asked="boot <the> disk")
    text = card.html()
    assert "Waiting for you:" in text and "boot &lt;the&gt; disk" in text
    assert "waiting until the disk answers" in text
    card.status = "changed"
    assert "Waiting for you" not in card.html()


def test_a_finished_step_has_no_progress_bar() -> None:
    card = Card("04.2 Build", status="changed", seconds=3, doing="compiling", done=1)
    assert "progress" not in card.html() and "3.0 s" in card.html()


def test_a_diff_is_told_apart_by_line() -> None:
    diff = "--- a\n+++ b\n@@ -1 +1 @@\n-old\n+new\n same\n"
    kinds = [kind for kind, _ in diff_lines(diff)]
    assert kinds == ["head", "head", "hunk", "minus", "plus", "same"]


def test_a_table_keeps_its_values() -> None:
    card = Card("00.1 Facts", status="ok")
    frame = pd.DataFrame({"n": [1, 2], "x": [1.5, None], "t": ["a", pd.NA]})
    card.take(events.Table(frame))
    ((columns, rows, more),) = card.tables
    assert columns == ["n", "x", "t"] and rows == [["1", "1.5", "a"], ["2", "", ""]] and more == 0
    card.take(events.Table(frame.set_index("n").groupby("n").size().to_frame("many")))
    assert card.tables[1][0] == ["n", "many"]
    card.take(events.Table(pd.DataFrame({"n": range(1000)})))
    assert "and 500 more rows" in card.html() and "nothing" not in Page(card.html()).words
    card.take(events.Table(pd.DataFrame(columns=["file", "diff"])))
    assert "nothing to show" in Page(card.html()).words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (3725, "1 h 02 min"),
    ],
)
def test_durations_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_outside_of_a_notebook_a_step_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    sink = TextSink(sys.stdout)
    for event in (
        events.Opened("04_grub", "lab", "dom0", "apply", Path("runs/x")),
        events.Started("04.2 Write the Xen entry"),
        events.Differs("", Difference("write /etc/default/grub", "+GRUB_TIMEOUT=2\n")),
        events.Differs("domu1", Difference("boot", rows=({"a": "1"},))),
        events.Progress("writing", 0.5),
        printed("hidden\n"),
        events.Table(pd.DataFrame({"key": ["value"]})),
        events.Table(pd.DataFrame(columns=["key"])),
        events.Picture(b"1234"),
        events.Finished("changed", 1.2, "said"),
    ):
        sink.on(event)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "04_grub: site lab, host dom0, mode apply, run runs/x"
    assert lines[1] == "changed      04.2 Write the Xen entry  1.2 s"
    assert "    write /etc/default/grub" in lines and "    +GRUB_TIMEOUT=2" in lines
    assert "    domu1: boot" in lines and "    nothing to show" in lines and "    said" in lines
    assert not any("hidden" in line for line in lines)


SETUP = """
import pathlib, threading, time
from IPython.display import DisplayHandle
from xenlab.chapter import notebook
from xenlab.chapter.events import Finished, Opened, Output, Progress, Started
from xenlab.errors import StepFailed
assert notebook.in_notebook()
sent = []
update = DisplayHandle.update
DisplayHandle.update = lambda *words, **more: (
    update(*words, **more), sent.append(time.monotonic())
)
notebook.show_errors_briefly()
on = notebook.NotebookSink().on
on(Opened("04_grub", "lab", "dom0", "apply", pathlib.Path("/of/a/machine/runs/x")))
"""
BUSY = """
on(Started("04.2 Write the Xen entry"))
def work(name):
    for number in range(300):
        on(Output("stdout", f"{name} {number}\\n", "change"))
        on(Progress(name, number / 300))
        time.sleep(0.003)
threads = [threading.Thread(target=work, args=(name,)) for name in ("domu1", "domu2")]
for thread in threads: thread.start()
for thread in threads: thread.join()
on(Finished("changed", 1.0))
gaps = [b - a for a, b in zip(sent, sent[1:-1])]
assert len(sent) > 2 and min(gaps) > 0.2, gaps
"""
LATE = """
on(Started("04.3 Quiet after one word"))
on(Output("stdout", "first\\n", "change"))
before, deadline = len(sent), time.monotonic() + 60
while len(sent) == before and time.monotonic() < deadline:
    time.sleep(0.05)
assert len(sent) == before + 1, "what was said last is seen although nothing follows"
"""
FAILING = "raise StepFailed('no such device', hint='look at the disk', where='dom0, step 04.4')"


def test_a_notebook_keeps_the_final_look_of_each_step(tmp_path: Path) -> None:
    cells = [new_code_cell(text) for text in (SETUP, BUSY, LATE, FAILING, "never = 1")]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), tmp_path / "in.ipynb")
    with pytest.raises(PapermillExecutionError) as caught:
        papermill.execute_notebook(
            tmp_path / "in.ipynb",
            tmp_path / "out.ipynb",
            kernel_name="python3",
            language="python",
            progress_bar=False,
        )
    assert caught.value.ename == "StepFailed"
    done = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    cells = [cell for cell in done.cells if cell.cell_type == "code"]
    opened = cells[0].outputs[0].data["text/html"]
    assert "/of/a/machine/runs/x" in opened
    (busy,) = cells[1].outputs
    assert "changed" in busy.data["text/html"] and "output, 600 lines" in busy.data["text/html"]
    assert busy.data["text/plain"] == "changed  04.2 Write the Xen entry  1.0 s"
    Page(busy.data["text/html"])
    (late,) = cells[2].outputs
    assert "first" in late.data["text/html"]
    (error,) = [output for output in cells[3].outputs if output.output_type == "error"]
    assert error.traceback == ["StepFailed: dom0, step 04.4: no such device\nTry: look at the disk"]
