"""What a power cut undoes of a chapter that is done, and how the next run goes on from there."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.namespace import Namespace

from xenlab.chapters.disk import MountedAgain
from xenlab.chapters.guests import Away
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.resources.archive import RECORD
from xenlab.resources.base import All
from xenlab.resources.nfs import Mount

Make = Callable[[str], str]


def silent(what: str, done: float | None = None) -> None:
    """A report that nobody reads."""


def run(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def host() -> Iterator[Host]:
    namespace = Namespace(users=True)
    yield Host(namespace)
    namespace.end()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Make]:
    """Block devices, each with a file system that holds one file."""
    made: list[str] = []

    def make(file: str) -> str:
        content = tmp_path / f"content{len(made)}"
        (content / file).parent.mkdir(parents=True)
        (content / file).touch()
        image = tmp_path / f"{len(made)}.img"
        run("mkfs.ext4", "-q", "-F", "-d", content, image, "16M")
        made.append(run("losetup", "--find", "--show", image))
        return made[-1]

    yield make
    for name in made:
        run("losetup", "--detach", name)


def test_an_installed_system_is_mounted_again(host: Host, device: Make, tmp_path: Path) -> None:
    root, share = device(RECORD), device("images/x")
    place = tmp_path / "target"
    parts = (Mount(root, str(place)), Mount(share, f"{place}/mnt/share"))
    again = MountedAgain(root, All(parts))
    assert again.probe(host) is not None
    again.apply(host, silent)
    again.verify(host)
    assert host.test(f"test -e {place}/{RECORD} && test -e {place}/mnt/share/images/x")


def test_what_no_chapter_unpacked_is_not_mounted(host: Host, device: Make, tmp_path: Path) -> None:
    root = device("etc/passwd")
    again = MountedAgain(root, Mount(root, str(tmp_path / "target")))
    with pytest.raises(StepFailed, match="holds no system that chapter 02 unpacked"):
        again.apply(host, silent)
    assert again.probe(host) is not None


def test_the_rescue_system_knows_whether_it_was_booted_for_the_image(
    host: Host, device: Make, tmp_path: Path
) -> None:
    share = tmp_path / "mnt share"
    away = Away(f"{share}/images/base.tar.zst", device("images/x"), str(share))
    assert not away.seen(host)
    away.mount(host)
    away.leaves(host)
    away.unmount(host)
    assert away.seen(host)
    assert not host.test(f"mountpoint -q '{share}'")
    away.mount(host)
    away.is_back(host)
    assert not away.seen(host)
