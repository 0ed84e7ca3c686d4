"""What no two hosts of a fleet may share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface

from xenlab.site.schema import Parameters


@dataclass(frozen=True)
class Claim:
    """What a host has for itself: ``kind`` and ``value`` within ``place``; ``who`` of it does."""

    kind: str
    place: str
    value: str
    who: str = ""


SENTENCES = {
    "site": "{one} and {two} have the same name of a site: {value}",
    "ssh": "{one} and {two} are reached at the same address (ssh.host): {value}",
    "lab": "{one} and {two} are the same lab: {value}",
    "address": "{one} and {two} have the same address: {value}",
    "MAC": "{one} and {two} have the same MAC: {value}",
    "name": "{one} and {two} have the same name in one network: {value}",
    "serial": "{one} and {two} may wipe the same disk: a serial is one disk's, and {value} is "
    "in may_wipe of both",
    "power": "{one} and {two} have power: {value}, and the environment names one management "
    "controller",
}
"""What is said of two hosts with the same claim."""


def violations(sites: Mapping[str, Parameters]) -> list[str]:
    """One sentence for each thing that two hosts claim, with the names of both."""
    taken: dict[tuple[str, str, str], tuple[str, str]] = {}
    found = []
    for host, site in sites.items():
        for claim in _claims(site):
            key = (claim.kind, claim.place, claim.value)
            first, who = taken.setdefault(key, (host, claim.who))
            if first != host:
                one, two = _named(first, who), _named(host, claim.who)
                found.append(SENTENCES[claim.kind].format(one=one, two=two, value=claim.value))
    return found


def _named(host: str, who: str) -> str:
    return f"{host} ({who})" if who else host


def _claims(site: Parameters) -> Iterator[Claim]:
    """All that a site has for itself. Its internal LAN leaves the machine nowhere: it has no part.

    Nor do a lab's network and its disks, which are the same in all labs.
    """
    within = f"lab {site.lab}" if site.power == "lab" else ""
    yield Claim("site", "", site.site)
    ways = {site.ssh.host: site.ssh.port}
    if site.dom0_ssh.host:
        ways[site.dom0_ssh.host] = site.dom0_ssh.port or site.ssh.port
    for host, port in ways.items():
        yield Claim("ssh", f"{site.ssh.config} {port}", host)
    if site.power == "lab":
        yield Claim("lab", "", site.lab)
    elif site.power != "manual":
        yield Claim("power", "", site.power)
    for serial in site.may_wipe:
        yield Claim("serial", within, serial)
    for who, address in _addresses(site):
        yield Claim("address", within, str(ip_interface(address).ip), who)
    if ":" in site.uplink:
        yield Claim("MAC", within, site.uplink.lower())
    yield Claim("name", _network(within, site.address), site.hostname)
    for guest in site.domains:
        for mac in (guest.mac, *(nic.mac for nic in guest.nics)):
            yield Claim("MAC", within, mac.lower(), guest.name)
        yield Claim("name", _network(within, guest.address), guest.name)


def _addresses(site: Parameters) -> Iterator[tuple[str, str]]:
    for address in (site.address, *site.addresses):
        yield "", address
    if site.ssh.rescue_address:
        yield "", site.ssh.rescue_address
    for guest in site.domains:
        yield guest.name, guest.address


def _network(within: str, address: str) -> str:
    return f"{within} {ip_interface(address).network}"
