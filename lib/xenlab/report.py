"""The report of a run: one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from xenlab import durable, runs
from xenlab.card import COLOURS, SHOWN_BYTES, Card, duration, environment, shown
from xenlab.chain import FIRST
from xenlab.errors import BadInput, JournalDamaged
from xenlab.journal import Journal, kept_file, output_of, verify
from xenlab.resources.base import Difference
from xenlab.runs import StepState

FACTS = ("site", "started", "mode", "file")


def write(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder, from its journal, and return its path.

    Raises BadInput where there is no journal, DiskFull.
    """
    journal = Journal(folder)
    if not journal.path.exists():
        raise BadInput("this run has no journal yet", where=str(folder))
    facts = _facts(folder)
    chapters = [
        (chapter, [Markup(_card(folder, step).html()) for step in chapter.steps])
        for chapter in runs.states(folder)
    ]
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            name=folder.name,
            facts=facts,
            chapters=chapters,
            consoles=[
                (path.name, _console(kept_file(folder, f"console/{path.name}")))
                for path in sorted(folder.glob("console/*"))
            ],
            colours=_colours(),
            duration=duration,
            total=sum(chapter.seconds for chapter, _ in chapters),
        )
    )
    place = folder / "report.html"
    durable.replace(place, page.encode())
    return place


def _facts(folder: Path) -> dict[str, str]:
    facts: dict[str, str] = {}
    if (folder / "run.json").exists():
        record = runs.read(folder)
        facts = {key: str(record[key]) for key in FACTS}
        versions = record["versions"]
        facts["xenlab"] = versions["xenlab"]
        facts["python"] = versions["python"]
        facts["git revision"] = versions["git"]
    journal = Journal(folder)
    try:
        facts["journal"] = f"{verify(journal.path)} records, the chain holds"
    except JournalDamaged as error:
        facts["journal"] = error.message
    facts["head of the journal"] = journal.head()
    return {key: value for key, value in facts.items() if value and value != FIRST}


def _console(path: Path) -> tuple[str, bool]:
    """The end of what a machine said on its serial line, and whether that is not all."""
    return shown(path.read_bytes().decode("utf-8", "replace"))


def _card(folder: Path, step: StepState) -> Card:
    record = step.record
    card = Card(step.title, step.status, step.seconds, step.message)
    for label, difference in (record.get("difference") or {}).items():
        card.differences.append((label, _difference(difference)))
    for attachment in record.get("attachments") or ():
        _attach(card, kept_file(folder, str(attachment["path"])))
    card.kept = f"{folder.name}/output"
    for command in record.get("commands") or ():
        _add(card, command, output_of(folder, command))
    return card


def _add(card: Card, command: Mapping[str, Any], printed: str) -> None:
    label = f"[{command['label']}] " if "label" in command else ""
    line = f"{label}$ {str(command['command']).rstrip()}\n"
    if printed and not printed.endswith("\n"):
        printed += "\n"
    if command["phase"] == "change":
        card.add_output(line + printed)
    else:
        card.add_look("command", line)
        card.add_look("stdout", printed)


def _attach(card: Card, path: Path) -> None:
    if not path.exists():
        return
    if path.suffix == ".png":
        card.add_picture(path.read_bytes())
    elif path.suffix == ".csv" and path.stat().st_size:
        card.add_table(pd.read_csv(path, dtype=str, keep_default_na=False))
    elif path.stat().st_size <= SHOWN_BYTES:
        card.add_output(path.read_bytes().decode("utf-8", "replace"))


def _difference(record: Mapping[str, Any]) -> Difference:
    rows = tuple({str(k): str(v) for k, v in row.items()} for row in record.get("rows") or ())
    return Difference(str(record["summary"]), str(record.get("diff", "")), rows)


def _colours() -> dict[str, str]:
    return COLOURS | {
        runs.DONE: COLOURS["changed"],
        runs.UNFINISHED: COLOURS["unknown"],
        runs.NOT_RUN: COLOURS["ok"],
    }
