"""Genuine Portage with other machines: distcc that lends computing power, a tree that rsync brings.

The other machine is a root directory of its own (chroot), reached over the loopback interface.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.gentoo.roots import Roots, quiet
from tests.relayed import relayed

from xenlab.command import Command
from xenlab.host import Host
from xenlab.platform.portage import Portage
from xenlab.site import schema as parameters
from xenlab_lab import mirrors

# the stage is built first, where it is not in the cache
pytestmark = pytest.mark.timeout(2400)

TREE, DASH = "app-text/tree", "app-shells/dash"
TREE_FILES = 5
RSYNCD = """\
[tree]
path = /srv/tree
use chroot = no
"""


@pytest.fixture(scope="module")
def helper(roots: Roots) -> Host:
    return roots.domain("helper")


def free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        port: int = each.getsockname()[1]
        return port


@contextmanager
def served(host: Host, start: str, port: int) -> Iterator[None]:
    """A daemon that writes its number to the file that it is given with the port."""
    pid = f"/tmp/{port}.pid"
    host.run(Command.script(start, str(port), pid))
    try:
        yield
    finally:
        host.run(Command.script('kill "$(cat "$1")"', pid))


def test_another_machine_compiles(roots: Roots, helper: Host) -> None:
    start = """
        touch /tmp/distccd.log
        chmod 666 /tmp/distccd.log
        distccd --daemon --allow 127.0.0.1 --listen 127.0.0.1 --port "$1" --pid-file "$2" \\
            --log-file /tmp/distccd.log
    """
    host, port = roots.domain("slow"), free_port()
    portage = Portage(parameters.Portage(distcc=[f"127.0.0.1:{port}/2"]))
    said: list[str] = []

    def report(what: str, done: float | None = None) -> None:
        said.append(what)

    assert all(state.probe(host) is None for state in portage.lent())
    for file in portage.settled():
        file.apply(host, quiet)
    with served(helper, start, port):
        portage.installed(TREE).apply(host, report)
    assert said == ["emerging 1 packages"]
    portage.installed(TREE).verify(host)
    done = (helper.read("/tmp/distccd.log") or "").count("COMPILE_OK")
    assert done >= TREE_FILES
    # one that is away is done without, and named
    portage.installed(DASH).apply(host, report)
    portage.installed(DASH).verify(host)
    assert said[1] == f"emerging 1 packages without 127.0.0.1:{port}, which do not answer"


def test_a_tree_that_rsync_brings(roots: Roots, helper: Host) -> None:
    make = """
        cp -r /var/db/repos/xenlab /srv/tree
        rm -r /srv/tree/.git
        cp /srv/tree/app-text/tree/tree-2.1.0.ebuild /srv/tree/app-text/tree/tree-2.1.0-r2.ebuild
        LC_ALL=C date -u -R > /srv/tree/metadata/timestamp.chk
        printf '%s' "$1" > /srv/module
    """
    start = """
        { printf 'pid file = %s\\n' "$2"; cat /srv/module; } > /etc/rsyncd.conf
        rsync --daemon --address 127.0.0.1 --port "$1"
        until [ -s "$2" ]; do sleep 0.1; done
    """
    helper.run(Command.script(make, RSYNCD))
    host, port = roots.domain("mirrored"), free_port()
    portage = Portage(parameters.Portage(sync={"xenlab": f"rsync://127.0.0.1:{port}/tree"}))
    for file in portage.settled():
        file.apply(host, quiet)
    # what is older than the settings comes from elsewhere
    assert portage.updated().probe(host) is not None
    # Portage does not let rsync loose on what is a git's working copy
    host.run("rm -r /var/db/repos/xenlab/.git")
    with served(helper, start, port):
        portage.updated().apply(host, quiet)
    assert portage.updated().probe(host) is None
    assert "tree-2.1.0-r2.ebuild" in host.run("ls /var/db/repos/xenlab/app-text/tree").stdout


def test_sources_come_through_the_proxy_of_the_site(roots: Roots, tmp_path: Path) -> None:
    mirrors.write(tmp_path)
    host = roots.domain("behind")
    # no name is known to it, and nobody answers: only the proxy can have fetched anything
    host.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")
    fetch = Command.argv("emerge", "--color", "n", "--fetchonly", "--nodeps", TREE)
    with relayed(tmp_path) as served:
        portage = Portage(parameters.Portage(), served.url)
        for file in portage.settled():
            file.apply(host, quiet)
        host.run(fetch, timeout=600)
        assert served.connections
    assert "tree_2.1.0.orig.tar.gz" in host.run("ls /var/cache/distfiles").stdout
