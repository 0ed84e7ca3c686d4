"""What a plan says of a step that would destroy: refusals, what is lost, what nobody knows yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sites import lab_site
from tests.ssh.conftest import Sshd

from xenlab.chapter.chapter import Chapter
from xenlab.host import Host
from xenlab.journal import Journal
from xenlab.resources.disk import Filesystem, PartitionTable
from xenlab.resources.files import File
from xenlab.resources.guest import GuestConfigured, GuestRoot
from xenlab.site.disk_plan import Partition
from xenlab.site.schema import Ssh
from xenlab.transport.local import Local

HERE = Host(Local())
TABLE = (Partition("one", 8), Partition("two", 0))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """A block device of 64 MiB with a file system on it."""
    image = tmp_path / "disk.img"
    HERE.run(f"truncate -s 64M '{image}' && mkfs.ext4 -q -L precious '{image}'")
    name = HERE.run(f"losetup --find --show '{image}'").stdout.strip()
    yield name
    HERE.run(f"losetup --detach {name}")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "run")


def plan(sshd: Sshd, journal: Journal, disk: str, *may_wipe: str, name: str = "01_x") -> Chapter:
    ssh = Ssh(host=sshd.alias, config=str(sshd.config))
    site = lab_site(ssh=ssh, disk=disk, may_wipe=list(may_wipe))
    chapter = Chapter(name, site, journal, mode="plan")
    chapter.root = "/"
    return chapter


def last(journal: Journal) -> dict[str, Any]:
    return next(r for r in reversed(journal.records()) if r.get("phase") == "final")


def test_what_nobody_has_consented_to_is_a_refusal(sshd: Sshd, journal: Journal, disk: str) -> None:
    plan(sshd, journal, disk).ensure("01.2 Partition", PartitionTable(disk, TABLE))
    record = last(journal)
    assert record["status"] == "would be refused"
    assert f"path and size {disk} {64 << 20}" in record["message"]


def test_what_is_lost_is_said(sshd: Sshd, journal: Journal, disk: str) -> None:
    chapter = plan(sshd, journal, disk, f"{disk} {64 << 20}")
    chapter.ensure("01.2 Partition", PartitionTable(disk, TABLE))
    record = last(journal)
    assert record["status"] == "would change"
    rows = record["difference"][""]["rows"]
    assert rows[0]["device"] == disk
    assert rows[0]["lost"] == "ext4 “precious”, 64 MiB"


def test_a_disk_in_use_is_a_refusal_with_the_place(
    sshd: Sshd, journal: Journal, disk: str, tmp_path: Path
) -> None:
    place = tmp_path / "in use"
    HERE.run(f"mkdir '{place}' && mount {disk} '{place}'")
    try:
        chapter = plan(sshd, journal, disk, f"{disk} {64 << 20}")
        chapter.ensure("01.2 Partition", PartitionTable(disk, TABLE))
        record = last(journal)
        chapter.ensure("01.3 Make", Filesystem(disk, "other"))
        guests = {"g": GuestRoot("g", disk, "/no image", "g")}
        other = plan(sshd, Journal(tmp_path / "second"), "/dev/vdz", f"{disk} {64 << 20}")
        other.each("09.1 Unpack", guests)
        unpacked = last(other.journal)
        third = plan(sshd, Journal(tmp_path / "third"), "/dev/vdz")
        third.each("09.2 Configure", {"g": GuestConfigured("g", disk, ())})
        configured = last(third.journal)
    finally:
        HERE.run(f"umount '{place}'")
    assert record["status"] == "would be refused"
    assert f"in use ({place})" in record["message"]
    lost = record["difference"][""]["rows"][0]["lost"]
    assert lost == f"ext4 “precious”, 64 MiB, in use as {place}"
    assert "unknown until step 01.2" in last(journal)["message"]
    for each in (unpacked, configured):
        assert each["status"] == "would be refused"
        assert each["message"] == f"would be refused: cannot work on g: because {disk} is mounted"


def test_what_comes_after_a_new_disk_is_unknown(
    sshd: Sshd, journal: Journal, disk: str, tmp_path: Path
) -> None:
    chapter = plan(sshd, journal, disk, f"{disk} {64 << 20}")
    there = tmp_path / "there"
    there.write_text("x\n")
    chapter.ensure("01.1 Before", File(str(there), "x\n"))
    assert last(journal)["status"] == "ok"
    chapter.ensure("01.2 Partition", PartitionTable(disk, TABLE))
    chapter.ensure("01.3 Make", Filesystem(f"{disk}p2", "two"))
    assert "unknown until step 01.2" in last(journal)["message"]
    later = plan(sshd, journal, disk, name="02_x")
    later.ensure("02.1 After", File(str(there), "x\n"))
    record = last(journal)
    assert record["status"] == "would change"
    assert record["message"].startswith(f"unknown until step 01.2 has made {disk} anew")
    later.check("02.2 Holds", File(str(there), "x\n"))
    assert last(journal)["status"] == "would change"


def test_what_comes_after_a_new_partition_is_unknown(
    sshd: Sshd, journal: Journal, disk: str, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.write_text("x\n")
    chapter = plan(sshd, journal, "/dev/vdz", f"{disk} {64 << 20}", name="09_x")
    chapter.ensure("09.1 Make", Filesystem(disk, "other"))
    assert last(journal)["status"] == "would change" and "message" not in last(journal)
    chapter.ensure("09.2 Configure", File(str(there), "x\n"))
    plan(sshd, journal, "/dev/vdz", name="10_x").ensure("10.1 After", File(str(there), "x\n"))
    finals = {r["step"]: r for r in journal.records() if r.get("phase") == "final"}
    for record in (finals["09.2"], finals["10.1"]):
        assert record["status"] == "would change"
        assert record["message"].startswith(f"unknown until step 09.1 has made {disk} anew")
