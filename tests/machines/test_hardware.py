"""Machines of other parts than the lab's: the rescue system drives their disks and cards."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from tests.whole_lab import said

from xenlab_lab.hardware import SECOND_SERIAL, Hardware
from xenlab_lab.lab import Lab
from xenlab_lab.media import RESCUE_USER

DEADLINE = 1200.0
OWN = "XENLAB-PARTS"
CARDS = "for it in /sys/class/net/e*; do readlink -f $it/device/driver; cat $it/carrier; done"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One lab, which each test makes anew of other parts."""
    it = Lab("parts", memory=1024, disk_gib=1)
    try:
        yield it
    finally:
        it.remove()


def started(lab: Lab, **parts: Any) -> None:
    """Start its rescue system on such a machine; no stage is needed to look at the disks."""
    lab.reset()
    none = lab.folder, lab.folder
    lab.up(hardware=Hardware.model_validate(parts), make_stage=lambda _: none, seconds=DEADLINE)


def disks(lab: Lab) -> list[list[str]]:
    """What lsblk says of each disk but its size, once udev knows them all."""
    listing = said(lab, "udevadm settle && lsblk -d -J -e 7 -o NAME,TRAN,SERIAL,LOG-SEC", DEADLINE)
    return [list(row.values()) for row in json.loads(listing)["blockdevices"]]


def cards(lab: Lab) -> list[list[str]]:
    """The driver of each network card, and whether it has a cable."""
    words = said(lab, CARDS, DEADLINE).split()
    found = zip(words[::2], words[1::2], strict=True)
    return sorted([driver.rpartition("/")[2], cable] for driver, cable in found)


def test_a_uefi_machine_with_nvme_disks_of_large_sectors_and_two_cards(lab: Lab) -> None:
    nics = [{"model": "e1000e"}, {"model": "e1000"}]
    started(lab, firmware="uefi", disk="nvme", sector_bytes=4096, second_disk_gib=1, nics=nics)
    wanted = [["nvme0n1", "nvme", OWN, 4096], ["nvme1n1", "nvme", SECOND_SERIAL, 4096]]
    assert sorted(disks(lab)) == wanted
    assert cards(lab) == [["e1000", "0"], ["e1000e", "1"]]
    assert "Boot" in said(lab, "ls /sys/firmware/efi/efivars", DEADLINE)
    # remembered: whoever boots it again need not know
    lab.boot("rescue", wait=True)
    assert sorted(disks(lab)) == wanted


@pytest.mark.parametrize(
    ("parts", "disk", "driver"),
    [
        ({"disk": "sata", "nics": [{"model": "e1000"}]}, ["sda", "sata", OWN, 512], "e1000"),
        ({"disk": "scsi", "sector_bytes": 4096}, ["sda", None, OWN, 4096], "virtio_net"),
    ],
    ids=["sata", "scsi"],
)
def test_a_machine_with_another_disk(
    lab: Lab, parts: dict[str, Any], disk: list[Any], driver: str
) -> None:
    started(lab, **parts)
    assert disks(lab) == [disk]
    assert cards(lab) == [[driver, "1"]]


def test_a_usb_disk_and_a_snapshot_of_its_machine(lab: Lab) -> None:
    started(lab, disk="usb")
    wanted = [["sda", "usb", OWN, 512]]
    assert disks(lab) == wanted
    lab.snapshot("one")
    lab.down(hard=True)
    lab.restore("one")
    assert disks(lab) == wanted


def test_a_plain_debian_as_hosters_boot_it(lab: Lab) -> None:
    started(lab, rescue="debian", disk="sata", nics=[{"model": "e1000"}])
    assert disks(lab) == [["sda", "sata", OWN, 512]]
    assert cards(lab) == [["e1000", "1"]]
    state = said(
        lab, "cat /proc/1/comm; systemctl is-active systemd-udevd systemd-networkd ssh", DEADLINE
    )
    assert state.split() == ["systemd", "active", "active", "active"]
    assert said(lab, "ls /etc/xenlab-rescue 2>&1 || :", DEADLINE).startswith("ls: cannot access")
    lab.down()
    assert "reboot: Power down" in lab.machine.console_log.read_text(errors="replace")


def test_a_user_of_the_rescue_system_becomes_root(lab: Lab) -> None:
    started(lab, rescue="debian-sudo")
    words = lab.access.argv("dom0", ["id -un && sudo -n id -un"])
    words[1:1] = ["-l", RESCUE_USER]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.stdout.split() == ["admin", "root"], done.stderr
