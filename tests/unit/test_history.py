"""Runs as tables, and what two of them have not in common."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from xenlab.journal import Journal
from xenlab.runs import folder as runs
from xenlab.runs import report


def make_run(folder: Path, *, weight: int, seconds: float, status: str = "changed") -> Path:
    journal = Journal(folder)
    runs.create(
        folder,
        {
            "site": "lab",
            "mode": "apply",
            "started": "2026-01-02T03:04:05+00:00",
            "chapters": ["01_x", "02_y"],
            "parameters": {"swap": {"weight": weight}, "guests": [{"name": "domu1"}], "none": []},
        },
    )
    journal.append(chapter="01_x", phase="open", status="apply")
    for number, state, time in (("01.2", "ok", 1.0), ("01.1", status, seconds)):
        journal.append(
            chapter="01_x", step=number, title=f"{number} Title", phase="final", status=state,
            seconds=time,
        )  # fmt: skip
    journal.append(chapter="01_x", phase="close", status="ok")
    return folder


def test_all_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "2-lab", weight=1, seconds=2)
    make_run(tmp_path / "1-lab", weight=1, seconds=2)
    table = report.runs(tmp_path)
    assert list(table.columns) == report.RUNS
    assert list(table["run"]) == ["1-lab", "2-lab"]
    assert list(table["state"]) == ["not run", "not run"]
    assert (table["done"].iloc[0], table["chapters"].iloc[0]) == (1, 2)
    assert table["started"].iloc[0] == pd.Timestamp("2026-01-02T03:04:05Z")


def test_no_runs(tmp_path: Path) -> None:
    assert list(report.runs(tmp_path).columns) == report.RUNS
    assert report.steps(tmp_path).empty


def test_all_steps(tmp_path: Path) -> None:
    make_run(tmp_path / "1-lab", weight=1, seconds=2)
    table = report.steps(tmp_path)
    assert list(table.columns) == report.STEPS
    assert list(table["step"]) == ["01.2", "01.1"]
    assert list(table["seconds"]) == [1.0, 2.0]


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    first = make_run(tmp_path / "1", weight=1, seconds=2)
    second = make_run(tmp_path / "2", weight=9, seconds=4, status="failed")
    Journal(second).append(chapter="02_y", phase="open", status="apply")
    Journal(second).append(
        chapter="02_y", step="02.1", title="02.1 New", phase="final", status="ok", seconds=3
    )
    changes = report.parameter_changes(first, second)
    assert changes.to_dict("records") == [{"parameter": "swap.weight", "first": "1", "second": "9"}]
    pairs = report.step_pairs(first, second)
    assert list(pairs["title"]) == ["01.2 Title", "01.1 Title", "02.1 New"]
    assert list(pairs["first"]) == ["ok", "changed", ""]
    assert list(pairs["second"]) == ["ok", "failed", "ok"]
    assert list(pairs["second seconds"]) == [1.0, 4.0, 3.0]
