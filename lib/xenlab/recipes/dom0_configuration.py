"""Chapter 07: what makes dom0 dom0: Xen's own configuration, and the bridge.

Howto: „Spezifische Konfiguration“, „Xen NIC-Layout“.
"""

from __future__ import annotations

from importlib.resources import files as package_files

import pandas as pd

from xenlab.chapter import Chapter
from xenlab.command import Command
from xenlab.parameters import Parameters
from xenlab.platform.services import services
from xenlab.quoting import sh_settings, xl
from xenlab.resources import network
from xenlab.resources.base import Resource
from xenlab.resources.files import Directory, File, Line
from xenlab.resources.network import Bridge
from xenlab.resources.setting import KernelSetting

PROGRAM = "/usr/local/sbin/xenlab-bridge"
SETTINGS = "/etc/default/xenlab-bridge"
TRIED = f"{SETTINGS}.new"
"""Settings that nobody has confirmed yet: no boot reads them."""
CONSOLE_LOGS = "/var/log/xen/console"

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


def xend_today(book: Chapter) -> pd.DataFrame:
    """Each setting of xend-config.sxp, where it lives today, and what /etc/xen/xl.conf has now."""
    site = book.site
    values = {"bridge": site.bridge, "dom0_mem": str(site.dom0_mem_mib)}
    show = Command.argv("grep", "-v", "^ *#", "/etc/xen/xl.conf")
    lines = book.target.run(show, check=False).stdout.splitlines()
    now = {line.partition("=")[0].strip(): line.strip() for line in lines}
    rows = []
    for key, today in _XEND:
        name = today.removeprefix("xl.conf: ").partition("=")[0]
        rows.append((key, today.format(**values), now.get(name, "")))
    return pd.DataFrame(rows, columns=["xend-config.sxp", "today", "in xl.conf now"])


def toolstack_settings(site: Parameters) -> tuple[Resource, ...]:
    """xl.conf(5): dom0 keeps its memory; where a guest's interface goes if it does not say."""
    settings = {
        "autoballoon": "off",
        "vif.default.script": "vif-bridge",
        "vif.default.bridge": site.bridge,
    }
    return tuple(
        Line("/etc/xen/xl.conf", f"{key}={xl(value)}", key=f"{key}=")
        for key, value in settings.items()
    )


def console_logs(book: Chapter) -> tuple[Resource, ...]:
    """What guests and hypervisor write on their consoles is kept (xenconsoled(8)).

    A restart of the service leaves xenstored alone, which cannot be restarted, and with it every
    guest.
    """
    return (
        Directory(CONSOLE_LOGS, 0o2750),
        book.toolstack.consoles_kept(),
        book.services.carrying("xen", "xenconsoled", "--log=all"),
    )


def shutdown_settings(book: Chapter) -> tuple[Resource, ...]:
    """When dom0 shuts down, guests are shut down too, and their memory is not written to disk."""
    return book.toolstack.shut_down_with_dom0()


def daemons(book: Chapter) -> tuple[Resource, ...]:
    """Xen's daemons run; the service that starts and stops guests with dom0 is there."""
    return book.services.running("xen"), book.services.enabled("xendomains")


def bridge_settings(site: Parameters) -> str:
    """What the program is told."""
    values = {
        "UPLINK": site.uplink,
        "BRIDGE": site.bridge,
        "VIF": network.vif(site.uplink),
        "ADDRESS_ON": "bridge" if site.dom0_ip_on_bridge else "uplink",
    }
    return f"# written by xenlab, chapter 07\n{sh_settings(values)}"


def bridge_program(site: Parameters) -> tuple[Resource, ...]:
    """The program that makes the bridge, settings to try, its unit; nothing of it runs yet."""
    program = package_files("xenlab").joinpath("templates", "xenlab-bridge.sh").read_text()
    return (
        File(PROGRAM, program, mode=0o755),
        File(TRIED, bridge_settings(site)),
        services(site.platform).defined("xenlab-bridge", uplink=site.uplink),
    )


def bridge_made(site: Parameters) -> Bridge:
    """The uplink is a port of the bridge; nobody is locked out if that fails."""
    return Bridge(
        uplink=site.uplink,
        bridge=site.bridge,
        address=site.address,
        gateway=site.gateway,
        address_on_bridge=site.dom0_ip_on_bridge,
        rollback_seconds=site.rollback_seconds,
        program=PROGRAM,
        settings=TRIED,
        kept=SETTINGS,
    )


def bridge_kept(book: Chapter) -> tuple[Resource, ...]:
    """The bridge comes back at every boot, before anything gets an address.

    Only now, when somebody has come in over it: a layout that was rolled back must not come back.
    Beside the bridge dom0's address stays where chapter 04 put it, on the interface of that name.
    """
    site = book.site
    kept = File(SETTINGS, bridge_settings(site))
    service = book.services.running("xenlab-bridge")
    seam = book.interfaces
    address = seam.on_bridge if site.dom0_ip_on_bridge else seam.beside_bridge
    return kept, *address(site.uplink, site.address, site.gateway, site.bridge), service


def unfiltered() -> tuple[Resource, ...]:
    """dom0's firewall rules are not applied to what the bridge passes on (br_netfilter)."""
    return (
        File("/etc/udev/rules.d/70-br-netfilter.rules", template="br-netfilter.rules"),
        *(
            KernelSetting(f"/proc/sys/net/bridge/bridge-nf-call-{name}", "0", required=False)
            for name in ("iptables", "ip6tables", "arptables")
        ),
    )


def interfaces(book: Chapter) -> pd.DataFrame:
    """The interfaces as they hang together now."""
    columns = ["interface", "kind", "MAC", "bridge", "addresses", "up"]
    devices = network.reported_devices(book.target) or {}
    rows = [
        {"interface": name, **network.describe(device, "")}
        for name, device in devices.items()
        if name != "lo"
    ]
    return pd.DataFrame(rows, columns=columns)
