"""Which disk is which: what it is known by, who may wipe it, and what has the same names."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sites import lab_site

from xenlab.chapter.step import refusal, require_consent
from xenlab.chapters.ingredients import look_at_machine
from xenlab.errors import BadInput, ConsentNeeded, StepFailed
from xenlab.host import Host
from xenlab.resources.blockdevices import (
    Identified,
    identified,
    parse,
    parse_identity,
    refuse_twins,
    twins,
)
from xenlab.resources.disk import (
    Filesystem,
    OnPartitions,
    PartitionTable,
    installed_root,
)
from xenlab.resources.files import File
from xenlab.site.disk_plan import Partition, device, partition_path
from xenlab.transport.local import Local

HOST = Host(Local())
RECORDED = Path(__file__).parent.parent / "recorded"


def quiet(what: str, done: float | None = None) -> None:
    pass


def recorded(**changes: str) -> str:
    """What the lab said of /dev/vda6, with some words replaced."""
    text = (RECORDED / "disks-lab.txt").read_text()
    for old, new in changes.items():
        text = text.replace(CHANGED[old], new)
    return text


CHANGED = {
    "device": "--- device\n/dev/vda6\n",
    "in_sysfs": "serial: XENLAB-DISKS\n",
    "by_udev": '"XENLAB-DISKS"',
    "guid": "guid: 07470171-2100-6446-9078-718a1191eeaa",
    "size": "17179869184",
}


def without_a_serial(**changes: str) -> Identified:
    return parse_identity(recorded(in_sysfs="", by_udev='""', **changes))


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """A block device of 64 MiB."""
    image = tmp_path / "disk.img"
    with image.open("wb") as handle:
        handle.truncate(64 << 20)
    name = HOST.run(f"losetup --find --show '{image}'").stdout.strip()
    yield name
    HOST.run(f"losetup --detach {name}")


class TestKnownBy:
    def test_a_partition_has_its_disks_serial(self) -> None:
        found = parse_identity(recorded())
        assert found.known_by == (("serial", "XENLAB-DISKS"),)
        assert (found.device.path, found.device.mib) == ("/dev/vda6", 1536)

    def test_without_udev_the_serial_comes_from_sysfs(self) -> None:
        found = parse_identity(recorded(by_udev='""'))
        assert found.known_by == (("serial", "XENLAB-DISKS"),)

    @pytest.mark.parametrize(
        ("line", "known"),
        [
            ("wwid: naa.5000c500a1b2c3d4", ("WWN", "naa.5000c500a1b2c3d4")),
            ("eui: 00 25 38 5b 71 b0 c5 f6", ("EUI", "0025385b71b0c5f6")),
            ("nguid: ace42e00-0e1d-2bca-2ee4-ac0000000001", None),
        ],
    )
    def test_hardware_without_a_serial(self, line: str, known: tuple[str, str] | None) -> None:
        found = parse_identity(recorded(in_sysfs=f"{line}\n", by_udev='""'))
        assert found.known_by == (known or ("NGUID", line.removeprefix("nguid: ")),)

    @pytest.mark.parametrize("nothing", ["eui: 00 00 00 00 00 00 00 00", "serial: "])
    def test_failing_all_its_table_and_its_path_with_its_size(self, nothing: str) -> None:
        found = parse_identity(recorded(in_sysfs=f"{nothing}\n", by_udev='""'))
        assert found.known_by == (
            ("GPT disk GUID", "07470171-2100-6446-9078-718a1191eeaa"),
            ("path and size", "/dev/vda 17179869184"),
        )

    def test_an_empty_disk_has_just_path_and_size(self) -> None:
        found = without_a_serial(guid="guid: ")
        assert found.known_by == (("path and size", "/dev/vda 17179869184"),)

    def test_what_another_disk_says_too_is_no_identity(self) -> None:
        found = parse_identity(recorded().replace("XENLAB-SECOND", "XENLAB-DISKS"))
        assert [kind for kind, _ in found.known_by] == ["GPT disk GUID", "path and size"]

    def test_a_disk_that_goes_while_it_is_looked_at_ends_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # lsblk is the real one, with a disk more in its list than is there a moment later
        real = shutil.which("lsblk")
        late = tmp_path / "lsblk"
        late.write_text(
            f'#!/bin/sh\n[ "$*" != "-d -n -p -o KNAME" ] || echo /dev/gone\nexec {real} "$@"\n'
        )
        late.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(BadInput, match="there is no block device /dev/no-disk"):
            identified(HOST, "/dev/no-disk")

    @given(serial=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1))
    def test_any_serial_is_read_as_it_stands(self, serial: str) -> None:
        found = parse_identity(recorded(in_sysfs=f"serial: {serial}\n", by_udev='""'))
        if serial.strip("0:-."):
            assert found.known_by == (("serial", serial),)


class TestConsent:
    def test_a_named_disk_may_be_wiped(self) -> None:
        assert refusal(parse_identity(recorded()), "/dev/vda6", ("XENLAB-DISKS",)) is None

    def test_the_refusal_says_what_to_name(self) -> None:
        refused = refusal(without_a_serial(guid="guid: "), "/dev/vda6", ("OTHER",))
        assert refused is not None
        assert refused.serial == "/dev/vda 17179869184"
        assert "its disk has the path and size /dev/vda 17179869184" in str(refused)
        assert refusal(without_a_serial(), "/dev/vda6", (refused.serial,)) is None

    def test_path_and_size_do_not_count_where_there_is_a_serial(self) -> None:
        found = parse_identity(recorded())
        assert refusal(found, "/dev/vda6", ("/dev/vda 17179869184",)) is not None

    def test_what_is_in_use_is_refused_whatever_was_said(self) -> None:
        found = parse_identity(recorded(device="--- device\n/dev/vda\n"))
        refused = refusal(found, "/dev/vda", ("XENLAB-DISKS",))
        assert refused is not None
        assert "in use (/mnt/dom0/boot, /mnt/dom0, /mnt/dom0/mnt/share" in str(refused)
        assert not refused.serial

    def test_swap_counts_as_use(self) -> None:
        swaps = "Filename Type Size Used Priority\n/dev/vda3 partition 524284 0 -2\n"
        text = re.sub("--- swaps\n(.*\n)*?--- mounts", f"--- swaps\n{swaps}--- mounts", recorded())
        assert "[SWAP]" in parse_identity(text).devices.disks[0].used

    def test_no_such_device(self) -> None:
        with pytest.raises(BadInput, match="no block device /dev/nowhere"):
            identified(HOST, "/dev/nowhere")

    def test_a_link_leads_to_the_disk(self, loop: str, tmp_path: Path) -> None:
        link = tmp_path / "by-id"
        link.symlink_to(loop)
        by_link, by_name = identified(HOST, str(link)), identified(HOST, loop)
        assert by_link.identity == by_name.identity
        assert by_link.known_by == (("path and size", f"{loop} {64 << 20}"),)

    @pytest.mark.parametrize("version", ["2.34", "2.37"])
    def test_an_lsblk_without_mountpoints_will_do(self, version: str, tmp_path: Path) -> None:
        text = json.loads(recorded().split("--- lsblk\n")[1].split("--- ")[0])
        if version == "2.34":
            for disk in text["blockdevices"]:
                disk["size"] = str(disk["size"])
        whole = re.sub(
            r"--- lsblk\n(.*\n)*?--- identity",
            lambda _: f"--- lsblk\n{json.dumps(text)}\n--- identity",
            recorded(),
        )
        assert parse(whole) == parse(recorded())


class TestDestroying:
    """Between consent and command, another disk may have got the name."""

    def test_another_disk_is_left_alone(self, loop: str) -> None:
        before = HOST.run(f"sha256sum {loop}", timeout=60).stdout
        for wanted in (
            PartitionTable(loop, (Partition("one", 8),)),
            Filesystem(loop, "one"),
            Filesystem(loop, "one", "swap"),
        ):
            for identity in ("", 'SIZE="1" SERIAL="OTHER" WWN=""\nguid: '):
                with pytest.raises(StepFailed, match="not the one that somebody consented to"):
                    wanted.consented(identity).apply(HOST, quiet)
        assert HOST.run(f"sha256sum {loop}", timeout=60).stdout == before

    def test_the_disk_of_the_consent_is_wiped(self, loop: str) -> None:
        identity = require_consent(HOST, loop, (f"{loop} {64 << 20}",))
        table = PartitionTable(loop, (Partition("one", 8), Partition("two", 0)))
        table.consented(identity).apply(HOST, quiet)
        table.verify(HOST)
        with pytest.raises(StepFailed, match="consented"):
            table.consented(identity).apply(HOST, quiet)
        guid = HOST.run(f"sfdisk --disk-id {loop}").stdout.strip().lower()
        again = require_consent(HOST, loop, (guid,))
        table.consented(again).apply(HOST, quiet)
        assert require_consent(HOST, loop, (guid,)), "it is known by its GUID as before"

    def test_a_disk_that_is_named_by_its_id(self, loop: str, tmp_path: Path) -> None:
        """A link, as below /dev/disk/by-id: the kernel's lists know only where it leads."""
        (by_id := tmp_path / "ata-EXAMPLE").symlink_to(loop)
        disk = str(by_id)
        assert look_at_machine(HOST, disk).disk_mib == 64
        identity = require_consent(HOST, disk, (f"{loop} {64 << 20}",))
        table = PartitionTable(disk, (Partition("one", 8), Partition("two", 0)))
        table.consented(identity).apply(HOST, quiet)
        assert table.probe(HOST) is None
        HOST.run(f"wipefs --quiet --all {loop}")
        (part := tmp_path / "ata-EXAMPLE-part1").symlink_to(loop)
        identity = require_consent(HOST, str(part), (f"{loop} {64 << 20}",))
        file_system = Filesystem(str(part), "one")
        file_system.consented(identity).apply(HOST, quiet)
        assert file_system.probe(HOST) is None

    @pytest.mark.parametrize("name", ["by-id/ata-EXAMPLE", "ata-EXAMPLE"])
    def test_an_id_that_is_no_disk_s(self, tmp_path: Path, name: str) -> None:
        """Without udev not even the folder of the links is there: it is said, with the disks."""
        disk = str(tmp_path / name)
        assert look_at_machine(HOST, disk).disk_mib == 0
        with pytest.raises(BadInput, match=f"no .*{name}") as refused:
            require_consent(HOST, disk, ())
        assert refused.value.hint.startswith("name one of these disks: /dev/")

    def test_a_disk_in_use_needs_no_second_look(self, loop: str, tmp_path: Path) -> None:
        file_system = Filesystem(loop, "one")
        identity = require_consent(HOST, loop, (f"{loop} {64 << 20}",))
        file_system.consented(identity).apply(HOST, quiet)
        HOST.run(f"mkdir '{tmp_path}/on' && mount {loop} '{tmp_path}/on'")
        try:
            with pytest.raises(ConsentNeeded, match="in use"):
                require_consent(HOST, loop, (f"{loop} {64 << 20}",))
        finally:
            HOST.run(f"umount '{tmp_path}/on'")


class TestPartitions:
    @pytest.mark.parametrize(
        ("disk", "fourth"),
        [
            ("/dev/vda", "/dev/vda4"),
            ("/dev/nvme0n1", "/dev/nvme0n1p4"),
            ("/dev/mmcblk0", "/dev/mmcblk0p4"),
            ("/dev/disk/by-id/ata-X_1", "/dev/disk/by-id/ata-X_1-part4"),
            ("/dev/disk/by-path/pci-0000:00:03.0", "/dev/disk/by-path/pci-0000:00:03.0-part4"),
        ],
    )
    def test_a_partition_lies_on_the_sites_disk(self, disk: str, fourth: str) -> None:
        assert partition_path(disk, 4) == fourth
        assert device(lab_site(disk=disk), "dom0root") == fourth

    def test_a_disk_with_the_same_names_is_no_copy(self) -> None:
        found = parse(recorded(device="--- device\n/dev/vda\n"))
        assert [disk.path for disk in found.others] == ["/dev/vdb"]
        assert {part.name for part in found.others[0].parts} >= {"boot", "dom0root", "domu1"}
        assert twins(found) == []

    def test_a_copy_is_refused_by_name(self) -> None:
        found = parse(recorded(device="--- device\n/dev/vda\n"))
        own = found.disks[0].parts[3].uuid
        copied = recorded(device="--- device\n/dev/vda\n").replace(
            found.disks[1].parts[3].uuid, own.upper()
        )
        with pytest.raises(StepFailed, match="/dev/vdb is a copy of /dev/vda") as refused:
            refuse_twins(parse(copied))
        assert "take /dev/vdb out" in str(refused.value)

    def test_before_there_are_partitions_nothing_is_written(self, tmp_path: Path) -> None:
        wanted = OnPartitions(
            "/dev/nowhere",
            ("boot",),
            lambda uuids: File(f"{tmp_path}/fstab", uuids["boot"]),
            "write it",
        )
        found = wanted.probe(HOST)
        assert found is not None
        assert found.summary == "write it, once /dev/nowhere has its partitions"
        with pytest.raises(StepFailed, match="has not the site's partitions"):
            wanted.apply(HOST, quiet)

    def test_a_machine_without_our_disk_is_taken_for_a_rescue_system(self) -> None:
        assert installed_root(HOST, "/dev/nowhere4") == "/mnt/dom0"
        assert installed_root(HOST.inside("/mnt/dom0"), "/dev/nowhere4") == "/mnt/dom0"
