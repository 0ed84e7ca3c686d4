"""Every chapter also works with papermill alone, as the howto's reader may start it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from tests.ssh.conftest import Sshd

from xenlab.batch import step_titles
from xenlab.journal import Journal, verify

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("[01]?_*.ipynb"))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Sshd]:
    """A machine that is no Xen host at all: chapters are only planned on it."""
    server = Sshd(tmp_path / "sshd")
    yield server
    server.stop()


@pytest.fixture
def file(tmp_path: Path, machine: Sshd) -> Path:
    """The lab's parameters, for that machine."""
    values = yaml.safe_load((ROOT / "parameters" / "lab.yaml").read_text())
    values["ssh"] = {"host": machine.alias, "config": str(machine.config)}
    values["disk"] = str(tmp_path / "no-disk")
    values["may_wipe"] = []
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_is_planned_by_papermill_alone(chapter: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "papermill", str(chapter), str(out), "-f", str(file)],
        cwd=tmp_path,
        env={**os.environ, "XENLAB_MODE": "plan", "XENLAB_RUNS": str(tmp_path / "runs")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=590,
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert run.stat().st_mode & 0o777 == 0o700
    verify(run / "journal.jsonl")
    records = Journal(run).records()
    assert (records[0]["phase"], records[-1]["phase"]) == ("open", "close")
    finals = [record for record in records if record["phase"] == "final"]
    assert [record["title"] for record in finals] == step_titles(chapter)
    assert {record["status"] for record in finals} <= {"ok", "would change"}
    assert not any(record["phase"] == "running" for record in records)
    executed = nbformat.read(out, as_version=4)  # type: ignore[no-untyped-call]
    shown = [
        output.data["text/html"]
        for cell in executed.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output and "text/html" in output.data
    ]
    for record in finals:
        number = str(record["step"])
        assert any(number in page and "running" not in page.split(number)[0] for page in shown)
