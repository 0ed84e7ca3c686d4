"""Copies to a machine: whole or not at all."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.smalldisk import small_disk
from tests.ssh.conftest import Sshd, kill, wait_until
from tests.watching import Watching

from xenlab.errors import BadInput, CommandFailed, CommandTimeout, ConnectionLost
from xenlab.host import Host
from xenlab.transport.local import Local
from xenlab.transport.ssh import SSH

NASTY = 'it\'s "a" $(file) ü\n&.bin'
MIB = 1 << 20


@pytest.fixture(params=["ssh", "local"])
def host(request: pytest.FixtureRequest) -> Host:
    if request.param == "local":
        return Host(Local())
    return Host(request.getfixturevalue("ssh"))


@pytest.mark.parametrize("size", [0, 1, 5 * MIB + 1])
def test_it_arrives_whole(host: Host, tmp_path: Path, size: int) -> None:
    there, here = tmp_path / NASTY, tmp_path / "here"
    here.write_bytes(os.urandom(size))
    up: list[tuple[int, int]] = []
    host.upload(here, str(there), lambda *done: up.append(done))
    assert there.read_bytes() == here.read_bytes()
    assert up[-1] == (size, size)
    assert up == sorted(up)
    assert sorted(path.name for path in tmp_path.iterdir() if "xenlab-" in path.name) == []


def test_a_file_that_cannot_be_read(ssh: SSH, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="none: because it cannot be read: No such file"):
        ssh.upload(tmp_path / "none", "/tmp/x")


def test_what_the_machine_refuses(ssh: SSH, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.write_bytes(b"x")
    with pytest.raises(
        CommandFailed, match=r"upload .*here to .*(?s:.)*(No such file|nonexistent)"
    ):
        ssh.upload(here, str(tmp_path / "none" / "there"))
    with pytest.raises(CommandFailed, match="is a folder"):
        ssh.upload(here, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "sshd0"]


def test_why_a_copy_has_failed_is_told(host: Host, tmp_path: Path) -> None:
    here, watching = tmp_path / "here", Watching()
    here.write_bytes(bytes(MIB))
    with small_disk(tmp_path / "small", 64) as small, pytest.raises(CommandFailed):
        host.watched(watching).upload(here, str(small / "there"))
    assert watching.statuses == [1]
    assert b"No space left on device" in b"".join(watching.pieces)


def test_what_a_copy_said_that_took_too_long_is_told(
    host: Host, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("channel", "local"):
        monkeypatch.setattr(f"xenlab.transport.{module}.COPY_SECONDS", 3.0)
    here, watching = tmp_path / "here", Watching()
    here.write_bytes(b"x")
    hangs = sshd.hang_once("mv")
    monkeypatch.setenv("PATH", str(hangs.parent / "bin"), prepend=os.pathsep)
    with pytest.raises(CommandTimeout, match=r"timed out after 3 s: (upload|copy)"):
        host.watched(watching).upload(here, str(tmp_path / "there"))
    assert (watching.statuses, watching.pieces) == ([None], [b"hangs\n"])
    assert hangs.exists() and not (tmp_path / "there").exists()


def test_a_lost_connection_leaves_the_old_file(ssh: SSH, sshd: Sshd, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    with here.open("wb") as file:
        file.truncate(512 * MIB)
    there.write_text("old")

    def cut(done: int, total: int) -> None:
        if 8 * MIB < done < total:
            for session in sshd.sessions():
                kill(session)

    with pytest.raises(ConnectionLost):
        ssh.upload(here, str(there), cut)
    wait_until(lambda: not sshd.marked())
    assert there.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "sshd0", "there"]


def test_several_at_once(ssh: SSH, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.write_bytes(os.urandom(MIB))
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda n: ssh.upload(here, str(tmp_path / f"to{n}")), range(12)))
    assert {(tmp_path / f"to{n}").read_bytes() for n in range(12)} == {here.read_bytes()}
