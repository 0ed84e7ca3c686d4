"""Partition tables and file systems, made by the real tools on image files."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cutshort import CutShort
from tests.sites import lab_site

from xenlab.chapters.disk import (
    disk_files,
    file_systems,
    fstab_file,
    mounts,
    partition_table,
    swap_space,
)
from xenlab.errors import BadInput, CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import made_on
from xenlab.resources.blockdevices import identified, parse
from xenlab.resources.disk import Filesystem, PartitionTable
from xenlab.resources.nfs import Mount, SwapFile
from xenlab.site.disk_plan import (
    EFI_SYSTEM,
    LINUX_DATA,
    REST,
    Partition,
    Table,
    device,
    holding_mib,
    needed_mib,
    parse_table,
    partitions,
)
from xenlab.site.schema import Domain
from xenlab.transport.local import Local

HOST = Host(Local())
RECORDED = Path(__file__).parent.parent / "recorded"


def quiet(what: str, done: float | None = None) -> None:
    pass


def image(path: Path, mib: int) -> str:
    with path.open("wb") as handle:
        handle.truncate(mib << 20)
    return str(path)


def domain(number: int) -> Domain:
    return Domain(
        name=f"domu{number}",
        memory_mib=320,
        mac=f"00:16:3e:66:01:{number:02x}",
        address=f"10.0.2.{20 + number}/24",
    )


def partitiontable(**changes: Any) -> dict[str, Any]:
    """What sfdisk said of the lab's disk after chapter 01."""
    recorded: dict[str, Any] = json.loads((RECORDED / "sfdisk-lab.json").read_text())
    return {**recorded["partitiontable"], **changes}


def table(**changes: Any) -> Table:
    """The same, as a table."""
    return parse_table(partitiontable(**changes))


def lab_table() -> PartitionTable:
    return partition_table(lab_site())


class TestPartitionTable:
    def test_the_labs_own_table_is_no_difference(self) -> None:
        assert lab_table().compare(table()) is None

    def test_a_disk_without_a_table_shows_every_partition(self) -> None:
        difference = lab_table().compare(Table())
        assert difference is not None
        assert [row["wanted"] for row in difference.rows] == [
            "biosboot, 1 MiB",
            "boot, 512 MiB",
            "dom0swap, 512 MiB",
            "dom0root, 3072 MiB",
            "share, 4096 MiB",
            "domu1, 1536 MiB",
            "domu2, 1536 MiB",
            "domu3, 1536 MiB",
            "domuswap, 847 MiB",
        ]
        assert {row["found"] for row in difference.rows} == {"none"}

    def test_another_label_is_a_difference(self) -> None:
        assert lab_table().compare(table(label="dos")) is not None

    def test_what_would_be_lost_is_said_of_each_partition(self) -> None:
        devices = parse((RECORDED / "disks-lab.txt").read_text())
        disk = replace(devices, path="/dev/vda")
        difference = lab_table().compare(table(), disk)
        assert difference is None, "nothing is lost"
        difference = lab_table().compare(table(label="dos"), disk)
        assert difference is not None
        lost = {row["number"]: row["lost"] for row in difference.rows}
        assert lost["1"] == ""
        assert lost["4"] == "ext4 “dom0root”, 3072 MiB, in use as /mnt/dom0"

    def test_a_partition_may_have_any_number(self) -> None:
        parts = [dict(part) for part in partitiontable()["partitions"]]
        parts[8]["node"] = "/dev/vda12"
        assert lab_table().compare(table(partitions=parts)) is None

    @given(number=st.integers(0, 8), what=st.sampled_from(["name", "size", "type"]))
    def test_a_partition_that_differs_is_the_one_that_is_named(
        self, number: int, what: str
    ) -> None:
        parts = [dict(part) for part in partitiontable()["partitions"]]
        changed = {"name": "other", "size": 1024, "type": "E6D6D379-F507-44C2-A23C-238F2A3DF928"}
        parts[number][what] = changed[what]
        difference = lab_table().compare(table(partitions=parts))
        assert difference is not None
        assert [row["same"] for row in difference.rows].index("no") == number

    def test_one_partition_less_is_a_difference_and_one_more_is_none(self) -> None:
        parts = partitiontable()["partitions"]
        fewer = lab_table().compare(table(partitions=parts[:-1]))
        another = dict(parts[0], node="/dev/vda10", name="old")
        assert fewer is not None and fewer.rows[-1]["found"] == "none"
        assert lab_table().compare(table(partitions=[*parts, another])) is None
        both = lab_table().compare(table(partitions=[*parts[:-1], another]))
        assert both is not None
        assert (both.rows[-1]["found"], both.rows[-1]["wanted"]) == ("old, 1 MiB", "none")

    def test_a_larger_sector_counts(self) -> None:
        parts = [dict(part, size=part["size"] // 8) for part in partitiontable()["partitions"]]
        assert lab_table().compare(table(partitions=parts, sectorsize=4096)) is None

    def test_a_real_table_is_made_once(self, tmp_path: Path) -> None:
        place = image(tmp_path / "disk 'a", needed_mib(lab_site()))
        site = lab_site().model_copy(update={"disk": place})
        wanted = partition_table(site)
        assert wanted.wipes() == site.disk
        assert wanted.probe(HOST) is not None
        wanted.apply(HOST, quiet)
        wanted.verify(HOST)
        guid = HOST.run(f"sfdisk --disk-id '{tmp_path}/disk '\\''a'").stdout
        wanted.apply(HOST, quiet)
        again = HOST.run(f"sfdisk --disk-id '{tmp_path}/disk '\\''a'").stdout
        assert again == guid, "a disk without a serial is known by it"
        assert "No errors detected" in HOST.run(f"sfdisk --verify '{tmp_path}/disk '\\''a'").stdout

    @pytest.mark.parametrize("arrived", [0, 25, 200, -1])
    def test_a_table_that_did_not_arrive_whole_leaves_the_disk_alone(
        self, tmp_path: Path, arrived: int
    ) -> None:
        place = image(tmp_path / "disk", needed_mib(lab_site()))
        wanted = partition_table(lab_site().model_copy(update={"disk": place}))
        with pytest.raises(CommandFailed, match="not all of .* has arrived"):
            wanted.apply(Host(CutShort(arrived)), quiet)
        with Path(place).open("rb") as disk:
            assert disk.read(1 << 20) == bytes(1 << 20)

    @given(count=st.integers(1, 40), swap=st.integers(1, 4096))
    def test_a_disk_of_the_size_that_is_asked_for_suffices(self, count: int, swap: int) -> None:
        # many more guests than the lab's, which nothing else selects
        site = lab_site().model_copy(
            update={"domains": [domain(n) for n in range(1, count + 1)], "domu_swap_mib": swap}
        )
        sizes = [p.size_mib for p in partition_table(site).partitions]
        assert needed_mib(site) == 2 + sum(sizes)
        assert sizes[-1] >= count * swap

    def test_a_missing_disk_is_refused_with_those_there_are(self) -> None:
        with pytest.raises(
            BadInput, match="there is no block device /dev/nowhere\nTry: name one of these disks"
        ):
            PartitionTable("/dev/nowhere", ()).probe(HOST)

    @pytest.mark.parametrize("name", ["", "a b", 'x", size=1', "a\nb", "x" * 37, "ü"])
    def test_a_name_that_sfdisk_could_misread_is_refused(self, name: str) -> None:
        with pytest.raises(BadInput, match="cannot name a partition"):
            Partition(name, 1, LINUX_DATA)


class TestFilesystem:
    @pytest.mark.parametrize(("kind", "options"), [("ext4", ("-m", "0")), ("swap", ())])
    def test_made_once(self, tmp_path: Path, kind: str, options: tuple[str, ...]) -> None:
        device = image(tmp_path / "part; x", 20)
        wanted = Filesystem(device, "share", kind, options)
        found = wanted.probe(HOST)
        assert found is not None and found.summary == f"make {kind} “share” on {device}"
        assert wanted.wipes() == device
        wanted.apply(HOST, quiet)
        wanted.verify(HOST)

    def test_another_one_is_named_before_it_goes(self, tmp_path: Path) -> None:
        device = image(tmp_path / "part", 20)
        Filesystem(device, "old").apply(HOST, quiet)
        difference = Filesystem(device, "boot").probe(HOST)
        assert difference is not None
        assert difference.summary.endswith("where ext4 “old” is now")

    def test_no_device_yet_is_a_difference_and_then_a_failure(self, tmp_path: Path) -> None:
        wanted = Filesystem(f"{tmp_path}/none", "boot")
        assert wanted.probe(HOST) is not None
        with pytest.raises(StepFailed, match="there is no device"):
            wanted.apply(HOST, quiet)

    def test_a_tool_that_fails_is_an_error(self, tmp_path: Path) -> None:
        wanted = Filesystem(image(tmp_path / "part", 1), "boot", options=("-b", "nonsense"))
        with pytest.raises(CommandFailed, match="nonsense"):
            wanted.apply(HOST, quiet)

    def test_a_device_in_use_is_refused_in_the_words_of_the_tool(self, tmp_path: Path) -> None:
        disk, place = image(tmp_path / "disk", 16), tmp_path / "place"
        place.mkdir()
        subprocess.run(["mkfs.ext4", "-q", disk], check=True)
        subprocess.run(["mount", "-o", "loop", disk, place], check=True)
        try:
            device = HOST.run(f"findmnt -n -o SOURCE '{place}'").stdout.strip()
            wanted = Filesystem(device, "boot").consented(identified(HOST, device).identity)
            with pytest.raises(CommandFailed) as caught:
                wanted.apply(HOST, quiet)
        finally:
            subprocess.run(["umount", place], check=True)
        first, _, *said = caught.value.message.splitlines()
        assert first == f"command failed with exit status 1: mkfs.ext4 -q -L boot {device}"
        assert f"  {device} is mounted; will not make a filesystem here!" in said, said

    def test_a_label_that_ext4_would_cut_is_refused(self) -> None:
        with pytest.raises(BadInput, match="cannot label"):
            Filesystem("/dev/x", "x" * 17)


class TestSwapFile:
    def test_is_there_after_a_power_cut(self, tmp_path: Path) -> None:
        """What a copy of the disk holds at that moment is what a machine finds that lost power."""
        disk, seen, place = tmp_path / "disk", tmp_path / "seen", tmp_path / "place"
        with disk.open("wb") as file:
            file.truncate(256 * 1024**2)
        place.mkdir()
        subprocess.run(["mkfs.ext4", "-q", disk], check=True)
        subprocess.run(["mount", "-o", "loop", disk, place], check=True)
        try:
            swap = SwapFile(str(place / "a.swap"), 8)
            swap.apply(HOST, quiet)
            shutil.copyfile(disk, seen)
        finally:
            subprocess.run(["umount", place], check=True)
        subprocess.run(["mount", "-o", "loop", seen, place], check=True)
        try:
            assert swap.probe(HOST) is None
        finally:
            subprocess.run(["umount", place], check=True)

    def test_made_once_and_anew_for_another_size(self, tmp_path: Path) -> None:
        path = tmp_path / "guest one.swap"
        SwapFile(str(path), 4).apply(HOST, quiet)
        SwapFile(str(path), 4).verify(HOST)
        assert path.stat().st_mode & 0o777 == 0o600
        larger = SwapFile(str(path), 6)
        assert larger.probe(HOST) is not None
        larger.apply(HOST, quiet)
        larger.verify(HOST)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]

    @pytest.mark.parametrize(
        "damage", ["chmod 644", "truncate -s 5M", "shred -n 1", "fallocate -p -l 4M"]
    )
    def test_what_is_not_right_is_seen(self, tmp_path: Path, damage: str) -> None:
        wanted = SwapFile(f"{tmp_path}/guest.swap", 4)
        wanted.apply(HOST, quiet)
        HOST.run(f"{damage} {tmp_path}/guest.swap")
        assert wanted.probe(HOST) is not None


class TestRecipe:
    def test_every_partition_but_grubs_has_a_file_system_with_its_name(self) -> None:
        made = {f.label: f.kind for f in file_systems(lab_site())}
        assert made == {
            "boot": "ext4",
            "dom0swap": "swap",
            "dom0root": "ext4",
            "share": "ext4",
            "domu1": "ext4",
            "domu2": "ext4",
            "domu3": "ext4",
            "domuswap": "ext4",
        }

    def test_guests_may_have_files_on_one_partition(self) -> None:
        plain, files = lab_site(), lab_site(guest_disks="file")
        names = [part.name for part in partition_table(files).partitions]
        assert names == ["biosboot", "boot", "dom0swap", "dom0root", "share", "guests"]
        guests = partition_table(files).partitions[5]
        assert guests.size_mib == REST
        assert guests.needed_mib == holding_mib(3 * (1536 + 256))
        assert swap_space(files, files.domains[0]) == "/mnt/guests/domu1.swap"
        assert device(files, "domu2") == "/mnt/guests/domu2.img"
        places = {each.target: each.source for each in mounts(files, "/mnt/dom0")}
        assert places["/mnt/dom0/mnt/guests"] == "/dev/vda6"
        uuids = {name: name for name in names}
        assert (
            "PARTUUID=guests  /mnt/guests  ext4  noatime  0  2\n" in fstab_file(files, uuids).text()
        )
        assert {*disk_files(files, "/")} == {f"domu{n}'s disk" for n in (1, 2, 3)}
        assert disk_files(plain, "/") == {}

    def test_a_uefi_machine_has_a_system_partition_instead_of_grubs(self) -> None:
        bios, uefi = lab_site(), lab_site(firmware="uefi")
        first, *rest = partition_table(uefi).partitions
        assert (first.name, first.size_mib, first.kind) == ("esp", 260, EFI_SYSTEM)
        assert (*rest,) == partition_table(bios).partitions[1:]
        assert file_systems(uefi) == (Filesystem("/dev/vda1", "esp", "vfat"), *file_systems(bios))
        root, boot, esp, *others = mounts(uefi, "/mnt/dom0")
        assert (root, boot, *others) == mounts(bios, "/mnt/dom0")
        assert esp == Mount("/dev/vda1", "/mnt/dom0/boot/efi", "vfat", "umask=0077")
        (made,) = file_systems(uefi)[0].commands()
        assert made.by_hand() == "mkfs.vfat -F 32 -n esp /dev/vda1"
        assert file_systems(uefi)[0].compare("LABEL=esp\nTYPE=vfat\n") is None

    def test_the_system_partition_is_dom0s(self) -> None:
        text = (RECORDED / "disks-lab.txt").read_text()
        space = " " * 15
        head = f'"label": null,\n{space}"partlabel": '
        was = f'"fstype": null,\n{space}{head}"biosboot"'
        assert was in text
        esp = parse(text.replace(was, f'"fstype": "vfat",\n{space}{head}"esp"'))
        assert [made.name for made in made_on(replace(esp, path="/dev/vda1"))] == ["dom0"]

    @pytest.mark.parametrize("root", ["/", "/mnt/dom0"])
    def test_mounts_begin_with_the_root(self, root: str) -> None:
        targets = [m.target for m in mounts(lab_site(), root)]
        prefix = root.rstrip("/")
        assert targets == [root, f"{prefix}/boot", f"{prefix}/mnt/share", f"{prefix}/mnt/domuswap"]

    def test_swap_files_fit_their_partition(self, tmp_path: Path) -> None:
        site = lab_site()
        device = image(tmp_path / "domuswap", partitions(site)[-1].mib)
        swap = file_systems(site)[-1]
        Filesystem(device, swap.label, swap.kind, swap.options).apply(HOST, quiet)
        shown = HOST.run(f"dumpe2fs -h {device}", timeout=60).stdout
        free = next(line for line in shown.splitlines() if line.startswith("Free blocks"))
        assert int(free.split()[-1]) * 4096 >= len(site.domains) * site.domu_swap_mib << 20
