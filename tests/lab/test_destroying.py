"""On a real machine: its serial covers an empty disk, and not the one that was made of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.whole_lab import Site, fresh, statuses

from xenlab.runs import folder as runs
from xenlab_lab.lab import Lab

NAME = "destroying"
MADE = ("dom0", "domu1", "domu2", "domu3")

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    try:
        yield from fresh("lab", NAME, tmp_path_factory.mktemp("site"))
    finally:
        Lab(NAME).remove()


def test_a_made_disk_is_partitioned_anew_only_by_all_its_names(site: Site) -> None:
    made = site.xenlab("run", "00", "01", "-f", str(site.parameters))
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    # nothing of the disk is mounted any more
    lab = Lab(NAME)
    lab.down(hard=True)
    assert site.xenlab("lab", "up", "-f", str(site.parameters)).returncode == 0
    other = str(site.changed(share_mib=4097))
    plan = site.xenlab("plan", "01", "-f", other)
    assert plan.returncode == 0, plan.stdout[-3000:] + plan.stderr[-3000:]
    assert "would be refused" in statuses(runs.find(site.runs, "last")).values()
    allowed = [word for name in MADE for word in ("--destroy", name)]
    refused = site.xenlab("run", "01", "-f", other, *allowed[:-2])
    assert refused.returncode == 1
    assert "nobody has agreed to lose it: domu3 (/dev/vda" in refused.stdout + refused.stderr
    again = site.xenlab("run", "01", "-f", other, *allowed)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    # the consent was for that run; what it made needs none, and none is asked for
    second = site.xenlab("run", "01", "-f", other)
    assert second.returncode == 0, second.stdout[-3000:] + second.stderr[-3000:]
    assert set(statuses(runs.find(site.runs, "last")).values()) == {"ok"}
