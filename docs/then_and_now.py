"""The page "From 2006 to today": each statement of the howto, then and now.

Then is what `xenlab render gentoo-2006` writes, now are the steps that name the statement.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import nbformat
import yaml

from xenlab.runs.report import Artefact, render_files
from xenlab.site import schema as parameters

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parent / "notebooks"
SITE = HERE.parent / "parameters" / "gentoo-2006.yaml"

INTRODUCTION = """\
# From 2006 to today

The howto's statements in its own order, each with the step that carries it out today; and the
files and commands of 2006, as `xenlab render gentoo-2006 --output DIR` writes them out. Commands
are typed line by line, what follows a chroot inside it. Where a text comes from stands above it:
*howto*, its own lines; *handbook*, what Gentoo's handbook had one do there; *Xen 3.0.1*, its
example files; *reconstruction*, what the howto speaks of and does not show.
"""


def page() -> str:
    """The page as MyST markdown."""
    statements: dict[str, str] = yaml.safe_load((HERE / "statements.yaml").read_text())
    then: dict[str, list[Artefact]] = defaultdict(list)
    for artefact in render_files(parameters.load(SITE)):
        then[artefact.chapter].append(artefact)
    parts = [INTRODUCTION]
    for place in sorted(NOTEBOOKS.glob("[0-8]*.ipynb")):
        parts.append(_chapter(place, statements, then[place.stem]))
    return "\n".join(parts)


def _chapter(place: Path, statements: dict[str, str], then: list[Artefact]) -> str:
    title, german, steps = _notebook(place)
    lines = [f"## {title}", "", f"{german} {{doc}}`The chapter <chapters/{place.stem}>`", ""]
    rows = [(number, found) for number, found in steps.items() if number in statements]
    if rows:
        lines += ["| the howto | today |", "|---|---|"]
        for number, found in sorted(rows):
            lines.append(f"| {statements[number]} ({number}) | {'<br>'.join(found)} |")
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
        name = heading.lstrip("# ")
        for number in dict.fromkeys(re.findall(r"\bS\d\d\b", text)):
            steps[number].append(name)
    return title, german, steps
