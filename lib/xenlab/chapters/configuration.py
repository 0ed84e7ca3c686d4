"""Chapters 05, 07 and 13: what is valid for all domains, what makes dom0 dom0, their LAN."""

from __future__ import annotations

# Chapter 05: what is valid for all later domains: software, names, sshd, log, cron.
#
# Howto: „Grundkonfiguration“.
from dataclasses import dataclass, field, replace

import pandas as pd

from xenlab.chapter.chapter import Chapter
from xenlab.command import Command
from xenlab.errors import BadInput, StepFailed
from xenlab.host import Host
from xenlab.platform.choice import Packages, Services
from xenlab.platform.interfaces import More, guest_system, name_rule
from xenlab.platform.portage import DISTCC_PORT
from xenlab.quoting import sh_settings
from xenlab.resources import network
from xenlab.resources.base import All, Condition, Difference, Once, OnHost, Report, Resource
from xenlab.resources.files import File
from xenlab.resources.network import Bridge, InterfaceUp, LanDevices, Reaches, vif
from xenlab.site.schema import LanGuest, Parameters
from xenlab.site.types import AUTO
from xenlab.site.uplink import (
    accept_ra,
    by_card,
    card_name,
    card_names,
    lower_name,
    uplink_name,
)

LOGS = {
    "rsyslog": ("/var/log/syslog",),
    "syslog-ng": ("/var/log/messages", "/var/log/syslog"),
}
"""Where a daemon writes the system's log: one of these files, as the distribution has it."""


def xen_runs() -> Resource:
    """The condition that the machine is dom0 of a running hypervisor (map.md: is_xen, is_dom0)."""
    script = """
        [ "$(cat /sys/hypervisor/type)" = xen ]
        grep -q control_d /proc/xen/capabilities
    """
    return Condition(
        Command.script(script),
        "the machine does not run as dom0 of Xen",
        "boot it from its disk: chapter 04_grub",
    )


def software_installed(chapter: Chapter) -> tuple[Resource, ...]:
    """The site's software and what mounts the share, from an index that is not too old.

    What the site does not want goes at last: what was installed may have brought it along.
    """
    names = dict.fromkeys((*chapter.site.software, *chapter.packages.nfs_client))
    packages = chapter.packages
    wanted = (packages.installed(*names), packages.removed(*chapter.site.unwanted))
    return packages.updated(), All(wanted)


def distcc_off(chapter: Chapter) -> Resource:
    """distcc's server does not run: whoever reaches it can run programs here."""
    names = [name.rpartition("/")[2] for name in chapter.site.software]
    return chapter.services.disabled(*(name for name in names if name == "distcc"))


def log_written(chapter: Chapter) -> Resource:
    """The condition that the log is written, where the site asks for a daemon that does."""
    daemon = next((name for name in chapter.site.services if name in LOGS), "")
    files = LOGS.get(daemon, ())
    script = """
        [ $# -gt 0 ] || exit 0
        # a daemon that was just started may not have written its first line
        for attempt in 1 2 3 4 5 6 7 8 9 10; do
            for file do
                [ -s "$file" ] && exit 0
            done
            sleep 1
        done
        exit 1
    """
    return Condition(
        Command.script(script, *files),
        f"nothing is written to {' or '.join(files)}",
        chapter.services.hint(daemon),
    )


def distcc_silent(chapter: Chapter) -> Resource:
    """The condition that nobody outside can reach distcc's port."""
    script = """
        ! ss --no-header --tcp --listening --numeric "sport = :$1" \\
            | awk '{ print $4 }' | grep -qvE '^(127\\.|\\[::1\\])'
    """
    return Condition(
        Command.script(script, str(DISTCC_PORT)),
        "distcc listens on the network",
        "disable distcc's service and stop it",
    )


def listeners(chapter: Chapter) -> pd.DataFrame:
    """Who listens for connections, and where."""
    command = "ss --no-header --tcp --listening --numeric --processes"
    return parse_listeners(chapter.target.run(command, check=False).stdout)


def parse_listeners(text: str) -> pd.DataFrame:
    """The output of ``ss --no-header --tcp --listening --numeric --processes`` as a table."""
    rows = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 5:
            continue
        address, _, port = words[3].rpartition(":")
        program = words[5].split('"')[1] if len(words) > 5 and '"' in words[5] else ""
        rows.append({"address": address, "port": port, "program": program})
    frame = pd.DataFrame(rows, columns=["address", "port", "program"])
    return frame.drop_duplicates(ignore_index=True)


UNMERGED = ("file", "new version", "diff")
"""The columns of what `unmerged_files` finds."""


def unmerged_table(chapter: Chapter) -> pd.DataFrame:
    """What packages brought to the machine and did not put over a changed file: UNMERGED."""
    return pd.DataFrame(unmerged_files(chapter.target, chapter.packages), columns=list(UNMERGED))


def unmerged_files(host: Host, packages: Packages) -> list[tuple[str, str, str]]:
    """Which changed files packages left alone on a host, a row of UNMERGED for each changed line.

    What not everybody may read is named, and not shown: it is read as nobody.
    """
    found = host.run(packages.waiting, check=False).stdout.splitlines()
    script = """
        state=0
        shown=$(setpriv --reuid 65534 --regid 65534 --clear-groups \
            diff --unified=1 -- "$1" "$2" 2> /dev/null) || state=$?
        case $state in
            0) echo "the same" ;;
            1) printf '%s\n' "$shown" | sed -e '1,2{/^---/d' -e '/^+++/d' -e '}' ;;
            *)
                if [ -e "$1" ]; then
                    echo "not shown: not everybody may read it"
                else
                    echo "the old one is gone"
                fi
                ;;
        esac
    """
    rows = []
    for old, _, new in (line.partition("\t") for line in found):
        differs = host.run(Command.script(script, old, new)).stdout
        rows += [(old, new, line) for line in differs.splitlines()]
    return rows


def base_configured(chapter: Chapter) -> Resource:
    """What later chapters build on: the software and its services."""
    site = chapter.site
    installed = chapter.packages.installed(*site.software)
    return All((installed, chapter.services.running(*site.services)))


# Chapter 07: what makes dom0 dom0: Xen's own configuration, and the bridge.
#
# Howto: „Spezifische Konfiguration“, „Xen NIC-Layout“.

_XEND = (
    ("(network-script network-bridge)", "xenlab-bridge.service: Xen configures no network today"),
    ("(vif-script vif-bridge)", 'xl.conf: vif.default.script="vif-bridge"'),
    ("the bridge of the guests", 'xl.conf: vif.default.bridge="{bridge}", or per vif'),
    ("(dom0-min-mem 196)", 'xl.conf: autoballoon="off", and dom0_mem={dom0_mem}M for Xen'),
    ("(dom0-cpus 0)", "dom0_max_vcpus= for Xen"),
    ("(console-limit 1024)", "xenconsoled --log=all, and logrotate"),
    ("(xend-relocation-server yes)", "none: xl migrate goes over ssh"),
    ("(enable-dump no)", "on_crash= in each domain's file"),
    ("(logfile /var/log/xend.log)", "/var/log/xen/xl-NAME.log"),
    ("xend in the runlevel", "xen.service, xendomains.service"),
)


def xend_today(chapter: Chapter) -> pd.DataFrame:
    """Each setting of xend-config.sxp, where it lives today, and what /etc/xen/xl.conf has now."""
    site = chapter.site
    values = {"bridge": site.bridge, "dom0_mem": str(site.dom0_mem_mib)}
    show = Command.argv("grep", "-v", "^ *#", "/etc/xen/xl.conf")
    lines = chapter.target.run(show, check=False).stdout.splitlines()
    now = {line.partition("=")[0].strip(): line.strip() for line in lines}
    rows = []
    for key, today in _XEND:
        name = today.removeprefix("xl.conf: ").partition("=")[0]
        rows.append((key, today.format(**values), now.get(name, "")))
    return pd.DataFrame(rows, columns=["xend-config.sxp", "today", "in xl.conf now"])


BRIDGE_SETTINGS = "/etc/default/xenlab-bridge"
"""What a boot makes the bridge by."""


def uplink_named(chapter: Chapter) -> tuple[File, ...]:
    """The rule that gives the uplink's card its name in dom0, where the site does not say a name.

    Raises BadInput where there is not exactly one such card, or an installed dom0 has its bridge on
    an interface of another name, which would be gone at the next boot.
    """
    site, name = chapter.site, card_name(chapter.site)
    members = zip(card_names(site)[1:], site.uplink_bond.members, strict=True)
    others = {called: card.lower() for called, card in members if ":" in card}
    if not by_card(site):
        return (name_rule(others),) if others else ()
    card = "'/^UPLINK=/h; /^CARD=/h; /^CARDS=/h; ${ g; s/.*=//; s/[ ].*//; p; }'"
    script = f'[ -e "$1" ] || exit 44; sed -n {card} "$1" | tr -d \\\''
    look = Command.script(script, BRIDGE_SETTINGS)
    found = chapter.target.look(look, absent=(44,))
    if found is not None and found.stdout.strip() != name:
        raise BadInput(
            f"uplink: {site.uplink} would call dom0's network card {name}, and its bridge is on "
            f"{found.stdout.strip()}",
            hint=f"write uplink: {found.stdout.strip()}, as dom0 was installed",
        )
    nics = network.look_at_nics(chapter.host) if site.uplink == AUTO else ()
    mac = network.the_nic(AUTO, nics).mac if site.uplink == AUTO else site.uplink.lower()
    return (name_rule({name: mac, **others}),)


def bridge_settings(site: Parameters, path: str) -> File:
    """What the program that makes the bridge is told, in this file.

    No boot reads it at first: what a boot reads is written once the bridge was confirmed.
    """
    values = {
        "UPLINK": uplink_name(site),
        "BRIDGE": site.bridge,
        "VIF": network.vif(uplink_name(site)),
        "ADDRESS_ON": "bridge" if site.dom0_ip_on_bridge else "uplink",
    }
    if site.gateway6:
        values["ACCEPT_RA"] = str(accept_ra(site.gateway6))
    if site.uplink_vlan:
        values |= {"CARD": lower_name(site), "VLAN": str(site.uplink_vlan)}
    if site.uplink_bond.members:
        cards = " ".join(card_names(site))
        values |= {"BOND": lower_name(site), "MODE": site.uplink_bond.mode, "CARDS": cards}
    return File(path, f"# written by xenlab, chapter 07\n{sh_settings(values)}")


def bridge_made(site: Parameters) -> Bridge:
    """What step 07.7 leaves: the uplink is a port of the bridge."""
    return Bridge(
        uplink=uplink_name(site),
        bridge=site.bridge,
        address=site.address,
        gateway=site.gateway,
        address_on_bridge=site.dom0_ip_on_bridge,
        rollback_seconds=site.rollback_seconds,
        vlan=site.uplink_vlan,
        addresses=tuple(site.addresses),
        gateway6=site.gateway6,
        bond=bond_of(site),
    )


def bond_of(site: Parameters) -> tuple[str, ...]:
    """The mode of the uplink's bond, and what its cards are called; nothing where there is none."""
    return (site.uplink_bond.mode, *card_names(site)) if site.uplink_bond.members else ()


def uplink_values(site: Parameters) -> tuple[str, str, str, str, More]:
    """What dom0's uplink has, as the files of every platform's interfaces are asked for."""
    more = More(lower_name(site), site.uplink_vlan, tuple(site.addresses), site.gateway6)
    if site.uplink_bond.members:
        bond, mode = lower_name(site), site.uplink_bond.mode
        more = replace(more, bond=bond, mode=mode, cards=card_names(site))
    return uplink_name(site), site.address, site.gateway, site.bridge, more


def bridge_kept(chapter: Chapter) -> tuple[Resource, ...]:
    """The bridge comes back at every boot, before anything gets an address.

    Only now, when somebody has come in over it: a layout that was rolled back must not come back.
    Beside the bridge dom0's address stays where chapter 04 put it, on the interface of that name.
    """
    site = chapter.site
    settings = bridge_settings(site, BRIDGE_SETTINGS)
    service = chapter.services.running("xenlab-bridge")
    own = chapter.interfaces
    address = own.on_bridge if site.dom0_ip_on_bridge else own.beside_bridge
    return settings, *address(*uplink_values(site)), service


def interfaces(chapter: Chapter) -> pd.DataFrame:
    """The interfaces as they hang together now."""
    columns = ["interface", "kind", "MAC", "bridge", "addresses", "up"]
    devices = network.reported_devices(chapter.target) or {}
    rows = [
        {"interface": name, **network.describe(device, "")}
        for name, device in devices.items()
        if name != "lo"
    ]
    return pd.DataFrame(rows, columns=columns)


BUGFIX = "xenlab-vif"
SERVICE_SECONDS = 300.0


def bare(address: str) -> str:
    """An address without its prefix."""
    return address.partition("/")[0]


def lan_settings(site: Parameters) -> File:
    """What the program that makes the internal LAN's devices is told."""
    values = {
        "BRIDGE": site.lan_bridge,
        "INTERFACE": site.lan_interface,
        "VIF": vif(site.lan_interface),
    }
    text = f"# written by xenlab, chapter 13\n{sh_settings(values)}"
    return File("/etc/default/xenlab-lan", text)


def guest_interface(chapter: Chapter, name: str, interface: str, address: str) -> Resource:
    """A guest's second interface, configured „herkömmlich“ and up."""
    files = guest_system(chapter.site.platform).lan(interface, address)
    up = InterfaceUp(interface, address, chapter.interfaces.up(interface))
    return OnHost(name, chapter.guest(name), All((*(file.resource() for file in files), up)))


def reaches_the_others(chapter: Chapter, guest: LanGuest) -> Resource:
    """The condition that a guest reaches all others over the LAN."""
    others = [bare(other.address) for other in chapter.site.lan_guests if other != guest]
    return _from_guest(chapter, guest, others)


def lan_bug(chapter: Chapter) -> Resource:
    """Seen once: dom0 is not in its own LAN („Auf Domain0 fehlt es“)."""
    site = chapter.site
    parts = (
        LanDevices(site.lan_bridge, site.lan_interface, joined=False),
        *(
            _from_guest(chapter, guest, [bare(site.lan_address)], never=True)
            for guest in site.lan_guests[:1]
        ),
    )
    return Once("lan-bug", WithoutTheBugfix(parts, chapter.services), repr(site.lan_guests))


def _from_guest(
    chapter: Chapter, guest: LanGuest, addresses: list[str], *, never: bool = False
) -> Resource:
    reaches = Reaches(guest.name, tuple(addresses), never)
    return OnHost(guest.name, chapter.guest(guest.name), reaches)


@dataclass(frozen=True)
class WithoutTheBugfix(Resource):
    """An action that looks: these conditions hold while the BUGFIX service does not run."""

    conditions: tuple[Resource, ...]
    services: Services = field(compare=False)

    def probe(self, host: Host) -> Difference | None:
        """What will be looked at."""
        return Difference("look for dom0 in the internal LAN")

    def commands(self) -> tuple[Command, ...]:
        """Stop the service if it runs, look, start it again."""
        return self.services.stop(BUGFIX), Command("ip link show"), self.services.start(BUGFIX)

    def apply(self, host: Host, report: Report) -> None:
        """Look; a service that ran already runs again. Raises StepFailed for what does not hold."""
        report("looking for dom0 in the internal LAN")
        ran = host.test(self.services.runs(BUGFIX))
        if ran:
            host.run(self.services.stop(BUGFIX), timeout=SERVICE_SECONDS)
        try:
            difference = All(self.conditions).probe(host)
        finally:
            if ran:
                host.run(self.services.start(BUGFIX), timeout=SERVICE_SECONDS)
        if difference is not None:
            raise StepFailed(f"without {BUGFIX}: {difference.summary}")

    def verify(self, host: Host) -> None:
        """Apply has seen it."""


@dataclass(frozen=True)
class OutAndIn(Resource):
    """An action: the BUGFIX service is stopped and started; dom0 leaves the LAN and comes back."""

    inside: Resource
    outside: Resource
    reached: Reaches
    services: Services = field(compare=False)

    def probe(self, host: Host) -> Difference | None:
        """What will be done."""
        return Difference(f"stop and start {BUGFIX}")

    def commands(self) -> tuple[Command, ...]:
        """Stop it, see that nobody answers, start it again, see that all do."""
        pings = [Command.argv("ping", "-c", 1, one) for one in self.reached.addresses]
        silent = (Command(f"! {ping.text}") for ping in pings)
        answers = (p.scripted_as(f"until {p.text}; do sleep 1; done") for p in pings)
        return self.services.stop(BUGFIX), *silent, self.services.start(BUGFIX), *answers

    def apply(self, host: Host, report: Report) -> None:
        """Stop it, see dom0 alone; whatever is seen, start it again."""
        cut = Reaches(self.reached.who, self.reached.addresses, never=True)
        report(f"stopping {BUGFIX}")
        host.run(self.services.stop(BUGFIX), timeout=SERVICE_SECONDS)
        try:
            alone = All((self.outside, cut)).probe(host)
        finally:
            report(f"starting {BUGFIX}")
            host.run(self.services.start(BUGFIX), timeout=SERVICE_SECONDS)
        if alone is not None:
            raise StepFailed(f"with {BUGFIX} stopped: {alone.summary}")

    def verify(self, host: Host) -> None:
        """dom0 is in the LAN again."""
        difference = All((self.inside, self.reached)).probe(host)
        if difference is not None:
            raise StepFailed(f"with {BUGFIX} started again: {difference.summary}")
