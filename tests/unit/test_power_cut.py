"""A run that the power left in the middle of a write is told from one that somebody changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from xenlab.journal import FIRST, HEAD, SYNCED, Journal, head_line
from xenlab.runs import audit
from xenlab.runs import folder as runs

JOURNAL = "journal.jsonl"
Files = dict[str, bytes]


@dataclass(frozen=True)
class Moment:
    """What was on disk before a write, and after it."""

    before: Files
    after: Files


@cache
def moments() -> tuple[Moment, ...]:
    """Each write of a run of two chapters, as it went to a real folder."""
    found = []
    with TemporaryDirectory() as place:
        folder = Path(place) / "20260101T000000-lab"
        folder.mkdir()
        for write in writes(folder):
            before = snapshot(folder)
            write()
            found.append(Moment(before, snapshot(folder)))
    return tuple(found)


def writes(folder: Path) -> list[Callable[[], object]]:
    journal = Journal(folder)

    def step(chapter: str, number: str) -> list[Callable[[], object]]:
        fields = {"chapter": chapter, "step": number, "title": f"{number} Install"}
        kept: list[dict[str, str]] = []

        def save() -> None:
            path, digest = journal.save_output(number, b"$ grub-install\nInstalling \xc3\xbc\n" * 9)
            kept.append({"path": path, "sha256": digest})

        return [
            lambda: journal.append(**fields, phase="running", status="running"),
            save,
            lambda: journal.append(**fields, phase="final", status="changed", attachments=kept),
        ]

    def chapter(name: str, *numbers: str) -> list[Callable[[], object]]:
        return [
            lambda: journal.append(chapter=name, phase="open", status="apply"),
            *(write for number in numbers for write in step(name, number)),
            lambda: journal.append(chapter=name, phase="close", status="ok"),
            lambda: (folder / f"{name}.ipynb").write_text('{"cells": []}'),
        ]

    return [
        lambda: runs.create(folder, {"site": "lab", "chapters": ["04_x", "05_x"]}),
        lambda: runs.begin(folder),
        *chapter("04_x", "04.1", "04.2"),
        *chapter("05_x", "05.1"),
        lambda: audit.record_files(folder),
        lambda: journal.append(phase="end", status=0),
    ]


def snapshot(folder: Path) -> Files:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".reserve"
    }


def lay_out(folder: Path, files: Files) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def heads(number: int) -> list[bytes]:
    """What the head file may hold on disk when a write begins: all since one was synced."""
    found = [head_line(FIRST, 0)]
    for moment in moments()[:number]:
        new = moment.after.get(JOURNAL, b"")[len(moment.before.get(JOURNAL, b"")) :]
        head = moment.after.get(HEAD, head_line(FIRST, 0))
        synced = any(f'"phase": "{phase}"'.encode() in new for phase in SYNCED)
        found = [head] if synced else [*found, head]
    return found


def interrupted(data: st.DataObject, *, head_whole: bool = False) -> Files:
    """What the disk may hold when the power goes at any byte of any write."""
    number = data.draw(st.integers(1, len(moments()) - 1), "write")
    moment = moments()[number]
    files, possible = dict(moment.before), heads(number)
    for name in sorted({name for name, whole in moment.after.items() if name != HEAD}):
        old, whole = moment.before.get(name, b""), moment.after[name]
        end = data.draw(st.integers(len(old), len(whole)), name) if whole != old else len(whole)
        # a size may be on disk before the bytes, but for lines that were synced
        synced = max(len(old), whole.rfind(b"\n", 0, end - 1) + 1 if name == JOURNAL else 0)
        lost = data.draw(st.integers(synced, end), "zeros") if end > synced else synced
        files[name] = whole[:synced] + bytes(lost - synced) + whole[lost:end]
        if files[name] == whole and name == JOURNAL:
            possible.append(moment.after[HEAD])
    if JOURNAL in files:
        head = data.draw(st.sampled_from(possible), "head")
        kept = len(head) if head_whole else data.draw(st.integers(0, len(head)), "head's bytes")
        files[HEAD] = head[:kept]
    return files


@given(data=st.data())
@settings(deadline=None, max_examples=400)
def test_a_power_cut_is_no_change(data: st.DataObject) -> None:
    files = interrupted(data)
    with TemporaryDirectory() as place:
        found = audit.inspect(lay_out(Path(place), files))
    assert found.problems == ()
    assert found.cut != () or files == moments()[-1].after


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_run_goes_on_after_a_power_cut(data: st.DataObject) -> None:
    files = interrupted(data)
    with TemporaryDirectory() as place:
        folder = lay_out(Path(place), files)
        runs.begin(folder)
        audit.record_files(folder)
        Journal(folder).append(phase="end", status=0)
        found = audit.inspect(folder)
    assert (found.problems, found.cut) == ((), ())


def test_the_run_that_is_cut_here_was_whole(tmp_path: Path) -> None:
    found = audit.inspect(lay_out(tmp_path, moments()[-1].after))
    assert (found.problems, found.cut, found.records) == ((), (), 14)


@given(data=st.data())
@settings(deadline=None, max_examples=400)
def test_an_edited_byte_is_a_change(data: st.DataObject) -> None:
    files = dict(moments()[-1].after)
    name = data.draw(st.sampled_from(sorted(files)), "file")
    edited = bytearray(files[name])
    edited[data.draw(st.integers(0, len(edited) - 1), "byte")] ^= data.draw(st.integers(1, 255))
    files[name] = bytes(edited)
    with TemporaryDirectory() as place:
        assert audit.inspect(lay_out(Path(place), files)).problems != ()


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_an_edited_byte_is_a_change_after_a_power_cut_too(data: st.DataObject) -> None:
    files = interrupted(data, head_whole=True)
    known = int(files[HEAD].split()[1]) if HEAD in files else 0
    assume(known > 0)
    lines = files[JOURNAL].split(b"\n")[:known]
    edited = bytearray(files[JOURNAL])
    byte = data.draw(st.integers(0, len(b"\n".join(lines)) - 1), "byte")
    edited[byte] ^= data.draw(st.integers(1, 255))
    files[JOURNAL] = bytes(edited)
    with TemporaryDirectory() as place:
        assert audit.inspect(lay_out(Path(place), files)).problems != ()


@given(data=st.data())
@settings(deadline=None)
def test_a_journal_cut_behind_its_head_is_cut_off_and_not_whole(data: st.DataObject) -> None:
    files = dict(moments()[-1].after)
    files[JOURNAL] = files[JOURNAL][: data.draw(st.integers(0, len(files[JOURNAL]) - 1))]
    with TemporaryDirectory() as place:
        (problem,) = audit.inspect(lay_out(Path(place), files)).problems
    assert problem.startswith("the journal is cut off after line ")
    assert "names line 14, which was on disk before" in problem


def test_lines_added_behind_a_head_that_was_on_disk_are_a_change(tmp_path: Path) -> None:
    """A chapter's end returns only when the head is on disk: no cut leaves more than its lines."""
    folder = lay_out(tmp_path, moments()[-1].after)
    Journal(folder).append(chapter="06_x", phase="open")
    Journal(folder).append(chapter="06_x", phase="close")
    (folder / HEAD).write_bytes(moments()[-1].after[HEAD])
    (problem,) = audit.inspect(folder).problems
    assert "lines were added or removed" in problem


def test_a_head_that_is_gone_is_a_change(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, moments()[-1].after)
    (folder / HEAD).unlink()
    assert audit.inspect(folder).problems == ("journal.head is gone",)


def test_the_head_of_an_earlier_version_counts(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, moments()[-1].after)
    head = (folder / HEAD).read_text().split()[0]
    (folder / HEAD).write_text(f"{head}\n")
    assert audit.inspect(folder).problems == ()
    (folder / HEAD).write_text(f"{head[:-1]}x\n")
    assert audit.inspect(folder).problems != ()


@pytest.mark.parametrize("name", ["output/04.9.txt", "06_x.ipynb", "notes.txt"])
def test_a_file_nobody_recorded_is_explained_by_an_interruption_alone(
    tmp_path: Path, name: str
) -> None:
    whole = lay_out(tmp_path / "whole", moments()[-1].after)
    (whole / name).write_text("made up")
    assert audit.inspect(whole).problems == (f"{name}: no record names it",)
    cut = lay_out(tmp_path / "cut", moments()[-1].before)
    (cut / name).write_text("made up")
    found = audit.inspect(cut)
    said = f"{name}: no record names it"
    assert found.problems == ((said,) if name == "notes.txt" else ())
    assert (f"{said} yet" in found.cut) == (name != "notes.txt")
