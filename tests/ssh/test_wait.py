"""A machine that does not answer for a while is waited for; what is of no use fails at once."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.ssh.conftest import Sshd, keygen, wait_until

from xenlab.chapter.recorder import Recorder
from xenlab.errors import ConnectionRefused, HostKeyRefused, NoConnection, Unreachable
from xenlab.host import Host
from xenlab.resources.kernel import _reconnect
from xenlab.transport.ssh import SSH, Wait
from xenlab.transport.ssh_config import Target

LONG = 120.0


class Waiting:
    """A transport whose waiting is written down."""

    def __init__(self, sshd: Sshd, seconds: float = LONG, reason: str = "") -> None:
        self.said: list[str] = []
        self.reason = reason
        wait = Wait(seconds, self.said.append, lambda: self.reason, look_seconds=1)
        self.ssh = SSH(sshd.target, wait=wait)


@pytest.fixture
def waiting(sshd: Sshd) -> Iterator[Waiting]:
    it = Waiting(sshd)
    yield it
    it.ssh.close()


def back_once(said: list[str], sshd: Sshd) -> threading.Thread:
    """Start the server again as soon as somebody says that he waits for it."""

    def start() -> None:
        wait_until(lambda: said)
        sshd.start()

    thread = threading.Thread(target=start)
    thread.start()
    return thread


def test_a_machine_that_is_away_is_waited_for(waiting: Waiting, sshd: Sshd) -> None:
    assert waiting.ssh.execute("echo one", timeout=10)[:2] == (0, b"one\n")
    sshd.stop()
    back = back_once(waiting.said, sshd)
    assert waiting.ssh.execute("echo two", timeout=10)[:2] == (0, b"two\n")
    back.join()
    why = f"cannot connect to 127.0.0.1:{sshd.port}: because nobody listens there"
    assert waiting.said == [f"waiting for box, for 120 s at most: {why}"]


def test_the_first_connection_is_waited_for(waiting: Waiting, sshd: Sshd) -> None:
    sshd.stop()
    back = back_once(waiting.said, sshd)
    waiting.ssh.connect()
    back.join()


def test_a_commands_own_time_rests_meanwhile(waiting: Waiting, sshd: Sshd) -> None:
    sshd.stop()

    def start() -> None:
        time.sleep(4)
        sshd.start()

    back = threading.Thread(target=start)
    back.start()
    assert waiting.ssh.execute("sleep 1; echo", timeout=3)[0] == 0
    back.join()


def test_patience_has_an_end(sshd: Sshd) -> None:
    waiting = Waiting(sshd, 2)
    sshd.stop()
    start = time.monotonic()
    with pytest.raises(ConnectionRefused, match=r"nobody listens there \(waited for \d+ s\)"):
        waiting.ssh.execute("true", timeout=10)
    assert 2 <= time.monotonic() - start < 30


def test_a_person_may_stop_it(waiting: Waiting, sshd: Sshd) -> None:
    sshd.stop()
    stop = threading.Event()

    def press() -> None:
        wait_until(lambda: waiting.said)
        stop.set()

    setter = threading.Thread(target=press)
    setter.start()
    with pytest.raises(KeyboardInterrupt):
        waiting.ssh.execute("true", timeout=10, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        waiting.ssh.connect(stop)
    setter.join()


def test_what_waits_in_vain_ends_with_the_reason(sshd: Sshd) -> None:
    waiting = Waiting(sshd, reason="its domain does not run")
    sshd.stop()
    with pytest.raises(Unreachable, match="^its domain does not run"):
        waiting.ssh.execute("true", timeout=10)
    assert not waiting.said


def test_what_nobody_is_going_to_start_is_not_even_tried(sshd: Sshd) -> None:
    reasons = [""]
    ssh = SSH(sshd.target, wait=Wait(LONG, in_vain=lambda: reasons[-1], at_once=True))
    ssh.connect()
    reasons.append("its domain does not run")
    assert ssh.execute("echo kept", timeout=10)[:2] == (0, b"kept\n")
    ssh.close()
    with pytest.raises(Unreachable, match="^its domain does not run"):
        ssh.execute("true", timeout=10)
    assert ssh.connections == 1


def test_a_guest_that_dies_meanwhile_is_noticed(waiting: Waiting, sshd: Sshd) -> None:
    sshd.stop()

    def die() -> None:
        wait_until(lambda: waiting.said)
        waiting.reason = "its domain has crashed"

    dying = threading.Thread(target=die)
    dying.start()
    with pytest.raises(Unreachable, match="its domain has crashed"):
        waiting.ssh.connect()
    dying.join()


def test_a_reboot_is_waited_for_once_with_one_figure(waiting: Waiting, sshd: Sshd) -> None:
    sshd.stop()
    back = back_once(waiting.said, sshd)
    assert Host(waiting.ssh).wait_for_reboot("old", timeout=77)
    back.join()
    figures = [re.search(r"for (\d+) s at most", line) for line in waiting.said]
    assert [figure and figure[1] for figure in figures] == ["77"]


def test_the_connection_of_a_machine_that_has_not_rebooted_yet_is_kept(ssh: SSH) -> None:
    host = Host(ssh)
    with pytest.raises(ConnectionRefused, match="it still has its old boot id"):
        host.wait_for_reboot(host.boot_id(), timeout=4)
    assert ssh.connections == 2


def reboots(host: Host) -> None:
    """Wait for a machine that boots."""
    host.wait_for_reboot("old", timeout=LONG)


@pytest.mark.parametrize("wait", [reboots, _reconnect])
def test_whoever_waits_for_a_machine_hears_a_stop(
    waiting: Waiting, sshd: Sshd, wait: Callable[[Host], None]
) -> None:
    recorder = Recorder(())
    host = Host(waiting.ssh, watcher=recorder)
    sshd.stop()
    with ThreadPoolExecutor(1) as pool:
        hearing = pool.submit(wait, host)
        wait_until(lambda: waiting.said)
        recorder.stop.set()
        with pytest.raises(KeyboardInterrupt):
            hearing.result(LONG / 2)


def new_host_key(sshd: Sshd) -> None:
    sshd.restart(new_key=True)


def no_key_for_us(sshd: Sshd) -> None:
    keygen(sshd.identity)


@pytest.mark.parametrize(
    ("spoil", "kind"), [(new_host_key, HostKeyRefused), (no_key_for_us, Unreachable)]
)
def test_what_waiting_does_not_mend_fails_at_once(
    waiting: Waiting, sshd: Sshd, spoil: Callable[[Sshd], None], kind: type[NoConnection]
) -> None:
    spoil(sshd)
    with pytest.raises(kind):
        waiting.ssh.connect()
    assert not waiting.said


def test_an_unknown_name_fails_at_once() -> None:
    said: list[str] = []
    ssh = SSH(Target("no-such-name.invalid"), wait=Wait(LONG, said.append))
    with pytest.raises(Unreachable, match="cannot connect to no-such-name.invalid: because"):
        ssh.connect()
    assert not said
