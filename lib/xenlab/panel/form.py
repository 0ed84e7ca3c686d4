"""The parameters as a form made from the schema: a field each, what is wrong beside it."""

from __future__ import annotations

from html import escape
from typing import Any

import ipywidgets as widgets
import yaml
from pydantic import ValidationError

from xenlab.errors import BadInput
from xenlab.panel.consent import BAD, GOOD
from xenlab.panel.saving import named
from xenlab.panel.site import SiteFile
from xenlab.parameters import Parameters
from xenlab.refusals import by_key

LONG = 60
"""From how many characters on a value gets a field of several lines."""


class ParametersForm:
    """Edits a parameters file; what cannot be accepted is said beside its field, and not saved."""

    def __init__(self, file: SiteFile) -> None:
        self._file = file
        self.fields: dict[str, Any] = {}
        self.errors: dict[str, Any] = {}
        wide = widgets.Layout(width="32em")
        self.place = widgets.Text(str(file.place), description="save as", layout=wide)
        self.save = widgets.Button(description="Save", icon="save", button_style="primary")
        self.again = widgets.Button(description="Read again", icon="refresh")
        self.answer = widgets.HTML()
        self._rows = widgets.VBox()
        self.save.on_click(lambda _: self._save())
        self.again.on_click(lambda _: self._read_again())
        head = widgets.HBox([self.place, self.save, self.again])
        self.widget = widgets.VBox([head, self.answer, self._rows])
        self._draw()
        file.shown = self._shown
        file.attach(self._draw)

    def problems(self) -> dict[str, str]:
        """What cannot be accepted, by its key; "" for what several keys contradict in."""
        values, found = self._entered()
        if found:
            return found
        try:
            Parameters.model_validate(values)
        except ValidationError as error:
            return by_key(error, Parameters)
        return {}

    def _entered(self) -> tuple[dict[str, object], dict[str, str]]:
        """The fields' values, and what is wrong with those that are no YAML."""
        values: dict[str, object] = {}
        wrong: dict[str, str] = {}
        for key, field in self.fields.items():
            try:
                values[key] = yaml.safe_load(field.value)
            except (yaml.YAMLError, ValueError, RecursionError) as error:
                wrong[key] = f"this is not YAML: {str(error).splitlines()[0]}"
        return values, wrong

    def _shown(self) -> Parameters | None:
        values, wrong = self._entered()
        try:
            return None if wrong else Parameters.model_validate(values)
        except ValidationError:
            return None

    def _draw(self) -> None:
        """A field for each of the site's values."""
        values = self._file.site.model_dump(mode="json")
        self.fields = {key: _field(value) for key, value in values.items()}
        self.errors = {key: widgets.HTML() for key in self.fields}
        for field in self.fields.values():
            field.observe(lambda _: self._check(), names="value")
        self._rows.children = [
            widgets.HBox([_label(key), field, self.errors[key]])
            for key, field in self.fields.items()
        ]

    def _check(self) -> dict[str, str]:
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
        try:
            self._file.save(named(self.place.value), self._entered()[0])
        except BadInput as error:
            self.answer.value = _coloured(BAD, str(error))
            return
        self._says(f"saved to {self._file.place}: the panel works from it now")

    def _read_again(self) -> None:
        try:
            self._file.read_again()
        except BadInput as error:
            self.answer.value = _coloured(BAD, str(error))
            return
        self._says(f"this is what {self._file.place} holds")

    def _says(self, text: str) -> None:
        self.place.value = str(self._file.place)
        self.answer.value = _coloured(GOOD, text)


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
