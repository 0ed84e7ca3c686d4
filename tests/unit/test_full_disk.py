"""A disk that fills up during a run: nothing is lost, and nothing looks tampered with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.smalldisk import fill, fill_with_files, small_disk
from tests.unit.test_audit import make_key

from xenlab.durable import new_run_folder
from xenlab.errors import DiskFull
from xenlab.journal import Journal, verify
from xenlab.runs import audit
from xenlab.runs import folder as runs
from xenlab.transport.hostkeys import pin


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "runs", 1024) as disk:
        run = disk / "20260101T000000-lab"
        run.mkdir()
        runs.create(run, {"site": "lab", "chapters": ["04_x"]})
        runs.begin(run)
        yield run


def opened(folder: Path) -> Journal:
    journal = Journal(folder)
    journal.append(chapter="04_x", phase="open", status="apply")
    return journal


def step(journal: Journal, phase: str, status: str, **more: object) -> None:
    journal.append(chapter="04_x", step="04.1", title="04.1 X", phase=phase, status=status, **more)


def ask_for_ever(journal: Journal) -> None:
    while True:
        step(journal, "asked", "running")


def phases(folder: Path) -> list[str]:
    return [str(record["phase"]) for record in Journal(folder).records()]


def test_nothing_is_begun_that_cannot_be_recorded(folder: Path) -> None:
    journal = opened(folder)
    fill(folder.parent)
    with pytest.raises(DiskFull, match=r"^cannot go on: .* are free\)\n") as caught:
        step(journal, "running", "running")
    step(journal, "final", "failed", message=str(caught.value))
    audit.end(folder, 1)
    assert phases(folder) == ["begin", "open", "full", "final", "end"]
    found = audit.inspect(folder)
    assert (found.problems, found.cut) == ((), ("cut short: the disk was full",))


def test_what_was_done_already_is_recorded_and_then_it_stops(folder: Path) -> None:
    journal = opened(folder)
    step(journal, "running", "running")
    fill(folder.parent)
    with pytest.raises(DiskFull):
        step(journal, "final", "changed", seconds=1.5, commands=[{"command": "x" * 400_000}])
    final = journal.records()[-2]
    assert (final["status"], final["seconds"]) == ("changed", 1.5)
    assert "not all of it is recorded" in final["message"]
    assert phases(folder)[-2:] == ["final", "full"]
    assert verify(journal.path) == 5


def test_an_output_that_does_not_fit_leaves_nothing(folder: Path) -> None:
    journal = opened(folder)
    with pytest.raises(DiskFull):
        journal.save_output("04.1", bytes(2 * 1024 * 1024))
    assert list((folder / "output").iterdir()) == []
    journal.append(chapter="04_x", phase="close", status="ok")
    assert phases(folder) == ["begin", "open", "full", "close"]
    assert verify(journal.path) == 4


def test_a_run_whose_end_did_not_fit_either_was_cut_short(folder: Path) -> None:
    journal = opened(folder)
    (folder / "04_x.ipynb").write_text("{}")
    (folder / ".reserve").unlink()
    filler = fill(folder.parent)
    with pytest.raises(DiskFull):
        ask_for_ever(journal)
    with pytest.raises(DiskFull):
        audit.end(folder, 1)
    found = audit.inspect(folder)
    assert found.problems == ()
    assert found.cut == (
        "cut short in 04_x: no record says that it ended",
        "04_x.ipynb: no record names it yet",
    )
    filler.unlink()
    audit.end(folder, 1)
    assert audit.inspect(folder).problems == ()
    assert verify(journal.path) == len(journal.records())


def test_what_is_tampered_with_is_found_though_the_disk_was_full(folder: Path) -> None:
    journal = opened(folder)
    path, digest = journal.save_output("04.1", b"as it was")
    step(journal, "final", "changed", attachments=[{"path": path, "sha256": digest}])
    fill(folder.parent)
    audit.end(folder, 1)
    (folder / path).write_bytes(b"as I wish")
    assert audit.inspect(folder).problems == (f"{path}: it was changed since it was recorded",)


def test_nothing_is_opened_where_no_folder_can_be_made(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key").with_suffix(".pub").read_text()
    with small_disk(tmp_path / "home", 1024, files=40) as home:
        (run := home / "runs" / "x").mkdir(parents=True)
        fill_with_files(home)
        for make in (
            lambda: new_run_folder(home / "other", "lab"),
            lambda: new_run_folder(home / "runs", "lab"),
            lambda: Journal(home / "runs" / "y"),
            lambda: Journal(run),
            lambda: pin(home / "known_hosts", "box", 22, key),
            lambda: pin(home / ".ssh" / "known_hosts", "box", 22, key),
        ):
            with pytest.raises(DiskFull, match="is full"):
                make()


def test_a_run_that_goes_on_keeps_a_reserve_again(folder: Path) -> None:
    journal = opened(folder)
    filler = fill(folder.parent)
    with pytest.raises(DiskFull):
        step(journal, "running", "running")
    filler.unlink()
    runs.begin(folder)
    opened(folder)
    fill(folder.parent)
    with pytest.raises(DiskFull):
        step(journal, "running", "running")
    audit.end(folder, 1)
    assert phases(folder) == ["begin", "open", "full", "begin", "open", "full", "end"]
    assert not (folder / ".reserve").exists()
