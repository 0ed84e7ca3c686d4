"""The base system's states: where they lie, and the texts that other programs read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.sites import lab_site

from xenlab.chapters import disk
from xenlab.errors import BadInput
from xenlab.host import Host
from xenlab.site.schema import Parameters
from xenlab.transport.local import Local

HOST = Host(Local())
NAMES = ("dom0root", "boot", "esp", "dom0swap", "share", "domuswap")


def fstab(folder: Path, site: Parameters) -> dict[str, dict[str, str]]:
    """The fstab as libmount reads it."""
    file = disk.fstab_file(site, {name: f"uuid-of-{name}" for name in NAMES})
    path = folder / "fstab"
    path.write_text(file.text())
    shown = HOST.run(f"findmnt --fstab --tab-file '{path}' -J -o SOURCE,TARGET,FSTYPE,OPTIONS")
    return {row["source"]: row for row in json.loads(shown.stdout)["filesystems"]}


def test_fstab_names_partitions(tmp_path: Path) -> None:
    rows = fstab(tmp_path, lab_site())
    assert {source: row["target"] for source, row in rows.items()} == {
        "PARTUUID=uuid-of-dom0root": "/",
        "PARTUUID=uuid-of-boot": "/boot",
        "PARTUUID=uuid-of-dom0swap": "none",
        "PARTUUID=uuid-of-share": "/mnt/share",
        "PARTUUID=uuid-of-domuswap": "/mnt/domuswap",
    }
    assert rows["PARTUUID=uuid-of-share"]["options"] == "noatime"


def test_fstab_of_a_uefi_machine(tmp_path: Path) -> None:
    bios = fstab(tmp_path, lab_site())
    rows = fstab(tmp_path, lab_site(firmware="uefi"))
    esp = rows.pop("PARTUUID=uuid-of-esp")
    assert (esp["target"], esp["fstype"], esp["options"]) == ("/boot/efi", "vfat", "umask=0077")
    assert rows == bios


@pytest.mark.parametrize("share", ["/srv/all of it", "/srv/back\\slash", "/srv/a#b"])
def test_fstab_keeps_a_strange_path_whole(tmp_path: Path, share: str) -> None:
    site = lab_site().model_copy(update={"share": share})
    assert fstab(tmp_path, site)["PARTUUID=uuid-of-share"]["target"] == share


def test_what_is_mounted_now_is_what_fstab_says(tmp_path: Path) -> None:
    site = lab_site(share="/srv/all")
    numbers = {"/dev/vda4": "dom0root", "/dev/vda2": "boot", "/dev/vda5": "share"}
    numbers["/dev/vda9"] = "domuswap"
    now = {numbers[m.source]: m.target for m in disk.mounts(site, "/")}
    then = {
        k.removeprefix("PARTUUID=uuid-of-"): v["target"] for k, v in fstab(tmp_path, site).items()
    }
    assert now == {name: target for name, target in then.items() if target != "none"}


def test_without_its_checksum_file_there_is_no_stage(tmp_path: Path) -> None:
    sums = tmp_path / "sums"
    site = lab_site(stage="/a/stage.tar.zst", stage_checksums=str(sums))
    with pytest.raises(BadInput, match="there is no stage .*sums on the controller"):
        disk.stage_checksum(site)
    sums.write_text(f"{'a' * 64}  stage.tar.zst\n")
    assert disk.stage_checksum(site) == "a" * 64


def test_the_kernel_source_lies_where_usr_src_leads() -> None:
    site = lab_site(share="/srv/all", kernel_source="/usr/src/linux-source-6.1.tar.xz")
    assert disk.source_tarball(site).remote == "/srv/all/src/linux-source-6.1.tar.xz"
