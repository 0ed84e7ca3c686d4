"""Chapter 12: guests that start together with dom0, proven by a power cycle.

Howto: „Auto-DomainU-Boot“.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

from xenlab.chapter import Chapter
from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.platform.power import Power, reboot
from xenlab.platform.services import Services
from xenlab.platform.toolstack import Toolstack
from xenlab.recipes.action import found_domains
from xenlab.resources.autostart import FOLDER
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.domain_state import RUNNING
from xenlab.resources.running_xen import wait_for_toolstack
from xenlab.resources.shown import Shown

BACK_SECONDS = 1800.0
"""How long the guests may take to be there again after a boot, in seconds."""

DOM0_WEIGHT = 1024
"""Dom0's share of the processors, where a guest has 256 (xl(1), "sched-credit2")."""

SAVED = "/var/lib/xen/save"


def links(book: Chapter) -> Resource:
    """The selected guests' configurations, linked where xendomains looks."""
    return book.toolstack.autostarted(tuple(book.site.autostart))


def service(book: Chapter) -> tuple[Resource, ...]:
    """xendomains at every boot, with time enough, dom0 served first."""
    settings = book.services.adjusted("xendomains", weight=DOM0_WEIGHT)
    return settings, book.services.enabled("xendomains")


def power_cycled(book: Chapter) -> list[Resource]:
    """The machine was switched off and on; exactly the selected guests came back."""
    names = tuple(book.site.autostart)
    cycle = PowerCycled(names, book.toolstack, book.services, book.power, book.controller)
    return [Shown("power-cycle", cycle, repr(names))] if names else []


def selected(book: Chapter) -> pd.DataFrame:
    """Every guest of the site, its place in the order of starting, and what is linked now."""
    order = {name: place for place, name in enumerate(book.site.autostart, 1)}
    links = book.target.run(Command.argv("ls", "--", FOLDER), check=False).stdout.split()
    linked = {link.partition("-")[2].removesuffix(".cfg") for link in links}
    rows = [
        {
            "guest": d.name,
            "starts with dom0": "yes" if d.name in order else "no",
            "place": str(order.get(d.name, "-")),
            "linked now": "yes" if d.name in linked else "no",
        }
        for d in book.site.domains
    ]
    return pd.DataFrame(rows)


def domains(book: Chapter) -> Callable[[], pd.DataFrame]:
    """The domains that run, read when the step runs."""
    return lambda: found_domains(book, book.site.autostart)


@dataclass(frozen=True)
class PowerCycled(Resource):
    """An action: the machine is switched off and on; then just these guests run, in this order.

    Guests are shut down with dom0, not saved: no memory image is left behind.
    """

    names: tuple[str, ...]
    toolstack: Toolstack = field(compare=False)
    services: Services = field(compare=False)
    power: Power = field(compare=False)
    controller: Host = field(compare=False)

    def probe(self, host: Host) -> Difference | None:
        """What will be done."""
        who = ", ".join(self.names) or "dom0 alone"
        return Difference(f"switch the machine off and on, and see {who} come back")

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
