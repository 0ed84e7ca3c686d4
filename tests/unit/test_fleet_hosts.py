"""The hosts of a fleet: what a file, a table and an inventory say, and what no two may share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.sites import BARE, FOLDER

from xenlab.errors import BadInput
from xenlab.fleet.engine import image_kind
from xenlab.fleet.hosts import Fleet, from_csv, from_inventory, load, merge, site_values
from xenlab.site.schema import Parameters

Values = dict[str, Any]


def guest(number: int, name: str = "web") -> Values:
    return {
        "name": f"{name}{number}",
        "memory_mib": 320,
        "mac": f"00:16:3e:00:00:{number:02x}",
        "address": f"10.0.2.{100 + number}/24",
    }


def host(number: int, **more: Any) -> Values:
    """What differs of a host that shares nothing with one of another number."""
    return {"address": f"10.0.2.{10 + number}/24", "domains": [guest(number)], **more}


def written(folder: Path, hosts: Values, own: Values | None = None, **keys: Any) -> Path:
    """A fleet's file beside its base, in which these keys are its own."""
    values = BARE | {"power": "manual", "may_wipe": []} | (own or {})
    (folder / "base.yaml").write_text(yaml.safe_dump(values))
    file = folder / "fleet.yaml"
    fleet = {"fleet": "rack", "base": "base.yaml", "hosts": hosts} | keys
    file.write_text(yaml.safe_dump(fleet))
    return file


def refused(file: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load(file)
    return str(caught.value)


def test_the_example_is_a_fleet_whose_hosts_have_their_own_guests() -> None:
    fleet = load(FOLDER / "fleet.yaml")
    assert list(fleet.sites) == ["castle1", "castle2"]
    one = fleet.sites["castle1"]
    assert (one.site, one.hostname, one.ssh.host) == ("castle1", "castle1", "castle1")
    assert one.ssh.config == "~/.ssh/config"
    assert [each.name for each in one.domains] == ["mail1", "web1"]
    # the base's list of guests that start names them as the host calls them
    assert one.autostart == ["mail1", "web1"]
    assert [each.name for each in one.lan_guests] == ["mail1", "web1"]


def test_an_image_is_that_of_hosts_whose_sites_shape_one_root(tmp_path: Path) -> None:
    hosts = {
        "alike": host(2, imaging="rescue", image="/mnt/share/other.tar.zst"),
        "software": host(3, unwanted=["nano"]),
        "without": host(4, image_exclude=["/opt"]),
        "packages": host(5, apt_mirror="http://mirror.example.org/debian"),
        "stage": host(6, stage="~/other.tar.zst"),
        "own": host(7, image_from="~/base.tar.zst"),
    }
    fleet = load(written(tmp_path, {"one": host(1), **hosts}, image="canary")).limited("*")
    assert fleet.image == "canary"
    kinds = {name: image_kind(site) for name, site in fleet.sites.items()}
    assert kinds.pop("one") == kinds["alike"]
    assert len({*kinds.values()}) == 6 and kinds["own"] == ""
    (tmp_path / "modules").mkdir()
    modules = load(written(tmp_path / "modules", {"one": host(1)}, {"kernel": "distribution"}))
    assert (modules.image, image_kind(modules.sites["one"])) == ("own", "")


def test_what_differs_is_merged_key_by_key_and_lists_of_named_entries_by_name() -> None:
    base = {"a": 1, "in": {"b": 2, "c": 3}, "plain": [1, 2], "named": [{"name": "x", "n": 1}]}
    own = {"in": {"c": 4}, "plain": [3], "named": {"x": {"n": 2}, "y": {"n": 3}}}
    assert merge(base, own) == {
        "a": 1,
        "in": {"b": 2, "c": 4},
        "plain": [3],
        "named": [{"name": "x", "n": 2}, {"name": "y", "n": 3}],
    }
    assert base["in"] == {"b": 2, "c": 3}


def test_entries_by_name_need_no_list_in_the_base() -> None:
    values = site_values({}, "one", {"lan_guests": {"web": {"mac": "m"}}})
    assert values["lan_guests"] == [{"name": "web", "mac": "m"}]


def test_a_list_of_a_host_s_own_is_taken_as_it_is() -> None:
    own = {"domains": {"web": {"name": "web1"}}, "autostart": ["web"]}
    base = {"domains": [{"name": "web"}], "autostart": ["web"], "shared_usr": ["web"]}
    values = site_values(base, "one", own)
    assert (values["autostart"], values["shared_usr"]) == (["web"], ["web1"])


def test_each_host_is_a_site_of_its_own(tmp_path: Path) -> None:
    fleet = load(written(tmp_path, {"one": host(1), "two.example.org": host(2)}))
    assert isinstance(fleet.sites["one"], Parameters)
    two = fleet.sites["two.example.org"]
    assert (two.site, two.hostname) == ("two.example.org", "two")
    assert two.ssh.host == "two.example.org"


def test_every_problem_of_every_host_is_said_at_once(tmp_path: Path) -> None:
    hosts = {f"h{n}": host(n, boot_mib=1) for n in range(1, 7)} | {"bad": host(9, disk="vda")}
    said = refused(written(tmp_path, hosts))
    assert "cannot use this fleet: 2 problems:" in said
    assert "h1, h2, h3 and 3 more: boot_mib must be at least 64" in said
    assert "bad: disk " in said


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"site": "one"}, "one and two have the same name of a site: one"),
        ({"ssh": {"host": "one"}}, "one and two are reached at the same address (ssh.host): one"),
        ({"address": "10.0.2.11/24"}, "one and two have the same address: 10.0.2.11"),
        (
            {"domains": [guest(2) | {"address": "10.0.2.11/24"}]},
            "one and two (web2) have the same address: 10.0.2.11",
        ),
        (
            {"domains": [guest(2) | {"mac": "00:16:3E:00:00:01"}]},
            "one (web1) and two (web2) have the same MAC: 00:16:3e:00:00:01",
        ),
        (
            {"domains": [guest(2) | {"name": "web1"}]},
            "one and two have the same name in one network: web1",
        ),
        ({"hostname": "one"}, "one and two have the same name in one network: one"),
        (
            {"may_wipe": ["SERIAL1"]},
            "one and two may wipe the same disk: a serial is one disk's, and SERIAL1 is in "
            "may_wipe of both",
        ),
        (
            {"power": "ipmi"},
            "one and two have power: ipmi, and the environment names one management controller",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_two_hosts_share_is_one_sentence_that_names_both(
    tmp_path: Path, own: Values, sentence: str
) -> None:
    first = host(1, may_wipe=["SERIAL1"]) | ({"power": "ipmi"} if "power" in own else {})
    file = written(tmp_path, {"one": first, "two": host(2) | own})
    assert refused(file) == f"{file}: cannot use this fleet: {sentence}"


def test_two_labs_share_an_address_but_not_a_name(tmp_path: Path) -> None:
    same = host(1, power="lab")
    labs = {"one": same | {"lab": "first"}, "two": same | {"lab": "second"}}
    assert len(load(written(tmp_path, labs)).sites) == 2
    labs["two"]["lab"] = "first"
    assert "one and two are the same lab: first" in refused(written(tmp_path, labs))


def test_guests_of_one_name_may_be_in_two_networks(tmp_path: Path) -> None:
    away = {
        "address": "10.0.3.15/24",
        "gateway": "10.0.3.2",
        "domains": [guest(2) | {"name": "web1", "address": "10.0.3.16/24"}],
    }
    assert len(load(written(tmp_path, {"one": host(1), "two": away})).sites) == 2


def test_a_table_s_columns_are_keys(tmp_path: Path) -> None:
    (tmp_path / "rack.csv").write_text(
        "host,ssh.host,ssh.port,address,domains.web.mac,screen,kernel_options,boot_mib\n"
        "one,192.0.2.1,2222,10.0.2.11/24,52:54:00:12:34:56,true,[CONFIG_E1000E=y],\n"
        "\n"
        "two,,,10.0.2.12/24,,false,,512\n"
    )
    assert from_csv(tmp_path / "rack.csv") == {
        "one": {
            "ssh": {"host": "192.0.2.1", "port": 2222},
            "address": "10.0.2.11/24",
            "domains": {"web": {"mac": "52:54:00:12:34:56"}},
            "screen": True,
            "kernel_options": ["CONFIG_E1000E=y"],
        },
        "two": {"address": "10.0.2.12/24", "screen": False, "boot_mib": 512},
    }


def test_a_table_s_guests_are_the_base_s_under_other_names(tmp_path: Path) -> None:
    (tmp_path / "rack.csv").write_text(
        "host,address,domains.web.name,domains.web.mac,domains.web.address\n"
        "one,10.0.2.11/24,web1,00:16:3e:00:00:01,10.0.2.101/24\n"
        "two,10.0.2.12/24,web2,00:16:3e:00:00:02,10.0.2.102/24\n"
    )
    base = {"domains": [guest(0) | {"name": "web"}], "autostart": ["web"]}
    fleet = load(written(tmp_path, {}, base, csv="rack.csv"))
    assert [site.autostart for site in fleet.sites.values()] == [["web1"], ["web2"]]
    # the fleet's own file has the last word
    hosts = {"two": {"boot_mib": 500, "domains": {"web": {"memory_mib": 400}}}}
    fleet = load(written(tmp_path, hosts, base, csv="rack.csv"))
    two = fleet.sites["two"]
    assert (two.boot_mib, two.domains[0].memory_mib, two.domains[0].name) == (500, 400, "web2")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "its first line names no columns"),
        ("name,address\n", "its first line names no columns"),
        ("host,a,a\n", "a is there twice"),
        ("host,a\none\n", "line 2 has another length"),
        ("host,a\none,1\none,2\n", "line 3 names a host again"),
        ("host,a,a.b\none,1,2\n", "a.b lies within what another column sets"),
        ("host,a.b,a\none,1,2\n", "a holds what another column sets"),
        ("host,a\none,[1\n", "is not YAML"),
        ('host,a\none,"1\n', "unexpected end of data"),
    ],
)
def test_a_table_that_says_nothing_clear_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "rack.csv").write_text(text)
    with pytest.raises(BadInput, match=why):
        from_csv(tmp_path / "rack.csv")


INVENTORY = """
all:
  vars: {xenlab: {boot_mib: 512, ssh: {user: root}}, other: 1}
  children:
    rack1:
    elsewhere:
      hosts:
        three: {ansible_host: 192.0.2.3}
rack1:
  vars: {xenlab: {boot_mib: 600}}
  hosts:
    one: {ansible_host: 192.0.2.1, ansible_port: 2222, xenlab: {address: 10.0.2.11/24}}
    two: {xenlab: {boot_mib: 700}}
"""


def test_an_inventory_s_hosts_have_what_their_groups_say(tmp_path: Path) -> None:
    (tmp_path / "hosts.yaml").write_text(INVENTORY)
    assert from_inventory(tmp_path / "hosts.yaml") == {
        "one": {
            "ssh": {"user": "root", "host": "192.0.2.1", "port": 2222},
            "boot_mib": 600,
            "address": "10.0.2.11/24",
        },
        "two": {"ssh": {"user": "root"}, "boot_mib": 700},
        "three": {"ssh": {"user": "root", "host": "192.0.2.3"}, "boot_mib": 512},
    }


def test_what_ansible_lists_is_an_inventory_as_well(tmp_path: Path) -> None:
    listed = {
        "_meta": {
            "hostvars": {
                "one": {"ansible_host": "192.0.2.1", "xenlab": {"boot_mib": 600}},
                "printer": {"ansible_host": "192.0.2.9"},
            }
        },
        "all": {"children": ["ungrouped"]},
    }
    (tmp_path / "hosts.json").write_text(json.dumps(listed))
    assert from_inventory(tmp_path / "hosts.json") == {
        "one": {"ssh": {"host": "192.0.2.1"}, "boot_mib": 600}
    }


@pytest.mark.parametrize(
    "text", ["all: [one, two]", "a: {children: {b: }}\nb: {children: {a: }}", "all: {hosts: one}"]
)
def test_what_is_no_inventory_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "hosts.yaml").write_text(text)
    with pytest.raises(BadInput, match="this is no inventory of groups with hosts"):
        from_inventory(tmp_path / "hosts.yaml")


def limited(fleet: Fleet, pattern: str) -> list[str]:
    return list(fleet.limited(pattern).sites)


def test_a_pattern_limits_the_hosts(tmp_path: Path) -> None:
    names = ("db1", "www1", "www2")
    fleet = load(written(tmp_path, {name: host(n) for n, name in enumerate(names, start=1)}))
    assert limited(fleet, "www*") == ["www1", "www2"]
    assert limited(fleet, "db1, www2") == ["db1", "www2"]
    assert limited(fleet, "!www1") == ["db1", "www2"]
    with pytest.raises(BadInput, match="no host is called so\nTry: www1"):
        fleet.limited("vww1")


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"host": {}}, "there is no key host in a fleet's file\nTry: call it hosts"),
        ({"image": "theirs"}, "image must be own or canary, not 'theirs'"),
        ({"image": [1]}, r"image must be own or canary, not \[1\]"),
        ({"fleet": "a/b"}, "cannot call the fleet 'a/b'"),
        ({"hosts": {}}, "it has no host"),
        ({"hosts": ["one"]}, "hosts must be a mapping"),
        ({"hosts": {"one": 1}}, "hosts.one must be a mapping"),
        ({"hosts": {"web[1:3]": {}}}, r"cannot call a host 'web\[1:3\]'"),
        ({"base": "gone.yaml"}, "there is no such parameters file"),
        ({"base": ""}, "base must be text"),
        ({"csv": "gone.csv"}, "No such file"),
    ],
)
def test_a_file_that_is_no_fleet_is_refused(tmp_path: Path, keys: Values, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        load(written(tmp_path, **{"hosts": {"one": host(1)}} | keys))
