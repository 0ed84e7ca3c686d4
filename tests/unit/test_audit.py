"""The audit trail: what was recorded cannot be changed unseen, and who signed it is known."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlab.errors import BadInput, JournalDamaged
from xenlab.journal import Journal
from xenlab.runs import audit
from xenlab.runs import folder as runs


def make_run(folder: Path) -> Path:
    """A run with a step's output, an attachment and a notebook."""
    journal = Journal(folder)
    journal.append(chapter="04_grub", phase="open", status="apply")
    output, digest = journal.save_output("04.1", b"Installing\n")
    table, table_digest = journal.save_output("04.2-table", b"a,b\n1,2\n", ".csv")
    journal.append(
        chapter="04_grub",
        step="04.1",
        title="04.1 Install",
        phase="final",
        status="changed",
        commands=[{"command": "grub-install", "output": {"path": output, "sha256": digest}}],
        attachments=[{"path": table, "sha256": table_digest}],
    )
    journal.append(chapter="04_grub", phase="close", status="ok")
    (folder / "04_grub.ipynb").write_text('{"cells": []}')
    (folder / "console").mkdir()
    (folder / "console" / "dom0.log").write_text("login:")
    audit.record_files(folder)
    return folder


@cache
def made() -> tuple[tuple[str, bytes], ...]:
    """The files of such a run: made once, since each record is synced."""
    with TemporaryDirectory() as place:
        run = make_run(Path(place) / "run")
        found = [path for path in run.rglob("*") if path.is_file()]
        return tuple((str(path.relative_to(run)), path.read_bytes()) for path in found)


def make_key(place: Path) -> Path:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", place.name, "-f", str(place)]
    subprocess.run(words, check=True, timeout=60)
    return place


def signers(place: Path, key: Path, name: str = "anna@castle") -> Path:
    place.write_text(f"{name} {key.with_suffix('.pub').read_text()}")
    return place


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "20260101T000000-lab")


def test_a_run_as_it_was_recorded(run: Path) -> None:
    found = audit.inspect(run)
    assert found.problems == ()
    assert (found.records, found.files, found.signed_by) == (5, 4, "")
    assert found.head == Journal(run).head()


def test_what_is_kept_is_recorded_once(run: Path) -> None:
    before = Journal(run).head()
    audit.record_files(run)
    assert Journal(run).head() == before


@pytest.mark.parametrize(
    "name", ["04_grub.ipynb", "output/04.1.txt", "output/04.2-table.csv", "console/dom0.log"]
)
def test_a_file_that_was_changed_or_is_gone_is_named(run: Path, name: str) -> None:
    place = run / name
    kept = place.read_bytes()
    place.write_bytes(kept + b" ")
    assert audit.inspect(run).problems == (f"{name}: it was changed since it was recorded",)
    place.unlink()
    assert audit.inspect(run).problems == (f"{name}: it is gone",)
    place.write_bytes(kept)
    assert audit.inspect(run).problems == ()


def test_what_went_into_a_command_is_named_by_its_record(run: Path) -> None:
    path, digest = Journal(run).save_output("04.3-input", b"label: gpt\n")
    named = {"path": path, "sha256": digest, "bytes": 11}
    commands = [{"command": "sfdisk /dev/vda", "input": named}, {"command": "true"}]
    Journal(run).append(step="04.3", phase="final", status="changed", commands=commands)
    assert audit.inspect(run).problems == ()
    (run / path).write_bytes(b"label: dos\n")
    assert audit.inspect(run).problems == (f"{path}: it was changed since it was recorded",)


@pytest.mark.parametrize("name", ["report.html", "journal.html", "run.lock", ".hidden"])
def test_only_the_run_s_own_files_go_without_a_record(run: Path, name: str) -> None:
    (run / "output" / name).write_text("made up")
    assert audit.inspect(run).problems == (f"output/{name}: no record names it",)


def test_nobody_vouches_for_what_a_link_leads_to(run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("PRIVATE KEY")
    (run / "output" / "link").symlink_to(tmp_path / "secret")
    audit.record_files(run)
    assert audit.inspect(run).problems == ("output/link: no record names it",)


def test_a_file_that_nobody_recorded_is_named(run: Path) -> None:
    (run / "output" / "04.9.txt").write_text("made up")
    assert audit.inspect(run).problems == ("output/04.9.txt: no record names it",)


def test_a_chapter_that_was_opened_again_before_its_end_was_cut_short(tmp_path: Path) -> None:
    """A kernel that was killed in a run of no `xenlab run`, whose notebook was executed again."""
    journal = Journal(tmp_path / "run")
    journal.append(chapter="04_grub", phase="open", status="apply")
    path, _ = journal.save_output("04.1-1", b"printed, but the kernel died before the record")
    journal.append(chapter="04_grub", phase="open", status="apply")
    journal.append(chapter="04_grub", phase="close", status="ok")
    found = audit.inspect(tmp_path / "run")
    assert (found.problems, found.cut) == (
        (),
        (
            "cut short in 04_grub, which was opened again without an end",
            f"{path}: no record names it yet",
        ),
    )
    (tmp_path / "run" / "notes.txt").write_text("made up")
    assert audit.inspect(tmp_path / "run").problems == ("notes.txt: no record names it",)
    audit.end(tmp_path / "run", 0)
    found = audit.inspect(tmp_path / "run")
    assert (found.problems, found.cut) == ((), ())


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_flipped_byte_in_the_journal_is_found(data: st.DataObject) -> None:
    with TemporaryDirectory() as place:
        run = Path(place)
        for name, data_of in made():
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).write_bytes(data_of)
        path = run / "journal.jsonl"
        raw = bytearray(path.read_bytes())
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(raw)
        (problem,) = audit.inspect(run).problems
        assert "line " in problem


def test_a_signed_run_is_of_its_signer(run: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path / "anna")
    signature = audit.sign(run, key)
    assert signature.read_text().startswith("-----BEGIN SSH SIGNATURE")
    found = audit.inspect(run, signers(tmp_path / "signers", key))
    assert found.problems == ()
    assert found.signed_by.startswith("anna@castle, ED25519 key SHA256:")
    assert "which nobody was asked about" in audit.inspect(run).signed_by


@pytest.mark.parametrize("name", ["output/04.9.txt", "console/dom0.log", "run.json"])
def test_nothing_is_added_to_a_signed_run_that_was_cut_short(tmp_path: Path, name: str) -> None:
    run, key = tmp_path / "run", make_key(tmp_path / "anna")
    journal = Journal(run)
    journal.append(chapter="04_grub", phase="open", status="apply")
    path, _ = journal.save_output("04.1", b"printed, but the kernel died before the record")
    audit.sign(run, key)
    found = audit.inspect(run, signers(tmp_path / "signers", key))
    assert found.problems == () and found.signed_by.startswith("anna@castle")
    assert found.cut == ("cut short in 04_grub: no record says that it ended",)
    (run / path).write_text("it went well")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("it went well")
    said = {f"{path}: it was changed since it was recorded", f"{name}: no record names it"}
    assert {*audit.inspect(run, tmp_path / "signers").problems} == said


def test_a_run_that_goes_on_is_not_signed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "LOCK_SECONDS", 0.1)
    with runs.run_lock(run), pytest.raises(BadInput, match="because another process does"):
        audit.sign(run, make_key(tmp_path / "anna"))


def test_a_run_of_another_key_does_not_verify(run: Path, tmp_path: Path) -> None:
    audit.sign(run, make_key(tmp_path / "mallory"))
    (problem,) = audit.inspect(run, signers(tmp_path / "s", make_key(tmp_path / "anna"))).problems
    assert "which" in problem and "does not name" in problem


def test_a_signature_made_for_something_else_does_not_count(run: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path / "anna")
    audit.sign(run, key)
    (run / audit.SIGNATURE).unlink()
    words = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", "file"]
    subprocess.run([*words, str(run / audit.STATEMENT)], check=True, timeout=60)
    (problem,) = audit.inspect(run, signers(tmp_path / "s", key)).problems
    assert "not one of what stands in" in problem


def test_a_run_that_went_on_after_it_was_signed(run: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path / "anna")
    audit.sign(run, key)
    Journal(run).append(chapter="05_x", phase="open", status="apply")
    (problem,) = audit.inspect(run, signers(tmp_path / "s", key)).problems
    assert "another state of the run" in problem


def test_the_signature_of_another_run_does_not_count(run: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path / "anna")
    other = make_run(tmp_path / "other")
    audit.sign(other, key)
    for name in (audit.STATEMENT, audit.SIGNATURE):
        shutil.copy(other / name, run / name)
    (problem,) = audit.inspect(run).problems
    assert "another state of the run" in problem


def test_an_unsigned_run_where_a_signature_is_wanted(run: Path, tmp_path: Path) -> None:
    asked = signers(tmp_path / "signers", make_key(tmp_path / "anna"))
    assert audit.inspect(run, asked).problems == ("nobody has signed it",)


def test_what_does_not_hold_is_not_signed(run: Path, tmp_path: Path) -> None:
    (run / "04_grub.ipynb").unlink()
    with pytest.raises(JournalDamaged, match="it is gone"):
        audit.sign(run, make_key(tmp_path / "anna"))
    assert not (run / audit.STATEMENT).exists()


def test_bad_input(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot sign with this key"):
        audit.sign(run, tmp_path / "no-key")
    assert audit.inspect(run).problems == ()
    with pytest.raises(BadInput, match="there is no such file of signers"):
        audit.inspect(run, tmp_path / "nobody")
    with pytest.raises(BadInput, match="because it has no journal"):
        audit.inspect(tmp_path)
