"""What is checked before the first notebook of a run, and what a journal says after it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from rich.console import Console
from tests.sites import lab_text

from xenlab.errors import BadInput, JournalDamaged
from xenlab.journal import Journal
from xenlab.runs import audit, execute
from xenlab.runs import folder as runs
from xenlab.runs.execute import step_cells
from xenlab.runs.progress import Follower, summary
from xenlab.runs.report import render, write

NAMES = ("00_ingredients", "04_grub", "08_domu_kernel", "09_domu_root")


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in NAMES:
        chapter(folder, name)
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text(lab_text(site="test"))
    return path


def chapter(
    folder: Path, name: str, *cells: str, parameters: str = 'site: str = "lab"  # its name'
) -> Path:
    first = new_code_cell(parameters)
    first.metadata["tags"] = ["parameters"]
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=[first, *map(new_code_cell, cells)]), path)
    return path


def chosen(plan: execute.RunPlan) -> list[str]:
    return [path.stem for path in plan.todo]


def test_all_chapters_in_their_order(notebooks: Path, file: Path) -> None:
    assert chosen(execute.prepare(notebooks, [], file)) == list(NAMES)


@pytest.mark.parametrize("name", ["04", "04_grub", "04_grub.ipynb", "04_"])
def test_a_chapter_by_its_beginning(notebooks: Path, file: Path, name: str) -> None:
    assert chosen(execute.prepare(notebooks, [name], file)) == ["04_grub"]


def test_chapters_are_put_in_order_and_named_once(notebooks: Path, file: Path) -> None:
    plan = execute.prepare(notebooks, ["09", "00", "09_domu_root"], file)
    assert chosen(plan) == ["00_ingredients", "09_domu_root"]


def test_from_a_chapter_on(notebooks: Path, file: Path) -> None:
    assert chosen(execute.prepare(notebooks, [], file, from_="08")) == list(NAMES[2:])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("4_grub", "cannot run chapter '4_grub': because there is none of that name\nTry: 04_grub"),
        ("04_grup", "chapter '04_grup': because there is none of that name\nTry: 04_grub"),
        ("zzz", "that name\nTry: one of 00_ingredients, 04_grub"),
        ("", "chapter '': because there is none of that name\nTry: one of"),
        ("0", "0 may be 00_ingredients or 04_grub"),
        ("../04_grub", "chapter '../04_grub': because there is none of that name\nTry: 04_grub"),
    ],
)
def test_a_chapter_that_does_not_exist(notebooks: Path, file: Path, name: str, said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        execute.prepare(notebooks, [name], file)
    if name:
        with pytest.raises(BadInput, match=re.escape(said)):
            execute.prepare(notebooks, [], file, from_=name)


def test_nothing_left_after_from(notebooks: Path, file: Path) -> None:
    with pytest.raises(BadInput, match="cannot run from 08_domu_kernel on"):
        execute.prepare(notebooks, ["04"], file, from_="08")


def test_a_mode_that_does_not_exist(notebooks: Path, file: Path) -> None:
    with pytest.raises(BadInput, match="cannot run in mode dry"):
        execute.prepare(notebooks, [], file, mode="dry")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such parameters file"),
        ("", "empty"),
        ("[1, 2]", "not a list"),
        ("site: [", "not YAML"),
        ("site: test\nhostnam: x\n", "hostname"),
        ("boot_mib: big\n", "boot_mib"),
    ],
)
def test_a_parameters_file_that_cannot_be_used(
    notebooks: Path, file: Path, text: str | None, said: str
) -> None:
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with pytest.raises(BadInput) as caught:
        execute.prepare(notebooks, [], file)
    assert said in str(caught.value)


def test_a_notebook_that_declares_what_no_site_has(notebooks: Path, file: Path) -> None:
    chapter(notebooks, "05_x", parameters='hostnam: str = ""  # misspelt')
    with pytest.raises(BadInput, match="declares hostnam") as caught:
        execute.prepare(notebooks, [], file)
    assert caught.value.where == "05_x" and "hostname" in caught.value.hint


def test_a_file_that_is_no_notebook(notebooks: Path, file: Path) -> None:
    (notebooks / "05_x.ipynb").write_text("not a notebook")
    with pytest.raises(BadInput, match="cannot be read"):
        execute.prepare(notebooks, [], file)


def test_a_folder_without_chapters(tmp_path: Path, file: Path) -> None:
    with pytest.raises(BadInput, match="because there are none in"):
        execute.prepare(tmp_path, [], file)


def test_a_chapter_is_given_what_it_declares(notebooks: Path, file: Path) -> None:
    chapter(notebooks, "05_x", parameters='hostname: str = "a"  # name\ndomain: str = "b"  # name')
    plan = execute.prepare(notebooks, ["05"], file, overrides={"hostname": "other"})
    assert plan.values == {"05_x": {"hostname": "other", "domain": "lab.internal"}}


def test_the_steps_of_a_chapter_are_read_from_its_cells(tmp_path: Path) -> None:
    path = chapter(
        tmp_path,
        "05_x",
        "%load_ext nonsense",
        "from xenlab import open_chapter\nchapter = open_chapter('05_x', globals())",
        'chapter.facts("05.1 The machine", table(chapter))',
        'chapter.ensure(\n    "05.2 Write it",\n    thing(chapter, "05.9 no step"),\n)',
        'chapter.each("05.3 Side by side", parts.all(chapter))\nother.run("not ours")',
        'chapter.needs("04_grub", thing)',
        'chapter.run("05.4 Act", thing)',
        'chapter.check("05.5 Holds", thing)',
        'chapter.picture("05.6 Drawn", figure)',
        "chapter.close()",
    )
    assert [step.title for step in step_cells(path)] == [
        "05.1 The machine",
        "05.2 Write it",
        "05.3 Side by side",
        "05.4 Act",
        "05.5 Holds",
        "05.6 Drawn",
    ]


def test_runs_are_found_by_path_name_and_as_the_last(tmp_path: Path) -> None:
    kept = tmp_path / "runs"
    with pytest.raises(BadInput, match="there is no run in"):
        runs.find(kept, "last")
    for name in ("20260101T000000-b", "20260102T000000-a"):
        Journal(kept / name).append(chapter="00_x", phase="open", status="apply")
    assert runs.find(kept, "last").name == "20260102T000000-a"
    assert runs.find(kept, "20260101T000000-b").name == "20260101T000000-b"
    assert runs.find(tmp_path, str(kept / "20260101T000000-b")).name == "20260101T000000-b"
    with pytest.raises(BadInput, match="cannot find the run 20260101T000000-c") as caught:
        runs.find(kept, "20260101T000000-c")
    assert caught.value.hint == "20260101T000000-b"


def test_a_run_record_is_never_written_over(tmp_path: Path) -> None:
    runs.create(tmp_path, {"site": "one"})
    with pytest.raises(FileExistsError):
        runs.create(tmp_path, {"site": "two"})
    assert runs.read(tmp_path) == {"site": "one"}


@pytest.mark.parametrize("text", [None, "", "{", "[]"])
def test_a_run_record_that_cannot_be_read(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(BadInput, match=r"run\.json"):
        runs.read(tmp_path)


def test_a_run_is_locked_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LOCK_SECONDS", 0.3)
    with runs.run_lock(tmp_path), pytest.raises(BadInput, match="another process"):
        runs.run_lock(tmp_path).__enter__()
    with runs.run_lock(tmp_path):
        pass


def record(journal: Journal, step: str, status: str, **more: object) -> None:
    phase = "running" if status == "running" else "final"
    fields = {"chapter": "01_x", "step": step, "title": f"{step} Title", "phase": phase}
    journal.append(**fields, status=status, **more)


def opened(folder: Path) -> Journal:
    journal = Journal(folder)
    journal.append(chapter="01_x", phase="open", status="apply")
    return journal


def closed(journal: Journal) -> None:
    journal.append(chapter="01_x", phase="close", status="ok")


def test_a_chapter_is_done_only_with_its_end(tmp_path: Path) -> None:
    assert runs.Chapters(tmp_path).state("01_x").status == runs.NOT_RUN
    journal = opened(tmp_path)
    record(journal, "01.1", "changed", seconds=1.5)
    assert runs.Chapters(tmp_path).state("01_x").status == runs.UNFINISHED
    closed(journal)
    state = runs.Chapters(tmp_path).state("01_x")
    assert state.status == runs.DONE and state.counts == {"changed": 1}
    assert state.steps[0].seconds == 1.5


@pytest.mark.parametrize("status", runs.BAD)
def test_a_chapter_with_a_bad_step_is_not_done_even_if_closed(tmp_path: Path, status: str) -> None:
    journal = opened(tmp_path)
    record(journal, "01.1", status, message="why")
    record(journal, "01.2", "ok")
    closed(journal)
    state = runs.Chapters(tmp_path).state("01_x")
    assert (state.status, state.message) == (status, "why")


def test_a_later_attempt_counts(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    record(journal, "01.1", "running")
    opened(tmp_path)
    record(journal, "01.1", "aborted")
    record(journal, "01.1", "changed")
    closed(journal)
    state = runs.Chapters(tmp_path).state("01_x")
    assert state.status == runs.DONE and state.counts == {"changed": 1}
    opened(tmp_path)
    assert runs.Chapters(tmp_path).state("01_x").status == runs.UNFINISHED


def test_steps_are_shown_as_the_journal_grows(tmp_path: Path) -> None:
    console = Console(record=True, width=100, force_terminal=False, color_system=None)
    journal = opened(tmp_path)
    record(journal, "01.0", "ok", seconds=1)
    with Follower(console, tmp_path, {"01_x": ["01.1 Title", "01.2 Title"]}) as follower:
        follower.begin("01_x")
        record(journal, "01.1", "changed", seconds=12)
        record(journal, "01.2", "running")
        record(journal, "01.2", "failed", seconds=0.5)
        follower.end(runs.Chapters(tmp_path).state("01_x"))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert lines[:3] == ["01_x: 2 steps", "changed 01.1 Title 12 s", "failed 01.2 Title 0.5 s"]
    assert lines[3].startswith("01_x: failed")
    assert len(lines) == 4


@pytest.mark.parametrize(("status", "red"), [("would change", False), ("would be refused", True)])
def test_only_what_would_be_refused_is_red(tmp_path: Path, status: str, red: bool) -> None:
    console = Console(record=True, width=100, force_terminal=True, color_system="standard")
    journal = opened(tmp_path)
    with Follower(console, tmp_path, {"01_x": ["01.1 Title"]}):
        record(journal, "01.1", status, message="unknown until step 01.0 has made it")
    lines = console.export_text(styles=True).splitlines()
    (said,) = [line for line in lines if "unknown until" in line]
    assert ("\x1b[1;31m" in said) is red


def test_the_table_of_a_run_takes_no_text_for_markup(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    record(journal, "01.1", "ok", seconds=1)
    journal.append(
        chapter="01_x", step="01.2", title="01.2 [red]x[/red] [/]", phase="final", status="odd"
    )
    console = Console(record=True, width=100, force_terminal=False)
    console.print(summary(runs.states(tmp_path)))
    text = console.export_text()
    assert "[red]x[/red] [/]" in text and "0 of 1 chapters, 2 steps" in text


@pytest.mark.parametrize("name", ["{secret}", "../secret", "output/link"])
@pytest.mark.parametrize("kind", ["attachment", "output", "console"])
def test_a_report_shows_no_file_from_outside_the_run(tmp_path: Path, name: str, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("PRIVATE KEY")
    folder = tmp_path / "run"
    journal = opened(folder)
    (folder / "output" / "link").symlink_to(secret)
    path = name.format(secret=secret)
    named = {"path": path, "sha256": hashlib.sha256(secret.read_bytes()).hexdigest()}
    if kind == "console":
        (folder / "console").mkdir()
        (folder / "console" / "dom0.log").symlink_to(folder / path)
    elif kind == "output":
        command = {"phase": "look", "command": "true", "status": 0, "output": named}
        record(journal, "01.1", "ok", commands=[command])
    else:
        record(journal, "01.1", "ok", attachments=[named])
    closed(journal)
    with pytest.raises(JournalDamaged, match="is not inside the run's folder"):
        write(folder)
    assert not (folder / "report.html").exists()
    if kind != "console":
        assert any("not inside the run's folder" in said for said in audit.inspect(folder).problems)


def test_a_report_needs_nothing_but_itself(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    path, digest = journal.save_output("01.1", b"1\n2\n")
    table, _ = journal.save_output("01.1-table", b"key,value\nmemory,<b>4</b>\n", ".csv")
    picture, _ = journal.save_output("01.1-picture", b"\x89PNG", ".png")
    record(
        journal,
        "01.1",
        "changed",
        seconds=1,
        commands=[
            {
                "phase": "change",
                "command": "seq 2",
                "status": 0,
                "output": {"path": path, "sha256": digest},
            },
            {"phase": "look", "command": "true", "status": 0, "output": "<looked>"},
        ],
        attachments=[{"path": table}, {"path": picture}, {"path": "output/gone.csv"}],
        difference={"": {"summary": "write <x>", "diff": "--- a\n+++ b\n+new\n", "rows": []}},
    )
    closed(journal)
    (tmp_path / "console").mkdir()
    (tmp_path / "console" / "dom0.log").write_bytes(b"\x1b[1mXen 4.17\x1b[0m\r\n<login>:")
    place = write(tmp_path)
    page = place.read_text()
    assert "dom0.log" in page and "Xen 4.17\n&lt;login&gt;:" in page
    assert place.stat().st_mode & 0o777 == 0o600
    before = journal.records()[-1]
    assert (before["phase"], before["path"]) == ("kept", "report.html")
    assert before["prev"] in page and "the chain holds" in page
    assert (
        "write &lt;x&gt;" in page and "&lt;b&gt;4&lt;/b&gt;" in page and "$ seq 2\n1\n2\n" in page
    )
    assert "looked: 1 command<" in page and "&lt;looked&gt;" in page
    assert "<script" not in page and "<link" not in page and "http" not in page
    (tmp_path / "journal.jsonl").write_text(
        (tmp_path / "journal.jsonl").read_text().replace("changed", "ok")
    )
    assert "the journal&#39;s chain breaks at line" in render(tmp_path)
    with pytest.raises(JournalDamaged, match="chain breaks at line"):
        write(tmp_path)


def test_a_report_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no journal yet"):
        write(tmp_path)


def test_the_record_of_a_run_can_be_read_by_others(notebooks: Path, file: Path) -> None:
    record = runs.environment(notebooks)
    assert record["packages"]["papermill"] and record["python"].startswith("3.")
    assert json.loads(json.dumps(record)) == record
