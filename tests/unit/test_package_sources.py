"""Where Debian's packages come from, asked of a real apt in a copy of this machine's own system."""

from __future__ import annotations

import gzip
import lzma
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.namespace import Namespace
from tests.sites import lab_site
from tests.system_copy import SYSTEM_COPY

from xenlab.command import Command
from xenlab.errors import BadInput
from xenlab.host import Host
from xenlab.platform.apt import Apt
from xenlab.platform.apt_sources import index_of, parse_index, require_room
from xenlab.platform.portage import Portage
from xenlab.resources.base import All

MIRROR, SECURITY = "http://mirror.example.org/debian", "http://mirror.example.org/security"
KEYRING = "/usr/share/keyrings/own.gpg"
STAGE = """
    rm -rf /etc/apt/sources.list* /var/lib/apt/lists/* /etc/apt/apt.conf.d/*
    mkdir -p /etc/apt/sources.list.d /usr/share/keyrings
    printf 'VERSION_CODENAME=trixie\\n' > /etc/os-release
    echo 'APT::Sandbox::User "root";' > /etc/apt/apt.conf.d/99test
"""
DEB822 = f"""\
Types: deb deb-src
URIs: http://stage.example.org/debian/
Suites: trixie trixie-updates
Components: main contrib
Signed-By: {KEYRING}

Types: deb
URIs: http://stage.example.org/security
Suites: trixie-security
Components: main
Signed-By: {KEYRING}
"""
OTHERS = "deb http://others.example.org/apt trixie-others main\ndeb http://flat.example.org ./\n"


def silent(what: str, done: float | None = None) -> None:
    """Nobody is told."""


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A system without any source of packages."""
    folder = tmp_path_factory.mktemp("system")
    namespace = Namespace(users=True)
    Host(namespace).run(Command.script(SYSTEM_COPY, str(folder)), timeout=120)
    host = Host(namespace).inside(f"{folder}/root")
    host.run(Command.script(STAGE))
    yield host
    namespace.end()


def stage(host: Host) -> None:
    host.write("/etc/apt/sources.list.d/debian.sources", DEB822)
    host.write("/etc/apt/sources.list", OTHERS)


def settle(host: Host, *words: str) -> All:
    wanted = All(Apt("/mnt/share").sources(*words))
    if wanted.probe(host) is not None:
        wanted.apply(host, silent)
    wanted.verify(host)
    return wanted


def asked(host: Host) -> set[str]:
    """Of whom apt would fetch its index."""
    uris = host.run("apt-get update --print-uris").stdout
    return set(re.findall(r"^'([^']+)InRelease'", uris, re.MULTILINE))


OF_THE_STAGE = {
    "http://stage.example.org/debian/dists/trixie/",
    "http://stage.example.org/debian/dists/trixie-updates/",
    "http://stage.example.org/security/dists/trixie-security/",
    "http://others.example.org/apt/dists/trixie-others/",
    "http://flat.example.org/./",
}


def test_the_stage_s_own_sources_stay(host: Host) -> None:
    stage(host)
    assert All(Apt("/mnt/share").sources()).probe(host) is None
    assert asked(host) == OF_THE_STAGE


def test_a_mirror_takes_the_archive_s_place(host: Host) -> None:
    stage(host)
    settle(host, MIRROR)
    security = "http://stage.example.org/security/dists/trixie-security/"
    others = {each for each in OF_THE_STAGE if "//stage." not in each}
    ours = {f"{MIRROR}/dists/trixie/", f"{MIRROR}/dists/trixie-updates/"}
    assert asked(host) == ours | {security} | others
    settle(host, MIRROR, SECURITY)
    assert asked(host) == ours | {f"{SECURITY}/dists/trixie-security/"} | others
    # no more than the two URIs is another
    text = host.read("/etc/apt/sources.list.d/debian.sources") or ""
    back = text.replace(MIRROR, "http://stage.example.org/debian/")
    assert back.replace(SECURITY, "http://stage.example.org/security") == DEB822
    assert host.read("/etc/apt/sources.list") == OTHERS


def test_the_security_updates_alone(host: Host) -> None:
    stage(host)
    settle(host, "", SECURITY)
    security = "http://stage.example.org/security/dists/trixie-security/"
    assert asked(host) == OF_THE_STAGE - {security} | {f"{SECURITY}/dists/trixie-security/"}


def test_all_forms_of_an_entry(host: Host) -> None:
    host.write(
        "/etc/apt/sources.list",
        "# deb http://stage.example.org/debian trixie main\n"
        "deb [arch=amd64 lang=en] http://stage.example.org/debian   trixie main\n"
        "deb [ arch=amd64 ] http://stage.example.org/debian stable-updates main\n"
        "deb-src http://stage.example.org/debian trixie-backports main\n",
    )
    host.write(
        "/etc/apt/sources.list.d/a.sources",
        "# of the stage\ntypes: deb\nuris: http://stage.example.org/debian\n"
        " http://other.example.org/debian\nSuites:\n trixie\n trixie-updates\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEYCQjIxYJKwYBBAHaRw8BAQdAD\n",
    )
    settle(host, MIRROR)
    assert asked(host) == {
        f"{MIRROR}/dists/{suite}/"
        for suite in ("trixie", "trixie-updates", "trixie-backports", "stable-updates")
    }
    assert " mDMEYCQjIxYJKwYBBAHaRw8BAQdAD\n" in (
        host.read("/etc/apt/sources.list.d/a.sources") or ""
    )


def test_a_stage_without_any_source_gets_the_mirrors(host: Host) -> None:
    settle(host, MIRROR, SECURITY)
    assert asked(host) == {f"{MIRROR}/dists/trixie/", f"{SECURITY}/dists/trixie-security/"}
    settle(host, SECURITY)
    assert asked(host) == {f"{SECURITY}/dists/trixie/"}


@pytest.mark.parametrize(
    "said",
    [
        "deb http://stage.example.org/security stable-security main\n",
        f"# deb {MIRROR} trixie main\n",
        f"deb {MIRROR} trixie-proposed-updates main\n",
    ],
)
def test_what_the_stage_names_of_it_is_an_entry_that_counts(host: Host, said: str) -> None:
    host.write("/etc/apt/sources.list", said)
    settle(host, MIRROR, f"{MIRROR}-security")
    suite = "stable-security" if "stable" in said else "trixie-security"
    others = {f"{MIRROR}/dists/trixie-proposed-updates/"} if "proposed" in said else set()
    wanted = {f"{MIRROR}/dists/trixie/", f"{MIRROR}-security/dists/{suite}/"}
    assert asked(host) == wanted | others


def test_another_mirror_s_index_is_fetched_anew(host: Host) -> None:
    stage(host)
    host.write("/var/lib/apt/lists/a_Packages", "")
    assert Apt("/mnt/share").updated().probe(host) is None
    settle(host, MIRROR)
    assert Apt("/mnt/share").updated().probe(host) is not None


def test_the_commands_do_the_same(host: Host) -> None:
    stage(host)
    wanted = All(Apt("/mnt/share").sources(MIRROR, SECURITY))
    for command in wanted.commands():
        host.change(command)
    wanted.verify(host)


def test_a_machine_without_a_system_is_only_planned_for(host: Host) -> None:
    nowhere = host.inside("/no/such/root")
    found = All(Apt("/mnt/share").sources(MIRROR)).probe(nowhere)
    assert found is not None and found.summary == f"fetch packages from {MIRROR}"


def test_gentoo_says_it_elsewhere() -> None:
    assert Portage(lab_site().portage).sources() == ()


# A folder is the only source.


def package(folder: Path, name: str, text: str = "x") -> None:
    tree = folder / "made"
    (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1:1\nArchitecture: all\nMaintainer: a <a@example.org>\n"
        "Description: made for a test\n"
    )
    (tree / "usr" / "share" / "xenlab-test").mkdir(parents=True, exist_ok=True)
    (tree / "usr" / "share" / "xenlab-test" / name).write_text(text)
    (folder / "pool").mkdir(exist_ok=True)
    words = ["dpkg-deb", "-b", "--root-owner-group", str(tree), str(folder / "pool")]
    subprocess.run(words, check=True, capture_output=True)
    subprocess.run(["rm", "-r", str(tree)], check=True)


def index(folder: Path) -> bytes:
    words = ["dpkg-scanpackages", "--multiversion", "."]
    return subprocess.run(words, check=True, capture_output=True, cwd=folder).stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Packages with their index, as the page says how to make it."""
    folder = tmp_path / "packages of castle"
    folder.mkdir()
    package(folder, "sample")
    (folder / "Packages").write_bytes(index(folder))
    return folder


@pytest.mark.parametrize(
    ("name", "packed"),
    [("Packages", bytes), ("Packages.gz", gzip.compress), ("Packages.xz", lzma.compress)],
)
def test_a_package_of_the_folder_is_installed(
    host: Host, folder: Path, name: str, packed: type[bytes]
) -> None:
    stage(host)
    content = packed((folder / "Packages").read_bytes())
    (folder / "Packages").unlink()
    (folder / name).write_bytes(content)
    apt = Apt("/mnt/share")
    settle(host, "", "", str(folder))
    assert asked(host) == {"copy:/mnt/share/apt/folder/./"}
    for wanted in (apt.updated(), apt.stored("sample"), apt.installed("sample")):
        assert wanted.probe(host) is not None
        wanted.apply(host, silent)
        wanted.verify(host)
    assert host.read("/usr/share/xenlab-test/sample") == "x"
    settle(host)
    assert asked(host) == OF_THE_STAGE


def test_a_folder_with_more_in_it_is_uploaded_and_read_anew(host: Host, folder: Path) -> None:
    apt = Apt("/mnt/share")
    settle(host, "", "", str(folder))
    apt.updated().apply(host, silent)
    assert apt.updated().probe(host) is None
    package(folder, "another")
    (folder / "Packages").write_bytes(index(folder))
    wanted = All(apt.sources("", "", str(folder)))
    found = wanted.probe(host)
    assert found is not None
    names = [row["file"] for row in found.rows]
    assert sorted(names) == ["Packages", "pool/another_1%3a1_all.deb"] or len(names) == 2
    wanted.apply(host, silent)
    assert apt.updated().probe(host) is not None
    apt.updated().apply(host, silent)
    apt.installed("another").apply(host, silent)
    apt.installed("another").verify(host)


def test_what_became_another_file_on_the_way_is_sent_again(host: Host, folder: Path) -> None:
    settle(host, "", "", str(folder))
    (name,) = [each.name for each in index_of(str(folder))[1]]
    host.run(Command.script('printf x | dd of="$1" conv=notrunc', f"/mnt/share/apt/folder/{name}"))
    wanted = Apt("/mnt/share").sources("", "", str(folder))[0]
    found = wanted.probe(host)
    assert found is not None and found.rows == ({"file": name},)
    wanted.apply(host, silent)
    wanted.verify(host)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "it has no index of packages at its top"),
        (b"\xff", "Packages cannot be read"),
        (b"Package: a\n", "its entry 1 names no file below it"),
        (b"Filename: ../a.deb\nSize: 1\n", "its entry 1 names no file below it"),
        (b"Filename: a.deb\nSize: 1\n", "a.deb has no Size, or no SHA256"),
        (b"Filename: a.deb\nSize: 1\nSHA256: " + 64 * b"0", "a.deb, which is missing or has"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "Packages").write_bytes(content)
    with pytest.raises(BadInput, match=re.escape(reason)) as caught:
        Apt("/mnt/share").sources("", "", str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "dpkg-scanpackages" in str(caught.value)


def test_a_folder_that_the_share_cannot_hold_is_refused(folder: Path) -> None:
    require_room(str(folder), 1)
    with pytest.raises(BadInput, match="has 1 MiB of packages, and share_mib has room for 0 MiB"):
        require_room(str(folder), 0)


@given(st.text())
def test_any_index_is_survived(text: str) -> None:
    try:
        found = parse_index(text)
    except ValueError:
        return
    assert all(not each.name.startswith("/") for each in found)
