"""Day two on the finished lab: a guest gets other values, goes, and comes back; the others run on.

These tests run after those of `test_finish`, and leave the lab as it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from tests.whole_lab import HOUR, Site, statuses, wait_until

from xenlab.resources.xen import Domain, parse_list
from xenlab.runs import folder as runs

OTHERS = {"domu1": "10.66.0.11", "domu2": "10.66.0.12"}
GOES = "domu3"
NEW = "domu4"
OF_GUESTS = ("09", "10", "11", "12", "13", "14", "15", "16")


def domains(site: Site) -> dict[str, Domain]:
    return {one.name: one for one in parse_list(site.ssh("", "xl", "list"))}


@contextmanager
def answering(site: Site) -> Iterator[None]:
    """The others answer dom0 every second meanwhile, and no answer is missing at the end."""
    said: dict[str, str] = {}
    for name, address in OTHERS.items():
        site.ssh("", f"systemd-run -q --unit answers-{name} ping -n -q -i 1 {address}")
    try:
        yield
    finally:
        for name in OTHERS:
            unit = f"answers-{name}"
            end = f"systemctl kill -s INT {unit}"
            end += f"; while systemctl -q is-active {unit}; do sleep 1; done"
            said[name] = site.ssh("", f"{end}; journalctl -q -o cat -u {unit} | grep transmitted")
    for text in said.values():
        sent = re.search(r"(\d+) packets transmitted, (\d+) received", text)
        assert sent is not None, text
        assert int(sent[1]) > 5
        # the last one may be on its way
        assert int(sent[1]) - int(sent[2]) <= 1, text


def without(site: Site, name: str) -> dict[str, Any]:
    """The keys of a site in which a guest is named no more."""
    values = yaml.safe_load(site.parameters.read_text())
    keys = {
        key: [each for each in values[key] if each["name"] != name]
        for key in ("domains", "lan_guests", "guest_exports")
    }
    return keys | {"autostart": [each for each in values["autostart"] if each != name]}


def run(site: Site, file: Any, *chapters: str) -> dict[str, str]:
    done = site.xenlab("run", *chapters, "-f", str(file), timeout=HOUR)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return statuses(runs.find(site.runs, "last"))


def changed(ended: dict[str, str]) -> list[str]:
    return [step.split()[0] for step, status in ended.items() if status == "changed"]


def test_on_a_host_that_nobody_changed_there_is_nothing_to_do(site: Site) -> None:
    ended = run(site, site.parameters, "16")
    assert set(ended.values()) == {"ok"}, ended


def test_memory_is_changed_while_the_guest_runs(site: Site) -> None:
    values = yaml.safe_load(site.parameters.read_text())
    first, *others = values["domains"]
    less = first | {"memory_mib": first["memory_mib"] - 32, "maxmem_mib": first["memory_mib"]}
    before = domains(site)
    with answering(site):
        ended = run(site, site.changed(domains=[less, *others]), "10", "11", "16")
    # neither is anything demonstrated again, nor is the guest created anew
    assert changed(ended) == ["10.3", "16.3"]
    after = domains(site)
    assert {name: one.id for name, one in after.items()} == {n: o.id for n, o in before.items()}
    assert after[first["name"]].memory_mib <= before[first["name"]].memory_mib - 24
    assert changed(run(site, site.parameters, "10", "16")) == ["10.3", "16.3"]
    assert domains(site)[first["name"]].memory_mib == before[first["name"]].memory_mib


def test_what_waits_is_done_for_whom_the_site_names(site: Site) -> None:
    values = yaml.safe_load(site.parameters.read_text())
    *others, last = values["domains"]
    more = [*others, last | {"vcpus": 2}]
    before = domains(site)
    ended = run(site, site.changed(domains=more), "10", "16")
    assert changed(ended) == ["10.3"]
    assert domains(site)[GOES].id == before[GOES].id
    rows = json.loads(site.xenlab("status", "-f", str(site.parameters), "--json").stdout)["guests"]
    assert {row["guest"]: "its file says 2" in row["waits"] for row in rows} == {
        **dict.fromkeys(OTHERS, False),
        GOES: True,
    }
    with answering(site):
        ended = run(site, site.changed(domains=more, restart=[GOES]), "10", "16")
    assert changed(ended) == ["16.4"]
    after = domains(site)
    assert (after[GOES].vcpus, after[GOES].id == before[GOES].id) == (2, False)
    assert {n: after[n].id for n in OTHERS} == {n: before[n].id for n in OTHERS}
    run(site, site.changed(restart=[GOES]), "10", "16")
    assert domains(site)[GOES].vcpus == 1


def test_a_guest_goes_and_comes_back_with_its_data(site: Site) -> None:
    site.ssh(GOES, "touch", "/root/mine")
    before = domains(site)
    with answering(site):
        ended = run(site, site.changed(**without(site, GOES)), "16")
        assert changed(ended) == ["16.5", "16.6"]
        assert GOES not in domains(site)
        left = site.ssh("", "ls", "/etc/xen", "/var/lib/xenlab/guests")
        assert f"{GOES}.cfg" not in left and GOES in left.split()
        # and again: its data stays, as nobody agreed to lose it
        assert changed(run(site, site.changed(**without(site, GOES)), "16")) == []
        ended = run(site, site.parameters, *OF_GUESTS)
    assert {"09.1", "11.7"} <= {*changed(ended)}
    assert not {"09.2", "11.2", "11.3", "11.4", "11.6", "12.4"} & {*changed(ended)}
    after = domains(site)
    assert {n: after[n].id for n in OTHERS} == {n: before[n].id for n in OTHERS}
    wait_until(lambda: site.answers(GOES), seconds=900, what=f"{GOES} answers")
    site.ssh(GOES, "test", "-e", "/root/mine")
    assert set(run(site, site.parameters, "16").values()) == {"ok"}


def test_a_guest_more_is_made_while_the_others_run_and_goes_again(site: Site) -> None:
    values = yaml.safe_load(site.parameters.read_text())
    new = {"name": NEW, "memory_mib": 320, "mac": "00:16:3e:66:01:04", "address": "10.0.2.24/24"}
    lan = {"name": NEW, "mac": "00:16:3e:66:02:04", "address": "10.66.0.14/24"}
    more = site.changed(domains=[*values["domains"], new], lan_guests=[*values["lan_guests"], lan])
    before, table = domains(site), site.ssh("", "sfdisk", "--dump", values["disk"])
    planned = site.xenlab("plan", "01", "-f", str(more))
    assert planned.returncode == 0, planned.stdout[-3000:] + planned.stderr[-3000:]
    assert site.ssh("", "sfdisk", "--dump", values["disk"]) == table
    with answering(site):
        ended = run(site, more, "01", *OF_GUESTS)
        assert {"01.3", "09.1", "11.7"} <= {*changed(ended)}
        assert not {"11.2", "11.3", "11.4", "11.6", "12.4"} & {*changed(ended)}
        there = domains(site)
        assert {n: there[n].id for n in before} == {n: before[n].id for n in before}
        assert NEW in there
        site.ssh("", "ping", "-c", "3", "-w", "60", "10.66.0.14")
        assert changed(run(site, more, "01", *OF_GUESTS)) == []
        ended = run(site, site.parameters, "16", "--destroy", NEW)
        assert changed(ended) == ["16.5", "16.6", "16.7"]
    assert {n: one.id for n, one in domains(site).items()} == {n: before[n].id for n in before}
    assert site.ssh("", "sfdisk", "--dump", values["disk"]) == table
    assert NEW not in site.ssh("", "ls", "/etc/xen", "/etc/xen/auto", "/var/lib/xenlab/guests")
