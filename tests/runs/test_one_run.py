"""Chapters and whole runs on one machine: one at a time, and patient with it, over a real sshd."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.sites import lab_site
from tests.ssh.conftest import Sshd, wait_until
from tests.ssh.small import Site

from xenlab.chapter.chapter import Chapter
from xenlab.chapter.machine_lock import Hold
from xenlab.command import Command
from xenlab.errors import MachineBusy, StepFailed
from xenlab.host import Host
from xenlab.journal import Journal
from xenlab.resources.base import Difference, OnHost, Report, Resource
from xenlab.resources.ssh_access import GuestAnswers
from xenlab.site.schema import Ssh
from xenlab.transport.local import Local
from xenlab.transport.ssh import SSH, Wait

SECONDS = 120


@dataclass(frozen=True)
class Made(Resource):
    """A file made by a script; ``script`` gets its path as "$1"."""

    path: Path
    script: str = 'echo made | tee -- "$1"'

    def probe(self, host: Host) -> Difference | None:
        return None if host.test(Command.argv("test", "-s", self.path)) else Difference("make it")

    def apply(self, host: Host, report: Report) -> None:
        host.run(Command.script(self.script, self.path), timeout=SECONDS)


WAITS = 'until [ -e "$1.go" ]; do sleep 0.1; done; echo made > "$1"'

Open = Callable[..., Chapter]


@pytest.fixture
def opened(sshd: Sshd, tmp_path: Path) -> Iterator[Open]:
    """Open a chapter of a run of its own."""
    books: list[Chapter] = []

    def make(
        run: str,
        hold: Hold = Hold.STEP,
        mode: str = "apply",
        stop: threading.Event | None = None,
    ) -> Chapter:
        ssh = Ssh(host=sshd.alias, config=str(sshd.config), patience_seconds=SECONDS)
        journal = Journal(tmp_path / run)
        site = lab_site(ssh=ssh)
        chapter = Chapter("05_base", site, journal, mode=mode, hold=hold, stop=stop)
        chapter.root = "/"
        books.append(chapter)
        return chapter

    yield make
    for chapter in books:
        chapter.host.transport.close()


def waits(journal: Journal) -> list[str]:
    """What the journal says that was waited for."""
    return [r["message"] for r in journal.records() if r["phase"] == "waiting"]


def back_once_missed(journal: Journal, sshd: Sshd) -> threading.Thread:
    """Start the server again as soon as the journal says that somebody waits for it."""

    def start() -> None:
        wait_until(lambda: waits(journal), SECONDS)
        sshd.start()

    thread = threading.Thread(target=start)
    thread.start()
    return thread


def test_a_step_that_changes_the_machine_has_it_alone(opened: Open, tmp_path: Path) -> None:
    one, other = opened("one"), opened("other")
    slow = Made(tmp_path / "slow", WAITS)
    work = threading.Thread(target=one.ensure, args=("05.1 Make it slowly", slow))
    work.start()
    running = one.journal
    wait_until(lambda: any(r["phase"] == "running" for r in running.records()))
    other.check("05.1 Look", Made(Path("/etc/passwd")))
    with pytest.raises(
        MachineBusy, match="cannot work on this machine: because another run does, one of"
    ):
        other.ensure("05.2 Make it", Made(tmp_path / "quick"))
    assert other.journal.records()[-1]["status"] == "failed"
    assert not (tmp_path / "quick").exists()
    Path(f"{slow.path}.go").touch()
    work.join()
    assert one.journal.records()[-1]["status"] == "changed"
    other.ensure("05.2 Make it", Made(tmp_path / "quick"))
    one.ensure("05.2 Make another", Made(tmp_path / "another"))


def test_a_run_has_the_machine_until_it_is_closed_also_after_a_reboot(
    sshd: Sshd, opened: Open, tmp_path: Path
) -> None:
    run = opened("run", Hold.CHAPTER)
    with pytest.raises(MachineBusy):
        opened("second", Hold.CHAPTER)
    assert Journal(tmp_path / "second").records()[-1]["status"] == "failed"
    opened("plan", mode="plan").ensure("05.1 Make it", Made(tmp_path / "x"))
    person = opened("person")
    with pytest.raises(MachineBusy):
        person.ensure("05.1 Make it", Made(tmp_path / "x"))
    sshd.restart()
    run.ensure("05.1 Make it", Made(tmp_path / "x"))
    with pytest.raises(MachineBusy):
        person.ensure("05.2 Make it", Made(tmp_path / "y"))
    run.close()
    person.ensure("05.2 Make it", Made(tmp_path / "y"))
    opened("second", Hold.CHAPTER)


def test_the_lock_is_on_record(opened: Open, tmp_path: Path) -> None:
    chapter = opened("run")
    chapter.ensure("05.1 Make it", Made(tmp_path / "x"))
    taken = [c for c in chapter.journal.records()[-1]["commands"] if "flock" in c["command"]]
    assert [c["output"] for c in taken] == ["taken\n"]


def test_two_controllers_on_one_machine(site: Site, tmp_path: Path) -> None:
    other = Site(tmp_path / "checkout", site.sshd)
    other.folder.mkdir()
    for each in (site, other):
        each.write()
        for name in ("01", "02"):
            each.chapter(f"{name}_chapter", each.made(f"{name}.1", script=WAITS))
    first = site.start("run", "-f", "site.yaml")

    def works(number: str) -> Callable[[], bool]:
        def seen() -> bool:
            records = site.journal().records() if site.run_folders() else []
            return any(r["phase"] == "running" and r["step"] == number for r in records)

        return seen

    for name in ("01.1", "02.1"):
        wait_until(works(name), SECONDS)
        second = other.start("run", "-f", "site.yaml")
        out, _ = second.communicate(timeout=SECONDS)
        assert second.returncode == 1, out
        plain = " ".join(out.split())
        assert "another run does," in plain and site.run_folders()[-1].name in plain, out
        assert not other.path("01.1").exists()
        Path(f"{site.path(name)}.go").touch()
    out, _ = first.communicate(timeout=SECONDS)
    assert first.returncode == 0, out
    for name in ("01.1", "02.1"):
        Path(f"{other.path(name)}.go").touch()
    third = other.start("run", "-f", "site.yaml")
    out, _ = third.communicate(timeout=SECONDS)
    assert third.returncode == 0, out


def test_a_machine_that_is_away_while_a_chapter_opens(site: Site) -> None:
    ssh = {"host": site.sshd.alias, "config": str(site.sshd.config), "patience_seconds": SECONDS}
    site.write(ssh=ssh)
    site.chapter("01_first", site.made("01.1"))
    site.sshd.stop()
    process = site.start("run", "-f", "site.yaml")
    wait_until(lambda: bool(site.run_folders()) and waits(site.journal()), SECONDS)
    site.sshd.start()
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, out
    assert f"waiting for box, for {SECONDS} s at most: cannot connect to 127.0.0.1:" in out
    assert site.steps() == [("01.1", "changed")]


def test_a_machine_that_is_away_while_a_step_looks(
    sshd: Sshd, opened: Open, tmp_path: Path
) -> None:
    chapter = opened("run", Hold.CHAPTER)
    sshd.stop()
    back = back_once_missed(chapter.journal, sshd)
    chapter.ensure("05.1 Make it", Made(tmp_path / "x"))
    back.join()
    assert chapter.journal.records()[-1]["status"] == "changed"
    assert len(waits(chapter.journal)) == 1


def test_a_guest_without_a_domain_is_not_waited_for(
    sshd: Sshd, make_sshd: Callable[..., Sshd], opened: Open, tmp_path: Path
) -> None:
    guest = make_sshd(alias="domu1")
    sshd.config.write_text(sshd.config.read_text() + guest.config.read_text())
    chapter = opened("run")
    resource = OnHost("domu1", chapter.guest("domu1"), Made(tmp_path / "x"))
    chapter.ensure("05.1 There", resource)
    guest.stop()
    start = time.monotonic()
    with pytest.raises(StepFailed, match="domu1 does not run: there is no such domain"):
        chapter.each("05.2 Where no domain is", {"domu1": resource})
    assert time.monotonic() - start < SECONDS / 4


def test_a_plan_does_not_try_to_reach_a_guest_without_a_domain(
    sshd: Sshd, make_sshd: Callable[..., Sshd], opened: Open, tmp_path: Path
) -> None:
    guest = make_sshd(alias="domu1")
    sshd.config.write_text(sshd.config.read_text() + guest.config.read_text())
    chapter = opened("plan", mode="plan")
    resource = OnHost("domu1", chapter.guest("domu1"), Made(tmp_path / "x"))
    chapter.each("05.1 Where no domain is", {"domu1": resource})
    planned = chapter.journal.records()[-1]
    assert planned["status"] == "would change"
    said = planned["difference"]["domu1"]["summary"]
    assert said.startswith("once domu1 answers: domu1 does not run: there is no such domain")
    looks = [c["command"] for c in planned["commands"] if c["command"] == "xl list"]
    assert len(looks) == 1
    assert not guest.sessions()


def test_a_guest_stays_connected_until_a_step_changes_something(
    sshd: Sshd, make_sshd: Callable[..., Sshd], opened: Open, tmp_path: Path
) -> None:
    guest = make_sshd(alias="domu1")
    sshd.config.write_text(sshd.config.read_text() + guest.config.read_text())
    chapter = opened("run", Hold.CHAPTER)
    there = Made(Path("/etc/passwd"))

    def connections() -> int:
        """How often the guest was connected to once another step has looked at it."""
        chapter.check("05.1 Look", OnHost("domu1", chapter.guest("domu1"), there))
        ssh = chapter.guest("domu1").transport
        assert isinstance(ssh, SSH)
        return ssh.connections

    assert [connections(), connections()] == [1, 1]
    chapter.ensure("05.2 Change", Made(tmp_path / "x"))
    assert [connections(), connections()] == [2, 2]
    with pytest.raises(StepFailed):
        chapter.check("05.3 Fail", Made(tmp_path / "y"))
    assert connections() == 3
    chapter.close()
    wait_until(lambda: not guest.sessions(), SECONDS)


@dataclass(frozen=True)
class CutOff(Made):
    """What is done although the machine goes away and comes back afterwards."""

    cut: Callable[[], None] = field(default=lambda: None, compare=False)

    def apply(self, host: Host, report: Report) -> None:
        super().apply(host, report)
        self.cut()


@dataclass(frozen=True)
class CutOffFirst(CutOff):
    """The machine goes away and comes back before a command."""

    def apply(self, host: Host, report: Report) -> None:
        self.cut()
        host.run(Command.script(self.script, self.path), timeout=SECONDS)


def lost_in_a_command(path: Path, sshd: Sshd) -> Resource:
    """The connection goes with the command that used it."""
    return Made(path, 'echo made > "$1"; kill -KILL "$PPID"; sleep 1')


def lost_between_two_commands(path: Path, sshd: Sshd) -> Resource:
    """Nobody notices before the next command."""
    return CutOff(path, cut=sshd.restart)


@pytest.mark.parametrize("lose", [lost_in_a_command, lost_between_two_commands])
@pytest.mark.parametrize("hold", [Hold.STEP, Hold.CHAPTER])
def test_a_step_that_connects_again_has_the_machine_again(
    sshd: Sshd, opened: Open, tmp_path: Path, hold: Hold, lose: Callable[..., Resource]
) -> None:
    one, other = opened("one", hold), opened("other")
    slow = Made(tmp_path / "slow", 'touch "$1.here"; ' + WAITS)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(one.ensure, "05.1 Go on", lose(tmp_path / "first", sshd), slow)
        wait_until(Path(f"{slow.path}.here").exists, SECONDS)
        try:
            with pytest.raises(MachineBusy, match="one of"):
                other.ensure("05.1 Slip in", Made(tmp_path / "theirs"))
        finally:
            Path(f"{slow.path}.go").touch()
        working.result(SECONDS)
    assert not (tmp_path / "theirs").exists()
    assert one.journal.records()[-1]["status"] == "changed"
    taken = [c for c in one.journal.records()[-1]["commands"] if "flock" in c["command"]]
    assert len(taken) == (2 if hold is Hold.STEP else 1)


def test_nothing_is_sent_over_a_new_connection_while_another_run_has_the_machine(
    sshd: Sshd, opened: Open, tmp_path: Path
) -> None:
    one, other = opened("one"), opened("other")
    theirs = Made(tmp_path / "theirs", 'touch "$1.here"; ' + WAITS)
    with ThreadPoolExecutor(1) as pool:
        slipped: list[Future[None]] = []

        def slip_in() -> None:
            sshd.restart()
            slipped.append(pool.submit(other.ensure, "05.1 Slip in", theirs))
            wait_until(Path(f"{theirs.path}.here").exists, SECONDS)

        try:
            with pytest.raises(MachineBusy, match="other of"):
                one.ensure("05.1 Lose it", CutOffFirst(tmp_path / "ours", cut=slip_in))
        finally:
            Path(f"{theirs.path}.go").touch()
        slipped[0].result(SECONDS)
    assert not (tmp_path / "ours").exists()


def stopped_once_it_waits(folder: Path, stop: threading.Event) -> threading.Thread:
    """Press stop as soon as the journal says that somebody waits."""

    def press() -> None:
        journal = Journal(folder)
        wait_until(lambda: waits(journal), SECONDS)
        stop.set()

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def test_a_chapter_that_opens_hears_a_stop(sshd: Sshd, opened: Open, tmp_path: Path) -> None:
    stop = threading.Event()
    sshd.stop()
    thread = stopped_once_it_waits(tmp_path / "run", stop)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        opened("run", stop=stop)
    thread.join()
    assert time.monotonic() - start < SECONDS / 2
    final = Journal(tmp_path / "run").records()[-1]
    assert final["status"] == "aborted"
    assert final["message"].startswith("stopped by a person; what it ran on box may still run: ")


def test_a_step_that_has_lost_its_machine_hears_a_stop(
    sshd: Sshd, opened: Open, tmp_path: Path
) -> None:
    chapter = opened("run")
    thread = stopped_once_it_waits(tmp_path / "run", chapter.stop)
    start = time.monotonic()
    made = Made(tmp_path / "x", 'touch "$1.here"; sleep 600')
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(chapter.ensure, "05.1 Lose it", made)
        wait_until(Path(f"{made.path}.here").exists, SECONDS)
        sshd.stop()
        with pytest.raises(KeyboardInterrupt):
            working.result(SECONDS)
    thread.join()
    assert time.monotonic() - start < SECONDS / 2
    assert "may still run" in chapter.journal.records()[-1]["message"]


def test_parts_side_by_side_are_stopped_not_failed(opened: Open, tmp_path: Path) -> None:
    chapter = opened("run")
    parts = {name: Made(tmp_path / name, 'touch "$1.here"; sleep 600') for name in ("one", "two")}
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(chapter.each, "05.1 All", parts)
        wait_until(lambda: all(Path(f"{p.path}.here").exists() for p in parts.values()), SECONDS)
        chapter.stop.set()
        with pytest.raises(KeyboardInterrupt):
            working.result(SECONDS)
    final = chapter.journal.records()[-1]
    said = "stopped by a person; what it ran on the machine was ended"
    assert (final["status"], final["message"]) == ("aborted", said)


def test_a_chapter_that_does_not_open_lets_go_of_the_machine(sshd: Sshd, opened: Open) -> None:
    opened("run", Hold.CHAPTER)
    before = len(sshd.sessions())
    with pytest.raises(MachineBusy):
        opened("second", Hold.CHAPTER)
    wait_until(lambda: len(sshd.sessions()) <= before)


def test_a_guest_is_waited_for_once_with_one_figure(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    guest = make_sshd(alias="domu1")
    said: list[str] = []
    ssh = SSH(guest.target, wait=Wait(SECONDS, said.append))
    guest.stop()

    def start() -> None:
        wait_until(lambda: said, SECONDS)
        guest.start()

    def report(what: str, done: float | None = None) -> None:
        said.append(what)

    back = threading.Thread(target=start)
    back.start()
    OnHost("domu1", Host(ssh), Made(tmp_path / "x"), seconds=77).apply(Host(Local()), report)
    back.join()
    ssh.close()
    lines = [line for line in said if "at most" in line]
    assert [re.findall(r"for \d+ s", line) for line in lines] == [["for 77 s"]]


def test_whether_a_guest_answers_is_looked_at_without_waiting(
    make_sshd: Callable[..., Sshd],
) -> None:
    guest = make_sshd(alias="domu1")
    said: list[str] = []
    ssh = SSH(guest.target, wait=Wait(SECONDS, said.append))
    guest.stop()
    assert GuestAnswers("domu1", Host(ssh)).probe(Host(Local())) is not None
    assert said == []
