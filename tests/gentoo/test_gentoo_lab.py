"""The whole lab with Portage and OpenRC: every chapter, then what only this lab can show."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from tests.whole_lab import Site, fresh, power_cycled, wait_until

from xenlab.runs import folder as runs

GUESTS = ("domu1", "domu2", "domu3")
AUTOSTARTED = ["domu1", "domu2"]
PACKAGE = "app-text/tree"
COMPILED, FROM_STORE = "Compiling/", "Merging Binary"
CHAPTERS = 17
ORDER = [
    "xenlab-bridge", "xenlab-lan", "net.eth0", "xen", "xenlab-vif", "xenlab-lan-address", "nfs",
    "xendomains",
]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A lab of its own, in its rescue system."""
    yield from fresh("lab-gentoo", "test-gentoo", tmp_path_factory.mktemp("site"))


def test_every_chapter_runs_and_a_second_run_changes_nothing(site: Site) -> None:
    for allowed in ({"ok", "changed"}, {"ok"}):
        done = site.xenlab("run", "-f", str(site.parameters), timeout=2 * 3600)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        chapters = runs.states(sorted(site.runs.iterdir())[-1])
        assert len(chapters) == CHAPTERS
        assert {step.status for chapter in chapters for step in chapter.steps} <= allowed


def test_one_domain_compiled_and_the_guests_without_a_compiler_took_it(site: Site) -> None:
    assert log_of(site, "").count(COMPILED) == 1
    for guest in GUESTS:
        assert log_of(site, guest).count(COMPILED) == 0
        assert log_of(site, guest).count(FROM_STORE) == 1
        assert site.ssh(guest, "command -v gcc cc || echo none") == "none\n"
        assert "make.conf" in site.ssh(guest, "tree --noreport -L 1 /etc/portage")
    settings = {site.ssh(domain, "cat /etc/portage/make.conf") for domain in ("", *GUESTS)}
    assert len(settings) == 1


def test_a_sync_on_dom0_is_seen_by_every_guest(site: Site) -> None:
    new = "/var/db/repos/xenlab/app-text/tree/tree-2.1.0-r1.ebuild"
    publish = f"""
        export HOME=/root GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@t
        export GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@t
        git clone -q /var/lib/xenlab/repository.git /tmp/work && cd /tmp/work/app-text/tree &&
        cp tree-2.1.0.ebuild {new.rpartition("/")[2]} && git add . &&
        git commit -q -m "A new revision" && git push -q origin main && emerge --quiet --sync
    """
    for guest in GUESTS:
        assert site.ssh(guest, f"ls {new} 2> /dev/null || echo none") == "none\n"
    site.ssh("", publish, seconds=1800)
    for guest in GUESTS:
        assert site.ssh(guest, f"readlink -f {new}").startswith("/mnt/share/")
        seen = partial(exists, site, guest, new)
        # a client asks anew after a while whether a folder has changed (nfs(5), acdirmax)
        wait_until(seen, seconds=300, what=f"{guest} sees {new}")


def test_the_bugfix_stops_and_starts(site: Site) -> None:
    def ports() -> str:
        return site.ssh("", "ip -o link show master xenbr1")

    assert "vif0.1" in ports()
    site.ssh("", "rc-service xenlab-vif stop")
    assert "vif0.1" not in ports()
    site.ssh("", "rc-service xenlab-vif start && rc-service xenlab-lan-address start")
    assert "vif0.1" in ports()


def test_a_power_cycle_brings_it_back_in_the_right_order(site: Site) -> None:
    power_cycled(site, AUTOSTARTED)
    last = partial(exists, site, "", f"/run/openrc/started/{ORDER[-1]}")
    wait_until(last, seconds=600, what=f"{ORDER[-1]} is started")
    started = site.ssh("", "ls -1tr /run/openrc/started").split()
    assert [name for name in started if name in ORDER] == ORDER
    assert "vif0.1" in site.ssh("", "ip -o link show master xenbr1")
    for guest in AUTOSTARTED:
        assert "/mnt/share" in site.ssh(guest, "findmnt -rn -t nfs4 -o TARGET || :")


def test_a_guest_runs_from_the_shares_usr_and_from_its_own_again(site: Site) -> None:
    for names, system in ((["domu2"], "nfs4"), ([], "ext4")):
        changed = site.changed(shared_usr=names)
        done = site.xenlab("run", "-f", str(changed), "15", timeout=3600)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        assert site.ssh("domu2", "findmnt -n -o FSTYPE -T /usr/.") == f"{system}\n"


def exists(site: Site, domain: str, path: str) -> bool:
    return site.ssh(domain, f"[ -e {path} ] && echo yes || echo no") == "yes\n"


def log_of(site: Site, domain: str) -> str:
    """What a domain's Portage says it has done."""
    return site.ssh(domain, "cat /var/log/emerge.log 2> /dev/null || :")
