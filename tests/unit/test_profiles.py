"""The machines of tests/machines/profiles: their files go together, and chapters take them."""

from __future__ import annotations

import re

import pytest
import yaml
from tests import profiles

from xenlab.cli.lab import _hardware
from xenlab.runs import execute
from xenlab.site.schema import Parameters, for_chapter, from_notebook, load
from xenlab_lab.hardware import SECOND_SERIAL, Hardware
from xenlab_lab.machine import serial_for

ROOT = profiles.FOLDER.parents[2]
EACH = pytest.mark.parametrize("name", profiles.NAMES)


def files(name: str) -> tuple[Hardware, Parameters]:
    return _hardware(profiles.hardware(name)), load(profiles.castle(name))


def test_there_are_eight_and_two_of_them_for_a_merge() -> None:
    assert len(profiles.NAMES) == 8
    assert set(profiles.TWO) < set(profiles.NAMES)


@EACH
def test_the_site_is_that_of_its_machine(name: str) -> None:
    hardware, site = files(name)
    assert (site.site, site.lab) == (name, name)
    assert site.firmware == (hardware.firmware or "bios")
    serial = serial_for(name) if hardware.serial else f"/dev/vda {16 << 30}"
    assert site.may_wipe == [serial, *([SECOND_SERIAL] if site.mirror else [])]
    cards = (site.uplink, *site.uplink_bond.members)
    for card in cards:
        assert card in (*hardware.macs, "auto", "eth0")
    assert len(cards) == hardware.network.cables
    assert site.uplink_vlan == hardware.network.vlan


@EACH
def test_the_site_is_in_the_network_of_its_machine(name: str) -> None:
    hardware, site = files(name)
    network = hardware.network
    _, address, relay = network.user(from_disk=True)
    assert site.package_proxy == f"http://{relay}"
    assert site.address.partition("/")[0] == (address or f"{relay.rpartition('.')[0]}.15")
    assert site.gateway == (network.gateway or "10.0.2.2")
    assert site.address.endswith("/32") == network.on_link


@EACH
def test_each_chapter_takes_what_it_is_given_of_the_site(name: str) -> None:
    """As far as `xenlab plan` gets before it asks the machine."""
    plan = execute.prepare(ROOT / "notebooks", [], profiles.castle(name), mode="plan")
    for chapter, values in plan.values.items():
        site = from_notebook(values)
        assert for_chapter(site, values) == for_chapter(plan.site, values), chapter


@EACH
def test_nothing_is_said_that_the_pages_for_a_machine_of_one_s_own_do_not_explain(
    name: str,
) -> None:
    """A key that parameters/debian.yaml has, or that docs/own-machine.md names."""
    example = yaml.safe_load((ROOT / "parameters" / "debian.yaml").read_text())
    page = (ROOT / "docs" / "own-machine.md").read_text()
    named = set(re.findall(r"`(\w+)[:`]|^ *(\w+):", page, re.MULTILINE))
    known = {*example, *(word for pair in named for word in pair)}
    assert profiles.values(name).keys() - known == set()


def test_they_differ_in_what_machines_differ_in() -> None:
    """Each row of what people have is in one of them at least."""
    all_of = [files(name) for name in profiles.NAMES]
    parts = [hardware for hardware, _ in all_of]
    sites = [site for _, site in all_of]
    assert {each.disk for each in parts} == {"nvme", "sata", "scsi", "usb", "virtio"}
    assert {each.rescue for each in parts} == {"lab", "debian", "debian-sudo"}
    assert {each.sector_bytes for each in parts} == {512, 4096}
    assert {each.serial for each in parts} == {True, False}
    assert any(each.second_disk_gib for each in parts) and any(each.memory_mib for each in parts)
    assert any(each.network.on_link for each in parts)
    assert {each.power for each in sites} == {"lab", "ipmi", "redfish"}
    assert {each.kernel for each in sites} == {"build", "distribution"}
    assert any(each.mirror for each in sites)
    assert {each.guest_disks for each in sites} == {"partition", "file", "lvm"}
    assert {each.release for each in sites} == {"bookworm", "trixie"}
    assert {each.dom0_ip_on_bridge for each in sites} == {True, False}
    assert any(each.ssh.become == "sudo" for each in sites)
    assert any(each.gateway6 == "auto" for each in sites)
