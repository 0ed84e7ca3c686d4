"""A run that a worker has sent, an image of a host: taken only whole, and as it was recorded."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from xenlab.errors import JournalDamaged, StepFailed
from xenlab.fleet import carry
from xenlab.fleet.carry import fetched_image, packed, unpack
from xenlab.host import Host
from xenlab.journal import Journal
from xenlab.runs import audit
from xenlab.transport.local import Local


def made(folder: Path) -> Path:
    """A small run that has ended."""
    journal = Journal(folder)
    journal.append(chapter="01_first", phase="open", status="apply")
    path, digest = journal.save_output("01.1", b"printed\n")
    commands = [{"phase": "look", "output": {"path": path, "sha256": digest, "bytes": 8}}]
    journal.append(chapter="01_first", phase="final", step="01.1", status="ok", commands=commands)
    journal.append(chapter="01_first", phase="close", status="ok")
    audit.end(folder, 0)
    return folder


def test_a_run_arrives_whole_and_as_it_was_recorded(tmp_path: Path) -> None:
    away, here = tmp_path / "away" / "run", tmp_path / "here"
    here.mkdir()
    files = packed(made(away))
    unpack(here, "run", files)
    assert packed(here / "run") == files
    assert audit.inspect(here / "run").problems == ()
    assert [path.name for path in here.iterdir()] == ["run"]
    assert (here / "run").stat().st_mode & 0o777 == 0o700


def test_a_run_that_went_on_takes_the_place_of_its_beginning(tmp_path: Path) -> None:
    away, here = tmp_path / "away" / "run", tmp_path / "here"
    here.mkdir()
    unpack(here, "run", packed(made(away)))
    Journal(away).append(chapter="02_second", phase="open", status="apply")
    audit.end(away, 0)
    unpack(here, "run", packed(away))
    assert packed(here / "run") == packed(away)


def test_what_is_not_as_recorded_is_not_taken(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    files = packed(made(tmp_path / "away" / "run"))
    (output,) = (name for name in files if name.startswith("output/"))
    with pytest.raises(JournalDamaged, match="was changed since it was recorded"):
        unpack(here, "run", files | {output: b"other\n"})
    lines = files["journal.jsonl"].splitlines(keepends=True)
    with pytest.raises(JournalDamaged, match="cannot take the run run"):
        unpack(here, "run", files | {"journal.jsonl": b"".join(lines[1:])})
    with pytest.raises(JournalDamaged, match="not inside the run's folder"):
        unpack(here, "run", files | {"../escaped": b"x"})
    with pytest.raises(JournalDamaged, match="no name of a run"):
        unpack(here, "../run", files)
    assert list(here.iterdir()) == [] and not (tmp_path / "escaped").exists()


def test_another_run_does_not_take_its_place(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    first, second = (made(tmp_path / name / "run") for name in ("one", "two"))
    unpack(here, "run", packed(first))
    with pytest.raises(JournalDamaged, match="another run than the one of that name here"):
        unpack(here, "run", packed(second))
    assert packed(here / "run") == packed(first)


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image with its record, of three pieces, and an empty cache."""
    monkeypatch.setenv("XENLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(carry, "PIECE", 1000)
    data = bytes(range(250)) * 10
    path = tmp_path / "base.tar.zst"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    record = f"base=b\nstage=complete s\nsha256={digest}\nbytes={len(data)}\nmodified=1.0\n"
    Path(f"{path}.info").write_text(record)
    return path


def test_an_image_is_fetched_once_and_lies_whole_in_the_cache(image: Path) -> None:
    host, go_on = Host(Local()), threading.Event()
    found = fetched_image(host, str(image), go_on)
    assert found.read_bytes() == image.read_bytes()
    assert Path(f"{found}.info").read_text() == Path(f"{image}.info").read_text()
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    assert Path(f"{found}.sha256").read_text() == f"{digest}  base.tar.zst\n"
    assert (found.parent.stat().st_mode & 0o777, found.stat().st_mode & 0o777) == (0o700, 0o600)
    # by its digest: what is there already is not asked for again
    image.unlink()
    assert fetched_image(host, str(image), go_on) == found


def test_of_an_image_that_is_not_as_recorded_nothing_is_left(image: Path) -> None:
    whole = image.read_bytes()
    for data in (whole[:-1], whole + b"more", whole[:-1] + b"x", b""):
        image.write_bytes(data)
        with pytest.raises(StepFailed, match="it is not as its record says"):
            fetched_image(Host(Local()), str(image), threading.Event())
    image.write_bytes(whole)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(StepFailed, match="the run was stopped"):
        fetched_image(Host(Local()), str(image), stopped)
    shelf = image.parent / "cache" / "image"
    assert [path for path in shelf.iterdir() if path.is_dir()] == []
