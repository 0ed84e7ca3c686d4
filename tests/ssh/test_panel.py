"""The panel over a real sshd: steps run, stopped, and their remote processes gone."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.ssh.conftest import wait_until
from tests.ssh.small import Site

from xenlab.journal import Journal
from xenlab.panel.chapters import ChapterPanel, Panel
from xenlab.panel.site import SiteFile

SECONDS = 120

MOMENT = 10
"""Longer than anything takes that does not wait for the machine, on a busy machine too."""

NAMES = ["test", "the-castle"]

HERE = """
class Here(Made):
    def probe(self, host):
        return None if os.path.exists(self.path) else Difference("make it")

"""


@pytest.fixture
def panel(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChapterPanel]:
    site.chapter("01_first", site.made("01.1"), site.made("01.2"), site.made("01.3"))
    site.chapter(
        "02_second",
        site.made("02.1", script='sleep 1234567 & wait; echo done > "$1"'),
        site.made("02.2", "Impossible"),
    )
    monkeypatch.syspath_prepend(site.folder / "notebooks")
    panel = ChapterPanel(site.folder / "notebooks", SiteFile(site.file))
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
    assert whole.domains.wait_closed(SECONDS)
    records = Journal(site.run_folders()[-1]).records()
    assert [(r["phase"], r["chapter"]) for r in records] == [
        ("open", "91_panel"),
        ("final", "91_panel"),
        ("close", "91_panel"),
    ]


def test_stop_is_heard_while_the_chapter_opens(site: Site, panel: ChapterPanel) -> None:
    panel.close()
    site.write(ssh=site.ssh | {"patience_seconds": SECONDS})
    panel = ChapterPanel(site.folder / "notebooks", SiteFile(site.file))
    site.sshd.stop()
    panel.next.click()
    wait_until(lambda: site.run_folders(), SECONDS)
    panel.stop.click()
    assert panel.wait(SECONDS / 4)
    assert "01.1 was stopped" in panel.message.value
    site.sshd.start()
    panel.next.click()
    assert panel.wait(SECONDS)
    assert panel.states["01.1"] == "changed"


def test_stop_is_heard_between_two_steps(site: Site, panel: ChapterPanel) -> None:
    stop = "from xenlab.chapter.opening import STOP\nglobals()[STOP].set()"
    site.chapter("01_first", f"{site.made('01.1')}\n{stop}", site.made("01.2"))
    panel.close()
    panel = ChapterPanel(site.folder / "notebooks", SiteFile(site.file))
    panel.to_end.click()
    assert panel.wait(SECONDS)
    assert panel.states == {"01.1": "changed", "01.2": "to do"}
    assert "01.2 was stopped" in panel.message.value
    panel.close()


def test_what_a_chapter_needs_is_asked_for_until_it_is_there(
    site: Site, panel: ChapterPanel
) -> None:
    needs = f"chapter.needs('00_before', Here({str(site.path('00'))!r}))"
    site.chapter("01_first", site.made("01.1"), needs=HERE + needs)
    for _ in range(2):
        panel.next.click()
        assert panel.wait(SECONDS)
        assert "run chapter 00_before" in panel.message.value
        assert panel.states["01.1"] == "to do"
        assert not site.path("01.1").exists()
        wait_until(lambda: not site.sshd.sessions(), SECONDS)
    site.path("00").write_text("made\n")
    panel.next.click()
    assert panel.wait(SECONDS)
    assert panel.states["01.1"] == "changed"


def test_a_cell_that_is_wrong_says_so(
    site: Site, panel: ChapterPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    site.chapter("01_first", site.made("01.1"), needs="lunar()")
    panel.next.click()
    assert panel.wait(SECONDS)
    assert "NameError" in panel.message.value and "lunar" in panel.message.value


@pytest.mark.parametrize("silent", [False, True], ids=["nobody listens", "nobody answers"])
def test_no_button_waits_for_the_machine(site: Site, panel: ChapterPanel, silent: bool) -> None:
    site.write(ssh=site.ssh | {"patience_seconds": SECONDS})
    site.sshd.stop()
    with socket.socket() as listener:
        if silent:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", site.sshd.port))
            listener.listen()
        whole = Panel(site.file, site.folder / "notebooks")
        folders = len(site.run_folders())
        whole.domains.watch.value = True
        whole.chapters.next.click()
        wait_until(lambda: len(site.run_folders()) == folders + 2, SECONDS)
        start = time.monotonic()
        whole.domains.watch.value = False
        whole.domains.watch.value = True
        whole.chapters.stop.click()
        whole.chapters.choice.value = "02_second"
        whole.form.fields["hostname"].value = "keep"
        whole.form.save.click()
        whole.close()
        assert time.monotonic() - start < MOMENT
    # now that the listener is gone, nobody waits for its answer any more
    assert whole.chapters.wait(SECONDS) and whole.domains.wait_closed(SECONDS)


def test_nothing_starts_unless_form_file_and_panel_are_one(site: Site, panel: ChapterPanel) -> None:
    whole = Panel(site.file, site.folder / "notebooks")
    chapters, form = whole.chapters, whole.form
    start = whole.domains.rows["domu1"].buttons["start"]

    def refused(why: str) -> None:
        chapters.next.click()
        start.click()
        assert chapters.wait(SECONDS) and whole.domains.wait(SECONDS)
        for said in (chapters.message.value, whole.domains.answer.value):
            assert said.count("cannot start") == 1 and why in said
        assert site.run_folders() == [] and not site.path("01.1").exists()

    form.fields["disk"].value = "/dev/vdb"
    refused(f"the form says something else than {site.file} (disk)")
    form.fields["disk"].value = "vdb"
    refused("the form says something else")
    form.again.click()
    assert form.fields["disk"].value == "/dev/vda"
    site.write(may_wipe=["OTHER"])
    refused("was changed since the panel read it (may_wipe)")
    site.file.write_text("site: [")
    refused("cannot be read any more")
    site.write(may_wipe=["OTHER"])
    form.again.click()
    chapters.next.click()
    assert chapters.wait(SECONDS)
    assert chapters.states["01.1"] == "changed"
    whole.close()


def test_after_saving_every_part_works_from_the_new_site(site: Site, panel: ChapterPanel) -> None:
    disk = "from pathlib import Path\nPath('disk').write_text(' '.join((chapter.site.site, disk)))"
    site.chapter("01_first", site.made("01.1"), f"{site.made('01.2')}\n{disk}")
    whole = Panel(site.file, site.folder / "notebooks")
    chapters, form, domains = whole.chapters, whole.form, whole.domains
    chapters.next.click()
    assert chapters.wait(SECONDS)
    form.fields["site"].value = "castle"
    form.fields["disk"].value = "/dev/vdb"
    guests = yaml.safe_load(form.fields["domains"].value)[:1]
    form.fields["domains"].value = yaml.safe_dump([{**guests[0], "name": "keep"}])
    form.place.value = str(site.folder / "castle.yaml")
    form.save.click()
    assert "saved to" in form.answer.value
    assert list(domains.rows) == ["keep"]
    assert domains.console.options == ("no console", "keep")
    assert domains.console.value == "no console"
    # what was done was done for another site
    assert set(chapters.states.values()) == {"to do"}
    wait_until(lambda: not site.sshd.sessions(), SECONDS)
    chapters.to_end.click()
    assert chapters.wait(SECONDS)
    assert Path("disk").read_text() == "castle /dev/vdb"
    assert any(folder.name.endswith("-castle") for folder in site.run_folders())
    whole.close()


def test_a_site_is_not_changed_under_a_step(site: Site, panel: ChapterPanel) -> None:
    whole = Panel(site.file, site.folder / "notebooks")
    whole.chapters.choice.value = "02_second"
    whole.chapters.next.click()
    wait_until(sleepers, SECONDS)
    before = site.file.read_bytes()
    whole.form.fields["hostname"].value = "keep"
    for button in (whole.form.save, whole.form.again):
        button.click()
        assert "because a step runs" in whole.form.answer.value
    assert site.file.read_bytes() == before
    whole.chapters.choice.value = "01_first"
    assert whole.chapters.choice.value == "02_second"
    assert whole.chapters.states == {"02.1": "running", "02.2": "to do"}
    whole.close()
    assert whole.chapters.wait(SECONDS)
    wait_until(lambda: not sleepers() and not site.sshd.sessions(), SECONDS)


def test_those_who_watch_see_the_new_site_s_machine(site: Site, panel: ChapterPanel) -> None:
    whole = Panel(site.file, site.folder / "notebooks")
    whole.domains.watch.value = True
    wait_until(lambda: "xl" in whole.domains.message.value, SECONDS)
    # the next look is over the same chapter
    whole.domains.message.value = ""
    wait_until(lambda: "xl" in whole.domains.message.value, SECONDS)
    assert len(site.run_folders()) == 1
    whole.form.fields["site"].value = "the-castle"
    whole.form.save.click()

    def opened() -> list[str]:
        return [folder.name.partition("-")[2] for folder in site.run_folders()]

    wait_until(lambda: opened() == NAMES, SECONDS)
    first, second = (Journal(folder) for folder in site.run_folders())
    assert [r["phase"] for r in first.records()] == ["open", "final", "close"]
    wait_until(lambda: len(second.records()) == 2, SECONDS)
    whole.close()
    assert whole.domains.wait_closed(SECONDS)
    assert [r["phase"] for r in second.records()] == ["open", "final", "close"]


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
