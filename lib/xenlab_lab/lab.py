"""The embedded lab: an empty disk, a rescue system, and the way in."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xenlab import cache, durable
from xenlab.cache import cache_root, locked
from xenlab.errors import BadInput, LabError
from xenlab.transport import local
from xenlab_lab import media, mirrors, stage, tools
from xenlab_lab.access import DOM0, Access, attach_console, wait_for_ssh
from xenlab_lab.hardware import LAB, Hardware
from xenlab_lab.machine import DISK_GIB, MEMORY_MIB, Direct, Machine, kvm_usable
from xenlab_lab.stage import StageMaker

# What a lab remembers between two commands.

Accel = Literal["kvm", "tcg"]
Boot = Literal["rescue", "disk"]
Network = Literal["restricted", "open"]
"""What the domains reach: the mirrors' relay alone, or all that this machine reaches."""


class State(BaseModel):
    """The content of state.json."""

    model_config = ConfigDict(extra="forbid")

    boot: Boot = "rescue"
    network: Network = "restricted"
    firmware: media.Firmware = "bios"
    hardware: Hardware = Field(default=LAB, exclude_if=lambda it: it == LAB)
    port: int | None = None
    accel: Accel = "tcg"
    guests: dict[str, str] = Field(default_factory=dict)
    snapshots: dict[str, Boot] = Field(default_factory=dict)


def state_of(name: str) -> State:
    """What a lab remembers, by its name. Raises LabError if the file is damaged."""
    return load_state(cache_root() / "labs" / name / "state.json")


def load_state(path: Path) -> State:
    """The remembered state, or the first one. Raises LabError if the file is damaged."""
    try:
        return State.model_validate_json(path.read_text())
    except FileNotFoundError:
        return State()
    except ValidationError as error:
        raise LabError(
            f"cannot read {path}: because it is damaged: {error.errors()[0]['msg']}",
            hint="xenlab lab reset",
        ) from error


def save_state(path: Path, state: State) -> None:
    """Replace the remembered state atomically."""
    durable.replace(path, f"{state.model_dump_json(indent=2)}\n".encode())


class Status(BaseModel):
    """What a lab is doing. `accel`, `port` and `pid` are None unless it runs."""

    model_config = ConfigDict(frozen=True)

    name: str
    running: bool
    boot: Boot
    network: Network
    accel: str | None
    port: int | None
    pid: int | None
    serial: str
    disk: Path
    ssh_config: Path
    console_log: Path
    guests: dict[str, str]
    snapshots: list[str]


UP_SECONDS = 600.0
DOWN_SECONDS = 300.0
_ASK_SECONDS = 30
_ACPI_SECONDS = 20.0
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class Lab:
    """One embedded lab. All it owns lies in one folder below the cache; labs do not meet.

    Sizes: `memory` MiB, `disk_gib` GiB (the disk is sparse; its size counts when it is made).
    Every method may raise LabError; a second command on the same lab is refused meanwhile.
    """

    def __init__(
        self,
        name: str = "lab",
        *,
        memory: int = MEMORY_MIB,
        disk_gib: int = DISK_GIB,
        report: tools.Report = tools.quiet,
    ) -> None:
        """Raises BadInput if the name is not lower case letters, digits and inner dashes."""
        if not _NAME.fullmatch(name):
            raise BadInput(
                f"cannot name a lab {name!r}: because a folder and a disk are named after it",
                hint="use lower case letters, digits and dashes",
            )
        self.name = name
        self.folder = cache_root() / "labs" / name
        self.machine = Machine(self.folder, name, memory=memory, disk_gib=disk_gib)
        self.access = Access(self.folder)
        self._report = report
        self._state_file = self.folder / "state.json"

    def up(
        self,
        boot: Boot | None = None,
        *,
        make_stage: StageMaker = stage.stage,
        network: Network | None = None,
        firmware: media.Firmware | None = None,
        hardware: Hardware | None = None,
        seconds: float = UP_SECONDS,
    ) -> Status:
        """Create what is missing, start the machine and wait until ssh lets us in.

        `boot` defaults to what was booted last, a new lab's rescue system at first; `make_stage`
        makes the stage that is unpacked from there. `network` is remembered as well, "restricted"
        at first: the domains reach the controller's package mirrors and nothing else. So are
        `firmware`, "bios" at first, and `hardware`, the lab's own at first, until `reset`.
        Interrupted or failed, it leaves no process of its own behind.
        """
        with self._locked():
            remembered = self._state()
            source: Boot = boot or remembered.boot
            way: Network = network or remembered.network
            parts = hardware or remembered.hardware
            what = parts.firmware or firmware or remembered.firmware
            now = (remembered.boot, remembered.network, remembered.firmware, remembered.hardware)
            if hardware and (missing := hardware.missing()):
                raise LabError(
                    f"cannot make such a machine: because QEMU here has no {', '.join(missing)}",
                    hint="name other hardware, or install a newer QEMU",
                )
            if self.machine.pid() is not None and now != (source, way, what, parts):
                self._stop()
            if now[1:] != (way, what, parts):
                self._remember(network=way, firmware=what, hardware=parts)
            if source == "rescue":
                # what a rescue system is booted for: to unpack this onto the disk
                make_stage(self._report)
            self._run(source, seconds)
            return self.status()

    def boot(self, source: Boot, *, wait: bool = False) -> Status:
        """Start the machine afresh from "disk" or "rescue"; remembered for the next `up`.

        A running system is asked to shut down first. Without `wait` it returns as soon as the
        machine runs, for callers that wait for the new system themselves.
        """
        with self._locked():
            self._stop()
            self._run(source, UP_SECONDS if wait else None)
            return self.status()

    def down(self, *, hard: bool = False) -> None:
        """Shut the running system down, or with `hard` cut its power; no process is left."""
        with self._locked():
            self._stop(hard=hard)

    def reset(self) -> None:
        """Throw away disk, snapshots and pinned host keys. Own keys and media are kept."""
        with self._locked():
            self._stop(hard=True)
            try:
                now = self._state()
            except LabError:
                # a damaged state is one of the reasons to reset
                now = State()
            if now.hardware.second_disk_gib:
                self.machine.second_disk.unlink(missing_ok=True)
            self.machine.disk.unlink(missing_ok=True)
            (self.folder / media.VARIABLES).unlink(missing_ok=True)
            self.machine.console_log.unlink(missing_ok=True)
            self.access.forget_hosts()
            save_state(self._state_file, State(port=now.port))

    def remove(self) -> None:
        """Stop the machine and delete everything the lab owns."""
        with self._locked():
            self._stop(hard=True)
            shutil.rmtree(self.folder)

    def status(self) -> Status:
        """What the lab is doing now; also while another command works on it."""
        now, pid = self._state(), self.machine.pid()
        return Status(
            name=self.name,
            running=pid is not None,
            boot=now.boot,
            network=now.network,
            accel=now.accel if pid else None,
            port=now.port if pid else None,
            pid=pid,
            serial=self.machine.serial,
            disk=self.machine.disk,
            ssh_config=self.access.config,
            console_log=self.machine.console_log,
            guests=now.guests,
            snapshots=sorted(now.snapshots),
        )

    def snapshot(self, tag: str) -> None:
        """Keep disk and memory of the running machine under a name (replaces an older one)."""
        if not _TAG.fullmatch(tag):
            raise BadInput(
                f"cannot name a snapshot {tag!r}: because QEMU may misread that",
                hint="use letters and digits",
            )
        with self._locked():
            self._running()
            self._report(f"saving snapshot {tag}", None)
            self.machine.save(tag)
            now = self._state()
            self._remember(snapshots={**now.snapshots, tag: now.boot})

    def restore(self, tag: str) -> Status:
        """Put disk and memory back to a snapshot and run on; the machine may be off."""
        with self._locked():
            now = self._state()
            if tag not in now.snapshots:
                raise BadInput(
                    f"cannot restore snapshot {tag!r}: because there is none of that name",
                    hint=f"use one of: {', '.join(sorted(now.snapshots)) or 'none yet'}",
                )
            self._report(f"restoring snapshot {tag}", None)
            with self._no_leftover():
                if self.machine.pid() is not None:
                    # memory that is about to be replaced needs no orderly shutdown
                    self.machine.quit()
                mirrors.write(self.folder)
                self._start(now.snapshots[tag], paused=True)
                self.machine.load(tag)
                self._wait(UP_SECONDS)
            return self.status()

    def set_guests(self, guests: Mapping[str, str]) -> None:
        """Write the guests (name to address in the lab) into the lab's ssh_config."""
        with self._locked():
            now = self._remember(guests=dict(guests))
            self.access.write_config(now.port or 22, now.guests)

    def ssh_argv(self, domain: str = DOM0, command: Sequence[str] = ()) -> list[str]:
        """The command line that logs in to dom0 or a guest, or runs `command` there."""
        self._running()
        self._known(domain)
        return self.access.argv(domain, command)

    def attach(self, domain: str = DOM0) -> int:
        """Join a console from this terminal, dom0's serial line or a guest's; Ctrl-] leaves.

        Returns the exit status.
        """
        self._running()
        if domain == DOM0:
            attach_console(self.machine.console_socket)
            return 0
        self._known(domain)
        return subprocess.call(self.access.argv(DOM0, ["xl", "console", domain], tty=True))

    def wait_for_ssh(self, seconds: float = UP_SECONDS) -> None:
        """Wait until dom0 (or the rescue system) lets us in; ends early if the machine dies."""
        self._running()
        self._wait(seconds)

    def _run(self, source: Boot, seconds: float | None) -> None:
        # also for a machine that runs: each connection reads it anew
        mirrors.write(self.folder)
        if self.machine.pid() is not None:
            if seconds is not None:
                self._wait(seconds)
            return
        with self._no_leftover():
            self._start(source)
            if seconds is not None:
                with cache.phase_recorded(cache.boot_phase(source)):
                    self._wait(seconds)

    def _start(self, source: Boot, *, paused: bool = False) -> None:
        self.access.create_keys()
        now = self._state()
        firmware = media.firmware_words(now.firmware, self.folder)
        direct = None
        if source == "rescue":
            parts = now.hardware
            kernel, image = media.rescue(
                self._report,
                now.firmware,
                any_hardware=parts.other,
                kind=parts.rescue,
            )
            initrd = self.folder / "rescue.img"
            user = media.RESCUE_USER if parts.rescue == "debian-sudo" else ""
            self.access.key_archive(initrd, image, user)
            direct = Direct(kernel, initrd)
        self.machine.create_disk(now.hardware)
        accel: Accel = "kvm" if kvm_usable(self._report) else "tcg"
        self._report(f"starting the machine: from {source}, {accel}", None)
        port = self.machine.start(
            direct,
            accel=accel,
            port=now.port,
            paused=paused,
            open_network=now.network == "open",
            firmware=firmware,
            hardware=now.hardware,
        )
        self.access.pin(port)
        self.access.write_config(port, now.guests)
        self._remember(boot=source, accel=accel, port=port)

    def _wait(self, seconds: float) -> None:
        port = self._state().port
        assert port is not None
        wait_for_ssh(
            port,
            self.access.argv(DOM0, ["true"]),
            seconds=seconds,
            alive=lambda: self.machine.pid() is not None,
            console=self.machine.console_log,
            report=self._report,
        )

    def _stop(self, *, hard: bool = False) -> None:
        if self.machine.pid() is None or hard:
            self.machine.quit()
            return
        self._report("shutting the machine down", None)
        if self._ask_poweroff():
            if self.machine.wait_off(DOWN_SECONDS):
                return
        else:
            with suppress(LabError):
                self.machine.power_button()
            if self.machine.wait_off(_ACPI_SECONDS):
                return
        self.machine.quit()

    def _ask_poweroff(self) -> bool:
        """Whether the system took the order; over ssh, as not every system heeds a button."""
        try:
            done = subprocess.run(
                self.access.argv(DOM0, ["sync; nohup sh -c 'sleep 0.2; poweroff' >&- 2>&- <&- &"]),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_ASK_SECONDS,
                check=False,
            )
        except (subprocess.TimeoutExpired, FileNotFoundError):
            return False
        return done.returncode == 0

    def _state(self) -> State:
        return load_state(self._state_file)

    def _remember(self, **changes: Any) -> State:
        now = self._state().model_copy(update=changes)
        save_state(self._state_file, now)
        return now

    def _running(self) -> None:
        if self.machine.pid() is None:
            raise LabError(
                f"cannot reach the lab {self.name!r}: because it is not running",
                hint="xenlab lab up",
            )

    def _known(self, domain: str) -> None:
        names = [DOM0, *self._state().guests]
        if domain not in names:
            raise BadInput(
                f"cannot reach {domain!r}: because the lab has no domain of that name",
                hint=f"use one of: {', '.join(names)}",
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = self.folder.with_name(f".{self.name}.lock")
        try:
            with locked(lock, wait=False), local.ending_cleanly():
                yield
        except BlockingIOError:
            raise LabError(
                f"cannot work on the lab {self.name!r}: because another command does",
                hint="wait for its end",
            ) from None

    @contextmanager
    def _no_leftover(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with local.uninterrupted():
                self.machine.kill()
            raise
