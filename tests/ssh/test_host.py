"""Hosts over a real sshd: quoting, files, marks, ends."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.ssh.conftest import Sshd, processes_with, wait_until
from tests.watching import Watching

from xenlab.command import Command
from xenlab.errors import CommandFailed, CommandTimeout, ConnectionLost
from xenlab.host import NO_PROGRAM, Host
from xenlab.masking import MASK, Secret
from xenlab.transport.local import Local
from xenlab.transport.ssh import SSH

NAMES = (
    "plain",
    "with space",
    "it's",
    'say "hi"',
    "$(touch pwned) `touch pwned`",
    "a;b&c|d>e",
    "new\nline",
    "ünïcødé ✓",
    "-dash",
    "back\\slash",
    "*?[x]",
    "trailing ",
    "#hash",
    "%s %d %%",
)
TEXT = st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8"), max_size=200)


def runs(process: int) -> bool:
    """Whether a process is there and is no corpse that nobody has collected."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def host(ssh: SSH) -> Host:
    return Host(ssh)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host for many commands in a row."""
    server = Sshd(tmp_path_factory.mktemp("warm"))
    transport = SSH(server.target)
    yield Host(transport)
    transport.close()
    server.stop()


@pytest.mark.parametrize("kind", ["ssh", "local"])
@pytest.mark.parametrize("name", NAMES)
def test_files_with_any_name(
    name: str, kind: str, warm: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    host = warm if kind == "ssh" else Host(Local())
    owner = f"{tmp_path.owner()}:{tmp_path.group()}"
    path = tmp_path / "folder" / name / name
    host.write(str(path), f"{name}\n", mode=0o640, owner=owner)
    assert host.read(str(path)) == f"{name}\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in path.parent.iterdir()] == [name]
    assert host.read(str(path) + "x") is None
    assert not list(tmp_path.rglob("pwned"))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=TEXT)
@example(value="'\"'\"'")
@example(value="$HOME `id` $(id) \\ \n ! # ~ *")
@example(value="\r\n\t\x1b[31m\x7f")
def test_any_value_arrives_unchanged(value: str, warm: Host) -> None:
    assert warm.run(Command.argv("printf", "%s", value)).out == value.encode()
    assert warm.run(Command.sh("printf %s {value}", value=value)).out == value.encode()
    assert warm.run(Command.script('printf %s "$1"', value)).out == value.encode()


def test_a_chroot_gets_the_same_values(host: Host) -> None:
    fake = Host(host.transport, root="/nowhere")
    with pytest.raises(CommandFailed, match="chroot"):
        fake.run(Command.argv("printf", "%s", "it's"))


def test_a_look_at_a_root_without_a_system_finds_nothing(host: Host, tmp_path: Path) -> None:
    assert Host(host.transport, root=str(tmp_path)).look("true") is None
    assert Host(host.transport, root=str(tmp_path / "missing")).look("true") is None


def test_a_look_on_a_running_system_needs_its_programs(host: Host) -> None:
    with pytest.raises(CommandFailed, match="exit status 127"):
        host.look("no-such-program")
    assert host.look("no-such-program", absent=(NO_PROGRAM,)) is None
    assert host.look("exit 44", absent=(44,)) is None
    with pytest.raises(CommandFailed, match="exit status 44"):
        host.look("exit 44")


def test_a_failure_shows_its_last_lines(host: Host) -> None:
    with pytest.raises(CommandFailed) as failed:
        host.run("seq 1 30; echo why >&2; exit 7")
    text = str(failed.value)
    assert text.startswith("box: command failed with exit status 7: seq 1 30;")
    assert "  21\n" in text
    assert "  20\n" not in text
    assert "last lines of stderr:\n  why" in text


def test_secrets_never_show(host: Host) -> None:
    secret = Secret("hush it's me")
    with pytest.raises(CommandFailed) as failed:
        host.run(Command.script('echo "$1" >&2; echo "$1"; exit 1', secret))
    with pytest.raises(CommandTimeout) as late:
        host.run(Command.sh("sleep 600; : {secret}", secret=secret), timeout=0.3)
    for error in (failed.value, late.value):
        assert "hush" not in str(error) + repr(error) + repr(error.result)
        assert MASK in str(error)


@pytest.mark.parametrize("mark", ["", "step'1 of 2"])
@pytest.mark.parametrize("kind", ["ssh", "local"])
def test_a_deadline_ends_the_remote_processes(
    host: Host, kind: str, mark: str, tmp_path: Path
) -> None:
    machine = (host if kind == "ssh" else Host(Local())).marked(mark)
    pid = tmp_path / "pid"
    # A loop of the shell's own, a child that has lost the mark, one that ignores SIGTERM.
    script = """
        env -i sleep 601 &
        (trap '' TERM; while :; do sleep 0.1; done) &
        echo $! > "$1"
        while :; do sleep 602; done
    """
    with pytest.raises(CommandTimeout, match=r"timed out after 2 s"):
        machine.run(Command.script(script, pid), timeout=2)
    assert not runs(int(pid.read_text()))
    found = subprocess.run(["pgrep", "-f", "^sleep 60[12]$"], capture_output=True, check=False)
    assert found.stdout == b""
    if mark:
        assert not machine.has_marked(mark)


@pytest.mark.parametrize("kind", ["ssh", "local"])
def test_a_stop_ends_the_remote_processes(host: Host, kind: str) -> None:
    stop = threading.Event()
    mark = f"stop-{time.monotonic_ns()}"
    machine = (host if kind == "ssh" else Host(Local())).marked(mark).watched(Watching(stop))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(machine.run, "while :; do sleep 1; done", timeout=500)
        wait_until(lambda: processes_with(f"XENLAB_STEP={mark}"))
        stop.set()
        with pytest.raises(KeyboardInterrupt):
            running.result(60)
    assert processes_with(f"XENLAB_STEP={mark}") == []


def test_only_what_carries_the_mark_is_ended(host: Host) -> None:
    with ThreadPoolExecutor(2) as pool:
        ours = pool.submit(host.marked("one").run, "sleep 300", timeout=500, check=False)
        other = pool.submit(host.marked("one more").run, "sleep 3; echo on", timeout=500)
        wait_until(lambda: host.has_marked("one") and host.has_marked("one more"))
        assert host.end_marked("one") >= 1
        assert ours.result(60).status == 128 + 15
        assert other.result(60).stdout == "on\n"
    assert host.end_marked("none such") == 0


@pytest.mark.parametrize("kind", ["ssh", "local"])
def test_a_deadline_ends_nobody_else_of_the_step(host: Host, kind: str, tmp_path: Path) -> None:
    machine = (host if kind == "ssh" else Host(Local())).marked(f"step [1].*/{time.time_ns()}")
    go = tmp_path / "go"
    waits = Command.script('until [ -e "$1" ]; do sleep 0.1; done; echo whole', go)
    with ThreadPoolExecutor(1) as pool:
        sibling = pool.submit(machine.run, waits, timeout=300)
        wait_until(lambda: machine.has_marked(str(machine.mark)))
        with pytest.raises(CommandTimeout):
            machine.run("sleep 600", timeout=0.5)
        assert machine.has_marked(str(machine.mark))
        go.touch()
        assert sibling.result(60).stdout == "whole\n"


def test_a_mark_stands_for_itself_and_what_is_below_it(host: Host) -> None:
    for mark in ("a.b/1", "a.b/1/x", "a.b/12", "axb/1", "a.b"):
        host.marked(mark).run("sleep 600 > /dev/null 2>&1 &")
    assert host.end_marked("a.b/1") == 2
    assert not host.has_marked("a.b/1")
    assert all(host.end_marked(mark) == 1 for mark in ("a.b/12", "axb/1", "a.b"))


def test_a_deadline_on_a_machine_that_is_gone(sshd: Sshd) -> None:
    transport = SSH(sshd.target, connect_timeout=2)
    host = Host(transport)
    transport.connect()

    def vanish(stream: str, piece: bytes) -> None:
        # From here on nobody new is let in, and what runs is not told.
        assert sshd.process is not None
        sshd.process.kill()
        sshd.process.wait()
        transport._connection = None

    watched = replace(host, mark="gone", on_output=vanish)
    with pytest.raises(ConnectionLost, match=r"timed out after 1 s, and ending it failed"):
        watched.run("echo; sleep 20", timeout=1)


def test_a_background_process_does_not_hang_the_controller() -> None:
    start = time.monotonic()
    assert Host(Local()).run("sleep 5 & echo on", timeout=60).stdout == "on\n"
    assert time.monotonic() - start < 4


def test_a_boot_id_is_read(host: Host) -> None:
    assert host.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
