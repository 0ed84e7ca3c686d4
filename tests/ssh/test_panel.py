"""The panel over a real sshd: steps run, stopped, and their remote processes gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.ssh.conftest import wait_until
from tests.ssh.small import Site

from xenlab import parameters
from xenlab.journal import Journal
from xenlab.panel.chapters import ChapterPanel
from xenlab.panel.whole import Panel

SECONDS = 120


@pytest.fixture
def panel(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChapterPanel]:
    site.chapter("01_first", site.made("01.1"), site.made("01.2"), site.made("01.3"))
    site.chapter(
        "02_second",
        site.made("02.1", script='sleep 1234567 & wait; echo done > "$1"'),
        site.made("02.2", "Impossible"),
    )
    monkeypatch.syspath_prepend(site.folder / "notebooks")
    panel = ChapterPanel(site.folder / "notebooks", parameters.load(site.file))
    yield panel
    panel.close()


def test_steps_run_one_by_one_and_to_the_end(site: Site, panel: ChapterPanel) -> None:
    assert panel.states == {"01.1": "to do", "01.2": "to do", "01.3": "to do"}
    panel.next.click()
    assert panel.wait(SECONDS)
    assert panel.states == {"01.1": "changed", "01.2": "to do", "01.3": "to do"}
    assert site.path("01.1").exists() and not site.path("01.2").exists()
    panel.to_end.click()
    assert panel.wait(SECONDS)
    assert set(panel.states.values()) == {"changed"}
    assert panel.next.disabled and panel.stop.disabled
    assert site.steps() == [("01.1", "changed"), ("01.2", "changed"), ("01.3", "changed")]
    assert [r["phase"] for r in site.journal().records()][-1] == "close"


def test_a_step_is_stopped_and_its_processes_are_gone(site: Site, panel: ChapterPanel) -> None:
    panel.choice.value = "02_second"
    panel.next.click()
    wait_until(lambda: panel.states["02.1"] == "running", SECONDS)
    wait_until(sleepers, SECONDS)
    assert panel.next.disabled and not panel.stop.disabled
    panel.stop.click()
    assert panel.wait(SECONDS)
    assert panel.states["02.1"] == "aborted"
    assert "02.1 was stopped" in panel.message.value
    wait_until(lambda: not sleepers(), SECONDS)
    assert site.steps() == [("02.1", "aborted")]


def test_a_failed_step_says_why_and_the_rest_is_left(site: Site, panel: ChapterPanel) -> None:
    site.path("02.1").write_text("made already")
    panel.choice.value = "02_second"
    panel.to_end.click()
    assert panel.wait(SECONDS)
    assert panel.states == {"02.1": "ok", "02.2": "failed"}
    assert "the moon is not full" in panel.message.value
    assert not panel.next.disabled


def test_an_unreachable_host_is_a_sentence(site: Site, panel: ChapterPanel) -> None:
    site.sshd.stop()
    panel.next.click()
    assert panel.wait(SECONDS)
    assert "box" in panel.message.value and "Traceback" not in panel.message.value
    assert panel.states["01.1"] == "to do"


def test_the_whole_panel_is_made_of_a_parameters_file(site: Site, panel: ChapterPanel) -> None:
    whole = Panel(site.file, site.folder / "notebooks")
    assert list(whole.widget.titles) == ["Chapters", "Domains", "Parameters"]
    # xl is not there: the table says so, and no button can be pressed
    whole.domains.watch.value = True
    wait_until(lambda: "xl" in whole.domains.message.value, SECONDS)
    assert all(b.disabled for row in whole.domains.rows.values() for b in row.buttons.values())
    whole.close()
    records = Journal(site.run_folders()[-1]).records()
    assert [(r["phase"], r["chapter"]) for r in records] == [
        ("open", "91_panel"),
        ("final", "91_panel"),
        ("close", "91_panel"),
    ]


def sleepers() -> list[int]:
    """The remote processes of the long step."""
    processes = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [process for process in processes if command_line(process) == b"1234567"]


def command_line(process: int) -> bytes:
    """The first word after a process's own name."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[1]
    except (OSError, IndexError):
        return b""


def test_the_panel_s_notebook_opens_it() -> None:
    place = Path(__file__).parents[2] / "notebooks" / "91_panel.ipynb"
    cells = json.loads(place.read_text())["cells"]
    assert "open_panel(parameters_file)" in "".join(cells[-1]["source"])
