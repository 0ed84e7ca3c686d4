"""The page "Day two" word by word, on the finished lab: each of its commands runs here.

A guest more is made for it, and goes again. These tests run after those of `test_guests_updated`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from tests.end_to_end.test_finish import ANOTHER_IMAGE
from tests.end_to_end.test_guests_change import NEW, changed, domains
from tests.whole_lab import HOUR, ROOT, Site, statuses, wait_until

from xenlab.runs import folder as runs

PAGE = (ROOT / "docs" / "day-two.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", PAGE, flags=re.MULTILINE))
XENLAB = ".venv/bin/xenlab "
MAIL = "domu3"
"""The guest that is the page's mail."""

used: set[str] = set()


def blocks(title: str, language: str) -> list[str]:
    """The blocks of a section of the page, in one language ("" for commands)."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", SECTIONS[title], flags=re.M | re.S)
    return [text for kind, text in fenced if kind == language]


def commands(title: str) -> list[str]:
    """What a section has its reader type."""
    return [line for block in blocks(title, "") for line in block.splitlines()]


def keys(title: str, number: int = 0, **names: str) -> dict[str, Any]:
    """What a section has its reader write into the site's file, with other names of guests."""
    text = blocks(title, "yaml")[number]
    for name, own in {"mail": MAIL, **names}.items():
        text = re.sub(rf"(?<!/)\b{name}\b(?!/)", own, text)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def typed(site: Site, line: str, file: Path, mail: str = MAIL) -> list[str]:
    """Run a line of the page on this file; which steps have changed something."""
    used.add(line)
    words = line.removeprefix(XENLAB).replace("castle.yaml", str(file)).split()
    done = site.xenlab(*(mail if word == "mail" else word for word in words), timeout=HOUR)
    assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return changed(statuses(runs.find(site.runs, "last"))) if words[0] == "run" else []


def answers(site: Site, name: str = MAIL) -> None:
    wait_until(lambda: site.answers(name), seconds=1800, what=f"{name} answers")


def entry(site: Site, **values: object) -> list[dict[str, Any]]:
    """The site's domains, with other values of the page's mail."""
    listed = yaml.safe_load(site.parameters.read_text())["domains"]
    return [each | values if each["name"] == MAIL else each for each in listed]


def test_how_everything_is(site: Site) -> None:
    (line,) = commands("How everything is")
    typed(site, line, site.parameters)


def test_a_guest_with_other_values(site: Site) -> None:
    (line,) = commands("A guest with other values")
    larger = {"domains": entry(site, maxmem_mib=352)}
    assert typed(site, line, site.changed(**larger)) == ["10.3"]
    restart = keys("A guest with other values")
    assert typed(site, line, site.changed(**larger, **restart)) == ["16.4"]
    assert typed(site, line, site.changed(**restart)) == ["10.3", "16.4"]
    answers(site)


def test_updates(site: Site) -> None:
    (line,) = commands("Updates")
    assert typed(site, line, site.parameters) == []
    typed(site, line, site.changed(**keys("Updates")))


def test_a_way_back(site: Site) -> None:
    save, restore = commands("A way back")
    wanted = keys("A way back")
    assert "18.2" in typed(site, save, site.changed(**wanted, restart=[MAIL]))
    answers(site)
    place = f"/var/lib/xenlab/backups/{MAIL}"
    (stamp,) = site.ssh("", f"ls {place}").split()
    site.ssh(MAIL, "touch /root/after; sync")
    back = keys("A way back", 1)
    assert MAIL in back["backups"]["restore"]
    back["backups"]["restore"][MAIL] = stamp
    assert "18.4" in typed(site, restore, site.changed(**back, restart=[MAIL]))
    answers(site)
    assert site.ssh(MAIL, "ls /root/after 2> /dev/null || echo gone") == "gone\n"
    site.ssh("", f"rm -r {place}")


def test_a_guest_made_anew(site: Site) -> None:
    (line,) = commands("A guest made anew")
    (named,) = keys("A guest made anew")["domains"]
    for place in (*named["keep"], "/root"):
        site.ssh(MAIL, f"mkdir -p {place}; echo mine > {place}/mine; sync")
    site.ssh("", ANOTHER_IMAGE.replace("zstd -q -5", "zstd -q -7"))
    site.ssh("", "xl", "shutdown", "-ww", MAIL)
    anew = site.changed(domains=entry(site, keep=named["keep"]))
    assert "09.2" in typed(site, line, anew)
    assert site.xenlab("run", "-f", str(anew), timeout=HOUR).returncode == 0
    answers(site)
    for place in named["keep"]:
        assert site.ssh(MAIL, f"cat {place}/mine") == "mine\n"
    assert site.ssh(MAIL, "ls /root/mine 2> /dev/null || echo gone") == "gone\n"


def test_guests_come_get_a_new_name_and_go(site: Site) -> None:
    values = yaml.safe_load(site.parameters.read_text())
    new = {"name": NEW, "memory_mib": 320, "mac": "00:16:3e:66:01:04", "address": "10.0.2.24/24"}
    (line,) = commands("A guest more")
    assert {"01.3", "09.1", "11.7"} <= {
        *typed(site, line, site.changed(domains=[*values["domains"], new]))
    }
    before = domains(site)
    (named,) = keys("A new name", mail=NEW)["domains"]
    called = new | {key: named[key] for key in ("name", "formerly")}
    renamed = [*values["domains"], called]
    typed(site, line, site.changed(domains=renamed, restart=[called["name"]]))
    after = domains(site)
    assert called["name"] in after and NEW not in after
    assert {name: after[name].id for name in before if name != NEW} == {
        name: one.id for name, one in before.items() if name != NEW
    }
    disk = site.ssh("", "readlink -f /dev/disk/by-partlabel/" + NEW).strip()
    assert site.ssh("", f"debugfs -R 'cat /etc/hostname' {disk} 2> /dev/null").split() == [
        called["name"]
    ]
    (less,) = commands("A guest less")
    assert typed(site, less, site.parameters) == ["16.5", "16.6"]
    assert typed(site, f"{less} --destroy mail", site.parameters, NEW) == ["16.7"]
    assert {*domains(site)} == {*before} - {NEW}


def test_no_command_of_the_page_was_left_out() -> None:
    assert {line for title in SECTIONS for line in commands(title)} <= used
