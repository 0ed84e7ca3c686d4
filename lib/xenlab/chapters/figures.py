"""Pictures: the plan of disk and memory, the NIC layout, and runs."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xenlab.chapter.chapter import Chapter
from xenlab.chapters.ingredients import Machine, memory_plan
from xenlab.resources.network import reported_devices
from xenlab.site.disk_plan import GUESTS, TABLES_MIB, partitions
from xenlab.site.schema import Parameters

# The plan of disk and memory as a picture.
#
# Howto: „Partitionen“, `dom0_mem` in „Grub-Konfiguration für Xen“.

Part = tuple[str, int, str]
"""A name, its MiB, and whose it is."""

_COLOURS = {"dom0": "#3b6ea5", "share": "#c58b2b", "guests": "#5f9e6e", "free": "#b4b4b4"}
_OWNERS = {"dom0": "Xen and dom0", "share": "shared", "guests": "guests", "free": "free"}
_INK, _FAINT = "#333333", "#e8e8e8"


def plan_figure(site: Parameters, machine: Machine) -> Figure:
    """Where each partition lies on the disk, and who gets which part of the memory."""
    disk = disk_parts(site, machine.disk_mib)
    memory = memory_parts(site, machine.memory_mib)
    heights = [len(disk), len(memory)]
    figure = Figure(figsize=(8.6, 1.5 + 0.27 * sum(heights)), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=heights)
    _draw_plan(upper, disk, f"{site.disk}, {machine.disk_mib:,} MiB")
    _draw_plan(lower, memory, f"memory, {machine.memory_mib:,} MiB")
    used = [kind for kind in _COLOURS if any(part[2] == kind for part in disk + memory)]
    handles = [upper.barh([0], [0], color=_COLOURS[kind])[0] for kind in used]
    figure.legend(
        handles,
        [_OWNERS[kind] for kind in used],
        loc="outside lower center",
        ncols=len(used),
        frameon=False,
        fontsize=9,
    )
    return figure


def disk_parts(site: Parameters, disk_mib: int) -> list[Part]:
    """The partitions in their order, and what the disk has left."""
    planned = partitions(site)
    owners = {"share": "share", "domuswap": "guests", GUESTS: "guests"} | {
        d.partition: "guests" for d in site.domains
    }
    parts = [(p.name, p.mib, owners.get(p.name, "dom0")) for p in planned]
    rest = disk_mib - TABLES_MIB - sum(p.mib for p in planned)
    name, size, owner = parts[-1]
    if name == GUESTS:
        return [*parts[:-1], (name, size + max(0, rest), owner)]
    return [*parts, *([("free", rest, "free")] if rest > 0 else [])]


def memory_parts(site: Parameters, memory_mib: int) -> list[Part]:
    """Who gets how much of the machine's memory, and what nobody gets."""
    parts = [
        (name, mib, "dom0" if name in ("Xen", "dom0") else "guests")
        for name, mib in memory_plan(site)
    ]
    free = memory_mib - sum(mib for _, mib, _ in parts)
    return [*parts, *([("free", free, "free")] if free > 0 else [])]


def _draw_plan(axes: Axes, parts: list[Part], title: str) -> None:
    whole = max(1, sum(mib for _, mib, _ in parts))
    start = 0
    for row, (_, mib, owner) in enumerate(parts):
        axes.barh(row, whole, color=_FAINT, height=0.72, zorder=1)
        # what is small must still be seen: a line of at least 0.4 % of the whole
        axes.barh(
            row, max(mib, whole * 0.004), left=start, color=_COLOURS[owner], height=0.72, zorder=2
        )
        axes.text(whole * 1.015, row, f"{mib:,} MiB", va="center", color=_INK, fontsize=9)
        start += mib
    axes.set_yticks(range(len(parts)), [name for name, _, _ in parts], fontsize=9, color=_INK)
    axes.set_ylim(len(parts) - 0.4, -0.6)
    axes.set_xlim(0, whole)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10, color=_INK)


# The NIC layout as a picture in the howto's shape, made of what the machine reports.
#
# Howto: „Xen NIC-Layout“.

_LINE, _BRIDGE, _DOM0, _GUEST = "#8a8a8a", "#c58b2b", "#3b6ea5", "#5f9e6e"
NOWHERE = "NIRVANA"
"""What the howto calls the other side of a bridge without an uplink."""


@dataclass(frozen=True)
class Link:
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
    wires: tuple[Link, ...]
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
            wires.append(Link(owner, f"eth{port[2]}", name))
        elif port:
            peer = str(device.get("link", "?"))
            wires.append(Link("Domain0", peer, name, _address(devices.get(peer, {}))))
        else:
            uplink = name
    return Layout(bridge, _address(devices.get(bridge, {})), tuple(wires), uplink)


def nic_figure(layouts: list[Layout]) -> Figure:
    """The layouts below each other."""
    heights = [max(2, len(one.wires)) + 0.8 for one in layouts]
    drawn = Figure(figsize=(8.6, 0.5 * sum(heights) + 0.3), layout="constrained")
    for axes, one in zip(
        drawn.subplots(len(layouts), 1, height_ratios=heights, squeeze=False)[:, 0],
        layouts,
        strict=True,
    ):
        _draw_layout(axes, one)
    return drawn


def nic_layouts(chapter: Chapter, *bridges: str) -> Figure:
    """The picture of these bridges as they are now; empty bridges where there is no Xen yet."""
    devices = reported_devices(chapter.target) or {}
    listed = chapter.target.run("xl list", check=False)
    domains = {}
    if listed.ok:
        table = chapter.toolstack.domains(chapter.target)
        domains = dict(zip(table["id"], table["name"], strict=True))
    return nic_figure([layout(bridge, devices, domains) for bridge in bridges])


def _draw_layout(axes: Axes, one: Layout) -> None:
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


# Runs as pictures, drawn from the tables of `xenlab.runs.report`.

LAST_RUNS = 12
"""How many runs a picture shows, the newest ones."""

SLOWEST = 15
"""How many steps a picture shows, the slowest ones."""

_INK, _BAR = "#333333", "#3b6ea5"


class Picture(Figure):
    """A figure that a notebook shows where it is a cell's last value."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, format="png", dpi=130, bbox_inches="tight")
        return data.getvalue()


def chapter_times(steps: pd.DataFrame) -> Picture:
    """The minutes of each chapter, run by run; ``steps`` of `xenlab.runs.report.steps`."""
    minutes = steps.pivot_table(
        index="run", columns="chapter", values="seconds", aggfunc="sum", fill_value=0.0
    ).tail(LAST_RUNS)
    figure = Picture(figsize=(8.6, 1.4 + 0.32 * len(minutes)), layout="constrained")
    axes = _plain(figure, "minutes in steps")
    left = pd.Series(0.0, index=minutes.index)
    colours = colormaps["viridis"].resampled(max(2, len(minutes.columns)))
    for number, chapter in enumerate(minutes.columns):
        widths = minutes[chapter] / 60
        axes.barh(minutes.index, widths, left=left, color=colours(number), label=chapter)
        left = left + widths
    axes.invert_yaxis()
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def slowest_steps(steps: pd.DataFrame) -> Picture:
    """The steps of the newest run that took longest, in seconds."""
    newest = steps[steps["run"] == steps["run"].max()]
    slow = newest.nlargest(SLOWEST, "seconds")
    figure = Picture(figsize=(8.6, 1.0 + 0.28 * len(slow)), layout="constrained")
    axes = _plain(figure, "seconds")
    bars = axes.barh(slow["title"], slow["seconds"], color=_BAR)
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8, color=_INK)
    axes.invert_yaxis()
    return figure


def _plain(figure: Figure, unit: str) -> Axes:
    axes = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=8, labelcolor=_INK)
    axes.tick_params(axis="x", labelsize=8, labelcolor=_INK)
    axes.set_xlabel(unit, fontsize=9, color=_INK)
    return axes
