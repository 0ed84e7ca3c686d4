"""How a host and its guests are now, on one screen: ``xenlab status``, and the panel's button."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from xenlab.chapter.card import duration
from xenlab.chapters.backups import found_in
from xenlab.chapters.changes import files_say
from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.platform.base import Update
from xenlab.platform.choice import packages
from xenlab.platform.running import Values, changes
from xenlab.platform.xl import toolstack
from xenlab.resources.ssh_access import way_to
from xenlab.resources.xen import Domain, domains, xen_state
from xenlab.site.schema import Parameters
from xenlab.transport.ssh import SSH

_HOST = """
xl info | sed -n 's/^\\(xen_version\\|total_memory\\|free_memory\\|nr_cpus\\) *: */\\1 /p'
read -r up rest < /proc/uptime
read -r load rest < /proc/loadavg
printf 'up %s\\nload %s\\n' "$up" "$load"
"""


class Overview(NamedTuple):
    """One screen.

    ``host``: what, is. ``guests``: guest, state, memory (MiB), vcpus, address, what waits for
    `xenlab run 16` or until the guest is created again, and, where the site has guests saved, its
    last backup; those of others come last.
    """

    host: pd.DataFrame
    guests: pd.DataFrame


def overview(site: Parameters) -> Overview:
    """Look at a host and its guests; nothing is changed, and nothing recorded.

    Raises NoConnection where it does not answer, StepFailed where it does not run Xen.
    """
    ssh = SSH(way_to(site))
    try:
        return seen_on(Host(ssh), site)
    finally:
        ssh.close()


def seen_on(host: Host, site: Parameters) -> Overview:
    """The same, of a machine that is reached already."""
    state = xen_state(host)
    if state is None:
        raise StepFailed(
            f"cannot say how {site.site} is: because {host.name} does not run Xen",
            hint="xenlab run makes it a Xen host; xenlab plan says what is left to do",
            where=host.name,
        )
    running = {one.name: one for one in domains(host)}
    xl = toolstack(site.platform)
    has, paths = xl.values(host), {one.name: xl.config_path(one.name) for one in site.domains}
    said = files_say(host, [path for name, path in paths.items() if name in has])
    wanted = {name: said[path] for name, path in paths.items() if path in said}
    facts = host.run(Command(_HOST)).stdout
    saved = {
        one.name: _newest(host, f"{site.backups.folder}/{one.record}")
        for one in site.domains
        if one.name in site.backups.guests
    }
    table = host_table(facts, state.release, packages(site).pending(host))
    return Overview(table, guest_table(site, running, has, wanted, saved))


def _newest(host: Host, place: str) -> str:
    whole = found_in(host, place).whole
    return whole[-1].stamp if whole else "none"


def host_table(
    said: str, kernel: str, pending: tuple[int, list[Update]] | None = None
) -> pd.DataFrame:
    """What the machine has said of itself, its kernel's release, and what would be updated."""
    found = dict(line.split(" ", 1) for line in said.splitlines())
    rows = {
        "hypervisor": f"Xen {found['xen_version']}",
        "dom0's kernel": kernel,
        "up for": duration(float(found["up"])),
        "memory": f"{found['free_memory']} of {found['total_memory']} MiB free",
        "processors": f"{found['nr_cpus']}, dom0's load {found['load']}",
    }
    if pending is not None:
        updates = pending[1]
        safety = sum(each.security for each in updates)
        said = f"{len(updates)}, {safety} of them for security" if updates else "none"
        rows["updates of dom0"] = said
    return pd.DataFrame(rows.items(), columns=["what", "is"])


def guest_table(
    site: Parameters,
    running: Mapping[str, Domain],
    has: Mapping[str, Values],
    wanted: Mapping[str, Values],
    saved: Mapping[str, str],
) -> pd.DataFrame:
    """The guests: domains, what these have, what their files say, and when they were saved."""
    rows = []
    for one in site.domains:
        now, name = running.get(one.name), one.name
        known = name in has and name in wanted
        waits = changes(name, has[name], wanted[name]) if known else []
        memory, vcpus = (now.memory_mib, now.vcpus) if now else (one.memory_mib, one.vcpus)
        state = now.state if now else "down"
        rows.append([name, state, memory, vcpus, one.address, "; ".join(map(str, waits))])
    own = {"Domain-0", *(one.name for one in site.domains)}
    rows += [
        [one.name, one.state, one.memory_mib, one.vcpus, "", "not in the site's file"]
        for one in running.values()
        if one.name not in own
    ]
    columns = ["guest", "state", "memory (MiB)", "vcpus", "address", "waits"]
    table = pd.DataFrame(rows, columns=columns)
    last = [saved.get(name, "") for name in table["guest"]]
    return table.assign(**{"last backup": last}) if saved else table
