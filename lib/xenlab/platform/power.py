"""Power: the seam between a chapter that wants another medium booted and who can do that.

Howto: „nimmt man sich am besten die Gentoo-CD zur Hand und bootet sie erneut“.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Literal, Protocol

from xenlab.command import Command
from xenlab.errors import BadInput, ConnectionRefused, StepFailed
from xenlab.host import Host
from xenlab.parameters import Parameters
from xenlab.resources.base import Asked, Report

Medium = Literal["disk", "rescue"]
"""The machine's own disk, or the rescue system (the howto's CD)."""

BOOT_SECONDS = 1200.0
"""How long a boot may take, in seconds: an emulated machine under load needs minutes."""

PERSON_SECONDS = 3600.0
"""How long we wait for a person to boot the machine."""

COMMAND_SECONDS = 1200.0
"""Deadline of the command that starts a boot; the lab's waits for the new system itself."""


class Power(Protocol):
    """Who makes the machine boot another medium."""

    seconds: float
    """How long it may take until the machine answers again."""

    def boot(self, medium: Medium, controller: Host, report: Report) -> None:
        """Have the machine boot a medium; returns before it is up. Raises what went wrong."""


def power(site: Parameters) -> Power:
    """The answer that a site names."""
    if site.power == "lab":
        return Lab(site.lab)
    if site.power == "ipmi":
        return Ipmi.from_environment(os.environ)
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
            f"the {_called(medium)} did not come up: {error.message}",
            hint="look at the machine's console; once it is up, run the step again",
        ) from error
    report(f"the {_called(medium)} answered after {time.monotonic() - start:.0f} s")
    return after


class Lab:
    """The embedded lab: its own command line restarts QEMU (`xenlab lab boot`)."""

    seconds = BOOT_SECONDS

    def __init__(self, name: str) -> None:
        self.name = name

    def boot(self, medium: Medium, controller: Host, report: Report) -> None:
        """Have QEMU start again from a medium."""
        report(f"the lab boots its {_called(medium)}")
        command = Command.argv(
            sys.executable, "-m", "xenlab", "lab", "boot", medium, "--name", self.name
        )
        # QEMU outlives this step: it must not carry the step's mark, by which a stopped step's
        # processes are found and ended.
        controller.marked("").run(command, timeout=COMMAND_SECONDS)


class Ipmi:
    """A server's management controller, over the network (ipmitool(1)).

    The password goes by the environment, where ipmitool itself looks for it (-E).
    """

    seconds = BOOT_SECONDS
    variables = ("IPMI_HOST", "IPMI_USER", "IPMI_PASSWORD")

    def __init__(self, address: str, user: str) -> None:
        self.address = address
        self.user = user

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Ipmi:
        """The controller that ``$IPMI_HOST`` and ``$IPMI_USER`` name. Raises BadInput."""
        missing = [name for name in cls.variables if not environment.get(name)]
        if missing:
            raise BadInput(
                f"power: ipmi needs {', '.join(missing)} in the environment",
                hint="export IPMI_HOST, IPMI_USER and IPMI_PASSWORD, or use power: manual",
            )
        return cls(environment["IPMI_HOST"], environment["IPMI_USER"])

    def boot(self, medium: Medium, controller: Host, report: Report) -> None:
        """Set the device of the next boot, then reset; the rescue system comes over the network."""
        device = "disk" if medium == "disk" else "pxe"
        for words in (("chassis", "bootdev", device), ("chassis", "power", "cycle")):
            report(f"ipmitool {' '.join(words)}")
            base = ("ipmitool", "-I", "lanplus", "-H", self.address, "-U", self.user, "-E")
            controller.run(Command.argv(*base, *words), timeout=COMMAND_SECONDS)


class Manual:
    """A person at the machine, who is told what to do; the new boot id says that it was done."""

    seconds = PERSON_SECONDS

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
