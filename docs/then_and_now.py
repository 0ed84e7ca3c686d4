"""The page "From 2006 to today": each statement of the howto, then and now.

Then are the files and commands of machine_2006.py, now are the steps whose heading carries the
statement's number as a cell tag.
"""

from __future__ import annotations

import html
from collections import defaultdict
from pathlib import Path
from typing import Any

import nbformat
import yaml
from machine_2006 import Artefact, artefacts

from xenlab.site import schema as parameters

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parent / "notebooks"
SITE = HERE.parent / "parameters" / "gentoo-2006.yaml"

INTRODUCTION = """\
# From 2006 to today

The howto's statements in its own order, in German and in English, each with the steps that carry it
out today. Their numbers, S01 to S60, count them through the howto: the cells of the chapters are
tagged with them, and the files and commands of 2006 below are captioned with them.

Commands are typed line by line, what follows a chroot inside it. Where a text comes from stands
above it: *howto*, its own lines; *handbook*, what Gentoo's handbook had one do there; *Xen 3.0.1*,
its example files; *reconstruction*, what the howto speaks of and does not show.
"""


Statements = dict[str, dict[str, Any]]
"""By its number, what statements.yaml says of a statement."""


def page() -> str:
    """The page as MyST markdown."""
    statements: Statements = yaml.safe_load((HERE / "statements.yaml").read_text())
    then: dict[str, list[Artefact]] = defaultdict(list)
    for artefact in artefacts(parameters.load(SITE)):
        then[artefact.chapter].append(artefact)
    parts = [INTRODUCTION]
    for place in sorted(NOTEBOOKS.glob("[0-8]*.ipynb")):
        parts.append(_chapter(place, statements, then[place.stem]))
    return "\n".join(parts)


def _chapter(place: Path, statements: Statements, then: list[Artefact]) -> str:
    title, german, steps = _notebook(place)
    lines = [f"## {title}", "", f"{german} {{doc}}`The chapter <chapters/{place.stem}>`", ""]
    if steps:
        lines += ["| | the howto | today |", "|---|---|---|"]
        for number, found in sorted(steps.items()):
            german, english = (html.escape(statements[number][k]) for k in ("german", "english"))
            lines.append(f"| {number} | „{german}“ (“{english}”) | {'<br>'.join(found)} |")
    for artefact in then:
        caption = f"{artefact.path} ({artefact.origin}; {', '.join(artefact.statements)})"
        lines += ["", f"```{{code-block}} text\n:caption: {caption}", "", artefact.text + "```"]
    return "\n".join([*lines, ""])


def _notebook(place: Path) -> tuple[str, str, dict[str, list[str]]]:
    """A chapter's title, its line of German headings, and its steps by statement."""
    steps: dict[str, list[str]] = defaultdict(list)
    title = german = ""
    for cell in nbformat.read(place, 4).cells:
        if cell.cell_type != "markdown":
            continue
        heading, _, text = cell.source.partition("\n")
        if heading.startswith("# "):
            title = heading.removeprefix("# ")
            german = next(line for line in text.splitlines() if line.startswith("*Howto"))
        for number in cell.metadata.get("tags", ()):
            steps[number].append(heading.lstrip("# "))
    return title, german, steps
