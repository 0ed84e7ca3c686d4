"""What a machine has against what a site asks for; facts as the lab's machine gave them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.sites import FOLDER, lab_site

from xenlab.chapters.disk import Brought, controller_software
from xenlab.chapters.figures import disk_parts, memory_parts, plan_figure
from xenlab.chapters.ingredients import (
    MIRROR_TOOLS,
    TOOLS,
    UEFI_TOOLS,
    Machine,
    check_fit,
    look_at_machine,
    machine_table,
    needed_memory_mib,
    parse,
)
from xenlab.errors import BadInput, ConsentNeeded
from xenlab.host import Host
from xenlab.resources.archive import checksum_of
from xenlab.site.rules import guest_types
from xenlab.site.schema import Parameters, load
from xenlab.transport.local import Local

RECORDED = Path(__file__).parent.parent / "recorded"
HOST = Host(Local())


def disks_site(**changes: Any) -> Parameters:
    """The lab's site, of the machine that was looked at."""
    return lab_site(**{"may_wipe": ["XENLAB-DISKS"]} | changes)


SITE = disks_site()
UEFI = disks_site(firmware="uefi")

XEN = """
==> xl <==
host                   : dom0
nr_cpus                : 4
virt_caps              : hvm hap
total_memory           : 16383
free_memory            : 200

==> missing <==
"""


def rescue() -> str:
    """What the lab's rescue system said."""
    return (RECORDED / "machine-rescue.txt").read_text()


def lab(**changes: Any) -> Machine:
    return dataclasses.replace(parse(rescue()), **changes)


def sized(mib: int) -> Machine:
    """The lab's machine with a disk of another size."""
    return parse(rescue().replace("17179869184", str(mib << 20)))


def of_disk(disk: str) -> Machine:
    """What the lab would have said of another disk."""
    return parse(rescue().replace("--- device\n/dev/vda\n", f"--- device\n{disk}\n"))


class TestMachine:
    def test_the_labs_rescue_system(self) -> None:
        machine = lab()
        assert machine.long_mode
        assert machine.processors == 2
        assert 3800 < machine.memory_mib <= 4096
        assert machine.disk_mib == 16384
        assert machine.disk.known_by == (("serial", "XENLAB-DISKS"),)
        assert machine.system == "xenlab rescue system"
        assert not machine.under_xen
        assert machine.missing_tools == ()

    def test_under_xen_the_machines_memory_counts_and_not_dom0s(self) -> None:
        machine = parse(rescue().replace("\n==> missing <==\n", XEN))
        assert machine.under_xen
        assert (machine.memory_mib, machine.processors) == (16383, 4)
        assert machine.virtualisation == "hvm hap"

    def test_a_disk_that_is_not_there(self) -> None:
        assert of_disk("/dev/vdz").disk_mib == 0

    def test_programs_that_are_missing(self) -> None:
        text = rescue().replace("==> missing <==\n", "==> missing <==\nsfdisk\nzstd\n")
        assert parse(text).missing_tools == ("sfdisk", "zstd")

    @pytest.mark.parametrize(
        ("said", "found"),
        [
            ("", ("bios", False)),
            ("uefi\n", ("uefi", False)),
            ("uefi\n    0\n", ("uefi", False)),
            ("uefi\n    1\n", ("uefi", True)),
        ],
    )
    def test_its_firmware(self, said: str, found: tuple[str, bool]) -> None:
        text = rescue().replace("==> missing <==\n", f"==> firmware <==\n{said}\n==> missing <==\n")
        machine = parse(text)
        assert (machine.firmware, machine.secure_boot) == found

    def test_this_machine(self) -> None:
        machine = look_at_machine(HOST, "/dev/no'where; $(exit 1)")
        assert machine.memory_mib > 0
        assert machine.disk_mib == 0
        assert set(machine.missing_tools) <= {*TOOLS, *UEFI_TOOLS, *MIRROR_TOOLS}
        assert machine.architecture == os.uname().machine
        assert machine.user == str(os.geteuid())
        assert abs(machine.clock_ahead) < 300
        nets = Path("/sys/class/net").glob("*/device/net/*/address")
        assert set(machine.cards) == {path.read_text().strip() for path in nets}


def refused(site: Parameters, machine: Machine) -> str:
    with pytest.raises((BadInput, ConsentNeeded)) as caught:
        check_fit(site, machine)
    return str(caught.value)


class TestFits:
    def test_the_lab_fits(self) -> None:
        check_fit(SITE, lab())

    def test_a_disk_that_is_too_small(self) -> None:
        error = refused(SITE, sized(13649))
        assert "/dev/vda has 13649 MiB and the site needs 13650 MiB: biosboot 1, boot 512" in error
        check_fit(SITE, sized(13650))

    def test_too_little_memory(self) -> None:
        assert needed_memory_mib(SITE) == 128 + 1024 + 3 * 320 + 3 * 8
        error = refused(SITE, lab(memory_mib=2135))
        assert "has 2135 MiB of memory and the site needs 2136 MiB: Xen 128, dom0 1024" in error
        check_fit(SITE, lab(memory_mib=2136))

    def test_no_such_disk(self) -> None:
        error = refused(lab_site(disk="/dev/vdz"), of_disk("/dev/vdz"))
        assert error.startswith(
            "there is no disk /dev/vdz\n"
            "Try: name one of these disks: /dev/vda 16384 MiB XENLAB-DISKS"
        )

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"long_mode": False}, "no 64 bit processor"),
            ({"missing_tools": ("tar", "xz")}, "lacks tar, xz"),
            ({"architecture": "i686"}, "kernel is one for i686"),
            ({"user": "1000"}, "the user with number 1000 is not root"),
            ({"clock_ahead": -90000.0}, "clock is 25 hours behind the controller's"),
            ({"clock_ahead": 90000.0}, "clock is 25 hours ahead of the controller's"),
            ({"cards": ("00:16:3e:66:01:02",)}, "domu2 has the MAC address of the machine's own"),
        ],
    )
    def test_what_else_is_wrong(self, changes: dict[str, Any], message: str) -> None:
        assert message in refused(SITE, lab(**changes))

    def test_a_disk_that_cannot_be_partitioned(self) -> None:
        part = rescue().replace("--- device\n/dev/vda\n", "--- device\n/dev/vdb2\n")
        error = refused(disks_site(disk="/dev/vdb2"), parse(part))
        assert error.startswith("/dev/vdb2 is a partition, not a disk\nTry: name one of these")
        kind = '"type": "disk",'
        error = refused(SITE, parse(rescue().replace(kind, f'{kind} "ro": true,', 1)))
        assert error.startswith("disk /dev/vda is read-only\nTry: take its write protection off")

    def test_a_disk_that_is_in_use_or_another_one_than_may_be_wiped(self) -> None:
        swap = "--- swaps\nFilename Type Size Used Priority\n/dev/vda partition 1 0 -2\n"
        used = parse(rescue().replace("--- swaps\n", swap))
        assert "cannot wipe /dev/vda: because it is in use ([SWAP])" in refused(SITE, used)
        above = '"type": "disk", "children": [{"name": "/dev/md0", "type": "raid1", "size": 1}],'
        member = parse(rescue().replace('"type": "disk",', above, 1))
        assert "it is in use (raid1 /dev/md0)" in refused(SITE, member)
        error = refused(disks_site(may_wipe=["OTHER"]), lab())
        assert "disk has the serial XENLAB-DISKS, and may_wipe allows only: OTHER" in error
        # nobody has said a word yet: chapter 01 asks
        check_fit(disks_site(may_wipe=[]), lab())

    def test_another_firmware_than_the_sites(self) -> None:
        """The disk would be wiped, and would not boot."""
        error = refused(SITE, lab(firmware="uefi"))
        assert error.startswith("the machine was booted by UEFI, and the site says firmware: bios")
        assert "Try: set firmware: uefi, or boot the rescue system by BIOS" in error
        error = refused(UEFI, lab())
        assert error.startswith("the machine was booted by BIOS, and the site says firmware: uefi")
        check_fit(UEFI, lab(firmware="uefi"))

    def test_secure_boot(self) -> None:
        error = refused(UEFI, lab(firmware="uefi", secure_boot=True))
        assert error.startswith("Secure Boot is on") and "Try: switch Secure Boot off" in error

    def test_what_only_a_uefi_machine_needs(self) -> None:
        check_fit(SITE, lab(missing_tools=UEFI_TOOLS))
        error = refused(UEFI, lab(firmware="uefi", missing_tools=UEFI_TOOLS))
        assert "lacks mkfs.vfat" in error

    def test_pvh_guests_need_the_processors_help(self) -> None:
        site = disks_site(guest_type="pvh")
        assert "VMX or SVM" in refused(site, lab(virtualisation="none"))
        check_fit(site, lab(virtualisation="svm"))
        check_fit(SITE, lab(virtualisation="none"))
        assert "Try: switch it on in the firmware, or use guest_type: pv" in refused(
            site, lab(virtualisation="none")
        )

    def test_each_guest_has_a_type(self) -> None:
        first, *others = [domain.model_dump() for domain in SITE.domains]
        site = disks_site(domains=[first | {"type": "pvh"}, *others])
        assert guest_types(site) == {"domu1": "pvh", "domu2": "pv", "domu3": "pv"}
        assert "use type: pv" in refused(site, lab(virtualisation="none"))
        check_fit(site, lab(virtualisation="hvm hap"))

    def test_a_type_that_the_machine_decides(self) -> None:
        site = disks_site(guest_type="auto")
        rows = []
        for caps in ("none", "vmx", "hvm hap"):
            machine = lab(virtualisation=caps)
            check_fit(site, machine)
            rows.append(tuple(machine_table(site, machine).set_index("what").loc["virtualisation"]))
        wanted = "VMX or SVM for pvh guests, else pv (auto)"
        assert rows == [
            (wanted, "none: pv", "yes"),
            (wanted, "vmx: pvh", "yes"),
            (wanted, "hvm hap: pvh", "yes"),
        ]

    def test_the_lab_s_guests_are_pv(self) -> None:
        """Its emulated processor shows SVM: by themselves they would not be."""
        assert lab().virtualisation == "svm"
        for name in ("lab", "lab-gentoo"):
            assert set(guest_types(load(FOLDER / f"{name}.yaml")).values()) == {"pv"}

    def test_a_guest_with_more_than_the_machine_has(self) -> None:
        first, *others = [domain.model_dump() for domain in SITE.domains]
        two = disks_site(domains=[first | {"vcpus": 2, "maxmem_mib": 4000}, *others])
        check_fit(two, lab(memory_mib=4000))
        error = refused(two, lab(processors=1))
        assert error.startswith("the machine has 1 processors and domu1 has 2 vcpus\nTry: lower")
        error = refused(two, lab(memory_mib=3999))
        assert error.startswith("the machine has 3999 MiB of memory and domu1 may grow to 4000 MiB")
        fits = [
            tuple(machine_table(two, lab(processors=n)).set_index("what").loc["processor"])[::2]
            for n in (1, 2)
        ]
        assert fits == [("2 × x86-64", "no"), ("2 × x86-64", "yes")]


class TestTables:
    def test_one_row_for_each_thing(self) -> None:
        frame = machine_table(SITE, lab())
        assert list(frame.columns) == ["what", "wanted", "found", "fits"]
        assert set(frame["fits"]) == {"yes"}

    def test_the_firmware(self) -> None:
        rows = [
            tuple(machine_table(site, machine).set_index("what").loc["firmware"])
            for site in (SITE, UEFI)
            for machine in (lab(), lab(firmware="uefi"), lab(firmware="uefi", secure_boot=True))
        ]
        assert rows == [
            ("bios", "bios", "yes"),
            ("bios", "uefi", "no"),
            ("bios", "uefi with Secure Boot", "no"),
            ("uefi", "bios", "no"),
            ("uefi", "uefi", "yes"),
            ("uefi", "uefi with Secure Boot", "no"),
        ]

    def test_another_disk_with_the_same_names_is_named(self) -> None:
        frame = machine_table(SITE, lab()).set_index("what")
        found = frame.loc["another disk"]
        assert found["wanted"] == "left alone"
        assert found["found"].startswith("/dev/vdb, 120 MiB, has biosboot, boot, dom0swap, dom0")

    def test_a_disk_that_nobody_consented_to(self) -> None:
        frame = machine_table(lab_site(may_wipe=[]), lab(memory_mib=100)).set_index("what")
        assert frame.loc["disk to wipe", "fits"] == "asks for consent"
        assert frame.loc["memory", "fits"] == "no"

    def test_what_the_controller_brings(self, tmp_path: Path) -> None:
        site = brought(tmp_path)
        assert list(controller_software(site, HOST)["fits"])[:3] == ["yes", "yes", "yes"]
        assert Brought(site).probe(HOST) is None
        (tmp_path / "stage.tar").write_text("damaged")
        assert list(controller_software(site, HOST)["fits"])[:3] == ["yes", "yes", "no"]
        with pytest.raises(BadInput, match="wrong checksum"):
            Brought(site).probe(HOST)

    @pytest.mark.parametrize("packer", ["xz", "zstd", "gzip", "bzip2", ""])
    def test_a_stage_that_is_larger_than_a_root(self, tmp_path: Path, packer: str) -> None:
        (stage := tmp_path / "stage.tar").write_bytes(b"0" * (3 << 20))
        name = "stage.tar"
        if packer:
            subprocess.run([packer, "-1", "-q", str(stage)], check=True)
            (packed,) = tmp_path.glob("stage.tar.*")
            name = packed.name
        site = brought(tmp_path, (tmp_path / name).read_bytes(), name).model_copy(
            update={"domu_root_mib": 2}
        )
        with pytest.raises(BadInput) as caught:
            Brought(site).probe(HOST)
        assert caught.value.message == "the stage has 3 MiB unpacked, and domu_root_mib is 2"

    def test_without_a_stage_it_says_how_to_get_one(self, tmp_path: Path) -> None:
        site = brought(tmp_path)
        (tmp_path / "stage.tar").unlink()
        with pytest.raises(
            BadInput, match=r"no stage .*/stage\.tar on the .*\n.*`xenlab lab stage`"
        ):
            Brought(site).probe(HOST)
        (tmp_path / "sums").unlink()
        with pytest.raises(BadInput, match=r"no stage .*/sums on the .*\nTry: fetch a stage3"):
            controller_software(site.model_copy(update={"platform": "gentoo"}), HOST)

    def test_without_a_way_to_boot_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site = brought(tmp_path).model_copy(update={"power": "ipmi"})
        monkeypatch.delenv("IPMI_HOST", raising=False)
        with pytest.raises(BadInput, match="power: ipmi: because the environment has no IPMI_HOST"):
            Brought(site).probe(HOST)

    def test_a_folder_of_packages_without_an_index(self, tmp_path: Path) -> None:
        site = brought(tmp_path).model_copy(update={"apt_folder": str(tmp_path)})
        with pytest.raises(BadInput, match=r"cannot use apt_folder .*: because it has no index"):
            Brought(site).probe(HOST)

    def test_without_a_kernel_source(self, tmp_path: Path) -> None:
        site = brought(tmp_path)
        (tmp_path / "linux.tar").unlink()
        assert list(controller_software(site, HOST)["fits"])[1] == "no"
        with pytest.raises(BadInput, match=r"no kernel source .*linux\.tar"):
            Brought(site).probe(HOST)

    def test_the_distributions_kernel_takes_no_source(self, tmp_path: Path) -> None:
        site = brought(tmp_path).model_copy(update={"kernel": "distribution"})
        (tmp_path / "linux.tar").unlink()
        frame = controller_software(site, HOST)
        assert list(frame["what"]) == ["stage", "stage checksum", "compiler"]
        assert set(frame["fits"]) == {"yes"}
        assert Brought(site).probe(HOST) is None

    @pytest.mark.parametrize("top", [".", ""])
    def test_a_stage_of_another_release(self, tmp_path: Path, top: str) -> None:
        release = tmp_path / "root/usr/lib/os-release"
        release.parent.mkdir(parents=True)
        release.write_text('ID=debian\nVERSION_CODENAME="trixie"\n')
        members = [top] if top else ["usr"]
        packed = ["tar", "-C", str(tmp_path / "root"), "-cJf", str(tmp_path / "made.tar.xz")]
        subprocess.run([*packed, *members], check=True)
        site = brought(tmp_path, (tmp_path / "made.tar.xz").read_bytes(), "stage.tar.xz")
        for release_of_site, fits in (("trixie", True), ("bookworm", False)):
            wanted = Brought(site.model_copy(update={"release": release_of_site}))
            if fits:
                assert wanted.probe(HOST) is None
                continue
            with pytest.raises(BadInput) as caught:
                wanted.probe(HOST)
            said = "the stage is Debian's trixie, and the site says release: bookworm"
            assert caught.value.message == said


class TestPlan:
    def test_what_the_disk_has_left_is_free_or_the_guests(self) -> None:
        for kind, last in (("partition", "free"), ("file", "guests"), ("lvm", "guests")):
            parts = disk_parts(SITE.model_copy(update={"guest_disks": kind}), 16384)
            assert sum(mib for _, mib, _ in parts) == 16384 - 2
            assert parts[-1][0] == last

    def test_memory_adds_up_to_the_machines(self) -> None:
        parts = memory_parts(SITE, 4096)
        assert sum(mib for _, mib, _ in parts) == 4096
        assert parts[-1][0] == "free"
        assert memory_parts(SITE, 100)[-1][0] != "free"

    def test_each_part_has_its_name_and_size_in_the_picture(self) -> None:
        figure = plan_figure(SITE, lab())
        upper, lower = figure.axes
        names = [label.get_text() for label in upper.get_yticklabels()]
        assert names[:2] == ["biosboot", "boot"] and names[-2:] == ["domuswap", "free"]
        assert "1,024 MiB" in {text.get_text() for text in lower.texts}


def brought(folder: Path, stage: bytes = b"stage", name: str = "stage.tar") -> Parameters:
    (folder / name).write_bytes(stage)
    (folder / "linux.tar").write_text("linux")
    (folder / "sums").write_text(
        f"{checksum_of(folder / name)}  {name}\n{checksum_of(folder / 'linux.tar')}  linux.tar\n"
    )
    return lab_site(
        stage=f"{folder}/{name}",
        stage_checksums=f"{folder}/sums",
        kernel_source=f"{folder}/linux.tar",
        kernel_checksums=f"{folder}/sums",
    )
