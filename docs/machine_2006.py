"""The howto's own machine: each file and command of it, as it was in 2006.

No machine is at hand: GRUB legacy, xm, xend and /sbin/runscript run nowhere today. What the howto
shows is written as it stands there; what it only speaks of is reconstructed, and said to be so. A
list of commands is typed line by line, what follows a chroot inside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import yaml
from jinja2 import FileSystemLoader, StrictUndefined

from xenlab import quoting
from xenlab.site.schema import Parameters

TEMPLATES = Path(__file__).parent / "gentoo-2006"

KERNEL = "2.6.16"
"""The howto's kernel (its „Software“)."""

FIRST_LOGICAL = 5
"""The first logical partition of a DOS label: four primary ones come before it."""


@dataclass(frozen=True)
class Artefact:
    """A file or a list of commands: its chapter, its path below that, its text.

    ``statements`` are the howto's statements that it carries out, ``origin`` tells where its text
    comes from: "howto", "handbook", "Xen 3.0.1" or "reconstruction".
    """

    chapter: str
    path: str
    text: str
    statements: tuple[str, ...]
    origin: str


def artefacts(site: Parameters) -> Iterator[Artefact]:
    """All artefacts of a site, in the howto's order."""
    templates = quoting.environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, lstrip_blocks=True
    )
    for entry in contents():
        template = templates.get_template(f"{entry['chapter']}/{entry['path']}.j2")
        for path, values in _each(site, entry["path"]):
            text = template.render(**_values(site), **values)
            statements = tuple(entry["statements"])
            yield Artefact(entry["chapter"], path, text, statements, entry["origin"])


def contents() -> list[dict[str, Any]]:
    """What there is to render: chapter, path, statements and origin of each, in order."""
    return list(yaml.safe_load((TEMPLATES / "contents.yaml").read_text()))


def _each(site: Parameters, path: str) -> list[tuple[str, Mapping[str, object]]]:
    """The path, or one for each guest, with what its template knows beside the site."""
    if "GUEST" not in path:
        return [(path, {})]
    lan = {guest.name: guest for guest in site.lan_guests}
    return [
        (path.replace("GUEST", guest.name), {"guest": guest, "lan": lan.get(guest.name)})
        for guest in site.domains
    ]


def _values(site: Parameters) -> dict[str, object]:
    return {
        "site": site,
        "kernel": KERNEL,
        "device": _devices(site),
        "partition": {domain.name: domain.partition for domain in site.domains},
        "network": str(ip_interface(site.lan_address).network),
        "on_share": site.image.removeprefix(site.share),
        "bare": lambda address: address.partition("/")[0],
    }


def _devices(site: Parameters) -> dict[str, str]:
    """The device of each partition by its name, as a DOS label numbers them."""
    logical = ["share", *(domain.partition for domain in site.domains), "domuswap"]
    numbers = {"boot": 1, "dom0swap": 2, "dom0root": 3}
    numbers |= {name: number for number, name in enumerate(logical, FIRST_LOGICAL)}
    return {name: f"{site.disk}{number}" for name, number in numbers.items()}
