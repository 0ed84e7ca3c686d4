"""What a domain runs with, against what its file says: what changes while it runs, what waits."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.resources.base import Check, Difference, Report, Resource
from xenlab.resources.xen import domain

# A domain has what its file said when it was created, and what was changed since. libxl tells both
# in the same words: ``xl list -l`` of the domain, ``xl create -n`` of the file, which it reads with
# all that later chapters have added. A guest that reboots is created from the domain and not from
# the file: it has to be shut down, and created from its file, to run with that.

FOLLOW_SECONDS = 120.0
"""How long a guest may take to give or take the memory and the processors that it was told of."""

LONG = 60
"""How long a value may be that a sentence has."""

SET_SECONDS = 300.0
"""Deadline of one xl command; the scripts that attach a card are slow on an emulated machine."""

SLACK_MIB = 8
"""How far its memory may be from what it was told: libxl keeps some pages for itself."""


@dataclass(frozen=True)
class Values:
    """What a domain has; memory in MiB. ``most_vcpus`` may be brought up while it runs.

    ``boots`` are kernel, initrd and command line; ``vifs`` MAC addresses with their bridges.
    """

    type: str = ""
    memory_mib: int = 0
    maxmem_mib: int = 0
    vcpus: int = 1
    most_vcpus: int = 1
    vifs: tuple[tuple[str, str], ...] = ()
    disks: tuple[str, ...] = ()
    boots: tuple[str, str, str] = ("", "", "")

    def __str__(self) -> str:
        more = f", up to {self.maxmem_mib}" if self.maxmem_mib != self.memory_mib else ""
        macs = ", ".join(mac for mac, _ in self.vifs)
        words = (f"{self.memory_mib} MiB{more}", f"{self.vcpus} vcpus", macs, *self.disks)
        return "; ".join(filter(None, words))


def values_of(config: Mapping[str, Any]) -> Values:
    """A domain's configuration as libxl writes it (JSON of a libxl_domain_config)."""
    build = config.get("b_info", {})
    vcpus = len(build.get("avail_vcpus", ())) or 1
    memory = round(build.get("target_memkb", 0) / 1024)
    return Values(
        type=config.get("c_info", {}).get("type", ""),
        memory_mib=memory,
        maxmem_mib=round(build.get("max_memkb", 0) / 1024) or memory,
        vcpus=vcpus,
        most_vcpus=max(vcpus, build.get("max_vcpus", 1)),
        vifs=tuple((n.get("mac", "").lower(), n.get("bridge", "")) for n in config.get("nics", ())),
        disks=tuple(
            f"{disk.get('vdev', '')} {disk.get('pdev_path', '')}"
            f"{'' if disk.get('readwrite') else ' (read-only)'}"
            for disk in config.get("disks", ())
        ),
        boots=(build.get("kernel", ""), build.get("ramdisk", ""), build.get("cmdline", "")),
    )


def parse_running(text: str) -> dict[str, Values]:
    """The domains of ``xl list -l`` by their names."""
    found = json.loads(text or "[]")
    configs = [each.get("config", {}) for each in (found if isinstance(found, list) else [found])]
    return {each.get("c_info", {}).get("name", ""): values_of(each) for each in configs}


def parse_file(text: str) -> Values | None:
    """What ``xl create -n`` says of a file, None where it cannot read it."""
    return values_of(json.loads(text)) if text.strip() else None


@dataclass(frozen=True)
class Change:
    """Something that a domain has otherwise than its file says.

    ``live`` changes it while the domain runs, None where xl cannot.
    """

    what: str
    now: str
    wanted: str
    live: Command | None = None

    def __str__(self) -> str:
        """As a sentence goes on that says what a domain runs with; the table has what is long."""
        if len(self.now + self.wanted) > LONG:
            return f"another {self.what} than its file says"
        return f"{self.now} ({self.what}), its file says {self.wanted}"


def changes(name: str, now: Values, wanted: Values) -> list[Change]:
    """What is otherwise, and the commands for what xl(1) can change while the domain runs.

    Interfaces are attached behind those that there are, or a guest would call them otherwise then
    than after its next start; one that is to go, or to be another, is not taken from a guest.
    """
    memory, most = (f"{wanted.memory_mib} MiB", f"{wanted.maxmem_mib} MiB")
    set_memory = Command.argv("xl", "mem-set", name, wanted.memory_mib)
    set_vcpus = Command.argv("xl", "vcpu-set", name, wanted.vcpus)
    found = [
        Change("type", now.type, wanted.type),
        Change("memory at most", f"{now.maxmem_mib} MiB", most),
        Change(
            "memory",
            f"{now.memory_mib} MiB",
            memory,
            set_memory if wanted.memory_mib <= now.maxmem_mib else None,
        ),
        Change("vcpus at most", str(now.most_vcpus), str(wanted.most_vcpus)),
        Change(
            "vcpus",
            str(now.vcpus),
            str(wanted.vcpus),
            set_vcpus if wanted.vcpus <= now.most_vcpus else None,
        ),
        Change("kernel", now.boots[0], wanted.boots[0]),
        Change("initrd", now.boots[1] or "none", wanted.boots[1] or "none"),
        Change("command line", now.boots[2], wanted.boots[2]),
        Change("disks", ", ".join(now.disks), ", ".join(wanted.disks)),
    ]
    more = wanted.vifs[len(now.vifs) :]
    if now.vifs == wanted.vifs[: len(now.vifs)]:
        # the hotplug scripts never get their lock without a standard input
        text = "xl network-attach {name} mac={mac} bridge={bridge} < /dev/null"
        found += [
            Change("interface", "none", mac, Command.sh(text, name=name, mac=mac, bridge=bridge))
            for mac, bridge in more
        ]
    else:
        found.append(Change("interfaces", _vifs(now), _vifs(wanted)))
    return [each for each in found if each.now != each.wanted]


def _vifs(values: Values) -> str:
    return ", ".join(f"{mac} on {bridge}" for mac, bridge in values.vifs) or "none"


def compared(host: Host, name: str, config: str) -> list[Change]:
    """What a domain has otherwise than its file says; nothing where there is no such domain."""
    script = """
        xl list -l "$1" 2> /dev/null || exit 44
        echo ----
        xl create -n "$2" < /dev/null
    """
    found = host.look(Command.script(script, name, config), absent=(44,))
    running, _, said = found.stdout.partition("\n----\n") if found else ("", "", "")
    now, wanted = parse_running(running).get(name), parse_file(said)
    return changes(name, now, wanted) if now and wanted else []


def told(name: str, found: list[Change], hint: str = "", stays: str = "") -> Difference | None:
    """That a domain runs with something else than its file says, None where it does not."""
    if not found:
        return None
    rows = tuple({"what": c.what, "runs with": c.now, "its file says": c.wanted} for c in found)
    summary = f"{name} runs with {'; with '.join(map(str, found))}"
    return Difference(summary, rows=rows, hint=hint, stays=f"{summary}: {stays}" if stays else "")


@dataclass(frozen=True)
class LiveValues(Resource):
    """A domain that has what its file says, of what xl can change while it runs.

    ``memory_mib`` and ``vcpus`` are the site's, which the file has: what is typed.
    """

    name: str
    config: str
    memory_mib: int
    vcpus: int

    def probe(self, host: Host) -> Difference | None:
        """What is otherwise and need not wait."""
        return told(self.name, self._found(host))

    def commands(self) -> tuple[Command, ...]:
        """Memory and processors as the site has them."""
        runs = "! xl domid {name} > /dev/null 2>&1 || "
        return tuple(
            Command.argv("xl", verb, self.name, value).scripted_as(
                f"{runs}xl {verb} {{name}} {{value}}", name=self.name, value=value
            )
            for verb, value in (("mem-set", self.memory_mib), ("vcpu-set", self.vcpus))
        )

    def apply(self, host: Host, report: Report) -> None:
        """Change what is otherwise."""
        for change in self._found(host):
            if change.live is not None:
                report(change.live.by_hand())
                host.change(change.live.within(SET_SECONDS))

    def verify(self, host: Host) -> None:
        """Wait until the guest has followed; raises StepFailed past the deadline."""
        super().verify(host)
        wanted = self._wanted(host)
        deadline = time.monotonic() + FOLLOW_SECONDS
        while wanted is not None:
            now = domain(host, self.name)
            if now is None or not now.runs:
                return
            if abs(now.memory_mib - wanted.memory_mib) <= SLACK_MIB and now.vcpus == wanted.vcpus:
                return
            if time.monotonic() > deadline:
                raise StepFailed(
                    f"cannot give {self.name} {wanted.memory_mib} MiB and {wanted.vcpus} vcpus: "
                    f"because it has {now.memory_mib} MiB and {now.vcpus} after "
                    f"{FOLLOW_SECONDS:.0f} s",
                    hint="its kernel needs CONFIG_XEN_BALLOON and CONFIG_HOTPLUG_CPU, and Xen free "
                    "memory (xl info); or let it be created again: restart in the site's file",
                )
            time.sleep(1)

    def _found(self, host: Host) -> list[Change]:
        return [each for each in compared(host, self.name, self.config) if each.live is not None]

    def _wanted(self, host: Host) -> Values | None:
        """What it was told to have: as libxl keeps it."""
        found = host.look(Command.argv("xl", "list", "-l", self.name), absent=(1, 127))
        return parse_running(found.stdout).get(self.name) if found else None


@dataclass(frozen=True)
class WaitsForCreation(Check):
    """What a domain gets only when it is created again from its file; that is said, and stays."""

    name: str
    config: str

    def probe(self, host: Host) -> Difference | None:
        """What waits."""
        found = [each for each in compared(host, self.name, self.config) if each.live is None]
        stays = (
            f"it waits until the guest is created again (xl shutdown -ww {self.name}; xl create "
            f"{self.config}; a reboot is not enough); restart: [{self.name}] in the site's file "
            "does that"
        )
        return told(self.name, found, stays=stays)


@dataclass(frozen=True)
class CreatedAgain(Resource):
    """A domain that was shut down and created again, unless it runs with what its file says."""

    name: str
    config: str
    stopped: Resource
    running: Resource

    def probe(self, host: Host) -> Difference | None:
        """What it runs with, where that waits."""
        waits = [each for each in compared(host, self.name, self.config) if each.live is None]
        return told(self.name, waits)

    def commands(self) -> tuple[Command, ...]:
        """Shut it down, create it."""
        return (*self.stopped.commands(), *self.running.commands())

    def apply(self, host: Host, report: Report) -> None:
        """Shut it down, create it, see its login prompt."""
        for part in (self.stopped, self.running):
            if part.probe(host) is not None:
                part.apply(host, report)
                part.verify(host)
