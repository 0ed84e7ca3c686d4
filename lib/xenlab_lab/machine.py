"""The virtual machine: one QEMU process in one folder, driven over QMP; whether KVM can run Xen."""

from __future__ import annotations

import gzip
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xenlab import cache
from xenlab.cache import cached
from xenlab.errors import LabError
from xenlab.transport import local
from xenlab_lab import media, mirrors, tools
from xenlab_lab.hardware import LAB, SECOND_SERIAL, Hardware

# The virtual machine: one QEMU process in one folder, driven over QMP.

DISK_GIB = 16
MEMORY_MIB = 4096
CPUS = 2
SERIAL_MAX = 20
_START_SECONDS = 60.0
_QUIT_SECONDS = 60.0
_SNAPSHOT_SECONDS = 900.0
_PORT_TRIES = 20
_PORT_TAKEN = "could not set up host forwarding"
_DISK_NODE = "disk0"

# Under emulation Xen's dom0 dies at once if the CPU offers SMAP. And XSAVE does not heed CR0.TS, by
# which Xen notices that a vCPU wants its registers back: one vCPU would save another one's. FXSAVE
# does heed it, and is what is used where there is no XSAVE. A processor with ERMS promises that
# copying with `rep movsb` is fast, and kernels and C library do so; emulated, each byte is a turn.
ACCELERATION = {
    "kvm": ("-accel", "kvm", "-cpu", "host"),
    "tcg": ("-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,-smap,-xsave,-erms"),
}


def serial_for(name: str) -> str:
    """The disk serial of a lab: what a parameters file names in `may_wipe`.

    Raises LabError if the name gives a serial longer than a disk can carry.
    """
    serial = "XENLAB-" + name.upper()
    if len(serial) > SERIAL_MAX:
        raise LabError(
            f"cannot name a lab {name!r}: because its disk's serial would be too long",
            hint=f"use at most {SERIAL_MAX - len('XENLAB-')} characters",
        )
    return serial


@dataclass(frozen=True)
class Direct:
    """A kernel that QEMU loads itself, past the disk.

    Under emulation a library is translated once if it lies at the same address in every process.
    """

    kernel: Path
    initrd: Path
    append: str = "console=ttyS0 net.ifnames=0 quiet panic=10 mitigations=off norandmaps"


class Machine:
    """One machine; everything it leaves behind is in `folder`.

    Sizes are MiB (`memory`) and GiB (`disk_gib`).
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        memory: int = MEMORY_MIB,
        disk_gib: int = DISK_GIB,
    ) -> None:
        self.folder = folder
        self.name = name
        self.memory = memory
        self.disk_gib = disk_gib
        self.serial = serial_for(name)
        self.disk = folder / "disk.qcow2"
        # a raw image, mostly of somebody else's: attached where there is one
        self.second_disk = folder / "second.raw"
        self.console_log = folder / "console.log"
        self.console_socket = folder / "serial.sock"
        self._pidfile = folder / "qemu.pid"
        self._qmp = folder / "qmp.sock"

    def create_disk(self, hardware: Hardware = LAB) -> None:
        """Make the empty disk if there is none, and the second one. Raises LabError."""
        if hardware.second_disk_gib and not self.second_disk.exists():
            with self.second_disk.open("wb") as second:
                second.truncate(hardware.second_disk_gib << 30)
        if self.disk.exists():
            return
        unfinished = self.disk.with_suffix(".new")
        tools.run(["qemu-img", "create", "-q", "-f", "qcow2", unfinished, f"{self.disk_gib}G"])
        unfinished.rename(self.disk)

    def pid(self) -> int | None:
        """The process id of the running QEMU, None if there is none."""
        return tools.running_pid(self._pidfile)

    def start(
        self,
        direct: Direct | None,
        *,
        accel: str,
        port: int | None = None,
        paused: bool = False,
        open_network: bool = False,
        firmware: Sequence[str] = (),
        hardware: Hardware = LAB,
    ) -> int:
        """Start QEMU, from `direct` or else from the disk; returns the loopback port of sshd.

        `port` is taken if it is free. Without `open_network` the relay is all that the domains
        reach; `firmware` is QEMU's words for another one than its BIOS. Raises LabError if the
        machine already runs, or QEMU ends at once; QEMU's own words are in the message.
        """
        if self.pid() is not None:
            raise LabError(
                f"cannot start the machine of lab {self.name!r}: because it is running",
                hint="xenlab lab down",
            )
        self._clear_leftovers()
        wanted = port
        for _ in range(_PORT_TRIES):
            chosen = _free_port(wanted)
            from_disk = direct is None
            way = hardware.network.user(from_disk=from_disk)
            network = self._network(chosen, way, everything=open_network)
            words = self.words(direct, accel, network, paused=paused, hardware=hardware)
            starter = hardware.network.starter() if from_disk else ()
            refusal = self._launch([*starter, *words, *firmware])
            if refusal is None:
                for card in hardware.unplugged(from_disk=from_disk):
                    tools.qmp_execute(self._qmp, "set_link", name=card, up=False)
                return chosen
            if _PORT_TAKEN not in refusal.lower():
                raise LabError(
                    f"cannot start QEMU: because it ended: {refusal}",
                    hint=f"look at {self.folder / 'qemu.log'}",
                )
            wanted = None
        raise _no_port()

    def power_button(self) -> None:
        """Press the ACPI power button. Raises LabError if QEMU does not answer."""
        tools.qmp_execute(self._qmp, "system_powerdown")

    def wait_off(self, seconds: float) -> bool:
        """Whether QEMU ended by itself within `seconds`."""
        pid = self.pid()
        if pid is None or tools.wait_for_end(pid, seconds):
            self._clear_leftovers()
            return True
        return False

    def quit(self) -> None:
        """End QEMU now: its disk image is closed properly, the guest is not asked."""
        pid = self.pid()
        if pid is None:
            self._clear_leftovers()
            return
        try:
            tools.qmp_execute(self._qmp, "quit")
            ended = tools.wait_for_end(pid, _QUIT_SECONDS)
        except LabError:
            ended = False
        if not ended:
            tools.kill_process(pid)
        self._clear_leftovers()

    def kill(self) -> None:
        """End QEMU with SIGKILL, for a start that did not get far enough to be asked."""
        pid = self.pid()
        if pid is not None:
            tools.kill_process(pid)
        self._clear_leftovers()

    def save(self, tag: str) -> None:
        """Keep disk and memory under a name in the disk image, replacing an older one.

        Raises LabError.
        """
        if tag in self.tags():
            self.forget(tag)
        self._snapshot("snapshot-save", tag, vmstate=_DISK_NODE)

    def load(self, tag: str) -> None:
        """Go back to a saved disk and memory, and run on from there. Raises LabError."""
        tools.qmp_execute(self._qmp, "stop")
        self._snapshot("snapshot-load", tag, vmstate=_DISK_NODE)
        tools.qmp_execute(self._qmp, "cont")

    def forget(self, tag: str) -> None:
        """Delete a saved state. Raises LabError."""
        self._snapshot("snapshot-delete", tag)

    def tags(self) -> list[str]:
        """The names of the saved states of the running machine. Raises LabError."""
        nodes = tools.qmp_execute(self._qmp, "query-named-block-nodes", flat=True)
        return [
            snapshot["name"]
            for node in nodes
            if node["node-name"] == _DISK_NODE
            for snapshot in node["image"].get("snapshots", [])
        ]

    def _snapshot(self, command: str, tag: str, **arguments: str) -> None:
        tools.qmp_job(
            self._qmp,
            command,
            seconds=_SNAPSHOT_SECONDS,
            tag=tag,
            devices=[_DISK_NODE],
            **arguments,
        )

    def words(
        self,
        direct: Direct | None,
        accel: str,
        network: str,
        *,
        paused: bool = False,
        hardware: Hardware = LAB,
    ) -> list[str]:
        """QEMU's command line; `network` is its word for the one network."""
        # The sockets and logs are named relative to the folder QEMU is started in: a Unix
        # socket's path must not be longer than 107 bytes.
        words = [
            "qemu-system-x86_64",
            *("-name", f"guest=xenlab-{self.name}"),
            *("-pidfile", str(self._pidfile)),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            # nobody sees it, but boot loaders are tried with a screen, rarely without
            *("-vga", "std"),
            *("-M", "q35"),
            *ACCELERATION[accel],
            *("-smp", str(CPUS), "-m", str(hardware.memory_mib or self.memory)),
            *("-chardev", f"socket,id=qmp,path={self._qmp.name},server=on,wait=off"),
            *("-mon", "chardev=qmp,mode=control"),
            *(
                "-chardev",
                f"socket,id=serial,path={self.console_socket.name},server=on,wait=off,"
                f"logfile={self.console_log.name},logappend=on",
            ),
            *("-serial", "chardev:serial"),
            *(
                "-blockdev",
                f"driver=qcow2,node-name={_DISK_NODE},discard=unmap,"
                f"file.driver=file,file.filename={self.disk.name}",
            ),
            *hardware.controller(),
            *("-device", f"{hardware.disk_device(_DISK_NODE, 0, self.serial)},bootindex=1"),
            *self._second_disk(hardware),
            *("-netdev", network),
            *hardware.card_devices(from_disk=direct is None),
            *("-device", "virtio-rng-pci"),
        ]
        if direct:
            words += ["-kernel", str(direct.kernel), "-initrd", str(direct.initrd)]
            words += ["-append", direct.append]
        if paused:
            words += ["-S"]
        return words

    def _network(self, port: int, way: tuple[str, str, str], *, everything: bool) -> str:
        own, address, relay = way
        limits = "" if everything else "restrict=on,ipv6=off,"
        return (
            f"user,id=net0,{own}{limits}hostfwd=tcp:127.0.0.1:{port}-{address}:22,"
            f"guestfwd=tcp:{relay}-cmd:sh {mirrors.STARTER}"
        )

    def _second_disk(self, hardware: Hardware) -> tuple[str, ...]:
        if not self.second_disk.exists():
            return ()
        file = f"driver=raw,node-name=disk1,file.driver=file,file.filename={self.second_disk.name}"
        return ("-blockdev", file, "-device", hardware.disk_device("disk1", 1, SECOND_SERIAL))

    def _launch(self, words: Sequence[str]) -> str | None:
        """Start QEMU and wait until it takes commands; its complaint if it ended instead."""
        log = self.folder / "qemu.log"
        child: subprocess.Popen[bytes] | None = None
        try:
            # an interruption of the start finds the child that it must end
            with local.uninterrupted():
                child = _started(words, log)
            limit = time.monotonic() + _START_SECONDS
            while child.poll() is None:
                if self.pid() == child.pid and self._qmp.exists():
                    tools.qmp_execute(self._qmp, "query-status", seconds=_START_SECONDS)
                    return None
                if time.monotonic() > limit:
                    raise tools.qemu_refused("start", f"it took more than {_START_SECONDS:.0f} s")
                tools.wait_for_end(child.pid, 0.05)
        except BaseException:
            if child is not None:
                tools.kill_process(child.pid)
            raise
        return log.read_text(errors="replace").strip() or f"exit status {child.returncode}"

    def _clear_leftovers(self) -> None:
        for path in (self._pidfile, self._qmp, self.console_socket):
            path.unlink(missing_ok=True)


def _started(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """QEMU, started in the folder of its log."""
    try:
        with log.open("wb") as output:
            return subprocess.Popen(
                words,
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except FileNotFoundError:
        raise tools.missing(words[0]) from None


def _free_port(wanted: int | None) -> int:
    for port in (wanted, 0):
        if port is None:
            continue
        with socket.socket() as probe:
            # QEMU's listener sets it too: a port in TIME_WAIT is free for both
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise _no_port()


def _no_port() -> LabError:
    return LabError(
        "cannot start the machine: because no port on loopback is free for its sshd",
        hint="end what listens on so many: ss -ltnp",
    )


# Whether KVM on this machine can run Xen, found out by running it.

KVM_DEVICE = Path("/dev/kvm")
KVM_RECIPE = 1
PROBE_SECONDS = 40.0
_LOOK_SECONDS = 0.25
# Reached only after Xen has set up the CPU, built dom0 and left to it: instructions that a
# half-working KVM cannot emulate come before this.
_ALIVE = "Linux version"


def kvm_usable(report: tools.Report = tools.quiet) -> bool:
    """Whether Xen with a dom0 kernel boots under KVM here; asked once per CPU, kernel, QEMU.

    Opening the device proves nothing: a KVM that is itself nested may die inside Xen.
    Raises LabError if the hypervisor to try cannot be fetched.
    """
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return False
    inputs = {
        "recipe": KVM_RECIPE,
        "cpu": _cpu(),
        "kernel": platform.release(),
        "qemu": tools.output(["qemu-system-x86_64", "--version"]).splitlines()[0],
    }

    @cache.phase_recorded(cache.KVM)
    def build(folder: Path) -> None:
        xen = hypervisor(report)
        kernel, _ = media.rescue(report)
        report("trying Xen under KVM", None)
        alive = kvm_boots(xen, kernel, folder)
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
                hint="run `apt-get update` on this machine",
            )
            archive = next(there.glob("*.deb"))
            tools.run(["dpkg-deb", "-x", archive, there])
            packed = next(there.glob("boot/xen-*.gz"))
            with gzip.open(packed) as source, (folder / "xen.elf").open("wb") as target:
                shutil.copyfileobj(source, target)

    return cached("xen", {"package": package, "recipe": KVM_RECIPE}, build) / "xen.elf"


def kvm_boots(xen: Path, kernel: Path, folder: Path) -> bool:
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
        *ACCELERATION["kvm"],
        *("-m", "1024"),
        *("-qmp", f"unix:{socket.name},server=on,wait=off", "-serial", f"file:{log.name}"),
        *("-kernel", str(xen), "-append", "console=com1 com1=115200,8n1 dom0_mem=512M"),
        *("-initrd", f"{module.name} console=hvc0 earlyprintk=xen"),
    ]
    child: subprocess.Popen[bytes] | None = None
    try:
        with local.uninterrupted():
            child = _started(words, folder / "qemu.log")
        return _watch(child, log, socket)
    finally:
        if child is not None:
            tools.kill_process(child.pid)
            child.wait()
        for path in (pidfile, socket, module):
            path.unlink(missing_ok=True)


def _watch(child: subprocess.Popen[bytes], log: Path, socket: Path) -> bool:
    limit = time.monotonic() + PROBE_SECONDS
    while time.monotonic() < limit:
        if log.exists() and _ALIVE in log.read_text(errors="replace"):
            return True
        if tools.wait_for_end(child.pid, _LOOK_SECONDS):
            return False
        if socket.exists() and not tools.qmp_execute(socket, "query-status")["running"]:
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
