"""What a lab takes before and beside a run: written down when it begins and when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xenlab import cache
from xenlab.cache import Phase, cache_root, cached


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XENLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_phase_has_a_begin_and_an_end() -> None:
    before = time.time()
    with cache.phase_recorded("stage"):
        (open_,) = cache.load_phases()
        assert open_.what == "stage" and open_.ended == 0
    (closed,) = cache.load_phases()
    assert closed.began == open_.began
    assert before - 0.01 <= closed.began <= closed.ended <= time.time() + 0.01


def test_what_fails_has_no_end(root: Path) -> None:
    with pytest.raises(RuntimeError), cache.phase_recorded("stage"):
        raise RuntimeError
    assert [phase.ended for phase in cache.load_phases()] == [0]


def test_what_is_in_the_cache_already_is_no_phase() -> None:
    @cache.phase_recorded("thing")
    def build(folder: Path) -> None:
        (folder / "thing").touch()

    for _ in range(2):
        cached("kind", {}, build)
    assert len(cache.load_phases()) == 1


def test_processes_write_side_by_side() -> None:
    text = """
from xenlab.cache import phase_recorded
for number in range(50):
    with phase_recorded("one of many"):
        pass
"""
    found = [subprocess.Popen([sys.executable, "-c", text]) for _ in range(3)]
    assert [process.wait(120) for process in found] == [0, 0, 0]
    lines = (cache_root() / cache.PHASES).read_text().splitlines()
    assert len(lines) == 300 and all(line.endswith("}") for line in lines)


def test_a_line_that_was_cut_off_tells_nothing(root: Path) -> None:
    root.mkdir()
    good = '{"what": "stage", "began": 1, "ended": 3}'
    text = f'{good}\n7\n{{"what": "other"}}\n{{"what": "sta'
    (root / cache.PHASES).write_bytes(text.encode() + b"\xff\0")
    assert cache.load_phases() == [Phase("stage", 1, 3)]


def test_work_goes_on_where_nothing_can_be_written(root: Path) -> None:
    root.write_text("no folder")
    with cache.phase_recorded("stage"):
        pass
    assert cache.load_phases() == []


def test_what_has_not_changed_is_not_read_again(root: Path) -> None:
    root.mkdir()
    file = root / cache.PHASES
    file.write_text('{"what": "stage", "began": 1, "ended": 3}\n')
    before = file.stat()
    assert cache.load_phases() == [Phase("stage", 1, 3)]
    file.write_text('{"what": "stage", "began": 1, "ended": 4}\n')
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.load_phases() == [Phase("stage", 1, 3)]
    with cache.phase_recorded("rescue"):
        pass
    assert [phase.ended for phase in cache.load_phases()][:1] == [4]
