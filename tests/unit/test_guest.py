"""A guest's root and its configuration, on loop devices; its host key on the controller."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cutshort import CutShort
from tests.sites import lab_site

from xenlab.chapter.chapter import Chapter
from xenlab.chapter.step import Agreed, Consents, require_consents
from xenlab.chapters.roots import GuestClone, GuestRenewed, root_of
from xenlab.chapters.shared_usr import WhileDown
from xenlab.errors import BadInput, CommandFailed, ConsentNeeded, StepFailed, XenlabError
from xenlab.host import Host
from xenlab.platform.interfaces import OFF, DebianGuest, GentooGuest, GuestSettings
from xenlab.platform.xl import Xl
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.blockdevices import identified
from xenlab.resources.guest import GuestConfigured, GuestFile, GuestRoot, manifest
from xenlab.resources.nfs import DiskFile
from xenlab.resources.shared_usr import (
    Needed,
    UsrLinked,
    UsrOnShare,
    UsrSwapped,
    generation,
    in_usr,
)
from xenlab.resources.ssh_access import HostKeyPinned, HostKeysDiffer, fingerprint, host_keys
from xenlab.transport import hostkeys
from xenlab.transport.local import Local
from xenlab.transport.ssh_config import Target

HOST = Host(Local())
RECORDED = Path(__file__).parents[1] / "recorded"
SETTINGS = GuestSettings(
    name="domu1",
    domain="lab.internal",
    address="10.0.2.21/24",
    gateway="10.0.2.2",
    nameserver="10.0.2.3",
    dom0="dom0",
    dom0_address="10.0.2.15/24",
)


def silent(what: str, done: float | None = None) -> None:
    """A report that nobody reads."""


def run(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A small block device with an empty file system."""
    image = tmp_path / "disk.img"
    with image.open("wb") as out:
        out.truncate(64 << 20)
    run("mkfs.ext4", "-q", "-F", "-L", "domu1", image)
    name = run("losetup", "--find", "--show", image)
    yield name
    run("losetup", "--detach", name)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A tiny image with what a guest's root must have, and its checksum."""
    root = tmp_path / "root"
    for folder in ("etc/ssh", "sbin", "dev"):
        (root / folder).mkdir(parents=True)
    (root / "sbin/poweroff").symlink_to("/bin/systemctl")
    (root / "etc/hostname").write_text("image\n")
    (root / "etc/machine-id").touch()
    (root / "etc/ssh/ssh_host_rsa_key").write_text("of the image\n")
    capable = root / "sbin/ping"
    capable.write_bytes(b"")
    os.setxattr(capable, "security.capability", bytes.fromhex("0100000200200000" + "00" * 12))
    path = tmp_path / "base image.tar.zst"
    run("tar", "-C", root, "--xattrs", "--xattrs-include=*", "--zstd", "-cf", path, ".")
    checksum = run("sha256sum", path)
    Path(f"{path}.sha256").write_text(checksum + "\n")
    return path


Guest = tuple[GuestRoot, GuestConfigured]


@pytest.fixture
def guest(tmp_path: Path, device: str, image: Path) -> Guest:
    """The two resources that make domu1."""
    records = str(tmp_path / "records")
    root = GuestRoot("domu1", device, str(image), "domu1", records=records)
    files = DebianGuest().files(SETTINGS)
    return root, GuestConfigured("domu1", device, files, records=records)


def look(device: str, tmp_path: Path, inside: Callable[[Path], None]) -> None:
    """Mount the device, let ``inside`` look or change, unmount it."""
    place = tmp_path / "look"
    place.mkdir(exist_ok=True)
    run("mount", device, place)
    try:
        inside(place)
    finally:
        run("umount", place)


def make(guest: Guest) -> None:
    for resource in guest:
        resource.apply(HOST, silent)
        resource.verify(HOST)


def test_a_guest_is_made_once(guest: Guest, tmp_path: Path, device: str, image: Path) -> None:
    uuid = run("blkid", "-p", "-s", "UUID", "-o", "value", device)
    assert all(resource.probe(HOST) is not None for resource in guest)
    assert guest[0].wipes() == device
    make(guest)
    assert all(resource.probe(HOST) is None for resource in guest)
    assert run("blkid", "-p", "-s", "UUID", "-o", "value", device) == uuid, "it was empty: kept"

    def inside(root: Path) -> None:
        generation = Path(f"{image}.sha256").read_text().split()[0]
        assert (root / "etc/xenlab-generation").read_text() == f"{generation}\n"
        assert (root / "etc/hostname").read_text() == "domu1\n"
        assert len((root / "etc/machine-id").read_text().strip()) == 32
        assert (root / "etc/systemd/system/getty@.service").readlink() == Path("/dev/null")
        assert os.getxattr(root / "sbin/ping", "security.capability")
        keys = sorted(path.name for path in (root / "etc/ssh").glob("ssh_host_*"))
        assert keys == ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"]
        assert (root / "etc/ssh/ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600

    look(device, tmp_path, inside)
    assert subprocess.run(["findmnt", "-S", device], capture_output=True).stdout == b""


def test_whoever_makes_a_guest_can_log_in_to_it(guest: Guest, tmp_path: Path, device: str) -> None:
    """By the keys of this machine; the image has nobody's."""
    key, config = tmp_path / "id_ed25519", tmp_path / "ssh_config"
    config.write_text(f"Host domu1\n IdentitiesOnly yes\n IdentityFile {key}\n")
    root = replace(guest[0], way=Target("domu1", str(config)))
    with pytest.raises(StepFailed, match="no key to log in to it with"):
        root.apply(HOST, silent)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    root.apply(HOST, silent)
    guest[1].apply(HOST, silent)
    public = " ".join(Path(f"{key}.pub").read_text().split()[:2])

    def inside(there: Path) -> None:
        file = there / "root/.ssh/authorized_keys"
        assert file.read_text() == f"{public}\n"
        modes = [path.stat().st_mode & 0o777 for path in (there / "root", file.parent, file)]
        assert modes == [0o700, 0o700, 0o600]

    look(device, tmp_path, inside)


def test_another_configuration_keeps_the_guests_identity(guest: Guest, tmp_path: Path) -> None:
    make(guest)
    records = str(tmp_path / "records")
    key = host_keys(HOST, ("domu1",), records)["domu1"]
    moved = replace(guest[1], files=DebianGuest().files(replace(SETTINGS, address="10.0.2.99/24")))
    difference = moved.probe(HOST)
    assert difference is not None
    assert "-    address 10.0.2.21/24" in difference.diff
    assert "+    address 10.0.2.99/24" in difference.diff
    moved.apply(HOST, silent)
    moved.verify(HOST)
    assert host_keys(HOST, ("domu1",), records)["domu1"] == key


def test_a_guest_under_a_new_name_is_the_same_guest(guest: Guest, tmp_path: Path) -> None:
    make(guest)
    records = tmp_path / "records"
    key = (records / "domu1/host_key.pub").read_text()
    root = replace(guest[0], name="web", formerly="domu1")
    files = DebianGuest().files(replace(SETTINGS, name="web"))
    configured = replace(guest[1], name="web", formerly="domu1", files=files)
    assert root.probe(HOST) is None
    assert configured.probe(HOST) is not None
    configured.apply(HOST, silent)
    configured.verify(HOST)
    assert [path.name for path in records.iterdir()] == ["domu1"]
    assert (records / "domu1/host_key.pub").read_text() == key


@pytest.fixture
def clone(guest: Guest, tmp_path: Path) -> Iterator[GuestClone]:
    """A second guest that is to be like the first, its partition blank."""
    disk = tmp_path / "second.img"
    with disk.open("wb") as out:
        out.truncate(64 << 20)
    name = run("losetup", "--find", "--show", disk)
    root, _ = guest
    made = GuestClone("web", name, root.image, "web", records=root.records, source=root)
    yield replace(made, identity=identified(HOST, name).identity)
    run("losetup", "--detach", name)


def test_a_guest_like_another_has_its_files_and_an_identity_of_its_own(
    guest: Guest, clone: GuestClone, tmp_path: Path
) -> None:
    with pytest.raises(StepFailed, match="cannot make web like domu1: because domu1 has no compl"):
        clone.apply(HOST, silent)
    make(guest)

    def at_work(root: Path) -> None:
        (root / "srv").mkdir()
        (root / "srv/page").write_text("hello\n")
        (root / "srv/link").symlink_to("/etc/shadow")
        (root / "var/lib/systemd").mkdir(parents=True)
        (root / "var/lib/systemd/random-seed").write_text("random")

    look(guest[0].device, tmp_path, at_work)
    configured = replace(
        guest[1],
        name="web",
        device=clone.device,
        files=DebianGuest().files(replace(SETTINGS, name="web")),
    )
    for resource in (clone, configured):
        assert resource.probe(HOST) is not None
        resource.apply(HOST, silent)
        resource.verify(HOST)

    def inside(root: Path) -> None:
        assert (root / "srv/page").read_text() == "hello\n"
        assert (root / "srv/link").readlink() == Path("/etc/shadow")
        assert (root / "etc/hostname").read_text() == "web\n"
        assert not (root / "var/lib/systemd/random-seed").exists()
        assert os.getxattr(root / "sbin/ping", "security.capability")

    look(clone.device, tmp_path, inside)
    keys = host_keys(HOST, ("domu1", "web"), clone.records)
    assert len({key.split()[1] for key in keys.values()}) == 2
    # another image, or what becomes of the first, is not the second one's business any more
    Path(f"{guest[0].image}.sha256").write_text("0" * 64 + "\n")
    assert clone.probe(HOST) is None and guest[0].probe(HOST) is not None


@pytest.fixture
def renewed(guest: Guest, image: Path, tmp_path: Path, device: str) -> GuestRenewed:
    """domu1, which was made and lived; another image is there by now, and somebody agreed."""
    make(guest)

    def lived(root: Path) -> None:
        (root / "home/mail/in box").mkdir(parents=True)
        (root / "home/mail/in box/1").write_text("a letter\n")
        os.chown(root / "home/mail", 1007, 1007)
        os.setxattr(root / "home/mail", "user.kept", b"yes")
        (root / "srv").symlink_to("home/mail")
        (root / "etc/hostname").write_text("an old one\n")

    look(device, tmp_path, lived)
    run("tar", "-C", tmp_path / "root", "--zstd", "--exclude=./dev", "-cf", image, ".")
    Path(f"{image}.sha256").write_text(run("sha256sum", image) + "\n")
    known = {each.name: getattr(guest[0], each.name) for each in fields(guest[0])}
    made = GuestRenewed(**known, keep=("/home", "/srv", "/opt"))
    return replace(made, identity=identified(HOST, device).identity, lost=made.destroys(HOST))


def has_the_letter(root: Path) -> None:
    assert (root / "home/mail/in box/1").read_text() == "a letter\n"


def kept_and_new(root: Path) -> None:
    has_the_letter(root)
    assert (root / "home/mail").stat().st_uid == 1007
    assert os.getxattr(root / "home/mail", "user.kept") == b"yes"
    assert (root / "srv").readlink() == Path("home/mail")
    assert not (root / "opt").exists()
    assert (root / "etc/hostname").read_text() == "image\n"


def test_a_root_that_is_made_anew_has_what_the_guest_keeps(
    renewed: GuestRenewed, tmp_path: Path, device: str
) -> None:
    before = run("blkid", "-p", "-s", "UUID", "-o", "value", device)
    difference = renewed.probe(HOST)
    assert difference and "domu1 keeps its root" in difference.stays
    shown = "\n".join(command.text for command in renewed.commands())
    assert "./home ./srv ./opt" in shown and "mkfs.ext4" in shown
    renewed.apply(HOST, silent)
    renewed.verify(HOST)
    look(device, tmp_path, kept_and_new)
    assert run("blkid", "-p", "-s", "UUID", "-o", "value", device) != before
    assert sorted(path.name for path in Path(renewed.folder).iterdir()) == ["root"]


def test_what_a_guest_keeps_outlives_a_kill(
    renewed: GuestRenewed, image: Path, tmp_path: Path, device: str
) -> None:
    """After mkfs: the next run finds it in dom0."""
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CommandFailed):
        renewed.apply(HOST, silent)
    kept = Path(renewed.folder, ".kept")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert Path(renewed.folder, "root").read_text().startswith("begun ")
    image.write_bytes(whole)
    replace(renewed, lost=()).apply(HOST, silent)
    look(device, tmp_path, kept_and_new)
    assert not kept.exists()


def test_what_nobody_agreed_to_lose_is_not_even_archived(renewed: GuestRenewed) -> None:
    with pytest.raises(StepFailed, match="nobody agreed to lose"):
        replace(renewed, lost=()).apply(HOST, silent)
    assert not Path(renewed.folder, ".kept").exists()


def test_what_was_kept_for_another_root_is_never_put_into_this_one(
    renewed: GuestRenewed, guest: Guest, tmp_path: Path, device: str
) -> None:
    stale = Path(renewed.folder, ".kept")
    stale.write_text("not even an archive")
    plain = replace(guest[0], identity=renewed.identity, lost=renewed.lost)
    plain.apply(HOST, silent)
    assert not stale.exists()


def test_what_does_not_fit_into_the_new_root_is_said_and_stays(
    renewed: GuestRenewed, image: Path, tmp_path: Path
) -> None:
    (tmp_path / "root/srv/full").mkdir(parents=True)
    run("tar", "-C", tmp_path / "root", "--zstd", "--exclude=./dev", "-cf", image, ".")
    Path(f"{image}.sha256").write_text(run("sha256sum", image) + "\n")
    with pytest.raises(StepFailed, match="the new root does not take what domu1 keeps") as why:
        renewed.apply(HOST, silent)
    assert ".kept" in why.value.hint and Path(renewed.folder, ".kept").exists()


def test_a_script_keeps_it_too(renewed: GuestRenewed, tmp_path: Path, device: str) -> None:
    """Before there is a root, and when it is begun again in the middle."""
    wanted = replace(renewed, name=f"kept-{os.getpid()}")
    saved, *_, mounted, restored, unmounted = wanted.commands()
    kept = Path(wanted.folder, ".kept")
    try:
        run("sh", "-euc", saved.in_script())
        archive = kept.read_bytes()
        run("mkfs.ext4", "-q", "-F", device)
        run("sh", "-euc", saved.in_script())
        assert kept.read_bytes() == archive
        back = "\n".join(each.in_script() for each in (mounted, restored, unmounted))
        run("sh", "-euc", back)
        assert not kept.exists()
        run("sh", "-euc", back)
        look(device, tmp_path, has_the_letter)
        look(device, tmp_path, lambda root: (root / "home/away").symlink_to("/etc"))
        with pytest.raises(subprocess.CalledProcessError) as why:
            run("sh", "-euc", replace(wanted, keep=("/home/away/ssh",)).commands()[0].in_script())
        assert "home/away is a link" in why.value.stderr and not kept.exists()
        run("wipefs", "-a", device)
        run("sh", "-euc", saved.in_script())
        assert not kept.exists()
    finally:
        Path(wanted.root).rmdir()


def test_nothing_is_lost_where_what_a_guest_keeps_cannot_be_read(
    renewed: GuestRenewed, tmp_path: Path, device: str
) -> None:
    def hostile(root: Path) -> None:
        (root / "home/away").symlink_to("/etc")
        (root / "home/large").write_bytes(os.urandom(1 << 18))

    look(device, tmp_path, hostile)
    with pytest.raises(StepFailed, match="cannot find /home/away/ssh .* it lies below a link"):
        replace(renewed, keep=("/home/away/ssh",)).apply(HOST, silent)
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small)
    try:
        shutil.copytree(renewed.records, small, dirs_exist_ok=True)
        with pytest.raises(StepFailed, match="what it keeps has no room in dom0"):
            replace(renewed, records=str(small)).apply(HOST, silent)
    finally:
        run("umount", small)
    look(device, tmp_path, has_the_letter)
    run("dd", "if=/dev/zero", f"of={device}", "bs=1k", "seek=1", "count=1", "conv=notrunc")
    with pytest.raises(StepFailed, match="its root cannot be read"):
        renewed.apply(HOST, silent)


def test_a_guest_that_is_at_work_is_not_copied(
    guest: Guest, clone: GuestClone, tmp_path: Path
) -> None:
    make(guest)

    def mounted(_: Path) -> None:
        with pytest.raises(StepFailed, match="because domu1 runs, or its root is mounted") as why:
            clone.apply(HOST, silent)
        assert "restart: [domu1]" in why.value.hint
        assert clone.refusal(HOST)

    look(guest[0].device, tmp_path, mounted)
    record = Path(clone.records, "domu1/usr")
    record.write_text("the share's")
    with pytest.raises(StepFailed, match="the /usr of domu1 is the share's"):
        clone.apply(HOST, silent)
    record.unlink()
    clone.apply(HOST, silent)
    # what was complete once is lost by a consent to its name alone
    Path(clone.records, "web/root").write_text("begun another\n")
    with pytest.raises(StepFailed, match="nobody agreed to lose"):
        clone.apply(HOST, silent)


def test_a_clone_is_made_while_the_other_is_down_where_the_site_says_so() -> None:
    first, *others = [domain.model_dump() for domain in lab_site().domains]
    copy = others[0] | {"like": "domu1"}
    own = GuestRoot("domu2", "/dev/vda7", "/image", "domu2")
    for restart, kind in (([], GuestClone), (["domu1"], WhileDown)):
        site = lab_site(domains=[first, copy, *others[1:]], restart=restart)
        chapter = cast(Chapter, SimpleNamespace(site=site, toolstack=Xl()))
        made = root_of(chapter, site.domains[1], own)
        assert isinstance(made, kind) and made.wipes() == "/dev/vda7"
        assert root_of(chapter, site.domains[0], own) is own
    with pytest.raises(BadInput, match="domu2 is to be like domu9, which is no other domain"):
        lab_site(domains=[first, copy | {"like": "domu9"}, *others[1:]])


def test_a_disk_file_is_as_good_as_a_partition(tmp_path: Path, image: Path) -> None:
    file, records, place = tmp_path / "domu1.img", str(tmp_path / "records"), tmp_path / "place"
    DiskFile(str(file), 64).apply(HOST, silent)
    root = GuestRoot("domu1", str(file), str(image), "domu1", records=records)
    assert root.wipes() == str(file)
    guest = (
        root,
        GuestConfigured("domu1", str(file), DebianGuest().files(SETTINGS), records=records),
    )
    make(guest)
    assert [each.probe(HOST) for each in guest] == [None, None]
    place.mkdir()
    run("mount", file, place)
    try:
        assert (place / "etc/hostname").read_text() == "domu1\n"
        assert root.refusal(HOST) == f"cannot work on domu1: because {file} is mounted"
    finally:
        run("umount", place)
    loop = run("losetup", "--find", "--show", file)
    try:
        assert root.refusal(HOST) == f"cannot work on domu1: because a running domain uses {file}"
    finally:
        run("losetup", "--detach", loop)
    Path(f"{image}.sha256").write_text("0" * 64 + "  another\n")
    (lost,) = root.destroys(HOST)
    assert lost.name == "domu1"
    with pytest.raises(ConsentNeeded, match="domu1"):
        require_consents(HOST, [root], Consents())
    assert require_consents(HOST, [root], Consents(made=("domu1",))) == {
        str(file): Agreed("", (lost,))
    }


def test_a_disk_file_is_made_once_and_never_anew(tmp_path: Path) -> None:
    file = tmp_path / "guests" / "domu1.img"
    wanted = DiskFile(str(file), 8)
    assert wanted.probe(HOST) is not None
    wanted.apply(HOST, silent)
    seen = file.stat()
    assert (seen.st_size, seen.st_mode & 0o777) == (8 << 20, 0o600)
    assert seen.st_blocks * 512 >= seen.st_size
    file.write_bytes(b"a guest's" + bytes((8 << 20) - 9))
    assert wanted.probe(HOST) is None
    wanted.apply(HOST, silent)
    larger = DiskFile(str(file), 9).probe(HOST)
    assert larger is not None and larger.summary == f"grow the disk file {file} from 8 to 9 MiB"
    assert file.read_bytes().startswith(b"a guest's")
    assert [each.name for each in file.parent.iterdir()] == ["domu1.img"]


def test_a_fresh_file_system_or_another_image_is_seen(guest: Guest, device: str) -> None:
    make(guest)
    run("mkfs.ext4", "-q", "-F", device)
    assert all(resource.probe(HOST) is not None for resource in guest)
    with pytest.raises(StepFailed, match="no completely unpacked root"):
        guest[1].apply(HOST, silent)
    make(guest)
    checksum = Path(f"{guest[0].image}.sha256")
    checksum.write_text("0" * 64 + "  another\n")
    assert guest[0].probe(HOST) is not None


def test_what_is_left_of_an_interrupted_one_is_made_anew(
    guest: Guest, tmp_path: Path, device: str
) -> None:
    def leave(root: Path) -> None:
        (root / "half").write_text("unpacked\n")

    damaged = replace(guest[0], image=str(_damaged(guest[0].image)))
    with pytest.raises(XenlabError):
        damaged.apply(HOST, silent)
    look(device, tmp_path, leave)
    assert guest[0].destroys(HOST) == ()
    with pytest.raises(StepFailed, match="no completely unpacked root"):
        guest[1].apply(HOST, silent)
    with pytest.raises(StepFailed, match="not the one that somebody consented to"):
        make(guest)
    look(device, tmp_path, lambda root: _present(root / "half"))
    identity = identified(HOST, device).identity
    make((guest[0].consented(identity), guest[1]))
    look(device, tmp_path, lambda root: _absent(root / "half"))


def test_files_that_nobody_here_unpacked_stay_until_somebody_agrees_to_lose_these(
    guest: Guest, tmp_path: Path, device: str
) -> None:
    def leave(root: Path) -> None:
        (root / "data").write_text("precious\n")

    assert guest[0].destroys(HOST) == (), "an empty file system is nobody's"
    look(device, tmp_path, leave)
    (made,) = guest[0].destroys(HOST)
    assert made.name == "domu1"
    identity = identified(HOST, device).identity
    for lost in ((), (replace(made, uuid="another"),)):
        with pytest.raises(StepFailed, match="files of domu1 that nobody agreed to lose"):
            guest[0].consented(identity, lost).apply(HOST, silent)
    look(device, tmp_path, lambda root: _present(root / "data"))
    make((guest[0].consented(identity, (made,)), guest[1]))
    look(device, tmp_path, lambda root: _absent(root / "data"))
    with pytest.raises(StepFailed, match="nobody agreed to lose"):
        guest[0].consented(identity, (made,)).apply(HOST, silent)


def test_a_complete_root_stays_the_guest_s_where_its_superblock_is_damaged(
    guest: Guest, device: str
) -> None:
    make(guest)
    uuid = run("blkid", "-p", "-s", "UUID", "-o", "value", device)
    assert guest[0].destroys(HOST) == (), "nothing of it is to be made anew"
    run("dd", "if=/dev/zero", f"of={device}", "bs=4k", "count=1", "conv=notrunc")
    (made,) = guest[0].destroys(HOST)
    assert str(made) == f"domu1 {uuid}"
    identity, before = identified(HOST, device).identity, run("sha256sum", device)
    for lost in ((), (replace(made, uuid="another"),), (replace(made, uuid=""),)):
        with pytest.raises(StepFailed, match="files of domu1 that nobody agreed to lose"):
            guest[0].consented(identity, lost).apply(HOST, silent)
    assert run("sha256sum", device) == before
    make((guest[0].consented(identity, (made,)), guest[1]))


def test_a_runbook_makes_no_file_system_over_a_complete_root(
    guest: Guest, tmp_path: Path, device: str
) -> None:
    record, text = tmp_path / "records/domu1/root", guest[0].commands()[0].in_script()
    record.parent.mkdir(parents=True)
    record.write_text(f"{'a' * 64} 11111111-1111-4111-8111-111111111111\n")
    before = run("sha256sum", device)
    ended = subprocess.run(["sh", "-eu"], input=text, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr == f"remove {record} to lose it\n"
    assert run("sha256sum", device) == before
    record.write_text("begun 11111111-1111-4111-8111-111111111111\n")
    for _ in range(2):
        subprocess.run(["sh", "-eu"], input=text, check=True, capture_output=True, text=True)
        assert run("sha256sum", device) != before
        shutil.rmtree(record.parent, ignore_errors=True)


@pytest.mark.parametrize(("name", "times"), [("mkfs.ext4", 1), ("tar", 2), ("mv", 2)])
def test_a_kill_while_a_root_is_unpacked_needs_no_consent_to_go_on(
    guest: Guest,
    tmp_path: Path,
    device: str,
    name: str,
    times: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shell is killed as soon as that command has ended."""
    programs = tmp_path / "programs"
    programs.mkdir()
    program = programs / name
    program.write_text(f'#!/bin/sh\n{shutil.which(name)} "$@"\nkill -9 $PPID\n')
    program.chmod(0o755)
    run("wipefs", "--all", "--quiet", device)
    identity = identified(HOST, device).identity
    for _ in range(times):
        with monkeypatch.context() as changed:
            changed.setenv("PATH", f"{programs}:{os.environ['PATH']}")
            with pytest.raises(XenlabError):
                guest[0].consented(identity).apply(HOST, silent)
        # what the killed shell had started ends a moment later, and holds the lock until then
        run("flock", "--timeout", "60", f"/run/xenlab-guest-{guest[0].name}.lock", "true")
        assert guest[0].destroys(HOST) == ()
    make((guest[0].consented(identity), guest[1]))


def _damaged(image: str) -> Path:
    """A copy of an image that ends in the middle, with its checksum file."""
    whole = Path(image)
    copy = whole.with_name("damaged.tar.zst")
    copy.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    Path(f"{copy}.sha256").write_text(Path(f"{image}.sha256").read_text())
    return copy


def _present(path: Path) -> None:
    assert path.exists()


def _absent(path: Path) -> None:
    assert not path.exists()


def test_a_damaged_image_leaves_no_record(guest: Guest) -> None:
    path = Path(guest[0].image)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(XenlabError):
        guest[0].apply(HOST, silent)
    assert guest[0].probe(HOST) is not None


def test_a_mounted_partition_is_refused(guest: Guest, tmp_path: Path, device: str) -> None:
    def try_it(root: Path) -> None:
        for resource in guest:
            with pytest.raises(StepFailed, match="is mounted"):
                resource.apply(HOST, silent)
        assert [path.name for path in root.iterdir()] == ["lost+found"]

    look(device, tmp_path, try_it)


def test_two_never_work_on_one_guest(guest: Guest) -> None:
    outcomes: list[str] = []

    def attempt() -> None:
        try:
            guest[0].apply(HOST, silent)
            outcomes.append("made")
        except StepFailed as error:
            outcomes.append(error.message)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "made" in outcomes
    busy = "cannot work on domu1: because another process is working on this guest"
    assert set(outcomes) <= {"made", busy}
    guest[0].verify(HOST)


def test_nothing_is_written_through_links_that_a_guest_planted(
    guest: Guest, tmp_path: Path, device: str
) -> None:
    make(guest)
    outside = tmp_path / "outside"
    outside.mkdir()

    def plant(root: Path) -> None:
        for name in ("ssh", "network"):
            run("rm", "-rf", root / "etc" / name)
            (root / "etc" / name).symlink_to(outside)
        (root / "etc/hostname").unlink()
        (root / "etc/hostname").symlink_to(outside / "hostname")

    look(device, tmp_path, plant)
    (tmp_path / "records/domu1/identity").unlink()
    guest[1].apply(HOST, silent)
    guest[1].verify(HOST)
    assert list(outside.iterdir()) == []


def test_a_file_that_is_there_is_edited_and_none_outside(
    guest: Guest, tmp_path: Path, device: str
) -> None:
    """Gentoo's inittab(5): „alle tty-Einträge bis auf …“; edited twice, it is the same."""
    outside = tmp_path / "outside"
    recorded = (RECORDED / "inittab-sysvinit").read_text()
    outside.write_text(recorded)
    configured = replace(guest[1], files=GentooGuest().files(SETTINGS))
    guest[0].apply(HOST, silent)

    def write(root: Path) -> None:
        (root / "etc/inittab").write_text(recorded)

    look(device, tmp_path, write)
    for _ in range(2):
        configured.apply(HOST, silent)
        configured.verify(HOST)

    def one_terminal(root: Path) -> None:
        lines = (root / "etc/inittab").read_text().splitlines()
        terminals = [line for line in lines if "getty" in line and not line.startswith("#")]
        assert terminals == ["h0:12345:respawn:/sbin/agetty -L 115200 hvc0 linux"]
        kept = [line for line in recorded.splitlines() if ":respawn:/sbin/getty" not in line]
        assert [line for line in kept if line not in lines] == []
        assert (root / "etc/runlevels/default/net.eth0").readlink() == Path("/etc/init.d/net.eth0")
        (root / "etc/inittab").unlink()
        (root / "etc/inittab").symlink_to(outside)

    look(device, tmp_path, one_terminal)
    configured.apply(HOST, silent)
    assert outside.read_text() == recorded


def test_a_root_without_poweroff_is_refused(guest: Guest, tmp_path: Path, device: str) -> None:
    guest[0].apply(HOST, silent)
    look(device, tmp_path, lambda root: (root / "sbin/poweroff").unlink())
    with pytest.raises(StepFailed, match="poweroff"):
        guest[1].apply(HOST, silent)


def test_a_missing_device_or_image_is_named(guest: Guest, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="no device /dev/no such"):
        replace(guest[0], device="/dev/no such").apply(HOST, silent)
    with pytest.raises(StepFailed, match="no image /no such"):
        replace(guest[0], image="/no such").apply(HOST, silent)
    empty = HOST.inside(str(tmp_path))
    assert all(resource.probe(empty) is not None for resource in guest)


def test_the_key_is_pinned_and_replaced(guest: Guest, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host domu1\n  HostName 10.0.2.21\n  UserKnownHostsFile {known}\n"
        "  GlobalKnownHostsFile /dev/null\n"
    )
    records = str(tmp_path / "records")
    pin = HostKeyPinned("domu1", Target("domu1", str(config)), records)
    assert pin.probe(HOST) is not None
    with pytest.raises(StepFailed, match="host key of domu1: because there is no host key yet"):
        pin.apply(HOST, silent)
    make(guest)
    old = "10.0.2.21 " + " ".join(_other_key(tmp_path).split()[:2]) + "\n"
    known.write_text("10.0.2.22 " + old.partition(" ")[2] + old)
    pin.apply(HOST, silent)
    pin.verify(HOST)
    keys = hostkeys.known_keys([known], "10.0.2.21")
    wanted = fingerprint(host_keys(HOST, ("domu1",), records)["domu1"])
    assert [hostkeys.describe(key) for key in keys] == [wanted]
    assert len(hostkeys.known_keys([known], "10.0.2.22")) == 1, "other guests' keys stay"
    assert not list(tmp_path.glob("known_hosts?*")), "nothing is left beside the file"


def test_a_key_is_replaced_where_a_link_leads_and_the_link_stays(
    guest: Guest, tmp_path: Path
) -> None:
    make(guest)
    real, link, config = tmp_path / "real", tmp_path / "known_hosts", tmp_path / "ssh_config"
    link.symlink_to(real)
    config.write_text(f"Host domu1\n  HostName 10.0.2.21\n  UserKnownHostsFile {link}\n")
    real.write_text("10.0.2.21 " + " ".join(_other_key(tmp_path).split()[:2]) + "\n")
    pin = HostKeyPinned("domu1", Target("domu1", str(config)), str(tmp_path / "records"))
    pin.apply(HOST, silent)
    pin.verify(HOST)
    assert link.is_symlink() and len(hostkeys.known_keys([real], "10.0.2.21")) == 1


def _other_key(folder: Path) -> str:
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "other")
    return (folder / "other.pub").read_text()


def test_guests_with_one_key_are_found(guest: Guest, tmp_path: Path) -> None:
    records = tmp_path / "records"
    check = HostKeysDiffer(("domu1", "domu2"), str(records))
    missing = check.probe(HOST)
    assert missing is not None
    assert missing.summary == "no host key yet: domu1, domu2"
    for name, key in (("domu1", "ssh-ed25519 AAAA a"), ("domu2", "ssh-ed25519 AAAA b")):
        (records / name).mkdir(parents=True)
        (records / name / "host_key.pub").write_text(f"{key}\n")
    shared = check.probe(HOST)
    assert shared is not None
    assert shared.summary == "these share a host key: domu1, domu2"
    (records / "domu2/host_key.pub").write_text("ssh-ed25519 BBBB b\n")
    assert check.probe(HOST) is None


def test_what_a_gentoo_guest_gets() -> None:
    system = GentooGuest()
    files = {
        file.path: file for file in (*system.files(SETTINGS), *system.lan("eth1", "10.6.0.2/8"))
    }
    settings = 'config_eth0="10.0.2.21/24"\nroutes_eth0="default via 10.0.2.2"\n'
    assert files["/etc/conf.d/net.eth0"].text.endswith(settings)
    assert files["/etc/init.d/net.eth1"].target == "net.lo"
    assert files["/etc/conf.d/net.eth1"].text.splitlines()[1:] == [
        'config_eth1="10.6.0.2/8"',
        'rc_keyword="-stop"',
    ]
    alone = replace(SETTINGS, address="203.0.113.6/32", gateway="172.31.1.1")
    (network,) = (f for f in system.files(alone) if f.path == "/etc/conf.d/net.eth0")
    assert network.text.endswith('routes_eth0="default via 172.31.1.1 onlink"\n')
    assert "/etc/inittab edited\n" in manifest(system.files(SETTINGS))
    with pytest.raises(ValueError, match="only while the guest is down"):
        files["/etc/inittab"].resource()


def test_what_a_debian_guest_gets() -> None:
    files = {file.path: file for file in DebianGuest().files(SETTINGS)}
    assert "/dev/xvda1\t/\text4" in files["/etc/fstab"].text
    assert "10.0.2.21\tdomu1.lab.internal domu1\n" in files["/etc/hosts"].text
    assert "    address 10.0.2.21/24\n    gateway 10.0.2.2\n" in (
        files["/etc/network/interfaces"].text
    )
    assert {f"/etc/systemd/system/{unit}" for unit in OFF} <= files.keys()


paths = st.from_regex(r"/etc/[a-z]{1,8}(/[a-z]{1,8}){0,2}\.x", fullmatch=True)


@given(st.dictionaries(paths, st.text(), min_size=1, max_size=5))
def test_a_manifest_is_the_same_in_any_order(contents: dict[str, str]) -> None:
    files = tuple(GuestFile(path, text) for path, text in contents.items())
    assert manifest(files) == manifest(files[::-1])


@given(st.text(max_size=60))
def test_no_text_breaks_a_fingerprint(text: str) -> None:
    fingerprint(text)


@pytest.mark.parametrize("arrived", [0, 25, 512, -1])
def test_nothing_is_configured_with_files_that_did_not_arrive_whole(
    guest: Guest, tmp_path: Path, device: str, arrived: int
) -> None:
    root, configured = guest
    root.apply(HOST, silent)
    with pytest.raises(CommandFailed, match="not all of .* has arrived"):
        configured.apply(Host(CutShort(arrived)), silent)
    assert configured.probe(HOST) is not None

    def as_it_was(place: Path) -> None:
        assert (place / "etc/hostname").read_text() == "image\n"
        assert not (place / "etc/network").exists()

    look(device, tmp_path, as_it_was)
    configured.apply(HOST, silent)
    configured.verify(HOST)


@pytest.mark.parametrize("arrived", [0, 25, -1])
def test_usr_stays_where_the_first_program_did_not_arrive_whole(
    guest: Guest, tmp_path: Path, device: str, arrived: int
) -> None:
    make(guest)
    look(device, tmp_path, lambda place: (place / "usr/bin").mkdir(parents=True))
    busybox = tmp_path / "busybox"
    busybox.write_text("static\n")
    records = str(tmp_path / "records")
    aside = UsrSwapped("domu1", device, True, str(busybox), records=records)
    with pytest.raises(CommandFailed, match="not all of .* has arrived"):
        aside.apply(Host(CutShort(arrived)), silent)
    assert aside.probe(HOST) is not None

    def as_it_was(place: Path) -> None:
        assert (place / "usr/bin").is_dir()
        assert not (place / ".xenlab").exists()

    look(device, tmp_path, as_it_was)
    aside.apply(HOST, silent)
    aside.verify(HOST)


def test_usr_is_set_aside_and_put_back(guest: Guest, tmp_path: Path, device: str) -> None:
    make(guest)

    def own(place: Path) -> None:
        (place / "usr/bin").mkdir(parents=True)
        (place / "usr/bin/own").write_text("of the guest\n")

    look(device, tmp_path, own)
    records = str(tmp_path / "records")
    busybox = tmp_path / "busybox"
    busybox.write_text("static\n")
    aside, back = (
        UsrSwapped("domu1", device, shared, str(busybox), records=records)
        for shared in (True, False)
    )
    assert back.probe(HOST) is None
    for _ in range(2):
        assert aside.probe(HOST) is not None
        aside.apply(HOST, silent)
        aside.verify(HOST)

        def is_aside(place: Path) -> None:
            assert (place / "usr.old/bin/own").read_text() == "of the guest\n"
            assert list((place / "usr").iterdir()) == []
            assert (place / ".xenlab/init").read_text().startswith("#!/.xenlab/busybox sh\n")
            assert os.access(place / ".xenlab/busybox", os.X_OK)

        look(device, tmp_path, is_aside)
        # a second time, as after a kill before the record was written
        aside.apply(HOST, silent)
        look(device, tmp_path, is_aside)
        assert back.probe(HOST) is not None
        back.apply(HOST, silent)
        back.verify(HOST)

        def is_back(place: Path) -> None:
            assert (place / "usr/bin/own").read_text() == "of the guest\n"
            assert not (place / "usr.old").exists()
            assert not (place / ".xenlab").exists()

        look(device, tmp_path, is_back)
    # cut off in the middle: neither state holds
    record = Path(records, "domu1", "usr")
    record.write_text("swapping\n")
    assert aside.probe(HOST) is not None
    assert back.probe(HOST) is not None
    # nothing to go back to
    aside.apply(HOST, silent)
    look(device, tmp_path, lambda place: shutil.rmtree(place / "usr.old"))
    with pytest.raises(StepFailed, match="domu1 has no /usr of its own any more"):
        back.apply(HOST, silent)


def is_whole(place: Path) -> None:
    """A guest has its own /usr, and nothing set aside."""
    assert (place / "usr/bin").is_dir() and not (place / "usr").is_symlink()
    assert not (place / "usr.old").exists()


class Down(Resource):
    """A guest that runs until it is told to stop."""

    def __init__(self) -> None:
        self.running = True

    def probe(self, host: Host) -> Difference | None:
        return Difference("shut it down") if self.running else None

    def apply(self, host: Host, report: Report) -> None:
        self.running = False


def test_a_split_usr_becomes_the_howto_s_link_and_comes_back(
    guest: Guest, tmp_path: Path, device: str
) -> None:
    make(guest)

    def own(place: Path) -> None:
        for folder in ("usr/bin", "usr/sbin", "usr/lib/deep", "bin", "lib"):
            (place / folder).mkdir(parents=True, exist_ok=True)
        (place / "usr/sbin/early").write_text("starts\n")
        (place / "usr/bin/late").write_text("waits\n")
        (place / "usr/bin/gfind").write_text("finds\n")
        (place / "usr/bin/find").symlink_to("gfind")
        (place / "usr/lib/deep/libfind.so.1.2").write_text("library\n")
        (place / "usr/lib/deep/libfind.so.1").symlink_to("libfind.so.1.2")

    look(device, tmp_path, own)
    records = str(tmp_path / "records")
    down = Down()
    needed = in_usr(
        [
            Needed(
                "bootmisc", "/usr/bin/find", "/usr/bin/gfind", ("/usr/lib/deep/libfind.so.1.2",)
            ),
            Needed("early", "/usr/sbin/early", "/usr/sbin/early"),
            Needed("PID 1", "/sbin/init", "/sbin/init", ("/lib/libc.so.6",)),
        ]
    )
    assert needed == ["/usr/bin/find", "/usr/lib/deep/libfind.so.1.2", "/usr/sbin/early"]
    target = "/mnt/share/usr/0123456789ab"
    linked = UsrLinked("domu1", device, target, lambda: needed, down, records=records)
    assert linked.probe(HOST) is not None
    linked.apply(HOST, silent)
    linked.verify(HOST)
    assert not down.running

    def is_linked(place: Path) -> None:
        assert os.readlink(place / "usr") == target
        assert (place / "usr.old/bin/gfind").read_text() == "finds\n"
        assert (place / "bin/find").read_text() == "finds\n"
        assert not (place / "bin/find").is_symlink()
        assert (place / "sbin/early").read_text() == "starts\n"
        assert not (place / "bin/late").exists()
        for name in ("libfind.so.1", "libfind.so.1.2"):
            assert (place / "lib/deep" / name).read_text() == "library\n"

    look(device, tmp_path, is_linked)
    # cut off before the record was written; the guest is down and cannot be asked
    Path(records, "domu1", "usr").write_text("swapping\n")
    assert linked.probe(HOST) is not None
    linked.apply(HOST, silent)
    look(device, tmp_path, is_linked)
    back = UsrSwapped("domu1", device, False, "", records=records)
    assert back.probe(HOST) is not None
    back.apply(HOST, silent)
    back.verify(HOST)
    look(device, tmp_path, is_whole)
    assert linked.probe(HOST) is not None


def test_a_split_guest_is_at_no_moment_without_usr(
    guest: Guest, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dom0 may lose its power after any change, and start the guest as it is then."""
    make(guest)

    def own(place: Path) -> None:
        (place / "usr/bin").mkdir(parents=True)
        (place / "bin").mkdir(exist_ok=True)

    look(device, tmp_path, own)
    seen = tmp_path / "seen"
    watched = tmp_path / "watched"
    watched.mkdir()
    # dom0's python3 as the script calls it: python3 -I -S -c BELOW ROOT VERB WORDS…
    (watched / "python3").write_text(f"""#!/bin/sh
{sys.executable} "$@" || exit
cd "$5" || exit
for name in usr usr.old; do stat -c '%n %F' $name 2> /dev/null || echo "$name none"; done \\
    | paste -s -d , >> '{seen}'
""")
    (watched / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", f"{watched}:{os.environ['PATH']}")
    records = str(tmp_path / "records")
    target = "/mnt/share/usr/0"
    linked = UsrLinked("domu1", device, target, list, Down(), records=records)
    back = UsrSwapped("domu1", device, False, "", records=records)
    linked.apply(HOST, silent)
    back.apply(HOST, silent)
    states = set(seen.read_text().splitlines())
    link, folder = "symbolic link", "directory"
    assert states == {
        f"usr {folder},usr.old none",
        f"usr {folder},usr.old {link}",
        f"usr {link},usr.old {folder}",
    }

    def cut_off(place: Path) -> None:
        (place / "usr.old").symlink_to(target)

    # both ways go on from where they were cut off
    for goes_on in (linked, back):
        look(device, tmp_path, cut_off)
        Path(records, "domu1", "usr").write_text("swapping\n")
        goes_on.apply(HOST, silent)
        goes_on.verify(HOST)
        back.apply(HOST, silent)
        look(device, tmp_path, is_whole)


def test_a_guest_that_was_never_asked_keeps_its_usr(
    guest: Guest, tmp_path: Path, device: str
) -> None:
    make(guest)
    look(device, tmp_path, lambda place: (place / "usr/bin").mkdir(parents=True))
    records = str(tmp_path / "records")
    down = Down()
    down.running = False
    linked = UsrLinked("domu1", device, "/mnt/share/usr/0", list, down, records=records)
    with pytest.raises(StepFailed, match="nobody has asked domu1 yet"):
        linked.apply(HOST, silent)
    look(device, tmp_path, is_whole)


def test_a_merged_guest_is_never_given_a_link(guest: Guest, tmp_path: Path, device: str) -> None:
    make(guest)

    def merged(place: Path) -> None:
        (place / "usr/bin").mkdir(parents=True)
        shutil.rmtree(place / "bin", ignore_errors=True)
        (place / "bin").symlink_to("usr/bin")

    look(device, tmp_path, merged)
    records = str(tmp_path / "records")
    linked = UsrLinked("domu1", device, "/mnt/share/usr/0", list, Down(), records=records)
    with pytest.raises(StepFailed, match="the /bin of domu1 lies in its /usr"):
        linked.apply(HOST, silent)
    look(device, tmp_path, is_whole)


def test_the_image_s_usr_goes_to_the_share_whole(image: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_text("#!/bin/sh\n")
    run("tar", "-C", root, "--zstd", "-cf", image, ".")
    Path(f"{image}.sha256").write_text(run("sha256sum", image) + "\n")
    share = tmp_path / "the share"
    usr = UsrOnShare(str(image), str(share))
    assert usr.probe(HOST) is not None
    usr.apply(HOST, silent)
    usr.verify(HOST)
    name = generation(HOST, str(image))
    assert (share / name / "bin/tool").read_text() == "#!/bin/sh\n"
    assert sorted(path.name for path in share.iterdir()) == [name, f"{name}.complete"]
