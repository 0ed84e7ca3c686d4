"""The guests' logical volumes, by the real lvm(8) on a loop device.

This machine's kernel may lack the device mapper: LVM then works on what it has written on the disk
alone, and no volume is active.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sites import lab_site

from xenlab.chapters.disk import (
    disk_files,
    file_systems,
    fstab_file,
    guests_volumes,
    in_files,
    mounts,
    partition_table,
    swap_space,
)
from xenlab.chapters.kernel import VOLUMES_OPTIONS, kernel_build
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.platform.apt import AptPackages
from xenlab.resources.blockdevices import SAME_DISK, identified
from xenlab.resources.nfs import SwapFile, Volume, VolumeGroup, grows
from xenlab.site.disk_plan import LINUX_LVM, device, needed_mib
from xenlab.site.schema import Parameters
from xenlab.transport.local import Local

HOST = Host(Local())
GROUP = f"xenlab-test-{os.getpid()}"
WITHOUT_MAPPER = """\
global { activation = 0 }
devices { global_filter = [ "a|^/dev/loop|", "r|.*|" ] }
"""


def silent(what: str, done: float | None = None) -> None:
    """A report nobody reads."""


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def partition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty block device, and an lvm that looks at loop devices alone."""
    (tmp_path / "lvm").mkdir()
    (tmp_path / "lvm/lvm.conf").write_text(WITHOUT_MAPPER)
    monkeypatch.setenv("LVM_SYSTEM_DIR", str(tmp_path / "lvm"))
    monkeypatch.setenv("LVM_SUPPRESS_FD_WARNINGS", "1")
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    loop = run("losetup", "--find", "--show", str(disk)).strip()
    try:
        yield loop
    finally:
        run("losetup", "--detach", loop)


def agreed(partition: str) -> VolumeGroup:
    """The group, with somebody's consent to this very disk."""
    return VolumeGroup(partition, GROUP).consented(identified(HOST, partition).identity)


def logical(**changes: object) -> Parameters:
    return lab_site(guest_disks="lvm", **changes)


def test_a_group_is_made_once(partition: str) -> None:
    wanted = agreed(partition)
    found = wanted.probe(HOST)
    assert found is not None
    assert found.summary == f"make the volume group {GROUP} on {partition}"
    assert wanted.wipes() == partition
    wanted.apply(HOST, silent)
    assert wanted.probe(HOST) is None
    with pytest.raises(StepFailed, match=f"because {partition} holds the volume group {GROUP}"):
        VolumeGroup(partition, "another").probe(HOST)


def test_a_group_that_was_begun_is_finished(partition: str) -> None:
    run("pvcreate", partition)
    wanted = agreed(partition)
    assert wanted.probe(HOST) is not None
    wanted.apply(HOST, silent)
    assert wanted.probe(HOST) is None


def test_what_holds_something_is_never_taken(partition: str) -> None:
    run("mkfs.ext4", "-q", partition)
    before = run("blkid", "-p", partition)
    wanted = agreed(partition)
    with pytest.raises(StepFailed, match=f"because {partition} holds ext4"):
        wanted.probe(HOST)
    # also where it came there between the look and the command
    with pytest.raises(CommandFailed):
        wanted.apply(HOST, silent)
    assert run("blkid", "-p", partition) == before


def test_a_disk_that_nobody_consented_to_is_not_taken(partition: str) -> None:
    other = VolumeGroup(partition, GROUP).consented('SIZE="1" SERIAL="other" WWN=""')
    with pytest.raises(StepFailed, match="not the one that somebody consented to"):
        other.apply(HOST, silent)
    assert VolumeGroup(partition, GROUP).probe(HOST) is not None


def test_a_volume_is_there_once_it_is_large_enough_and_active(partition: str) -> None:
    agreed(partition).apply(HOST, silent)
    wanted = Volume(GROUP, "mail", 18)
    missing = wanted.probe(HOST)
    assert missing is not None
    assert missing.summary == f"make the volume /dev/{GROUP}/mail of 20 MiB"
    run("lvcreate", "--zero", "n", "--wipesignatures", "n", "-n", "mail", "-L", "18m", GROUP)
    for size in (18, 20):
        asleep = Volume(GROUP, "mail", size).probe(HOST)
        assert asleep is not None
        assert asleep.summary == f"activate the volume /dev/{GROUP}/mail"
    smaller = Volume(GROUP, "mail", 16).probe(HOST)
    assert smaller is not None
    assert smaller.summary == f"activate the volume /dev/{GROUP}/mail"


def test_a_volume_grows_and_never_shrinks(partition: str) -> None:
    agreed(partition).apply(HOST, silent)
    run("lvcreate", "--zero", "n", "--wipesignatures", "n", "-n", "mail", "-L", "20m", GROUP)
    larger = Volume(GROUP, "mail", 21)
    found = larger.probe(HOST)
    assert found is not None
    assert found.summary == f"grow the volume /dev/{GROUP}/mail from 20 to 24 MiB"
    for size in (21, 8):
        Volume(GROUP, "mail", size).apply(HOST, silent)
        assert run("lvs", "--noheadings", "-o", "lv_size", f"{GROUP}/mail").strip() == "24.00m"


def test_what_a_volume_grows_by_is_told_by_its_device() -> None:
    what = "the volume /dev/g/mail"
    mib = 1 << 20
    for text, summary, stays in (
        (f"{20 * mib} {20 * 256} 4096 0", "grow the volume /dev/g/mail from 20 to 40 MiB", ""),
        (f"{40 * mib} {20 * 256} 4096 0", "grow the volume /dev/g/mail from 20 to 40 MiB", ""),
        (f"{40 * mib} {40 * 256} 4096 42", None, ""),
        (f"{40 * mib} {20 * 256} 4096 42", "grow the volume /dev/g/mail from 20 to 40 MiB", "xl"),
        (f"{64 * mib} {64 * 256} 4096 42", "", "none shrinks"),
    ):
        found = grows(what, text, 40)
        assert (found.summary if found else None) == summary
        assert found is None or (stays in found.stays and bool(stays) == bool(found.stays))


def test_swap_space_is_made_on_what_is_seen_to_be_blank_alone(
    partition: str, tmp_path: Path
) -> None:
    """Active is what has a name below /dev: here that of a file with what a guest left there."""
    agreed(partition).apply(HOST, silent)
    wanted = Volume(GROUP, "mail.swap", 4, swap=True)
    run("lvcreate", "--zero", "n", "--wipesignatures", "n", "-n", "mail.swap", "-L", "4m", GROUP)
    (blank := tmp_path / "blank").touch()
    os.truncate(blank, 4 << 20)
    place = Path(wanted.device)
    place.parent.mkdir()
    try:
        place.symlink_to(blank)
        empty = wanted.probe(HOST)
        assert empty is not None and empty.summary == f"make swap space on {wanted.device}"
        run("mkswap", str(blank))
        assert wanted.probe(HOST) is None
        run("mkfs.bfs", str(blank))
        first_sector = blank.read_bytes()[:512]
        run("mkfs.ext4", "-q", str(blank))
        # that is one which ext4 leaves free
        with blank.open("r+b") as file:
            file.write(first_sector)
        assert subprocess.run(["blkid", "-p", str(blank)], check=False).returncode == 8
        with pytest.raises(StepFailed, match="because it holds several"):
            wanted.probe(HOST)
    finally:
        place.unlink()
        place.parent.rmdir()


def test_what_makes_a_volume_can_be_read_by_a_shell() -> None:
    for volume in (Volume("g", "mail", 18), Volume("g", "mail.swap", 8, swap=True)):
        (command,) = volume.commands()
        for text in (command.text, command.by_hand(), command.in_script()):
            run("sh", "-n", "-c", text)
        assert ("mkswap" in command.by_hand()) is volume.swap
        assert "[ -e /dev/g/mail" in command.in_script()


def test_a_volume_lies_on_the_disk_of_its_partition(tmp_path: Path) -> None:
    """As /sys has it: vda6 is a part of vda, dm-0 lies on it, md0 on two of other disks."""
    classes, devices = tmp_path / "class", tmp_path / "devices"
    for name in ("vda", "vda/vda6", "dm-0", "md0", "sda", "sda/sda1", "sdb", "sdb/sdb1"):
        (devices / name / "slaves").mkdir(parents=True)
        if "/" in name:
            (devices / name / "slaves").rmdir()
            (devices / name / "partition").touch()
        classes.mkdir(exist_ok=True)
        (classes / Path(name).name).symlink_to(devices / name)
    for whole, parts in (("dm-0", ("vda/vda6",)), ("md0", ("sda/sda1", "sdb/sdb1"))):
        for part in parts:
            (devices / whole / "slaves" / Path(part).name).symlink_to(devices / part)
    functions = SAME_DISK.replace("/sys/class/block", str(classes))
    for name, disks in (("dm-0", "vda"), ("vda6", "vda"), ("vda", "vda"), ("md0", "sda sdb")):
        found = run("sh", "-euc", f"{functions}\ndisks_of /dev/{name}")
        assert found == "".join(f"/dev/{disk}\n" for disk in disks.split())


def test_one_partition_is_the_group_and_dom0_mounts_none_of_it() -> None:
    site = logical(volume_group="castle")
    parts = partition_table(site).partitions
    names = [part.name for part in parts]
    assert names == ["biosboot", "boot", "dom0swap", "dom0root", "share", "guests"]
    assert (parts[-1].kind, parts[-1].size_mib) == (LINUX_LVM, 0)
    assert needed_mib(site) == needed_mib(lab_site()) - 847 + 4 + 3 * 256
    assert device(site, "guests") == "/dev/vda6"
    assert device(site, "domu2") == "/dev/castle/domu2"
    assert "guests" not in [each.label for each in file_systems(site)]
    assert [each.target for each in mounts(site, "/")] == ["/", "/boot", "/mnt/share"]
    text = fstab_file(site, {name: name for name in names}).text()
    assert "guests" not in text and "domuswap" not in text
    assert disk_files(site, "/") == {}
    swap = {"domu1": SwapFile("/mnt/domuswap/domu1.swap", 256)}
    assert in_files(site, {**swap}) == {} and in_files(lab_site(), {**swap}) == swap


def test_each_guest_has_two_volumes() -> None:
    site = logical(volume_group="castle")
    packages, group, *volumes = guests_volumes(site)
    assert packages == AptPackages(("lvm2",))
    assert group == VolumeGroup("/dev/vda6", "castle")
    assert volumes == [
        *(Volume("castle", f"domu{n}", 1536) for n in (1, 2, 3)),
        *(Volume("castle", f"domu{n}.swap", 256, swap=True) for n in (1, 2, 3)),
    ]
    assert [v.device for v in volumes if isinstance(v, Volume)] == [
        *(device(site, d.partition) for d in site.domains),
        *(swap_space(site, d) for d in site.domains),
    ]
    for kind in ("partition", "file"):
        assert guests_volumes(lab_site(guest_disks=kind)) == ()


def test_dom0s_kernel_maps_volumes_where_there_are_some() -> None:
    assert kernel_build(logical(), "dom0").own_options == VOLUMES_OPTIONS
    assert kernel_build(logical(), "domU").own_options == ()
    assert kernel_build(lab_site(guest_disks="file"), "dom0").own_options == ()
