"""The internal LAN: its devices, its ports, who reaches whom (howto: „Virtuelle Devices“)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.network import reported_devices, unlike, vif

ATTACH_SECONDS = 300.0
UP_SECONDS = 300.0
PING_SECONDS = 10

_NOTHING_THERE = (125, 126, 127)


@dataclass(frozen=True)
class LanDevices(Resource):
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

    def apply(self, host: Host, report: Report) -> None:
        """Refused: services make the devices."""
        raise StepFailed("this is a condition, and nothing makes it true here")


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

    def apply(self, host: Host, report: Report) -> None:
        """Attach it, or put its port into the bridge."""
        port, _ = self._port(host)
        if port:
            report(f"putting {port} into {self.bridge}")
            host.run(Command.argv("ip", "link", "set", "dev", port, "master", self.bridge, "up"))
            return
        report(f"attaching an interface to {self.name}")
        words = (f"mac={self.mac}", f"bridge={self.bridge}")
        # the hotplug scripts never get their lock without a standard input
        command = Command.form("xl network-attach %s %s %s < /dev/null", self.name, *words)
        host.run(command, timeout=ATTACH_SECONDS)

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

    def apply(self, host: Host, report: Report) -> None:
        """Wait for the device, which may just be coming, and bring it up."""
        script = """
            tries=0
            until ip link show dev "$1" > /dev/null 2>&1; do
                tries=$((tries + 1))
                [ "$tries" -le 60 ] || { echo "there is no interface $1" >&2; exit 1; }
                sleep 1
            done
        """
        host.run(Command.script(script, self.name), timeout=UP_SECONDS)
        host.run(self.up, timeout=UP_SECONDS)


@dataclass(frozen=True)
class Reaches(Resource):
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
        result = host.run(command, timeout=limit, check=False)
        if not result.ok:
            if result.status in _NOTHING_THERE:
                return Difference(f"see whom {self.who} reaches")
            raise CommandFailed(result)
        answered = result.stdout.split()
        wrong = [one for one in self.addresses if (one in answered) == self.never]
        if not wrong:
            return None
        verb = "reaches" if self.never else "does not reach"
        return Difference(f"{self.who} {verb} {', '.join(wrong)}")

    def apply(self, host: Host, report: Report) -> None:
        """Refused: a condition is not made true here."""
        difference = self.probe(host)
        if difference is not None:
            raise StepFailed(difference.summary)
