"""Runs as tables: what was run, how each step went, and how two runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from xenlab.durable import runs_folder
from xenlab.runs import folder as folders

RUNS = ["run", "site", "mode", "started", "chapters", "done", "state", "seconds"]
STEPS = ["run", "ended", "chapter", "step", "title", "status", "seconds"]
PARAMETERS = ["parameter", "first", "second"]
STEP_PAIRS = [
    "chapter", "title", "first", "second", "first seconds", "second seconds",
]  # fmt: skip


def runs(folder: Path | None = None) -> pd.DataFrame:
    """All runs, oldest first, with the columns of `RUNS`; ``seconds`` is in seconds."""
    rows = []
    for run in folders.every(folder or runs_folder()):
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
                "state": left[0] if left else folders.DONE,
                "seconds": sum(state.seconds for state in states),
            }
        )
    table = pd.DataFrame(rows, columns=RUNS)
    return table.assign(started=pd.to_datetime(table["started"], utc=True))


def steps(folder: Path | None = None) -> pd.DataFrame:
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
        for run in folders.every(folder or runs_folder())
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
