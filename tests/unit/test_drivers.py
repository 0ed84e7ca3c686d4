"""The machine's drivers and dom0's kernel: /sys as it is laid out, the kernel's own Makefiles."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sites import lab_site
from tests.unit.rootdir import root_with
from tests.unit.test_kernel import archive, silent, sources_of

from xenlab.chapter.chapter import Chapter
from xenlab.chapters.configuration import BRIDGE_SETTINGS, bridge_settings, uplink_named
from xenlab.chapters.ingredients import (
    DriversBuilt,
    UplinkFound,
    driver_table,
    look_at_drivers,
    uplink_found,
)
from xenlab.chapters.kernel import (
    UEFI_OPTIONS,
    Driver,
    Rule,
    dom0_configured,
    lacking,
    parse_makefile,
    parse_makefiles,
    ways_to_build,
)
from xenlab.command import CONTROLLER
from xenlab.errors import BadInput, StepFailed
from xenlab.host import Host
from xenlab.platform.interfaces import NAME_RULE
from xenlab.resources.base import Difference
from xenlab.resources.kernel import options, parse_config
from xenlab.resources.network import look_at_nics, the_nic
from xenlab.runs.script import Runbook
from xenlab.site.schema import Parameters
from xenlab.site.uplink import card_name, card_names, uplink_name
from xenlab.transport.local import Local

__all__ = ["archive"]

RECORDED = Path(__file__).parents[1] / "recorded"
RULES = parse_makefiles((RECORDED / "kernel-makefiles.txt").read_text())
CONFIG = parse_config((RECORDED / "kernel-dom0-6.1.config").read_text())
HOST = Host(Local())

ONE, TWO = "52:54:00:aa:bb:01", "52:54:00:aa:bb:02"
BUSY = "fe:ff:ff:ff:ff:ff"

# -- a machine: what is below /sys, as `find /sys/devices -name driver` shows it on real ones


class Machine:
    """A /sys and a /proc/net in a directory, seen from inside."""

    def __init__(self, root: Path) -> None:
        self.host = root_with(root, "tr", "sed")
        # with ip(8) it would be this machine that is asked
        (root / "bin/ip").write_text("#!/bin/sh\ncat /dev/null /permanent/$5 2> /dev/null\n")
        (root / "bin/ip").chmod(0o755)
        self.root = root
        self.routes()

    def routes(self, *interfaces: str, six: str = "") -> None:
        """Which interfaces have a default route."""
        head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        lines = [
            f"{each}\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n" for each in interfaces
        ]
        lines.append("eth7\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n")
        self._file("proc/net/route", head + "".join(lines))
        zeros = "0" * 32
        rest = f"{zeros} 00 fe800000000000000000000000000001 00000400 00000003 00000000 00000003"
        self._file("proc/net/ipv6_route", f"fe8{'0' * 29} 40 {rest}     eth7\n")
        if six:
            self._file("proc/net/ipv6_route", f"{zeros} 00 {rest}     {six}\n")

    def device(
        self, path: str, bus: str = "", driver: str = "", module: str = "", kind: str = ""
    ) -> Path:
        """A device, with its driver and the driver's module, where it is one."""
        place = self.root / "sys/devices" / path
        place.mkdir(parents=True, exist_ok=True)
        if kind:
            (place / "class").write_text(f"{kind}\n")
        if bus:
            self._link(place / "subsystem", self._folder(f"sys/bus/{bus}"))
        if driver:
            home = self._folder(f"sys/bus/{bus}/drivers/{driver}")
            self._link(place / "driver", home)
            if module:
                self._link(home / "module", self._folder(f"sys/module/{module}"))
        return place

    def known(self, kind: str, path: str) -> None:
        """A disk or an interface by its name, of the class ``block`` or ``net``."""
        place = self.device(path)
        self._link(self._folder(f"sys/class/{kind}") / place.name, place)
        if kind == "block":
            self._file(f"dev/{place.name.replace('!', '/')}", "")

    def card(self, path: str, mac: str, *, now: str = "", kind: str = "1") -> None:
        """A network card of a device that is there; ``now``: a MAC address that it has for now."""
        self.known("net", path)
        self._link(self.device(path) / "device", self.device(path).parents[1])
        (self.device(path) / "address").write_text(f"{now or mac}\n")
        (self.device(path) / "type").write_text(f"{kind}\n")
        if now:
            text = f"2: x: <UP>\\    link/ether {now} brd ff:ff:ff:ff:ff:ff permaddr {mac} \n"
            self._file(f"permanent/{path.rpartition('/')[2]}", text)

    def made_of(self, path: str, *links: tuple[str, str]) -> None:
        """What a device is made of: the name of each link, and where it leads."""
        for name, target in links:
            self._link(self.device(path) / name, self.device(target))

    def drivers(self, disk: str, uplink: str) -> list[str]:
        """What a look finds, in short."""
        found = look_at_drivers(self.host, disk, uplink)
        return [f"{d.use} {d.device} {d.bus}:{d.name}:{d.module}" for d in found]

    def _folder(self, path: str) -> Path:
        place = self.root / path
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _file(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def _link(self, link: Path, target: Path) -> None:
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(target, link.parent))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


NVME = "pci0000:00/0000:00:1d.0/0000:01:00.0"
NIC = "pci0000:00/0000:00:1f.6"


def virtual(machine: Machine, *, modules: bool) -> None:
    """The lab's, and this one's: recorded from a kernel without modules, as dom0's is."""
    for number, name, kind in ((2, "virtio_blk", "block/vda"), (3, "virtio_net", "net/eth0")):
        pci = f"pci0000:00/0000:00:0{number}.0"
        machine.device(pci, "pci", "virtio-pci", "virtio_pci" * modules)
        machine.device(f"{pci}/virtio{number - 1}", "virtio", name, name * modules)
        machine.known(kind.partition("/")[0], f"{pci}/virtio{number - 1}/{kind}")


def mini_pc(machine: Machine) -> None:
    """An NVMe behind a port of its own, and a network card on the board."""
    machine.device("pci0000:00/0000:00:1d.0", "pci", "pcieport", "pcieportdrv", "0x060400")
    machine.device(NVME, "pci", "nvme", "nvme", "0x010802")
    machine.device(f"{NVME}/nvme/nvme0", "nvme")
    machine.known("block", f"{NVME}/nvme/nvme0/nvme0n1")
    machine.device(NIC, "pci", "e1000e", "e1000e", "0x020000")
    machine.known("net", f"{NIC}/net/enp0s31f6")


LAB_LOOKS = [
    "disk virtio1 virtio:virtio_blk:{blk}",
    "disk 0000:00:02.0 pci:virtio-pci:{pci}",
    "uplink virtio2 virtio:virtio_net:{net}",
    "uplink 0000:00:03.0 pci:virtio-pci:{pci}",
]


@pytest.mark.parametrize("modules", [True, False])
def test_the_labs_machine(machine: Machine, modules: bool) -> None:
    """Its rescue system has modules, its dom0 has none."""
    virtual(machine, modules=modules)
    machine.routes("eth0")
    names = {"blk": "virtio_blk", "pci": "virtio_pci", "net": "virtio_net"}
    known = {key: name * modules for key, name in names.items()}
    assert machine.drivers("/dev/vda", "eth0") == [line.format(**known) for line in LAB_LOOKS]


def test_this_machine() -> None:
    """Whatever it is: each line that its /sys gives is understood, a disk that is none is not."""
    for each in look_at_drivers(HOST, "/dev/no'where", "no'thing; exit 1"):
        assert each.use == "uplink" and each.device and each.bus and each.name


def test_an_nvme_behind_a_bridge_and_an_uplink_that_is_called_otherwise_later(
    machine: Machine,
) -> None:
    """The bridge is bound to a driver that nothing needs."""
    mini_pc(machine)
    found = ["disk 0000:01:00.0 pci:nvme:nvme"]
    assert machine.drivers("/dev/nvme0n1", "eth0") == found
    card = "uplink 0000:00:1f.6 pci:e1000e:e1000e"
    assert machine.drivers("/dev/nvme0n1", "enp0s31f6") == [*found, card]
    machine.routes("enp0s31f6")
    assert machine.drivers("/dev/nvme0n1", "eth0") == [*found, card]
    machine.routes(six="enp0s31f6")
    assert machine.drivers("/dev/nvme0n1", "eth0") == [*found, card]


def test_a_disk_by_its_id(machine: Machine) -> None:
    mini_pc(machine)
    ids = machine.root / "dev/disk/by-id"
    ids.mkdir(parents=True)
    (ids / "nvme-EXAMPLE").symlink_to("../../nvme0n1")
    found = machine.drivers("/dev/disk/by-id/nvme-EXAMPLE", "eth0")
    assert found == ["disk 0000:01:00.0 pci:nvme:nvme"]


def test_an_nvme_that_has_several_paths_and_a_controller_of_them(machine: Machine) -> None:
    """The disk is virtual then; its subsystem leads to the paths (VMD: a bus of its own)."""
    vmd = "pci0000:00/0000:00:0e.0"
    machine.device(vmd, "pci", "vmd", "vmd", "0x010400")
    disk = f"{vmd}/pci10000:e0/10000:e0:06.0"
    machine.device(disk, "pci", "nvme", "nvme", "0x010802")
    machine.device(f"{disk}/nvme/nvme0", "nvme")
    subsystem = "virtual/nvme-subsystem/nvme-subsys0"
    machine.known("block", f"{subsystem}/nvme0n1")
    machine.made_of(subsystem, ("nvme0", f"{disk}/nvme/nvme0"))
    assert machine.drivers("/dev/nvme0n1", "eth0") == [
        "disk 10000:e0:06.0 pci:nvme:nvme",
        "disk 0000:00:0e.0 pci:vmd:vmd",
    ]


def test_a_sata_disk_whose_scsi_layer_is_built_in(machine: Machine) -> None:
    ahci = "pci0000:00/0000:00:17.0"
    machine.device(ahci, "pci", "ahci", "ahci", "0x010601")
    disk = f"{ahci}/ata1/host0/target0:0:0/0:0:0:0"
    machine.device(disk, "scsi", "sd")
    machine.known("block", f"{disk}/block/sda")
    assert machine.drivers("/dev/sda", "eth0") == [
        "disk 0:0:0:0 scsi:sd:",
        "disk 0000:00:17.0 pci:ahci:ahci",
    ]


def test_a_vlan_on_a_bond_and_an_array(machine: Machine) -> None:
    for number in (0, 1):
        card = f"pci0000:00/0000:04:00.{number}"
        machine.device(card, "pci", "igb", "igb", "0x020000")
        machine.known("net", f"{card}/net/eth{number}")
    machine.known("net", "virtual/net/bond0")
    ports = [(f"lower_eth{n}", f"pci0000:00/0000:04:00.{n}/net/eth{n}") for n in (0, 1)]
    machine.made_of("virtual/net/bond0", *ports)
    machine.known("net", "virtual/net/bond0.5")
    machine.made_of("virtual/net/bond0.5", ("lower_bond0", "virtual/net/bond0"))
    raid = "pci0000:00/0000:03:00.0"
    machine.device(raid, "pci", "hpsa", "hpsa", "0x010400")
    machine.known("block", f"{raid}/block/cciss!c0d0")
    machine.known("block", "virtual/block/md0")
    machine.made_of("virtual/block/md0/slaves", ("cciss!c0d0", f"{raid}/block/cciss!c0d0"))
    assert machine.drivers("/dev/cciss/c0d0", "bond0.5") == [
        "disk 0000:03:00.0 pci:hpsa:hpsa",
        "uplink 0000:04:00.0 pci:igb:igb",
        "uplink 0000:04:00.1 pci:igb:igb",
    ]
    assert machine.drivers("/dev/md0", "none") == ["disk 0000:03:00.0 pci:hpsa:hpsa"]


def two_cards(machine: Machine) -> None:
    for number, mac in enumerate((ONE, TWO)):
        card = f"pci0000:00/0000:04:00.{number}"
        machine.device(card, "pci", "igb", "igb", "0x020000")
        machine.card(f"{card}/net/enp4s{number}", mac)


def meant(machine: Machine, uplink: str) -> str:
    return the_nic(uplink, look_at_nics(machine.host)).name


def refusal(machine: Machine, uplink: str) -> list[str]:
    """What chapter 00 says of an uplink that cannot be one."""
    with pytest.raises(BadInput) as refused:
        UplinkFound(uplink).probe(machine.host)
    return str(refused.value).splitlines()


def test_a_card_by_its_address_and_the_one_of_the_default_route(machine: Machine) -> None:
    two_cards(machine)
    machine.routes("enp4s1")
    assert meant(machine, ONE.upper()) == "enp4s0"
    assert meant(machine, "auto") == "enp4s1"
    for uplink in (ONE, "auto"):
        (there,) = uplink_found(lab_site(uplink=uplink))
        assert there.probe(machine.host) is None
    assert uplink_found(lab_site(uplink="enp4s9", dom0_options="")) == ()


def test_a_route_of_ipv6_counts_where_there_is_no_other(machine: Machine) -> None:
    two_cards(machine)
    machine.routes(six="enp4s0")
    assert meant(machine, "auto") == "enp4s0"
    machine.routes("enp4s1", six="enp4s0")
    assert meant(machine, "auto") == "enp4s1"


def test_the_route_of_a_vlan_on_a_bridge(machine: Machine) -> None:
    two_cards(machine)
    for name, below in (
        ("br0", "pci0000:00/0000:04:00.1/net/enp4s1"),
        ("br0.7", "virtual/net/br0"),
    ):
        machine.known("net", f"virtual/net/{name}")
        machine.made_of(below, (f"upper_{name}", f"virtual/net/{name}"))
    machine.routes("br0.7")
    assert meant(machine, "auto") == "enp4s1"


def test_what_is_no_card_is_none(machine: Machine) -> None:
    two_cards(machine)
    machine.device("vif-1-0", "xen-backend", "vif")
    machine.card("vif-1-0/net/vif1.0", BUSY)
    machine.device("pci0000:00/0000:05:00.0", "pci", "mlx4_core")
    machine.card("pci0000:00/0000:05:00.0/net/ib0", "80:00:02:08", kind="32")
    machine.known("net", "virtual/net/lo")
    assert [nic.name for nic in look_at_nics(machine.host)] == ["enp4s0", "enp4s1"]


def test_an_address_that_no_card_has_or_that_two_have(machine: Machine) -> None:
    two_cards(machine)
    cards = f"enp4s0 {ONE}, enp4s1 {TWO}"
    assert refusal(machine, "52:54:00:AA:BB:09") == [
        "no network card has the MAC address 52:54:00:AA:BB:09",
        f"Try: write one of these MAC addresses as uplink: {cards}",
    ]
    machine.device("pci0000:00/0000:06:00.0", "pci", "igb")
    machine.card("pci0000:00/0000:06:00.0/net/enp6s0", ONE)
    assert refusal(machine, ONE)[0] == f"2 network cards have the MAC address {ONE}"


def test_a_default_route_over_two_cards_or_none(machine: Machine) -> None:
    two_cards(machine)
    tried = f"Try: write one of these MAC addresses as uplink: enp4s0 {ONE}, enp4s1 {TWO}"
    sentence = "uplink: auto is the one network card of the default route, and there is"
    assert refusal(machine, "auto") == [f"{sentence} none", tried]
    machine.routes("enp4s0", "enp4s1")
    assert refusal(machine, "auto") == [f"{sentence} enp4s0, enp4s1", tried]


def test_an_installed_dom0_finds_its_card_again(machine: Machine) -> None:
    """Its card has lent its address to the pair, and the route is not over it."""
    for number, name, mac in ((0, "puplink0", ONE), (1, "eth1", TWO)):
        card = f"pci0000:00/0000:04:00.{number}"
        machine.device(card, "pci", "igb", "igb", "0x020000")
        machine.card(f"{card}/net/{name}", mac, now=BUSY if name == "puplink0" else "")
    machine.routes("uplink0", "eth1")
    assert meant(machine, "auto") == meant(machine, ONE) == "puplink0"


@pytest.mark.parametrize("uplink", [TWO.upper(), "auto"])
def test_chapter_04_has_udev_name_the_card(machine: Machine, uplink: str) -> None:
    two_cards(machine)
    machine.routes("enp4s1")
    chapter = chapter_of(lab_site(uplink=uplink), machine)
    (rule,) = uplink_named(chapter)
    assert rule.probe(machine.host) is not None
    rule.apply(machine.host, silent)
    (line,) = (machine.root / NAME_RULE.lstrip("/")).read_text().splitlines()[1:]
    assert line.endswith(f'ATTR{{address}}=="{TWO}", NAME="{uplink_name(chapter.site)}"')
    # once more in the dom0 that came of it, and in one of which the bridge is on another interface
    settings = machine.root / BRIDGE_SETTINGS.lstrip("/")
    settings.parent.mkdir(parents=True)
    settings.write_text(bridge_settings(chapter.site, "").text())
    (rule,) = uplink_named(chapter)
    assert rule.probe(machine.host) is None
    settings.write_text(bridge_settings(lab_site(), "").text())
    with pytest.raises(BadInput, match=r"its bridge is on eth0\nTry: write uplink: eth0, as "):
        uplink_named(chapter)


@pytest.mark.parametrize("uplink", ["auto", ONE])
def test_a_script_says_where_a_card_must_be_named(uplink: str) -> None:
    site = lab_site(uplink=uplink)
    written = Runbook("04_grub", site)
    written.ensure("04.5", lambda: uplink_named(cast(Chapter, written)))
    ((place, text),) = written.steps[0].blocks()
    if uplink == "auto":
        assert place == CONTROLLER
        assert "write its MAC address as uplink\nexit 1" in text
    else:
        assert place == "/mnt/dom0"
        assert f'ATTR{{address}}=="{ONE}"' in text


def test_the_card_of_a_vlan_has_its_name_and_keeps_it(machine: Machine) -> None:
    two_cards(machine)
    site = lab_site(uplink=ONE, uplink_vlan=7)
    assert (card_name(site), uplink_name(site)) == ("uplink0", "vlan7")
    settings = machine.root / BRIDGE_SETTINGS.lstrip("/")
    settings.parent.mkdir(parents=True)
    settings.write_text(bridge_settings(site, "").text())
    assert f'"{ONE}", NAME="uplink0"' in uplink_named(chapter_of(site, machine))[0].text()
    settings.write_text(bridge_settings(lab_site(uplink_vlan=7), "").text())
    with pytest.raises(BadInput, match=r"its bridge is on eth0\nTry: write uplink: eth0, as "):
        uplink_named(chapter_of(site, machine))


def test_the_cards_of_a_bond_have_their_names_and_keep_them(machine: Machine) -> None:
    two_cards(machine)
    site = lab_site(uplink=ONE, uplink_bond={"members": [TWO, "eth7"]}, uplink_vlan=7)
    assert card_names(site) == ("uplink0", "uplink1", "eth7")
    assert uplink_name(site) == "vlan7"
    assert uplink_name(lab_site(uplink_bond={"members": ["eth7"]})) == "bond0"
    settings = machine.root / BRIDGE_SETTINGS.lstrip("/")
    settings.parent.mkdir(parents=True)
    settings.write_text(bridge_settings(site, "").text())
    rule = uplink_named(chapter_of(site, machine))[0].text()
    assert f'"{ONE}", NAME="uplink0"' in rule
    assert f'"{TWO}", NAME="uplink1"' in rule and rule.count("NAME=") == 2
    others = lab_site(uplink="eth0", uplink_bond={"members": [TWO]})
    assert 'NAME="uplink0"' not in uplink_named(chapter_of(others, machine))[0].text()


def test_each_card_of_a_bond_is_looked_for(machine: Machine) -> None:
    two_cards(machine)
    lost = "52:54:00:00:00:0f"
    site = lab_site(uplink=ONE, uplink_bond={"members": [TWO, "eth7", lost]})
    first, second, third = uplink_found(site)
    assert first.probe(machine.host) is None and second.probe(machine.host) is None
    with pytest.raises(BadInput, match=f"no network card has the MAC address {lost}"):
        third.probe(machine.host)


def test_a_name_is_a_name_and_nothing_is_looked_at() -> None:
    nobody = cast(Chapter, SimpleNamespace(site=lab_site(uplink="enp4s0", dom0_options="")))
    assert uplink_named(nobody) == ()
    assert uplink_name(nobody.site) == "enp4s0"


def test_a_dom0_whose_bridge_has_guests_at_its_ports(machine: Machine) -> None:
    virtual(machine, modules=False)
    machine.device("vif-1-0", "xen-backend", "vif")
    machine.known("net", "vif-1-0/net/vif1.0")
    machine.known("net", "virtual/net/xenbr0")
    eth0 = "pci0000:00/0000:00:03.0/virtio2/net/eth0"
    ports = ("lower_eth0", eth0), ("lower_vif1.0", "vif-1-0/net/vif1.0")
    machine.made_of("virtual/net/xenbr0", *ports)
    machine.routes("xenbr0")
    found = look_at_drivers(machine.host, "/dev/vda", "eth0")
    assert [each.name for each in found] == ["virtio_blk", "virtio-pci", "virtio_net", "virtio-pci"]


# -- which options: Linux 6.1.176's own Makefiles, and its config as the lab's


def driver(text: str) -> Driver:
    """A driver by bus, name and module."""
    return Driver("disk", "0000:00:00.0", *text.split(":"))


@pytest.mark.parametrize("own", [(), UEFI_OPTIONS])
@pytest.mark.parametrize(
    "text",
    [
        *("virtio:virtio_blk:virtio_blk", "pci:virtio-pci:virtio_pci"),
        *("virtio:virtio_net:virtio_net", "virtio:virtio_blk:"),
        *("pci:virtio-pci:", "virtio:virtio_net:"),
    ],
)
def test_dom0_s_kernel_has_the_labs_drivers(text: str, own: tuple[str, ...]) -> None:
    assert lacking(driver(text), RULES, options("dom0", own), CONFIG) == ()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("pci:nvme:nvme", "BLK_DEV_NVME"),
        ("pci:e1000e:e1000e", "E1000E"),
        ("pci:vmd:vmd", "VMD"),
        ("pci:ahci:ahci", "ATA SATA_AHCI"),
        ("scsi:sd:sd_mod", "SCSI BLK_DEV_SD"),
        # built in: known by its name alone, which parts of quite other drivers have as well
        ("scsi:sd:", "SCSI BLK_DEV_SD"),
    ],
)
def test_what_it_lacks_of_other_machines(text: str, lines: str) -> None:
    wanted = tuple(lines.split())
    assert lacking(driver(text), RULES, options("dom0"), CONFIG) == wanted
    complete = CONFIG | dict.fromkeys(wanted, "y")
    assert lacking(driver(text), RULES, options("dom0"), complete) == ()
    # a module is nothing to a kernel without modules
    loose = CONFIG | dict.fromkeys(wanted, "m")
    assert lacking(driver(text), RULES, options("dom0"), loose) == wanted


@pytest.mark.parametrize("text", ["pci:nosuch:nosuch", "pci:sd:sd", "pci:Generic PHY:", "x:obj:"])
def test_what_no_makefile_names_is_not_guessed(text: str) -> None:
    assert lacking(driver(text), RULES, options("dom0"), CONFIG) is None


def test_what_our_own_list_switches_off_on_the_way_is_switched_on_again() -> None:
    """usb/ is built by any of several options, of which USB_SUPPORT is off, and hides the rest."""
    rules = parse_makefiles(
        "==> drivers/Makefile <==\nobj-$(CONFIG_USB_SUPPORT) += usb/\nobj-$(CONFIG_PCI) += usb/\n"
        "==> drivers/usb/Makefile <==\nobj-$(CONFIG_USB) += core/\n"
        "==> drivers/usb/core/Makefile <==\nusbcore-y := usb.o \\\n\thub.o # ends here\n"
        "obj-$(CONFIG_USB)\t\t+= usbcore.o\n"
    )
    for text in ("usb:usb:usbcore", "usb:usb:"):
        found = lacking(driver(text), rules, options("dom0"), CONFIG)
        assert found == ("USB_SUPPORT", "USB")


def test_the_forms_that_makefiles_are_written_in() -> None:
    text = (
        "obj-$(CONFIG_A) += a.o b.o sub/\nobj-y:=c.o\n  obj-m +=d.o\n"
        "e-objs := f.o g/h.o\ne-$(CONFIG_I) += i.o\nobj-$(subst m,y,$(CONFIG_J)) += j.o\n"
        "obj-${CONFIG_K} += k.o\n# obj-y += l.o\nccflags-y := -DX\nifdef CONFIG_M\nobj-y ?= m.o\n"
        "endif\n\t$(call if_changed,x) obj-y\n"
    )
    found = {rule.part: (rule.whole, rule.option) for rule in parse_makefile(text)}
    assert found.pop("-DX") == ("ccflags", "")
    assert found == {
        **{"a.o": ("obj", "A"), "b.o": ("obj", "A"), "sub/": ("obj", "A")},
        **{"c.o": ("obj", ""), "d.o": ("obj", ""), "f.o": ("e", ""), "g/h.o": ("e", "")},
        **{"i.o": ("e", "I"), "j.o": ("obj", "J"), "k.o": ("obj", "K"), "m.o": ("obj", "")},
    }


@given(st.text(), st.text(min_size=1))
def test_any_text_can_be_read_as_a_makefile(text: str, name: str) -> None:
    rules = {"drivers": parse_makefile(text)}
    assert lacking(Driver("disk", "", "pci", name, ""), rules, [], {}) in (None, ()) or rules


# what make itself takes of such files, as kbuild has it read them
OBJECTS = ["a", "b_c", "d", "e"]
SYMBOLS = ["ONE", "TWO", "THREE", ""]
FOLDERS = ["drivers", "drivers/x", "drivers/x/y", "drivers/z"]
PRINT = """
include {file}
all:
	@echo obj $(obj-y)
	@echo a $(a-y) $(a-objs)
	@echo d $(d-y) $(d-objs)
"""

rule_sets = st.lists(
    st.one_of(
        st.builds(
            Rule,
            st.just("obj"),
            st.sampled_from(SYMBOLS),
            st.sampled_from([*(f"{name}.o" for name in OBJECTS), "x/", "y/", "z/", "x/y/"]),
        ),
        st.builds(
            Rule,
            st.sampled_from(["a", "d"]),
            st.sampled_from(SYMBOLS),
            st.sampled_from(["e.o", "b_c.o"]),
        ),
    ),
    max_size=6,
)


def written(rules: list[Rule], draw: Any) -> str:
    """The rules as a person could have written them."""
    text = "# SPDX-License-Identifier: GPL-2.0\n\n"
    for rule in rules:
        ends = [f"$(CONFIG_{rule.option})"] if rule.option else ["y"]
        if not rule.option and rule.whole != "obj":
            ends.append("objs")
        blank = st.sampled_from([" ", "\t\t", " \\\n\t"])
        end, near, far = draw(st.sampled_from(ends)), draw(blank), draw(blank)
        remark = draw(st.sampled_from(["", "  # why", " # and \\"]))
        part = rule.part.replace("_", draw(st.sampled_from("_-")))
        text += f"{rule.whole}-{end}{near}+={far}{part}{remark}\n"
    # a comment that goes on ends here
    return f"{text}\n"


def built_by_make(folders: dict[str, str], on: set[str]) -> tuple[set[str], set[str]]:
    """The modules, and the parts of modules, that make finds for these options."""
    words = [f"CONFIG_{symbol}=y" for symbol in on]
    modules: set[str] = set()
    parts: set[str] = set()
    with tempfile.TemporaryDirectory() as place:
        todo = ["drivers"]
        for folder in todo:
            (Path(place) / "Makefile").write_text(folders.get(folder, ""))
            script = PRINT.format(file=f"{place}/Makefile")
            done = subprocess.run(
                ["make", "-s", "-f", "-", *words], input=script, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            lines = (line.split() for line in done.stdout.splitlines())
            own = {first: set(rest) for first, *rest in lines}
            for word in own.pop("obj"):
                if word.endswith("/"):
                    todo += (
                        []
                        if f"{folder}/{word}" in (f"{t}/" for t in todo)
                        else [f"{folder}/{word}"[:-1]]
                    )
                    continue
                modules.add(word.replace("-", "_"))
                parts |= {part.replace("-", "_") for part in own.get(word.removesuffix(".o"), ())}
    return modules, parts


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_read_is_what_make_builds(data: st.DataObject) -> None:
    wanted = {folder: data.draw(rule_sets) for folder in FOLDERS}
    texts = {folder: written(rules, data.draw) for folder, rules in wanted.items()}
    rules = {folder: parse_makefile(text) for folder, text in texts.items()}
    on = data.draw(st.sets(st.sampled_from(SYMBOLS[:3])))
    config = dict.fromkeys(on, "y")
    # a folder that nobody names is taken for built
    for folder in FOLDERS[1:]:
        parent, _, name = folder.rpartition("/")
        ways = [rule for rule in rules[parent] if (rule.whole, rule.part) == ("obj", f"{name}/")]
        far = [r for r in rules["drivers"] if f"drivers/{r.part}" == f"{folder}/"]
        if not ways and not far:
            rules[parent].append(Rule("obj", "", f"{name}/"))
            texts[parent] += f"obj-y += {name}/\n"
    modules, parts = built_by_make(texts, on)
    for name in OBJECTS:
        known = lacking(Driver("disk", "", "none", name, name), rules, [], config)
        assert (known == ()) == (f"{name}.o" in modules), (name, known, texts, on)
        known = lacking(Driver("disk", "", "none", name, ""), rules, [], config)
        assert (known == ()) == (f"{name}.o" in modules | parts), (name, known, texts, on)


# -- the check, with sources in miniature that hold the real Makefiles


@pytest.fixture
def site(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Parameters:
    """A site whose kernel sources hold the recorded Makefiles; they are cached beside them."""
    with tempfile.TemporaryDirectory() as place:
        with tarfile.open(archive) as tar:
            tar.extractall(place, filter="data")
        recorded = (RECORDED / "kernel-makefiles.txt").read_text()
        parts = re.split(r"^==> (.*) <==\n", recorded, flags=re.MULTILINE)
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            file = Path(place) / "linux-tiny" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        # what Kconfig has on by default
        makefile = Path(place) / "linux-tiny" / "Makefile"
        nothing = "echo '# CONFIG_NOTHING is not set'"
        makefile.write_text(makefile.read_text().replace(nothing, "echo CONFIG_NET_VENDOR_INTEL=y"))
        with tarfile.open(archive, "w:xz") as tar:
            tar.add(f"{place}/linux-tiny", "linux-tiny")
    monkeypatch.setenv("XENLAB_CACHE", str(archive.parent / "cache"))
    return lab_site(**sources_of(archive))


def chapter_of(site: Parameters, machine: Machine) -> Chapter:
    host = machine.host
    return cast(Chapter, SimpleNamespace(site=site, host=host, target=host, controller=HOST))


def configured(site: Parameters, machine: Machine) -> None:
    """What step 00.6 does."""
    for resource in dom0_configured(chapter_of(site, machine)):
        if resource.probe(HOST) is not None:
            resource.apply(HOST, silent)
        resource.verify(HOST)


def found(site: Parameters, machine: Machine) -> Difference | None:
    """What step 00.8 finds."""
    return DriversBuilt(site, HOST).probe(machine.host)


def test_the_labs_machine_passes(site: Parameters, machine: Machine) -> None:
    virtual(machine, modules=True)
    before = found(site, machine)
    assert before is not None and before.summary.endswith("once that is configured")
    assert before.stays == ""
    configured(site, machine)
    assert found(site, machine) is None
    table = driver_table(chapter_of(site, machine))
    assert list(table["driver"]) == ["virtio_blk", "virtio_pci", "virtio_net", "virtio_pci"]
    assert set(table["dom0's kernel"]) == {"has it"}


def test_a_machine_whose_drivers_are_missing_is_refused_with_the_line_to_write(
    site: Parameters, machine: Machine
) -> None:
    mini_pc(machine)
    machine.routes("enp0s31f6")
    site = site.model_copy(
        update={"disk": "/dev/nvme0n1", "kernel_options": ["CONFIG_E1000E=n", "CONFIG_RTC_CLASS=y"]}
    )
    configured(site, machine)
    with pytest.raises(StepFailed) as refused:
        DriversBuilt(site, HOST).apply(machine.host, silent)
    assert str(refused.value).splitlines() == [
        "dom0's kernel lacks drivers of this machine: nvme (disk, 0000:01:00.0), "
        "e1000e (uplink, 0000:00:1f.6)",
        'Try: write kernel_options: ["CONFIG_RTC_CLASS=y", "CONFIG_BLK_DEV_NVME=y", '
        '"CONFIG_E1000E=y"] into the site\'s file',
    ]
    line = re.search(r"kernel_options: (\[.*\])", refused.value.hint)
    assert line is not None
    table = driver_table(chapter_of(site, machine))
    assert list(table["dom0's kernel"]) == ["lacks CONFIG_BLK_DEV_NVME=y", "lacks CONFIG_E1000E=y"]
    site = site.model_copy(update={"kernel_options": json.loads(line[1])})
    assert set(driver_table(chapter_of(site, machine))["dom0's kernel"]) == {"not configured yet"}
    configured(site, machine)
    assert found(site, machine) is None


def test_a_kernel_that_would_not_wait_for_a_usb_disk_is_refused(
    site: Parameters, machine: Machine
) -> None:
    """It is found a second after the kernel has looked for its root, and there is no initrd."""
    virtual(machine, modules=True)
    usb = "pci0000:00/0000:05:00.0/usb1/1-1/1-1:1.0"
    machine.device(usb, "usb", "usb-storage", "usb_storage")
    machine.known("block", f"{usb}/host0/target0:0:0/0:0:0:0/block/sda")
    usb_disk = {"disk": "/dev/sda", "kernel_options": ["CONFIG_USB_STORAGE=y"]}
    site = site.model_copy(update=usb_disk)
    configured(site, machine)
    refused = found(site, machine)
    assert refused is not None
    assert "would not wait for the USB disk /dev/sda" in refused.summary
    asked = re.search(r'dom0_options: "(.*)" into', refused.hint)
    assert asked is not None and asked[1].endswith(" rootwait")
    waits = found(site.model_copy(update={"dom0_options": asked[1]}), machine)
    assert waits is None or "wait" not in waits.summary


def test_an_option_that_depends_on_another_is_refused_with_both(
    site: Parameters, machine: Machine
) -> None:
    """What a person would write by heart; Kconfig drops it without a word."""
    mini_pc(machine)
    machine.routes("enp0s31f6")
    own = ["CONFIG_BLK_DEV_NVME=y", "CONFIG_E1000E=y", "CONFIG_DROPPED=y"]
    site = site.model_copy(update={"disk": "/dev/nvme0n1", "kernel_options": own})
    configured(site, machine)
    refused = found(site, machine)
    assert refused is not None and refused.stays == ""
    assert refused.summary == "the dom0 kernel's config does not honour DROPPED=y"
    site = site.model_copy(update={"kernel_options": own[1:]})
    configured(site, machine)
    refused = found(site, machine)
    assert refused is not None
    assert refused.summary.startswith("dom0's kernel lacks drivers of this machine: nvme (disk, ")
    assert refused.summary.endswith("; the dom0 kernel's config does not honour DROPPED=y")
    assert 'write kernel_options: ["CONFIG_E1000E=y", "CONFIG_DROPPED=y", ' in refused.hint


def test_a_card_that_is_named_by_its_address_has_its_driver_compared(
    site: Parameters, machine: Machine
) -> None:
    """The default route may be over another one."""
    virtual(machine, modules=True)
    machine.routes("eth0")
    machine.device(NIC, "pci", "e1000e", "e1000e", "0x020000")
    machine.card(f"{NIC}/net/enp0s31f6", ONE)
    site = site.model_copy(update={"uplink": ONE})
    configured(site, machine)
    missing = found(site, machine)
    assert missing is not None
    assert missing.summary.endswith("machine: e1000e (uplink, 0000:00:1f.6)")
    assert "e1000e" in list(driver_table(chapter_of(site, machine))["driver"])


def test_what_nobody_can_tell_is_said_and_stays(site: Parameters, machine: Machine) -> None:
    mini_pc(machine)
    machine.device("pci0000:00/0000:02:00.0", "pci", "castle", "castle", "0x010400")
    machine.known("block", "pci0000:00/0000:02:00.0/block/castle0")
    site = site.model_copy(update={"disk": "/dev/castle0"})
    configured(site, machine)
    unknown = found(site, machine)
    assert unknown is not None
    assert unknown.stays == (
        "no Makefile of the sources names castle (disk, 0000:02:00.0); no driver of the uplink was "
        "found (eth0): see that dom0's kernel has what it takes"
    )
    machine.routes("enp0s31f6")
    missing = found(site, machine)
    # what is known to be missing is no matter of opinion
    assert missing is not None and missing.stays == "" and "castle" in missing.hint
    assert "e1000e (uplink, 0000:00:1f.6)" in missing.summary
    table = driver_table(chapter_of(site, machine))
    assert list(table["dom0's kernel"]) == ["nobody knows", "lacks CONFIG_E1000E=y"]


def test_where_the_target_is_to_compile_the_controller_compares_if_it_can(
    site: Parameters, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    virtual(machine, modules=True)
    site = site.model_copy(update={"build_on": "target"})
    configured(site, machine)
    assert found(site, machine) is None
    # a controller without make
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "chroot", "grep", "gcc", "sha256sum", "cut", "head", "cat", "stat"):
        (programs / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XENLAB_CACHE", str(tmp_path / "empty"))
    assert dom0_configured(chapter_of(site, machine)) == ()
    unknown = found(site, machine)
    assert unknown is not None
    assert re.fullmatch(
        "the machine's drivers are not compared with dom0's kernel: ld, make, .* missing on .*",
        unknown.stays,
    )


def test_a_script_has_the_commands_of_chapter_00_in_chapter_03(
    site: Parameters, machine: Machine
) -> None:
    (ahead,) = dom0_configured(chapter_of(site, machine))
    assert [command.by_hand() for command in ahead.commands()]
    assert {command.in_script() for command in ahead.commands()} == {""}


def test_the_ways_are_told_with_their_folders() -> None:
    assert ways_to_build(driver("pci:e1000e:e1000e"), RULES) == [
        ("ETHERNET", "NET_VENDOR_INTEL", "E1000E")
    ]
