"""Chapters 11 and 12: domains created, visited, shut down and destroyed, and started with dom0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from xenlab.chapter.chapter import Chapter
from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.platform.choice import Services
from xenlab.platform.power import Power, booted, reboot
from xenlab.platform.xl import Xl
from xenlab.resources.base import Difference, Once, OnHost, PathsExist, Report, Resource, Until
from xenlab.resources.xen import FOLDER, RUNNING, toolstack_answers, wait_for_toolstack

# Chapter 11: domains are created, visited, rebooted, shut down, destroyed, and left running.
#
# What is shown on one domain is shown on the first of the site.


def configurations_written(chapter: Chapter) -> Resource:
    """The domains' configuration files."""
    return PathsExist(tuple(chapter.toolstack.config_path(d.name) for d in chapter.site.domains))


def found_domains(chapter: Chapter, names: Sequence[str]) -> pd.DataFrame:
    """The table of domains; in a plan for a machine without Xen, those that would run."""
    try:
        return chapter.toolstack.domains(chapter.target)
    except CommandFailed:
        if chapter.mode == "apply":
            raise
        return pd.DataFrame({"name": names, "state": "would run"})


def at_hand(chapter: Chapter, names: Sequence[str]) -> list[str]:
    """Which of these guests can be looked at: all; in a plan, which waits for none, who runs."""
    return list(names) if chapter.mode == "apply" else now_running(chapter, names)


def now_running(chapter: Chapter, names: Sequence[str]) -> list[str]:
    """Which of these guests run."""
    table = found_domains(chapter, names)
    running = {str(row["name"]) for row in table.to_dict("records") if row["state"] == "running"}
    return [name for name in names if name in running]


# Chapter 12: guests that start together with dom0, proven by a power cycle.
#
# Howto: „Auto-DomainU-Boot“.

BACK_SECONDS = 1800.0
"""How long the guests may take to be there again after a boot, in seconds."""

SAVED = "/var/lib/xen/save"


def power_cycled(chapter: Chapter) -> list[Resource]:
    """The machine was switched off and on; exactly the selected guests came back."""
    names = tuple(chapter.site.autostart)
    cycle = PowerCycled(
        names, chapter.toolstack, chapter.services, chapter.power, chapter.controller
    )
    return [Once("power-cycle", cycle, repr(names))] if names else []


def autostart_table(chapter: Chapter) -> pd.DataFrame:
    """Every guest of the site, its place in the order of starting, and what is linked now."""
    order = {name: place for place, name in enumerate(chapter.site.autostart, 1)}
    links = chapter.target.run(Command.argv("ls", "--", FOLDER), check=False).stdout.split()
    linked = {link.partition("-")[2].removesuffix(".cfg") for link in links}
    rows = [
        {
            "guest": d.name,
            "starts with dom0": "yes" if d.name in order else "no",
            "place": str(order.get(d.name, "-")),
            "linked now": "yes" if d.name in linked else "no",
        }
        for d in chapter.site.domains
    ]
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class PowerCycled(Resource):
    """An action: the machine is switched off and on; then just these guests run, in this order.

    Guests are shut down with dom0, not saved: no memory image is left behind.
    """

    names: tuple[str, ...]
    toolstack: Xl = field(compare=False)
    services: Services = field(compare=False)
    power: Power = field(compare=False)
    controller: Host = field(compare=False)

    def probe(self, host: Host) -> Difference | None:
        """What will be done."""
        who = ", ".join(self.names) or "dom0 alone"
        return Difference(f"switch the machine off and on, and see {who} come back")

    def commands(self) -> tuple[Command, ...]:
        """Guests down, power off and on; the last line waits until the last guest is created."""
        stop, start = self.services.stop("xendomains"), self.services.start("xendomains")
        boot = (*booted(self.power, "disk"), toolstack_answers())
        return (stop, Command("sync"), *boot, start, Command("xl list"))

    def apply(self, host: Host, report: Report) -> None:
        """Restart the machine and wait until the last of the guests was created."""
        machine = host.inside("/")
        report("shutting the guests down")
        machine.run(self.services.stop("xendomains"), timeout=BACK_SECONDS)
        machine.run("sync", timeout=BACK_SECONDS)
        reboot(self.power, "disk", machine, self.controller, report)
        report("waiting for Xen's services")
        wait_for_toolstack(machine)
        report("waiting for the guests")
        # it was started at boot: this only waits until it has created the last of them
        machine.run(self.services.start("xendomains"), timeout=BACK_SECONDS)

    def verify(self, host: Host) -> None:
        """Raise StepFailed unless these guests run, no other, created in this order."""
        found = self._found(host)
        running = [name for name, state in found.items() if state == RUNNING]
        if running != list(self.names) or len(found) > len(running):
            came = (n if s == RUNNING else f"{n} ({s})" for n, s in found.items())
            raise StepFailed(
                f"{', '.join(came) or 'no guest'} came back, wanted: {', '.join(self.names)}",
                hint=f"{self.services.hint('xendomains')}; xl list",
            )
        saved = host.run(Command.script('ls -A -- "$1" 2> /dev/null || :', SAVED)).stdout.split()
        if saved:
            raise StepFailed(f"guests were saved and not shut down: {', '.join(saved)} in {SAVED}")

    def _found(self, host: Host) -> dict[str, str]:
        """The guests that there are with their states, in the order of their creation."""
        table = self.toolstack.domains(host).sort_values("id")
        pairs = zip(table["name"], table["state"], strict=True)
        return {str(name): str(state) for name, state in pairs if name != "Domain-0"}


# Chapters 12 and 15: no service of dom0, or of a guest that runs, has failed.


def none_failed(chapter: Chapter) -> dict[str, Resource]:
    """The condition that no service has failed, in dom0 and in each guest that runs."""
    none = chapter.services.none_failed()
    found: dict[str, Resource] = {"dom0": none}
    for domain in chapter.site.domains:
        inside = OnHost(domain.name, chapter.guest(domain.name), none)
        found[domain.name] = Until((inside,), chapter.toolstack.gone(domain.name))
    return found
