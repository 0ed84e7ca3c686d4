"""Chapter 17: updates: what waits in dom0 and its guests, packages, services, newer kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from xenlab.chapter.chapter import Chapter
from xenlab.chapters.guests import now_running
from xenlab.command import Command
from xenlab.errors import (
    ConnectionLost,
    ConnectionRefused,
    StepFailed,
    Unreachable,
)
from xenlab.host import Host
from xenlab.platform.base import START_SECONDS, Services
from xenlab.resources.base import (
    DOM0,
    All,
    Difference,
    OnHost,
    Report,
    Resource,
)
from xenlab.site.types import cut

# What is installed, and what waits, in dom0 and in each guest that runs.

_SILENT = (ConnectionRefused, ConnectionLost, Unreachable)


def updates_table(chapter: Chapter) -> pd.DataFrame:
    """Each domain that runs: its kernel, its packages, which wait, what runs as it was before."""
    names = now_running(chapter, [domain.name for domain in chapter.site.domains])
    hosts = {DOM0: chapter.target} | {name: chapter.guest(name) for name in names}
    rows = []
    for name, host in hosts.items():
        try:
            rows.append({"domain": name} | _waits(chapter, host))
        except _SILENT as error:
            rows.append({"domain": name, "runs": f"does not answer: {error.message}"})
    return pd.DataFrame(rows, columns=["domain", *_COLUMNS]).fillna("?")


_COLUMNS = ("runs", "installed", "updates", "security", "which", "restart", "old programs in")


def _waits(chapter: Chapter, host: Host) -> dict[str, str]:
    """One row: whether the domain has to be restarted says `restart`, if only process 1 asks."""
    release = host.run("uname -r", patience=0, check=False)
    if not release.ok:
        # a root that is only planned for
        return {"runs": "nothing yet"}
    found = chapter.packages.pending(host)
    old = chapter.services.outdated(host)
    cells = {"runs": release.stdout.strip()}
    if found is not None:
        installed, updates = found
        safe = [each.name for each in updates if each.security]
        others = [each.name for each in updates if not each.security]
        cells |= {
            "installed": str(installed),
            "updates": str(len(updates)),
            "security": str(len(safe)),
            "which": cut(", ".join((*safe, *others))) or "-",
        }
    return cells | {
        "restart": "yes: init is an old program" if "init" in old else "no",
        "old programs in": ", ".join(sorted(old)) or "-",
    }


# Packages: of those domains that `updates` names, and no other.

INDEX_DAYS = 1
"""How old an index may be, in days, that packages are updated by."""


def dom0_updated(chapter: Chapter) -> tuple[Resource, ...]:
    """dom0's packages are as new as an index of today says; nothing where nobody asks for it."""
    if not chapter.site.updates:
        return ()
    index = chapter.packages.updated(INDEX_DAYS)
    if DOM0 not in chapter.site.updates:
        return (index,)
    return (All((index, chapter.packages.upgraded())),)


def updates_fetched(chapter: Chapter) -> tuple[Resource, ...]:
    """dom0 has in its store what the guests lack: they fetch nothing themselves."""
    wanted = {
        update.name
        for name in now_running(chapter, _asked(chapter))
        for update in (chapter.packages.pending(chapter.guest(name)) or (0, []))[1]
    }
    return (chapter.packages.stored(*sorted(wanted)),) if wanted else ()


def guests_updated(chapter: Chapter) -> dict[str, Resource]:
    """The guests' packages, from dom0's store."""
    wanted = {name: chapter.packages.upgraded(from_store=True) for name in _asked(chapter)}
    running = now_running(chapter, [*wanted])
    return {name: OnHost(name, chapter.guest(name), wanted[name]) for name in running}


def _asked(chapter: Chapter) -> list[str]:
    """The guests that `updates` names; raises StepFailed for one whose programs are not its own."""
    names = [name for name in chapter.site.updates if name != DOM0]
    for name in names:
        if name in chapter.site.shared_usr:
            raise StepFailed(
                f"cannot update {name}: because its /usr is the share's, which it cannot write to",
                hint=f"take {name} out of updates; or out of shared_usr (chapter 15)",
            )
    return names


# Services that go on as they were before an update.


def services_renewed(chapter: Chapter) -> dict[str, Resource]:
    """Those that the site starts run what is installed; of all others it is said that they do not.

    In the domains that `updates` names. A service of Xen's, or of the system's own, is not
    restarted: domains, logins and mounts may hang on it.
    """
    asked = chapter.site.updates
    wanted = Renewed(chapter.services, tuple(chapter.site.services))
    found: dict[str, Resource] = {DOM0: wanted} if DOM0 in asked else {}
    for name in now_running(chapter, [each for each in asked if each != DOM0]):
        found[name] = OnHost(name, chapter.guest(name), wanted)
    return found


@dataclass(frozen=True)
class Renewed(Resource):
    """Services that run the programs and libraries that are installed; ``names`` may restart."""

    services: Services = field(compare=False)
    names: tuple[str, ...]

    def probe(self, host: Host) -> Difference | None:
        """Those that run others; where no one may be restarted, that they stay."""
        found = self.services.outdated(host)
        todo = [name for name in found if name in self.names]
        rows = tuple({"service": name, "gone": cut(", ".join(f))} for name, f in found.items())
        if todo:
            return Difference(f"restart {', '.join(todo)}", rows=rows)
        return self._left(rows) if found else None

    def _left(self, rows: tuple[dict[str, str], ...]) -> Difference:
        who = ", ".join(row["service"] for row in rows)
        said = f"{who} still run programs or libraries that were replaced"
        stays = f"{said}: restart them, or the domain, when it suits you"
        return Difference(said, rows=rows, stays=stays)

    def commands(self) -> tuple[Command, ...]:
        """Restart each that has to be."""
        return tuple(self.services.restart(name).within(START_SECONDS) for name in self.names)

    def apply(self, host: Host, report: Report) -> None:
        """Restart those that run others."""
        found = self.services.outdated(host)
        for name, command in zip(self.names, self.commands(), strict=True):
            if name in found:
                report(f"restarting {name}")
                host.change(command)

    def verify(self, host: Host) -> None:
        """Raise StepFailed unless those are new; others may stay."""
        left: Sequence[str] = [n for n in self.services.outdated(host) if n in self.names]
        if left:
            raise StepFailed(
                f"{', '.join(left)} still run what was replaced, after a restart",
                hint=self.services.hint(left[0]),
            )
