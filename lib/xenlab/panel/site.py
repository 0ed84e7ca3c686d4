"""The site that the panel works from: as a file, as a form made from the schema, as it is saved."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import yaml
from pydantic import ValidationError

from xenlab import durable
from xenlab.chapter.notebook import BAD, GOOD
from xenlab.errors import BadInput
from xenlab.site import loader
from xenlab.site import schema as parameters
from xenlab.site.loader import by_key
from xenlab.site.schema import Parameters

# Where a person saves a site: in a new file, or over one of a site that nobody changed since.

ELSEWHERE = "save under another name"


def named(text: str) -> Path:
    """The file that a person names; raises BadInput."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise BadInput(f"cannot save to {text}: because {error}") from error


def save(place: Path, data: bytes, known: bytes | None = None) -> None:
    """Write a site's file whole or not at all; links are followed, mode and owner stay.

    ``known`` is what the person has seen of this file, None for any other. Raises BadInput where
    the file that is there is not a site's, has comments that nobody has seen, or holds something
    else by now.
    """
    try:
        place = place.resolve()
        old = _replaceable(place)
        if known is None and b"#" in (old or b""):
            raise _refused(place, "it has comments, which would be lost")
        if known is not None and old != known:
            raise changed(place)
        if old is None:
            _create(place, data)
        else:
            _replace(place, data, old)
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"cannot save to {place}: because {reason}", hint=ELSEWHERE) from error


def changed(place: Path) -> BadInput:
    """The error for a file that is not as the person has seen it."""
    return BadInput(
        f"cannot save to {place}: because it was changed since it was read",
        hint="read it again, or save under another name",
    )


def _replaceable(place: Path) -> bytes | None:
    """What the site's file holds that may be replaced; None where there is none yet."""
    try:
        found = place.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise _refused(place, "it is not a file")
    if found.st_nlink > 1:
        raise _refused(place, "it is also found under another name (a hard link)")
    try:
        parameters.load(place)
    except BadInput as error:
        raise _refused(place, "it does not hold the parameters of a site") from error
    return place.read_bytes()


def _refused(place: Path, why: str) -> BadInput:
    return BadInput(f"cannot save to {place}: because {why}", hint=ELSEWHERE)


def _create(place: Path, data: bytes) -> None:
    # it takes the mode that new files have here, and nobody else can take the name meanwhile
    os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        _replace(place, data, b"")
    except BaseException:
        place.unlink(missing_ok=True)
        raise


def _replace(place: Path, data: bytes, old: bytes) -> None:
    file, name = tempfile.mkstemp(prefix=".xenlab-", dir=place.parent)
    fresh = Path(name)
    try:
        try:
            durable.write(file, data)
            _alike(fresh, place)
            os.fsync(file)
        finally:
            os.close(file)
        if place.read_bytes() != old:
            raise changed(place)
        fresh.replace(place)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    durable.sync(place.parent)


def _alike(fresh: Path, place: Path) -> None:
    """Owner, mode, ACL and extended attributes as another file has them."""
    wanted, found = place.stat(), fresh.stat()
    if (wanted.st_uid, wanted.st_gid) != (found.st_uid, found.st_gid):
        os.chown(fresh, wanted.st_uid, wanted.st_gid)
    shutil.copystat(place, fresh)
    os.utime(fresh)


# The site that the panel works from: what its file holds, what the form shows, what is started.


class SiteFile:
    """One site for every part of the panel, and the file that it was read from.

    ``shown`` gives what stands in the form, None where that is no site.
    """

    def __init__(self, place: Path) -> None:
        self.shown: Callable[[], Parameters | None] = lambda: self.site
        self._tell: list[Callable[[], None]] = []
        self._busy: list[Callable[[], bool]] = []
        self._use(place)

    def attach(self, changed: Callable[[], None], busy: Callable[[], bool] = bool) -> None:
        """Tell a part of the panel of each new site; there is none while a part is ``busy``."""
        self._tell.append(changed)
        self._busy.append(busy)

    def required(self) -> Parameters:
        """The site, for what is started now; raises BadInput unless file and form say the same."""
        again = "press “Read again” under Parameters"
        try:
            now = parameters.load(self.place)
        except BadInput as error:
            reason = f"cannot start: because the site cannot be read any more: {error}"
            raise BadInput(reason, hint=f"mend the file, then {again}") from error
        if now != self.site:
            reason = f"{self.place} was changed since the panel read it"
            raise BadInput(f"cannot start: because {reason}{_keys(now, self.site)}", hint=again)
        shown = self.shown()
        if shown != self.site:
            reason = f"the form says something else than {self.place}"
            raise BadInput(
                f"cannot start: because {reason}{_keys(shown, self.site)}",
                hint=f"save the form, or {again}",
            )
        return self.site

    def save(self, place: Path, values: Mapping[str, object]) -> None:
        """Save a site's values, and work from that file from now on; raises BadInput.

        What is saved is the file that was read, comments and all, with these values in it.
        """
        self._idle("save")
        save(place, self._edited(values), self._content if _same(place, self.place) else None)
        self._changed(place)

    def _edited(self, values: Mapping[str, object]) -> bytes:
        wanted = parameters.validate(values, "the form")
        old = self.site.model_dump(mode="json")
        data = loader.edited(self._content.decode(), old, dict(values)).encode()
        with suppress(BadInput):
            if parameters.validate(loader.parse(data, "").values, "") == wanted:
                return data
        raise BadInput(
            f"cannot save: because comments or references (*) of {self.place} would not stay",
            hint="change the file by hand, then press “Read again”",
        )

    def read_again(self) -> None:
        """Work from what the file holds now; raises BadInput."""
        self._idle("read the file again")
        self._changed(self.place)

    def _idle(self, what: str) -> None:
        if any(busy() for busy in self._busy):
            raise BadInput(
                f"cannot {what}: because a step runs", hint="stop it, or wait until it is over"
            )

    def _changed(self, place: Path) -> None:
        self._use(place)
        for tell in self._tell:
            tell()

    def _use(self, place: Path) -> None:
        file = loader.read(place)
        self.site = parameters.validate(file.values, str(place), file.origins)
        self.place, self._content = place.absolute(), file.content


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False


def _keys(one: Parameters | None, other: Parameters) -> str:
    """The parameters in which two sites differ, in brackets."""
    if one is None:
        return ""
    keys = (key for key in Parameters.model_fields if getattr(one, key) != getattr(other, key))
    return f" ({', '.join(keys)})"


# The parameters as a form made from the schema: a field each, what is wrong beside it.

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
        self.answer.add_class("xenlab-answer")
        self._lines: dict[str, Any] = {}
        self._rows = widgets.VBox()
        self.save.on_click(lambda _: self._save())
        self.again.on_click(lambda _: self._read_again())
        head = widgets.HBox([self.place, self.save, self.again])
        self.widget = widgets.VBox([head, self.answer, self._rows])
        self._draw()
        file.shown = lambda: self._judged()[0]
        file.attach(self._draw)

    def problems(self) -> dict[str, str]:
        """What cannot be accepted, by its key; "" for what several keys contradict in."""
        return self._judged()[1]

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

    def _judged(self) -> tuple[Parameters | None, dict[str, str]]:
        """The site that the fields make, or what is wrong with them."""
        values, wrong = self._entered()
        if wrong:
            return None, wrong
        try:
            return Parameters.model_validate(values), {}
        except ValidationError as error:
            return None, by_key(error, Parameters)

    def _draw(self) -> None:
        """A field for each of the site's values; one that is there already takes its value."""
        for key, value in self._file.site.model_dump(mode="json").items():
            text, lines = _as_yaml(value)
            field = self.fields.get(key)
            if field is not None and (lines > 1) == isinstance(field, widgets.Textarea):
                field.value = text
                continue
            self.fields[key], self.errors[key] = field, error = _field(text, lines), widgets.HTML()
            field.observe(lambda _: self._check(), names="value")
            self._lines[key] = widgets.HBox([_label(key), field, error])
        self._rows.children = list(self._lines.values())
        self._check()

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


def _as_yaml(value: object) -> tuple[str, int]:
    """A value as YAML, and over how many lines; on a single line where it is short."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    text = text.removesuffix("...\n").rstrip("\n")
    if len(text) <= LONG:
        return text, 1
    text = yaml.safe_dump(value, default_flow_style=None, sort_keys=False, width=10_000)
    return text.rstrip("\n"), max(2, min(12, text.count("\n") + 1))


def _field(text: str, lines: int) -> Any:
    if lines == 1:
        return widgets.Text(text, continuous_update=False, layout=widgets.Layout(width="32em"))
    return widgets.Textarea(
        text, rows=lines, continuous_update=False, layout=widgets.Layout(width="48em")
    )


def _label(key: str) -> Any:
    return widgets.HTML(f"<code>{escape(key)}</code>", layout=widgets.Layout(width="11em"))


def _coloured(colour: str, text: str) -> str:
    return f'<span style="color: {colour}">{escape(text)}</span>' if text else ""
