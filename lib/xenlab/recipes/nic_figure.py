"""The NIC layout as a picture in the howto's shape, made of what the machine reports.

Howto: „Xen NIC-Layout“.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xenlab.chapter import Chapter
from xenlab.resources.network import reported_devices

_INK, _LINE, _BRIDGE, _DOM0, _GUEST = "#333333", "#8a8a8a", "#c58b2b", "#3b6ea5", "#5f9e6e"
NOWHERE = "NIRVANA"
"""What the howto calls the other side of a bridge without an uplink."""


@dataclass(frozen=True)
class Wire:
    """A port of a bridge: whose it is, the interface at its other end, an address on it."""

    owner: str
    interface: str
    port: str
    address: str = ""


@dataclass(frozen=True)
class Layout:
    """A bridge, its ports towards domains, and the interface that leads out of the machine."""

    bridge: str
    address: str
    wires: tuple[Wire, ...]
    uplink: str


def layout(
    bridge: str, devices: Mapping[str, Mapping[str, Any]], domains: Mapping[int, str]
) -> Layout:
    """What hangs on a bridge, from ``ip -details -json address`` and the domains by number."""
    wires, uplink = [], NOWHERE
    for name, device in sorted(devices.items(), key=lambda item: _order(item[0])):
        if device.get("master") != bridge:
            continue
        port = re.fullmatch(r"vif(\d+)\.(\d+)", name)
        if port and int(port[1]):
            owner = domains.get(int(port[1]), f"domain {port[1]}")
            wires.append(Wire(owner, f"eth{port[2]}", name))
        elif port:
            peer = str(device.get("link", "?"))
            wires.append(Wire("Domain0", peer, name, _address(devices.get(peer, {}))))
        else:
            uplink = name
    return Layout(bridge, _address(devices.get(bridge, {})), tuple(wires), uplink)


def figure(layouts: list[Layout]) -> Figure:
    """The layouts below each other."""
    heights = [max(2, len(one.wires)) + 0.8 for one in layouts]
    drawn = Figure(figsize=(8.6, 0.5 * sum(heights) + 0.3), layout="constrained")
    for axes, one in zip(
        drawn.subplots(len(layouts), 1, height_ratios=heights, squeeze=False)[:, 0],
        layouts,
        strict=True,
    ):
        _draw(axes, one)
    return drawn


def reported(book: Chapter, *bridges: str) -> Figure:
    """The picture of these bridges as they are now; empty bridges where there is no Xen yet."""
    devices = reported_devices(book.target) or {}
    listed = book.target.run("xl list", check=False)
    domains = {}
    if listed.ok:
        table = book.toolstack.domains(book.target)
        domains = dict(zip(table["id"], table["name"], strict=True))
    return figure([layout(bridge, devices, domains) for bridge in bridges])


def _draw(axes: Axes, one: Layout) -> None:
    rows = max(1, len(one.wires))
    middle = (rows - 1) / 2
    axes.plot([6.2, 6.2], [-0.35, rows - 0.65], color=_BRIDGE, linewidth=5, solid_capstyle="round")
    for row, wire in enumerate(one.wires):
        colour = _DOM0 if wire.owner == "Domain0" else _GUEST
        axes.plot([0.6, 6.2], [row, row], color=_LINE, linewidth=1.2, zorder=0)
        _box(axes, 0.6, row, wire.owner, colour)
        _box(axes, 2.6, row, wire.interface, colour)
        _box(axes, 4.6, row, wire.port, _LINE)
        if wire.address:
            axes.text(2.6, row - 0.42, wire.address, ha="center", fontsize=7.5, color=_INK)
    axes.plot([6.2, 9.2], [middle, middle], color=_LINE, linewidth=1.2, zorder=0)
    _box(axes, 7.4, middle, one.bridge, _BRIDGE)
    _box(axes, 9.2, middle, one.uplink, _LINE if one.uplink != NOWHERE else "#b4b4b4")
    note = one.address or "no address"
    axes.text(7.4, middle - 0.42, note, ha="center", fontsize=7.5, color=_INK)
    axes.set_xlim(-0.4, 10.2)
    axes.set_ylim(rows - 0.3, -0.8)
    axes.set_axis_off()


def _box(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": colour}
    axes.text(x, y, text, ha="center", va="center", fontsize=9, color=_INK, bbox=box)


def _address(device: Mapping[str, Any]) -> str:
    found = [f"{a['local']}/{a['prefixlen']}" for a in device.get("addr_info", [])]
    plain = [address for address in found if ":" not in address]
    return ", ".join(plain or found)


def _order(name: str) -> tuple[int, int, str]:
    port = re.fullmatch(r"vif(\d+)\.(\d+)", name)
    return (int(port[1]), int(port[2]), name) if port else (1 << 30, 0, name)
