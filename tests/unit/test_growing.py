"""A disk that grows with its site's file: what is there stays where it is, by the real tools."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sites import lab_site

from xenlab.chapter.step import Consents, require_consents
from xenlab.chapters.disk import partition_table
from xenlab.errors import BadInput, CommandFailed, ConsentNeeded, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Resource, Said
from xenlab.resources.disk import (
    Filesystem,
    Grown,
    PartitionGone,
    PartitionsChanged,
    PartitionTable,
    partition_numbers,
)
from xenlab.resources.nfs import DiskFile, SwapFile
from xenlab.site.disk_plan import (
    Table,
    There,
    changes,
    device,
    number_of,
    numbers,
    parse_table,
    with_new,
)
from xenlab.site.schema import Domain, Parameters
from xenlab.transport.local import Local

HOST = Host(Local())
DISK_MIB = 320


def quiet(what: str, done: float | None = None) -> None:
    pass


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def site(disk: str, *names: str, **changes: Any) -> Parameters:
    """A site of small partitions with these guests."""
    domains = [
        Domain(
            name=name,
            memory_mib=320,
            mac=f"00:16:3e:66:01:{number:02x}",
            address=f"10.0.2.{20 + number}/24",
        )
        for number, name in enumerate(names, 1)
    ]
    sizes = {"boot": 8, "dom0_swap": 8, "dom0_root": 24, "share": 24, "domu_root": 24}
    small = {f"{key}_mib": mib for key, mib in sizes.items()} | {"domu_swap_mib": 4}
    return lab_site().model_copy(update={"disk": disk, "domains": domains, **small, **changes})


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """A block device of `DISK_MIB`."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(DISK_MIB << 20)
    name = run("losetup", "--find", "--show", str(image)).strip()
    try:
        yield name
    finally:
        subprocess.run(["partx", "--delete", name], check=False, capture_output=True)
        run("losetup", "--detach", name)


def table_of(disk: str) -> Table:
    return parse_table(json.loads(run("sfdisk", "--json", disk))["partitiontable"])


def installed(disk: str, *names: str, **changes: Any) -> Parameters:
    """A site with these guests on the disk, each partition with a file system and a file on it."""
    made = site(disk, *names, **changes)
    table = partition_table(made)
    agreed = require_consents(HOST, [table], Consents((f"{disk} {DISK_MIB << 20}",)))
    table.consented(agreed[disk].identity).apply(HOST, quiet)
    run("partx", "--add", disk)
    for each in partition_table(made).partitions:
        path = device(made, each.name)
        if each.name not in ("biosboot", "dom0swap"):
            run("mkfs.ext4", "-q", "-L", each.name, path)
            run("debugfs", "-w", "-R", f"write {__file__} kept", path)
    return made


def partitions_of(disk: str) -> dict[str, tuple[str, ...]]:
    """Of each partition: its number and start, its UUID, and a hash of its first 8 MiB."""
    found: dict[str, tuple[str, ...]] = {}
    said = json.loads(run("sfdisk", "--json", disk))["partitiontable"]
    uuids = {number_of(part["node"]): str(part["uuid"]) for part in said["partitions"]}
    for part in parse_table(said).parts:
        with Path(disk).open("rb") as file:
            file.seek(part.start * 512)
            content = file.read(min(part.size * 512, 8 << 20))
        digest = hashlib.sha256(content).hexdigest()
        found[part.name] = (str(part.number), str(part.start), uuids[part.number], digest)
    return found


def settled(wanted: Parameters) -> tuple[Resource, ...]:
    """The table of a site brought about by difference; what was found."""
    found = partition_table(wanted).by_difference(HOST)
    for each in found:
        if isinstance(each, PartitionsChanged):
            each.apply(HOST, quiet)
            each.verify(HOST)
    return found


def said(found: tuple[Resource, ...]) -> str:
    """What stays and is said, or why nothing is done."""
    differences = [each.found for each in found if isinstance(each, Said)]
    return "; ".join(each.stays or each.summary for each in differences)


def mounted(path: str, place: Path) -> Path:
    place.mkdir()
    run("mount", path, str(place))
    return place


class TestTheTable:
    def test_a_fourth_guest_on_a_disk_in_use_touches_nobody_else(
        self, disk: str, tmp_path: Path
    ) -> None:
        three = installed(disk, "a", "b", "c")
        place = mounted(device(three, "share"), tmp_path / "share")
        try:
            before = partitions_of(disk)
            four = site(disk, "a", "b", "c", "d").numbered(partition_numbers(HOST, disk))
            foreseen = device(four, "d")
            found = settled(four)
            after = partitions_of(disk)
            assert said(found) == ""
            assert {name: after[name] for name in before} == before
            assert set(after) - set(before) == {"d"}
            assert foreseen == f"{disk}p{after['d'][0]}" and Path(foreseen).is_block_device()
            assert int(run("blockdev", "--getsize64", foreseen)) == 24 << 20
            (held,) = partition_table(four).by_difference(HOST)
            assert held.probe(HOST) is None
            assert (place / "kept").read_bytes() == Path(__file__).read_bytes()
        finally:
            run("umount", str(place))

    def test_the_swap_files_partition_grows_where_it_is(self, disk: str) -> None:
        installed(disk, "a", "b", "c")
        was = {part.name: part for part in table_of(disk).parts}
        more = site(disk, "a", "b", "c", "d", domu_swap_mib=12)
        settled(more)
        now = {part.name: part for part in table_of(disk).parts}
        assert now["domuswap"] == replace(was["domuswap"], size=now["domuswap"].size)
        assert now["domuswap"].size > was["domuswap"].size
        path = f"{disk}p{now['domuswap'].number}"
        assert int(run("blockdev", "--getsize64", path)) == now["domuswap"].size * 512

    def test_a_guest_less_and_a_smaller_size_are_said_and_stay(self, disk: str) -> None:
        installed(disk, "a", "b", "c")
        before = partitions_of(disk)
        found = settled(site(disk, "a", "c", share_mib=16))
        assert said(found) == (
            "share has 24 MiB, the site's file says 16: none shrinks; "
            "b (24 MiB) is not in the site's file: it is kept"
        )
        assert partitions_of(disk) == before

    def test_another_name_is_another_guest(self, disk: str) -> None:
        installed(disk, "a", "b")
        before = partitions_of(disk)
        assert "b (24 MiB) is not in the site's file" in said(settled(site(disk, "a", "mail")))
        after = partitions_of(disk)
        assert {name: after[name] for name in before} == before
        assert set(after) - set(before) == {"mail"}

    def test_what_would_have_to_move_is_refused_with_the_numbers(
        self, disk: str, tmp_path: Path
    ) -> None:
        made = installed(disk, "a", "b")
        before = partitions_of(disk)
        larger = site(disk, "a", "b", domu_root_mib=30)
        (anew,) = partition_table(larger).by_difference(HOST)
        why = "a has 24 MiB and must have 30 MiB, and 0 MiB are free behind it"
        assert isinstance(anew, PartitionTable) and anew.wipes() == disk
        difference = anew.probe(HOST)
        assert difference is not None and why in difference.summary
        assert {row["lost"] for row in difference.rows} >= {"ext4 “a”, 24 MiB"}
        with pytest.raises(ConsentNeeded, match="nobody has agreed to lose it: dom0 .*; a "):
            require_consents(HOST, [anew], Consents((f"{disk} {DISK_MIB << 20}",)))
        place = mounted(device(made, "boot"), tmp_path / "boot")
        try:
            (refused,) = partition_table(larger).by_difference(HOST)
            assert refused.wipes() == ""
            assert why in refused.refusal(HOST)
            with pytest.raises(StepFailed, match=f"{why}.*no partition is moved") as caught:
                refused.apply(HOST, quiet)
            assert "guest_disks: lvm" in caught.value.hint
        finally:
            run("umount", str(place))
        after = partitions_of(disk)
        # a mount is noted in its file system
        assert after.pop("boot")[:3] == before.pop("boot")[:3]
        assert after == before

    def test_a_disk_that_is_full_says_what_is_left(self, disk: str) -> None:
        installed(disk, "a", "b", "c", domu_root_mib=60)
        table = partition_table(site(disk, *"abcd", domu_root_mib=60))
        (anew,) = table.by_difference(HOST)
        assert isinstance(anew, PartitionTable)
        assert anew.why.startswith("d must have 60 MiB, and the largest free room has ")

    def test_a_table_that_is_another_by_now_is_left_alone(self, disk: str) -> None:
        installed(disk, "a")
        (wanted,) = partition_table(site(disk, "a", "b")).by_difference(HOST)
        run("sfdisk", "--disk-id", disk, "21686148-6449-6e6f-744e-656564454649")
        before = partitions_of(disk)
        with pytest.raises(StepFailed, match="not the one that was looked at"):
            wanted.apply(HOST, quiet)
        assert partitions_of(disk) == before

    @pytest.mark.parametrize("kind", ["file", "lvm"])
    def test_files_and_volumes_come_and_go_in_one_partition(self, disk: str, kind: str) -> None:
        made = site(disk, "a", "b", "c", guest_disks=kind)
        table = partition_table(made)
        agreed = require_consents(HOST, [table], Consents((f"{disk} {DISK_MIB << 20}",)))
        table.consented(agreed[disk].identity).apply(HOST, quiet)
        last = table_of(disk).parts[-1]
        assert last.name == "guests" and table_of(disk).free_behind(last) < 2048
        four = site(disk, "a", "b", "c", "d", guest_disks=kind)
        (held,) = partition_table(four).by_difference(HOST)
        assert held.probe(HOST) is None

    def test_names_of_another_disk_do_not_count(self, disk: str, tmp_path: Path) -> None:
        installed(disk, "a", "b")
        settled(site(disk, "b", "a", "mail"))
        mine = site(disk, "mail").numbered(partition_numbers(HOST, disk))
        other = tmp_path / "other.img"
        other.write_bytes(b"")
        run("truncate", "--size", "320M", str(other))
        PartitionTable(str(other), partition_table(site(str(other), "mail")).partitions).apply(
            HOST, quiet
        )
        theirs = site(str(other), "mail").numbered(partition_numbers(HOST, str(other)))
        assert device(mine, "mail") == f"{disk}p9"
        assert device(theirs, "mail") == f"{other}6"
        assert partition_numbers(HOST, f"{tmp_path}/none") == {}


SIZES = st.fixed_dictionaries(
    {
        "domu_root_mib": st.integers(4, 64),
        "domu_swap_mib": st.integers(1, 16),
        "dom0_root_mib": st.integers(8, 64),
        "share_mib": st.integers(8, 64),
    }
)
FILES = st.tuples(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True), SIZES)


class TestAnySequenceOfFiles:
    @given(first=FILES, later=st.lists(FILES, max_size=6), mib=st.integers(400, 1200))
    def test_nothing_that_is_there_ever_moves_shrinks_or_overlaps(
        self, first: Any, later: Any, mib: int
    ) -> None:
        table = self.made_anew(partition_table(site("/dev/vda", *first[0], **first[1])), mib)
        for names, sizes in later:
            wanted = partition_table(site("/dev/vda", *names, **sizes))
            found = changes(wanted.partitions, table)
            if found.refused:
                continue
            foreseen = with_new(numbers(table), [p.name for p in wanted.partitions])
            before = {part.number: part for part in table.parts}
            after = before | {part.number: part for part in (*found.grown, *found.added)}
            for number, part in before.items():
                assert after[number] == replace(part, size=after[number].size)
                assert after[number].size >= part.size
            assert all(foreseen[part.name] == number for number, part in after.items())
            ordered = sorted(after.values(), key=lambda part: part.start)
            assert all(a.end <= b.start for a, b in pairwise(ordered))
            assert ordered[-1].end <= table.last + 1
            table = replace(table, parts=tuple(after.values()))
            assert wanted.compare(table) is None
            assert changes(wanted.partitions, table) == replace(found, grown=(), added=())

    @staticmethod
    def made_anew(wanted: PartitionTable, mib: int) -> Table:
        """As sfdisk lays one partition behind the other."""
        at, parts = 2048, []
        for number, each in enumerate(wanted.partitions, 1):
            parts.append(There(number, each.name, each.kind, at, each.size_mib * 2048))
            at = parts[-1].end
        return Table(tuple(parts), 2048, max(at + 2048, mib * 2048) - 34, label="gpt", guid="X")

    # each example runs sfdisk some thirty times
    @settings(max_examples=8, deadline=None)
    @given(later=st.lists(FILES, min_size=1, max_size=3))
    def test_the_real_tool_does_the_same(self, tmp_path_factory: Any, later: Any) -> None:
        path = tmp_path_factory.mktemp("disk") / "image"
        with path.open("wb") as file:
            file.truncate(1 << 30)
        first = partition_table(site(str(path), "a", "b", "c"))
        first.apply(HOST, quiet)
        for names, sizes in later:
            before = partitions_of(str(path))
            found = partition_table(site(str(path), *names, **sizes)).by_difference(HOST)
            for each in found:
                if isinstance(each, PartitionsChanged):
                    each.apply(HOST, quiet)
                    each.verify(HOST)
            after = partitions_of(str(path))
            assert {name: after[name][:3] for name in before} == {
                name: each[:3] for name, each in before.items()
            }
        assert "No errors detected" in run("sfdisk", "--verify", str(path))


def may_resize() -> bool:
    """Whether this process has CAP_SYS_RESOURCE, as root has outside of a container."""
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) & 1 << 24)


class TestGrown:
    def larger(self, disk: str) -> str:
        """A partition that is larger than the ext4 on it."""
        made = installed(disk, "a")
        more = site(disk, "a", domu_swap_mib=44)
        settled(more)
        return device(made, "domuswap")

    def test_an_ext4_grows_while_it_is_mounted(self, disk: str, tmp_path: Path) -> None:
        path = self.larger(disk)
        wanted = Grown(path, "domuswap")
        place = mounted(path, tmp_path / "on")
        try:
            before = (place / "kept").read_bytes()
            found = wanted.probe(HOST)
            assert found is not None and not found.stays
            assert found.summary.startswith("grow ext4 “domuswap” to the ")
            assert wanted.wipes() == ""
            if may_resize():
                wanted.apply(HOST, quiet)
                wanted.verify(HOST)
            else:
                # a container's root may not, and the tool says that it would have
                with pytest.raises(CommandFailed, match="on-line resizing required"):
                    wanted.apply(HOST, quiet)
            assert (place / "kept").read_bytes() == before
        finally:
            run("umount", str(place))
        run("e2fsck", "-f", "-n", path)

    def test_and_while_it_is_not(self, disk: str) -> None:
        path = self.larger(disk)
        uuid = run("blkid", "-p", "-s", "UUID", "-o", "value", path)
        Grown(path, "domuswap").apply(HOST, quiet)
        Grown(path, "domuswap").verify(HOST)
        assert run("blkid", "-p", "-s", "UUID", "-o", "value", path) == uuid
        run("e2fsck", "-f", "-n", path)

    def test_what_is_none_is_no_difference(self, disk: str) -> None:
        assert Grown(disk, "x").probe(HOST) is None
        assert Grown("/dev/nowhere7", "x").probe(HOST) is None
        Filesystem(disk, "x", "swap").consented(
            require_consents(
                HOST, [Filesystem(disk, "x")], Consents((f"{disk} {DISK_MIB << 20}",))
            )[disk].identity
        ).apply(HOST, quiet)
        assert Grown(disk, "x").probe(HOST) is None


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A path; loop devices of what lies there are gone at the end."""
    path = tmp_path / "guest one.img"
    yield path
    for loop in run("losetup", "--noheadings", "--output", "NAME", "-j", str(path)).split():
        run("losetup", "--detach", loop)


class TestGuestsFiles:
    def test_a_disk_file_grows_with_its_ext4_once_its_guest_is_down(self, file: Path) -> None:
        DiskFile(str(file), 24).apply(HOST, quiet)
        run("mkfs.ext4", "-q", str(file))
        run("debugfs", "-w", "-R", f"write {__file__} kept", str(file))
        wanted = DiskFile(str(file), 64)
        loop = run("losetup", "--find", "--show", str(file)).strip()
        waits = wanted.probe(HOST)
        assert waits is not None
        assert waits.stays.startswith(f"grow the disk file {file} from 24 to 64 MiB: its guest ")
        with pytest.raises(StepFailed, match="it is in use"):
            wanted.apply(HOST, quiet)
        assert file.stat().st_size == 24 << 20
        run("losetup", "--detach", loop)
        found = wanted.probe(HOST)
        assert found is not None and not found.stays
        wanted.apply(HOST, quiet)
        wanted.verify(HOST)
        run("e2fsck", "-f", "-n", str(file))
        assert run("debugfs", "-R", "cat kept", str(file)) == Path(__file__).read_text()
        assert file.stat().st_blocks * 512 >= 64 << 20

    def test_one_whose_ext4_was_left_behind_is_finished(self, file: Path) -> None:
        DiskFile(str(file), 24).apply(HOST, quiet)
        run("mkfs.ext4", "-q", str(file))
        run("fallocate", "-l", "64MiB", str(file))
        assert DiskFile(str(file), 64).probe(HOST) is not None
        DiskFile(str(file), 64).apply(HOST, quiet)
        DiskFile(str(file), 64).verify(HOST)

    def test_what_is_larger_is_said_and_stays(self, file: Path) -> None:
        for wanted in (DiskFile(str(file), 8), SwapFile(str(file), 8)):
            file.unlink(missing_ok=True)
            wanted.apply(HOST, quiet)
            found = replace(wanted, size_mib=4).probe(HOST)
            assert found is not None
            assert found.stays.endswith("has 8 MiB, the site's file says 4: none shrinks")

    def test_a_swap_file_waits_for_its_guest(self, file: Path) -> None:
        SwapFile(str(file), 4).apply(HOST, quiet)
        loop = run("losetup", "--find", "--show", str(file)).strip()
        waits = SwapFile(str(file), 8).probe(HOST)
        assert waits is not None and "shut that down" in waits.stays
        run("losetup", "--detach", loop)
        found = SwapFile(str(file), 8).probe(HOST)
        assert found is not None and not found.stays
        SwapFile(str(file), 8).apply(HOST, quiet)
        SwapFile(str(file), 8).verify(HOST)


class TestPartitionGone:
    def gone(self, disk: str, name: str) -> PartitionGone:
        here = site(disk, "a").numbered(partition_numbers(HOST, disk))
        return PartitionGone(disk, name, device(here, name))

    def test_it_goes_by_its_name_and_nothing_else_does(self, disk: str) -> None:
        installed(disk, "a", "b", "c")
        before = partitions_of(disk)
        wanted = self.gone(disk, "b")
        found = wanted.probe(HOST)
        assert found is not None and found.rows[0]["lost"] == "ext4 “b”, 24 MiB"
        serial = (f"{disk} {DISK_MIB << 20}",)
        with pytest.raises(ConsentNeeded, match="nobody has agreed to lose it: b "):
            require_consents(HOST, [wanted], Consents(serial))
        agreed = require_consents(HOST, [wanted], Consents(serial, ("b",)))
        wanted.consented(agreed[wanted.device].identity).apply(HOST, quiet)
        wanted.verify(HOST)
        after = partitions_of(disk)
        assert after == {name: each for name, each in before.items() if name != "b"}
        assert not Path(wanted.device).exists()
        # what comes into its place begins empty
        settled(site(disk, "a", "c", "d"))
        assert partitions_of(disk)["d"][:2] == before["b"][:2]
        assert (
            "ext4"
            not in subprocess.run(
                ["blkid", "-p", wanted.device], check=False, capture_output=True, text=True
            ).stdout
        )

    def test_what_is_mounted_stays(self, disk: str, tmp_path: Path) -> None:
        installed(disk, "a", "b")
        wanted = self.gone(disk, "b")
        identity = require_consents(
            HOST, [wanted], Consents((f"{disk} {DISK_MIB << 20}",), ("b",))
        )[wanted.device].identity
        place = mounted(wanted.device, tmp_path / "on")
        before = partitions_of(disk)
        try:
            assert "because it is mounted" in wanted.refusal(HOST)
            with pytest.raises(ConsentNeeded, match="in use"):
                require_consents(HOST, [wanted], Consents((), ("b",)))
            with pytest.raises(StepFailed, match="it is mounted"):
                wanted.consented(identity).apply(HOST, quiet)
        finally:
            run("umount", str(place))
        assert partitions_of(disk).keys() == before.keys()

    def test_nor_is_swap_that_is_in_use_or_what_has_another_name(self, disk: str) -> None:
        installed(disk, "a", "b")
        wanted = self.gone(disk, "b")
        run("mkswap", wanted.device)
        consents = Consents((f"{disk} {DISK_MIB << 20}",), ("b",))
        identity = require_consents(HOST, [wanted], consents)[wanted.device].identity
        run("swapon", wanted.device)
        try:
            with pytest.raises(ConsentNeeded, match="in use"):
                require_consents(HOST, [wanted], consents)
            with pytest.raises(CommandFailed, match="busy"):
                wanted.consented(identity).apply(HOST, quiet)
        finally:
            run("swapoff", wanted.device)
        other = replace(wanted, name="a").consented(identity)
        with pytest.raises(StepFailed, match="has another name"):
            other.apply(HOST, quiet)
        assert {"a", "b"} <= partitions_of(disk).keys()

    @pytest.mark.parametrize("name", ["dom0root", "esp", "domuswap"])
    def test_dom0s_own_are_none_of_these(self, name: str) -> None:
        with pytest.raises(BadInput, match=f"cannot remove the partition {name}: .* dom0's"):
            PartitionGone("/dev/vda", name, "/dev/vda4")
