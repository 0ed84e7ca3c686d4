"""The two reference pages: every parameter as the schema has it, every command as it helps itself.

Nothing of them is written twice: what a key is for stands beside it in ``parameters/lab.yaml`` or,
for a key that is not in that file, in the schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
import yaml
from annotated_types import Ge, Gt, Le, MinLen
from pydantic import AfterValidator, BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from xenlab.cli.cli import app
from xenlab.site import rules, types
from xenlab.site.schema import Parameters

LAB = Path(__file__).parents[1] / "parameters" / "lab.yaml"
PROFILES = Path(__file__).parents[1] / "tests" / "machines" / "profiles"
FIRST = "The machine"
WIDTH = 96
"""How wide a help text is: what a page shows without scrolling."""
UNITS = {"mib": "MiB", "seconds": "seconds"}
FOLLOWED = {"partition": "name", "maxmem_mib": "memory_mib"}
"""The keys whose value is another's where nobody gives them one."""

Key = tuple[str, ...]


@dataclass
class Explained:
    """What ``lab.yaml`` says of its keys, and under which of its headings they stand."""

    words: dict[Key, str] = field(default_factory=dict)
    headings: dict[str, str] = field(default_factory=dict)


def explained(text: str) -> Explained:
    """The comments of a parameters file: above a key, beside it, and indented below it.

    A comment after an empty line is a heading; what comes before the first has `FIRST`.
    """
    found = Explained()
    heading, begins = FIRST, False
    above: list[str] = []
    key: Key = ()
    for line in text.splitlines():
        named = re.match(r"( *)(\w+):(?:.*?\s# (.*))?", line)
        if line.startswith("#"):
            if begins:
                heading = line.lstrip("# ")
            else:
                above.append(line.lstrip("# "))
        elif line.lstrip().startswith("#"):
            found.words[key] += " " + line.lstrip("# ")
        elif named and len(named[1]) in (0, 2):
            key = (*key[:1], named[2]) if named[1] else (named[2],)
            beside = [named[3]] if named[3] else []
            sentences = [*beside, " ".join(above)] if above else beside
            found.words[key] = ". ".join(sentences)
            found.headings.setdefault(key[0], heading)
            above = []
        if not line:
            above = []
        begins = not line
    return found


def parameters() -> str:
    """The reference of every parameter, as MyST markdown below a page's title."""
    notes = explained(LAB.read_text(encoding="utf-8"))
    lab = yaml.safe_load(LAB.read_text(encoding="utf-8"))
    lines: list[str] = []
    heading = ""
    for name, info in Parameters.model_fields.items():
        if notes.headings[name] != heading:
            heading = notes.headings[name]
            lines += [f"## {heading}", ""]
        for key, each, example in _with_inner((name,), info, lab.get(name)):
            lines += _entry(key, each, notes.words.get(key, ""), example)
    return "\n".join(lines)


def inner(annotation: Any) -> type[BaseModel] | None:
    """The mapping that a key holds, or that each entry of its list is."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _with_inner(key: Key, info: FieldInfo, lab: Any) -> Iterator[tuple[Key, FieldInfo, Any]]:
    """A key and those inside it, each with the lab's value of it."""
    yield key, info, lab
    model = inner(info.annotation)
    first = (lab or [{}])[0] if isinstance(lab, list) else lab
    for name, each in model.model_fields.items() if model else ():
        yield from _with_inner((*key, name), each, (first or {}).get(name))


def spelled(key: Key) -> str:
    """A key as its heading writes it: ``domains[].disks[].path``, ``ssh.host``."""
    text = key[0]
    model: type[BaseModel] = Parameters
    for above, name in pairwise(key):
        annotation = model.model_fields[above].annotation
        text += f"{'[]' if get_origin(annotation) is list else ''}.{name}"
        model = inner(annotation) or model
    return text


def _entry(key: Key, info: FieldInfo, words: str, lab: Any) -> list[str]:
    unit = UNITS.get(key[-1].rpartition("_")[2], "")
    kind, forms = in_words(info.annotation, info.metadata)
    added = _rules_of(key)
    # a larger least takes the place of "more than 0"
    forms = [form for form in forms if not (added and form == "more than 0")] + added
    given = [lab] if lab or lab is False else list(info.examples or [info.default])
    return [
        f"### `{spelled(key)}`",
        "",
        words or info.description or "",
        "",
        f"- Type: {kind}{f', in {unit}' if unit else ''}",
        *([f"- Allowed: {'; '.join(forms)}"] if forms else []),
        f"- Default: {_default(key, info)}",
        f"- Example: `{key[-1]}: {_yaml(given[0])}`",
        "",
    ]


def in_words(annotation: Any, metadata: Sequence[Any] = ()) -> tuple[str, list[str]]:
    """A type in words, and what is allowed of it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return in_words(arguments[0], [*arguments[1:], *metadata])
    forms = [form for each in metadata for form in _form(each)]
    if origin is Literal:
        return "one of a few words", [", ".join(f"`{word}`" for word in arguments if word)]
    if origin is list:
        kind, of_each = in_words(arguments[0])
        return f"list, each entry {kind}", forms + of_each
    if origin is UnionType:
        kinds = (in_words(each)[0] for each in arguments if each is not type(None))
        return " or ".join(kinds), forms
    if origin is dict:
        (_, names), (value, values) = map(in_words, arguments)
        each = [": ".join(filter(None, pair)) for pair in zip_longest(names, values)]
        return f"mapping, each value {value}", forms + each
    if issubclass(annotation, BaseModel):
        return "a mapping with the keys below", forms
    return {bool: "`true` or `false`", int: "whole number", str: "text"}[annotation], forms


def _form(rule: Any) -> Iterator[str]:
    """What a rule of the schema allows, in words."""
    match rule:
        case AfterValidator(func=types.one_line):
            pass
        case AfterValidator(func=check) | BeforeValidator(func=check):
            words = (check.__doc__ or "").splitlines()[0].rstrip(".")
            yield _plain(re.sub(r"^(An?|Text)\b", lambda first: first[0].lower(), words))
        case Gt(gt=bound):
            yield f"more than {bound}"
        case Ge(ge=bound):
            yield f"at least {bound}"
        case Le(le=bound):
            yield f"at most {bound}"
        case MinLen(min_length=least):
            yield f"at least {least} of them"
        case FieldInfo(metadata=bounds):
            for bound in bounds:
                yield from _form(bound)


def _rules_of(key: Key) -> list[str]:
    """What the rules that look at several keys add for one."""
    if key[0] in rules.LEAST:
        least, reason = rules.LEAST[key[0]]
        return [f"at least {least}: {reason}"]
    if key == ("domains", "memory_mib"):
        return [f"at least {rules.LEAST_MEMORY}"]
    if key[0] in rules.PACKAGE_LISTS:
        names = types.PACKAGE_NAMES.items()
        return [f"`platform: {name}`: {_plain(check.__doc__ or '')}" for name, check in names]
    return []


def _default(key: Key, info: FieldInfo) -> str:
    if info.is_required():
        return "none: required"
    if info.default_factory is not None:
        return f"that of `{FOLLOWED[key[-1]]}`"
    value = info.default
    if isinstance(value, list):
        value = [_as_given(each) for each in value]
    return f"`{_yaml(_as_given(value))}`"


def _as_given(value: Any) -> Any:
    """A mapping of the schema without the keys that nobody gave."""
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value


def _yaml(value: Any) -> str:
    """A value as a parameters file has it, in one line."""
    if value == "":
        return '""'
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()


def _plain(text: str) -> str:
    """Words that markdown takes as they are."""
    return re.sub(r"([\\`*_<>|$~\[\]])", r"\\\1", text)


def commands() -> str:
    """The reference of the command line, as MyST markdown below a page's title."""
    return "\n".join(_help(typer.main.get_command(app), "xenlab"))


def _help(command: Any, name: str, above: Any = None) -> Iterator[str]:
    """A command's own help, and that of each command below it."""
    # as plain text: rich draws frames, in the width of the terminal that is there
    command.rich_markup_mode = None
    context = command.make_context(
        name, [], parent=above, resilient_parsing=True, terminal_width=WIDTH
    )
    text = command.get_help(context)
    yield f"## `{context.command_path}`\n\n```text\n{text}\n```\n"
    for word, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            yield from _help(below, word, context)


def profiles(figures: Path) -> str:
    """The table of the machines with a site's file of their own: what each is, what it took.

    A machine that was not measured has no times: nothing stands for them.
    """
    found = json.loads(figures.read_text()) if figures.exists() else {}
    names = sorted({chapter for each in found.values() for chapter in each["chapters"]})
    heads = ["machine", *(name.partition("_")[0] for name in names), "a second run"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for folder in sorted(PROFILES.iterdir()):
        measured = found.get(folder.name, {"chapters": {}})
        times = [measured["chapters"].get(name) for name in names]
        cells = [_in_minutes(each) for each in (*times, measured.get("a second run"))]
        what = (folder / "castle.yaml").read_text().splitlines()[0].lstrip("# ")
        lines.append("| " + " | ".join([f"`{folder.name}`: {what}", *cells]) + " |")
    return "\n".join(lines) + "\n"


def _in_minutes(seconds: float | None) -> str:
    minutes, rest = divmod(round(seconds or 0), 60)
    return "" if seconds is None else f"{minutes}:{rest:02}"
