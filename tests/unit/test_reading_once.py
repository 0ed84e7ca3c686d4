"""A journal that grows is read once, whoever follows it: in bytes that this process read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from xenlab.journal import Journal
from xenlab.runs import folder as runs
from xenlab.runs.progress import Follower

OLD = 400
NEW = 100


def grown(folder: Path, count: int) -> Journal:
    journal = Journal(folder)
    journal.append(chapter="01_x", phase="open", status="apply")
    add(journal, count)
    return journal


def add(journal: Journal, count: int) -> None:
    for number in range(count):
        step = f"01.{number}"
        said = "x" * 2000
        journal.append(chapter="01_x", step=step, phase="final", status="ok", message=said)


def bytes_read(act: Callable[[], object]) -> int:
    def so_far() -> int:
        words = Path("/proc/self/io").read_text().split()
        return int(words[words.index("rchar:") + 1])

    before = so_far()
    act()
    return so_far() - before


def test_the_progress_reads_each_record_once(tmp_path: Path) -> None:
    journal = grown(tmp_path, OLD)
    console = Console(record=True, width=100, force_terminal=False)

    def follow() -> None:
        with Follower(console, tmp_path, {}) as follower:
            for _ in range(NEW):
                add(journal, 1)
                follower.end(runs.ChapterState("01_x", "done", 0, "", ()))

    read = bytes_read(follow)
    assert console.export_text().count("  ok ") == NEW
    assert read < 1.5 * journal.path.stat().st_size


def test_a_run_is_judged_chapter_by_chapter_in_one_pass(tmp_path: Path) -> None:
    journal = grown(tmp_path, OLD)
    chapters = runs.Chapters(tmp_path)

    def judge() -> None:
        for number in range(NEW):
            add(journal, 1)
            assert len(chapters.state("01_x").steps) == OLD if number < OLD else True

    assert bytes_read(judge) < 1.5 * journal.path.stat().st_size


def test_two_writers_read_only_what_the_other_wrote(tmp_path: Path) -> None:
    first = grown(tmp_path, OLD)
    second = Journal(tmp_path)

    def take_turns() -> None:
        for _ in range(NEW):
            add(first, 1)
            add(second, 1)

    assert bytes_read(take_turns) < 1.5 * first.path.stat().st_size


@pytest.mark.parametrize("ask", ["head", "unfinished"])
def test_a_question_to_a_journal_reads_it_once(tmp_path: Path, ask: str) -> None:
    grown(tmp_path, OLD)
    journal = Journal(tmp_path)

    def often() -> None:
        for _ in range(NEW):
            journal.head() if ask == "head" else journal.unfinished("01_x", "01.1")

    assert bytes_read(often) < 1.5 * journal.path.stat().st_size
