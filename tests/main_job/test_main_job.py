"""The main job, once, with one guest: an empty disk becomes a Xen host, and stays one.

The tests build on each other and run in the order in which they stand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from tests.whole_lab import (
    CHAPTERS,
    HOUR,
    Site,
    commands_of,
    killed,
    power_cycled,
    statuses,
    with_one_guest,
    without_record,
)

from xenlab.journal import Journal, verify
from xenlab.runs import folder as runs

# kernels may have to be compiled first; each wait below has its own deadline
pytestmark = pytest.mark.timeout(5400)

GUEST = "domu1"
DONE = CHAPTERS[: CHAPTERS.index("12_autostart") + 1]
"""What it takes until guests come back by themselves; 12 has a power cycle of its own."""

MOST_COMMANDS = 283
"""How many commands a look at all of it may take: 270 were counted, and one in twenty more.

One in each chapter asks which numbers the disk's partitions have, and one for each file system
whether it reaches its partition's end. 15 are the controller's own, about dom0's kernel and the
machine's drivers in chapter 00.
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The committed lab's site with its first guest alone."""
    yield from with_one_guest("main-job", GUEST, tmp_path_factory.mktemp("site"))


def test_a_run_killed_in_chapter_09_is_taken_up_again(site: Site) -> None:
    run = killed(site, "09.", *DONE)
    before = (run / "journal.jsonl").read_bytes()
    done = {str(r["chapter"]) for r in Journal(run).records() if r["phase"] == "close"}
    assert done == set(CHAPTERS[:9])

    resumed = site.xenlab("run", "-f", str(site.parameters), "--resume", str(run))
    assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr[-3000:]
    after = (run / "journal.jsonl").read_bytes()
    assert after.startswith(before[: before.rindex(b"\n") + 1])
    verify(run / "journal.jsonl")
    records = Journal(run).records()
    opened = Counter(str(r["chapter"]) for r in records if r["phase"] == "open")
    assert opened == {c: 2 if c.startswith("09") else 1 for c in DONE}
    changed = Counter(str(r["step"]) for r in records if r.get("status") == "changed")
    assert {step: n for step, n in changed.items() if n > 1} == {}
    assert [r["step"] for r in records if r.get("status") == "aborted"]
    silent = [r for r in records if r.get("status") == "changed" and not r.get("script")]
    assert [r["step"] for r in silent] == []


def test_a_second_run_finds_nothing_to_do(site: Site) -> None:
    again = site.xenlab("run", *DONE, "-f", str(site.parameters), timeout=HOUR)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    ended = statuses(runs.find(site.runs, "last"))
    assert {step: status for step, status in ended.items() if status != "ok"} == {}
    assert without_record(runs.find(site.runs, "last")) == []
    assert commands_of(runs.find(site.runs, "last")) <= MOST_COMMANDS


def test_a_plan_of_a_finished_host_looks_at_every_step(site: Site) -> None:
    plan = site.xenlab("plan", *DONE, "-f", str(site.parameters), timeout=HOUR)
    assert plan.returncode == 0, plan.stdout[-3000:] + plan.stderr[-3000:]
    found = runs.find(site.runs, "last")
    assert set(statuses(found).values()) == {"ok"}
    assert without_record(found) == []
    assert commands_of(found) <= MOST_COMMANDS


def test_after_a_hard_power_cycle_the_guest_is_back_and_no_service_has_failed(site: Site) -> None:
    power_cycled(site, [GUEST])


def test_a_guest_waits_for_its_devices_as_long_as_a_busy_dom0_takes(site: Site) -> None:
    patience = site.ssh(GUEST, "systemctl", "show", "-p", "DefaultDeviceTimeoutUSec")
    assert patience == "DefaultDeviceTimeoutUSec=10min\n"


def test_a_service_that_fails_is_named_with_what_it_said(site: Site) -> None:
    for domain in ("dom0", GUEST):
        task = f"systemd-run --unit a-task sh -c 'echo no luck in {domain}; exit 1'"
        site.ssh(domain, f"{task}; until systemctl --quiet is-failed a-task; do sleep 1; done")
    check = site.xenlab("check", "12", "-f", str(site.parameters))
    assert check.returncode == 3, check.stdout[-3000:] + check.stderr[-3000:]
    for domain in ("dom0", GUEST):
        assert f"{domain}: has failed: a-task.service: " in check.stdout
        assert f"no luck in {domain}" in check.stdout
        site.ssh(domain, "systemctl", "reset-failed")
    assert site.xenlab("check", "12", "-f", str(site.parameters)).returncode == 0
