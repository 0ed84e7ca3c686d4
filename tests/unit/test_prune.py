"""Old runs: what is left of them, and what `audit verify` can still say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.unit.test_audit import make_key, make_run, signers
from tests.unit.test_cli import Run, xenlab

from xenlab.errors import BadInput
from xenlab.journal import Journal
from xenlab.runs import audit, metrics, prune
from xenlab.runs import folder as runs
from xenlab.runs import report as tables

__all__ = ["xenlab"]


def a_run(folder: Path, name: str, site: str = "castle") -> Path:
    run = folder / name
    run.mkdir(parents=True)
    record = {"site": site, "mode": "apply", "started": f"2026-11-1{name[-1]}T10:00:00+00:00"}
    runs.create(run, record | {"chapters": ["04_grub"]})
    runs.begin(run)
    make_run(run)
    audit.end(run, 0)
    return run


def left(run: Path) -> set[str]:
    return {path.name for path in run.iterdir()}


def test_the_newest_of_each_site_stay_and_old_ones_leave_head_and_summary(
    xenlab: Run, tmp_path: Path
) -> None:
    kept = tmp_path / "runs"
    for name in ("01", "02", "03"):
        a_run(kept, name)
    a_run(kept, "00", "tower")
    head = Journal(kept / "01").head()
    asked = xenlab("runs", "prune", "--keep", "2", "--runs", str(kept))
    assert asked.returncode == 2 and "--yes" in asked.stderr
    done = xenlab("runs", "prune", "--keep", "2", "--yes", "--runs", str(kept))
    assert (done.returncode, done.stdout) == (0, "pruned: 01\n"), done.stderr
    assert left(kept / "01") == {"run.json", "pruned.json", "journal.head", "run.lock"}
    assert all((kept / name / "journal.jsonl").exists() for name in ("00", "02", "03"))
    said = json.loads((kept / "01" / "pruned.json").read_text())
    assert (said["head"], said["status"], said["cut"]) == (head, 0, [])
    assert said["chapters"][0]["steps"] == {"changed": 1}
    again = xenlab("runs", "prune", "--keep", "2", "--yes", "--runs", str(kept))
    assert again.stdout == "nothing to prune\n"
    listed = xenlab("runs", "--runs", str(kept)).stdout
    pruned = [line.split()[0] for line in listed.splitlines() if "done, pruned" in line]
    assert pruned == ["01"]
    assert "done" in xenlab("show", "01", "--runs", str(kept)).stdout
    assert len(tables.steps(kept)) == 3
    assert 'xenlab_last_run_success{site="castle",mode="apply"} 1' in metrics.text(kept)


def test_verify_says_that_it_was_pruned_and_what_it_can_still_hold_against_it(
    xenlab: Run, tmp_path: Path
) -> None:
    kept = tmp_path / "runs"
    run = a_run(kept, "01")
    key = make_key(tmp_path / "anna")
    audit.sign(run, key)
    whole = tmp_path / "copy" / "01"
    shutil.copytree(run, whole)
    prune.prune(run)
    who = str(signers(tmp_path / "signers", key))
    verify = ("audit", "verify", "01", "--runs", str(kept))
    done = xenlab(*verify, "--signers", who)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pruned on 20" in done.stdout and "its journal and files are gone" in done.stdout
    assert "are as recorded" not in done.stdout
    assert "signed by: anna@castle" in done.stdout
    # the head that is left proves a copy of the journal
    assert Journal(whole).head() in done.stdout
    place = run / "pruned.json"
    text = place.read_text()
    place.write_text(text.replace('"records": ', '"records": 1'))
    done = xenlab(*verify)
    assert done.returncode == 1 and "is of another state of the run" in done.stdout
    place.write_text(text.replace(Journal(whole).head(), "0" * 64))
    done = xenlab(*verify)
    assert done.returncode == 1 and "journal.head is not the one" in done.stdout
    place.write_text(text)
    (run / "run.json").write_text("{}")
    done = xenlab(*verify)
    assert done.returncode == 1 and "run.json was changed" in done.stdout


def test_a_run_that_was_changed_stays_as_evidence(xenlab: Run, tmp_path: Path) -> None:
    kept = tmp_path / "runs"
    run = a_run(kept, "01")
    a_run(kept, "02")
    (run / "04_grub.ipynb").write_text("{}")
    done = xenlab("runs", "prune", "--keep", "1", "--yes", "--runs", str(kept))
    assert done.returncode == 1
    assert "because 04_grub.ipynb: it was changed since it was recorded" in done.stderr
    assert (run / "journal.jsonl").exists() and not (run / "pruned.json").exists()


def test_an_interrupted_pruning_is_completed(tmp_path: Path) -> None:
    run = a_run(tmp_path, "01")
    a_run(tmp_path, "02")
    copy = tmp_path / "left"
    shutil.copytree(run / "output", copy)
    prune.prune(run)
    said = (run / "pruned.json").read_text()
    shutil.copytree(copy, run / "output")
    assert prune.old(tmp_path, 1) == [run]
    prune.prune(run)
    assert "output" not in left(run) and (run / "pruned.json").read_text() == said


def test_what_needs_the_files_says_that_they_are_gone(tmp_path: Path) -> None:
    run = a_run(tmp_path, "01")
    prune.prune(run)
    for what in (tables.write, tables.render, audit.inspect):
        with pytest.raises(BadInput, match="because it was pruned on 20"):
            what(run)


def test_the_last_run_stays(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot keep 0 runs"):
        prune.old(tmp_path, 0)
