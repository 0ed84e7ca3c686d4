"""Toolstack: what starts, watches and stops domains; xl where the howto had xm and xend."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import pandas as pd

from xenlab.command import Command
from xenlab.errors import BadInput
from xenlab.host import Host
from xenlab.platform.base import by_platform
from xenlab.platform.running import (
    CreatedAgain,
    LiveValues,
    Values,
    WaitsForCreation,
    parse_running,
)
from xenlab.quoting import Quoted, xl, xl_list
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.domain import (
    ConsoleAnswers,
    DomainDestroyed,
    DomainRebooted,
    DomainRunning,
    DomainsRunning,
    DomainStopped,
)
from xenlab.resources.files import Line, ShellWord, render
from xenlab.resources.xen import (
    STATE_OF,
    AutoLinks,
    DomainAddition,
    DomainConfig,
    domains,
    standing,
)

COLUMNS = ["name", "id", "memory_mib", "vcpus", "state", "seconds"]


@dataclass(frozen=True)
class Disk:
    """A device or file of dom0, and the name that the guest sees it under (xvda1)."""

    path: str
    name: str
    writable: bool = True


@dataclass(frozen=True)
class Vif:
    """A guest's network interface: its MAC address and the bridge of dom0 it is a port of."""

    mac: str
    bridge: str


@dataclass(frozen=True)
class DomainSpec:
    """A domain as a site wants it; memory in MiB. ``options`` are further keys of its file.

    ``kernel`` and ``ramdisk``, "" for none, are dom0's files.

    ``maxmem_mib`` is what it may grow to, 0 where that is its memory. The ``type`` is pv, pvh, or
    auto, which is one of them, as the machine decides.
    """

    name: str
    kernel: str
    cmdline: str
    memory_mib: int
    disks: tuple[Disk, ...]
    vifs: tuple[Vif, ...]
    type: str = "pv"
    vcpus: int = 1
    maxmem_mib: int = 0
    options: tuple[tuple[str, str | int | Sequence[str]], ...] = ()
    ramdisk: str = ""


# How a guest is virtualised where a site leaves that to the machine. Xen is asked once it runs: the
# processor that /proc shows dom0 is masked.

_HELP = """
    case $(cat /proc/xen/capabilities 2> /dev/null || :) in
        *control_d*) xl info ;;
        *) grep -m 1 ^flags /proc/cpuinfo || : ;;
    esac
"""

_TO_PVH = """
    if xl info | grep '^virt_caps.* hvm'; then
        sed -i '/^type /s/"pv"/"pvh"/' {path}
    fi
"""


def best_type(virtualisation: str) -> str:
    """``pvh`` where that says VMX or SVM, or "hvm" in Xen's words; ``pv`` else."""
    return "pv" if {"vmx", "svm", "hvm"}.isdisjoint(virtualisation.split()) else "pvh"


def parse_help(text: str) -> tuple[str, str]:
    """The type of guests that the machine advises, and why, by what `_HELP` has printed."""
    found = re.search(r"^virt_caps *:(.*)$", text, re.MULTILINE)
    if found is not None:
        kind = best_type(found[1])
        return kind, "Xen reports hvm" if kind == "pvh" else "Xen reports no hvm"
    helps = {"vmx", "svm"} & set(text.split())
    return best_type(text), f"the processor has {''.join(helps).upper() or 'neither VMX nor SVM'}"


def advised_type(host: Host) -> tuple[str, str]:
    """The same of a host's machine; raises CommandFailed where Xen runs and xl does not answer."""
    return parse_help(host.inside("/").run(Command.script(_HELP)).stdout)


@dataclass(frozen=True)
class EitherConfig(Resource):
    """A domain's configuration file, of the type that the machine advises."""

    pv: DomainConfig
    pvh: DomainConfig

    def probe(self, host: Host) -> Difference | None:
        """The diff to the one that is advised now."""
        return self._advised(host).probe(host)

    def commands(self) -> tuple[Command, ...]:
        """Before a look, the file of a pv guest, which becomes the other where Xen reports hvm."""
        file, check = self.pv.commands()
        return file, Command.sh(_TO_PVH, path=self.pv.path), check

    def apply(self, host: Host, report: Report) -> None:
        """Write the one that is advised now."""
        self._advised(host).apply(host, report)

    def _advised(self, host: Host) -> DomainConfig:
        return self.pvh if advised_type(host)[0] == "pvh" else self.pv


@dataclass(frozen=True)
class Xl:
    """xl(1), today's toolstack on every distribution.

    ``settings`` is the folder with its services' settings, ``consoled`` the file and the variable
    with xenconsoled's options.
    """

    settings: str = "/etc/default"
    consoled: tuple[str, str] = ("xen", "XENCONSOLED_ARGS")

    def config_path(self, name: str) -> str:
        """``/etc/xen/NAME.cfg``: xl, unlike xm, does not search for a bare name."""
        return f"/etc/xen/{name}.cfg"

    def configured(self, domain: DomainSpec) -> Resource:
        """A domain's configuration file, which ``xl create -n`` accepts before it is in place."""
        path = self.config_path(domain.name)
        if domain.type != "auto":
            return DomainConfig(path, xl_config(domain))
        pv, pvh = (xl_config(replace(domain, type=each)) for each in ("pv", "pvh"))
        return EitherConfig(DomainConfig(path, pv), DomainConfig(path, pvh))

    def extended(
        self, name: str, chapter: str, *, vifs: tuple[Vif, ...] = (), cmdline: str = ""
    ) -> Resource:
        """What a later chapter adds to a domain's file: a block at its end, which stays there.

        ``+=`` adds to the lists and texts above it.
        """
        lines = []
        if vifs:
            lines.append(f"vif += {xl_list(map(_vif, vifs))}\n")
        if cmdline:
            lines.append(f"cmdline += {xl(' ' + cmdline)}\n")
        return DomainAddition(self.config_path(name), chapter, "".join(lines))

    def running(self, name: str, *, console: bool = False) -> Resource:
        """A domain that runs; with ``console``, its boot is followed up to the login prompt.

        ``xl create``, with what ``-c`` would show read from xenconsoled's log.
        """
        return DomainRunning(name, self.config_path(name), console)

    def all_running(self, names: Sequence[str]) -> Resource:
        """Domains that run, all booted at once: ``xl create -p`` of each, then ``xl unpause``."""
        return DomainsRunning(tuple((name, self.config_path(name)) for name in names))

    def console(self, name: str) -> Resource:
        """An action: open the console, press return, see the prompt, leave: ``xl console``."""
        return ConsoleAnswers(name)

    def rebooted(self, name: str) -> Resource:
        """An action: the guest reboots and its domain gets a new id: ``xl reboot``."""
        return DomainRebooted(name)

    def gone(self, name: str) -> Command:
        """The command whose exit status is 0 where ``xl list`` shows no such domain that runs."""
        script = 'case $(state_of "$1") in "" | *[pscd]*) ;; *) exit 1 ;; esac'
        return Command.script(STATE_OF + script, name)

    def stopped(self, name: str) -> Resource:
        """A guest that was asked to shut down and is gone: ``xl shutdown -ww``."""
        return DomainStopped(name)

    def destroyed(self, name: str) -> Resource:
        """A domain that was ended without asking the guest: ``xl destroy``."""
        return DomainDestroyed(name)

    def autostarted(self, names: tuple[str, ...]) -> Resource:
        """Just these guests start with dom0, in this order: links in ``/etc/xen/auto``."""
        return AutoLinks(names)

    def consoles_kept(self) -> Resource:
        """``--log=all`` for xenconsoled(8): what guests and hypervisor write goes to files."""
        name, variable = self.consoled
        return ShellWord(f"{self.settings}/{name}", variable, "--log=all")

    def shut_down_with_dom0(self) -> tuple[Resource, ...]:
        """xendomains shuts guests down with dom0, and does not write their memory to disk."""
        wanted = {"XENDOMAINS_SAVE": "", "XENDOMAINS_RESTORE": "false"}
        path = f"{self.settings}/xendomains"
        return tuple(Line(path, f'{key}="{value}"', key=f"{key}=") for key, value in wanted.items())

    def domains(self, host: Host) -> pd.DataFrame:
        """``xl list``: name, id, memory_mib, vcpus, state, seconds of CPU time."""
        found = (astuple(one) for one in domains(host))
        return pd.DataFrame(found, columns=COLUMNS)

    def values(self, host: Host) -> dict[str, Values]:
        """What each domain that there is runs with; of none off Xen."""
        found = host.look(Command("xl list -l 2> /dev/null || exit 44"), absent=(44,))
        return parse_running(found.stdout) if found else {}

    def live(self, name: str, memory_mib: int, vcpus: int) -> Resource:
        """A domain that has what its file says, as far as xl can change that while it runs."""
        return LiveValues(name, self.config_path(name), memory_mib, vcpus)

    def waiting(self, name: str) -> Resource:
        """What a domain gets only when it is created again; that is said, and stays."""
        return WaitsForCreation(name, self.config_path(name))

    def created_again(self, name: str) -> Resource:
        """A domain that is created again, unless it runs with what its file says."""
        running = self.running(name, console=True)
        return CreatedAgain(name, self.config_path(name), self.stopped(name), running)

    def why_silent(self, host: Host, name: str) -> str:
        """Why a guest cannot answer: its domain does not run, or not any more; "" where it does."""
        return standing(host, name)


def toolstack(platform: str) -> Xl:
    """A platform's toolstack. Raises BadInput where it has none."""
    gentoo = Xl("/etc/conf.d", ("xenconsoled", "XENCONSOLED_OPTS"))
    return by_platform(platform, "toolstack", {"debian": Xl(), "gentoo": gentoo})


def xl_config(domain: DomainSpec) -> str:
    """A domain's configuration file in the form of xl.cfg(5); raises BadInput for odd paths."""
    disks = []
    for disk in domain.disks:
        # xl splits the specification at its commas and knows no way to quote one.
        if not re.fullmatch(r"/[^,\s=]+", disk.path):
            raise BadInput(
                f"cannot make {disk.path!r} a disk of {domain.name}: because xl would split it",
                hint="give an absolute path without commas, blanks and equals signs",
            )
        disks.append(f"{disk.path},raw,{disk.name},{'rw' if disk.writable else 'ro'}")
    return render(
        "domain.cfg.j2",
        heading=f"The domain {domain.name}",
        name=domain.name,
        type=domain.type,
        kernel=domain.kernel,
        ramdisk=domain.ramdisk,
        cmdline=domain.cmdline,
        memory=domain.memory_mib,
        maxmem=domain.maxmem_mib or domain.memory_mib,
        vcpus=domain.vcpus,
        disks=disks,
        vifs=[_vif(vif) for vif in domain.vifs],
        options=[(key, _value(value)) for key, value in domain.options],
    )


def _value(value: str | int | Sequence[str]) -> Quoted | int:
    if isinstance(value, str):
        return xl(value)
    return value if isinstance(value, int) else xl_list(value)


def _vif(vif: Vif) -> str:
    return f"mac={vif.mac},bridge={vif.bridge}"
