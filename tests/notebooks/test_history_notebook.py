"""The notebook that looks at all runs, executed on runs that were recorded for it."""

from __future__ import annotations

from pathlib import Path

import nbformat
import papermill
from tests.notebooks.chapters import FOLDER

from xenlab.journal import Journal

NOTEBOOK = FOLDER / "90_history.ipynb"


def record_run(folder: Path, seconds: float) -> None:
    journal = Journal(folder)
    for chapter in ("01_first", "02_second"):
        number = chapter[:2]
        journal.append(chapter=chapter, phase="open", status="apply")
        for step in range(1, 12):
            journal.append(
                chapter=chapter, step=f"{number}.{step}", title=f"{number}.{step} Title",
                phase="final", status="changed", seconds=seconds * step,
            )  # fmt: skip
        journal.append(chapter=chapter, phase="close", status="ok")


def test_nobody_has_run_it() -> None:
    code = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []


def test_it_shows_the_runs(tmp_path: Path) -> None:
    for number in range(3):
        record_run(tmp_path / "runs" / f"2026010{number}T000000-lab", float(number + 1))
    output = tmp_path / "executed.ipynb"
    parameters = {"runs_folder": str(tmp_path / "runs")}
    papermill.execute_notebook(NOTEBOOK, output, parameters, progress_bar=False)
    outputs = [
        bundle.get("data", {})
        for cell in nbformat.read(output, 4).cells
        for bundle in cell.get("outputs", [])
    ]
    assert sum("image/png" in data for data in outputs) == 2
    tables = [data["text/html"] for data in outputs if "text/html" in data]
    assert "20260102T000000-lab" in tables[0] and "02.11 Title" in tables[-1]
