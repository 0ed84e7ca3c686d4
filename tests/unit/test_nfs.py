"""What an NFS server and a client use, and not what their files say."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.namespace import Namespace

from xenlab.command import Command
from xenlab.host import Host
from xenlab.resources.nfs import NfsMount, ServedOn, server_settings
from xenlab.transport.local import Local

HERE = Host(Local())
ADDRESS = "127.0.0.43"


def silent(what: str, done: float | None = None) -> None:
    """A report that nobody reads."""


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Path]:
    """What the kernel says of a server that listens as it should."""
    (tmp_path / "versions").write_text("-2 -3 +4 +4.1 +4.2\n")
    for name in ("nfsv4gracetime", "nfsv4leasetime"):
        (tmp_path / name).write_text("15\n")
    with socket.create_server((ADDRESS, 2049)):
        yield tmp_path


def test_a_server_that_works_as_it_is_told(kernel: Path) -> None:
    assert "grace-time=15\nlease-time=15\n" in server_settings(ADDRESS).text()
    assert ServedOn(ADDRESS, Command("true"), str(kernel)).probe(HERE) is None


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("versions", "-2 +3 +4 +4.1 +4.2\n", "serve NFS 4 alone; now +3 as well"),
        ("nfsv4gracetime", "90\n", "let clients wait 15 s; now nfsv4gracetime 90,"),
        ("nfsv4leasetime", "90\n", "nfsv4leasetime 90"),
    ],
)
def test_a_server_that_has_not_read_its_settings_is_restarted(
    kernel: Path, file: str, text: str, said: str
) -> None:
    """A run that was cut off between nfs.conf and the restart: it listens where it should."""
    right = (kernel / file).read_text()
    (kernel / file).write_text(text)
    restart = Command.script('printf %s "$1" > "$2"', right, str(kernel / file))
    served = ServedOn(ADDRESS, restart, str(kernel))
    difference = served.probe(HERE)
    assert difference is not None and said in difference.summary
    served.apply(HERE, silent)
    served.verify(HERE)


def test_a_server_that_listens_elsewhere_or_not_at_all(kernel: Path) -> None:
    difference = ServedOn("127.0.0.44", Command("true"), str(kernel)).probe(HERE)
    assert difference is not None
    assert difference.summary == f"serve on 127.0.0.44; now on {ADDRESS}"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Host]:
    """A machine with an /etc of its own."""
    namespace = Namespace(users=True)
    host = Host(namespace)
    script = """
        mount -t tmpfs none "$1"
        mkdir "$1/own" "$1/work" "$1/share"
        mount -t overlay -o "lowerdir=/etc,upperdir=$1/own,workdir=$1/work" none /etc
    """
    host.run(Command.script(script, str(tmp_path)))
    yield host
    namespace.end()


def test_a_mount_that_became_read_only_is_so_at_once(client: Host, tmp_path: Path) -> None:
    """A run that was cut off between fstab and the mount."""
    source, path = "10.66.0.1:/mnt/share", f"{tmp_path}/share"
    client.run(Command.argv("mount", "-t", "tmpfs", "-o", "rw,size=1m", source, path))
    wanted = NfsMount(source, path, "ro,size=1m")
    client.write("/etc/fstab", f"{wanted.line}\n")
    assert wanted.probe(client) is not None
    wanted.apply(client, silent)
    wanted.verify(client)
    assert not client.test(Command.argv("touch", f"{path}/file"))
    writable = NfsMount(source, path, "rw,size=1m")
    writable.apply(client, silent)
    writable.verify(client)
    client.run(Command.argv("touch", f"{path}/file"))
