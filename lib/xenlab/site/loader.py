"""What a person writes: YAML, read with the place of each value, and notebooks' cells."""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from xenlab.errors import BadInput
from xenlab.site.types import cut, quoted

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
    """The mapping that a file holds, where each of its values stands, and the file as it is."""

    values: dict[str, object]
    origins: Mapping[Place, Origin] = field(default_factory=dict)
    content: bytes = b""


def read(path: Path) -> YamlFile:
    """Read a YAML file that must hold one mapping with text as keys.

    Raises BadInput if it is missing, unreadable, empty, not YAML, not a mapping, larger than any
    site needs, or names a key twice (YAML itself would silently keep the last).
    """
    where = str(path)
    try:
        with path.expanduser().open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise BadInput("there is no such parameters file", where=where) from None
    except (OSError, ValueError) as error:
        reason = f"this parameters file cannot be read: {getattr(error, 'strerror', error)}"
        raise BadInput(reason, where=where) from None
    return parse(content, where)


def parse(content: bytes, where: str) -> YamlFile:
    """What the content of a file says; raises BadInput as `read` does."""
    try:
        return _parsed(content)
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


def _text(content: bytes) -> str:
    if len(content) > MOST_BYTES:
        raise _Refused("this parameters file has more than 1 MiB, which no site needs")
    text = content.decode()
    if text.startswith("\ufeff"):
        # a tool that reads lines would take it for a part of the first key
        raise _Refused("this file begins with a byte order mark: save it as UTF-8 without one")
    return text


def _parsed(content: bytes) -> YamlFile:
    loader = _Loader(_text(content))
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
    return YamlFile(loader.construct_document(node), origins, content)


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


# A file with other values: what does not change stays as it is, to the byte.


def edited(text: str, old: object, new: object) -> str:
    """The text of a file that says ``old``, changed where ``new`` differs from that.

    A list that loses an entry, or has one of another name in its place, is written anew. A value
    stays as it is where a comment within it would be lost; and what is changed may lie where a
    reference (``*name``) leads: the caller must see whether the text says ``new`` then.
    """
    changes = _changes(text, yaml.compose(text, _Loader), old, new)
    # from the end on, so that places stay right; of two at one place the later comes behind
    for start, end, put in sorted(changes, key=lambda change: change[0])[::-1]:
        text = text[:start] + put + text[end:]
    return text


def _changes(text: str, node: Any, old: Any, new: Any) -> Iterator[tuple[int, int, str]]:
    """From and to which character a text is replaced, and by what, so that a value is another."""
    if new == old:
        return
    before, after, nodes = _entries(old), _entries(new), _nodes(node, old)
    start, end, between = node.start_mark.index, _end(text, node), ", "
    block = isinstance(node, yaml.CollectionNode) and not node.flow_style
    if block:
        end, between = f"{text}\n".index("\n", end), "\n" + " " * node.start_mark.column
    if nodes and nodes.keys() <= after.keys():
        for name, inner in nodes.items():
            yield from _changes(text, inner, before.get(name), after[name])
        place = end if block else _end(text, list(nodes.values())[-1])
        for name, value in after.items():
            if name not in nodes and (name, value) not in before.items():
                yield place, place, between + _entry(name, value, block)
    elif not re.search(r"\s#", text[start:end]):
        if block and new and type(new) is type(old):
            put = between.join(_entry(name, value, block) for name, value in after.items())
        else:
            # a bracket below its key must stand further right than that
            put = f" {_inline(new)}" if block else _inline(new)
        yield start, end, put


def _entries(value: object) -> Mapping[Any, object]:
    """What a value holds; an entry of a list goes by its number and its name."""
    if isinstance(value, list):
        names = [entry.get("name") if isinstance(entry, dict) else entry for entry in value]
        return {(number, repr(name)): value[number] for number, name in enumerate(names)}
    return value if isinstance(value, dict) else {}


def _nodes(node: yaml.Node, value: object) -> dict[Any, yaml.Node]:
    """Where each entry of a value stands."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: inner for key, inner in node.value}
    return dict(zip(_entries(value), node.value, strict=False))


def _end(text: str, node: yaml.Node) -> int:
    """Where a value ends, without the lines behind it that say nothing."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(node, yaml.MappingNode) else last)
    start: int = node.start_mark.index
    return start + len(text[start : node.end_mark.index].rstrip())


def _entry(name: object, value: object, block: bool) -> str:
    """An entry of a list or of a mapping, as it is added to a text."""
    if isinstance(name, tuple):
        return f"{'- ' if block else ''}{_inline(value)}"
    return f"{_inline(name)}: {_inline(value)}"


def _inline(value: object) -> str:
    """A value in one line, as it can stand within brackets too."""
    text = yaml.safe_dump(
        [value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=MOST_BYTES
    )
    return text[1:-2]


# Why values were refused, as sentences a person can act on: pydantic's errors put in words.

_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "list_type": "a list",
    "model_type": "a mapping (key: value)",
    "dict_type": "a mapping (key: value)",
}
_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (int, "a number"),
    (float, "a number"),
    (str, "text"),
    (list, "a list"),
    (dict, "a mapping"),
)


def format_validation_errors(
    error: ValidationError, model: type[BaseModel], origins: Mapping[Place, Origin]
) -> list[str]:
    """One sentence for each problem, with its line where known; in the order of the file.

    The keys that a file must state and does not have one sentence together.
    """
    details = error.errors(include_url=False)
    absent = [str(each["loc"][0]) for each in details if _is_absent(each)]
    found: list[tuple[int, str]] = [(0, _absent(absent))] if absent else []
    for detail in details:
        if _is_absent(detail):
            continue
        line = _line(detail["loc"], origins)
        for text in _put(detail, detail["loc"], model, origins):
            found.append((line, f"line {line}: {text}" if line else text))
    return [text for _, text in sorted(found, key=lambda one: one[0])]


def _is_absent(detail: Any) -> bool:
    return detail["type"] == "missing" and len(detail["loc"]) == 1


def _absent(keys: Sequence[str]) -> str:
    *others, last = keys
    verb = "are missing: no default can know them" if others else "is missing: it has no default"
    return f"{', '.join(others)}{' and ' if others else ''}{last} {verb}"


def by_key(error: ValidationError, model: type[BaseModel]) -> dict[str, str]:
    """What is wrong with each key of a model; "" is the key of what several contradict in."""
    found: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False):
        key = str(detail["loc"][0]) if detail["loc"] else ""
        found.setdefault(key, []).extend(_put(detail, detail["loc"], model, {}))
    return {key: "; ".join(texts) for key, texts in found.items()}


def _put(
    detail: Any, place: Place, model: type[BaseModel], origins: Mapping[Place, Origin]
) -> Iterator[str]:
    name, value, kind = spelled(place), detail["input"], detail["type"]
    context = detail.get("ctx", {})
    written = origins[place].text if place in origins else ""
    if kind == "default_factory_not_called":
        return
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), _keys(model, place), n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        yield f"unknown parameter {name}{advice}"
    elif kind == "missing":
        yield f"{name} is missing"
    elif kind in _WANTED:
        advice = _quotes(value, written) if kind == "string_type" else ""
        yield f"{name} must be {_WANTED[kind]}, not {shown(value)}{advice}"
    elif kind == "literal_error":
        yield f"{name} must be {context['expected']}, not {shown(value)}{_quotes(value, written)}"
    elif kind in ("greater_than", "greater_than_equal", "less_than_equal"):
        bound = context.get("gt", context.get("ge", context.get("le")))
        word = {"greater_than": "more than", "greater_than_equal": "at least"}.get(kind, "at most")
        yield f"{name} must be {word} {bound}, not {shown(value)}"
    elif kind == "too_short":
        yield f"{name} must not be empty"
    elif kind == "value_error":
        for problem in str(context["error"]).split("\n"):
            yield f"{name} {problem}".lstrip()
    else:
        yield f"{name} cannot be {shown(value)}: {detail['msg']}"


def spelled(place: Place) -> str:
    """The way to a value as people write it: ``domains[1].mac``."""
    text = ""
    for part in place:
        name = cut(str(part))
        text += f"[{part}]" if isinstance(part, int) else f".{name}" if text else name
    return text


def shown(value: object) -> str:
    """A value with its kind, cut where it is long: ``'4 GB' (text)``."""
    if value is None:
        return "nothing"
    kind = next((word for kind, word in _KINDS if isinstance(value, kind)), type(value).__name__)
    return f"{quoted(value)} ({kind})"


def _quotes(value: object, written: str) -> str:
    """What to put in quotes, where YAML read text as something else."""
    if not isinstance(value, bool | int | float):
        return ""
    if written and written != str(value):
        return f": YAML reads {cut(written)} so; put it in quotes"
    if isinstance(value, bool):
        return ": YAML reads on, off, yes and no so; put it in quotes"
    return "; put it in quotes"


def _line(place: Place, origins: Mapping[Place, Origin]) -> int:
    """The line of a value or, where it is missing, of what it is missing in; 0: not known."""
    while place and place not in origins:
        place = place[:-1]
    return origins[place].line if place else 0


def _keys(model: type[BaseModel], place: Place) -> list[str]:
    """The keys that the schema knows where an unknown one was found."""
    fields = model.model_fields
    for part in place[:-1]:
        if isinstance(part, str):
            annotation = fields[part].annotation
            inner = [annotation, *get_args(annotation)]
            fields = next(
                kind.model_fields
                for kind in inner
                if isinstance(kind, type) and issubclass(kind, BaseModel)
            )
    return list(fields)


# The parameters cells of notebooks.

INJECTED = "# Parameters\n"
"""How the cell begins that papermill puts behind a notebook's parameters cell."""


def injected(cells: Any) -> set[str]:
    """The names that papermill's own cell assigns, of the cells that a notebook has executed."""
    for source in reversed(cells):
        if source.startswith(INJECTED):
            statements = ast.parse(source).body
            targets = (each.targets[0] for each in statements if isinstance(each, ast.Assign))
            return {target.id for target in targets if isinstance(target, ast.Name)}
    return set()


_COMPUTED = object()
"""The value of a parameter whose cell does not write it out."""


def said_by_cells(cells: Iterable[str]) -> dict[str, object]:
    """What the parameters cell says, of the cells that a notebook has executed; {} without one.

    That is the last one that assigns both ``site`` and ``ssh``. papermill's own cell counts to it,
    and so does one directly below it that holds nothing but values, as jupyter-scheduler adds it.
    """
    said: dict[str, object] = {}
    below = False
    for source in cells:
        values, alone = _assigned(source)
        if {"site", "ssh"} <= values.keys() and not source.startswith(INJECTED):
            said, below = values, True
        elif said:
            if source.startswith(INJECTED) or (below and alone):
                said |= values
            below = False
    return said


def refuse_changed(values: Mapping[str, object], said: Mapping[str, object], source: str) -> None:
    """Raise BadInput where a value is another one than its parameters cell says."""
    for name, value in values.items():
        cell = said.get(name, _COMPUTED)
        if cell is not _COMPUTED and (type(value) is not type(cell) or value != cell):
            raise BadInput(
                f"cannot tell what {name} is: because something else has set it since the "
                "parameters cell was run",
                where=source,
                hint=f"set {name} in the parameters cell, and call a variable of your own "
                "otherwise; then run both cells again",
            )


def _assigned(source: str) -> tuple[dict[str, object], bool]:
    """What a cell assigns to names, and whether it does nothing but give them values."""
    values: dict[str, object] = {}
    alone = True
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return {}, False
    for statement in body:
        try:
            name, value = _assignment(statement)
        except ValueError:
            alone = False
            continue
        try:
            values[name] = ast.literal_eval(value)
        except ValueError:
            values[name], alone = _COMPUTED, False
    return values, alone


def declared(notebook: str | Path) -> list[str]:
    """The names that a chapter's parameters cell declares, in its order; raises BadInput."""
    return list(defaults(notebook))


def defaults(notebook: str | Path) -> dict[str, Any]:
    """What a chapter's parameters cell declares: each name with its literal default.

    Raises BadInput if there is no such notebook, or its cell holds anything but literals.
    """
    path = Path(notebook)
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = (c for c in cells if "parameters" in c["metadata"].get("tags", []))
        source = "".join(next(tagged, {"source": ""})["source"])
        assignments = [_assignment(statement) for statement in ast.parse(source).body]
        return {name: ast.literal_eval(value) for name, value in assignments}
    except FileNotFoundError:
        raise BadInput("there is no such notebook", where=str(path)) from None
    except (OSError, ValueError, LookupError, TypeError, SyntaxError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadInput(f"its parameters cannot be read: {reason}", where=str(path)) from None


def _assignment(statement: ast.stmt) -> tuple[str, ast.expr]:
    match statement:
        case ast.AnnAssign(target=ast.Name(name), value=ast.expr() as value):
            return name, value
        case ast.Assign(targets=[ast.Name(name)], value=value):
            return name, value
    raise ValueError(f"line {statement.lineno} of the parameters cell assigns nothing to a name")
