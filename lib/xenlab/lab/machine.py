"""The virtual machine: one QEMU process in one folder, driven over QMP."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xenlab.errors import LabError
from xenlab.lab import mirrors, process, qmp, signals, tools

MAC = "52:54:00:12:34:56"
RELAY = ("10.0.2.4", 3142)
"""Where the domains find the relay to the mirrors, whatever else they reach."""
DISK_GIB = 16
MEMORY_MIB = 4096
CPUS = 2
SERIAL_MAX = 20
SECOND_SERIAL = "XENLAB-SECOND"
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
            f"the lab name {name!r} is too long",
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
        cpus: int = CPUS,
        disk_gib: int = DISK_GIB,
    ) -> None:
        self.folder = folder
        self.name = name
        self.memory = memory
        self.cpus = cpus
        self.disk_gib = disk_gib
        self.serial = serial_for(name)
        self.disk = folder / "disk.qcow2"
        # a raw image of somebody else's, not made here: attached where there is one
        self.second_disk = folder / "second.raw"
        self.console_log = folder / "console.log"
        self.console_socket = folder / "serial.sock"
        self._pidfile = folder / "qemu.pid"
        self._qmp = folder / "qmp.sock"

    def create_disk(self) -> None:
        """Make the empty disk if there is none. Raises LabError."""
        if self.disk.exists():
            return
        unfinished = self.disk.with_suffix(".new")
        tools.run(["qemu-img", "create", "-q", "-f", "qcow2", unfinished, f"{self.disk_gib}G"])
        unfinished.rename(self.disk)

    def pid(self) -> int | None:
        """The process id of the running QEMU, None if there is none."""
        return process.alive(self._pidfile)

    def start(
        self,
        direct: Direct | None,
        *,
        accel: str,
        port: int | None = None,
        paused: bool = False,
        open_network: bool = False,
    ) -> int:
        """Start QEMU, from `direct` or else from the disk; returns the loopback port of sshd.

        `port` is taken if it is free. Without `open_network` the relay is all that the domains
        reach. Raises LabError if the machine already runs, or QEMU ends at once; QEMU's own words
        are in the message.
        """
        if self.pid() is not None:
            raise LabError(f"the machine of lab {self.name!r} is already running")
        self._clear_leftovers()
        wanted = port
        for _ in range(_PORT_TRIES):
            chosen = _free_port(wanted)
            network = self._network(chosen, everything=open_network)
            refusal = self._launch(self._arguments(direct, accel, network, paused=paused))
            if refusal is None:
                return chosen
            if _PORT_TAKEN not in refusal.lower():
                raise LabError(f"QEMU did not start: {refusal}")
            wanted = None
        raise LabError("no free port on loopback was found for the lab's sshd")

    def power_button(self) -> None:
        """Press the ACPI power button. Raises LabError if QEMU does not answer."""
        qmp.execute(self._qmp, "system_powerdown")

    def wait_off(self, seconds: float) -> bool:
        """Whether QEMU ended by itself within `seconds`."""
        pid = self.pid()
        if pid is None or process.wait_end(pid, seconds):
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
            qmp.execute(self._qmp, "quit")
            ended = process.wait_end(pid, _QUIT_SECONDS)
        except LabError:
            ended = False
        if not ended:
            process.kill(pid)
        self._clear_leftovers()

    def kill(self) -> None:
        """End QEMU with SIGKILL, for a start that did not get far enough to be asked."""
        pid = self.pid()
        if pid is not None:
            process.kill(pid)
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
        qmp.execute(self._qmp, "stop")
        self._snapshot("snapshot-load", tag, vmstate=_DISK_NODE)
        qmp.execute(self._qmp, "cont")

    def forget(self, tag: str) -> None:
        """Delete a saved state. Raises LabError."""
        self._snapshot("snapshot-delete", tag)

    def tags(self) -> list[str]:
        """The names of the saved states of the running machine. Raises LabError."""
        nodes = qmp.execute(self._qmp, "query-named-block-nodes", flat=True)
        return [
            snapshot["name"]
            for node in nodes
            if node["node-name"] == _DISK_NODE
            for snapshot in node["image"].get("snapshots", [])
        ]

    def _snapshot(self, command: str, tag: str, **arguments: str) -> None:
        qmp.run_job(
            self._qmp,
            command,
            seconds=_SNAPSHOT_SECONDS,
            tag=tag,
            devices=[_DISK_NODE],
            **arguments,
        )

    def _arguments(
        self, direct: Direct | None, accel: str, network: str, *, paused: bool
    ) -> list[str]:
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
            *("-smp", str(self.cpus), "-m", str(self.memory)),
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
            *("-device", f"virtio-blk-pci,drive={_DISK_NODE},serial={self.serial},bootindex=1"),
            *self._second_disk(),
            *("-netdev", network),
            *("-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile="),
            *("-device", "virtio-rng-pci"),
        ]
        if direct:
            words += ["-kernel", str(direct.kernel), "-initrd", str(direct.initrd)]
            words += ["-append", direct.append]
        if paused:
            words += ["-S"]
        return words

    def _network(self, port: int, *, everything: bool) -> str:
        address, at = RELAY
        limits = "" if everything else "restrict=on,ipv6=off,"
        return (
            f"user,id=net0,{limits}hostfwd=tcp:127.0.0.1:{port}-:22,"
            f"guestfwd=tcp:{address}:{at}-cmd:sh {mirrors.STARTER}"
        )

    def _second_disk(self) -> tuple[str, ...]:
        if not self.second_disk.exists():
            return ()
        file = f"driver=raw,node-name=disk1,file.driver=file,file.filename={self.second_disk.name}"
        device = f"virtio-blk-pci,drive=disk1,serial={SECOND_SERIAL}"
        return ("-blockdev", file, "-device", device)

    def _launch(self, words: Sequence[str]) -> str | None:
        """Start QEMU and wait until it takes commands; its complaint if it ended instead."""
        log = self.folder / "qemu.log"
        child: subprocess.Popen[bytes] | None = None
        try:
            with log.open("wb") as output, signals.uninterrupted():
                child = subprocess.Popen(
                    words,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            limit = time.monotonic() + _START_SECONDS
            while child.poll() is None:
                if self.pid() == child.pid and self._qmp.exists():
                    qmp.execute(self._qmp, "query-status", seconds=_START_SECONDS)
                    return None
                if time.monotonic() > limit:
                    raise LabError(f"QEMU did not take commands within {_START_SECONDS:.0f} s")
                process.wait_end(child.pid, 0.05)
        except FileNotFoundError:
            raise tools.missing(words[0]) from None
        except BaseException:
            if child is not None:
                process.kill(child.pid)
            raise
        return log.read_text(errors="replace").strip() or f"exit status {child.returncode}"

    def _clear_leftovers(self) -> None:
        for path in (self._pidfile, self._qmp, self.console_socket):
            path.unlink(missing_ok=True)


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
    raise LabError("no free port on loopback")
