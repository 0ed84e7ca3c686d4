"""Whoever holds a lock of apt or dpkg is named and waited for: real locks, a real dpkg, a copy of
this machine's own system."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.namespace import Namespace
from tests.system_copy import SYSTEM_COPY

from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.platform.apt import Apt
from xenlab.platform.base import WAITING, lock_functions, run_when_unlocked
from xenlab.platform.portage import TOOLS

# This machine's system, with an archive of two packages: `sample` is empty, and `slow` holds the
# locks while its postinst waits for /let-go.
COPY = (
    SYSTEM_COPY
    + """
    mkdir -p "$root/archive" "$root/slow/DEBIAN" "$root/sample/DEBIAN"
    for name in slow sample; do
        printf '%s\\n' "Package: $name" 'Version: 1' 'Architecture: all' \\
            'Maintainer: a <a@example.org>' 'Description: made for a test' \\
            > "$root/$name/DEBIAN/control"
    done
    postinst=$root/slow/DEBIAN/postinst
    printf '%s\\n' '#!/bin/sh' 'while [ ! -e /let-go ]; do sleep 0.1; done' > "$postinst"
    chmod 755 "$postinst"
    chroot "$root" sh -euc '
        for name in slow sample; do dpkg-deb -b /$name /archive/$name.deb; done
        cd /archive
        dpkg-scanpackages . > Packages
        rm -rf /etc/apt/sources.list* /var/lib/apt/lists/*
        echo "deb [trusted=yes] file:/archive ./" > /etc/apt/sources.list
        apt-get -q -o APT::Sandbox::User=root update
        echo "APT::Sandbox::User \\"root\\";" > /etc/apt/apt.conf.d/99test
    '
"""
)

HOLD = """
    exec perl -e '
        for my $path (@ARGV) {
            open my $lock, "+>>", $path or die "$path: $!";
            my $wanted = pack "s s x4 q q i x4", 1, 0, 0, 0, 0;
            fcntl $lock, 6, $wanted or die $!;
            push @held, $lock;
        }
        $| = 1;
        print "locked\\n";
        sleep 1 until -e "/let-go";
    ' "$@"
"""

LOCKS = ["/var/lib/dpkg/lock-frontend", "/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock"]


class Holder:
    """A process of the host that holds a lock until it is told to let go."""

    def __init__(self, host: Host, command: Command, sign: str) -> None:
        self.host = host
        self._locked = threading.Event()

        def hear(stream: str, piece: bytes) -> None:
            if sign.encode() in piece:
                self._locked.set()

        told = replace(host, on_output=hear)
        self._thread = threading.Thread(target=told.run, args=(command,), kwargs={"timeout": 120})
        self._thread.start()
        assert self._locked.wait(60)

    def let_go(self) -> None:
        self.host.run("touch /let-go")
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.host.run("rm /let-go")


class Told:
    """What was reported; an event is set once somebody is waited for."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.waiting = threading.Event()

    def __call__(self, what: str, done: float | None = None) -> None:
        self.lines.append(what)
        if what.startswith(WAITING):
            self.waiting.set()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("system")
    namespace = Namespace(users=True)
    Host(namespace).run(Command.script(COPY, str(folder)), timeout=120)
    yield Host(namespace).inside(f"{folder}/root")
    namespace.end()


def in_background(work: threading.Thread, told: Told, holder: Holder) -> None:
    """Work that waits for the holder as long as that has the lock, and is done afterwards."""
    work.start()
    assert told.waiting.wait(60)
    assert work.is_alive()
    holder.let_go()
    work.join(120)
    assert not work.is_alive()


@pytest.mark.parametrize("path", LOCKS)
def test_an_installation_waits_for_any_of_the_locks(host: Host, path: str) -> None:
    holder = Holder(host, Command.script(HOLD, path), "locked")
    packages, told = Apt().installed("sample"), Told()
    work = threading.Thread(target=packages.apply, args=(host, told))
    in_background(work, told, holder)
    packages.verify(host)
    line = next(line for line in told.lines if line.startswith(WAITING))
    assert line.startswith(f"waiting for {path}: process ")
    assert "(perl -e" in line and f", since {time.gmtime().tm_year}-" in line and "UTC" in line
    Apt().removed("sample").apply(host, Told())


def test_a_real_dpkg_is_waited_for_by_every_call(host: Host) -> None:
    slow = "echo locked; exec dpkg -i /archive/slow.deb"
    for resource in (Apt().updated(), Apt().installed("sample"), Apt().removed("sample")):
        holder = Holder(host, Command.script(slow), "Setting up slow")
        told = Told()
        work = threading.Thread(target=resource.apply, args=(host, told))
        in_background(work, told, holder)
        assert any("(dpkg -i /archive/slow.deb)" in line for line in told.lines), told.lines
        host.run("dpkg --purge slow")


def test_what_is_never_let_go_is_named_in_one_sentence(host: Host) -> None:
    holder = Holder(host, Command.script(HOLD, LOCKS[0]), "locked")
    script = lock_functions(*LOCKS, seconds=2) + "when_unlocked dpkg --configure -a; touch /done"
    try:
        with pytest.raises(StepFailed) as caught:
            run_when_unlocked(host, Command.script(script), Told(), timeout=60)
    finally:
        holder.let_go()
    message = caught.value.message
    assert len(message.splitlines()) == 1
    assert f"it was locked for 2 s: {LOCKS[0]}: process " in message and "(perl -e" in message
    assert not host.test("test -e /done")
    assert "never remove a lock file" in caught.value.hint


def test_what_fails_for_another_reason_fails_at_once(host: Host) -> None:
    script = lock_functions(*LOCKS) + "when_unlocked sh -c 'echo once >&2; exit 3'"
    result = run_when_unlocked(host, Command.script(script), Told(), timeout=60, check=False)
    assert (result.status, result.stderr) == (3, "once\n")


def test_emerge_waits_with_a_word_too(host: Host) -> None:
    host.run("mkdir -p /var/db/pkg /var/lib/portage /var/cache/binpkgs")
    path = "/var/db/.pkg.portage_lockfile"
    holder = Holder(host, Command.script(HOLD, path), "locked")
    told = Told()
    work = threading.Thread(
        target=run_when_unlocked, args=(host, Command.script(TOOLS), told), kwargs={"timeout": 60}
    )
    in_background(work, told, holder)
    assert told.lines[0].startswith(f"waiting for {path}: process ")
