"""dom0's bridge as xend's network-bridge made it, and the internal LAN."""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xenlab.command import Command
from xenlab.errors import BadInput, CommandTimeout, ConnectionLost, ConnectionRefused, StepFailed
from xenlab.host import UPTIME, Host
from xenlab.resources.base import Check, Difference, Report, Resource
from xenlab.resources.files import packaged
from xenlab.site.types import AUTO
from xenlab.site.uplink import UPLINK_NAME, on_link

# Bridge: dom0's network as xend's network-bridge made it, switched over without a lock-out.
#
# Howto: „Xen NIC-Layout“, „Physikalische Devices“; ip-link(8), ip-address(8).

DUMB_MAC = "fe:ff:ff:ff:ff:ff"
"""The MAC address of ports that must not be talked to: the highest one that is unicast."""

REMEMBERED = 8_640_000
"""How long the bridge knows where a silent guest is, in seconds: 100 days."""

MEETING = "/run/xenlab-bridge"
"""Where the switch-over and its confirmation meet, on the target; gone after a reboot."""

_START_SECONDS = 120.0
_ASK_SECONDS = 30.0
_AFTER_SECONDS = 120.0


@dataclass(frozen=True)
class Bridge(Resource):
    """The uplink is a port of a bridge; dom0's address is beside it, or on it.

    ``address_on_bridge`` false: the layout of xend's network-bridge (ethX ↔ vif0.X, pethX), with no
    address on the bridge. ``program`` switches (templates/xenlab-bridge.sh) as ``settings`` says. A
    switch that is not confirmed over a new connection within ``rollback_seconds`` is undone by the
    target itself, which goes back to the settings in ``confirmed``, where there are such.
    ``vlan``: the uplink is the interface of that VLAN, not a card. ``addresses`` are further ones,
    of IPv4 or IPv6; ``gateway6`` is that of IPv6, or "auto": routers advertise it. ``bond``: a
    mode and the cards that are one in that way.
    """

    uplink: str
    bridge: str
    address: str
    gateway: str
    address_on_bridge: bool = False
    rollback_seconds: int = 120
    program: str = "/usr/local/sbin/xenlab-bridge"
    settings: str = "/etc/default/xenlab-bridge.new"
    confirmed: str = "/etc/default/xenlab-bridge"
    meeting: str = MEETING
    vlan: int = 0
    addresses: tuple[str, ...] = ()
    gateway6: str = ""
    bond: tuple[str, ...] = ()

    def probe(self, host: Host) -> Difference | None:
        """A table of what differs: devices, their bridge, MAC addresses, addresses, the route."""
        script = """
            state=decided
            [ ! -e "$1/pending" ] || [ -d "$1/decided" ] || state=pending
            echo "$state"
            ip -details -json address show
            echo
            ip -json route show default
            [ ! -d /proc/sys/net/ipv6 ] || ip -6 -json route show default
        """
        result = host.look(Command.script(script, self.meeting))
        wanted = f"make {self.uplink} a port of the bridge {self.bridge}"
        if result is None:
            return Difference(wanted)
        state, devices, routes = parse_network(result.stdout)
        rows = self._differences(devices, routes)
        if rows:
            return Difference(wanted, rows=tuple(rows))
        if state == "pending":
            return Difference(f"confirm the switch-over to the bridge {self.bridge}")
        return None

    def commands(self) -> tuple[Command, ...]:
        """The devices that the program makes; it moves address and route as well."""
        if self.address_on_bridge:
            text = """
                ip link add {bridge} type bridge
                ip address flush dev {uplink}
                ip link set dev {uplink} master {bridge}
                ip address add {address} dev {bridge}
                ip link set dev {bridge} up
                ip route add default via {route}
            """
        else:
            text = """
                ip link add {bridge} type bridge
                ip link set dev {uplink} down
                ip address flush dev {uplink}
                ip link set dev {uplink} name {physical}
                ip link add {uplink} type veth peer name {vif}
                ip link set dev {physical} address {dumb}
                ip link set dev {vif} address {dumb}
                ip link set dev {physical} master {bridge} up
                ip link set dev {vif} master {bridge} up
                ip link set dev {bridge} up
                ip address add {address} dev {uplink}
                ip link set dev {uplink} up
                ip route add default via {route}
            """
        holder = self.bridge if self.address_on_bridge else self.uplink
        wire = ("dev", holder, "onlink") if on_link(self.address, self.gateway) else ()
        further = {f"further{number}": each for number, each in enumerate(self.addresses)}
        more = [f"ip address add {{{name}}} dev {{holder}}" for name in further]
        if self.gateway6 == AUTO:
            more.append("echo 2 > {accept_ra}")
        elif self.gateway6:
            more.append("ip -6 route add default via {gateway6} dev {holder} onlink")
        command = Command.sh(
            "\n".join([text, *more]),
            **further,
            holder=holder,
            gateway6=self.gateway6,
            accept_ra=f"/proc/sys/net/ipv6/conf/{holder}/accept_ra",
            bridge=self.bridge,
            uplink=self.uplink,
            physical=physical(self.uplink),
            vif=vif(self.uplink),
            dumb=DUMB_MAC,
            address=self.address,
            route=(self.gateway, *wire),
        )
        again = {"program": self.program, "settings": self.settings}
        return (command.scripted_as("{program} start {settings}", **again),)

    def apply(self, host: Host, report: Report) -> None:
        """Switch over, connect anew, confirm; raises StepFailed when the former network is back."""
        # first what an interrupted run may have left behind: it is confirmed, or runs out
        if self._until_decided(host, self._confirm) == "confirmed" and self.probe(host) is None:
            return
        report(f"switching over; without an answer the way back comes in {self.rollback_seconds} s")
        self._start(host)
        if self._until_decided(host, self._confirm) == "confirmed":
            report("confirmed over a new connection")
            return
        report("not confirmed; waiting for the former network")
        outcome = self._until_decided(host, self._outcome, _AFTER_SECONDS)
        log = host.read(f"{self.meeting}/log") if outcome in ("rolled back", "failed") else ""
        said = "\n  ".join(["", *(log or "").strip().splitlines()[-5:]]) if log else ""
        if outcome == "failed":
            raise StepFailed(
                f"cannot switch over to the bridge {self.bridge}: because it could not be made; "
                f"the former network is back{said}",
                hint=f"run {self.program} start {self.settings} on the machine's console",
            )
        if outcome == "rolled back":
            raise StepFailed(
                f"cannot switch over to the bridge {self.bridge}: because nobody could connect "
                f"over it within {self.rollback_seconds} s; it was rolled back, the former network "
                f"is back{said}",
                hint="allow a second MAC address on the switch port",
            )
        raise StepFailed(
            f"cannot switch over to the bridge {self.bridge}: because the host does not answer "
            "any more, though it should have gone back to the former network",
            hint="look at its console; a reboot brings the former network back as well",
        )

    def _start(self, host: Host) -> None:
        script = """
            rm -rf -- "$1"
            mkdir -m 700 -- "$1"
            : > "$1/pending"
            # its own session and no mark: neither a lost connection nor a stopped step ends it
            meeting=$1; shift
            env -u XENLAB_STEP setsid --fork /bin/sh -c "$1" switch-network "$meeting" "$2" "$3" \\
                "$4" "$5" > "$meeting/log" 2>&1 < /dev/null
        """
        text = packaged("templates", "switch-network.sh")
        values = (self.rollback_seconds, self.program, self.settings, self.confirmed)
        command = Command.script(script, self.meeting, text, *values)
        try:
            host.run(command, timeout=_START_SECONDS)
        except (ConnectionLost, CommandTimeout):
            # the switch-over may be quicker than the answer; a new connection will tell
            return

    def _confirm(self, host: Host) -> str:
        look = """
            [ ! -e "$1/outcome" ] || { cat -- "$1/outcome"; exit 0; }
            [ -e "$1/pending" ] || { echo none; exit 0; }
            [ -e "$1/switched" ] || { echo switching; exit 0; }
            echo switched
        """
        decide = """
            if mkdir -- "$1/decided" 2> /dev/null; then
                echo confirmed > "$1/outcome"
                echo confirmed
            else
                echo "too late"
            fi
        """
        state = self._asked(host, look)
        if state != "switched":
            return state
        # That a command arrives proves nothing, it may have come over the former network: one that
        # goes out after the switch-over was seen, over a connection made after it, does.
        host.transport.close()
        return self._asked(host, decide)

    def _outcome(self, host: Host) -> str:
        return self._asked(host, 'cat -- "$1/outcome" 2> /dev/null || echo undecided')

    def _asked(self, host: Host, script: str) -> str:
        return host.run(Command.script(script, self.meeting), timeout=_ASK_SECONDS).stdout.strip()

    def _until_decided(self, host: Host, ask: Callable[[Host], str], more: float = 0.0) -> str:
        """Ask over new connections until there is an answer, or nobody waits for one any more."""
        deadline = time.monotonic() + (more or self.rollback_seconds)
        while True:
            answer = "silent"
            try:
                # An old connection proves nothing: it may live on where no new one can be made.
                host.transport.close()
                answer = ask(host)
            except (ConnectionRefused, ConnectionLost, CommandTimeout):
                pass
            if (
                answer not in ("", "silent", "switching", "undecided")
                or time.monotonic() > deadline
            ):
                return answer
            time.sleep(0.5)

    def _differences(
        self, devices: Mapping[str, Mapping[str, Any]], routes: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, str]]:
        holder = self.bridge if self.address_on_bridge else self.uplink
        wanted = {
            self.bridge: {
                "kind": "bridge", "STP": "off", "forward delay": "0", "up": "yes",
                "remembers": f"{REMEMBERED} s",
            }
        }  # fmt: skip
        if self.address_on_bridge:
            wanted[self.uplink] = {"bridge": self.bridge, "addresses": "none", "up": "yes"}
            wanted[self.bridge]["address"] = self.address
        else:
            dumb = {"bridge": self.bridge, "MAC": DUMB_MAC, "addresses": "none", "up": "yes"}
            wanted[physical(self.uplink)] = dumb
            wanted[vif(self.uplink)] = {**dumb, "kind": "veth"}
            wanted[self.bridge]["addresses"] = "none"
            wanted[self.uplink] = {
                "kind": "veth", "pair": vif(self.uplink), "address": self.address, "up": "yes",
            }  # fmt: skip
        if self.vlan:
            port = self.uplink if self.address_on_bridge else physical(self.uplink)
            wanted[port]["kind"] = f"vlan {self.vlan}"
        for card in self.bond[1:]:
            wanted[card] = {"bond": self.bond[0], "up": "yes"}
        rows = unlike(wanted, devices, self.address)
        found = devices.get(holder, {}).get("addr_info", [])
        rows += self._missing_addresses(holder, found)
        over = [f"{r.get('gateway', '-')} over {r.get('dev', '-')}" for r in routes]
        gateways = [self.gateway] if self.gateway6 in ("", AUTO) else [self.gateway, self.gateway6]
        for gateway in gateways:
            route = f"{ipaddress.ip_address(gateway)} over {holder}"
            if route not in over:
                now_over = ", ".join(over) or "none"
                rows.append({"device": holder, "what": "gateway", "now": now_over, "wanted": route})
        return rows

    def _missing_addresses(
        self, holder: str, found: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, str]]:
        """Further addresses that the holder has not; those of routers are whatever they say."""
        there = [f"{each['local']}/{each['prefixlen']}" for each in found]
        wanted = [str(ipaddress.ip_interface(each)) for each in self.addresses]
        missing = [each for each in wanted if each not in there]
        if self.gateway6 == AUTO and not any(each.get("dynamic") for each in found):
            missing.append("one that a router advertises")
        now = ", ".join(there) or "none"
        return [
            {"device": holder, "what": "address", "now": now, "wanted": each} for each in missing
        ]


def physical(uplink: str) -> str:
    """The name that xend's network-bridge gives to the physical interface: peth0 for eth0."""
    return f"p{uplink}"


def vif(uplink: str) -> str:
    """The bridge's end of dom0's own pair, numbered like the interface: vif0.0 for eth0."""
    number = uplink[len(uplink.rstrip("0123456789")) :]
    return f"vif0.{int(number or '0')}"


def describe(device: Mapping[str, Any], address: str) -> dict[str, str]:
    """An interface of ``ip -details -json address`` in the words of a difference's table."""
    info = device.get("linkinfo", {})
    data, kind = info.get("info_data", {}), info.get("info_kind", "physical")
    found = [f"{a['local']}/{a['prefixlen']}" for a in device.get("addr_info", [])]
    return {
        "kind": f"vlan {data.get('id')}" if kind == "vlan" else kind,
        "STP": "off" if data.get("stp_state") == 0 else "on",
        "forward delay": str(data.get("forward_delay", "-")),
        "remembers": f"{data.get('ageing_time', 0) // 100} s",
        "up": "yes" if "UP" in device.get("flags", []) else "no",
        "bridge": device.get("master", "none"),
        "MAC": device.get("address", "none"),
        "pair": device.get("link", "none"),
        "address": address if address in found else ", ".join(found) or "none",
        "addresses": ", ".join(found) or "none",
    }


def unlike(
    wanted: Mapping[str, Mapping[str, str]], devices: Mapping[str, Mapping[str, Any]], address: str
) -> list[dict[str, str]]:
    """A row for each wanted property, in the words of `describe`, that a device has not."""
    rows = []
    for name, properties in wanted.items():
        now = describe(devices[name], address) if name in devices else {}
        above = devices.get(devices.get(name, {}).get("master", ""), {}).get("linkinfo", {})
        now["bond"] = above.get("info_data", {}).get("mode", "none")
        rows += [
            {"device": name, "what": what, "now": now.get(what, "missing"), "wanted": value}
            for what, value in properties.items()
            if now.get(what) != value
        ]
    return rows


def reported_devices(host: Host) -> dict[str, dict[str, Any]] | None:
    """What a machine says of its interfaces, by name; None where it cannot say yet."""
    result = host.look("echo; ip -details -json address show; echo; echo '[]'")
    return None if result is None else parse_network(result.stdout)[1]


def parse_network(
    text: str,
) -> tuple[str, dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """A probe's output: state of a switch-over, devices by name, default routes.

    Raises StepFailed where ip(8) said something else than JSON.
    """
    state, _, rest = text.partition("\n")
    devices, *routes = rest.strip().split("\n")
    try:
        found = [d for d in json.loads(devices or "[]") if "ifname" in d]
        listed = [route for line in routes for route in json.loads(line or "[]")]
        return state, {d["ifname"]: d for d in found}, listed
    except (ValueError, TypeError) as error:
        raise StepFailed(
            f"cannot look at the network: because ip(8) gave no JSON: {rest[:200]!r}",
            hint="install iproute2",
        ) from error


# Network cards, and the name of the one that is the uplink: kernels number them as they find them.


@dataclass(frozen=True)
class Nic:
    """A network card: its name now, its own MAC address, whether the default route is over it."""

    name: str
    mac: str
    default: bool


# A bond's ports and xenlab's own have another MAC address than their own for the time being. IPv6
# routes count where there is none of IPv4: routers announce them at every port.
_NICS = """
    over=' '
    [ ! -r /proc/net/route ] || while read -r name to rest; do
        [ "$to" != 00000000 ] || over="$over$name "
    done < /proc/net/route
    [ "$over" != ' ' ] || [ ! -r /proc/net/ipv6_route ] || while read -r to length rest; do
        case "${to#"${to%%[!0]*}"}$length" in 00) over="$over${rest##* } " ;; esac
    done < /proc/net/ipv6_route
    # the route may be that of a bridge, bond or VLAN that is made of it
    routed() {
        case $over in *" ${1##*/} "*) return 0 ;; esac
        for above in "$1"/upper_*; do
            [ ! -e "$above" ] || ! routed "/sys/class/net/${above##*/upper_}" || return 0
        done
        return 1
    }
    for place in /sys/class/net/*; do
        [ -e "$place/device" ] || continue
        # Ethernet, and not a guest's
        read -r kind < "$place/type"
        [ "$kind" = 1 ] || continue
        case $(readlink "$place/device/subsystem") in */xen-backend) continue ;; esac
        name=${place##*/}
        mac=$(ip -o link show dev "$name" | sed -n 's/.* permaddr \\([0-9a-f:]*\\).*/\\1/p')
        [ -n "$mac" ] || read -r mac < "$place/address"
        if routed "$place"; then echo "$name $mac default"; else echo "$name $mac"; fi
    done
"""


def look_at_nics(host: Host) -> tuple[Nic, ...]:
    """The network cards of a machine; one command. Raises StepFailed where a script is written."""
    result = host.look(Command.script(_NICS), absent=(44,))
    if result is None:
        raise StepFailed(
            "cannot tell which network card is meant: because the machine is not looked at; write "
            "its MAC address as uplink"
        )
    found = [line.split() for line in result.stdout.splitlines()]
    return tuple(Nic(name, mac, default=bool(more)) for name, mac, *more in found)


def the_nic(uplink: str, nics: Sequence[Nic]) -> Nic:
    """The card that ``uplink`` means, a MAC address or "auto"; raises BadInput unless it is one."""
    listed = ", ".join(f"{nic.name} {nic.mac}" for nic in nics) or "none"
    hint = f"write one of these MAC addresses as uplink: {listed}"
    if uplink != AUTO:
        found = [nic for nic in nics if nic.mac == uplink.lower()]
        have = f"{len(found)} network cards have" if found else "no network card has"
        problem = f"{have} the MAC address {uplink}"
    else:
        # dom0's own, once it has its name: the default route is not over it any more
        own = [nic for nic in nics if nic.name in (UPLINK_NAME, physical(UPLINK_NAME))]
        found = own or [nic for nic in nics if nic.default]
        names = ", ".join(nic.name for nic in found) or "none"
        problem = f"uplink: auto is the one network card of the default route, and there is {names}"
    if len(found) != 1:
        raise BadInput(problem, hint=hint)
    return found[0]


# The internal LAN: its devices, its ports, who reaches whom (howto: „Virtuelle Devices“).

ATTACH_SECONDS = 300.0
UP_SECONDS = 300.0
PING_SECONDS = 10


@dataclass(frozen=True)
class LanDevices(Check):
    """A condition: the bridge without address or uplink, and dom0's pair, its end in the bridge.

    ``joined`` false: dom0's end is not in the bridge, as the howto found it.
    """

    bridge: str
    interface: str
    address: str = ""
    joined: bool = True

    def probe(self, host: Host) -> Difference | None:
        """A table of what differs."""
        devices = reported_devices(host)
        if devices is None:
            return Difference(f"make the bridge {self.bridge}")
        port = vif(self.interface)
        wanted = {
            self.bridge: {"kind": "bridge", "STP": "off", "addresses": "none", "up": "yes"},
            self.interface: {"kind": "veth", "pair": port},
            port: {"bridge": self.bridge if self.joined else "none", "addresses": "none"},
        }
        if self.address:
            wanted[self.interface] |= {"address": self.address, "up": "yes"}
        rows = unlike(wanted, devices, self.address)
        foreign = [
            name
            for name, device in devices.items()
            if device.get("master") == self.bridge and not re.fullmatch(r"vif\d+\.\d+", name)
        ]
        rows += [
            {"device": name, "what": "bridge", "now": self.bridge, "wanted": "none: no uplink"}
            for name in foreign
        ]
        summary = f"the internal LAN's devices: {self.bridge}, {self.interface}, {port}"
        return Difference(summary, rows=tuple(rows)) if rows else None


@dataclass(frozen=True)
class VifAttached(Resource):
    """A running guest's interface on a bridge: attached while it runs (xl(1), network-attach).

    Its end in dom0, the port, is called after the domain's id and the interface's number.
    """

    name: str
    mac: str
    bridge: str

    def probe(self, host: Host) -> Difference | None:
        """Whether the guest has an interface with this MAC address, its port in the bridge."""
        port, bridge = self._port(host)
        if not port:
            return Difference(f"give {self.name} an interface {self.mac} on {self.bridge}")
        if bridge != self.bridge:
            return Difference(f"put {port}, the port of {self.name}, into {self.bridge}")
        return None

    def commands(self) -> tuple[Command, ...]:
        """Attach it."""
        # the hotplug scripts never get their lock without a standard input
        text = "xl network-attach {name} mac={mac} bridge={bridge} < /dev/null"
        values = {"name": self.name, "mac": self.mac, "bridge": self.bridge}
        again = f"xl network-list {{name}} | grep -qiF {{mac}} || {text}"
        return (Command.sh(text, **values).scripted_as(again, **values).within(ATTACH_SECONDS),)

    def apply(self, host: Host, report: Report) -> None:
        """Attach it, or put its port into the bridge."""
        port, _ = self._port(host)
        if port:
            report(f"putting {port} into {self.bridge}")
            host.run(Command.argv("ip", "link", "set", "dev", port, "master", self.bridge, "up"))
            return
        super().apply(host, report)

    def _port(self, host: Host) -> tuple[str, str]:
        """The interface's end in dom0 and the bridge that holds it, each "" if there is none."""
        script = """
            line=$(xl network-list "$1" 2> /dev/null | grep -iF -- " $2 ") || exit 0
            end=${line##*/vif/}
            port=vif${end%%/*}.${end##*/}
            printf '%s\\n' "$port"
            bridge=$(readlink "/sys/class/net/$port/master") || exit 0
            printf '%s\\n' "${bridge##*/}"
        """
        # a machine that is only planned for has no root to look into yet
        found = host.run(Command.script(script, self.name, self.mac), check=False)
        port, bridge = [*found.stdout.split(), "", ""][:2]
        return port, bridge


@dataclass(frozen=True)
class InterfaceUp(Resource):
    """An interface of this machine that is up with its address; ``up`` brings it up."""

    name: str
    address: str
    up: Command

    def probe(self, host: Host) -> Difference | None:
        """Whether the address is there."""
        script = 'ip -o -4 address show dev "$1" up | grep -qF -- " inet $2 "'
        if host.test(Command.script(script, self.name, self.address)):
            return None
        return Difference(f"bring {self.name} up with {self.address}")

    def commands(self) -> tuple[Command, ...]:
        """Wait for the device, which may just be coming, and bring it up."""
        script = """
            there() { ip link show dev "$1" > /dev/null 2>&1; }
            wait_until 60 there "$1" || { echo "there is no interface $1" >&2; exit 1; }
        """
        wait = Command.script(UPTIME + script, self.name).within(UP_SECONDS)
        typed = wait.typed_as("ip link show dev {name}", name=self.name)
        until = "until ip link show dev {name}; do sleep 1; done"
        typed = typed.scripted_as(until, name=self.name)
        return typed, self.up.within(UP_SECONDS)


@dataclass(frozen=True)
class Reaches(Check):
    """A condition: this machine reaches these addresses; with ``never``, none of them."""

    who: str
    addresses: tuple[str, ...]
    never: bool = False

    def probe(self, host: Host) -> Difference | None:
        """Which addresses answer that should not, or do not and should."""
        script = """
            seconds=$1; shift
            for address do
                if ping -n -q -c 1 -w "$seconds" -- "$address" > /dev/null 2>&1; then
                    printf '%s\\n' "$address"
                fi
            done
        """
        seconds = 3 if self.never else PING_SECONDS
        limit = 60.0 + seconds * len(self.addresses)
        command = Command.script(script, seconds, *self.addresses)
        result = host.look(command, timeout=limit)
        if result is None:
            return Difference(f"see whom {self.who} reaches")
        answered = result.stdout.split()
        wrong = [one for one in self.addresses if (one in answered) == self.never]
        if not wrong:
            return None
        verb = "reaches" if self.never else "does not reach"
        return Difference(f"{self.who} {verb} {', '.join(wrong)}")
