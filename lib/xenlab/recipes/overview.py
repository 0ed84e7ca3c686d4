"""The finished host at a glance: domains, bridges, addresses, exports, who starts with dom0."""

from __future__ import annotations

import json

from xenlab.command import Command
from xenlab.host import Host
from xenlab.resources.domain_state import parse_list
from xenlab.resources.nfs import parse_exports

_SECTION = "----"
_LOOK = f"""
xl list
echo {_SECTION}
ip -json address show
echo {_SECTION}
exportfs -s 2> /dev/null || :
echo {_SECTION}
for link in /etc/xen/auto/*; do [ ! -e "$link" ] || readlink -f -- "$link"; done
"""


def overview(host: Host) -> dict[str, str] | None:
    """What a host has, in words by heading; None where it runs no Xen."""
    result = host.run(Command(f"set -e\n{_LOOK}"), check=False)
    return parse(result.stdout) if result.ok else None


def parse(text: str) -> dict[str, str]:
    """The answer of the look: four sections."""
    domains, addresses, exports, started = (text.split(f"{_SECTION}\n") + [""] * 4)[:4]
    devices = [d for d in json.loads(addresses or "[]") if "ifname" in d]
    masters = sorted({d["master"] for d in devices if "master" in d})
    ports = {m: [d["ifname"] for d in devices if d.get("master") == m] for m in masters}
    own = [
        f"{d['ifname']} {a['local']}/{a['prefixlen']}"
        for d in devices
        for a in d.get("addr_info", [])
        if a.get("family") == "inet" and d["ifname"] != "lo"
    ]
    names = (path.rpartition("/")[2].removesuffix(".cfg") for path in started.split())
    found = {
        "domains": ", ".join(
            f"{one.name} ({one.memory_mib} MiB{'' if one.runs else f', {one.state}'})"
            for one in parse_list(domains)
        ),
        "bridges": "; ".join(f"{bridge}: {', '.join(ports[bridge])}" for bridge in masters),
        "dom0's addresses": ", ".join(own),
        "exports": ", ".join(f"{each.path} to {each.client}" for each in parse_exports(exports)),
        "start with dom0": ", ".join(names),
    }
    return {heading: words for heading, words in found.items() if words}
