"""A machine that is not the lab's own: what its file may say, and what QEMU is told of it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from tests.unit.test_cli import Run, refused, xenlab

from xenlab.errors import LabError
from xenlab_lab import media
from xenlab_lab.hardware import MAC, SECOND_SERIAL, Hardware, Network
from xenlab_lab.lab import Lab, State, load_state, save_state
from xenlab_lab.machine import Direct, Machine

__all__ = ["xenlab"]

NETWORK = "user,id=net0"
THE_LABS_WORDS = """\
qemu-system-x86_64 -name guest=xenlab-lab -pidfile /labs/lab/qemu.pid -nodefaults -no-user-config
-display none -vga std -M q35 -accel tcg,thread=multi,tb-size=1024 -cpu max,-smap,-xsave,-erms
-smp 2 -m 4096 -chardev socket,id=qmp,path=qmp.sock,server=on,wait=off -mon chardev=qmp,mode=control
-chardev socket,id=serial,path=serial.sock,server=on,wait=off,logfile=console.log,logappend=on
-serial chardev:serial
-blockdev driver=qcow2,node-name=disk0,discard=unmap,file.driver=file,file.filename=disk.qcow2
-device virtio-blk-pci,drive=disk0,serial=XENLAB-LAB,bootindex=1
-netdev user,id=net0 -device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56,romfile=
-device virtio-rng-pci"""
SECOND = """\
-blockdev driver=raw,node-name=disk1,file.driver=file,file.filename=second.raw
-device virtio-blk-pci,drive=disk1,serial=XENLAB-SECOND"""
DIRECT = """ -kernel /r/vmlinuz -initrd /r/img -append
console=ttyS0 net.ifnames=0 quiet panic=10 mitigations=off norandmaps -S"""


def of(words: list[str]) -> list[str]:
    """The arguments of QEMU's options -device, in their order."""
    return [word for option, word in pairwise(words) if option == "-device"]


def test_the_labs_own_machine_is_made_by_the_words_it_always_was() -> None:
    machine = Machine(Path("/labs/lab"), "lab")
    assert machine.words(None, "tcg", NETWORK) == THE_LABS_WORDS.split()
    direct = machine.words(Direct(Path("/r/vmlinuz"), Path("/r/img")), "tcg", NETWORK, paused=True)
    assert " ".join(direct) == " ".join((THE_LABS_WORDS + DIRECT).split())


def test_a_second_disk_of_the_labs_own_machine_is_attached_as_it_always_was(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "lab")
    machine.second_disk.touch()
    place = THE_LABS_WORDS.index("-netdev")
    wanted = f"{THE_LABS_WORDS[:place]} {SECOND} {THE_LABS_WORDS[place:]}"
    assert machine.words(None, "tcg", NETWORK) == wanted.replace("/labs/lab", str(tmp_path)).split()


def test_what_is_said_of_the_hardware_is_told_to_qemu(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "rig")
    hardware = Hardware.model_validate(
        {
            "disk": "scsi",
            "sector_bytes": 4096,
            "second_disk_gib": 3,
            "nics": [{"model": "e1000e"}, {"model": "e1000", "mac": "02:00:00:00:00:07"}, {}],
            "memory_mib": 700,
        }
    )
    machine.second_disk.touch()
    words = machine.words(None, "tcg", NETWORK, hardware=hardware)
    sectors = "logical_block_size=4096,physical_block_size=4096"
    assert of(words) == [
        "virtio-scsi-pci,id=bus",
        f"scsi-hd,drive=disk0,serial=XENLAB-RIG,bus=bus.0,{sectors},bootindex=1",
        f"scsi-hd,drive=disk1,serial={SECOND_SERIAL},bus=bus.0,{sectors}",
        f"e1000e,netdev=net0,mac={MAC},romfile=",
        "e1000,id=nic1,mac=02:00:00:00:00:07,romfile=",
        "virtio-net-pci,id=nic2,mac=52:54:00:12:34:58,romfile=",
        "virtio-rng-pci",
    ]
    assert words[words.index("-m") + 1] == "700"


def netdevs(words: list[str]) -> list[str]:
    """The arguments of QEMU's options -netdev, in their order."""
    return [word for option, word in pairwise(words) if option == "-netdev"]


def test_a_network_of_another_shape_is_there_once_the_machine_boots_its_disk(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path, "rig")
    hardware = Hardware.model_validate(
        {
            "nics": [{}, {}, {"model": "e1000"}],
            "network": {"net": "192.0.2.0/24", "vlan": 100, "cables": 2},
        }
    )
    words = machine.words(None, "tcg", NETWORK, hardware=hardware)
    assert netdevs(words) == [
        NETWORK,
        "hubport,id=user,hubid=0,netdev=net0",
        "socket,id=far,fd=11",
        "hubport,id=far0,hubid=0,netdev=far",
        "socket,id=near,fd=10",
        "hubport,id=near1,hubid=1,netdev=near",
        "hubport,id=cable0,hubid=1",
        "hubport,id=cable1,hubid=1",
    ]
    assert of(words)[1:4] == [
        f"virtio-net-pci,netdev=cable0,mac={MAC},romfile=",
        "virtio-net-pci,netdev=cable1,mac=52:54:00:12:34:57,romfile=",
        "e1000,id=nic2,mac=52:54:00:12:34:58,romfile=",
    ]
    assert hardware.unplugged(from_disk=True) == ("nic2",)
    rescue = machine.words(Direct(Path("k"), Path("i")), "tcg", NETWORK, hardware=hardware)
    assert netdevs(rescue) == [NETWORK]
    assert of(rescue)[1:3] == [
        f"virtio-net-pci,netdev=net0,mac={MAC},romfile=",
        "virtio-net-pci,id=nic1,mac=52:54:00:12:34:57,romfile=",
    ]
    assert hardware.unplugged(from_disk=False) == ("nic1", "nic2")


def test_ssh_is_led_to_dom0_s_own_address_and_to_the_rescue_system_s() -> None:
    hoster = Network(net="172.31.1.0/24", gateway="172.31.1.1", address="203.0.113.5")
    own = "net=172.31.1.0/24,host=172.31.1.1,"
    assert hoster.user(from_disk=True) == (own, "203.0.113.5", "172.31.1.4:3142")
    assert hoster.user(from_disk=False) == (own, "", "172.31.1.4:3142")
    (*_, settings) = hoster.starter()
    assert json.loads(settings) == {
        "vlan": 0,
        "neighbours": "203.0.113.5",
        "gateway": "172.31.1.1",
    }
    beside = Network(net="192.0.2.0/24", gateway="192.0.2.1", address="192.0.2.10", cables=2)
    assert beside.starter() == () and "socket" not in " ".join(beside.switch())
    assert Network().user(from_disk=True) == ("", "", "10.0.2.4:3142")
    assert Network().switch() == () == Network().starter()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("disk: floppy", "line 1: disk must be 'virtio', 'nvme', 'sata', 'scsi' or 'usb'"),
        ("speed: 3", "line 1: unknown parameter speed"),
        ("disk: sata\nsector_bytes: 4096", "sector_bytes must be 512 for a sata disk"),
        ("serial: 'no'", "line 1: serial must be true or false"),
        ("nics: []", "line 1: nics must not be empty"),
        ("nics: [{mac: '01:00:00:00:00:01'}]", "line 1: nics[0].mac must be a MAC address such as"),
        ("nics: [{}, {mac: '52:54:00:12:34:56'}]", "nics must not name a MAC address twice"),
        ("network: {cables: 2}", "network.cables must be at most 1, as nics has"),
        ("network: {net: 10.0.0.1/24}", "line 1: network.net must be an IPv4 network such as"),
        ("network: {net: 10.0.0.0/30}", "line 1: network.net must be an IPv4 network such as"),
        ("network: {gateway: castle}", "line 1: network.gateway must be an IPv4 address such as"),
        ("network: {gateway: 192.0.2.1}", "gateway 192.0.2.1 is not in net 10.0.2.0/24"),
        ("network: {gateway: 10.0.2.4}", "gateway 10.0.2.4 is taken: name server, relay or"),
        ("network: {vlan: 5000}", "line 1: network.vlan must be at most 4094"),
        ("memory_mib: 64", "line 1: memory_mib must be at least 256"),
        ("", "is empty"),
    ],
)
def test_a_file_that_makes_no_machine_is_refused(
    xenlab: Run, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "rig.yaml").write_text(text)
    refused(xenlab("lab", "up", "--lab", "rig", "--hardware", "rig.yaml"), said)
    assert not Lab("rig").machine.disk.exists()


def test_hardware_that_qemu_has_not_is_refused_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENLAB_CACHE", str(tmp_path / "cache"))
    old = tmp_path / "qemu-system-x86_64"
    old.write_text("""#!/bin/sh\necho 'name "virtio-blk-pci", bus PCI'\necho 'name "e1000"'\n""")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    lab = Lab("rig")
    hardware = Hardware.model_validate({"disk": "usb", "nics": [{"model": "e1000"}, {}]})
    with pytest.raises(LabError, match="no usb-storage, qemu-xhci, virtio-net-pci\n"):
        lab.up(hardware=hardware)
    assert list(lab.folder.iterdir()) == []


def test_the_rescue_system_of_the_labs_machine_stays_as_it_is_and_others_get_more() -> None:
    files = Path(media.__file__).with_name("rescue")
    own = media.contents(uefi=False, any_hardware=False)
    assert own == {name: (files / name).read_bytes() for name in own}
    other = media.contents(uefi=True, any_hardware=True)
    assert own["init"].count(b"xenlab-dhcp\n") == 1
    assert other["init"].count(b"xenlab-dhcp &\n") == 1
    assert b"depends linux-image-amd64 " in other["kernel-hook"]
    assert other["kernel-hook"].count(b"##*/lib/modules/}") == 1
    assert set(own["modules"].split()) < set(other["modules"].split())
    debian = media.contents(uefi=True, any_hardware=True, kind="debian")
    assert {name for name in debian if debian[name] != other.get(name)} == {"init", "network"}
    sudo = media.contents(uefi=True, any_hardware=True, kind="debian-sudo")
    assert sudo == debian | {"sudoers": b"admin ALL=(ALL) NOPASSWD: ALL\n"}
    assert [Hardware(rescue=kind).other for kind in ("lab", "debian")] == [False, True]


def test_a_lab_remembers_its_hardware_and_says_nothing_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    save_state(path, State(hardware=Hardware()))
    assert "hardware" not in json.loads(path.read_text())
    nvme = Hardware.model_validate({"disk": "nvme", "nics": [{"model": "e1000e"}]})
    save_state(path, State(hardware=nvme))
    assert load_state(path).hardware == nvme


def test_a_second_disk_is_as_large_as_was_said_and_goes_with_a_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENLAB_CACHE", str(tmp_path / "cache"))
    lab = Lab("rig", disk_gib=1)
    lab.folder.mkdir(parents=True)
    second = lab.machine.second_disk
    lab.machine.create_disk()
    assert not second.exists()
    two = Hardware(second_disk_gib=2)
    lab.machine.create_disk(two)
    assert second.stat().st_size == 2 << 30
    lab.reset()
    assert second.exists(), "it is not the lab's own"
    save_state(lab.folder / "state.json", State(hardware=two))
    lab.reset()
    assert not second.exists()
    assert load_state(lab.folder / "state.json") == State()
