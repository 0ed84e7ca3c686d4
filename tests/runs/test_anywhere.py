"""Runs from any folder and from copied notebooks, on a real sshd; a folder without locks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from tests.ssh.small import Site

from xenlab.site.loader import INJECTED

pytestmark = pytest.mark.timeout(1200)

PROGRAM = [sys.executable, "-m", "xenlab"]


def told(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program's end and all that it said, started in a folder."""
    return subprocess.run(
        words,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )


def copied(site: Site, folder: Path, *own: str) -> Path:
    """The chapter with its machine in it, alone in another folder; ``own`` are more cells."""
    folder.mkdir(parents=True)
    place = folder / "copy.ipynb"
    notebook = nbformat.read(site.folder / "notebooks" / "01_first.ipynb", 4)
    values = nbformat.v4.new_code_cell(f"{INJECTED}ssh = {site.ssh!r}")
    notebook.cells[2:2] = [values, *(nbformat.v4.new_code_cell(text) for text in own)]
    nbformat.write(notebook, place)
    shutil.copy(site.folder / "notebooks" / "parts.py", folder)
    return place


@pytest.fixture
def elsewhere(site: Site, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that no setting names, and what will be the user's data directory."""
    site.chapter("01_first", site.made("01.1"))
    (site.folder / "xenlab.toml").unlink()
    monkeypatch.setenv("XDG_DATA_HOME", str(site.folder / "home/data"))
    folder = site.folder / "elsewhere"
    folder.mkdir()
    return folder


def test_a_copied_notebook_leaves_its_run_in_the_user_s_data_directory(
    site: Site, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(site.folder / "home"))
    copy = copied(site, site.folder / "staging/1d0", "import platform", "uplink = 7")
    out = elsewhere / "out.ipynb"
    papermill = (sys.executable, "-m", "papermill", str(copy), str(out))
    # papermill's own option: the copy is executed where it lies
    done = told(*papermill, "--cwd", str(copy.parent), folder=elsewhere)
    assert done.returncode == 0, done.stdout
    (run,) = (site.folder / "home/data/xenlab/runs").iterdir()
    cells = nbformat.read(out, 4).cells
    pages = [o.data["text/html"] for c in cells for o in c.get("outputs", ()) if "data" in o]
    assert f"~/data/xenlab/runs/{run.name}" in pages[0]
    assert run.name in told(*PROGRAM, "runs", folder=elsewhere).stdout
    assert not list(copy.parent.glob("runs*")) and not list(elsewhere.glob("runs*"))


def test_a_setting_that_was_copied_too_places_no_run_in_a_temporary_folder(
    site: Site, elsewhere: Path
) -> None:
    copy = copied(site, site.folder / "scheduler_staging_area/1d0")
    (copy.parent / "xenlab.toml").write_text('runs = "runs"\n')
    out = elsewhere / "out.ipynb"
    papermill = (sys.executable, "-m", "papermill", str(copy), str(out))
    done = told(*papermill, "--cwd", str(copy.parent), folder=elsewhere)
    assert done.returncode == 1
    assert "because jupyter-scheduler's copy of a notebook is thrown away" in done.stdout
    assert not (copy.parent / "runs").exists() and not site.path("01.1").exists()


def test_a_variable_that_hides_a_parameter_is_refused(site: Site, elsewhere: Path) -> None:
    copy = copied(site, site.folder / "copies", "x = 1", 'disk = "/dev/vdb"')
    papermill = (sys.executable, "-m", "papermill", str(copy), str(elsewhere / "out.ipynb"))
    done = told(*papermill, "--cwd", str(copy.parent), folder=elsewhere)
    assert done.returncode == 1
    assert "cannot tell what disk is: because something else has set it" in done.stdout
    assert not (site.folder / "home/data").exists() and not site.path("01.1").exists()


def test_a_run_starts_from_any_folder_that_has_a_setting_above_it(
    site: Site, elsewhere: Path
) -> None:
    text = f'site = "site.yaml"\nruns = "{site.folder}/kept"\n'
    (site.folder / "xenlab.toml").write_text(text)
    done = told(*PROGRAM, "run", "01", folder=elsewhere)
    assert done.returncode == 0, done.stdout
    (run,) = (site.folder / "kept").iterdir()
    assert run.name in told(*PROGRAM, "runs", folder=site.folder / "notebooks").stdout


def test_a_folder_without_locks_is_refused_with_a_sentence(site: Site, elsewhere: Path) -> None:
    """strace has the kernel answer flock(2) as an NFS without a lock daemon does.

    Linux itself locks the files of a file system without locks of its own; one that refuses them
    is a FUSE or NFS mount, which takes a device or a server that a container has not.
    """
    strace = ["strace", "-f", "-qq", "-o", os.devnull, "--seccomp-bpf", "-e", "trace=flock"]
    inject = ["-e", "inject=flock:error=ENOLCK"]
    done = told(*strace, *inject, *PROGRAM, "run", "01", "-f", str(site.file), folder=elsewhere)
    assert done.returncode == 2, done.stdout
    runs = site.folder / "home/data/xenlab/runs"
    assert done.stdout.strip().splitlines()[-2:] == [
        f"cannot keep anything in {runs}: because files cannot be locked there (No locks "
        "available), and two at work would spoil it",
        "Try: a folder on a disk of this machine: XENLAB_RUNS for runs, XENLAB_CACHE for labs",
    ]
    assert list(runs.iterdir()) == [] and not site.path("01.1").exists()
