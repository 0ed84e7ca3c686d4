"""A machine of one's own that answers: all chapters are planned for it, from the page's file."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.ssh.small import Site

from xenlab.resources.archive import checksum_of
from xenlab.runs import folder as runs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """A block device of 512 GiB that takes no space."""
    with (tmp_path / "disk.img").open("wb") as image:
        image.truncate(512 << 30)
    words = ["losetup", "--find", "--show", str(tmp_path / "disk.img")]
    name = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    yield name
    subprocess.run(["losetup", "--detach", name], check=True)


def test_every_chapter_is_planned(site: Site, disk: str) -> None:
    """What is this machine's is put in the place of the example's; nothing of the lab is."""
    for name in ("stage.tar", "linux.tar"):
        (site.folder / name).write_text(name)
    sums = [f"{checksum_of(site.folder / name)}  {name}\n" for name in ("stage.tar", "linux.tar")]
    (site.folder / "sums").write_text("".join(sums))
    castle = site.folder / "castle.yaml"
    values = yaml.safe_load((ROOT / "parameters" / "debian.yaml").read_text())
    values |= {
        "ssh": site.ssh,
        "disk": disk,
        "stage": f"{site.folder}/stage.tar",
        "stage_checksums": f"{site.folder}/sums",
        "kernel_source": f"{site.folder}/linux.tar",
        "kernel_checksums": f"{site.folder}/sums",
        # less than the example's: no more than this machine has
        "dom0_mem_mib": 256,
        "domains": [guest | {"memory_mib": 64} for guest in values["domains"]],
    }
    castle.write_text(yaml.safe_dump(values))
    shutil.copytree(ROOT / "notebooks", site.folder / "notebooks")
    done = site.xenlab("plan", "-f", str(castle))
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = site.run_folders()
    states = {state.name: state.status for state in runs.states(folder)}
    assert len(states) == 19
    assert set(states.values()) == {"done"}
