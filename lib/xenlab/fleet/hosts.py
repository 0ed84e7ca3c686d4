"""The hosts of a fleet: a base site, and of each host what differs from it."""

from __future__ import annotations

import csv
import difflib
import graphlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import reduce
from pathlib import Path
from typing import Any

from xenlab.errors import BadInput
from xenlab.fleet.unique import violations
from xenlab.site import loader
from xenlab.site.schema import Parameters, validate

KEYS = ("fleet", "base", "hosts", "csv", "inventory", "image")
"""The keys of a fleet's file."""

CANARY = "canary"
IMAGES = ("own", CANARY)
"""Whose root an image is taken of: each host's own, or the canary's for all that are made alike."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""How a fleet and its hosts may be called: files have these names."""

NAMED = ("domains", "lan_guests", "guest_exports")
"""The lists of a site whose entries have names: of each a host may say what differs."""

ANSIBLE = {"ansible_host": "host", "ansible_port": "port", "ansible_user": "user"}
"""What an inventory says of the way to a host, and the key of `ssh` that it is here."""

MOST_NAMED = 3
"""Of how many hosts a sentence gives the names, where more have the same problem."""

Values = dict[str, Any]


@dataclass(frozen=True)
class Fleet:
    """A fleet as its file has it; each host's site as values to be written down, and validated.

    ``image`` is one of `IMAGES`.
    """

    name: str
    file: Path
    values: Mapping[str, Values]
    sites: Mapping[str, Parameters]
    image: str = IMAGES[0]

    def limited(self, pattern: str) -> Fleet:
        """The hosts that one of the patterns names (``web*,db1``), those of ``!db*`` left out.

        Raises BadInput where none is left.
        """
        patterns = [each.strip() for each in pattern.split(",") if each.strip()]
        wanted = [each for each in patterns if not each.startswith("!")] or ["*"]
        without = [each[1:] for each in patterns if each.startswith("!")]
        names = [
            name
            for name in self.sites
            if any(fnmatchcase(name, each) for each in wanted)
            and not any(fnmatchcase(name, each) for each in without)
        ]
        if not names:
            near = difflib.get_close_matches(pattern, self.sites, 1, 0.5)
            raise BadInput(
                f"cannot limit the fleet to {pattern}: because no host is called so",
                hint=near[0] if near else f"one of {_listed(list(self.sites))}",
            )
        return replace(
            self,
            values={name: self.values[name] for name in names},
            sites={name: self.sites[name] for name in names},
        )


def load(file: Path) -> Fleet:
    """Read a fleet's file, and validate each host as a site of its own, and all beside each other.

    Raises BadInput with a sentence for each problem; no machine is asked.
    """
    read = loader.read(file)
    said = read.values
    for key in said:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1, 0.5)
            hint = f"call it {near[0]}" if near else f"use {', '.join(KEYS)}"
            raise BadInput(f"there is no key {key} in a fleet's file", where=str(file), hint=hint)
    name = _text(said, "fleet", file)
    if not NAME.fullmatch(name):
        raise BadInput(
            f"cannot call the fleet {name!r}: because files have its name",
            where=str(file),
            hint="use letters, digits, dots and dashes",
        )
    base = loader.read(_beside(file, _text(said, "base", file))).values
    image = said.get("image", IMAGES[0])
    if image not in IMAGES:
        raise BadInput(f"image must be {' or '.join(IMAGES)}, not {image!r}", where=str(file))
    differing = _differing(said, file)
    values = {host: site_values(base, host, own) for host, own in differing.items()}
    return Fleet(name, file, values, _validated(values, file), image)


def site_values(base: Mapping[str, Any], host: str, own: Mapping[str, Any]) -> Values:
    """A host's site: the base, in it the host's name, over that what the host says itself.

    The host's name is its `site`, its `hostname` and its `ssh.host`, unless it says otherwise.
    """
    usual = {"site": host, "hostname": host.partition(".")[0], "ssh": {"host": host}}
    lists: Values = {key: [] for key in NAMED if isinstance(own.get(key), dict)}
    merged: Values = merge(merge(lists | dict(base), usual), dict(own))
    guests = own.get("domains")
    renamed = {
        name: entry["name"]
        for name, entry in (guests.items() if isinstance(guests, dict) else ())
        if isinstance(entry, dict) and "name" in entry
    }
    # a guest that is called otherwise here is so wherever the base names it
    for key in ("autostart", "shared_usr", *NAMED[1:]):
        if renamed and not isinstance(own.get(key), list) and isinstance(merged.get(key), list):
            merged[key] = [_renamed(each, renamed) for each in merged[key]]
    return merged


def _renamed(entry: Any, names: Mapping[str, Any]) -> Any:
    if isinstance(entry, dict) and "name" in entry:
        return entry | {"name": names.get(entry["name"], entry["name"])}
    return names.get(entry, entry) if isinstance(entry, str) else entry


def merge(base: Any, differs: Any) -> Any:
    """What a base becomes where something differs.

    A mapping changes a mapping key by key. It changes a list whose entries have names entry by
    entry: each of its keys is the name of one, and a new name is a new entry. Anything else, a
    list too, takes the place of what was there.
    """
    if not isinstance(differs, dict):
        return differs
    if isinstance(base, list) and all(isinstance(e, dict) and "name" in e for e in base):
        entries = {entry["name"]: entry for entry in base}
        for name, own in differs.items():
            entries[name] = merge(entries.get(name, {"name": name}), own)
        return list(entries.values())
    if not isinstance(base, dict):
        return differs
    return base | {name: merge(base.get(name), own) for name, own in differs.items()}


# What the hosts say: in the file itself, in a table, in an inventory.


def _differing(said: Mapping[str, Any], file: Path) -> dict[str, Values]:
    """What each host says itself; what the fleet's own file says wins."""
    found: dict[str, Values] = {}
    if "inventory" in said:
        found |= from_inventory(_beside(file, _text(said, "inventory", file)))
    if "csv" in said:
        for host, own in from_csv(_beside(file, _text(said, "csv", file))).items():
            found[host] = merge(found.get(host, {}), own)
    hosts = said.get("hosts", {})
    if not isinstance(hosts, dict):
        raise BadInput("hosts must be a mapping: the name of each, what differs", where=str(file))
    for host, own in hosts.items():
        if not isinstance(own, dict | None):
            raise BadInput(f"hosts.{host} must be a mapping (key: value)", where=str(file))
        found[host] = merge(found.get(host, {}), own or {})
    if not found:
        raise BadInput(
            "cannot use this fleet: because it has no host",
            where=str(file),
            hint="name them under hosts, or a file of them with csv or inventory",
        )
    for host in found:
        if not NAME.fullmatch(host):
            raise BadInput(
                f"cannot call a host {host!r}: because files have its name",
                where=str(file),
                hint="write each host out; `ansible-inventory --list` does that for ranges",
            )
    return found


def from_csv(path: Path) -> dict[str, Values]:
    """The hosts of a table: the first column is the host, each other one a key of its site.

    ``ssh.port`` is a key within another, ``domains.web.mac`` one of the guest ``web``. Digits are
    a number, ``true`` and ``false`` are what they say, ``[a, b]`` is a list; an empty cell says
    nothing. Raises BadInput.
    """
    try:
        content = path.expanduser().read_bytes()[: loader.MOST_BYTES + 1]
        if len(content) > loader.MOST_BYTES:
            raise ValueError("it has more than 1 MiB")
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig")), strict=True))
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot read the hosts: because {reason}", where=str(path)) from None
    columns = [name.strip() for name in rows[0]] if rows else []
    twice = [name for n, name in enumerate(columns) if name in columns[:n]]
    if not columns or columns[0] != "host" or twice or not all(columns):
        what = f"{twice[0]} is there twice" if twice else "its first line names no columns"
        raise BadInput(
            f"cannot read the hosts: because {what}",
            where=str(path),
            hint="begin with a line of columns, host the first of them",
        )
    found: dict[str, Values] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(columns) or row[0].strip() in found:
            what = "names a host again" if len(row) == len(columns) else "has another length"
            raise BadInput(f"line {number} {what}", where=str(path))
        found[row[0].strip()] = _row(columns[1:], row[1:], f"{path}: line {number}")
    return found


def _row(columns: Sequence[str], cells: Sequence[str], where: str) -> Values:
    values: Values = {}
    for column, cell in zip(columns, cells, strict=True):
        if not cell.strip():
            continue
        *above, last = column.split(".")
        inner = values
        for part in above:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise BadInput(f"{column} lies within what another column sets", where=where)
        if isinstance(inner.get(last), dict):
            raise BadInput(f"{column} holds what another column sets", where=where)
        inner[last] = _cell(cell.strip(), where)
    return values


def _cell(text: str, where: str) -> Any:
    if re.fullmatch(r"0|[1-9][0-9]*", text):
        return int(text[: loader.MOST_DIGITS])
    if text in ("true", "false"):
        return text == "true"
    if text[0] in "[{":
        return loader.parse(f"cell: {text}".encode(), where).values["cell"]
    return text


def from_inventory(path: Path) -> dict[str, Values]:
    """The hosts of an Ansible inventory that have ``xenlab`` among their variables, or a group's.

    It is YAML as people write it, or what ``ansible-inventory --list`` prints. ``ansible_host``,
    ``_port`` and ``_user`` are the way to a host. Raises BadInput.
    """
    values = loader.read(path).values
    try:
        if "_meta" in values:
            meta: Any = values["_meta"]
            layers = {host: [own or {}] for host, own in meta["hostvars"].items()}
        else:
            layers = _layers(values)
        found: dict[str, Values] = {}
        for host, each in layers.items():
            if any("xenlab" in variables for variables in each):
                found[host] = reduce(merge, map(_of_variables, each), {})
        return found
    except (AttributeError, KeyError, TypeError, graphlib.CycleError):
        raise BadInput(
            "cannot read the hosts: because this is no inventory of groups with hosts",
            where=str(path),
            hint="name a YAML inventory, or keep what `ansible-inventory --list` prints",
        ) from None


def _layers(inventory: Mapping[str, Any]) -> dict[str, list[Values]]:
    """Of each host the variables of its groups, then its own, in Ansible's order: the last win.

    A group below another comes after it; those of one depth come by their names.
    """
    above: dict[str, set[str]] = {"all": set()}
    variables: dict[str, Values] = {"all": {}}
    members: dict[str, set[str]] = {}
    own: dict[str, Values] = {}

    def visit(name: str, group: Mapping[str, Any], parent: str) -> None:
        above.setdefault(name, set()).update({parent} - {name})
        variables[name] = variables.get(name, {}) | (group.get("vars") or {})
        for host, said in (group.get("hosts") or {}).items():
            members.setdefault(host, set()).add(name)
            own[host] = own.get(host, {}) | (said or {})
        for child, below in (group.get("children") or {}).items():
            visit(child, below or {}, name)

    for name, group in inventory.items():
        visit(name, group or {}, "all")
    depth: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(above).static_order():
        depth[name] = max((depth[each] + 1 for each in above[name]), default=0)
    found = {}
    for host, groups in members.items():
        # a group's own groups, and theirs
        for _ in depth:
            groups |= {each for name in groups for each in above[name]}
        order = sorted(groups, key=lambda name: (depth[name], name))
        found[host] = [*(variables[name] for name in order), own[host]]
    return found


def _of_variables(variables: Mapping[str, Any]) -> Values:
    way = {key: variables[name] for name, key in ANSIBLE.items() if name in variables}
    values: Values = merge({"ssh": way} if way else {}, variables.get("xenlab") or {})
    return values


# Every host as a site of its own, and all of them beside each other.


def _validated(values: Mapping[str, Values], file: Path) -> dict[str, Parameters]:
    """Each host's site; raises BadInput with a sentence for each problem of all of them."""
    sites: dict[str, Parameters] = {}
    problems: dict[str, list[str]] = {}
    for host, own in values.items():
        try:
            sites[host] = validate(own, "")
        except BadInput as error:
            problems.setdefault(error.message, []).append(host)
    said = [f"{_listed(hosts)}: {problem}" for problem, hosts in problems.items()]
    said += violations(sites)
    if said:
        more = "" if len(said) == 1 else f"{len(said)} problems:\n  "
        raise BadInput(f"cannot use this fleet: {more}" + "\n  ".join(said), where=str(file))
    return sites


def _listed(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = len(names) - MOST_NAMED
    if more > 1:
        return f"{', '.join(names[:MOST_NAMED])} and {more} more"
    return ", ".join(names)


def _text(said: Mapping[str, Any], key: str, file: Path) -> str:
    value = said.get(key)
    if not isinstance(value, str) or not value:
        what = "is missing" if key not in said else "must be text"
        raise BadInput(f"{key} {what}", where=str(file), hint="docs/rack.md explains the keys")
    return value


def _beside(file: Path, named: str) -> Path:
    """A path that counts from the fleet's file."""
    return file.parent / Path(named).expanduser()
