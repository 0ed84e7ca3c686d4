"""A run's files: what people read is named by the chain, and no link leads out of the folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_notebook
from tests.smalldisk import small_disk
from tests.unit.test_audit import make_key

from xenlab import durable
from xenlab.chapter.machine_lock import Hold
from xenlab.durable import free_place
from xenlab.errors import BadInput, JournalDamaged
from xenlab.journal import Journal, Reader
from xenlab.runs import audit, execute, report
from xenlab.runs import folder as runs

ROOT = Path(__file__).parents[2]


def begun(folder: Path) -> Journal:
    durable.new_folder(folder)
    versions = {"xenlab": "0.1.0", "python": "3.13", "git": ""}
    facts = {"site": "lab", "started": "2026-01-01T00:00:00", "mode": "apply", "file": "lab.yaml"}
    runs.create(folder, {**facts, "versions": versions, "chapters": ["04_grub"]})
    runs.begin(folder)
    return Journal(folder)


def chapter(journal: Journal, message: str = "") -> None:
    journal.append(chapter="04_grub", phase="open", status="apply")
    step = {"step": "04.1", "title": "04.1 Install", "phase": "final", "status": "changed"}
    journal.append(chapter="04_grub", **step, seconds=1, message=message)
    journal.append(chapter="04_grub", phase="close", status="ok")


def closed(folder: Path) -> execute.Outcome:
    return execute.close(execute.Outcome(folder, (), 0), lambda: None)


def modes(folder: Path) -> dict[str, set[int]]:
    """The modes of a folder and of all folders and files below it."""
    found: dict[str, set[int]] = {"folders": {folder.stat().st_mode & 0o7777}, "files": set()}
    for path in folder.rglob("*"):
        found["folders" if path.is_dir() else "files"].add(path.stat().st_mode & 0o7777)
    return found


def test_a_run_is_its_owners_alone_unless_the_folder_of_the_runs_is_a_groups(
    tmp_path: Path,
) -> None:
    for name, mode, wanted in (
        ("own", 0o755, {"folders": {0o700}, "files": {0o600}}),
        ("shared", 0o2770, {"folders": {0o2750}, "files": {0o640}}),
    ):
        runs_folder = tmp_path / name
        runs_folder.mkdir()
        runs_folder.chmod(mode)
        folder = durable.new_run_folder(runs_folder, "lab")
        chapter(begun(folder))
        Journal(folder).save_input(b"given")
        Journal(folder).save_output("04.1", b"said")
        with runs.run_lock(folder):
            assert modes(folder) == wanted
            assert runs.locked(folder)
        closed(folder)
        assert modes(folder) == wanted
        assert not runs.locked(folder)


def test_a_groups_member_reads_another_ones_run(tmp_path: Path) -> None:
    runs_folder = tmp_path / "runs"
    runs_folder.mkdir()
    runs_folder.chmod(0o2770)
    folder = durable.new_run_folder(runs_folder, "lab")
    chapter(begun(folder))
    closed(folder)
    root = os.geteuid() == 0
    own = ["chown", "-R", f"65534:{os.getegid()}", str(folder)]
    subprocess.run([*([] if root else ["sudo", "-n"]), *own], check=True, timeout=60)
    # root is a member like any other without these
    powerless = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if root else []
    for words, said in (
        (["runs"], "lab"),
        (["show", str(folder)], "04.1 Install"),
        (["audit", "verify", str(folder)], "are as recorded"),
    ):
        command = [*powerless, sys.executable, "-m", "xenlab", *words]
        environment = os.environ | {"XENLAB_RUNS": str(runs_folder)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert said in done.stdout


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that ended, with a report and a kernels' log."""
    folder = tmp_path / "20260101T000000-lab"
    chapter(begun(folder))
    (folder / "kernels.log").write_text("a warning of a library\n")
    closed(folder)
    return folder


def test_all_that_people_read_is_named(run: Path) -> None:
    found = audit.inspect(run)
    assert (found.problems, found.cut) == ((), ())
    named = {record["path"] for record in Journal(run).records() if record["phase"] == "kept"}
    assert named == {"report.html", "kernels.log"}
    assert Journal(run).records()[-1]["phase"] == "end"


@pytest.mark.parametrize("name", ["report.html", "kernels.log"])
def test_what_people_read_cannot_be_forged(run: Path, tmp_path: Path, name: str) -> None:
    audit.sign(run, make_key(tmp_path / "anna"))
    (run / name).write_text("all went well")
    assert audit.inspect(run).problems == (f"{name}: it was changed since it was recorded",)


@pytest.mark.parametrize(
    "name",
    ["journal.html", "journal.torn", "kernels.2.log", ".hidden", "input/.x.new", "index.html"],
)
def test_a_file_beside_the_run_s_own_is_a_finding(run: Path, name: str) -> None:
    (run / name).write_text("made up")
    assert audit.inspect(run).problems == (f"{name}: no record names it",)


def test_what_is_no_file_is_a_finding_too(run: Path) -> None:
    os.mkfifo(run / "output" / "pipe")
    audit.record_files(run)
    assert audit.inspect(run).problems == ("output/pipe: no record names it",)


def test_a_statement_without_its_signature_is_a_finding(run: Path) -> None:
    (run / audit.STATEMENT).write_text("run of somebody, signed by anna")
    assert audit.inspect(run).problems == ("nobody has signed it",)


def test_the_report_of_a_run_stays_as_it_was_recorded(run: Path, tmp_path: Path) -> None:
    """Also when another version would make another one: what was signed is what is read."""
    audit.sign(run, make_key(tmp_path / "anna"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert report.write(run) == run / "report.html"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_signed_run_gets_no_new_report_but_elsewhere(run: Path, tmp_path: Path) -> None:
    audit.sign(run, make_key(tmp_path / "anna"))
    (run / "report.html").unlink()
    with pytest.raises(BadInput, match="the run is signed") as caught:
        report.write(run)
    assert caught.value.hint == "write it elsewhere with --output, or sign the run again after it"
    assert "04.1 Install" in report.render(run)
    assert audit.inspect(run).problems == ("report.html: it is gone",)


def test_a_report_that_is_gone_or_forged_is_made_anew(run: Path) -> None:
    for spoil in (Path.unlink, lambda place: place.write_text("all went well")):
        spoil(run / "report.html")
        assert audit.inspect(run).problems != ()
        assert "04.1 Install" in report.write(run).read_text()
        assert audit.inspect(run).problems == ()


def test_a_run_that_goes_on_gets_another_report_and_another_log(run: Path) -> None:
    audit.record_files(run)
    runs.begin(run)
    chapter(Journal(run), "the second time")
    assert free_place(run, "kernels", ".log").name == "kernels.2.log"
    (run / "kernels.2.log").write_text("")
    closed(run)
    assert "the second time" in (run / "report.html").read_text()
    found = audit.inspect(run)
    assert (found.problems, found.cut) == ((), ())


def test_a_run_of_no_xenlab_run_gets_a_report_that_is_named(tmp_path: Path) -> None:
    chapter(Journal(tmp_path / "run"))
    report.write(tmp_path / "run")
    assert audit.inspect(tmp_path / "run").problems == ()


@pytest.mark.parametrize("again", [False, True], ids=["first", "second"])
def test_a_power_cut_before_the_report_takes_its_place_is_no_change(
    tmp_path: Path, again: bool
) -> None:
    folder = tmp_path / "run"
    chapter(begun(folder))
    if again:
        closed(folder)
        runs.begin(folder)
        chapter(Journal(folder), "the second time")

    # what is on disk then: `durable.replace`, but for its last act
    page = report.render(folder).encode()
    durable.create(folder / ".report.html.new", page)
    digest = hashlib.sha256(page).hexdigest()
    Journal(folder).append(phase="kept", path="report.html", sha256=digest)
    found = audit.inspect(folder)
    assert found.problems == ()
    assert "report.html: cut short before the new one took its place" in found.cut
    assert ".report.html.new: no record names it yet" in found.cut
    if again:
        kept = (folder / "report.html").read_bytes()
        (folder / "report.html").write_text("all went well")
        assert audit.inspect(folder).problems != ()
        (folder / "report.html").write_bytes(kept)
    audit.record_files(folder)
    closed(folder)
    found = audit.inspect(folder)
    assert (found.problems, found.cut) == ((), ())


@contextmanager
def read_only(copied: Path, place: Path) -> Iterator[Path]:
    with small_disk(place, 4096) as disk:
        shutil.copytree(copied, disk / copied.name)
        root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        words = [*root, "mount", "-o", "remount,ro", str(disk)]
        subprocess.run(words, check=True, timeout=60)
        yield disk / copied.name


def test_a_run_on_a_read_only_disk(run: Path, tmp_path: Path) -> None:
    with read_only(run, tmp_path / "one") as copy:
        assert report.write(copy) == copy / "report.html"
        assert audit.inspect(copy).problems == ()
    (run / "report.html").unlink()
    with read_only(run, tmp_path / "two") as copy:
        with pytest.raises(BadInput, match=r"cannot write .*report.html: because Read-only file"):
            report.write(copy)
        assert "04.1 Install" in report.render(copy)


def outside(tmp_path: Path, run: Path, name: str, kept: bytes = b"PRIVATE KEY") -> Path:
    """A file of this machine that a link in the run leads to."""
    secret = tmp_path / "secret"
    secret.write_bytes(kept)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(secret)
    return secret


READERS: dict[str, Callable[[Path], object]] = {
    "read": runs.read,
    "states": runs.states,
    "begin": runs.begin,
    "report": report.write,
    "render": lambda folder: report.render(folder),
    "open": lambda folder: Hold.within(folder, "04_grub"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_run_record_that_is_a_link_is_not_followed(
    run: Path, tmp_path: Path, reader: str
) -> None:
    facts = json.loads((run / "run.json").read_text()) | {"site": "PRIVATE KEY"}
    (run / "report.html").unlink()
    outside(tmp_path, run, "run.json", json.dumps(facts).encode())
    with pytest.raises(JournalDamaged, match=r"run\.json is not inside the run's folder"):
        READERS[reader](run)
    assert any("run.json is not inside" in said for said in audit.inspect(run).problems)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        *(("run.json", reader) for reader in READERS),
        *(("journal.jsonl", reader) for reader in ("states", "report", "render")),
        ("console/dom0.log", "render"),
    ],
)
def test_a_pipe_in_a_run_is_not_waited_for(run: Path, name: str, reader: str) -> None:
    (run / "report.html").unlink()
    (run / name).unlink(missing_ok=True)
    (run / name).parent.mkdir(exist_ok=True)
    os.mkfifo(run / name)
    with pytest.raises(JournalDamaged, match=f"{name} is no regular file"):
        READERS[reader](run)
    assert any(said.startswith(f"{name}") for said in audit.inspect(run).problems)


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "journal": ("journal.jsonl", lambda run: Journal(run).append(phase="x")),
    "followed": ("journal.jsonl", lambda run: Reader(run / "journal.jsonl").fresh()),
    "head": ("journal.head", lambda run: Journal(run).append(phase="x")),
    "reserve": (".reserve", lambda run: Journal(run).append(phase="open")),
    "lock": ("run.lock", lambda run: runs.run_lock(run).__enter__()),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_written_or_read_where_a_link_leads(
    run: Path, tmp_path: Path, writer: str
) -> None:
    name, act = WRITERS[writer]
    secret = outside(tmp_path, run, name, bytes(300_000))
    with pytest.raises(JournalDamaged, match="is not inside the run's folder"):
        act(run)
    assert secret.read_bytes() == bytes(300_000)


@pytest.mark.parametrize("name", ["output", "input"])
def test_no_output_is_kept_where_a_link_leads(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (run / name).rmdir()
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JournalDamaged, match=f"{name} is not inside the run's folder"):
        Journal(run).save_output("04.1", b"printed")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", [audit.STATEMENT, audit.SIGNATURE])
def test_a_signature_is_not_put_where_a_link_leads(run: Path, tmp_path: Path, name: str) -> None:
    secret = outside(tmp_path, run, name)
    key = make_key(tmp_path / "anna")
    (run / {audit.STATEMENT, audit.SIGNATURE}.difference({name}).pop()).write_text("x")
    assert any("is not inside" in said for said in audit.inspect(run).problems)
    with pytest.raises(JournalDamaged, match="is not inside the run's folder"):
        audit.sign(run, key)
    assert secret.read_bytes() == b"PRIVATE KEY"


def test_a_link_that_leads_nowhere_takes_a_name(tmp_path: Path) -> None:
    (tmp_path / "kernels.log").symlink_to(tmp_path / "elsewhere")
    assert free_place(tmp_path, "kernels", ".log") == tmp_path / "kernels.2.log"


@pytest.mark.parametrize(("link", "name"), [(True, "04_grub"), (False, "../../stolen")])
def test_pages_are_made_of_nothing_from_outside_the_run(
    tmp_path: Path, link: bool, name: str
) -> None:
    run = tmp_path / "runs" / "20260101T000000-lab"
    journal = begun(run)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "chapters": [name]}))
    journal.append(chapter=name, phase="open", status="apply")
    secret = tmp_path / "stolen.ipynb"
    nbformat.write(new_notebook(), secret)
    if link:
        (run / "04_grub.ipynb").symlink_to(secret)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build"))
    for beside in ("notebooks", "parameters"):
        (tmp_path / beside).symlink_to(ROOT / beside)
    words = [sys.executable, str(tmp_path / "docs" / "collect.py"), str(run)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    said = "is not inside the run's folder" if link else "a chapter that is none of ours"
    assert said in done.stderr, done.stderr
    assert not list((tmp_path / "docs" / "chapters").glob("*.ipynb"))
