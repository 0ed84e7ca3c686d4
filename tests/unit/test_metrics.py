"""What a monitor reads of runs, as Prometheus' own rules have it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.unit.test_cli import Run, xenlab

from xenlab.journal import Journal
from xenlab.runs import folder as runs
from xenlab.runs.metrics import text

__all__ = ["xenlab"]

SAMPLE = re.compile(
    r'(?P<name>[a-z_]+)\{(?P<labels>(?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)+)\} (?P<value>[0-9.e+]+)'
)


def a_run(
    folder: Path, name: str, statuses: list[str], *, closed: bool = True, **more: Any
) -> Path:
    record = {
        "site": "castle",
        "mode": "apply",
        "started": f"2026-11-{name}T10:00:00+00:00",
        "chapters": ["01_x"],
    }
    journal = Journal(folder / name)
    (folder / name / "run.json").write_text(json.dumps(record | more))
    journal.append(chapter="01_x", phase="open", status="apply")
    for number, status in enumerate(statuses, start=1):
        step = {"step": f"01.{number}", "title": f"01.{number} Step", "phase": "final"}
        journal.append(chapter="01_x", **step, status=status, seconds=1.0)
    if closed:
        journal.append(chapter="01_x", phase="close", status="ok")
    return folder / name


def samples(folder: Path) -> dict[str, float]:
    """Each sample by its name and labels; every line is one that the format knows."""
    found, types = {}, set()
    for line in text(folder).splitlines():
        if line.startswith("# TYPE "):
            types.add(line.split()[2])
        if not line.startswith("#"):
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            assert sample["name"] in types
            found[f"{sample['name']}{{{sample['labels']}}}"] = float(sample["value"])
    return found


def test_the_last_run_and_the_last_that_was_done(tmp_path: Path) -> None:
    a_run(tmp_path, "01", ["changed", "changed", "ok"])
    a_run(tmp_path, "02", ["ok", "failed"], closed=False)
    found = samples(tmp_path)
    by = 'site="castle",mode="apply"'
    assert found[f"xenlab_last_run_success{{{by}}}"] == 0
    assert found[f'xenlab_last_run_steps{{{by},status="failed"}}'] == 1
    assert f'xenlab_last_run_steps{{{by},status="changed"}}' not in found
    last = found[f"xenlab_last_run_timestamp_seconds{{{by}}}"]
    assert last - found[f"xenlab_last_success_timestamp_seconds{{{by}}}"] == 24 * 3600
    assert found['xenlab_run_active{site="castle"}'] == 0
    assert not [name for name in found if name.startswith("xenlab_drift")]


def test_drift_is_that_of_the_last_check(tmp_path: Path) -> None:
    a_run(tmp_path, "01", ["ok", "would change"], mode="plan")
    a_run(tmp_path, "02", ["would change", "would be refused", "ok"], mode="plan")
    a_run(tmp_path, "03", ["failed"], closed=False, mode="plan")
    a_run(tmp_path, "04", ["ok"], mode="plan", site="tower")
    found = samples(tmp_path)
    assert found['xenlab_drift_steps{site="castle"}'] == 2
    assert found['xenlab_drift_steps{site="tower"}'] == 0


def test_a_run_that_goes_on_is_not_one_that_failed(tmp_path: Path) -> None:
    a_run(tmp_path, "01", ["ok"])
    with runs.run_lock(a_run(tmp_path, "02", ["changed"], closed=False)):
        found = samples(tmp_path)
    assert found['xenlab_run_active{site="castle"}'] == 1
    assert found['xenlab_last_run_success{site="castle",mode="apply"}'] == 1
    assert samples(tmp_path)['xenlab_last_run_success{site="castle",mode="apply"}'] == 0


def test_names_are_escaped_and_what_cannot_be_read_tells_nothing(tmp_path: Path) -> None:
    a_run(tmp_path, "01", ["ok"], site='a"b\\c\nd')
    (a_run(tmp_path, "02", ["ok"]) / "run.json").write_text("{")
    (a_run(tmp_path, "03", ["ok"]) / "journal.jsonl").write_text("{\n")
    assert 'xenlab_run_active{site="a\\"b\\\\c\\nd"}' in samples(tmp_path)
    assert "castle" not in text(tmp_path)


def test_no_run_is_no_metric(xenlab: Run, tmp_path: Path) -> None:
    assert xenlab("metrics").stdout == ""
    a_run(tmp_path / "kept", "01", ["ok"])
    printed = xenlab("metrics", "--runs", "kept").stdout
    assert printed.startswith("# HELP xenlab_run_active Whether a run goes on.\n# TYPE")
    assert xenlab("metrics", "--runs", "kept", "--output", "castle.prom").stdout == ""
    assert (tmp_path / "castle.prom").read_text() == printed
