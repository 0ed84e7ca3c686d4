"""Debian's own kernel under Xen, and a guest whose disks are logical volumes: up to its start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.whole_lab import CHAPTERS, HOUR, Site, statuses, with_one_guest

from xenlab.runs import folder as runs

pytestmark = pytest.mark.timeout(7200)

GUEST = "domu1"
DONE = CHAPTERS[: CHAPTERS.index("11_action") + 1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    own = {"kernel": "distribution", "guest_disks": "lvm"}
    yield from with_one_guest("volumes", GUEST, tmp_path_factory.mktemp("site"), **own)


def test_an_empty_disk_becomes_a_host_on_which_nothing_was_compiled(site: Site) -> None:
    done = site.xenlab("run", *DONE, "-f", str(site.parameters), timeout=2 * HOUR)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    release = site.ssh("dom0", "uname", "-r")
    assert release.endswith("-amd64\n")
    assert site.ssh(GUEST, "uname", "-r") == release


def test_the_guest_has_two_volumes(site: Site) -> None:
    volumes = site.ssh("dom0", "lvs", "--noheadings", "-o", "lv_name", "xenlab").split()
    assert volumes == [GUEST, f"{GUEST}.swap"]
    assert site.ssh(GUEST, "findmnt", "-n", "-o", "SOURCE", "/") == "/dev/xvda1\n"
    assert site.ssh(GUEST, "swapon", "--noheadings", "--show=NAME") == "/dev/xvda2\n"


def test_a_second_run_finds_nothing_to_do(site: Site) -> None:
    again = site.xenlab("run", *DONE, "-f", str(site.parameters), timeout=HOUR)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    ended = statuses(runs.find(site.runs, "last"))
    assert {step: status for step, status in ended.items() if status != "ok"} == {}
