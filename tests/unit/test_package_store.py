"""What apt installs is what the signed index says, whoever had the file before: a real apt and dpkg
in a copy of this machine's own system, with an archive of a package and what it needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.namespace import Namespace
from tests.system_copy import SYSTEM_COPY

from xenlab.command import Command
from xenlab.errors import StepFailed, XenlabError
from xenlab.host import Host
from xenlab.platform.apt import ARCHIVES, Apt

SHARE = "/mnt/share"
STORE = f"{SHARE}/apt/archives"
SAMPLE = "sample_1%3a1_all.deb"
CUT = 'DPkg::Post-Invoke { "truncate -s 0 /usr/share/xenlab-test/*; kill -9 0"; };'

# `/evil.deb` has the name and, padded, the size of the package that `/archive` holds.
COPY = (
    SYSTEM_COPY
    + """
    chroot "$root" sh -euc '
        mkdir -p /archive "$1" /made
        build() {
            rm -rf /made; mkdir -p /made/DEBIAN /made/usr/share/xenlab-test
            printf "%s\\n" "Package: $1" "Version: 1:1" "Architecture: all" "Depends: $2" \\
                "Maintainer: a <a@example.org>" "Description: made for a test" \\
                > /made/DEBIAN/control
            echo "$3" > "/made/usr/share/xenlab-test/$1"
            dpkg-deb -b /made "$4"
        }
        build needed dpkg genuine /archive/needed.deb
        build sample needed genuine /archive/sample.deb
        build sample needed evil /evil.deb
        size=$(stat -c %s /archive/sample.deb)
        [ "$(stat -c %s /evil.deb)" -le "$size" ] || { build sample needed e /evil.deb; }
        truncate -s "$size" /evil.deb
        cd /archive
        dpkg-scanpackages . > Packages
        rm -rf /etc/apt/sources.list* /var/lib/apt/lists/* /var/cache/apt/archives
        echo "deb [trusted=yes] copy:/archive ./" > /etc/apt/sources.list
        echo "APT::Sandbox::User \\"root\\";" > /etc/apt/apt.conf.d/99test
        apt-get -q update
    ' sh "$2"
"""
)


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A system with the index, and nothing in its store."""
    folder = tmp_path_factory.mktemp("system")
    namespace = Namespace(users=True)
    Host(namespace).run(Command.script(COPY, str(folder), STORE), timeout=120)
    yield Host(namespace).inside(f"{folder}/root")
    namespace.end()


def silent(what: str, done: float | None = None) -> None:
    """Nobody is told."""


def stored(host: Host) -> None:
    """The store as dom0 fills it, its folder linked back as chapter 02 does."""
    host.run(f"ln -s {STORE} {ARCHIVES}")
    wanted = Apt(SHARE).stored("sample")
    assert wanted.probe(host) is not None
    wanted.apply(host, silent)
    wanted.verify(host)


def what_it_holds(host: Host) -> str:
    return host.run("cat /usr/share/xenlab-test/sample").stdout.strip()


def test_a_planted_package_is_not_what_dom0_installs(host: Host) -> None:
    host.run(f"mkdir -p {ARCHIVES} && cp /evil.deb {ARCHIVES}/{SAMPLE}")
    wanted = Apt(SHARE).installed("sample")
    wanted.apply(host, silent)
    wanted.verify(host)
    assert what_it_holds(host) == "genuine"


def test_apt_alone_takes_a_planted_package_by_its_size(host: Host) -> None:
    host.run(f"mkdir -p {ARCHIVES} && cp /evil.deb {ARCHIVES}/{SAMPLE}")
    host.run("apt-get -q -y install sample")
    assert what_it_holds(host) == "evil"


def test_dom0_fetches_what_it_has_itself_and_what_that_needs(host: Host) -> None:
    Apt(SHARE).installed("sample").apply(host, silent)
    host.run(f"rm -rf {ARCHIVES}")
    stored(host)
    assert SAMPLE in host.run(f"ls {STORE}").stdout


def test_a_planted_package_does_not_stay_in_the_store(host: Host) -> None:
    host.run(f"cp /evil.deb {STORE}/{SAMPLE}")
    stored(host)
    assert host.test(f"cmp {STORE}/{SAMPLE} /archive/sample.deb")


def test_a_guest_installs_copies_from_a_store_that_it_cannot_write_to(host: Host) -> None:
    stored(host)
    host.run(f"mount --bind {SHARE} {SHARE} && mount -o remount,bind,ro {SHARE} && rm -r /archive")
    wanted = Apt(SHARE).from_store("sample")
    wanted.apply(host, silent)
    wanted.verify(host)
    assert what_it_holds(host) == "genuine"
    assert host.run(f"readlink -f {ARCHIVES}/{SAMPLE}").stdout.strip() == f"{ARCHIVES}/{SAMPLE}"
    assert not host.test(f"touch {STORE}/x")


@pytest.mark.parametrize("share", ["", SHARE])
def test_what_a_power_cut_left_without_its_files_is_installed_again(host: Host, share: str) -> None:
    stored(host)
    wanted = Apt(SHARE).from_store("sample") if share else Apt().installed("sample")
    # dpkg's own files are on disk before it ends; all that is unpacked may be empty
    host.write("/etc/apt/apt.conf.d/99cut", CUT)
    with pytest.raises(XenlabError):
        wanted.apply(host, silent)
    assert host.run("dpkg-query -W -f '${db:Status-Abbrev}' sample needed").stdout == "ii ii "
    found = wanted.probe(host)
    assert found is not None and found.rows == ({"package": "sample", "found": "not on disk"},)
    with pytest.raises(XenlabError):
        wanted.apply(host, silent)
    host.run("rm /etc/apt/apt.conf.d/99cut")
    wanted.apply(host, silent)
    wanted.verify(host)
    assert what_it_holds(host) == "genuine"
    assert host.run("cat /usr/share/xenlab-test/needed").stdout.strip() == "genuine"


def test_what_failed_without_a_power_cut_is_not_installed_again(host: Host) -> None:
    host.run("rm /archive/*.deb")
    wanted = Apt().installed("sample")
    with pytest.raises(XenlabError):
        wanted.apply(host, silent)
    assert Apt().installed("dpkg").probe(host) is None


def test_a_guest_refuses_what_the_index_does_not_name(host: Host) -> None:
    stored(host)
    host.run(f"cp /evil.deb {STORE}/{SAMPLE}")
    with pytest.raises(StepFailed, match="not what the signed index says") as caught:
        Apt(SHARE).from_store("sample").apply(host, silent)
    assert SAMPLE in caught.value.message
    assert Apt(SHARE).installed("sample").probe(host) is not None
    assert not host.test(f"[ -e {ARCHIVES}/{SAMPLE} ]")


def test_a_guest_fetches_nothing_itself(host: Host) -> None:
    with pytest.raises(StepFailed, match=r"the store has no (sample|needed)_1%3a1_all\.deb"):
        Apt(SHARE).from_store("sample").apply(host, silent)


def test_what_no_index_names_is_a_difference_and_an_error(host: Host) -> None:
    wanted = Apt(SHARE).stored("no-such-package")
    difference = wanted.probe(host)
    assert difference is not None
    assert difference.summary == "fetch no-such-package into the store"
