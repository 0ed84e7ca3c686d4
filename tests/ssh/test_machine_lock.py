"""One run at a time on a machine: its lock, over a real sshd."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.ssh.conftest import Sshd, kill, wait_until

from xenlab.errors import MachineBusy, StepFailed
from xenlab.machine_lock import Hold, MachineLock
from xenlab.ssh import SSH

CONTROLLER = """
import sys, time
from pathlib import Path
from xenlab.machine_lock import MachineLock
from xenlab.ssh import SSH, Target
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
        r"box: cannot work on this machine: another run does, first of \S+@\S+ "
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
    short = of_run("one", kept=2)
    short.take()
    short.release(for_next=True)
    assert not free(other)
    wait_until(lambda: free(other))


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
    with pytest.raises(StepFailed, match="cannot lock the machine for this run: mkdir: cannot"):
        MachineLock(ssh, Path("/runs/one")).take()
    ssh.close()
