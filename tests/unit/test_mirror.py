"""A site on two disks: what it asks for, its tables, what is made of them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests.sites import lab_site

from xenlab.chapter.step import refusal
from xenlab.chapters.disk import (
    CONFIGURATION,
    arrays,
    assembled_at_boot,
    file_systems,
    fstab,
    fstab_file,
    mounts,
    partition_table,
    partition_tables,
)
from xenlab.chapters.ingredients import look_at_machine, require_another, tools
from xenlab.errors import BadInput, StepFailed
from xenlab.host import Host
from xenlab.platform.boot import Grub2, GrubOnEfi
from xenlab.resources.base import All, made_on
from xenlab.resources.blockdevices import parse, parse_identity
from xenlab.resources.disk import Mirror, OnPartitions, PartitionTable
from xenlab.site.disk_plan import (
    EFI_SYSTEM,
    ESP,
    LINUX_DATA,
    LINUX_RAID,
    Partition,
    device,
    dom0_device,
    on_mirror,
    partition_names,
)
from xenlab.site.schema import Parameters
from xenlab.transport.local import Local

HOST = Host(Local())
TWO = {"disk": "/dev/sda", "mirror": "/dev/sdb", "kernel": "distribution", "shared_usr": []}


def two(**changes: object) -> Parameters:
    return lab_site(**TWO | changes)


def run(*words: str, given: str | None = None) -> str:
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mirror": "/dev/sda"}, "mirror must be another disk than disk, /dev/sda"),
        ({"kernel": "build"}, "mirror needs kernel: distribution, whose initrd assembles"),
        ({"mirror": "sdb"}, "mirror must be the path of a disk"),
        ({"mirror": "/dev/../etc"}, "mirror must be the path of a disk"),
    ],
)
def test_what_cannot_be_a_mirror(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        two(**changes)


@pytest.mark.parametrize("path", ["/dev/sdb3", "/dev/md/share"])
def test_a_guest_gets_nothing_of_either_disk(path: str) -> None:
    (first, *others) = lab_site().model_dump(mode="json")["domains"]
    with pytest.raises(BadInput, match=f"{path} cannot be a disk of"):
        two(domains=[{**first, "disks": [{"name": "xvdb", "path": path}]}, *others])


def test_data_is_on_arrays_and_what_the_firmware_reads_on_each_disk() -> None:
    site = two(firmware="uefi").numbered({}, {"boot": 1, ESP: 7})
    guest = site.domains[0].partition
    assert (dom0_device(site, "boot"), device(site, guest)) == ("/dev/md/boot", f"/dev/md/{guest}")
    assert dom0_device(site, ESP) == "/dev/sda1"
    assert dom0_device(on_mirror(site), ESP) == "/dev/sdb7"
    made = {each.device for each in file_systems(site) if each.label == ESP}
    assert made == {"/dev/sda1", "/dev/sdb7"}
    targets = {each.target: each for each in mounts(site, "/mnt/dom0")}
    assert targets["/mnt/dom0/boot/efi2"].source == "/dev/sdb7"
    # without one of both disks it boots all the same
    assert all("nofail" in targets[f"/mnt/dom0/boot/{name}"].options for name in ("efi", "efi2"))


def test_both_disks_have_the_same_table() -> None:
    site = two(firmware="uefi")
    first, second, *made = partition_tables(site)
    assert isinstance(first, PartitionTable) and isinstance(second, PartitionTable)
    assert (first.disk, second.disk) == ("/dev/sda", "/dev/sdb")
    assert first.partitions == second.partitions
    plain = partition_table(site).partitions
    assert [(p.name, p.size_mib) for p in first.partitions] == [(p.name, p.size_mib) for p in plain]
    assert [p.kind for p in first.partitions] == [EFI_SYSTEM] + [LINUX_RAID] * (len(plain) - 1)
    names = [each.name for each in made if isinstance(each, Mirror)]
    assert names == [p.name for p in plain[1:]]
    assert not arrays(lab_site(), partition_names(lab_site()))


def test_fstab_names_arrays_and_both_system_partitions() -> None:
    site = two(firmware="uefi")
    wanted = fstab(site)
    assert isinstance(wanted, OnPartitions) and wanted.names == (ESP,)
    second = wanted.made({ESP: "aaaa"})
    assert isinstance(second, OnPartitions) and second.disk == "/dev/sdb"
    written = second.made({ESP: "bbbb"})
    assert "PARTUUID=aaaa  /boot/efi  vfat  umask=0077,nofail" in str(written)
    assert "PARTUUID=bbbb  /boot/efi2  vfat  umask=0077,nofail" in str(written)
    for name in ("dom0root", "boot", "dom0swap", "share"):
        assert f"/dev/md/{name}  " in str(written)
    bios = fstab(two())
    assert isinstance(bios, OnPartitions) and bios.names == ()
    assert "PARTUUID" not in fstab_file(two(), {}).text()


def test_the_initrd_knows_the_arrays_by_their_uuids() -> None:
    conf, packages = assembled_at_boot(two())
    assert isinstance(conf, OnPartitions) and conf.arrays
    text = str(conf.made({name: f"{name}'s" for name in conf.names}))
    assert CONFIGURATION in text
    assert "ARRAY /dev/md/dom0root metadata=1.2 UUID=dom0root's" in text
    assert "mdadm" in str(packages)
    assert assembled_at_boot(lab_site()) == ()


def test_grub_is_on_both_disks() -> None:
    both = Grub2().installed("/dev/sda", "uefi", "/dev/sdb")
    assert isinstance(both, All)
    first, second = both.parts
    assert isinstance(first, GrubOnEfi) and isinstance(second, GrubOnEfi)
    (one,), (other,) = first.commands(), second.commands()
    assert "--efi-directory=/boot/efi --bootloader-id=xenlab" in one.by_hand().replace("\n", " ")
    assert "--efi-directory=/boot/efi2 --bootloader-id=xenlab-2" in other.by_hand()
    assert len(Grub2().installed("/dev/sda", "bios", "/dev/sdb").commands()) == 2


def test_the_rescue_system_needs_mdadm_for_it() -> None:
    assert "mdadm" in tools(two())
    assert "mdadm" not in tools(lab_site())


RECORDED = Path(__file__).parent.parent / "recorded"
BOTH = ("XENLAB-HOSTER", "XENLAB-SECOND")


class TestConsent:
    """An array as a rescue system has it; its disks are listed in another order than its halves."""

    found = parse_identity((RECORDED / "identity-mirror.txt").read_text())

    def test_each_disk_of_an_array_has_to_be_named(self) -> None:
        assert refusal(self.found, "/dev/md/boot", BOTH) is None
        for one, other in (BOTH, BOTH[::-1]):
            refused = refusal(self.found, "/dev/md/boot", (one,))
            assert refused is not None and refused.serial == other

    def test_each_disk_without_a_serial_has_to_be_named_too(self) -> None:
        text = (RECORDED / "identity-mirror.txt").read_text()
        for word in ("SERIAL", "WWN", "serial", "wwid", "guid"):
            text = re.sub(rf'^(.*/)?{word}: .*\n|{word}="[^"]*"', "", text, flags=re.MULTILINE)
        found = parse_identity(text)
        size = 16 << 30
        assert found.known_by == (("path and size", f"/dev/nvme0n1 {size}"),)
        assert found.others == ((("path and size", f"/dev/nvme1n1 {size}"),),)

    def test_a_disk_with_an_array_is_in_use(self) -> None:
        devices = parse((RECORDED / "identity-mirror.txt").read_text())
        disk = next(each for each in devices.disks if each.path == "/dev/nvme1n1")
        assert disk.used == ("raid1 /dev/md127",)
        assert devices.device is not None and devices.device.used == ()

    def test_what_is_lost_is_the_array_s_by_the_partition_s_name(self) -> None:
        text = (RECORDED / "identity-mirror.txt").read_text().replace('"boot",', '"domuswap",')
        text = text.replace('"partlabel": "mail"', '"partlabel": "dom0root"')
        (of_array,) = made_on(parse(text))
        (of_disk,) = made_on(replace(parse(text), path="/dev/nvme0n1"))
        assert of_array.uuid == of_disk.uuid == "6103fbec-bfcb-48f8-9c31-8447fa1af7d2"


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two block devices; the second has its partitions in another order.

    Not every kernel looks for partitions on loop devices: they are loop devices of their own.
    """
    parts = (Partition("boot", 8, LINUX_RAID), Partition("mail", 8, LINUX_RAID))
    with ExitStack() as gone:

        def loop(*words: str) -> str:
            made = run("losetup", "--find", "--show", *words).strip()
            gone.callback(run, "losetup", "--detach", made)
            return made

        found = []
        for name, order in (("one", parts), ("two", parts[::-1])):
            image = tmp_path / name
            with image.open("wb") as handle:
                handle.truncate(32 << 20)
            run("sfdisk", "-q", str(image), given=PartitionTable(str(image), order).script())
            found.append(loop(str(image)))
            for number in (1, 2):
                node = Path(f"{found[-1]}p{number}")
                start = str((1 + 8 * (number - 1)) << 20)
                if not node.exists():
                    node.symlink_to(
                        loop("--offset", start, "--sizelimit", str(8 << 20), str(image))
                    )
                    gone.callback(node.unlink)
        yield found[0], found[1]


def test_an_array_is_made_of_what_is_empty_alone(disks: tuple[str, str]) -> None:
    wanted = Mirror(disks, "boot", (1, 1))
    found = wanted.probe(HOST)
    assert found is not None and found.summary == "make /dev/md/boot of both disks' boot"
    absent = Mirror(disks, "share", (1, 1)).probe(HOST)
    assert absent is not None and absent.summary == "make /dev/md/share of both disks' share"
    run("mkfs.ext4", "-q", f"{disks[1]}p2")
    with pytest.raises(StepFailed, match="they hold nothing and ext4"):
        wanted.probe(HOST)
    before = run("sha256sum", f"{disks[1]}p2")
    with pytest.raises(StepFailed, match="because a partition is not empty"):
        wanted.apply(HOST, lambda what, done=None: None)
    assert run("sha256sum", f"{disks[1]}p2") == before
    other = Mirror(disks, "mail", (2, 2)).probe(HOST)
    assert other is not None


def test_a_partition_of_another_type_is_none_of_an_array(disks: tuple[str, str]) -> None:
    run("sfdisk", "-q", "--part-type", disks[0], "1", LINUX_DATA)
    with pytest.raises(StepFailed, match="because a disk has no partition boot"):
        Mirror(disks, "boot", (1, 1)).apply(HOST, lambda what, done=None: None)


def test_what_a_person_would_type_is_shell(disks: tuple[str, str]) -> None:
    for command in Mirror(disks, "boot", (1, 2)).commands():
        for text in (command.text, command.by_hand(), command.in_script()):
            run("sh", "-n", "-c", text)
        assert f"{disks[0]}p1 {disks[1]}p2" in command.by_hand()
        assert command.in_script().startswith("[ -e /dev/md/boot ] || mdadm --assemble")


def test_one_disk_by_two_names_is_no_mirror(disks: tuple[str, str], tmp_path: Path) -> None:
    link = tmp_path / "by-id"
    link.symlink_to(disks[0])
    one, other = look_at_machine(HOST, disks[0]), look_at_machine(HOST, str(link))
    assert one.disk.devices.path == other.disk.devices.path
    with pytest.raises(BadInput, match="is the same disk as disk /dev/loop"):
        require_another(two(disk=disks[0], mirror="/dev/x"), one, other)
    require_another(two(disk=disks[0], mirror=disks[1]), one, look_at_machine(HOST, disks[1]))
