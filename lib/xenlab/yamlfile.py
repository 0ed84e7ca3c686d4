"""A YAML file as a mapping, with the place and the raw text of each value for clear messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from xenlab.errors import BadInput

Place = tuple[int | str, ...]
"""The way to a value: ``("domains", 1, "mac")``."""


@dataclass(frozen=True)
class Origin:
    """Where a value was written: its line (from 1) and its text before YAML read it."""

    line: int
    text: str


@dataclass(frozen=True)
class YamlFile:
    """The mapping that a file holds, and where each of its values stands."""

    values: dict[str, object]
    origins: Mapping[Place, Origin] = field(default_factory=dict)


def read(path: Path) -> YamlFile:
    """Read a YAML file that must hold one mapping with text as keys.

    Raises BadInput if it is missing, unreadable, empty, not YAML, not a mapping, or names a key
    twice (YAML itself would silently keep the last).
    """
    where = str(path)
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput("there is no such parameters file", where=where) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadInput(f"this parameters file cannot be read: {reason}", where=where) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1} " if mark else ""
        raise BadInput(f"{line}is not YAML: {error.problem}", where=where) from None
    except yaml.YAMLError as error:
        raise BadInput(f"this is not YAML: {str(error).splitlines()[0]}", where=where) from None
    except ValueError as error:
        raise BadInput(f"a value cannot be read as YAML: {error}", where=where) from None
    if node is None or values is None:
        raise BadInput("this parameters file is empty", where=where)
    if not isinstance(node, yaml.MappingNode):
        raise BadInput(
            "this parameters file must be a list of “key: value” lines, "
            f"not {'a list' if isinstance(values, list) else 'a single value'}",
            where=where,
        )
    origins = dict(_walk(node, (), set(), where))
    return YamlFile(values, origins)


def _walk(
    node: yaml.Node, place: Place, above: set[int], where: str
) -> Iterator[tuple[Place, Origin]]:
    """Every value below a node; raises BadInput at a doubled key or one that is not text."""
    line = node.start_mark.line + 1
    yield place, Origin(line, str(node.value) if isinstance(node, yaml.ScalarNode) else "")
    if id(node) in above:
        raise BadInput(f"line {line}: this value contains itself", where=where)
    above = above | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _walk(item, (*place, number), above, where)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            at = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                raise BadInput(
                    f"line {at}: the key {key.value} is not text to YAML: put it in quotes",
                    where=where,
                )
            if key.value in seen:
                raise BadInput(
                    f"line {at}: {key.value} stands here again (first in line {seen[key.value]})",
                    where=where,
                )
            seen[key.value] = at
            yield from _walk(value, (*place, key.value), above, where)
