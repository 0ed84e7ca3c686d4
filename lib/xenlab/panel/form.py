"""The parameters as a form made from the schema: a field each, what is wrong beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import yaml
from pydantic import ValidationError

from xenlab import yamlfile
from xenlab.errors import BadInput
from xenlab.panel.consent import BAD, GOOD
from xenlab.parameters import Parameters
from xenlab.refusals import by_key

LONG = 60
"""From how many characters on a value gets a field of several lines."""


class ParametersForm:
    """Edits a parameters file; what cannot be accepted is said beside its field, and not saved."""

    def __init__(self, file: Path) -> None:
        site = Parameters.model_validate(yamlfile.read(file).values)
        self.fields = {key: _field(value) for key, value in site.model_dump(mode="json").items()}
        self.errors = {key: widgets.HTML() for key in self.fields}
        self.place = widgets.Text(str(file), description="save as")
        self.save = widgets.Button(description="Save", icon="save", button_style="primary")
        self.answer = widgets.HTML()
        for field in self.fields.values():
            field.observe(lambda _: self._check(), names="value")
        self.save.on_click(lambda _: self._save())
        rows = [
            widgets.HBox([_label(key), field, self.errors[key]])
            for key, field in self.fields.items()
        ]
        head = widgets.HBox([self.place, self.save, self.answer])
        self.widget = widgets.VBox([head, *rows])

    def problems(self) -> dict[str, str]:
        """What cannot be accepted, by its key; "" for what several keys contradict in."""
        found: dict[str, str] = {}
        values: dict[str, object] = {}
        for key, field in self.fields.items():
            try:
                values[key] = yaml.safe_load(field.value)
            except yaml.YAMLError as error:
                found[key] = f"this is not YAML: {str(error).splitlines()[0]}"
        if found:
            return found
        try:
            Parameters.model_validate(values)
        except ValidationError as error:
            return by_key(error, Parameters)
        return {}

    def _check(self) -> Mapping[str, str]:
        problems = self.problems()
        for key, error in self.errors.items():
            error.value = _coloured(BAD, problems.get(key, ""))
        self.answer.value = _coloured(BAD, problems.get("", ""))
        return problems

    def _save(self) -> None:
        problems = self._check()
        if problems:
            self.answer.value = _coloured(BAD, problems.get("", "nothing was saved: see below"))
            return
        place = Path(self.place.value).expanduser()
        try:
            _write(place, {key: yaml.safe_load(f.value) for key, f in self.fields.items()})
        except (OSError, BadInput) as error:
            self.answer.value = _coloured(BAD, str(error))
            return
        self.answer.value = _coloured(GOOD, f"saved to {place}")


def _write(place: Path, values: Mapping[str, object]) -> None:
    """Write a parameters file; one with comments of its own is not written over."""
    if place.exists() and "#" in place.read_text(encoding="utf-8"):
        raise BadInput(f"{place} has comments, which would be lost: save under another name")
    fresh = place.with_name(f".{place.name}.new")
    fresh.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))
    os.replace(fresh, place)


def _field(value: object) -> Any:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    text = text.removesuffix("...\n").rstrip("\n")
    if len(text) <= LONG:
        return widgets.Text(text, continuous_update=False, layout=widgets.Layout(width="32em"))
    text = yaml.safe_dump(value, default_flow_style=None, sort_keys=False, width=10_000)
    lines = text.count("\n") + 1
    return widgets.Textarea(
        text.rstrip("\n"),
        rows=min(12, lines),
        continuous_update=False,
        layout=widgets.Layout(width="48em"),
    )


def _label(key: str) -> Any:
    return widgets.HTML(f"<code>{escape(key)}</code>", layout=widgets.Layout(width="11em"))


def _coloured(colour: str, text: str) -> str:
    return f'<span style="color: {colour}">{escape(text)}</span>' if text else ""
