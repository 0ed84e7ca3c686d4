"""What dom0's uplink is called and made of, and which names and addresses go together."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from xenlab.site.types import AUTO

if TYPE_CHECKING:
    from xenlab.site.schema import Parameters

UPLINK_NAME = "uplink0"
"""What dom0 calls its network card where the site says which it is, but not by its name."""

BOND_NAME = "bond0"
"""What dom0 calls the bond of its cards, where they are more than one."""

KERNELS_NAME = re.compile(r"eth\d+")
"""What kernels call a network card."""

UDEVS_NAME = re.compile(r"(en|wl|ww)([ops]\d|x[0-9a-f]{12}).*")
"""What udev calls it (systemd.net-naming-scheme(7))."""


def by_card(site: Parameters) -> bool:
    """Whether the uplink is said by its MAC address or as ``auto``, not by a name."""
    return site.uplink == AUTO or ":" in site.uplink


def card_name(site: Parameters) -> str:
    """What the uplink's network card is called in dom0."""
    return UPLINK_NAME if by_card(site) else site.uplink


def card_names(site: Parameters) -> tuple[str, ...]:
    """What the cards of the uplink are called in dom0: more than one only of a bond."""
    others = enumerate(site.uplink_bond.members, start=1)
    named = (f"uplink{number}" if ":" in card else card for number, card in others)
    return card_name(site), *named


def lower_name(site: Parameters) -> str:
    """What the uplink's card is called in dom0, or the bond of its cards."""
    return BOND_NAME if site.uplink_bond.members else card_name(site)


def uplink_name(site: Parameters) -> str:
    """What dom0's uplink is called, the bridge's port to be: card, bond, or a VLAN's interface.

    No ``eth0.100``: ifupdown takes such a name for its own, and deletes what is called so.
    """
    return f"vlan{site.uplink_vlan}" if site.uplink_vlan else lower_name(site)


def on_link(address: str, gateway: str) -> bool:
    """Whether the gateway is outside the network of an address: then it is on the same wire."""
    return ipaddress.IPv4Address(gateway) not in ipaddress.IPv4Interface(address).network


def accept_ra(gateway6: str) -> int:
    """What the kernel makes of router advertisements: 2 takes them, 0 does not.

    With 1, its own default, it takes them as long as the machine forwards nothing.
    """
    return {"": 1, AUTO: 2}.get(gateway6, 0)


def _in_dom0(site: Parameters) -> Iterator[str]:
    """A card that is called otherwise once dom0 runs: nobody would reach it."""
    if site.platform == "gentoo-2006":
        return
    kept = "net.ifnames=0" in site.dom0_options.split()
    for card in (site.uplink, *site.uplink_bond.members):
        if KERNELS_NAME.fullmatch(card) and not kept:
            yield f"uplink {card} needs net.ifnames=0 in dom0_options: udev renames it else"
        if UDEVS_NAME.fullmatch(card) and kept:
            yield f"uplink {card} is udev's name: net.ifnames=0 in dom0_options forbids it"


def _two_interfaces(site: Parameters) -> Iterator[str]:
    """An uplink that is its own bridge, or its own VLAN."""
    if site.bridge in (uplink_name(site), *card_names(site), lower_name(site)):
        yield f"uplink and bridge are the same: {site.bridge}"
    if site.uplink_vlan and uplink_name(site) == site.uplink:
        yield f"uplink must be the network card, not its VLAN, which is to be called {site.uplink}"


def _renamed(site: Parameters) -> Iterator[str]:
    """An uplink that cannot be renamed as the howto does it."""
    if site.dom0_ip_on_bridge:
        return
    uplink = uplink_name(site)
    if len(uplink) > 14:
        yield f"uplink must be at most 14 characters, as it is renamed to p{uplink}"
    if site.bridge == f"p{uplink}":
        yield f"bridge must not be {site.bridge}: the uplink is renamed to that"


def _lan_devices(site: Parameters) -> Iterator[str]:
    """Devices of the internal LAN that cannot be told apart from others."""
    uplink = uplink_name(site)
    devices = [uplink, site.bridge, f"p{uplink}", site.lan_bridge, site.lan_interface]
    devices += {*card_names(site), lower_name(site)} - {uplink}
    for name in (site.lan_bridge, site.lan_interface):
        if devices.count(name) > 1:
            yield f"lan_bridge and lan_interface must be names of their own, not {name}"
    if not site.lan_interface[-1].isdigit():
        yield f"lan_interface must end in a number, as veth1 does, not {site.lan_interface}"
    elif _number(site.lan_interface) == _number(uplink) and not site.dom0_ip_on_bridge:
        yield (
            f"lan_interface must have another number than {uplink}: "
            f"the other ends are called vif0.{_number(uplink)}"
        )


def _bond(site: Parameters) -> Iterator[str]:
    """Cards that are in the bond twice, or called as it or as another of them."""
    names = card_names(site)
    given = [site.uplink.lower(), *(card.lower() for card in site.uplink_bond.members)]
    for number, card in enumerate(site.uplink_bond.members):
        me = f"uplink_bond.members[{number}]"
        if card == AUTO:
            yield f"{me} must be a network card's MAC address or name: only uplink can be auto"
        elif given[number + 1] in given[: number + 1]:
            yield f"{me} is in the bond already: {card}"
        elif names[number + 1] in (*names[: number + 1], BOND_NAME):
            yield f"{me} must not be called {card}: another interface is"
    if site.uplink_bond.members and site.uplink == BOND_NAME:
        yield f"uplink must be the first network card, not the bond, which is called {BOND_NAME}"


def _no_cards(site: Parameters) -> Iterator[str]:
    """A network card that 2006 cannot give a name."""
    if site.platform == "gentoo-2006" and by_card(site):
        yield "uplink must be an interface's name on platform gentoo-2006: nothing is renamed there"


def _no_vlan(site: Parameters) -> Iterator[str]:
    """A VLAN, or a bond, where nobody writes the files for one."""
    for key, asked in (
        ("uplink_vlan", site.uplink_vlan),
        ("uplink_bond", site.uplink_bond.members),
    ):
        if site.platform != "debian" and asked:
            yield f"{key} is for platform debian: nobody writes {site.platform}'s files for one"


def _number(interface: str) -> int:
    """The number at an interface's end, 0 where it has none."""
    return int(interface[len(interface.rstrip("0123456789")) :] or "0")


UPLINK_RULES: tuple[tuple[tuple[str, ...], Callable[[Parameters], Iterator[str]]], ...] = (
    (("uplink", "uplink_bond", "uplink_vlan", "bridge"), _two_interfaces),
    (("uplink", "uplink_bond", "uplink_vlan", "bridge", "dom0_ip_on_bridge"), _renamed),
    (
        (
            *("lan_bridge", "lan_interface", "bridge", "dom0_ip_on_bridge"),
            *("uplink", "uplink_bond", "uplink_vlan"),
        ),
        _lan_devices,
    ),
    (("uplink", "uplink_bond"), _bond),
    (("uplink", "uplink_bond", "dom0_options", "platform"), _in_dom0),
    (("platform", "uplink"), _no_cards),
    (("platform", "uplink_bond", "uplink_vlan"), _no_vlan),
)
"""Each rule with the parameters that it compares; see `xenlab.site.rules.RULES`."""
