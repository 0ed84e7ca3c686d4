"""A way back on the finished lab: a guest is saved, spoilt, and restored bit by bit.

These tests run after those of `test_guests_change`, and leave the lab as it was.
"""

from __future__ import annotations

from pathlib import Path

from tests.whole_lab import HOUR, Site, statuses, wait_until

from xenlab.runs import folder as runs

GUEST = "domu1"
PLACE = f"/var/lib/xenlab/backups/{GUEST}"
SUMS = "find /etc /srv /usr/sbin -xdev -type f -print0 | sort -z | xargs -0 sha256sum"


def run(site: Site, file: Path, *words: str) -> dict[str, str]:
    done = site.xenlab("run", "18", "-f", str(file), *words, timeout=HOUR)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return statuses(runs.find(site.runs, "last"))


def changed(ended: dict[str, str]) -> list[str]:
    return [step.split()[0] for step, status in ended.items() if status == "changed"]


def backups(site: Site) -> list[str]:
    return site.ssh("", f"ls {PLACE}").split()


def answers(site: Site) -> None:
    wait_until(lambda: site.answers(GUEST), seconds=1800, what=f"{GUEST} answers")


def test_a_site_that_asks_for_none_has_nothing_to_do(site: Site) -> None:
    assert set(run(site, site.parameters).values()) == {"ok"}


def test_a_guest_that_runs_is_not_saved_unasked(site: Site) -> None:
    file = site.changed(backups={"guests": [GUEST]})
    done = site.xenlab("run", "18", "-f", str(file), timeout=HOUR)
    assert done.returncode != 0
    assert f"restart: [{GUEST}]" in done.stdout + done.stderr


def test_it_is_saved_once_and_runs_again(site: Site) -> None:
    file = site.changed(backups={"guests": [GUEST]}, restart=[GUEST])
    assert changed(run(site, file)) == ["18.2"]
    answers(site)
    (stamp,) = backups(site)
    site.ssh("", f"cd {PLACE}/{stamp} && sha256sum --check --strict --quiet SHA256SUMS")
    assert set(run(site, file).values()) == {"ok"}


def test_it_is_restored_bit_by_bit(site: Site) -> None:
    (stamp,) = backups(site)
    before = site.ssh(GUEST, SUMS)
    site.ssh(GUEST, "rm -r /srv; echo spoilt > /etc/motd; sync")
    wanted = {"guests": [GUEST], "restore": {GUEST: stamp}}
    file = site.changed(backups=wanted, restart=[GUEST])
    # it keeps its root as long as nobody agreed to lose it
    assert changed(run(site, file)) == []
    assert changed(run(site, file, "--destroy", GUEST)) == ["18.4"]
    answers(site)
    assert site.ssh(GUEST, SUMS) == before
    assert set(run(site, file, "--destroy", GUEST).values()) == {"ok"}


def test_the_newest_stay(site: Site) -> None:
    (stamp,) = backups(site)
    older = "20200101T000000Z"
    site.ssh("", f"cp -a {PLACE}/{stamp} {PLACE}/{older}")
    file = site.changed(backups={"guests": [GUEST], "keep": 1}, restart=[GUEST])
    assert changed(run(site, file)) == ["18.3"]
    assert backups(site) == [stamp]
    site.ssh("", f"rm -r {PLACE}")
