"""What follows a login, over dropbear: commands, files, a chapter. It has no SFTP server."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.sites import lab_site
from tests.ssh.conftest import Dropbear, kill, processes_with, wait_until

from xenlab.chapter.chapter import Chapter
from xenlab.chapter.machine_lock import Hold
from xenlab.errors import ConnectionLost, MachineBusy
from xenlab.host import Host
from xenlab.journal import Journal
from xenlab.resources.files import File
from xenlab.site.schema import Ssh
from xenlab.transport.ssh import SSH

LOOK = pytest.mark.parametrize("look", [False, True], ids=["its own", "a shell that stays"])


@pytest.fixture
def dropbear(tmp_path: Path) -> Iterator[Dropbear]:
    """A running server."""
    server = Dropbear(tmp_path / "dropbear")
    yield server
    server.stop()


@pytest.fixture
def ssh(dropbear: Dropbear, opened: Callable[..., SSH]) -> SSH:
    """A transport to it."""
    return opened(dropbear.target)


@LOOK
def test_status_and_both_streams(ssh: SSH, look: bool) -> None:
    for text, wanted in (
        ("echo out; echo err >&2; exit 3", (3, b"out\n", b"err\n")),
        ("umask", (0, b"0022\n", b"")),
        ("exec sh -c 'kill -TERM $$'", (143, b"", b"")),
    ):
        status, out, err = ssh.execute(text, timeout=60, look=look)
        assert (status, out) == wanted[:2] and err.startswith(wanted[2])
    many = "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2"
    assert ssh.execute(many, timeout=60, look=look) == (0, bytes(3000000), bytes(3000000))


def test_files_arrive_whole(ssh: SSH, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(os.urandom(5 << 20))
    host = Host(ssh)
    host.upload(here, str(there))
    assert there.read_bytes() == here.read_bytes()
    host.write(str(there), "text", mode=0o640)
    assert (host.read(str(there)), there.stat().st_mode & 0o777) == ("text", 0o640)


def test_many_commands_at_once(ssh: SSH) -> None:
    with ThreadPoolExecutor(12) as pool:
        results = pool.map(lambda n: ssh.execute(f"echo {n}", timeout=120)[1], range(24))
        assert list(results) == [b"%d\n" % n for n in range(24)]
    assert ssh.connections == 1


def test_a_command_that_is_stopped_leaves_nothing_running(ssh: SSH) -> None:
    stop, host = threading.Event(), Host(ssh).marked("stopped")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ssh.execute, "sleep 600", timeout=500, stop=stop, mark="stopped/1")
        wait_until(lambda: processes_with("XENLAB_STEP=stopped"))
        stop.set()
        with pytest.raises(KeyboardInterrupt):
            running.result(60)
    assert host.end_marked("stopped") >= 1
    assert processes_with("XENLAB_STEP=stopped") == []


def test_a_connection_that_breaks_is_made_again(dropbear: Dropbear, ssh: SSH) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ssh.execute, "exec sleep 600", timeout=500, mark="lost/1")
        wait_until(lambda: processes_with("XENLAB_STEP=lost/1"))
        for process in dropbear.sessions():
            kill(process)
        with pytest.raises(ConnectionLost):
            running.result(60)
    assert ssh.execute("echo again", timeout=60)[1] == b"again\n"


@pytest.mark.parametrize("hold", [Hold.STEP, Hold.CHAPTER])
def test_a_chapter_changes_a_file_and_has_the_machine_for_itself(
    hold: Hold, dropbear: Dropbear, tmp_path: Path
) -> None:
    site = lab_site(ssh=Ssh(host=dropbear.alias, config=str(dropbear.config)))

    def chapter(run: str) -> Chapter:
        return Chapter("05_base", site, Journal(tmp_path / run), hold=hold)

    first, path = chapter("first"), tmp_path / "motd"
    for status in ("changed", "ok"):
        first.ensure("05.1 Write it", File(str(path), "hello\n"), on=first.host)
        assert first.journal.records()[-1]["status"] == status
    assert path.read_text() == "hello\n"
    if hold is Hold.CHAPTER:
        with pytest.raises(MachineBusy):
            chapter("second")
    first.close()
    chapter("third").close()
