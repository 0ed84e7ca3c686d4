"""What would fail later is refused in chapter 00 or before, in one sentence: nothing is written."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.lab import second_disk
from tests.notebooks.chapters import code_cells
from tests.refusals import DAMAGED, ON_A_MACHINE, guest, is_said
from tests.sites import BARE
from tests.whole_lab import ROOT, said

from xenlab.cache import cache_root
from xenlab.errors import XenlabError
from xenlab.site.schema import for_chapter, load
from xenlab_lab.hardware import Hardware
from xenlab_lab.lab import Lab

DEADLINE = 1800.0
CHAPTER = ROOT / "notebooks" / "00_ingredients.ipynb"
STAGE_MIB = 800

pytestmark = pytest.mark.timeout(DEADLINE)


@dataclass(frozen=True)
class Rescued:
    """A machine in its rescue system, and a site's values that fit it."""

    lab: Lab
    folder: Path
    values: dict[str, Any]

    def file(self, **changes: Any) -> Path:
        """The site's file, with some keys changed."""
        path = self.folder / "castle.yaml"
        path.write_text(yaml.safe_dump(self.values | changes, sort_keys=False))
        return path

    def digests(self) -> tuple[str, str]:
        """Of all that is on both disks."""
        said(self.lab, "sync", DEADLINE)
        first = hashlib.sha256(self.lab.machine.disk.read_bytes()).hexdigest()
        return first, second_disk.digest(self.lab.machine.second_disk)

    def refusal(self, last_step: str, **changes: Any) -> str:
        """What the cells of chapter 00 end with for a site, "" where they do not refuse it."""
        site = load(self.file(**changes))
        names: dict[str, Any] = {}
        try:
            for cell in code_cells(CHAPTER):
                exec(compile(cell.tree, cell.id, "exec"), names)
                if "parameters" in cell.tags:
                    names |= for_chapter(site, [n for n in names if n in self.values])
                if (cell.step() or "").startswith(last_step):
                    break
        except XenlabError as error:
            return str(error)
        finally:
            if "chapter" in names:
                names["chapter"].hang_up()
        return ""


@pytest.fixture(scope="module")
def rescued(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rescued]:
    """One machine for all cases; its disks must be the same at the end."""
    folder = tmp_path_factory.mktemp("refused")
    lab = Lab("refuse", memory=2048)
    try:
        lab.reset()
        hardware = Hardware.model_validate({"second_disk_gib": 12})
        lab.up(hardware=hardware, make_stage=lambda _: (folder, folder), seconds=DEADLINE)
        said(
            lab,
            "echo ,64M | sfdisk -q /dev/vdb && udevadm settle && mkfs.ext4 -q /dev/vdb1",
            DEADLINE,
        )
        it = Rescued(lab, folder, BARE | brought(folder) | of_lab(lab))
        before = it.digests()
        yield it
        assert it.digests() == before, "something was written to a disk"
        said(lab, "for it in /dev/vda /dev/vdb; do echo x > $it; done", DEADLINE)
        assert not {*it.digests()} & {*before}, "what is written cannot be seen"
    finally:
        lab.remove()


def of_lab(lab: Lab) -> dict[str, Any]:
    """The keys of a site that are this lab's."""
    return {
        "ssh": {"host": "dom0", "config": str(lab.folder / "ssh_config")},
        "lab": lab.name,
        "may_wipe": [lab.machine.serial],
        "domains": [guest()],
        "domu_root_mib": 1024,
    }


def brought(folder: Path) -> dict[str, str]:
    """A stage of zeros with its checksum, and one that is damaged."""
    (folder / DAMAGED).mkdir()
    (folder / DAMAGED / "stage.tar.zst").write_bytes(b"damaged")
    tar = folder / "stage.tar"
    with tar.open("wb") as handle:
        handle.truncate(STAGE_MIB << 20)
    subprocess.run(["zstd", "-q", "--rm", str(tar)], check=True)
    name = "stage.tar.zst"
    text = subprocess.check_output(["sha256sum", name], cwd=folder, text=True)
    (folder / "sums").write_text(text)
    return {"stage": str(folder / name), "stage_checksums": str(folder / "sums")}


@pytest.fixture
def records(rescued: Rescued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and kernels of this test alone; the kernels' sources are those of the usual cache."""
    monkeypatch.setenv("XENLAB_RUNS", str(tmp_path / "runs"))
    sources = cache_root() / "kernel" / "source"
    sources.mkdir(parents=True, exist_ok=True)
    (own := tmp_path / "cache" / "kernel").mkdir(parents=True)
    (own / "source").symlink_to(sources)
    monkeypatch.setenv("XENLAB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("records")
def test_a_machine_that_fits_is_not_refused(rescued: Rescued) -> None:
    assert rescued.refusal("00.5") == ""


@pytest.mark.usefixtures("records")
@pytest.mark.parametrize("wrong", ON_A_MACHINE)
def test_what_the_machine_shows_is_refused(
    rescued: Rescued, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IPMI_HOST", raising=False)
    case = ON_A_MACHINE[wrong]
    changes = dict(case.changes)
    if changes.get("stage") == DAMAGED:
        changes["stage"] = str(rescued.folder / DAMAGED / "stage.tar.zst")
    if case.make:
        said(rescued.lab, case.make, DEADLINE)
    try:
        text = rescued.refusal("00.8", **changes)
    finally:
        if case.undo:
            said(rescued.lab, case.undo, DEADLINE)
    assert is_said(wrong, text), text


def test_a_run_of_all_chapters_ends_there(rescued: Rescued) -> None:
    """As a user starts it."""
    words = ["run", "-f", str(rescued.file(disk="/dev/vdz")), "--runs", str(rescued.folder / "all")]
    done = subprocess.run(
        [sys.executable, "-m", "xenlab", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 1
    assert is_said("no such disk", done.stdout + done.stderr), done.stdout + done.stderr
    (journal,) = (rescued.folder / "all").glob("*/journal.jsonl")
    chapters = {json.loads(line).get("chapter") for line in journal.read_text().splitlines()}
    assert chapters - {None} == {"00_ingredients"}
