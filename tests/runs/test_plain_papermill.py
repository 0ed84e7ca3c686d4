"""Every chapter also works with papermill alone, as the howto's reader may start it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from markupsafe import escape
from tests.ssh.conftest import Sshd
from tests.whole_lab import without_record

from xenlab.journal import Journal, verify
from xenlab.runs.execute import step_cells

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("[01]?_*.ipynb"))

# The machine under test has not the disk that these are about, which is what they must say.
NEED_A_DISK = {"00_ingredients", "01_partitions", "02_base_system"}


def written(site: str, machine: Sshd, folder: Path) -> Path:
    """The lab's parameters, or a real Gentoo machine's, for that machine."""
    values = yaml.safe_load((ROOT / "parameters" / f"{site}.yaml").read_text())
    values["ssh"] = {"host": machine.alias, "config": str(machine.config)}
    values["disk"] = "/dev/no-disk"
    values["may_wipe"] = []
    for key, checksums in (("stage", "stage_checksums"), ("kernel_source", "kernel_checksums")):
        file = folder / f"{key}.tar.zst"
        file.write_bytes(b"never unpacked here")
        sums = folder / f"{key}.sha256"
        sums.write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n")
        values[key], values[checksums] = str(file), str(sums)
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@dataclass(frozen=True)
class Planned:
    """What papermill alone left behind."""

    status: int
    said: str
    run: Path
    pages: list[str]

    @property
    def finals(self) -> list[dict[str, Any]]:
        return [record for record in self.records if record["phase"] == "final"]

    @property
    def records(self) -> list[dict[str, Any]]:
        return Journal(self.run).records()


def planned_alone(site: str, chapter: Path, machine: Sshd, folder: Path) -> Planned:
    """Execute a chapter with papermill's own program, in plan mode."""
    out = folder / "out.ipynb"
    file = written(site, machine, folder)
    done = subprocess.run(
        [sys.executable, "-m", "papermill", str(chapter), str(out), "-f", str(file)],
        cwd=folder,
        env={**os.environ, "XENLAB_MODE": "plan", "XENLAB_RUNS": str(folder / "runs")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=590,
    )
    (run,) = (folder / "runs").iterdir()
    assert run.stat().st_mode & 0o777 == 0o700
    verify(run / "journal.jsonl")
    executed = nbformat.read(out, as_version=4)
    pages = [
        output.data["text/html"]
        for cell in executed.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output and "text/html" in output.data
    ]
    return Planned(done.returncode, done.stderr, run, pages)


Plans = dict[tuple[str, Path], Future[Planned]]


@pytest.fixture(scope="module")
def plans(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Plans]:
    """Every chapter that is asked for, side by side; the machine is no Xen host at all."""
    machine = Sshd(tmp_path_factory.mktemp("sshd"))
    ours = (item for item in request.session.items if item.path == request.path)
    told = [item.callspec.params for item in ours if isinstance(item, pytest.Function)]
    asked = [(str(one["site"]), Path(str(one["chapter"]))) for one in told]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            one: pool.submit(planned_alone, *one, machine, tmp_path_factory.mktemp("plan"))
            for one in asked
        }
        pool.shutdown(cancel_futures=True)
    machine.stop()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("site", ["lab", "gentoo"])
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_is_planned_by_papermill_alone(chapter: Path, site: str, plans: Plans) -> None:
    planned = plans[site, chapter].result()
    phases = [record["phase"] for record in planned.records]
    assert phases[0] == "open" and "running" not in phases
    if chapter.stem in NEED_A_DISK:
        assert planned.status != 0
        assert "no-disk" in planned.said and "name one of these disks" in planned.said
        assert "close" not in phases
        return
    assert planned.status == 0, planned.said
    assert phases[-1] == "close"
    own = [record for record in planned.finals if ".0" not in record["step"]]
    assert [record["title"] for record in own] == [step.title for step in step_cells(chapter)]
    assert planned.finals[0]["title"] == f"{chapter.stem[:2]}.0 Open the chapter"
    assert without_record(planned.run) == []
    assert {record["status"] for record in planned.finals} <= {"ok", "would change"}
    for record in planned.finals:
        (page,) = [text for text in planned.pages if f">{escape(record['title'])}<" in text]
        assert f">{record['status']}<" in page
