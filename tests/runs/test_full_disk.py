"""This machine's disk is full, or fills up in the middle of a run: one sentence, and the truth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.smalldisk import small_disk
from tests.ssh.small import Done, Site

from xenlab.journal import Journal

FILL = """
from pathlib import Path
with Path("{place}").open("wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
"""

FULL = "cannot go on: because the disk"


@pytest.fixture
def filler(site: Site) -> Iterator[Path]:
    with small_disk(site.runs, 6 * 1024) as disk:
        yield disk / "filler"


def said_once(done: Done) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Errno" not in done.stdout + done.stderr
    assert done.stderr.count(FULL) == 1


def test_a_run_that_cannot_be_recorded_does_not_start(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    with small_disk(site.runs, 300):
        done = site.xenlab("run", "-f", "site.yaml")
        assert done.returncode == 2
        assert (
            "cannot start: because what is left to do may need 2.2 MiB, and 0.3 MiB are free"
            in done.stderr
        )
        assert site.run_folders() == []
    assert not site.path("01.1").exists()


def test_a_disk_that_fills_up_between_steps(site: Site, filler: Path) -> None:
    fill_it = FILL.format(place=filler)
    site.chapter("01_first", site.made("01.1"), fill_it, site.made("01.2"))
    site.chapter("02_second", site.made("02.1"))
    done = site.xenlab("run", "-f", "site.yaml")
    said_once(done)
    assert not site.path("01.2").exists()
    found = site.xenlab("audit", "verify")
    assert found.returncode == 0, found.stdout
    assert "cut short: the disk was full" in found.stdout
    filler.unlink()
    site.chapter("01_first", site.made("01.1"), site.made("01.2"))
    again = site.xenlab("run", "--resume", str(site.run_folders()[0]))
    assert again.returncode == 0, again.stdout + again.stderr
    found = site.xenlab("audit", "verify", str(site.run_folders()[0]))
    assert (found.returncode, "cut" in found.stdout) == (0, False), found.stdout


def test_no_chapter_begins_on_a_disk_that_is_almost_full(site: Site, filler: Path) -> None:
    almost = f'from pathlib import Path\nPath("{filler}").write_bytes(bytes(4 * 1024**2))'
    site.chapter("01_first", site.made("01.1"), almost)
    site.chapter("02_second", site.made("02.1"))
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "MiB are free)" in done.stderr
    assert site.steps() == [("01.1", "changed")]
    assert (site.run_folders()[0] / "report.html").exists()


@pytest.mark.parametrize("ending", ['echo made > "$1"', "exit 3"], ids=["changed", "failed"])
def test_a_disk_that_fills_up_inside_a_step(site: Site, filler: Path, ending: str) -> None:
    script = f"seq 9999; dd if=/dev/zero of={filler} bs=4096 || true; {ending}"
    site.chapter("01_first", site.made("01.1", script=script), site.made("01.2"))
    done = site.xenlab("run", "-f", "site.yaml")
    (run,) = (place for place in site.run_folders() if place != filler)
    finals = [r for r in Journal(run).records() if r["phase"] == "final" and r["step"] == "01.1"]
    assert not site.path("01.2").exists()
    said_once(done)
    if ending == "exit 3":
        assert "command failed with exit status 3" in finals[0]["message"]
    assert [r["status"] for r in finals] == ["failed" if ending == "exit 3" else "changed"]
    (dd,) = (c for c in finals[0]["commands"] if c["phase"] == "change")
    assert dd["status"] == (3 if ending == "exit 3" else 0)
    found = site.xenlab("audit", "verify", str(run))
    assert found.returncode == 0, found.stdout
    assert "cut short: the disk was full" in found.stdout


def test_a_disk_that_was_full_is_no_alibi(site: Site, filler: Path) -> None:
    site.chapter("01_first", site.made("01.1"), FILL.format(place=filler))
    said_once(site.xenlab("run", "-f", "site.yaml"))
    (run,) = site.run_folders()[:1]
    journal = run / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"changed"', b'"skipped"'))
    found = site.xenlab("audit", "verify", str(run))
    assert found.returncode == 1
    assert "is not what was recorded" in found.stdout
