"""The image of the canary is that of all hosts that are made alike."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.fleet.rack import SECONDS, Rack
from tests.ssh.conftest import wait_until

from xenlab.journal import Journal
from xenlab.resources.archive import RECORD
from xenlab.resources.image import parse_record

pytestmark = pytest.mark.timeout(4 * SECONDS)

PARAMETERS = """
platform: str = "debian"
power: str = "manual"
share: str = "/mnt/share"
mirror: str = ""
guest_disks: str = "partition"
volume_group: str = "xenlab"
firmware: str = "bios"
package_proxy: str = ""
portage: dict = {}
software: list = []
services: list = []
unwanted: list = []
kernel: str = "build"
imaging: str = "bind"
image: str = "/image"
image_from: str = ""
image_exclude: list = []
"""
IMAGED = """
from dataclasses import replace
from xenlab import ImageProof, image_taken
root = {folder!r} + "/" + site + "-root"
chapter.ensure("06.2 Take the image", replace(image_taken(chapter), source=root), on=chapter.host)
chapter.ensure("06.3 Verify the image", ImageProof(image, root, ()), on=chapter.host)
"""
WAITS = 'until [ -e "$1.go" ]; do sleep 0.1; done; echo made >> "$1"'


@pytest.fixture
def make_imaged(
    make_rack: Callable[[int], Rack], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Rack]]:
    """A rack whose hosts have a root each, on a file system of its own, and take its image."""
    monkeypatch.setenv("XENLAB_CACHE", str(tmp_path / "cache"))
    with ExitStack() as mounted:

        def make(count: int, *, waits: bool = False, **differs: dict[str, object]) -> Rack:
            rack = make_rack(count)
            rack.patience = SECONDS
            for number in range(count):
                root = rack.folder / f"host{number}-root"
                root.mkdir()
                _run("mount", "-t", "tmpfs", "root", root)
                mounted.callback(_run, "umount", root)
                _fill(root, number)
            rack.image = "canary"
            rack.own = {
                number: {"image": str(_image(rack, number)), **differs.get(f"host{number}", {})}
                for number in range(count)
            }
            rack.write()
            cells = rack.steps_for("06", script=WAITS) if waits else []
            imaged = IMAGED.format(folder=str(rack.folder))
            rack.chapter("06_imaging", *cells, imaged, more=PARAMETERS)
            return rack

        yield make


def _run(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def _fill(root: Path, number: int) -> None:
    for name in ("dev", "etc", "proc", "run", "sys", "var/log", "var/tmp", RECORD):
        place = root / name
        (place.parent if name == RECORD else place).mkdir(parents=True, exist_ok=True)
    (root / RECORD).write_text(f"complete {'a' * 64}\n")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/of").write_text(f"host{number}\n")


def _image(rack: Rack, number: int) -> Path:
    return rack.folder / f"host{number}-images" / "base.tar.zst"


def _of(rack: Rack, number: int) -> str:
    """Whose root a host's image was taken of."""
    return _run("tar", "-I", "zstd", "-xOf", _image(rack, number), "./etc/of").strip()


def _commands(rack: Rack, number: int) -> str:
    """What a host's run has done, as a person would have typed it."""
    records = Journal(rack.run_of(number)).records()
    return "\n".join(c["command"] for r in records for c in r.get("commands", ()))


def test_hosts_that_are_made_alike_have_the_image_of_the_canary(
    make_imaged: Callable[..., Rack],
) -> None:
    rack = make_imaged(4, host2={"unwanted": ["nano"]}, host3={"release": "bookworm"})
    done = rack.xenlab("fleet", "run", "-f", "fleet.yaml", "--uploads", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [_of(rack, n) for n in range(4)] == ["host0", "host0", "host2", "host3"]
    # it was fetched once, into the cache, and is as the host has it
    (kept,) = rack.record()["images"].values()
    assert Path(kept).read_bytes() == _image(rack, 1).read_bytes()
    assert (Path(kept).parent.stat().st_mode & 0o777) == 0o700
    assert f"scp -- {kept} host1:{_image(rack, 1)}" in _commands(rack, 1)
    # the time in its record is that of the host's own file: it is not read again
    record = parse_record(Path(f"{_image(rack, 1)}.info").read_text())
    assert float(record["modified"]) == pytest.approx(_image(rack, 1).stat().st_mtime, abs=1e-3)
    again = rack.xenlab("fleet", "run", "-f", "fleet.yaml")
    assert again.returncode == 0, again.stdout + again.stderr
    assert [status for _, status in rack.ended(1)] == ["changed", "changed", "ok", "ok"]
    plan = rack.xenlab("fleet", "check", "-f", "fleet.yaml")
    assert plan.returncode == 0, plan.stdout + plan.stderr


def test_what_was_damaged_in_the_cache_is_refused_and_what_is_not_there_is_taken_by_each(
    make_imaged: Callable[..., Rack],
) -> None:
    rack = make_imaged(3, waits=True)
    go(rack, 0)
    words = ("fleet", "run", "-f", "fleet.yaml", "--workers", "1")
    process = rack.start(*words, "--max-failures", "1")
    wait_until(lambda: list(rack.runs.glob("*-host1")) != [], SECONDS)
    (kept,) = map(Path, rack.record()["images"].values())
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    go(rack, 1, 2)
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, out
    assert f"cannot take {kept}: because it has a wrong checksum" in out
    assert not _image(rack, 1).exists()
    # as on a worker elsewhere: one that had begun with it goes on with it, or not at all
    kept.rename(kept.with_name("away"))
    again = rack.xenlab(*words, "--resume")
    assert again.returncode == 1 and rack.statuses()[2] == "done", again.stdout + again.stderr
    assert _of(rack, 2) == "host2" and not _image(rack, 1).exists()
    kept.write_bytes(whole)
    done = rack.xenlab(*words, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert _of(rack, 1) == "host0"


def go(rack: Rack, *hosts: int) -> None:
    """Let the first step of these hosts go on."""
    for host in hosts:
        Path(f"{rack.made('06.1', host)}.go").touch()
