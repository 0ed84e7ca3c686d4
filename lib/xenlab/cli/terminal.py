"""What the commands share: the terminal, JSON, a consent, the site's file, a mistyped command."""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text
from typer.core import TyperGroup

from xenlab import durable
from xenlab.errors import BadInput
from xenlab.masking import clean

PROGRAM = "xenlab"

SYNONYMS = {
    "delete": "lab remove",
    "destroy": "lab remove",
    "help": "--help",
    "history": "runs",
    "install": "run",
    "start": "lab up",
    "stop": "lab down",
    "version": "--version",
}
"""What people type, and the command or option that they mean."""

LAB_FILE = Path("parameters/lab.yaml")
"""The lab's site as a clone has it: named to a person who gave none, never taken unasked."""


def without_colour() -> bool:
    """Whether $NO_COLOR is set: no colours, no other escape sequences, no moving region."""
    return os.environ.get("NO_COLOR", "") != ""


def turn_colour_off() -> None:
    """Keep escape sequences out of what is printed from here on, typer's help included."""
    from typer import rich_utils

    os.environ["NO_COLOR"] = "1"
    rich_utils.COLOR_SYSTEM = None


class Terminal(Console):
    """A console that shows texts of other machines without the escape sequences in them.

    One of them sets the clipboard, others the title, the keys, or what stands on the line above.
    """

    def __init__(self, **options: Any) -> None:
        if without_colour():
            options["force_terminal"] = False
        super().__init__(**options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The pieces of what is printed, each one's text made plain."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else Segment(clean(piece.text), piece.style)


def say(text: str, style: str = "", *, stderr: bool = False) -> None:
    """Print a text as it is, whose lines are not wrapped; the style is a terminal's alone."""
    Terminal(stderr=stderr, soft_wrap=True).print(Text(text, style=style))


def table(*columns: str) -> Table:
    """An empty table with these columns, whose long values are folded."""
    folded = (Column(name, overflow="fold") for name in columns)
    return Table(*folded, box=None, pad_edge=False, header_style="dim")


def print_json(document: object) -> None:
    """Print one JSON document to standard output, in ASCII: no terminal takes it for a command."""
    print(json.dumps(document, indent=2, allow_nan=False))


def confirm(name: str, what: str, command: str, *, yes: bool) -> None:
    """Have a person type the name of what is deleted, unless ``--yes`` was given.

    Raises BadInput where nobody can be asked, and where something else was typed.
    """
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise BadInput(
            f"cannot delete {what}: because nobody can be asked here", hint=f"{command} --yes"
        )
    Terminal(stderr=True).print(Text(f"This deletes {what}. Type {name} to go on: "), end="")
    typed = sys.stdin.readline().strip()
    if typed != name:
        raise BadInput(
            f"cannot delete {what}: because {typed!r} is not {name!r}", hint=f"type {name}"
        )


def find_site(given: Path | None) -> Path | None:
    """The site's file: the given one, else as the settings say, else the only one of this folder.

    Raises BadInput.
    """
    named = given or durable.site_file()
    if named is not None:
        return named
    found = _sites_here()
    return found[0] if len(found) == 1 else None


def site_file(given: Path | None) -> Path:
    """The site's file as `find_site` has it; raises BadInput where none or several are here."""
    found = find_site(given)
    if found is not None:
        return found
    if several := _sites_here():
        raise BadInput(
            f"cannot choose a site: because {' and '.join(map(str, several))} are here",
            hint=f"-f {several[0]}",
        )
    hint = f"-f {LAB_FILE}" if LAB_FILE.is_file() else "-f FILE, or set XENLAB_SITE"
    raise BadInput(
        "cannot choose a site: because no file was given, and this folder has none", hint=hint
    )


def _sites_here() -> list[Path]:
    """The site files of this folder, by the key that names a site."""
    files = (path for path in sorted(Path().glob("*.y*ml")) if path.is_file())
    return [path for path in files if re.search(rb"(?m)^site:", path.read_bytes())]


class Commands(TyperGroup):
    """A group of commands that answers a word that is none of them with the nearest command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the first word; raises BadInput, which names the one that is meant."""
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            typed = f"{ctx.command_path} {args[0]}"
            near = _nearest(args[0], self, ctx)
            raise BadInput(
                f"cannot run {typed}: because there is no such command",
                hint=near or f"{PROGRAM} --help",
            )
        return super().resolve_command(ctx, args)


def _nearest(word: str, group: TyperGroup, ctx: Any) -> str:
    """The command that is meant by a word, in full: of the group, else of all; "" if none is."""
    own = _paths(group, ctx.command_path, depth=0)
    every = {word: f"{PROGRAM} {meant}" for word, meant in SYNONYMS.items()}
    every |= _paths(ctx.find_root().command, PROGRAM, depth=1) | own
    if word in every:
        return every[word]
    for known in (own, every):
        for near in difflib.get_close_matches(word, known, 1):
            return known[near]
    return ""


def _paths(group: TyperGroup, prefix: str, *, depth: int) -> dict[str, str]:
    """Each command of a group in full by its name, and those of its groups behind them."""
    found = {name: f"{prefix} {name}" for name in group.commands}
    for name, command in group.commands.items():
        if depth and isinstance(command, TyperGroup):
            found = _paths(command, f"{prefix} {name}", depth=depth - 1) | found
    return found
