"""The whole way, on the real hypervisor: empty disk, plan, what is refused, run, guests.

The tests of this module build on each other and run in the order in which they stand.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from tests.end_to_end.conftest import NAME
from tests.whole_lab import CHAPTERS, HOUR, ROOT, Site, statuses

from xenlab.runs import folder as runs
from xenlab.site.schema import load
from xenlab_lab.lab import Lab

GUESTS = ("domu1", "domu2", "domu3")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_a_plan_says_what_it_would_do_and_leaves_the_disk_bit_identical(site: Site) -> None:
    disk = Lab(NAME).status().disk
    before = digest(disk)
    plan = site.xenlab("plan", "-f", str(site.parameters))
    assert plan.returncode == 0, plan.stdout + plan.stderr
    assert "would change" in plan.stdout
    assert digest(disk) == before
    states = Counter(statuses(runs.find(site.runs, "last")).values())
    assert states["would change"] > 30
    assert set(states) == {"ok", "would change"}


def test_a_disk_whose_serial_nobody_named_is_not_wiped(site: Site) -> None:
    disk = Lab(NAME).status().disk
    before = digest(disk)
    run = site.xenlab("run", "01", "-f", str(site.changed(may_wipe=["SOME-OTHER-DISK"])))
    assert run.returncode == 1
    assert "serial XENLAB-TEST" in run.stdout + run.stderr
    assert "may_wipe allows only: SOME-OTHER-DISK" in run.stdout + run.stderr
    assert digest(disk) == before


def test_a_stage_with_a_wrong_checksum_is_refused(site: Site, tmp_path: Path) -> None:
    sums = tmp_path / "stage.sha256"
    sums.write_text(f"{'0' * 64}  {Path(load(site.parameters).stage).name}\n")
    disk = Lab(NAME).status().disk
    before = digest(disk)
    run = site.xenlab("run", "00", "-f", str(site.changed(stage_checksums=str(sums))))
    assert run.returncode != 0
    assert "checksum" in run.stdout + run.stderr
    assert digest(disk) == before


def test_a_site_that_does_not_fit_is_refused_in_chapter_00(site: Site) -> None:
    run = site.xenlab("run", "00", "-f", str(site.changed(share_mib=900_000)))
    assert run.returncode == 1
    assert "MiB" in run.stdout + run.stderr


def test_a_chapter_names_the_one_it_needs_first(site: Site) -> None:
    run = site.xenlab("run", "02", "-f", str(site.parameters))
    assert run.returncode == 1
    assert "chapter 02_base_system needs chapter 01_partitions first" in run.stdout + run.stderr


def test_every_chapter_runs(site: Site) -> None:
    run = site.xenlab("run", "-f", str(site.parameters))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert set(statuses(runs.find(site.runs, "last")).values()) == {"ok", "changed"}


def test_the_guests_run_on_the_kernels_that_were_built(site: Site) -> None:
    listing = site.ssh("", "xl", "list")
    assert {line.split()[0] for line in listing.splitlines()[1:]} == {"Domain-0", *GUESTS}
    for guest in GUESTS:
        assert site.ssh(guest, "uname", "-r").strip().endswith("-domU")
        assert site.ssh(guest, "hostname").strip() == guest
    assert site.ssh("", "uname", "-r").strip().endswith("-xen0")
    assert "dom0_mem=1024M" in site.ssh("", "xl", "info")
    assert "console=hvc0" in site.ssh("", "cat", "/proc/cmdline")


def test_the_guests_have_keys_and_identities_of_their_own(site: Site) -> None:
    for file in ("/etc/ssh/ssh_host_ed25519_key.pub", "/etc/machine-id"):
        contents = {site.ssh(guest, "cat", file) for guest in ("dom0", *GUESTS)}
        assert len(contents) == 4, file


def test_the_bridge_has_no_address_and_dom0_keeps_its_own(site: Site) -> None:
    assert site.ssh("", "ip", "-o", "addr", "show", "dev", "xenbr0") == ""
    assert "10.0.2.15/24" in site.ssh("", "ip", "-o", "-4", "addr", "show", "dev", "eth0")
    ports = site.ssh("", "ls", "/sys/class/net/xenbr0/brif").split()
    assert {"peth0", "vif0.0"} <= set(ports)
    assert len([p for p in ports if p.startswith("vif") and p != "vif0.0"]) == 3


def test_each_guest_knows_its_own_name(site: Site) -> None:
    for guest in GUESTS:
        assert site.ssh(guest, "hostname", "--fqdn").strip() == f"{guest}.lab.internal"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_plain_papermill_runs_a_chapter(site: Site, chapter: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [
            str(Path(site.argv()[0]).parent / "papermill"),
            f"notebooks/{chapter}.ipynb",
            str(tmp_path / "out.ipynb"),
            "-f",
            str(site.parameters),
        ],
        cwd=ROOT,
        env=site.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HOUR,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "ok" in (tmp_path / "out.ipynb").read_text()
