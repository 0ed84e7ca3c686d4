"""How dom0's interfaces get their addresses at boot: each distribution has files of its own.

Howto: „Konfiguration“ („ganz normal über die init-Scripte“).
"""

from __future__ import annotations

from typing import Protocol

from xenlab.command import Command
from xenlab.errors import BadInput
from xenlab.platform import netifrc
from xenlab.platform.openrc import Scripts
from xenlab.resources.base import Resource
from xenlab.resources.files import File, Symlink
from xenlab.resources.until import Until

STANZAS = "/etc/network/interfaces.d"
UPLINK = f"{STANZAS}/xenlab-uplink"
LAN = f"{STANZAS}/xenlab-lan"


class Interfaces(Protocol):
    """What a chapter asks. Addresses have their prefix; nothing is brought up or taken down."""

    def uplink(
        self, interface: str, address: str, gateway: str, bridge: str
    ) -> tuple[Resource, ...]:
        """The address is on an interface; or on the bridge, where that has taken it over."""

    def beside_bridge(
        self, interface: str, address: str, gateway: str, bridge: str
    ) -> tuple[Resource, ...]:
        """The address is on the interface, which the bridge's maker has given its name."""

    def on_bridge(
        self, interface: str, address: str, gateway: str, bridge: str
    ) -> tuple[Resource, ...]:
        """The address is on the bridge, and none on its port."""

    def lan(self, interface: str, address: str) -> tuple[Resource, ...]:
        """What the service that brings dom0 into the internal LAN reads."""

    def up(self, interface: str) -> Command:
        """The command that brings an interface up as its files say."""


def interfaces(platform: str) -> Interfaces:
    """A platform's answer; raises BadInput where there is none."""
    if platform == "debian":
        return Ifupdown()
    if platform == "gentoo":
        return Netifrc()
    raise BadInput(f"no network configuration is known for the platform {platform!r}")


class Ifupdown:
    """Debian's interfaces(5): a file for each purpose, which /etc/network/interfaces takes in."""

    def uplink(
        self, interface: str, address: str, gateway: str, bridge: str
    ) -> tuple[Resource, ...]:
        """A stanza, until one for the bridge is found in any file."""
        script = """
            for file in "$1"/*; do
                [ -e "$file" ] || continue
                while read -r word name rest; do
                    [ "$word $name" != "iface $2" ] || exit 0
                done < "$file"
            done
            exit 1
        """
        wanted = self.beside_bridge(interface, address, gateway, bridge)
        return (Until(wanted, Command.script(script, STANZAS, bridge)),)

    def beside_bridge(
        self, interface: str, address: str, gateway: str, bridge: str
    ) -> tuple[Resource, ...]:
        """The same stanza."""
        values = {"interface": interface, "address": address, "gateway": gateway}
        return (File(UPLINK, template="uplink.j2", values=values),)

    def on_bridge(
        self, interface: str, address: str, gateway: str, bridge: str
    ) -> tuple[Resource, ...]:
        """One for the bridge in its place."""
        values = {"bridge": bridge, "address": address, "gateway": gateway}
        return (File(UPLINK, template="uplink-bridge.j2", values=values),)

    def lan(self, interface: str, address: str) -> tuple[Resource, ...]:
        """A stanza that nothing but xenlab-lan-address.service brings up."""
        values = {"interface": interface, "address": address}
        return (File(LAN, template="lan-interface.j2", values=values),)

    def up(self, interface: str) -> Command:
        """ifup(8), whatever it believes the interface's state to be."""
        script = """
            ifdown --force -- "$1" > /dev/null 2>&1 || :
            ifup -- "$1"
        """
        return Command.script(script, interface)


class Netifrc:
    """Gentoo's conf.d/net.INTERFACE, and a link to net.lo in the runlevel for each interface."""

    def uplink(
        self, interface: str, address: str, gateway: str, bridge: str
    ) -> tuple[Resource, ...]:
        """The interface's script, until the bridge has one."""
        taken_over = Command.argv("test", "-e", netifrc.settings_path(bridge))
        return (Until(_scripted(interface, address, gateway), taken_over),)

    def beside_bridge(
        self, interface: str, address: str, gateway: str, bridge: str
    ) -> tuple[Resource, ...]:
        """The interface's script is in the runlevel, the bridge's is not."""
        return (*_scripted(interface, address, gateway), _unscripted(bridge))

    def on_bridge(
        self, interface: str, address: str, gateway: str, bridge: str
    ) -> tuple[Resource, ...]:
        """The bridge's script is in the runlevel, the interface's is not."""
        return (*_scripted(bridge, address, gateway), _unscripted(interface))

    def lan(self, interface: str, address: str) -> tuple[Resource, ...]:
        """Nothing: the script xenlab-lan-address holds the address itself."""
        return ()

    def up(self, interface: str) -> Command:
        """``rc-service net.INTERFACE restart``."""
        return Command.argv("rc-service", netifrc.script(interface), "restart")


def _scripted(interface: str, address: str, gateway: str) -> tuple[Resource, ...]:
    return (
        File(netifrc.settings_path(interface), netifrc.settings(interface, address, gateway)),
        Symlink(netifrc.script_path(interface), netifrc.SHARED),
        Scripts((netifrc.script(interface),), enabled=True),
    )


def _unscripted(interface: str) -> Resource:
    return Scripts((netifrc.script(interface),), enabled=False)
