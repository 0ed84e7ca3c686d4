"""What a machine is made of, and what its network cards are plugged into."""

from __future__ import annotations

import ipaddress
import json
import re
import sys
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    model_validator,
)

from xenlab_lab import cable, media, tools

MAC = "52:54:00:12:34:56"
SECOND_SERIAL = "XENLAB-SECOND"
RELAY_PORT = 3142
"""Where the domains find the relay to the mirrors, whatever else they reach."""

# What a machine may be made of; what is not said is as in the lab.

_DISKS = {
    # the device of a disk, and those of what it is attached to
    "virtio": ("virtio-blk-pci", ()),
    "nvme": ("nvme", ()),
    "sata": ("ide-hd", ()),
    "scsi": ("scsi-hd", ("virtio-scsi-pci",)),
    "usb": ("usb-storage", ("qemu-xhci",)),
}
_CARDS = {"virtio": "virtio-net-pci", "e1000": "e1000", "e1000e": "e1000e", "igb": "igb"}
_STRICT = ConfigDict(extra="forbid", frozen=True)


def _address(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", text):
        raise ValueError(f"must be a MAC address such as {MAC}, in lower case, not {text!r}")
    return text


class Card(BaseModel):
    """A network card."""

    model_config = _STRICT

    model: Literal["virtio", "e1000", "e1000e", "igb"] = "virtio"
    mac: Annotated[str, AfterValidator(_address)] | None = None


def _ipv4(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError(f"must be an IPv4 address such as 192.0.2.1, not {text!r}") from None


def _ipv4_network(text: str) -> str:
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError:
        network = ipaddress.IPv4Network("0.0.0.0/32")
    # the 15th address is in use
    if network.prefixlen > 27:
        raise ValueError(f"must be an IPv4 network such as 192.0.2.0/24, not {text!r}")
    return str(network)


IPv4 = Annotated[str, AfterValidator(_ipv4)]


class Network(BaseModel):
    """What the cards' cables lead to. The rescue system has a plain network, by DHCP.

    QEMU's user network is ``net``, with the ``gateway``: its 2nd address where none is named. Its
    3rd is the name server with an open network, the 4th has the mirrors' relay at `RELAY_PORT`,
    and the rescue system gets the 15th, as dom0 has it where no ``address`` is said. From its disk
    the machine reaches all this by frames of one ``vlan`` alone, if there is one; by an
    ``address`` outside of ``net``, where the gateway passes on what one such address sends to
    another of the same /24; and with the first ``cables`` of its cards.
    """

    model_config = _STRICT

    net: Annotated[str, AfterValidator(_ipv4_network)] = "10.0.2.0/24"
    gateway: IPv4 | None = None
    address: IPv4 | None = None
    vlan: Annotated[StrictInt, Field(ge=0, le=4094)] = 0
    cables: Annotated[StrictInt, Field(ge=1, le=8)] = 1

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        if self.gateway and ipaddress.IPv4Address(self.gateway) not in self._net:
            raise ValueError(f"gateway {self.gateway} is not in net {self.net}")
        if self._at_gateway in (self._net[3], self._net[4], self._net[15]):
            raise ValueError(
                f"gateway {self.gateway} is taken: name server, relay or rescue system"
            )
        return self

    @property
    def _net(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network(self.net)

    @property
    def _at_gateway(self) -> ipaddress.IPv4Address:
        return ipaddress.IPv4Address(self.gateway or self._net[2])

    @property
    def on_link(self) -> bool:
        """Whether dom0's address is outside of the network of its gateway."""
        return bool(self.address) and ipaddress.IPv4Address(self.address or 0) not in self._net

    def user(self, *, from_disk: bool) -> tuple[str, str, str]:
        """The words for QEMU's user network; where ssh is led to, and where the relay is."""
        own = f"net={self.net},host={self._at_gateway}," if self != Network() else ""
        return own, self.address or "" if from_disk else "", f"{self._net[4]}:{RELAY_PORT}"

    def switch(self) -> tuple[str, ...]:
        """QEMU's words for what lies between that and the cards; () where that is a cable."""
        if not self._apart and self.cables == 1:
            return ()
        words = ["hubport,id=user,hubid=0,netdev=net0"]
        if self._apart:
            words += [f"socket,id=far,fd={cable.FAR}", "hubport,id=far0,hubid=0,netdev=far"]
            words += [f"socket,id=near,fd={cable.NEAR}", "hubport,id=near1,hubid=1,netdev=near"]
        hub = int(self._apart)
        words += [f"hubport,id=cable{number},hubid={hub}" for number in range(self.cables)]
        return tuple(word for each in words for word in ("-netdev", each))

    def starter(self) -> tuple[str, ...]:
        """What QEMU's command line is the argument of, where frames are changed on their way."""
        if not self._apart:
            return ()
        settings = {
            "vlan": self.vlan,
            "neighbours": self.address if self.on_link else "",
            "gateway": str(self._at_gateway),
        }
        return (sys.executable, "-I", "-S", cable.__file__, json.dumps(settings))

    @property
    def _apart(self) -> bool:
        return bool(self.vlan) or self.on_link


class Hardware(BaseModel):
    """A machine's hardware. Without any key it is the lab's own; sizes are in their names.

    Of several cards the first has a cable, and those that `network` says. `firmware` counts more
    than a site's.
    """

    model_config = _STRICT

    firmware: media.Firmware | None = None
    disk: Literal["virtio", "nvme", "sata", "scsi", "usb"] = "virtio"
    sector_bytes: Literal[512, 4096] = 512
    serial: StrictBool = True
    second_disk_gib: Annotated[StrictInt, Field(ge=0, le=1024)] = 0
    nics: Annotated[list[Card], Field(min_length=1, max_length=8)] = [Card()]
    network: Network = Network()
    memory_mib: Annotated[StrictInt, Field(ge=256)] | None = None
    rescue: media.Rescue = "lab"

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        if self.disk == "sata" and self.sector_bytes != 512:
            raise ValueError("sector_bytes must be 512 for a sata disk: QEMU has no other")
        if len(set(self.macs)) < len(self.macs):
            raise ValueError("nics must not name a MAC address twice")
        if self.network.cables > len(self.nics):
            raise ValueError(f"network.cables must be at most {len(self.nics)}, as nics has")
        return self

    @property
    def macs(self) -> list[str]:
        """The address of each card; one that has none named counts on from the lab's."""
        start, last = MAC[:-2], int(MAC[-2:], 16)
        return [card.mac or f"{start}{last + n:02x}" for n, card in enumerate(self.nics)]

    @property
    def other(self) -> bool:
        """Whether the rescue system of the lab's own machine does not serve this one."""
        cards = [card.model for card in self.nics]
        return self.disk != "virtio" or cards != ["virtio"] or self.rescue != "lab"

    def missing(self) -> list[str]:
        """The devices that QEMU here does not have. Raises LabError if it cannot be asked."""
        device, above = _DISKS[self.disk]
        known = tools.output(["qemu-system-x86_64", "-device", "help"])
        wanted = (device, *above, *(_CARDS[card.model] for card in self.nics))
        return [name for name in dict.fromkeys(wanted) if f'name "{name}"' not in known]

    def controller(self) -> tuple[str, ...]:
        """QEMU's words for what the disks are attached to."""
        return tuple(w for name in _DISKS[self.disk][1] for w in ("-device", f"{name},id=bus"))

    def disk_device(self, node: str, number: int, serial: str) -> str:
        """QEMU's word for a disk, such as its first (`number` 0)."""
        own = {"sata": f",bus=ide.{number}", "scsi": ",bus=bus.0", "usb": ",bus=bus.0"}
        size = self.sector_bytes
        sectors = f",logical_block_size={size},physical_block_size={size}" if size > 512 else ""
        said = serial if self.serial else ""
        return f"{_DISKS[self.disk][0]},drive={node},serial={said}{own.get(self.disk, '')}{sectors}"

    def card_devices(self, *, from_disk: bool) -> tuple[str, ...]:
        """QEMU's words for the network cards, and for what lies behind their cables."""
        switch = self.network.switch() if from_disk else ()
        words = list(switch)
        for number, (card, mac) in enumerate(zip(self.nics, self.macs, strict=True)):
            cable = f",id=nic{number}" if number else ",netdev=net0"
            if switch and number < self.network.cables:
                cable = f",netdev=cable{number}"
            words += ["-device", f"{_CARDS[card.model]}{cable},mac={mac},romfile="]
        return tuple(words)

    def unplugged(self, *, from_disk: bool) -> tuple[str, ...]:
        """The cards without a cable, as QEMU knows them."""
        first = self.network.cables if from_disk else 1
        return tuple(f"nic{number}" for number in range(first, len(self.nics)))


LAB = Hardware()
