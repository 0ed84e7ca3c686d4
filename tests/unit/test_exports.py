"""What a server exports is what its files say now, as the real exportfs(8) reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.namespace import Namespace

from xenlab.chapters.shared_usr import READ_ONLY, WRITE
from xenlab.command import Command
from xenlab.host import Host
from xenlab.resources.base import Difference
from xenlab.resources.nfs import Exported

EXPORTFS = Path(__file__).parents[2] / ".venv/nfs-kernel-server/usr/sbin/exportfs"
LAN = "10.66.0.0/24"
FILE = "/etc/exports.d/xenlab.exports"

# /etc, /var/lib and /usr/sbin of its own, and a share and a store to export
PLACE = """
    mount -t tmpfs none "$1"
    for folder in /etc /var/lib /usr/sbin; do
        own=$1/own$folder work=$1/work$folder
        mkdir -p "$own" "$work"
        mount -t overlay -o "lowerdir=$folder,upperdir=$own,workdir=$work" none "$folder"
    done
    mkdir -p /etc/exports.d /var/lib/nfs "$1/share" "$1/store"
    : > /etc/exports
    : > /var/lib/nfs/etab
    cp -- "$2" /usr/sbin/exportfs
"""


@pytest.fixture
def share(tmp_path: Path) -> str:
    return f"{tmp_path}/share"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A server whose kernel nobody asks: exportfs works without."""
    namespace = Namespace(users=True)
    host = Host(namespace)
    host.run(Command.script(PLACE, str(tmp_path), str(EXPORTFS)))
    yield host
    namespace.end()


def silent(what: str, done: float | None = None) -> None:
    """Nobody is told."""


def test_what_is_exported_counts_and_not_what_the_file_says(host: Host, share: str) -> None:
    store = share.replace("share", "store")
    host.write(FILE, f"{share} {LAN}({WRITE})\n{store} {LAN}({WRITE})\n")
    before, wanted = Exported((share, store), LAN, WRITE), Exported((share,), LAN, READ_ONLY)
    assert before.probe(host) is not None
    before.apply(host, silent)
    before.verify(host)
    # somebody was cut off before exportfs had read it
    host.write(FILE, f"{share} {LAN}({READ_ONLY})\n")
    difference = wanted.probe(host)
    assert difference is not None
    assert (
        difference.summary
        == f"export {share} to {LAN} ({READ_ONLY}); export no more: {store} to {LAN}"
    )
    wanted.apply(host, silent)
    wanted.verify(host)


@pytest.mark.parametrize(
    ("now", "wanted"),
    [
        ("rw,no_subtree_check,no_root_squash", WRITE),
        (READ_ONLY.replace(",mountpoint", ""), READ_ONLY),
    ],
)
def test_an_export_that_reaches_the_root_around_it_is_none(
    host: Host, share: str, now: str, wanted: str
) -> None:
    host.write(FILE, f"{share} {LAN}({now})\n")
    exported = Exported((share,), LAN, wanted)
    exported.apply(host, silent)
    assert exported.probe(host) == Difference(f"export {share} to {LAN} ({wanted})")
    host.write(FILE, f"{share} {LAN}({wanted})\n")
    exported.apply(host, silent)
    exported.verify(host)


def test_nobody_else_and_nothing_else_is_served(host: Host, share: str) -> None:
    host.write(FILE, f"{share} *({READ_ONLY}) {LAN}({READ_ONLY})\n")
    wanted = Exported((share,), LAN, READ_ONLY)
    wanted.apply(host, silent)
    difference = wanted.probe(host)
    assert difference is not None and difference.summary == f"export no more: {share} to *"


def test_where_there_is_no_server_yet_it_is_a_difference(host: Host, share: str) -> None:
    host.run("rm /usr/sbin/exportfs")
    assert Exported((share,), LAN, READ_ONLY).probe(host) is not None
