"""The journal: nothing recorded is lost, nothing can be changed unseen."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xenlab.errors import JournalDamaged
from xenlab.journal import COLUMNS, FIRST, Journal, output_of, verify


def fill(folder: Path, count: int = 5) -> Journal:
    journal = Journal(folder)
    for number in range(count):
        journal.append(chapter="04_grub", step=f"04.{number}", phase="final", status="changed")
    return journal


@cache
def filled() -> tuple[tuple[str, bytes], ...]:
    """The files of a run with five records: made once, since each record is synced."""
    with TemporaryDirectory() as place:
        fill(Path(place))
        names = ("journal.jsonl", "journal.head")
        return tuple((name, (Path(place) / name).read_bytes()) for name in names)


def lay_out(folder: Path) -> Path:
    for name, data in filled():
        (folder / name).write_bytes(data)
    return folder / "journal.jsonl"


def test_looks_are_put_on_disk_together_and_at_once_what_changes_something(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    head = tmp_path / "journal.head"
    journal.append(chapter="04_grub", phase="open", status="ok")
    assert int(head.read_text().split()[1]) == 1
    for number in range(5):
        journal.append(chapter="04_grub", step=f"04.{number}", phase="final", status="ok")
    # the head names a line that is on disk
    assert int(head.read_text().split()[1]) < 6
    for number, (phase, status) in enumerate((("running", "running"), ("final", "changed"))):
        journal.append(chapter="04_grub", step="04.5", phase=phase, status=status)
        assert int(head.read_text().split()[1]) == 7 + number
    assert verify(journal.path) == 8


def test_records_are_chained_and_numbered(tmp_path: Path) -> None:
    journal = fill(tmp_path / "run")
    assert verify(journal.path) == 5
    records = journal.records()
    assert [r["seq"] for r in records] == [1, 2, 3, 4, 5]
    assert records[0]["prev"] == FIRST
    assert all(r["run"] == "run" for r in records)


def test_a_second_journal_on_the_same_folder_goes_on_with_the_chain(tmp_path: Path) -> None:
    first = fill(tmp_path)
    second = Journal(tmp_path)
    second.append(step="a")
    first.append(step="b")
    second.append(step="c")
    assert verify(first.path) == 8


def append_many(folder: str) -> None:
    journal = Journal(Path(folder))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: journal.append(step=str(n)), range(25)))


def test_threads_and_processes_append_side_by_side(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=append_many, args=(str(tmp_path),)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert verify(tmp_path / "journal.jsonl") == 75


def test_a_line_cut_off_by_a_crash_is_recorded_and_the_chain_goes_on(tmp_path: Path) -> None:
    journal = fill(tmp_path)
    with journal.path.open("ab") as file:
        file.write(b'{"chapter": "04_grub", "st')
    Journal(tmp_path).append(step="after")
    assert verify(journal.path) == 7
    assert journal.records()[-2]["message"] == '{"chapter": "04_grub", "st'
    assert not (tmp_path / "journal.torn").exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_flipped_byte_is_found(tmp_path: Path, data: st.DataObject) -> None:
    path = lay_out(tmp_path)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    line = raw[:place].count(b"\n") + 1
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    # a newline that is gone, or one too many, counts the lines anew from there on
    with pytest.raises(JournalDamaged, match=f"line ({line}|{line - 1}) "):
        verify(path)


@given(
    change=st.sampled_from(["delete", "swap", "repeat", "cut"]),
    line=st.integers(0, 4),
    other=st.integers(1, 4),
    bytes_kept=st.integers(0, 60),
)
@settings(deadline=None)
def test_a_missing_moved_or_cut_line_is_found(
    change: str, line: int, other: int, bytes_kept: int
) -> None:
    with TemporaryDirectory() as folder:
        path = lay_out(Path(folder))
        lines = path.read_bytes().splitlines(keepends=True)
        if change == "delete":
            del lines[line]
        elif change == "swap":
            other = (line + other) % 5
            lines[line], lines[other] = lines[other], lines[line]
        elif change == "repeat":
            lines.insert(line, lines[line])
        else:
            lines[line:] = [lines[line][:bytes_kept]]
        path.write_bytes(b"".join(lines))
        with pytest.raises(JournalDamaged, match=r"line [0-6] \(step|line [1-5] is no JSON"):
            verify(path)


def test_the_record_that_was_changed_is_named(tmp_path: Path) -> None:
    path = fill(tmp_path).path
    for number in range(1, 6):
        lines = path.read_text().splitlines(keepends=True)
        kept = list(lines)
        lines[number - 1] = lines[number - 1].replace('"changed"', '"CHANGED"')
        path.write_text("".join(lines))
        with pytest.raises(JournalDamaged, match=rf"line {number} \(step 04\.{number - 1}\)"):
            verify(path)
        path.write_text("".join(kept))
    assert verify(path) == 5


def test_the_frame_has_the_promised_columns(tmp_path: Path) -> None:
    frame = fill(tmp_path).frame()
    assert list(frame.columns) == COLUMNS
    assert list(frame["status"]) == ["changed"] * 5


@pytest.mark.parametrize("status", ["", "failed", "unreachable", "unknown", "aborted"])
def test_a_step_that_ran_and_did_not_end_well_is_unfinished(tmp_path: Path, status: str) -> None:
    journal = Journal(tmp_path)

    def attempt(step: str, mark: str, status: str, ran: bool = True) -> None:
        if ran:
            journal.append(chapter="09", step=step, phase="running", mark=mark)
        if status:
            journal.append(chapter="09", step=step, phase="final", status=status, mark=mark)

    def marks(*place: str) -> list[str]:
        found = journal.unfinished(*place)
        assert found == Journal(tmp_path).unfinished(*place)
        return [record["mark"] for record in found]

    attempt("09.1", "m1", status)
    attempt("09.1", "m2", "unreachable")
    attempt("09.2", "m3", status)
    attempt("09.3", "m4", status or "failed", ran=False)
    assert marks("09", "09.1") == ["m1", "m2"]
    assert marks("09") == marks() == ["m1", "m2", "m3"]
    assert marks("08") == []
    attempt("09.1", "m5", "changed")
    attempt("09.2", "m6", "ok", ran=False)
    assert marks() == []


def test_output_is_never_written_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first, _ = journal.save_output("04.1", b"one")
    second, digest = journal.save_output("04.1", b"two")
    assert first != second
    assert (tmp_path / first).read_bytes() == b"one"
    assert len(digest) == 64


def test_an_output_is_read_from_the_record_or_its_file(tmp_path: Path) -> None:
    path, _ = Journal(tmp_path).save_output("04.1", b"in a file \xff")
    assert output_of(tmp_path, {"output": "in the record"}) == "in the record"
    found = output_of(tmp_path, {"output": {"path": path}})
    assert found == "in a file \N{REPLACEMENT CHARACTER}"
    assert output_of(tmp_path, {"output": {"path": "output/gone.txt"}}) == ""
    assert output_of(tmp_path, {}) == ""


def test_half_a_character_costs_no_record(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(chapter="04", step="04.1", phase="final", message="no file /srv/\udce4.tar")
    assert journal.records()[-1]["message"] == "no file /srv/\udce4.tar"
    assert verify(journal.path) == 1


def test_what_a_command_was_given_is_kept_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    path, digest = journal.save_input(b"label: gpt\n")
    assert journal.save_input(b"label: gpt\n") == (path, digest)
    assert (tmp_path / path).read_bytes() == b"label: gpt\n"
    assert len(list((tmp_path / "input").iterdir())) == 1


def test_the_run_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    journal = fill(tmp_path / "run")
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    assert journal.path.stat().st_mode & 0o777 == 0o600


def test_lines_are_json_with_sorted_keys(tmp_path: Path) -> None:
    line = fill(tmp_path).path.read_text().splitlines()[0]
    assert line == json.dumps(json.loads(line), sort_keys=True, ensure_ascii=False)
