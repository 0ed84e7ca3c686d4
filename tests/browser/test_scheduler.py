"""jupyter-scheduler in JupyterLab executes a copy of a chapter, which it deletes; the run stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from tests.browser.jupyter import Jupyter
from tests.notebooks.chapters import FOLDER
from tests.runs.test_plain_papermill import written
from tests.ssh.conftest import Sshd, wait_until

from xenlab.durable import STAGING

# a job starts processes of its own beside JupyterLab
pytestmark = pytest.mark.timeout(1800)

JOB_SECONDS = 900
"""How long chapter 05 may take as a plan, on a machine with other work."""


def test_a_scheduled_copy_of_chapter_05_leaves_its_run_where_xenlab_finds_it(
    tmp_path: Path, sshd: Sshd, jupyter: Callable[..., Jupyter]
) -> None:
    desk, data = tmp_path / "desk", tmp_path / "data"
    desk.mkdir()
    copy = desk / "castle-05.ipynb"
    prepare = [str(FOLDER / "05_base_configuration.ipynb"), str(copy), "--prepare-only"]
    subprocess.run(
        [sys.executable, "-m", "papermill", *prepare, "-f", str(written("lab", sshd, tmp_path))],
        cwd=desk,
        check=True,
        capture_output=True,
        timeout=300,
    )
    environment = {name: os.environ[name] for name in os.environ if name[:7] != "XENLAB_"}
    environment |= {"HOME": str(tmp_path), "XDG_DATA_HOME": str(data)}
    # no Xen host is there to change: the chapter only looks
    lab = jupyter(desk, **environment, XENLAB_MODE="plan")
    (place,) = lab.ask("scheduler/runtime_environments")
    job = lab.ask(
        "scheduler/jobs",
        name="castle",
        input_uri=copy.name,
        runtime_environment_name=place["name"],
        output_formats=["ipynb"],
    )["job_id"]

    def state() -> str:
        return str(lab.ask(f"scheduler/jobs/{job}")["status"])

    # a job is STOPPED before it is begun
    wait_until(lambda: state() in ("COMPLETED", "FAILED"), JOB_SECONDS)
    assert state() == "COMPLETED", lab.ask(f"scheduler/jobs/{job}")
    (staged,) = data.glob(f"jupyter/{STAGING}/{job}")
    (executed,) = [path for path in staged.glob("*.ipynb") if path.name != copy.name]
    found = subprocess.run(
        [sys.executable, "-m", "xenlab", "runs", "--json"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        timeout=300,
    )
    (run,) = json.loads(found.stdout)
    assert (run["chapters"], run["done"], run["state"]) == (1, 1, "done")
    assert (data / "xenlab/runs" / run["run"] / "journal.jsonl").is_file()
    assert not list(staged.rglob("journal.jsonl"))
    cells = nbformat.read(executed, 4).cells
    pages = [o.data["text/html"] for c in cells for o in c.get("outputs", ()) if "data" in o]
    assert f"~/data/xenlab/runs/{run['run']}" in pages[0]
