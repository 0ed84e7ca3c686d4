"""A machine that is only written down: every file and command of the howto, as it was in 2006.

No machine is at hand: GRUB legacy, xm, xend and /sbin/runscript run nowhere today. What the howto
shows is written as it stands there; what it only speaks of is reconstructed, and said to be so. A
list of commands is typed line by line, what follows a chroot inside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import yaml
from jinja2 import PackageLoader, StrictUndefined

from xenlab.errors import BadInput
from xenlab.parameters import Parameters
from xenlab.quoting import environment

PLATFORM = "gentoo-2006"
KERNEL = "2.6.16"
"""The howto's kernel (its „Software“)."""

FIRST_LOGICAL = 5
"""The first logical partition of a DOS label: four primary ones come before it."""

_FOLDER = f"data/{PLATFORM}"


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


def render(site: Parameters) -> list[Artefact]:
    """All artefacts of a site, in the howto's order. Raises BadInput for another platform."""
    if site.platform != PLATFORM:
        raise BadInput(
            f"only {PLATFORM} is rendered, and {site.site} is {site.platform}",
            hint="a machine of today is planned: xenlab plan",
        )
    templates = environment(
        loader=PackageLoader("xenlab", _FOLDER), undefined=StrictUndefined, lstrip_blocks=True
    )
    found = []
    for entry in contents():
        place = f"{entry['chapter']}/{entry['path']}"
        template = templates.get_template(f"{place}.j2")
        for path, values in _each(site, entry["path"]):
            text = template.render(**_values(site), **values)
            statements = tuple(entry["statements"])
            found.append(Artefact(entry["chapter"], path, text, statements, entry["origin"]))
    return found


def write(site: Parameters, folder: Path) -> list[Artefact]:
    """Write all artefacts below a folder that is new or empty, and a list of them.

    Raises BadInput where something lies there already.
    """
    artefacts = render(site)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} is not empty", hint="name a folder that is not there yet")
    for artefact in artefacts:
        place = folder / artefact.chapter / artefact.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(artefact.text)
    lines = [f"{a.chapter}/{a.path}  ({a.origin}; {', '.join(a.statements)})\n" for a in artefacts]
    (folder / "CONTENTS").write_text("".join(lines))
    return artefacts


def contents() -> list[dict[str, Any]]:
    """What there is to render: chapter, path, statements and origin of each, in order."""
    text = files("xenlab").joinpath(_FOLDER, "contents.yaml").read_text()
    return list(yaml.safe_load(text))


def devices(site: Parameters) -> dict[str, str]:
    """The device of each partition by its name, as a DOS label numbers them."""
    logical = ["share", *(domain.partition for domain in site.domains), "domuswap"]
    numbers = {"boot": 1, "dom0swap": 2, "dom0root": 3}
    numbers |= {name: number for number, name in enumerate(logical, FIRST_LOGICAL)}
    return {name: f"{site.disk}{number}" for name, number in numbers.items()}


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
        "device": devices(site),
        "partition": {domain.name: domain.partition for domain in site.domains},
        "network": str(ip_interface(site.lan_address).network),
        "on_share": site.image.removeprefix(site.share),
        "bare": lambda address: address.partition("/")[0],
    }
