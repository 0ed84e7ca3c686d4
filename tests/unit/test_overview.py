"""``xenlab status``: a host and its guests on one screen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.sites import lab_site

from xenlab.chapters.changes import site_says
from xenlab.chapters.overview import guest_table, host_table, seen_on
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.platform.base import Update
from xenlab.resources.xen import parse_list
from xenlab.transport.local import Local

RECORDED = Path(__file__).parents[1] / "recorded/xl"


def test_a_machine_that_does_not_run_xen_is_one_sentence() -> None:
    with pytest.raises(StepFailed, match="cannot say how lab is: because .* does not run Xen"):
        seen_on(Host(Local()), lab_site())


def test_the_host_in_its_own_words() -> None:
    wanted = ("xen_version", "total_memory", "free_memory", "nr_cpus")
    lines = (RECORDED / "info.txt").read_text().splitlines()
    facts = [" ".join(line.split(" : ")) for line in lines if line.split()[0] in wanted]
    said = "\n".join(" ".join(line.split()) for line in facts) + "\nup 1005.31\nload 1.65\n"
    waiting = [Update("curl", "7", "8", security=True), Update("vim-tiny", "1", "2")]
    table = host_table(said, "6.12.118-xen0", (412, waiting)).set_index("what")["is"].to_dict()
    assert table == {
        "hypervisor": "Xen 4.20.5-pre",
        "dom0's kernel": "6.12.118-xen0",
        "up for": "16 min 45 s",
        "memory": "3033 of 4095 MiB free",
        "processors": "2, dom0's load 1.65",
        "updates of dom0": "2, 1 of them for security",
    }


def test_the_guests_and_what_waits() -> None:
    site = lab_site()
    running = {one.name: one for one in parse_list((RECORDED / "list.txt").read_text())}
    running["other"] = replace(running.pop("domu3"), name="other")
    wanted = {domain.name: site_says(site, domain) for domain in site.domains}
    has = wanted | {"domu2": replace(wanted["domu2"], most_vcpus=2, vcpus=2)}
    del has["domu3"]
    table = guest_table(site, running, has, wanted, {"domu1": "20260301T020000Z"})
    assert table["last backup"].tolist() == ["20260301T020000Z", "", "", ""]
    assert "last backup" not in guest_table(site, running, has, wanted, {})
    table = table.set_index("guest")
    assert table["state"].to_dict() == {
        "domu1": "running",
        "domu2": "running",
        "domu3": "down",
        "other": "running",
    }
    assert table["waits"]["domu1"] == table["waits"]["domu3"] == ""
    assert "its file says 1" in table["waits"]["domu2"]
    assert table["waits"]["other"] == "not in the site's file"
    assert table["memory (MiB)"]["domu3"] == 320
