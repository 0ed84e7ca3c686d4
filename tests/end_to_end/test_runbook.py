"""The runbook as shell: its files alone make a Xen host of an empty disk; nothing has drifted then.

pytest-testinfra, which knows nothing of xenlab, is asked as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host
from tests.whole_lab import CHAPTERS, HOUR, Site, wait_until, with_one_guest

from xenlab.chapters.kernel import kernel_build
from xenlab.host import Host as Machine
from xenlab.site.schema import load
from xenlab.transport.local import Local
from xenlab_lab.lab import Lab

pytestmark = pytest.mark.timeout(3 * HOUR)

GUEST = "domu1"
DONE = CHAPTERS[: CHAPTERS.index("12_autostart") + 1]


@pytest.fixture(scope="module")
def bare(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Another lab with an empty disk; that of the other tests rests meanwhile."""
    Lab(site.name).down()
    yield from with_one_guest("by-hand", GUEST, tmp_path_factory.mktemp("by-hand"))


@pytest.fixture(scope="module")
def compiled(bare: Site) -> Iterator[None]:
    """The folders of a person who compiles by hand are those where it was compiled before."""
    links: list[tuple[str, str]] = []
    for flavour in ("dom0", "domU"):
        build = kernel_build(load(bare.parameters), flavour)
        facts = build.require(Machine(Local()))
        links += zip(build.by_hand, (build.tree(facts), build.work(facts)), strict=True)
    for path, there in dict(links).items():
        Path(path).symlink_to(there)
    yield
    for path, _ in dict(links).items():
        Path(path).unlink()


@pytest.mark.usefixtures("compiled")
def test_the_files_alone_end_in_running_guests(bare: Site, tmp_path: Path) -> None:
    folder = tmp_path / "runbook"
    words = ["-f", str(bare.parameters), "-o", str(folder)]
    written = bare.xenlab("script", *words, *DONE)
    assert written.returncode == 0, written.stderr
    files = sorted(folder.iterdir())
    programs = Path(sys.executable).parent
    assert [path.stem for path in files] == DONE[1:]
    for path in files:
        done = subprocess.run(
            ["sh", str(path)],
            # where the power button of a lab is: xenlab lab boot
            env=bare.environment() | {"PATH": f"{programs}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HOUR,
        )
        assert done.returncode == 0, f"{path.stem}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


def test_nothing_has_drifted_then(bare: Site) -> None:
    # the last file ends while its guest boots: dom0 has just started it
    wait_until(lambda: bare.answers(GUEST), seconds=1800, what=f"{GUEST} answers")
    found = bare.xenlab("check", "-f", str(bare.parameters), *DONE)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]


@pytest.fixture(scope="module")
def judged(bare: Site) -> Host:
    """dom0, as testinfra sees it."""
    return testinfra.get_host("ssh://dom0", ssh_config=str(bare.ssh_config))


def test_an_independent_judge_finds_a_xen_host(judged: Host) -> None:
    assert judged.file("/proc/xen/capabilities").content_string.strip() == "control_d"
    assert judged.check_output("uname -r").endswith("-xen0")
    for name in ("/", "/boot", "/mnt/share", "/mnt/domuswap"):
        assert judged.mount_point(name).filesystem == "ext4"
    for name in ("ssh", "cron", "rsyslog", "xen", "xenlab-bridge"):
        assert judged.service(name).is_running and judged.service(name).is_enabled
    assert judged.service("xendomains").is_enabled
    assert not judged.service("distcc").is_running
    assert judged.package("xen-system-amd64").is_installed
    assert "10.0.2.15" in judged.interface("eth0").addresses
    assert judged.interface("xenbr0").addresses == []
    assert judged.check_output("systemctl --failed --no-legend") == ""


def test_an_independent_judge_finds_its_guest(bare: Site, judged: Host) -> None:
    listed = judged.check_output("xl list").splitlines()
    assert [line.split()[0] for line in listed[1:]] == ["Domain-0", GUEST]
    guest = testinfra.get_host(f"ssh://{GUEST}", ssh_config=str(bare.ssh_config))
    assert guest.check_output("uname -r").endswith("-domU")
    assert guest.check_output("hostname") == GUEST
    assert guest.mount_point("/").filesystem == "ext4"
    link = judged.file(f"/etc/xen/auto/0010-{GUEST}.cfg")
    assert link.is_symlink and link.linked_to == f"/etc/xen/{GUEST}.cfg"
