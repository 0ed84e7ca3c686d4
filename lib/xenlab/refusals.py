"""Why values were refused, as sentences a person can act on: pydantic's errors put in words."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from xenlab.names import cut, quoted
from xenlab.yamlfile import Origin, Place

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


def sentences(
    error: ValidationError, model: type[BaseModel], origins: Mapping[Place, Origin]
) -> list[str]:
    """One sentence for each problem, with its line where known; in the order of the file."""
    found: list[tuple[int, str]] = []
    for detail in error.errors(include_url=False):
        line = _line(detail["loc"], origins)
        for text in _put(detail, detail["loc"], model, origins):
            found.append((line, f"line {line}: {text}" if line else text))
    return [text for _, text in sorted(found, key=lambda one: one[0])]


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
