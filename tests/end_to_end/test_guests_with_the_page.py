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


def one_more(site: Site, **keys: object) -> list[dict[str, Any]]:
    """The site's domains, and a fourth."""
    listed: list[dict[str, Any]] = yaml.safe_load(site.parameters.read_text())["domains"]
    new = {"name": NEW, "memory_mib": 320, "mac": "00:16:3e:66:01:04", "address": "10.0.2.24/24"}
    return [*listed, new | keys]


def in_root_of_new(site: Site, path: str) -> str:
    """A file of the fourth guest's root, read while it runs: nothing is mounted for it."""
    disk = f"$(readlink -f /dev/disk/by-partlabel/{NEW})"
    return site.ssh("", f"debugfs -R 'cat {path}' {disk} 2> /dev/null")


def goes(site: Site) -> None:
    """The fourth guest is not in the site's file any more, and nothing of it is to stay."""
    (less,) = commands("A guest less")
    assert typed(site, less, site.parameters) == ["16.5", "16.6"]
    assert typed(site, f"{less} --destroy mail", site.parameters, NEW) == ["16.7"]
    assert NEW not in site.ssh("", "ls", "/etc/xen", "/var/lib/xenlab/guests")


def test_a_guest_comes_gets_a_new_name_and_goes(site: Site) -> None:
    (more,) = commands("A guest more")
    made = typed(site, more, site.changed(domains=one_more(site)))
    assert {"01.3", "09.1", "11.7"} <= {*made}
    before = domains(site)
    (line,) = commands("A new name")
    (named,) = keys("A new name", mail=NEW)["domains"]
    called = {key: named[key] for key in ("name", "formerly")}
    file = site.changed(domains=one_more(site, **called), restart=[called["name"]])
    typed(site, line, file)
    after = domains(site)
    assert called["name"] in after and NEW not in after
    others = {name: one.id for name, one in before.items() if name != NEW}
    assert {name: after[name].id for name in others} == others
    assert in_root_of_new(site, "/etc/hostname").split() == [called["name"]]
    goes(site)
    assert {*domains(site)} == {*others}


def test_a_guest_like_another(site: Site) -> None:
    site.ssh(MAIL, "echo copied > /root/copied; sync")
    (line,) = commands("A guest like another")
    typed(site, line, site.changed(domains=one_more(site, like=MAIL), restart=[MAIL]))
    assert in_root_of_new(site, "/root/copied") == "copied\n"
    assert in_root_of_new(site, "/etc/hostname").split() == [NEW]
    answers(site)
    goes(site)


def test_no_command_of_the_page_was_left_out() -> None:
    assert {line for title in SECTIONS for line in commands(title)} <= used
