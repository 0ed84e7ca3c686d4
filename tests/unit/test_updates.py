"""Updates: what apt says of them, in recorded words and in a system of its own; old programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.namespace import Namespace
from tests.sites import lab_site
from tests.system_copy import SYSTEM_COPY

from xenlab.chapters.updates import Renewed
from xenlab.command import Command
from xenlab.errors import BadInput, StepFailed
from xenlab.host import Host
from xenlab.platform.apt import Apt, parse_pending
from xenlab.platform.base import Update, parse_outdated
from xenlab.platform.openrc import OpenRc
from xenlab.platform.portage import Portage
from xenlab.platform.systemd import Systemd
from xenlab.site.schema import Portage as PortageSettings
from xenlab.transport.local import Local

RECORDED = Path(__file__).parents[1] / "recorded"
SHARE = "/mnt/share"


def silent(what: str, done: float | None = None) -> None:
    """Nobody is told."""


# -- what apt would update


def test_what_apt_would_update_is_understood() -> None:
    installed, updates = parse_pending((RECORDED / "apt-upgrade.txt").read_text())
    assert (installed, len(updates)) == (802, 14)
    assert updates[0] == Update("base-files", "12.4+deb12u11", "12.4+deb12u15")
    # it comes from both
    assert updates[3] == Update("libgcrypt20", "1.10.1-3", "1.10.1-3+deb12u1", security=True)
    assert [each.name for each in updates if not each.security][-2:] == [
        "libnss-systemd",
        "libpam-systemd",
    ]


def test_a_package_that_comes_anew_has_no_version_yet() -> None:
    line = "Inst libnew1 (1:2.0-1 Debian:13.2/stable [amd64])"
    assert parse_pending(f"300\n{line}\n") == (300, [Update("libnew1", "", "1:2.0-1")])
    assert parse_pending("300\nReading package lists...\n") == (300, [])


COPY = (
    SYSTEM_COPY
    + """
    chroot "$root" sh -euc '
        mkdir -p /archive "$1"
        build() { # NAME VERSION DEPENDS
            rm -rf /made; mkdir -p /made/DEBIAN /made/usr/share/xenlab-test
            printf "%s\\n" "Package: $1" "Version: $2" "Architecture: all" "Depends: $3" \\
                "Maintainer: a <a@example.org>" "Description: made for a test" \\
                > /made/DEBIAN/control
            echo "$2" > "/made/usr/share/xenlab-test/$1"
            dpkg-deb -b /made "/archive/$1-$2.deb"
        }
        build sample 1 dpkg
        dpkg --force-unsafe-io -i /archive/sample-1.deb
        rm /archive/sample-1.deb
        build needed 1 dpkg
        build sample 2 needed
        cd /archive
        dpkg-scanpackages . > Packages
        rm -rf /etc/apt/sources.list* /var/lib/apt/lists/* /var/cache/apt/archives
        echo "deb [trusted=yes] copy:/archive ./" > /etc/apt/sources.list
        echo "APT::Sandbox::User \\"root\\";" > /etc/apt/apt.conf.d/99test
    ' sh "$2"
"""
)


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A system that has no index yet, with an old package in it."""
    folder = tmp_path_factory.mktemp("system")
    namespace = Namespace(users=True)
    command = Command.script(COPY, str(folder), f"{SHARE}/apt/archives")
    Host(namespace).run(command, timeout=600)
    yield Host(namespace).inside(f"{folder}/root")
    namespace.end()


def version(host: Host) -> str:
    return host.run("cat /usr/share/xenlab-test/sample").stdout.strip()


def test_packages_are_updated_with_what_they_need_anew(host: Host) -> None:
    apt = Apt(SHARE)
    assert apt.pending(host) is None
    with pytest.raises(StepFailed, match="has no index of them"):
        apt.upgraded().probe(host)
    index = apt.updated(1)
    index.apply(host, silent)
    index.verify(host)
    found = apt.pending(host)
    assert found is not None
    assert [(u.name, u.now, u.new) for u in found[1]] == [("needed", "", "1"), ("sample", "1", "2")]
    wanted = apt.upgraded()
    difference = wanted.probe(host)
    assert difference is not None and difference.summary == "update 2 packages"
    assert [row["installed"] for row in difference.rows] == ["-", "1"]
    assert wanted.commands()[0].by_hand() == (
        "apt-get upgrade --with-new-pkgs -y --no-install-recommends "
    )
    wanted.apply(host, silent)
    wanted.verify(host)
    assert version(host) == "2"
    # nobody has asked for it by name
    assert host.run("apt-mark showmanual").stdout.split().count("needed") == 0


def test_a_guest_updates_from_the_store_alone(host: Host) -> None:
    apt = Apt(SHARE)
    apt.updated().apply(host, silent)
    guest = apt.upgraded(from_store=True)
    with pytest.raises(StepFailed, match=r"cannot install updates: because the store has no \w+_"):
        guest.apply(host, silent)
    host.run(f"ln -s {SHARE}/apt/archives /var/cache/apt/archives")
    apt.stored("needed", "sample").apply(host, silent)
    host.run("rm -r /archive")
    guest.apply(host, silent)
    guest.verify(host)
    assert version(host) == "2"


def test_portage_is_left_to_a_person() -> None:
    gentoo = Portage(PortageSettings())
    assert gentoo.pending(Host(Local())) is None
    with pytest.raises(BadInput, match="cannot update packages with Portage") as refused:
        gentoo.upgraded()
    assert "emerge --ask --update" in refused.value.hint


# -- who may be named


def test_dom0_and_the_guests_may_be_named_and_nobody_else() -> None:
    assert lab_site(updates=["dom0", "domu1"]).updates == ["dom0", "domu1"]
    with pytest.raises(BadInput, match="updates names mail, which is no domain"):
        lab_site(updates=["mail"])
    with pytest.raises(BadInput, match="autostart names dom0, which is no domain"):
        lab_site(autostart=["dom0"])


# -- programs that were replaced and still run


def test_what_runs_a_program_that_was_replaced_is_named(tmp_path: Path) -> None:
    program = Path("/opt") / f"xenlab-test-{os.getpid()}"
    shutil.copy("/bin/sleep", program)
    process = subprocess.Popen([program, "600"])
    try:
        program.unlink()
        for services in (Systemd(), OpenRc()):
            found = services.outdated(Host(Local()))
            assert [str(program)] in found.values(), found
    finally:
        process.kill()
        process.wait()
    assert [str(program)] not in Systemd().outdated(Host(Local())).values()


@pytest.mark.parametrize(
    ("services", "line", "name"),
    [
        (Systemd(), "0::/system.slice/ssh.service", "ssh"),
        (Systemd(), "0::/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1"),
        (Systemd(), "0::/init.scope", ""),
        (OpenRc(), "1:name=openrc:/sshd", "sshd"),
        (OpenRc(), "0::/openrc.sshd", "sshd"),
        (OpenRc(), "4:memory:/sshd", ""),
        (OpenRc(), "0::/", ""),
    ],
)
def test_a_process_s_cgroup_says_its_service(
    services: Systemd | OpenRc, line: str, name: str
) -> None:
    words = ["sed", "-nE", services.of_cgroup]
    done = subprocess.run(words, input=line, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == name


def test_each_service_has_its_files() -> None:
    text = "cron\t/usr/lib/libc.so.6\ncron\t/usr/sbin/cron\ninit\t/usr/lib/libc.so.6\n"
    assert parse_outdated(text) == {
        "cron": ["/usr/lib/libc.so.6", "/usr/sbin/cron"],
        "init": ["/usr/lib/libc.so.6"],
    }


class Fake(Systemd):
    """Services of which somebody says that they run what was replaced, until they restart."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        for name in names:
            (folder / name).touch()

    def outdated(self, host: Host) -> dict[str, list[str]]:
        return {path.name: ["/usr/lib/libc.so.6"] for path in sorted(self.folder.iterdir())}

    def control(self, name: str, verb: str) -> Command:
        return Command.argv("rm", "--", str(self.folder / name))


def test_only_what_the_site_starts_is_restarted(tmp_path: Path) -> None:
    renewed = Renewed(Fake(tmp_path, "cron", "init", "xenstored"), ("cron", "ssh"))
    host = Host(Local())
    found = renewed.probe(host)
    assert found is not None and found.summary == "restart cron" and len(found.rows) == 3
    renewed.apply(host, silent)
    renewed.verify(host)
    left = renewed.probe(host)
    assert left is not None and left.stays.startswith("init, xenstored still run programs")
    (tmp_path / "ssh").touch()
    with pytest.raises(StepFailed, match="ssh still run what was replaced"):
        renewed.verify(host)
    for path in tmp_path.iterdir():
        path.unlink()
    assert renewed.probe(host) is None
