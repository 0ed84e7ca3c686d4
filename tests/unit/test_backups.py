"""Backups of guests: saved, kept, restored file by file, on loop devices and with real tools."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tests.sites import lab_site

from xenlab.chapter.chapter import Chapter
from xenlab.chapters.backups import (
    ARCHIVE,
    GuestRestored,
    GuestSaved,
    Meanwhile,
    NewestKept,
    found_in,
    guests_restored,
    guests_saved,
)
from xenlab.errors import BadInput, StepFailed
from xenlab.host import Host
from xenlab.platform.xl import Xl
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.blockdevices import identified
from xenlab.transport.local import Local

HOST = Host(Local())


def silent(what: str, done: float | None = None) -> None:
    """A report that nobody reads."""


def run(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A guest's root with all kinds of files, on a block device."""
    image = tmp_path / "disk.img"
    with image.open("wb") as out:
        out.truncate(64 << 20)
    run("mkfs.ext4", "-q", "-F", "-L", "mail", image)
    name = run("losetup", "--find", "--show", image)
    mounted(name, tmp_path, fill)
    yield name
    run("losetup", "--detach", name)


def mounted(device: str, folder: Path, inside: Callable[[Path], None]) -> None:
    """Mount the device, let ``inside`` look or change, unmount it."""
    place = folder / "look"
    place.mkdir(exist_ok=True)
    run("mount", device, place)
    try:
        inside(place)
    finally:
        run("umount", place)


def fill(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/hostname").write_text("mail\n")
    (root / "etc/hostile").symlink_to("/etc/shadow")
    (root / "out").symlink_to("/tmp")
    (root / "srv").mkdir()
    (root / "srv").chmod(0o2750)
    (root / "srv/a name\nwith a line").write_bytes(os.urandom(5000))
    os.link(root / "etc/hostname", root / "srv/linked")
    os.chown(root / "etc/hostile", 1234, 5678, follow_symlinks=False)
    os.mkfifo(root / "srv/pipe")
    with (root / "srv/sparse").open("wb") as out:
        out.truncate(8 << 20)
    capable = root / "srv/ping"
    capable.write_bytes(b"")
    os.setxattr(capable, "security.capability", bytes.fromhex("0100000200200000" + "00" * 12))


LISTED = r"%P\0%y\0%m\0%U\0%G\0%s\0%T@\0%l\0%n\n"


def state(device: str, folder: Path) -> tuple[str, str]:
    """All that is in a root: names with their kinds, modes, owners and times; and checksums."""
    found: list[str] = []

    def inside(root: Path) -> None:
        # the root and lost+found are mkfs's
        rest = ("-mindepth", "1", "!", "-name", "lost+found")
        # a folder's size is the file system's business
        listed = run("find", root, *rest, "!", "-type", "d", "-printf", LISTED)
        folders = run("find", root, *rest, "-type", "d", "-printf", r"%P\0%m\0%U\0%G\0%T@\n")
        found.append("\n".join(sorted([*listed.splitlines(), *folders.splitlines()])))
        script = 'cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum && getcap -r .'
        found.append(run("sh", "-c", script, "sh", root))

    mounted(device, folder, inside)
    return found[0], found[1]


def uuid(device: str) -> str:
    return run("blkid", "-p", "-s", "UUID", "-o", "value", device)


@pytest.fixture
def saved(device: str, tmp_path: Path) -> GuestSaved:
    """What saves the guest, which dom0 has on record."""
    records = tmp_path / "records"
    (records / "mail").mkdir(parents=True)
    (records / "mail/root").write_text(f"abc {uuid(device)}\n")
    (records / "mail/identity").write_text(f"{uuid(device)}\n")
    (records / "mail/host_key.pub").write_text("ssh-ed25519 AAAA root@mail\n")
    (tmp_path / "mail.cfg").write_text('name = "mail"\n')
    place, config = str(tmp_path / "a folder/mail"), str(tmp_path / "mail.cfg")
    return GuestSaved("mail", device, place, config, 7, records=str(records))


def restoring(saved: GuestSaved, stamp: str) -> GuestRestored:
    made = GuestRestored(
        "mail",
        saved.device,
        f"{saved.place}/{stamp}",
        saved.config,
        "mail",
        records=saved.records,
    )
    return made.consented(identified(HOST, saved.device).identity, made.destroys(HOST))


def only(saved: GuestSaved) -> Path:
    (found,) = found_in(HOST, saved.place).backups
    return Path(saved.place, found.stamp)


def test_a_guest_is_saved_once_and_again_when_it_is_old(saved: GuestSaved) -> None:
    assert saved.probe(HOST) == Difference("save mail: the last backup is none")
    saved.apply(HOST, silent)
    saved.verify(HOST)
    folder = only(saved)
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    run("sh", "-c", 'cd "$1" && sha256sum --check --strict SHA256SUMS', "sh", folder)
    names = {"root.tar.zst", "domain.cfg", "record", "SHA256SUMS", "seen"}
    assert {path.name for path in folder.iterdir()} == names
    folder.rename(folder.with_name("20200101T000000Z"))
    found = saved.probe(HOST)
    assert found is not None and found.summary.endswith("the last backup is 20200101T000000Z")


def test_one_that_is_damaged_does_not_count(saved: GuestSaved) -> None:
    saved.apply(HOST, silent)
    archive = only(saved) / ARCHIVE
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    assert [each.state for each in found_in(HOST, saved.place).backups] == ["damaged"]
    assert saved.probe(HOST) is not None
    # and it is refused before anything is lost
    before = uuid(saved.device)
    with pytest.raises(StepFailed, match="it is not there, or has other checksums"):
        restoring(saved, archive.parent.name).apply(HOST, silent)
    assert uuid(saved.device) == before
    # one that was touched and is as it was counts
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    saved.verify(HOST)


@pytest.mark.parametrize("name", ["domain.cfg", "record/root"])
def test_all_that_is_in_it_has_a_checksum(saved: GuestSaved, name: str) -> None:
    saved.apply(HOST, silent)
    (only(saved) / name).write_text("other\n")
    assert [each.state for each in found_in(HOST, saved.place).backups] == ["damaged"]


def test_a_guest_that_is_at_work_is_not_saved(saved: GuestSaved, tmp_path: Path) -> None:
    def inside(_: Path) -> None:
        with pytest.raises(StepFailed, match="is mounted"):
            saved.apply(HOST, silent)
        assert saved.refusal(HOST)

    mounted(saved.device, tmp_path, inside)
    Path(saved.records, "mail/root").write_text("begun\n")
    with pytest.raises(StepFailed, match="no completely unpacked root"):
        saved.apply(HOST, silent)
    assert found_in(HOST, saved.place).backups == ()


def test_a_root_is_restored_bit_by_bit(saved: GuestSaved, tmp_path: Path) -> None:
    before, old = state(saved.device, tmp_path), uuid(saved.device)
    assert "cap_net_raw" in before[1]
    saved.apply(HOST, silent)
    stamp = only(saved).name

    def spoil(root: Path) -> None:
        (root / "etc/hostname").write_text("spoilt\n")
        (root / "srv/ping").unlink()
        (root / "more").write_text("more")

    mounted(saved.device, tmp_path, spoil)
    Path(saved.config).unlink()
    made = restoring(saved, stamp)
    found = made.probe(HOST)
    assert found is not None and f"--destroy mail, or may_destroy: [mail {old}]" in found.stays
    made.apply(HOST, silent)
    made.verify(HOST)
    assert state(saved.device, tmp_path) == before
    # the records are of the new file system; the guest is the same, and its file is back
    new, records = uuid(saved.device), Path(saved.records, "mail")
    assert new != old
    assert (records / "root").read_text() == f"abc {new}\n"
    assert (records / "identity").read_text() == f"{new}\n"
    assert (records / "host_key.pub").read_text().endswith("root@mail\n")
    assert Path(saved.config).read_text() == 'name = "mail"\n'
    # and not once more
    assert restoring(saved, stamp).probe(HOST) is None


def test_nothing_is_lost_that_nobody_agreed_to_lose(saved: GuestSaved, tmp_path: Path) -> None:
    saved.apply(HOST, silent)
    before = state(saved.device, tmp_path)
    made = replace(restoring(saved, only(saved).name), lost=())
    with pytest.raises(StepFailed, match="nobody agreed to lose"):
        made.apply(HOST, silent)
    assert state(saved.device, tmp_path) == before


def test_the_newest_stay_and_damaged_ones_do_not_count(saved: GuestSaved) -> None:
    saved.apply(HOST, silent)
    first = only(saved)
    names = [f"2020010{number}T000000Z" for number in range(1, 5)]
    for name in names:
        run("cp", "-a", first, first.with_name(name))
    (first.with_name(names[3]) / "domain.cfg").write_text("other\n")
    kept = NewestKept(saved.place, 2)
    found = kept.probe(HOST)
    assert found is not None
    assert [row["goes"] for row in found.rows] == [f"{saved.place}/{name}" for name in names[:2]]
    ready = kept.looked(HOST)
    ready.apply(HOST, silent)
    ready.verify(HOST)
    left = [each.stamp for each in found_in(HOST, saved.place).backups]
    assert left == [*names[2:], first.name]
    # never the last one that is whole, whatever is newer
    (first / "domain.cfg").write_text("other\n")
    assert NewestKept(saved.place, 1).probe(HOST) is None


class Noted(Resource):
    """A state that is brought about as often as it is asked for, and may fail."""

    def __init__(self, name: str, done: list[str], *, fails: bool = False) -> None:
        self.name, self.done, self.fails, self.device = name, done, fails, ""

    def wipes(self) -> str:
        return self.device

    def probe(self, host: Host) -> Difference | None:
        return None if self.name in self.done else Difference(self.name)

    def apply(self, host: Host, report: Report) -> None:
        self.done.append(self.name)
        if self.fails:
            raise StepFailed("it failed")


@pytest.mark.parametrize("fails", [False, True])
def test_a_guest_that_ran_runs_again_however_it_went(*, fails: bool) -> None:
    done: list[str] = []
    stopped, wanted, running = (Noted(each, done) for each in ("stop", "save", "start"))
    wanted.fails = fails
    made = Meanwhile(stopped, wanted, running=running)
    try:
        made.apply(HOST, silent)
    except StepFailed:
        assert fails
    assert done == ["stop", "save", "start"]
    done[:] = ["stop"]
    wanted.fails = False
    made.apply(HOST, silent)
    assert done == ["stop", "save"]


def test_a_guest_without_a_whole_root_is_not_started() -> None:
    done: list[str] = []
    stopped, wanted, running = (Noted(each, done) for each in ("stop", "restore", "start"))
    wanted.device, wanted.fails = "/dev/vda6", True
    made = Meanwhile(stopped, wanted, running=running)
    with pytest.raises(StepFailed, match="it failed"):
        made.apply(HOST, silent)
    assert done == ["stop", "restore"]
    done.clear()
    wanted.fails = False
    made.apply(HOST, silent)
    assert done == ["stop", "restore", "start"]


def test_a_site_says_who_is_saved() -> None:
    backups = {"guests": ["domu1", "domu2"], "restore": {"domu3": "20260301T020000Z"}}
    site = lab_site(backups=backups, restart=["domu2"])
    chapter = cast(Chapter, SimpleNamespace(site=site, toolstack=Xl()))
    found = guests_saved(chapter)
    assert {name: type(each) for name, each in found.items()} == {
        "domu1": GuestSaved,
        "domu2": Meanwhile,
    }
    (restored,) = guests_restored(chapter).values()
    assert isinstance(restored, GuestRestored)
    assert restored.saved == "/var/lib/xenlab/backups/domu3/20260301T020000Z"
    # a volume is saved from a snapshot while the guest runs
    volumes = cast(
        Chapter,
        SimpleNamespace(site=lab_site(backups=backups, guest_disks="lvm"), toolstack=Xl()),
    )
    by_hand = "\n".join(each.by_hand() for each in guests_saved(volumes)["domu1"].commands())
    take = "lvcreate -q -y -s -n domu1.backup -l 20%ORIGIN /dev/xenlab/domu1"
    assert take in by_hand and by_hand.endswith("lvremove -q -y /dev/xenlab/domu1.backup")


@pytest.mark.parametrize(
    ("backups", "said"),
    [
        ({"guests": ["domu9"]}, "backups: guests names domu9, which is no domain"),
        ({"folder": "/mnt/share/backups"}, "is on dom0's share, where every guest"),
        ({"keep": 0}, "keep"),
        ({"restore": {"domu1": "../domu2"}}, "a backup's name as step 18.1 shows it"),
    ],
)
def test_what_a_site_cannot_say(backups: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        lab_site(backups=backups)
