"""Chapter 13: both layouts of the howto's network, the internal LAN made, the BUGFIX shown.

Howto: „Netzwerk“, „Xen NIC-Layout“, „Konfiguration“.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xenlab.chapter.chapter import Chapter
from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.platform.choice import Services
from xenlab.platform.interfaces import guest_system
from xenlab.quoting import sh_settings
from xenlab.resources.base import All, Difference, Once, OnHost, Report, Resource
from xenlab.resources.files import File
from xenlab.resources.network import InterfaceUp, LanDevices, Reaches, vif
from xenlab.site.schema import LanGuest, Parameters

BUGFIX = "xenlab-vif"
SERVICE_SECONDS = 300.0


def bare(address: str) -> str:
    """An address without its prefix."""
    return address.partition("/")[0]


def lan_settings(site: Parameters) -> File:
    """What the program that makes the internal LAN's devices is told."""
    values = {
        "BRIDGE": site.lan_bridge,
        "INTERFACE": site.lan_interface,
        "VIF": vif(site.lan_interface),
    }
    text = f"# written by xenlab, chapter 13\n{sh_settings(values)}"
    return File("/etc/default/xenlab-lan", text)


def guest_interface(chapter: Chapter, name: str, interface: str, address: str) -> Resource:
    """A guest's second interface, configured „herkömmlich“ and up."""
    files = guest_system(chapter.site.platform).lan(interface, address)
    up = InterfaceUp(interface, address, chapter.interfaces.up(interface))
    return OnHost(name, chapter.guest(name), All((*(file.resource() for file in files), up)))


def reaches_the_others(chapter: Chapter, guest: LanGuest) -> Resource:
    """The condition that a guest reaches all others over the LAN."""
    others = [bare(other.address) for other in chapter.site.lan_guests if other != guest]
    return _from_guest(chapter, guest, others)


def lan_bug(chapter: Chapter) -> Resource:
    """Seen once: dom0 is not in its own LAN („Auf Domain0 fehlt es“)."""
    site = chapter.site
    parts = (
        LanDevices(site.lan_bridge, site.lan_interface, joined=False),
        *(
            _from_guest(chapter, guest, [bare(site.lan_address)], never=True)
            for guest in site.lan_guests[:1]
        ),
    )
    return Once("lan-bug", WithoutTheBugfix(parts, chapter.services), repr(site.lan_guests))


def _from_guest(
    chapter: Chapter, guest: LanGuest, addresses: list[str], *, never: bool = False
) -> Resource:
    reaches = Reaches(guest.name, tuple(addresses), never)
    return OnHost(guest.name, chapter.guest(guest.name), reaches)


@dataclass(frozen=True)
class WithoutTheBugfix(Resource):
    """An action that looks: these conditions hold while the BUGFIX service does not run."""

    conditions: tuple[Resource, ...]
    services: Services = field(compare=False)

    def probe(self, host: Host) -> Difference | None:
        """What will be looked at."""
        return Difference("look for dom0 in the internal LAN")

    def commands(self) -> tuple[Command, ...]:
        """Stop the service if it runs, look, start it again."""
        return self.services.stop(BUGFIX), Command("ip link show"), self.services.start(BUGFIX)

    def apply(self, host: Host, report: Report) -> None:
        """Look; a service that ran already runs again. Raises StepFailed for what does not hold."""
        report("looking for dom0 in the internal LAN")
        ran = host.test(self.services.runs(BUGFIX))
        if ran:
            host.run(self.services.stop(BUGFIX), timeout=SERVICE_SECONDS)
        try:
            difference = All(self.conditions).probe(host)
        finally:
            if ran:
                host.run(self.services.start(BUGFIX), timeout=SERVICE_SECONDS)
        if difference is not None:
            raise StepFailed(f"without {BUGFIX}: {difference.summary}")

    def verify(self, host: Host) -> None:
        """Apply has seen it."""


@dataclass(frozen=True)
class OutAndIn(Resource):
    """An action: the BUGFIX service is stopped and started; dom0 leaves the LAN and comes back."""

    inside: Resource
    outside: Resource
    reached: Reaches
    services: Services = field(compare=False)

    def probe(self, host: Host) -> Difference | None:
        """What will be done."""
        return Difference(f"stop and start {BUGFIX}")

    def commands(self) -> tuple[Command, ...]:
        """Stop it, see that nobody answers, start it again, see that all do."""
        pings = [Command.argv("ping", "-c", 1, one) for one in self.reached.addresses]
        silent = (Command(f"! {ping.text}") for ping in pings)
        answers = (p.scripted_as(f"until {p.text}; do sleep 1; done") for p in pings)
        return self.services.stop(BUGFIX), *silent, self.services.start(BUGFIX), *answers

    def apply(self, host: Host, report: Report) -> None:
        """Stop it, see dom0 alone; whatever is seen, start it again."""
        cut = Reaches(self.reached.who, self.reached.addresses, never=True)
        report(f"stopping {BUGFIX}")
        host.run(self.services.stop(BUGFIX), timeout=SERVICE_SECONDS)
        try:
            alone = All((self.outside, cut)).probe(host)
        finally:
            report(f"starting {BUGFIX}")
            host.run(self.services.start(BUGFIX), timeout=SERVICE_SECONDS)
        if alone is not None:
            raise StepFailed(f"with {BUGFIX} stopped: {alone.summary}")

    def verify(self, host: Host) -> None:
        """dom0 is in the LAN again."""
        difference = All((self.inside, self.reached)).probe(host)
        if difference is not None:
            raise StepFailed(f"with {BUGFIX} started again: {difference.summary}")
