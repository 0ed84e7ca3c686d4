"""The plan of disk and memory as a picture.

Howto: „Partitionen“, `dom0_mem` in „Grub-Konfiguration für Xen“.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xenlab.disklayout import TABLES_MIB, partitions
from xenlab.parameters import Parameters
from xenlab.recipes.ingredients import Machine, memory_plan

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
    _draw(upper, disk, f"{site.disk}, {machine.disk_mib:,} MiB")
    _draw(lower, memory, f"memory, {machine.memory_mib:,} MiB")
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
    """The partitions in their order; the last takes what the disk has left."""
    planned = partitions(site)
    owners = {"share": "share", "domuswap": "guests"} | {
        d.partition: "guests" for d in site.domains
    }
    parts = [(p.name, p.mib, owners.get(p.name, "dom0")) for p in planned]
    rest = disk_mib - TABLES_MIB - sum(p.mib for p in planned)
    name, size, owner = parts[-1]
    parts[-1] = (name, size + max(0, rest), owner)
    return parts


def memory_parts(site: Parameters, memory_mib: int) -> list[Part]:
    """Who gets how much of the machine's memory, and what nobody gets."""
    parts = [(name, mib, _owner(name)) for name, mib in memory_plan(site)]
    free = memory_mib - sum(mib for _, mib, _ in parts)
    return [*parts, *([("free", free, "free")] if free > 0 else [])]


def _owner(name: str) -> str:
    return "dom0" if name in ("Xen", "dom0") else "guests"


def _draw(axes: Axes, parts: list[Part], title: str) -> None:
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
