"""The site that the panel works from: what its file holds, what the form shows, what is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from xenlab import parameters, yamlfile
from xenlab.errors import BadInput
from xenlab.panel.saving import save
from xenlab.parameters import Parameters


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
        """Save a site's values, and work from that file from now on; raises BadInput."""
        self._idle("save")
        text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
        save(place, text.encode(), self._content if _same(place, self.place) else None)
        self._changed(place)

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
        # first the bytes: were the file changed right now, saving would say so
        content = _content(place)
        self.site = parameters.load(place)
        self.place, self._content = place.absolute(), content


def _content(place: Path) -> bytes:
    try:
        with place.open("rb") as file:
            return file.read(yamlfile.MOST_BYTES + 1)
    except OSError:
        # loading it says what is the matter
        return b""


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
