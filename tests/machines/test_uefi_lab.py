"""A UEFI machine from its empty disk to dom0: its own firmware starts GRUB, and that starts Xen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.whole_lab import CHAPTERS, HOUR, Site, statuses, with_one_guest

from xenlab_lab.lab import Lab
from xenlab_lab.media import VARIABLES

GUEST = "domu1"
TO_DOM0 = CHAPTERS[:6]
PROGRAMS = ("EFI/BOOT/BOOTX64.EFI", "EFI/xenlab/grubx64.efi")


@pytest.fixture(scope="module")
def uefi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A lab whose site says ``firmware: uefi``."""
    folder = tmp_path_factory.mktemp("uefi")
    yield from with_one_guest("uefi", GUEST, folder, firmware="uefi")


def ran(site: Site, file: Path, *chapters: str) -> tuple[int, str, Path]:
    """A run's exit status, what it printed, and its folder."""
    done = site.xenlab("run", *chapters, "-f", str(file), timeout=2 * HOUR)
    return done.returncode, done.stdout + done.stderr, site.journals()[-1].path.parent


def test_a_site_of_the_other_firmware_is_refused(uefi: Site) -> None:
    """Before anything is written: what such a site installs would not boot here."""
    for chapter in ("00", "01"):
        status, said, _ = ran(uefi, uefi.changed(firmware="bios"), chapter)
        assert status == 1
        assert "booted by UEFI" in said and "set firmware: uefi" in said
    assert uefi.ssh("", "head -c 64M /dev/vda | tr -d '\\0' | wc -c") == "0\n"


def test_dom0_runs_from_a_disk_that_uefi_booted(uefi: Site) -> None:
    status, said, run = ran(uefi, uefi.parameters, *TO_DOM0)
    assert status == 0, said[-3000:]
    assert "failed" not in statuses(run).values()
    assert "EFI RAM map" in uefi.ssh("", "xl dmesg")
    assert uefi.ssh("", "findmnt -n -o FSTYPE /boot/efi") == "vfat\n"
    assert "xenlab" in uefi.ssh("", "efibootmgr")


def test_a_second_run_finds_all_as_it_should_be(uefi: Site) -> None:
    status, said, run = ran(uefi, uefi.parameters, *TO_DOM0)
    assert status == 0, said[-3000:]
    assert set(statuses(run).values()) == {"ok"}


def test_grub_that_is_not_this_installations_is_seen(uefi: Site) -> None:
    for program in PROGRAMS:
        place = f"/boot/efi/{program}"
        uefi.ssh("", f"mv {place} /root/kept && head -c 1M /dev/urandom > {place}")
        check = uefi.xenlab("check", "04", "-f", str(uefi.parameters))
        assert check.returncode == 3, check.stdout[-3000:]
        assert "install GRUB for UEFI" in check.stdout
        uefi.ssh("", f"mv /root/kept {place}")


def test_it_boots_without_what_the_firmware_remembered(uefi: Site) -> None:
    """As after a reset of its settings: it starts what lies at the place that it looks for."""
    lab = Lab(uefi.name)
    lab.down()
    (lab.folder / VARIABLES).unlink()
    up = uefi.xenlab("lab", "up", "-f", str(uefi.parameters))
    assert up.returncode == 0, up.stdout + up.stderr
    assert "EFI RAM map" in uefi.ssh("", "xl dmesg")
