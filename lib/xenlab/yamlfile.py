"""A YAML file as a mapping, with the place and the raw text of each value for clear messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from xenlab.errors import BadInput
from xenlab.names import cut

Place = tuple[int | str, ...]
"""The way to a value: ``("domains", 1, "mac")``."""

MOST_BYTES = 1 << 20
"""How large a file may be; a site of a hundred guests takes a hundredth of that."""

MOST_ALIASES = 8
"""How often ``*name`` may stand in a file: what refers to what refers multiplies."""

MOST_VALUES = 20_000
"""How many values a file may have, each counted as often as something refers to it."""

MOST_DIGITS = 80
"""How long a number may be: YAML reads 1:1:1:… as one, and far longer ones keep Python busy."""


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

    Raises BadInput if it is missing, unreadable, empty, not YAML, not a mapping, larger than any
    site needs, or names a key twice (YAML itself would silently keep the last).
    """
    where = str(path)
    try:
        return _parsed(_text(path))
    except FileNotFoundError:
        raise BadInput("there is no such parameters file", where=where) from None
    except OSError as error:
        reason = f"this parameters file cannot be read: {error.strerror}"
        raise BadInput(reason, where=where) from None
    except UnicodeDecodeError:
        reason = "this parameters file cannot be read: it is not UTF-8 text"
        raise BadInput(reason, where=where) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1} " if mark else ""
        raise BadInput(f"{line}is not YAML: {cut(str(error.problem))}", where=where) from None
    except yaml.YAMLError as error:
        raise BadInput(f"this is not YAML: {str(error).splitlines()[0]}", where=where) from None
    except _Refused as error:
        raise BadInput(str(error), where=where) from None
    except ValueError as error:
        raise BadInput(f"a value cannot be read as YAML: {cut(str(error))}", where=where) from None
    except RecursionError:
        raise BadInput("its values lie too deep in one another", where=where) from None


class _Refused(Exception):
    """Why a file is refused though it is YAML."""


class _Loader(yaml.SafeLoader):
    """YAML of a size that a person writes; anything else is refused before it is put together."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.values = 0
        self.aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node of the file."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        self.values += 1
        self.aliases += isinstance(event, yaml.AliasEvent)
        if self.values > MOST_VALUES:
            raise _Refused(f"line {line}: more than {MOST_VALUES} values are too many for a site")
        if self.aliases > MOST_ALIASES:
            raise _Refused(
                f"line {line}: more than {MOST_ALIASES} references (*{cut(event.anchor)}): "
                "write the values out"
            )
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:str":
            digits = len(node.value)
            if digits > MOST_DIGITS:
                raise _Refused(f"line {line}: a number of {digits} digits is too long")
        return node


def _text(path: Path) -> str:
    with path.expanduser().open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise _Refused("this parameters file has more than 1 MiB, which no site needs")
    text = content.decode()
    if text.startswith("\ufeff"):
        # a tool that reads lines would take it for a part of the first key
        raise _Refused("this file begins with a byte order mark: save it as UTF-8 without one")
    return text


def _parsed(text: str) -> YamlFile:
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is None:
        raise _Refused("this parameters file is empty")
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise _Refused(f"this parameters file must be a list of “key: value” lines, not {kind}")
    origins: dict[Place, Origin] = {}
    for number, (place, origin) in enumerate(_walk(node, (), set())):
        if number > MOST_VALUES:
            raise _Refused(f"references (*) make more than {MOST_VALUES} values of this file")
        origins[place] = origin
    return YamlFile(loader.construct_document(node), origins)


def _walk(node: yaml.Node, place: Place, above: set[int]) -> Iterator[tuple[Place, Origin]]:
    """Every value below a node; refuses a doubled key and one that is not text."""
    line = node.start_mark.line + 1
    yield place, Origin(line, str(node.value) if isinstance(node, yaml.ScalarNode) else "")
    if id(node) in above:
        raise _Refused(f"line {line}: this value contains itself")
    above = above | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _walk(item, (*place, number), above)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            at = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                yield from _walk(value, (*place, "<<"), above)
                continue
            if key.tag != "tag:yaml.org,2002:str":
                name = cut(str(key.value))
                raise _Refused(f"line {at}: the key {name} is not text to YAML: put it in quotes")
            if key.value in seen:
                name = cut(key.value)
                raise _Refused(
                    f"line {at}: {name} stands here again (first in line {seen[key.value]})"
                )
            seen[key.value] = at
            yield from _walk(value, (*place, key.value), above)
