"""Whether KVM on this machine can run Xen, found out by running it."""

from __future__ import annotations

import gzip
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from xenlab.lab import media, phases, process, qmp, signals, tools
from xenlab.lab.cache import cached

DEVICE = Path("/dev/kvm")
RECIPE = 1
PROBE_SECONDS = 40.0
_LOOK_SECONDS = 0.25
# Reached only after Xen has set up the CPU, built dom0 and left to it: instructions that a
# half-working KVM cannot emulate come before this.
_ALIVE = "Linux version"


def usable(report: tools.Report = tools.quiet) -> bool:
    """Whether Xen with a dom0 kernel boots under KVM here; asked once per CPU, kernel, QEMU.

    Opening the device proves nothing: a KVM that is itself nested may die inside Xen.
    Raises LabError if the hypervisor to try cannot be fetched.
    """
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return False
    inputs = {
        "recipe": RECIPE,
        "cpu": _cpu(),
        "kernel": platform.release(),
        "qemu": tools.output(["qemu-system-x86_64", "--version"]).splitlines()[0],
    }

    @phases.recorded(phases.KVM)
    def build(folder: Path) -> None:
        xen = hypervisor(report)
        kernel, _ = media.rescue(report)
        report("trying Xen under KVM", None)
        alive = boots(xen, kernel, folder)
        (folder / "verdict").write_text("yes\n" if alive else "no\n")

    return (cached("kvm", inputs, build) / "verdict").read_text() == "yes\n"


def hypervisor(report: tools.Report = tools.quiet) -> Path:
    """Xen as an ELF file that QEMU loads, out of Debian's package. Raises LabError."""
    package = _hypervisor_package()

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            there = Path(scratch)
            tools.run(
                ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package],
                report=report,
                what="fetching Xen",
                cwd=there,
                hint="look whether `apt-get update` works on this machine",
            )
            archive = next(there.glob("*.deb"))
            tools.run(["dpkg-deb", "-x", archive, there])
            packed = next(there.glob("boot/xen-*.gz"))
            with gzip.open(packed) as source, (folder / "xen.elf").open("wb") as target:
                shutil.copyfileobj(source, target)

    return cached("xen", {"package": package, "recipe": RECIPE}, build) / "xen.elf"


def boots(xen: Path, kernel: Path, folder: Path, accel: str = "kvm") -> bool:
    """Whether this Xen gets as far as its dom0 kernel's first words; leaves console.log.

    A KVM that cannot go on stops the machine, which ends the trial at once.
    """
    log, pidfile, socket = folder / "console.log", folder / "qemu.pid", folder / "qmp.sock"
    # QEMU splits this option's value at spaces and commas, which a cache path may contain
    module = folder / "vmlinuz"
    module.symlink_to(kernel)
    words = [
        "qemu-system-x86_64",
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-pidfile", str(pidfile), "-M", "q35"),
        *("-accel", accel, "-cpu", "host" if accel == "kvm" else "max,-smap", "-m", "1024"),
        *("-qmp", f"unix:{socket.name},server=on,wait=off", "-serial", f"file:{log.name}"),
        *("-kernel", str(xen), "-append", "console=com1 com1=115200,8n1 dom0_mem=512M"),
        *("-initrd", f"{module.name} console=hvc0 earlyprintk=xen"),
    ]
    child: subprocess.Popen[bytes] | None = None
    try:
        with (folder / "qemu.log").open("wb") as said, signals.uninterrupted():
            child = subprocess.Popen(
                words,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        return _watch(child, log, socket)
    finally:
        if child is not None:
            process.kill(child.pid)
            child.wait()
        for path in (pidfile, socket, module):
            path.unlink(missing_ok=True)


def _watch(child: subprocess.Popen[bytes], log: Path, socket: Path) -> bool:
    limit = time.monotonic() + PROBE_SECONDS
    while time.monotonic() < limit:
        if log.exists() and _ALIVE in log.read_text(errors="replace"):
            return True
        if process.wait_end(child.pid, _LOOK_SECONDS):
            return False
        if socket.exists() and not qmp.execute(socket, "query-status")["running"]:
            return False
    return False


def _hypervisor_package() -> str:
    names = tools.output(["apt-cache", "depends", "--important", "xen-system-amd64"])
    match = re.search(r"Depends: (xen-hypervisor-\S+)", names)
    return match[1] if match else "xen-hypervisor-4.17-amd64"


def _cpu() -> str:
    text = Path("/proc/cpuinfo").read_text()
    wanted = re.findall(
        r"^(?:model name|flags|microcode)\s*: (.*)$", text.partition("\n\n")[0], re.M
    )
    return " | ".join(wanted)
