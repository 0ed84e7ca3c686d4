"""Writes that the system cuts short: a file may not grow further (RLIMIT_FSIZE)."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from xenlab.chapter.events import ignore
from xenlab.chapter.recorder import Recorder
from xenlab.chapter.step import Step
from xenlab.command import Command
from xenlab.errors import DiskFull, StepFailed
from xenlab.host import Host
from xenlab.journal import Journal, verify
from xenlab.transport.local import Local


@contextmanager
def no_file_larger(size: int) -> Iterator[None]:
    """A write up to the limit is taken in part, the next one is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_output_that_is_cut_short_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    journal.append(chapter="04_x", phase="open", status="apply")
    with no_file_larger(400_000), pytest.raises(DiskFull):
        journal.save_output("04.1", bytes(500_000))
    assert list((tmp_path / "run" / "output").iterdir()) == []
    assert verify(journal.path) == len(journal.records())


def test_a_record_that_is_cut_short_is_taken_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    journal.append(chapter="04_x", phase="open", status="apply")
    size = journal.path.stat().st_size
    with no_file_larger(size + 1000), pytest.raises(DiskFull):
        journal.append(chapter="04_x", step="04.1", phase="running", message="x" * 2000)
    phases = [record["phase"] for record in journal.records()]
    assert phases == ["open", "full"] and verify(journal.path) == 2


def test_what_went_wrong_in_a_step_is_said_though_its_output_is_not_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    journal.append(chapter="04_x", phase="open", status="apply")
    recorder = Recorder(())
    step = Step(journal, ignore, "04_x", "04.1 X", "here", str, recorder)

    def fail() -> None:
        with no_file_larger(60_000), step:
            Host(Local(), watcher=recorder).run(Command.script("yes | head -c 100000"))
            raise StepFailed("the real one")

    with pytest.raises(StepFailed, match="the real one"):
        fail()
    final = next(r for r in journal.records() if r["phase"] == "final")
    assert (final["status"], final["message"].endswith("the real one")) == ("failed", True)
    assert list((tmp_path / "run" / "output").iterdir()) == []


def test_what_went_wrong_in_a_step_is_said_though_its_outputs_are_gone(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    recorder = Recorder(())
    step = Step(journal, ignore, "04_x", "04.1 X", "here", str, recorder)

    def fail() -> None:
        with step:
            Host(Local(), watcher=recorder).run(Command.script("yes | head -c 100000"))
            (tmp_path / "run" / "output").rmdir()
            raise StepFailed("the real one")

    with pytest.raises(StepFailed, match="the real one"):
        fail()
    (final,) = (r for r in journal.records() if r["phase"] == "final")
    assert final["status"] == "failed" and final["commands"][0]["output"].endswith("y\ny\n")
