"""How interfaces get their addresses at boot, dom0's and a guest's, and a guest's other files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from xenlab.command import Command
from xenlab.platform.base import by_platform
from xenlab.platform.openrc import Scripts
from xenlab.quoting import double_quoted
from xenlab.resources.base import Resource, Until
from xenlab.resources.files import File, Symlink, render
from xenlab.resources.guest import GuestFile
from xenlab.site.types import AUTO
from xenlab.site.uplink import accept_ra, on_link

BOND = "/usr/local/sbin/xenlab-bond"
"""The program that makes a bond, for ifup(8) and for the program that makes the bridge."""

# Gentoo's network configuration, net-misc/netifrc: what its files are called and say.

NETIFRC_SHARED = "net.lo"
"""The script that every interface's script is a link to."""


def netifrc_script(interface: str) -> str:
    """The service of an interface."""
    return f"net.{interface}"


def netifrc_script_path(interface: str) -> str:
    """Where that is a link."""
    return f"/etc/init.d/{netifrc_script(interface)}"


def netifrc_settings_path(interface: str) -> str:
    """A file of its own for an interface, which OpenRC reads after /etc/conf.d/net."""
    return f"/etc/conf.d/{netifrc_script(interface)}"


@dataclass(frozen=True)
class More:
    """What an uplink may have beside an address: the ``card`` that it is the VLAN of.

    ``bond`` is one of ``cards``, and ``mode`` its own; it may be the uplink, or that ``card``.
    ``addresses`` are further ones, of IPv4 or IPv6. ``gateway6``: IPv6's, or "auto": routers
    advertise it, and an address as well; "": what the kernel makes of that by itself.
    """

    card: str = ""
    vlan: int = 0
    addresses: tuple[str, ...] = ()
    gateway6: str = ""
    bond: str = ""
    mode: str = ""
    cards: tuple[str, ...] = ()
    bonds: str = BOND

    @property
    def router(self) -> str:
        """The gateway of IPv6 that the site names, "" where it names none."""
        return "" if self.gateway6 == AUTO else self.gateway6


def netifrc_settings(
    interface: str, address: str, gateway: str = "", more: More = More(), *, stay: bool = False
) -> str:
    """``config_`` and ``routes_`` of an interface; ``stay``: only by hand is it stopped."""
    name = re.sub(r"[^A-Za-z0-9]", "_", interface)
    addresses = " ".join((address, *more.addresses))
    lines = ["# written by xenlab", f"config_{name}={double_quoted(addresses)}"]
    if gateway:
        route = f"default via {gateway}{' onlink' if on_link(address, gateway) else ''}"
        lines.append(f"routes_{name}={double_quoted(route)}")
    if more.router:
        # a line for each route
        route = double_quoted(f"default via {more.router} onlink").strip('"')
        lines[-1] = f'{lines[-1].removesuffix(chr(34))}\n{route}"'
    if more.gateway6:
        place = "/proc/sys/net/ipv6/conf/${IFACE}/accept_ra"
        lines.append(f'preup() {{ echo {accept_ra(more.gateway6)} > "{place}"; }}')
    if stay:
        lines.append('rc_keyword="-stop"')
    return "".join(f"{line}\n" for line in lines)


# The name of a card that the site does not call by one.

NAME_RULE = "/etc/udev/rules.d/70-xenlab-uplink.rules"
"""Where udev is told it (udev(7), of systemd as of eudev)."""


def name_rule(macs: Mapping[str, str]) -> File:
    """What udev is told, so that the card of a MAC address has its name in every kernel.

    What has no driver is no card: dom0's end of the pair, a bridge and a VLAN may have its address.
    """
    rules = [
        f'SUBSYSTEM=="net", ACTION=="add", DRIVERS=="?*", ATTR{{type}}=="1", '
        f'ATTR{{address}}=="{mac}", NAME="{name}"\n'
        for name, mac in macs.items()
    ]
    text = "".join(("# written by xenlab, chapter 04\n", *rules))
    return File(NAME_RULE, text)


# How dom0's interfaces get their addresses at boot: each distribution has files of its own.
#
# Howto: „Konfiguration“ („ganz normal über die init-Scripte“).

STANZAS = "/etc/network/interfaces.d"
UPLINK = f"{STANZAS}/xenlab-uplink"
LAN = f"{STANZAS}/xenlab-lan"


class Interfaces(Protocol):
    """What a chapter asks. Addresses have their prefix; nothing is brought up or taken down."""

    def uplink(
        self, interface: str, address: str, gateway: str, bridge: str, more: More = More()
    ) -> tuple[Resource, ...]:
        """The address is on an interface; or on the bridge, where that has taken it over."""

    def beside_bridge(
        self, interface: str, address: str, gateway: str, bridge: str, more: More = More()
    ) -> tuple[Resource, ...]:
        """The address is on the interface, which the bridge's maker has given its name."""

    def on_bridge(
        self, interface: str, address: str, gateway: str, bridge: str, more: More = More()
    ) -> tuple[Resource, ...]:
        """The address is on the bridge, and none on its port."""

    def lan(self, interface: str, address: str) -> tuple[Resource, ...]:
        """What the service that brings dom0 into the internal LAN reads."""

    def up(self, interface: str) -> Command:
        """The command that brings an interface up as its files say."""


def interfaces(platform: str) -> Interfaces:
    """A platform's network configuration. Raises BadInput where it has none."""
    answers: dict[str, Interfaces] = {"debian": Ifupdown(), "gentoo": Netifrc()}
    return by_platform(platform, "network configuration", answers)


class Ifupdown:
    """Debian's interfaces(5): a file for each purpose, which /etc/network/interfaces takes in.

    ifup takes every gateway for one on the same wire (``onlink``), whatever the network is.
    """

    def uplink(
        self, interface: str, address: str, gateway: str, bridge: str, more: More = More()
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
        wanted = self.beside_bridge(interface, address, gateway, bridge, more)
        return (Until(wanted, Command.script(script, STANZAS, bridge)),)

    def beside_bridge(
        self, interface: str, address: str, gateway: str, bridge: str, more: More = More()
    ) -> tuple[Resource, ...]:
        """The same stanza."""
        values = {"interface": interface, "address": address, "gateway": gateway, "more": more}
        return (*_bonding(more), File(UPLINK, template="uplink.j2", values=values))

    def on_bridge(
        self, interface: str, address: str, gateway: str, bridge: str, more: More = More()
    ) -> tuple[Resource, ...]:
        """One for the bridge in its place."""
        values = {"bridge": bridge, "address": address, "gateway": gateway, "more": more}
        return (*_bonding(more), File(UPLINK, template="uplink-bridge.j2", values=values))

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


def _bonding(more: More) -> tuple[File, ...]:
    return (File(BOND, template="xenlab-bond.sh", mode=0o755),) if more.cards else ()


class Netifrc:
    """Gentoo's conf.d/net.INTERFACE, and a link to net.lo in the runlevel for each interface."""

    def uplink(
        self, interface: str, address: str, gateway: str, bridge: str, more: More = More()
    ) -> tuple[Resource, ...]:
        """The interface's script, until the bridge has one."""
        taken_over = Command.argv("test", "-e", netifrc_settings_path(bridge))
        return (Until(_scripted(interface, address, gateway, more), taken_over),)

    def beside_bridge(
        self, interface: str, address: str, gateway: str, bridge: str, more: More = More()
    ) -> tuple[Resource, ...]:
        """The interface's script is in the runlevel, the bridge's is not."""
        return (*_scripted(interface, address, gateway, more), _unscripted(bridge))

    def on_bridge(
        self, interface: str, address: str, gateway: str, bridge: str, more: More = More()
    ) -> tuple[Resource, ...]:
        """The bridge's script is in the runlevel, the interface's is not."""
        return (*_scripted(bridge, address, gateway, more), _unscripted(interface))

    def lan(self, interface: str, address: str) -> tuple[Resource, ...]:
        """Nothing: the script xenlab-lan-address holds the address itself."""
        return ()

    def up(self, interface: str) -> Command:
        """``rc-service net.INTERFACE restart``."""
        return Command.argv("rc-service", netifrc_script(interface), "restart")


def _scripted(interface: str, address: str, gateway: str, more: More) -> tuple[Resource, ...]:
    settings = netifrc_settings(interface, address, gateway, more)
    return (
        File(netifrc_settings_path(interface), settings),
        Symlink(netifrc_script_path(interface), NETIFRC_SHARED),
        Scripts((netifrc_script(interface),), enabled=True),
    )


def _unscripted(interface: str) -> Resource:
    return Scripts((netifrc_script(interface),), enabled=False)


# A guest's own configuration, written from dom0: what files each distribution wants for it.

UNITS = "/etc/systemd/system"

OFF = (
    "xen.service",
    "xendomains.service",
    "xenlab-bridge.service",
    "nfs-server.service",
    "distcc.service",
    "rpcbind.service",
    "rpcbind.socket",
    "modprobe@.service",
    "systemd-modules-load.service",
    "e2scrub_reap.service",
    "getty@.service",
)
"""What the image brings along from dom0 and a guest must not start by itself, or cannot use:
servers (chapter 15 unmasks NFS in a guest that is to serve), what
loads modules into a kernel without any, what looks after LVM; and all terminals but the Xen console
(for which systemd-getty-generator starts serial-getty@hvc0 by itself)."""

# Disks and the console come from dom0, as soon as it has a processor for them: where several guests
# boot at once without hardware support, systemd's 90 seconds end before, and login prompt and swap
# never come (systemd-system.conf(5)).
PATIENT = "[Manager]\nDefaultDeviceTimeoutSec=10min\n"

# „alle tty-Einträge bis auf den für tty1 auskommentiert“; what was tty1 is hvc0 today.
ONE_TERMINAL = r"""1i\
h0:12345:respawn:/sbin/agetty -L 115200 hvc0 linux
/^h0:/d
/^[^#].*:respawn:.*getty/s/^/#/"""


@dataclass(frozen=True)
class GuestSettings:
    """What is a guest's own: its names, its address with prefix, whom it asks, its disks."""

    name: str
    domain: str
    address: str
    gateway: str
    nameserver: str
    dom0: str
    dom0_address: str
    root_device: str = "/dev/xvda1"
    swap_device: str = "/dev/xvda2"


class GuestSystem(Protocol):
    """How a guest of a distribution is configured while it does not run."""

    def files(self, guest: GuestSettings) -> tuple[GuestFile, ...]:
        """The files of a guest."""

    def lan(self, interface: str, address: str) -> tuple[GuestFile, ...]:
        """The files of an interface in the internal LAN."""


class DebianGuest:
    """Debian: ifupdown, systemd."""

    def files(self, guest: GuestSettings) -> tuple[GuestFile, ...]:
        """Names, fstab, network, host key; masked units as links to /dev/null (systemctl(1))."""
        interfaces = render("guest-interfaces.j2", guest=guest)
        return (
            *_common(guest),
            GuestFile("/etc/network/interfaces", interfaces),
            GuestFile("/etc/systemd/system.conf.d/10-xenlab.conf", PATIENT),
            *(GuestFile(f"{UNITS}/{unit}", target="/dev/null") for unit in OFF),
        )

    def lan(self, interface: str, address: str) -> tuple[GuestFile, ...]:
        """A stanza of its own, which /etc/network/interfaces takes in."""
        text = render("guest-lan.j2", interface=interface, address=address)
        return (GuestFile("/etc/network/interfaces.d/xenlab-lan", text),)


class GentooGuest:
    """Gentoo: netifrc, OpenRC under sysvinit. The image holds no service that is dom0's alone."""

    def files(self, guest: GuestSettings) -> tuple[GuestFile, ...]:
        """Names, fstab, network, host key, and inittab(5) with one terminal: the Xen console."""
        return (
            *_common(guest),
            *_interface("eth0", netifrc_settings("eth0", guest.address, guest.gateway)),
            GuestFile("/etc/inittab", edit=ONE_TERMINAL),
        )

    def lan(self, interface: str, address: str) -> tuple[GuestFile, ...]:
        """An interface that stays up while the guest stops: its files come over it."""
        return _interface(interface, netifrc_settings(interface, address, stay=True))


def _common(guest: GuestSettings) -> tuple[GuestFile, ...]:
    return (
        GuestFile("/etc/hostname", f"{guest.name}\n"),
        *(
            GuestFile(f"/etc/{name}", render(f"guest-{name}.j2", guest=guest))
            for name in ("hosts", "fstab", "resolv.conf")
        ),
        # sshd would complain about each key type that was not made
        GuestFile(
            "/etc/ssh/sshd_config.d/10-xenlab-host-key.conf",
            "HostKey /etc/ssh/ssh_host_ed25519_key\n",
        ),
    )


def _interface(name: str, settings: str) -> tuple[GuestFile, ...]:
    script = netifrc_script_path(name)
    in_runlevel = f"/etc/runlevels/default/{netifrc_script(name)}"
    return (
        GuestFile(netifrc_settings_path(name), settings),
        GuestFile(script, target=NETIFRC_SHARED),
        GuestFile(in_runlevel, target=script),
    )


def guest_system(platform: str) -> GuestSystem:
    """How a platform's guests are configured. Raises BadInput where nobody knows."""
    answers: dict[str, GuestSystem] = {"debian": DebianGuest(), "gentoo": GentooGuest()}
    return by_platform(platform, "configuration of guests", answers)
