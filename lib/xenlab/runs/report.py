"""What runs leave to read: a run as one page, all runs as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from xenlab import durable
from xenlab.chapter import events
from xenlab.chapter.card import COLOURS, SHOWN_BYTES, Card, duration, environment, last_part
from xenlab.chapter.step import SKIPPED
from xenlab.durable import kept_file, locked_folder, runs_folder
from xenlab.errors import BadInput, JournalDamaged
from xenlab.journal import CLOSING, FIRST, Journal, digest, output_of, read_chain
from xenlab.resources.base import Difference
from xenlab.runs import audit
from xenlab.runs import folder as folders
from xenlab.runs.folder import ChapterState, StepState

# The report of a run: one HTML page that needs nothing but itself.

FACTS = ("site", "started", "mode", "file")


def write(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder, from its journal, and return its path.

    The journal names its digest, so that a signature covers it; one that is there already, as
    recorded and after all that was done, stays. Raises BadInput where there is no journal, or where
    the run must stay as it is: it is signed, or lies where nobody may write. Raises DiskFull, and
    JournalDamaged: what was changed gets no new record.
    """
    place = folder / audit.REPORT
    folders.require_whole(folder, "report")
    with locked_folder(folder):
        if _is_current(folder):
            return place
        page = render(folder).encode()
        if audit.signed(folder):
            raise BadInput(
                f"cannot write {place}: because the run is signed, and a new record ends that",
                hint="write it elsewhere with --output, or sign the run again after it",
            )
        try:
            journal = Journal(folder)
            named = {"path": place.name, "sha256": digest(page)}
            durable.replace(place, page, lambda: journal.append(phase="kept", **named))
        except OSError as error:
            raise BadInput(
                f"cannot write {place}: because {error.strerror}",
                hint="write it elsewhere with --output",
            ) from None
    return place


def _is_current(folder: Path) -> bool:
    """Whether a report is there that was made after all that was done, and is as recorded."""
    place = kept_file(folder, audit.REPORT)
    records = read_chain(folder / "journal.jsonl").records
    since = len(records)
    while since and records[since - 1].get("phase") in CLOSING:
        since -= 1
    recorded = audit.last_digest(records[since:], audit.REPORT)
    return bool(recorded) and recorded == audit.digest_of(place)


def render(folder: Path) -> str:
    """The report of a run as it is now; changes nothing. Raises BadInput where no journal is."""
    folders.require_whole(folder, "report")
    if not (folder / "journal.jsonl").exists():
        raise BadInput(
            "cannot report this run: because it has no journal yet",
            where=str(folder),
            hint=f"xenlab run --resume {folder.name}",
        )
    facts = _facts(folder)
    chapters = [
        (chapter, [Markup(_card(folder, step).html()) for step in chapter.steps])
        for chapter in folders.states(folder)
    ]
    return (
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


def _facts(folder: Path) -> dict[str, str]:
    facts: dict[str, str] = {}
    if (folder / "run.json").exists():
        record = folders.read(folder)
        facts = {key: str(record[key]) for key in FACTS}
        versions = record["versions"]
        facts["xenlab"] = versions["xenlab"]
        facts["python"] = versions["python"]
        facts["git revision"] = versions["git"]
    try:
        chain = read_chain(folder / "journal.jsonl")
        facts["journal"] = f"{len(chain.records)} records before this report, the chain holds"
        facts["head of the journal"] = chain.head
    except JournalDamaged as error:
        facts["journal"] = error.message
    return {key: value for key, value in facts.items() if value and value != FIRST}


def _console(path: Path) -> tuple[str, bool]:
    """The end of what a machine said on its serial line, and whether that is not all."""
    return last_part(path.read_bytes().decode("utf-8", "replace"))


def _card(folder: Path, step: StepState) -> Card:
    """A step's card, from what its record says that happened."""
    record = step.record
    card = Card(step.title, folder=f"{folder.name}/output")
    card.take(events.Script(str(record.get("script", "")), str(record.get("host", ""))))
    for label, difference in (record.get("difference") or {}).items():
        card.take(events.Differs(label, _difference(difference)))
    for attachment in record.get("attachments") or ():
        if (event := _attached(kept_file(folder, str(attachment["path"])))) is not None:
            card.take(event)
    for command in record.get("commands") or ():
        phase, printed = command["phase"], output_of(folder, command)
        label = f"[{command['label']}] " if "label" in command else ""
        line = f"{label}$ {str(command['command']).rstrip()}\n"
        card.take(events.Output("command", line, phase))
        if printed and not printed.endswith("\n"):
            printed += "\n"
        card.take(events.Output("stdout", printed, phase))
    card.take(events.Finished(step.status, step.seconds, step.message))
    return card


def _attached(path: Path) -> events.Event | None:
    if not path.exists():
        return None
    if path.suffix == ".png":
        return events.Picture(path.read_bytes())
    if path.suffix == ".csv" and path.stat().st_size:
        return events.Table(pd.read_csv(path, dtype=str, keep_default_na=False))
    if path.stat().st_size <= SHOWN_BYTES:
        text = path.read_bytes().decode("utf-8", "replace")
        return events.Output("stdout", text, "change")
    return None


def _difference(record: Mapping[str, Any]) -> Difference:
    rows = tuple({str(k): str(v) for k, v in row.items()} for row in record.get("rows") or ())
    return Difference(str(record["summary"]), str(record.get("diff", "")), rows)


def _colours() -> dict[str, str]:
    return COLOURS | {
        folders.DONE: COLOURS["changed"],
        folders.UNFINISHED: COLOURS["unknown"],
        folders.NOT_RUN: COLOURS["ok"],
    }


# Runs as tables: what was run, how each step went, and how two runs differ.

RUNS = ["run", "site", "mode", "started", "chapters", "done", "state", "seconds"]
STEPS = ["run", "ended", "chapter", "step", "title", "status", "seconds"]
PARAMETERS = ["parameter", "first", "second"]
STEP_PAIRS = [
    "chapter", "title", "first", "second", "first seconds", "second seconds",
]  # fmt: skip


def runs(folder: Path | str = "") -> pd.DataFrame:
    """All runs, oldest first, with the columns of `RUNS`; ``seconds`` is in seconds."""
    rows = []
    for run in folders.every(Path(folder) if folder else runs_folder()):
        record = folders.read(run) if (run / "run.json").exists() else {}
        states = folders.states(run)
        left = [state.status for state in states if state.status != folders.DONE]
        rows.append(
            {
                "run": run.name,
                "site": record.get("site", ""),
                "mode": record.get("mode", ""),
                "started": record.get("started", ""),
                "chapters": len(states),
                "done": len(states) - len(left),
                "state": left[0] if left else _done(run, states),
                "seconds": sum(state.seconds for state in states),
            }
        )
    table = pd.DataFrame(rows, columns=RUNS)
    return table.assign(started=pd.to_datetime(table["started"], utc=True))


def _done(run: Path, states: Sequence[ChapterState]) -> str:
    """What a run is whose chapters are done: steps may have been left out, and files given away."""
    if folders.pruned(run) is not None:
        return f"{folders.DONE}, pruned"
    in_part = any(SKIPPED in state.counts for state in states)
    return f"{folders.DONE} in part" if in_part else folders.DONE


def steps(folder: Path | str = "") -> pd.DataFrame:
    """The last state of each step of each run, with the columns of `STEPS`."""
    rows = [
        {
            "run": run.name,
            "ended": step.record["time"],
            "chapter": chapter.name,
            "step": step.number,
            "title": step.title,
            "status": step.status,
            "seconds": step.seconds,
        }
        for run in folders.every(Path(folder) if folder else runs_folder())
        for chapter in folders.states(run)
        for step in chapter.steps
    ]
    table = pd.DataFrame(rows, columns=STEPS)
    return table.assign(ended=pd.to_datetime(table["ended"], utc=True))


def parameter_changes(first: Path, second: Path) -> pd.DataFrame:
    """What differs in the parameters of two runs, with the columns of `PARAMETERS`."""
    old, new = (dict(_flat("", folders.read(run)["parameters"])) for run in (first, second))
    rows = [
        {"parameter": key, "first": old.get(key, ""), "second": new.get(key, "")}
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]
    return pd.DataFrame(rows, columns=PARAMETERS)


def step_pairs(first: Path, second: Path) -> pd.DataFrame:
    """The steps of two runs side by side, with the columns of `STEP_PAIRS`."""
    tables = [
        pd.DataFrame(
            [
                (chapter.name, step.title, step.status, step.seconds)
                for chapter in folders.states(run)
                for step in chapter.steps
            ],
            columns=["chapter", "title", name, f"{name} seconds"],
        )
        for run, name in ((first, "first"), (second, "second"))
    ]
    sides = [table.set_index(["chapter", "title"]) for table in tables]
    # an outer merge would sort 04.10 before 04.2
    pairs = pd.concat(sides, axis="columns", sort=False).reset_index()
    pairs[["first", "second"]] = pairs[["first", "second"]].fillna("")
    return pairs.reindex(columns=STEP_PAIRS)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Each single value of a nested structure, with its place."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        for number, inner in enumerate(value, start=1):
            yield from _flat(f"{prefix}[{number}]", inner)
    else:
        yield prefix, str(value)
