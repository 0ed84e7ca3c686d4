"""The kernels boot elsewhere too: on a UEFI machine, and as a PVH guest.

Another machine than the lab's starts from what the lab's disk holds: from an overlay of it, which
is thrown away.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.whole_lab import HOUR, Site, wait_until

from xenlab_lab.lab import Lab
from xenlab_lab.machine import Machine, kvm_usable

FIRMWARE = Path("/usr/share/OVMF")
GUEST = "domu1"

MENU = """
insmod part_gpt
search --no-floppy --file /grub/grub.cfg --set=root
configfile /grub/grub.cfg
"""
"""What GRUB for UEFI does here: it shows the menu that chapter 04 has made."""

PVH = ('type="pvh"', 'tsc_mode="native"', 'cpuid="host,rdtscp=0"')
"""What a PVH guest needs where the processor's SVM is emulated: RDTSCP is not."""


class UefiMachine(Machine):
    """The lab's machine, but for its firmware, which sees a folder as its system partition."""

    def words(self, *arguments: object, **options: object) -> list[str]:
        words = super().words(*arguments, **options)  # type: ignore[arg-type]
        flash = "if=pflash,format=raw,file"
        return [
            *words,
            *("-drive", f"{flash}={FIRMWARE / 'OVMF_CODE_4M.fd'},readonly=on"),
            *("-drive", f"{flash}={FIRMWARE / 'OVMF_VARS_4M.fd'},snapshot=on"),
            *("-drive", f"if=none,id=esp,format=raw,file=fat:rw:{self.folder / 'esp'}"),
            *("-device", "virtio-blk-pci,drive=esp,bootindex=0"),
        ]


class OnHost:
    """The other machine's dom0 and guests, reached as the lab's were: at the same port."""

    def __init__(self, machine: Machine, config: Path) -> None:
        self._config = config
        port = re.search(r"Port (\d+)", config.read_text())
        assert port is not None
        accel = "kvm" if kvm_usable() else "tcg"
        assert machine.start(None, accel=accel, port=int(port[1])) == int(port[1])

    def answers(self, domain: str) -> bool:
        return self._ssh(domain, "true").returncode == 0

    def says(self, domain: str, command: str) -> str:
        done = self._ssh(domain, command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _ssh(self, domain: str, command: str) -> subprocess.CompletedProcess[str]:
        words = ["ssh", "-F", str(self._config), "-o", "ConnectTimeout=20", domain, command]
        return subprocess.run(words, capture_output=True, text=True, timeout=HOUR)


@pytest.fixture(scope="module")
def elsewhere(site: Site) -> Iterator[OnHost]:
    lab = Lab(site.name)
    lab.down()
    # a folder with a short name: a socket's path has at most 107 bytes
    with tempfile.TemporaryDirectory(prefix="uefi") as place:
        machine = UefiMachine(Path(place), site.name)
        overlay = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(lab.machine.disk)]
        subprocess.run(["qemu-img", *overlay, machine.disk], check=True)
        program = machine.folder / "esp/EFI/BOOT/BOOTX64.EFI"
        program.parent.mkdir(parents=True)
        menu = machine.folder / "menu"
        menu.write_text(MENU)
        into = f"boot/grub/grub.cfg={menu}"
        made = ["grub-mkstandalone", "-O", "x86_64-efi", "-o", str(program), into]
        subprocess.run(made, check=True)
        try:
            yield OnHost(machine, site.ssh_config)
        finally:
            machine.quit()


def test_dom0_boots_on_uefi(elsewhere: OnHost) -> None:
    wait_until(lambda: elsewhere.answers("dom0"), seconds=1800, what="dom0 answers")
    assert elsewhere.says("dom0", "uname -r").strip().endswith("-xen0")
    assert "EFI RAM map" in elsewhere.says("dom0", "xl dmesg")


def test_a_guest_boots_as_pvh(elsewhere: OnHost) -> None:
    elsewhere.says("dom0", "systemctl is-system-running --wait || :")
    create = f"xl create /etc/xen/{GUEST}.cfg " + " ".join(f"'{word}'" for word in PVH)
    elsewhere.says("dom0", f"xl destroy {GUEST}; {create} < /dev/null")
    wait_until(lambda: elsewhere.answers(GUEST), seconds=1800, what=f"{GUEST} answers")
    assert elsewhere.says(GUEST, "cat /sys/hypervisor/guest_type") == "PVH\n"
    assert elsewhere.says(GUEST, "uname -r").strip().endswith("-domU")
