"""The distribution's own kernel: what dpkg says of it, its initrd, its links for the guests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.sites import lab_site
from tests.unit.rootdir import root_with

from xenlab.chapters.guests import base
from xenlab.chapters.ingredients import DriversBuilt
from xenlab.chapters.kernel import guests_initrd, has_initrd, release_by_hand
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.platform.boot import (
    GUEST_INITRD,
    GUEST_KERNEL,
    IMAGE,
    INITRAMFS,
    NEEDED,
    SETTINGS,
    GuestKernelLinked,
    InitrdMade,
    distribution_kernel,
    release_in,
    release_of,
)
from xenlab.resources.base import All, Report
from xenlab.resources.files import File
from xenlab.site.schema import Parameters
from xenlab.transport.local import Local

R = "6.1.0-57-amd64"
PROGRAMS = ("dpkg-query", "sed", "head", "ls", "ln", "tr", "touch")
CONFIG = "".join(f"CONFIG_{name}=m\n" for name in {*NEEDED["dom0"], *NEEDED["domU"]})
STATUS = """\
Package: linux-image
Status: install ok installed
Maintainer: nobody
Version: 1
Architecture: amd64
Depends: linux-image-9.9.9-amd64

Package: {image}
Status: {status}
Maintainer: nobody
Version: 6.1.192-3
Architecture: amd64
Depends: linux-image-{release} (= 6.1.192-3), kmod
Description: Linux for 64-bit PCs

Package: zstd
Status: install ok installed
Maintainer: nobody
Version: 1
Architecture: amd64
Depends: linux-image-7.7.7-amd64
"""


def silent(what: str, done: float | None = None) -> None:
    """A report nobody reads."""


REPORT: Report = silent


def without_kernel(**changes: object) -> Parameters:
    return lab_site(kernel="distribution", shared_usr=[], **changes)


def installed(root: Path, release: str = R, status: str = "install ok installed") -> None:
    """As dpkg leaves it behind."""
    folder = root / "var/lib/dpkg"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status").write_text(STATUS.format(image=IMAGE, release=release, status=status))
    boot = root / "boot"
    boot.mkdir(exist_ok=True)
    (boot / f"vmlinuz-{release}").write_text("a kernel")
    (boot / f"config-{release}").write_text(CONFIG)
    (boot / f"initrd.img-{release}").write_text("an initrd")


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Host, Path]:
    return root_with(tmp_path / "root", *PROGRAMS), tmp_path / "root"


def test_the_release_is_what_the_package_depends_on(machine: tuple[Host, Path]) -> None:
    host, root = machine
    assert release_of(host) == ""
    installed(root)
    assert release_of(host) == R
    installed(root, status="deinstall ok config-files")
    assert release_of(host) == ""
    assert release_of(Host(Local()).inside("/nowhere")) == ""


def test_a_script_asks_the_root_that_is_there(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    installed(other, "6.12.9+deb13-amd64")
    for wanted in ("6.12.9+deb13-amd64", R):
        found = subprocess.run(
            ["sh", "-euc", release_in(str(own), str(other))],
            check=True,
            capture_output=True,
            text=True,
        )
        assert found.stdout == f"{wanted}\n"
        installed(own)
    command = release_by_hand(without_kernel())
    assert command.text.startswith("ssh dom0 ") and "/mnt/dom0/var/lib/dpkg/status" in command.text


def test_an_initrd_that_is_missing_or_old_is_made(machine: tuple[Host, Path]) -> None:
    host, root = machine
    made = InitrdMade()
    assert made.probe(host) is not None
    installed(root)
    (root / SETTINGS[1:]).parent.mkdir(parents=True)
    (root / SETTINGS[1:]).write_text("MODULES=most\n")
    initrd = root / f"boot/initrd.img-{R}"
    os.utime(initrd, (1, 1))
    found = made.probe(host)
    assert found is not None and found.summary == f"make /boot/initrd.img-{R} (missing)"
    # what stands in for the one that takes minutes
    tool = root / "bin/update-initramfs"
    tool.write_text('#!/bin/sh\necho "$*" > /boot/said\ntouch "/boot/initrd.img-$3"\n')
    tool.chmod(0o755)
    made.apply(host, REPORT)
    assert (root / "boot/said").read_text() == f"-c -k {R}\n"
    assert made.probe(host) is None


def test_a_kernel_without_xen_is_refused(machine: tuple[Host, Path]) -> None:
    """As Debian's for clouds: it boots as a guest, and not as dom0."""
    host, root = machine
    installed(root)
    config = root / f"boot/config-{R}"
    config.write_text("".join(f"CONFIG_{name}=y\n" for name in NEEDED["domU"]))
    with pytest.raises(StepFailed, match=f"cannot boot {R} as dom0: .* lacks CONFIG_XEN_DOM0, "):
        InitrdMade().probe(host)
    assert GuestKernelLinked().probe(host) is not None
    config.write_text("CONFIG_XEN_PV=y\n# CONFIG_XEN_BLKDEV_FRONTEND is not set\n")
    with pytest.raises(StepFailed, match="as domU: .* lacks CONFIG_XEN_BLKDEV_FRONTEND"):
        GuestKernelLinked().probe(host)


def test_the_guests_boot_what_dom0_boots(machine: tuple[Host, Path]) -> None:
    host, root = machine
    linked = GuestKernelLinked()
    assert linked.probe(host) is not None
    installed(root)
    # one that was built for them gives way
    (root / "xenboot").mkdir()
    (root / GUEST_KERNEL[1:]).write_text("built")
    assert linked.probe(host) is not None
    linked.apply(host, REPORT)
    assert linked.probe(host) is None
    assert (root / GUEST_KERNEL[1:]).read_text() == "a kernel"
    assert (root / GUEST_INITRD[1:]).read_text() == "an initrd"
    newer = "6.1.0-60-amd64"
    installed(root, newer)
    found = linked.probe(host)
    assert found is not None and newer in found.summary
    linked.apply(host, REPORT)
    assert (root / GUEST_KERNEL[1:]).resolve().name == f"vmlinuz-{newer}"
    (root / f"boot/initrd.img-{newer}").unlink()
    assert linked.probe(host) is not None


def test_settings_and_tools_come_before_the_kernel_whose_package_makes_the_initrd() -> None:
    whole = distribution_kernel()
    assert isinstance(whole, All)
    settings, tools, image, made = whole.parts
    assert isinstance(settings, File) and "MODULES=most\nRESUME=none\n" in settings.text()
    (first,), (second,) = tools.commands(), image.commands()
    assert first.in_script().endswith(" ".join(INITRAMFS))
    assert second.in_script().endswith(f" {IMAGE}")
    assert [command.in_script() for command in made.commands()] == [""]


def test_it_brings_what_a_built_kernel_does_without() -> None:
    built, taken = lab_site(), without_kernel()
    assert (has_initrd(built), guests_initrd(built)) == (False, "")
    assert (has_initrd(taken), guests_initrd(taken)) == (True, GUEST_INITRD)
    # its modules are in the image
    assert base(taken) != base(built)
    # and no driver is looked for
    assert DriversBuilt(taken, Host(Local())).probe(Host(Local())) is None
