"""A second disk with the names of the site's own is left alone, a copy of it is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.lab import second_disk

from xenlab.journal import Journal
from xenlab.site.schema import load
from xenlab_lab.lab import Lab

ROOT = Path(__file__).parents[2]
NAME = "twins"
DEADLINE = 900.0

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    it = Lab(NAME, memory=2560, disk_gib=14)
    it.reset()
    try:
        yield it
    finally:
        it.remove()


@pytest.fixture(scope="module")
def parameters(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = yaml.safe_load((ROOT / "parameters" / "lab.yaml").read_text())
    values |= {"lab": NAME, "may_wipe": [lab.machine.serial]}
    values["ssh"]["config"] = str(lab.access.config)
    file = tmp_path_factory.mktemp("site") / "lab.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def run(parameters: Path, *chapters: str) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit status, words and final records of a run of its own."""
    runs = parameters.parent / f"runs-{len(list(parameters.parent.iterdir()))}"
    done = subprocess.run(
        [sys.executable, "-m", "xenlab", "run", *chapters, "-f", str(parameters)],
        cwd=ROOT,
        env={**os.environ, "XENLAB_RUNS": str(runs)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    (journal,) = runs.glob("*/journal.jsonl")
    finals = [r for r in Journal(journal.parent).records() if r.get("phase") == "final"]
    return done.returncode, done.stdout + done.stderr, finals


def test_a_disk_with_the_same_names_is_named_and_left_alone(lab: Lab, parameters: Path) -> None:
    before = second_disk.make(lab.machine.second_disk, load(parameters))
    lab.up(seconds=DEADLINE)
    status, words, finals = run(parameters, "00", "01")
    assert status == 0, words
    assert {r["step"]: r["status"] for r in finals}["01.4"] == "changed"
    (table,) = (r for r in finals if r["step"] == "00.1")
    folder = sorted(parameters.parent.glob("runs-*/*"))[-1]
    shown = (folder / table["attachments"][0]["path"]).read_text()
    assert '"/dev/vdb, ' in shown and "dom0root" in shown
    mounted = subprocess.run(
        lab.ssh_argv("dom0", ["findmnt -J -o SOURCE,TARGET --real"]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    ).stdout
    sources = {row["source"] for row in json.loads(mounted)["filesystems"]}
    assert not any(source.startswith("/dev/vdb") for source in sources), mounted
    lab.down(hard=True)
    assert second_disk.digest(lab.machine.second_disk) == before


def test_a_copy_of_the_sites_disk_is_refused_by_name(lab: Lab, parameters: Path) -> None:
    lab.down(hard=True)
    copy = lab.machine.second_disk
    words = ("qemu-img", "convert", "-O", "raw", str(lab.machine.disk), str(copy))
    subprocess.run(words, check=True, timeout=DEADLINE)
    before = second_disk.digest(copy)
    lab.up(seconds=DEADLINE)
    for chapter in ("00", "01"):
        status, shown, finals = run(parameters, chapter)
        assert status != 0, shown
        assert "/dev/vdb is a copy of /dev/vda" in shown
        assert not [r for r in finals if r["status"] == "changed"]
    lab.down(hard=True)
    assert second_disk.digest(copy) == before
