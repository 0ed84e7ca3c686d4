"""One run at a time on a machine: its lock, over a real sshd."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.ssh.conftest import Sshd, kill, processes_with, wait_until

from xenlab.chapter.events import ignore
from xenlab.chapter.machine_lock import Hold, MachineLock
from xenlab.chapter.recorder import CommandLog, Recorder
from xenlab.errors import MachineBusy, StepFailed
from xenlab.journal import Journal
from xenlab.transport.ssh import SSH, Wait

CONTROLLER = """
import sys, time
from pathlib import Path
from xenlab.chapter.machine_lock import MachineLock
from xenlab.transport.ssh import SSH
from xenlab.transport.ssh_config import Target
lock = MachineLock(SSH(Target(sys.argv[1], config=sys.argv[2])), Path(sys.argv[3]))
lock.take()
print("taken", flush=True)
time.sleep(600)
"""

Take = Callable[..., MachineLock]


@pytest.fixture
def of_run(sshd: Sshd) -> Iterator[Take]:
    """The lock as a run has it, over a connection of its own."""
    connections: list[SSH] = []

    def make(run: str, **seconds: int) -> MachineLock:
        connections.append(SSH(sshd.target))
        folder = Path("/controller/runs", run)
        return MachineLock(connections[-1], folder, Hold.STEP, **seconds)

    yield make
    for ssh in connections:
        ssh.close()


def free(lock: MachineLock) -> bool:
    """Whether this run gets the lock now; it then has it."""
    try:
        lock.take()
    except MachineBusy:
        return False
    return True


def test_a_second_run_is_told_whose_it_is_from_where_and_since_when(of_run: Take) -> None:
    first, second = of_run("first"), of_run("second")
    first.take()
    assert first.held
    with pytest.raises(MachineBusy) as caught:
        second.take()
    assert re.fullmatch(
        r"box: cannot work on this machine: because another run does, first of \S+@\S+ "
        r"\(/controller/runs/first\), since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\nTry: wait until .*",
        str(caught.value),
    ), str(caught.value)
    assert not second.held
    first.release()
    assert not first.held
    second.take()
    assert not free(first)


def test_the_chapters_of_a_run_may_have_it_together(of_run: Take) -> None:
    first, again, other = of_run("one"), of_run("one"), of_run("other")
    first.take()
    again.take()
    first.take()
    first.release()
    assert not free(other)
    again.release()
    assert free(other)


def test_a_killed_controller_leaves_no_lock(sshd: Sshd, of_run: Take) -> None:
    words = (sshd.alias, str(sshd.config), "/elsewhere/runs/one")
    controller = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, *words], stdout=subprocess.PIPE, text=True
    )
    other = of_run("other")
    try:
        assert controller.stdout is not None
        assert controller.stdout.readline() == "taken\n"
        assert not free(other)
    finally:
        controller.kill()
        controller.communicate()
    wait_until(lambda: free(other))


def test_it_goes_with_its_connection_and_is_taken_again(sshd: Sshd, of_run: Take) -> None:
    first, other = of_run("one"), of_run("other")
    first.take()
    for process in sshd.sessions():
        kill(process)
    wait_until(lambda: not first.held)
    wait_until(lambda: free(other))
    other.release()
    first.take()
    assert first.held and not free(other)


def test_a_reboot_leaves_no_lock(sshd: Sshd, of_run: Take) -> None:
    first, other = of_run("one"), of_run("other")
    first.take()
    sshd.stop()
    shutil.rmtree(sshd.notes)
    sshd.start()
    wait_until(lambda: not first.held)
    assert free(other) and not free(first)


def test_it_is_kept_for_the_next_chapter_of_the_run_for_a_while(of_run: Take) -> None:
    first, following, other = of_run("one"), of_run("one"), of_run("other")
    first.take()
    first.release(for_next=True)
    assert not free(other)
    following.take()
    following.release()
    assert free(other)
    other.release()
    short = of_run("one", next_seconds=2)
    short.take()
    short.release(for_next=True)
    assert not free(other)
    wait_until(lambda: free(other))


def test_the_next_chapter_of_a_run_looks_for_no_strays_again(of_run: Take) -> None:
    other, first, following, later = (of_run(run) for run in ("other", "one", "one", "two"))
    other.take()
    other.release()
    left = {**os.environ, "XENLAB_STEP": "other/05.1/1/change/2"}
    with subprocess.Popen(["sleep", "600"], env=left) as stray:
        wait_until(lambda: processes_with("XENLAB_STEP=other/05.1/1/change"))
        for lock in (first, following, later):
            lock.take()
            lock.release(for_next=lock is first)
        stray.kill()
    assert [len(lock.strays) for lock in (first, following, later)] == [1, 0, 1]


def test_a_controller_that_is_not_heard_any_more_has_lost_it(of_run: Take) -> None:
    silent, other = of_run("silent", silence=2), of_run("other")
    silent.take()
    assert not free(other)
    wait_until(lambda: free(other))
    wait_until(lambda: not silent.held)


def test_a_machine_that_cannot_lock_says_why(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    sshd.notes.write_text("no folder")
    ssh = SSH(sshd.target)
    with pytest.raises(
        StepFailed, match="cannot lock the machine for this run: because mkdir: cannot"
    ):
        MachineLock(ssh, Path("/runs/one")).take()
    ssh.close()


def test_who_is_not_the_account_cannot_hold_it(sshd: Sshd, of_run: Take) -> None:
    of_run("one").take()
    names = [sshd.notes / "working.lock", *(sshd.notes / "working").iterdir()]
    assert [stat.S_IMODE(name.stat().st_mode) for name in names] == [0o600, 0o600]
    assert stat.S_IMODE((sshd.notes / "working").stat().st_mode) == 0o700


def test_a_lock_that_somebody_keeps_is_named(sshd: Sshd, of_run: Take) -> None:
    of_run("one").take()
    file = sshd.notes / "working.lock"
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StepFailed) as caught:
            of_run("other", busy=1).take()
    assert str(caught.value) == (
        "box: cannot lock the machine for this run: because another process has held "
        f"{file} for 1 s\n"
        f"Try: look which one: fuser -v {file}"
    )


def test_a_run_that_has_ended_is_not_said_to_go_on(of_run: Take) -> None:
    first = of_run("first")
    first.take()
    first.release(for_next=True)
    with pytest.raises(MachineBusy) as caught:
        of_run("other").take()
    said = str(caught.value)
    assert (
        "cannot work on this machine: because it is kept for the next chapter of first of " in said
    )
    assert re.search(r"Try: try again in \d+ s: unless that run goes on, it is free then$", said)


def test_threads_take_it_once(sshd: Sshd, of_run: Take) -> None:
    lock = of_run("one")
    meet = threading.Barrier(8)

    def take(_: int) -> None:
        meet.wait()
        lock.take()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, range(8)))
    assert len(list((sshd.notes / "working").iterdir())) == 1
    lock.release()
    assert free(of_run("other"))


def test_what_was_lost_is_taken_again_but_not_what_was_given_back(
    sshd: Sshd, of_run: Take, tmp_path: Path
) -> None:
    lock, watcher = of_run("one"), Recorder(())
    entries = sshd.notes / "working"
    log = CommandLog("box", (), Journal(tmp_path / "run"), ignore)
    with watcher.step(log, "mark"):
        lock.again(watcher)
        assert not lock.held
        lock.take()
        for process in sshd.sessions():
            kill(process)
        wait_until(lambda: not lock.held and not list(entries.iterdir()))
        lock.again(watcher)
        assert lock.held
        lock.release()
        lock.again(watcher)
    assert not lock.held


def test_who_waits_to_be_told_whether_it_is_free_may_be_stopped(sshd: Sshd) -> None:
    watcher = Recorder(())
    said: list[str] = []
    ssh = SSH(sshd.target, wait=Wait(600, said.append))
    sshd.stop()
    log = CommandLog("box", (), Journal(sshd.folder / "run"), ignore)
    with watcher.step(log, "mark"), ThreadPoolExecutor(1) as pool:
        taking = pool.submit(MachineLock(ssh, Path("/runs/one")).take, watcher)
        wait_until(lambda: said)
        watcher.stop.set()
        with pytest.raises(KeyboardInterrupt):
            taking.result(30)


def test_a_machine_that_has_gone_silent_is_asked_again(
    sshd: Sshd, opened: Callable[..., SSH], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenlab.chapter.machine_lock.ANSWER_SECONDS", 3.0)
    ssh = opened(sshd.target, keepalive=0.2, patience=4.0)
    ssh.execute("true", timeout=60)
    frozen = sshd.sessions()
    for session in frozen:
        os.kill(session, signal.SIGSTOP)
    lock = MachineLock(ssh, Path("/runs/one"))
    lock.take()
    assert lock.held and ssh.connections == 2
    for session in frozen:
        kill(session)
    lock.release()


def test_what_was_lost_before_its_answer_is_asked_again(sshd: Sshd, of_run: Take) -> None:
    hangs = sshd.hang_once("flock")
    lock = of_run("one")
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(lock.take)
        wait_until(hangs.exists)
        for session in sshd.sessions():
            kill(session)
        taking.result(60)
    assert lock.held
