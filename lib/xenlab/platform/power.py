"""Power: between a chapter that wants another medium booted and who can do that."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from xenlab.command import CONTROLLER, Command
from xenlab.errors import BadInput, ConnectionRefused, StepFailed
from xenlab.host import Host
from xenlab.masking import LEAST, Secret, mask
from xenlab.resources.base import Asked, Report
from xenlab.site.schema import Parameters, RedfishService

# Howto: „nimmt man sich am besten die Gentoo-CD zur Hand und bootet sie erneut“.

Medium = Literal["disk", "rescue"]
"""The machine's own disk, or the rescue system (the howto's CD)."""

BOOT_SECONDS = 1200.0
"""How long a boot may take, in seconds: an emulated machine under load needs minutes."""

PERSON_SECONDS = 3600.0
"""How long we wait for a person to boot the machine."""

COMMAND_SECONDS = 1200.0
"""Deadline of the command that starts a boot; the lab's waits for the new system itself."""


ASK_SECONDS = 120.0
"""Deadline of a question to a management controller; ipmitool tries for 20 seconds."""


class Power(Protocol):
    """Who makes the machine boot another medium."""

    seconds: float
    """How long it may take until the machine answers again."""

    def commands(self, medium: Medium) -> tuple[Command, ...]:
        """What boots a medium, run on the controller, as a person would type it."""

    def boot(self, medium: Medium, controller: Host, report: Report) -> None:
        """Have the machine boot a medium; returns before it is up. Raises what went wrong."""


def power(site: Parameters) -> Power:
    """The answer that a site names."""
    if site.power == "lab":
        return Lab(site.lab)
    if site.power == "ipmi":
        efi = site.ipmi_efiboot or site.firmware == "uefi"
        return Ipmi.from_environment(os.environ, site.ipmi_boot, efi=efi)
    if site.power == "redfish":
        hidden = Redfish.hidden_in(os.environ)
        return Redfish(site.redfish, efi=site.firmware == "uefi", hidden=hidden)
    return Manual()


def reboot(power: Power, medium: Medium, host: Host, controller: Host, report: Report) -> str:
    """Boot a medium and wait for it; returns the new boot id, which proves the boot.

    Unmount first what must be whole: the power may simply be cut. Raises StepFailed if nobody
    answers in time, HostKeyRefused at once if the new system's key is not pinned.
    """
    machine = host.inside("/")
    before = machine.boot_id()
    power.boot(medium, controller, report)
    start = time.monotonic()
    report(f"waiting until the {_called(medium)} answers")
    try:
        after = machine.wait_for_reboot(before, timeout=power.seconds)
    except ConnectionRefused as error:
        raise StepFailed(
            f"cannot boot the {_called(medium)}: because there was {error.message}",
            hint="look at the machine's console; once it is up, run the step again",
        ) from error
    report(f"the {_called(medium)} answered after {time.monotonic() - start:.0f} s")
    return after


def booted(power: Power, medium: Medium) -> tuple[Command, ...]:
    """What boots a medium, and waits until the machine that answers is one that booted since."""
    ask = "ssh dom0 cat /proc/sys/kernel/random/boot_id"
    noted = Command("").scripted_as(f"before=$({ask})").at(CONTROLLER)
    waited = Command("until ssh dom0 true; do sleep 5; done").at(CONTROLLER)
    text = f'until now=$({ask}) && [ "$now" != "$before" ]; do sleep 5; done'
    return noted, *power.commands(medium), waited.scripted_as(text)


class Lab:
    """The embedded lab: its own command line restarts QEMU (`xenlab lab boot`)."""

    seconds = BOOT_SECONDS

    def __init__(self, name: str) -> None:
        self.name = name

    def commands(self, medium: Medium) -> tuple[Command, ...]:
        """QEMU starts again."""
        words = ("lab", "boot", medium, "--lab", self.name)
        command = Command.argv(sys.executable, "-m", "xenlab", *words)
        return (command.typed_as("xenlab {words}", words=words).at(CONTROLLER),)

    def boot(self, medium: Medium, controller: Host, report: Report) -> None:
        """Have QEMU start again from a medium."""
        report(f"the lab boots its {_called(medium)}")
        (command,) = self.commands(medium)
        # QEMU outlives this step: it must not carry the step's mark, by which a stopped step's
        # processes are found and ended.
        controller.marked("").run(command, timeout=COMMAND_SECONDS)


class Managed(ABC):
    """A server's management controller, which the controller reaches over the network.

    Which one it is, and the login, the shell reads from the environment: no value of them stands in
    a command, and so none in a record. Programs name it when they fail: that is ``hidden``.
    """

    seconds = BOOT_SECONDS
    kind = program = further = ""

    def __init__(
        self, rescue: str = "pxe", *, efi: bool = False, hidden: tuple[Secret, ...] = ()
    ) -> None:
        self.rescue = rescue
        self.efi = efi
        self.hidden = hidden

    @classmethod
    def hidden_in(cls, environment: Mapping[str, str]) -> tuple[Secret, ...]:
        """The name of the controller that the environment names. Raises BadInput for none."""
        prefix = cls.kind.upper()
        variables = [f"{prefix}_{name}" for name in ("HOST", "USER", "PASSWORD")]
        missing = [name for name in variables if not environment.get(name)]
        if missing:
            raise BadInput(
                f"cannot use power: {cls.kind}: because the environment has no "
                f"{', '.join(missing)}",
                hint=f"export {' and '.join(', '.join(variables).rsplit(', ', 1))}, "
                "or use power: manual",
            )
        name = re.sub(r":\d+$", "", environment[variables[0]]).strip("[]")
        return (Secret(name),) if len(name) >= LEAST else ()

    @abstractmethod
    def texts(self, medium: Medium) -> tuple[str, ...]:
        """The device of the next boot, then a reset."""

    @abstractmethod
    def asked(self) -> str:
        """What only asks the controller, and ends with 0 if we may."""

    def commands(self, medium: Medium) -> tuple[Command, ...]:
        """The device of the next boot, then a reset."""
        return tuple(self._command(text) for text in self.texts(medium))

    def ready(self, controller: Host) -> None:
        """Raise BadInput unless the controller has the program, and may use what it reaches."""
        if not controller.test(Command(f"command -v {self.program}")):
            raise BadInput(
                f"cannot use power: {self.kind}: because the program {self.program} is not on the "
                "controller",
                hint=f"apt-get install {self.program}, or use power: manual",
            )
        result = controller.run(self._command(self.asked()), timeout=ASK_SECONDS, check=False)
        if not result.ok:
            lines = mask(result.stdout + result.stderr, result.secrets).strip().splitlines()
            # curl goes on to explain
            lines = [line for line in lines if line.startswith(f"{self.program}: ")] or lines
            raise BadInput(
                f"cannot use power: {self.kind}: because {self.program} said "
                f"“{lines[-1] if lines else f'exit status {result.status}'}”",
                hint=f"compare {self.kind.upper()}_HOST, _USER and _PASSWORD with what the server "
                f"takes{self.further}, or use power: manual",
            )
        self.judge(result.stdout)

    def judge(self, answer: str) -> None:
        """Raise BadInput where the answer to what was asked says that it will not do."""
        return

    def boot(self, medium: Medium, controller: Host, report: Report) -> None:
        """Set the device of the next boot, then reset."""
        for command in self.commands(medium):
            report(command.by_hand())
            controller.run(command, timeout=COMMAND_SECONDS)

    def _command(self, text: str) -> Command:
        return replace(Command(text).at(CONTROLLER), secrets=self.hidden)


class Ipmi(Managed):
    """One that speaks IPMI (ipmitool(1), which reads the password from the environment, -E)."""

    kind, program = "ipmi", "ipmitool"
    devices: Mapping[str, str] = {"pxe": "pxe", "cdrom": "cdrom", "usb": "floppy"}
    """What ipmitool calls the rescue system's place; "floppy" is any removable medium."""
    base = 'ipmitool -I lanplus -H "$IPMI_HOST" -U "$IPMI_USER" -E chassis'

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], rescue: str = "pxe", *, efi: bool = False
    ) -> Ipmi:
        """The controller that the environment names. Raises BadInput where it does not."""
        return cls(rescue, efi=efi, hidden=cls.hidden_in(environment))

    def texts(self, medium: Medium) -> tuple[str, ...]:
        """The device of the next boot, then a reset."""
        device = "disk" if medium == "disk" else self.devices[self.rescue]
        options = " options=efiboot" if self.efi else ""
        # ipmitool ends with 0 though the controller refuses the device
        set_device = f"{self.base} bootdev {device}{options} | grep 'Set Boot Device to'"
        return set_device, f"{self.base} power cycle"

    def asked(self) -> str:
        """Whether the power is on."""
        return f"{self.base} power status"


class Redfish(Managed):
    """One that speaks Redfish (DMTF DSP0266), by curl, which reads the login from a pipe.

    As an option it would stand in the list of processes.
    """

    kind, program = "redfish", "curl"
    further = "; say in redfish: ca or pin how its certificate is known"
    devices: Mapping[str, str] = {"pxe": "Pxe", "cdrom": "Cd", "usb": "Usb", "http": "UefiHttp"}
    """What Redfish calls the rescue system's place."""

    def __init__(
        self, service: RedfishService, *, efi: bool = False, hidden: tuple[Secret, ...] = ()
    ) -> None:
        super().__init__(service.boot, efi=efi, hidden=hidden)
        self.service = service

    def texts(self, medium: Medium) -> tuple[str, ...]:
        """The device of the next boot alone, then a reset."""
        boot = {
            "BootSourceOverrideEnabled": "Once",
            "BootSourceOverrideTarget": self._device(medium),
        }
        if self.efi:
            boot["BootSourceOverrideMode"] = "UEFI"
        reset = {"ResetType": "ForceRestart"}
        return (
            self._request("PATCH", "", {"Boot": boot}),
            self._request("POST", "/Actions/ComputerSystem.Reset", reset),
        )

    def asked(self) -> str:
        """What it says of the machine."""
        return self._request("GET")

    def judge(self, answer: str) -> None:
        """Refuse what it does not boot the machine from; a service need not say what it can."""
        try:
            boot = json.loads(answer)["Boot"]
            known = boot.get("BootSourceOverrideTarget@Redfish.AllowableValues", [])
        except (ValueError, LookupError, TypeError, AttributeError):
            raise BadInput(
                "cannot use power: redfish: because what answers is no Redfish system",
                hint="compare REDFISH_HOST, and redfish: system with /redfish/v1/Systems there",
            ) from None
        wanted = (self._device("rescue"), self._device("disk"))
        missing = [each for each in wanted if each not in known]
        if known and missing:
            raise BadInput(
                "cannot use power: redfish: because the management controller boots from "
                f"{', '.join(known)}, not from {missing[0]}",
                hint="put the rescue system where it boots from, and say so in redfish: boot",
            )

    def _device(self, medium: Medium) -> str:
        return "Hdd" if medium == "disk" else self.devices[self.rescue]

    def _request(
        self, method: str, action: str = "", body: Mapping[str, object] | None = None
    ) -> str:
        service = self.service
        words = ["curl", "-sS", "--fail-with-body", "-m", "60", "-H", "@-", "-X", method]
        if service.ca:
            words += ["--cacert", str(Path(service.ca).expanduser())]
        elif service.pin:
            # whose key is known may have signed its certificate itself, for another name
            words += ["-k"]
        if service.pin:
            words += ["--pinnedpubkey", service.pin]
        if body is not None:
            words += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        scheme = "http" if service.plain else "https"
        address = f'"{scheme}://$REDFISH_HOST/redfish/v1/Systems/{service.system}{action}"'
        login = 'printf %s "$REDFISH_USER:$REDFISH_PASSWORD" | base64 -w 0'
        header = f'printf "Authorization: Basic %s" "$({login})"'
        return f"{header} \\\n    | {shlex.join(words)} \\\n    {address}"


class Manual:
    """A person at the machine, who is told what to do; the new boot id says that it was done."""

    seconds = PERSON_SECONDS

    def commands(self, medium: Medium) -> tuple[Command, ...]:
        """None: hands do it."""
        asked = Command(f"# boot the machine from its {_called(medium)}").at(CONTROLLER)
        return (
            asked.scripted_as("echo {asked}", asked=f"boot the machine from its {_called(medium)}"),
        )

    def boot(self, medium: Medium, controller: Host, report: Report) -> None:
        """Ask for it."""
        hours = PERSON_SECONDS / 3600
        report(
            Asked(
                f"boot the machine from its {_called(medium)}. The step goes on by itself once "
                f"that answers, and waits {hours:.0f} h at most"
            )
        )


def _called(medium: Medium) -> str:
    return "disk" if medium == "disk" else "rescue system"
