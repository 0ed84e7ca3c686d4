"""Guests that come and go: what they run with, what is changed live, what is left of one that went.

xl's words are the real xl's: it reads each file here, and says of a domain what it has read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.off_xen import OffXen
from tests.sites import LAB_VALUES, lab_site

from xenlab.chapter.chapter import Chapter
from xenlab.chapter.step import Consents, require_consents
from xenlab.chapters.changes import (
    GuestRemoved,
    GuestRenamed,
    Moved,
    Thing,
    allowed_down,
    guest_values,
    left_of,
    parse_things,
    removed,
    site_says,
    things_on,
    waiting,
)
from xenlab.chapters.disk import swap_space
from xenlab.errors import BadInput, ConsentNeeded, StepFailed
from xenlab.host import Host
from xenlab.platform.running import (
    Change,
    CreatedAgain,
    LiveValues,
    Values,
    changes,
    compared,
    parse_running,
    values_of,
)
from xenlab.platform.xl import Disk, DomainSpec, Vif, Xl, xl_config
from xenlab.resources.base import Difference
from xenlab.resources.blockdevices import identified
from xenlab.resources.ssh_access import Unpinned, way_to_guest
from xenlab.site.disk_plan import device
from xenlab.site.schema import validate
from xenlab.transport import hostkeys
from xenlab.transport.local import Local
from xenlab.transport.ssh_config import Target

HOST = Host(Local())
SPEC = DomainSpec(
    name="domu1",
    kernel="/xenboot/vmlinuz-domU",
    cmdline="root=/dev/xvda1 ro console=hvc0",
    memory_mib=320,
    maxmem_mib=512,
    disks=(Disk("/dev/vda6", "xvda1"), Disk("/mnt/domuswap/domu1.swap", "xvda2")),
    vifs=(Vif("00:16:3E:66:01:01", "xenbr0"),),
    vcpus=2,
)


def silent(what: str, done: float | None = None) -> None:
    """A report that nobody reads."""


def run(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def off_xen(tmp_path_factory: pytest.TempPathFactory) -> OffXen:
    """The real xl, which needs no Xen here."""
    return OffXen(tmp_path_factory.mktemp("xl"))


def read(off_xen: OffXen, spec: DomainSpec) -> Values:
    return values_of(off_xen.read(xl_config(spec)))


# -- what a domain has, and how it differs from its file


def test_what_xl_says_of_a_file_is_understood(off_xen: OffXen) -> None:
    found = read(off_xen, replace(SPEC, disks=(*SPEC.disks, Disk("/dev/vdb", "xvdb", False))))
    assert found == Values(
        type="pv",
        memory_mib=320,
        maxmem_mib=512,
        vcpus=2,
        most_vcpus=2,
        vifs=(("00:16:3e:66:01:01", "xenbr0"),),
        disks=(
            "xvda1 /dev/vda6",
            "xvda2 /mnt/domuswap/domu1.swap",
            "xvdb /dev/vdb (read-only)",
        ),
        boots=("/xenboot/vmlinuz-domU", "", "root=/dev/xvda1 ro console=hvc0"),
    )
    assert str(found).startswith("320 MiB, up to 512; 2 vcpus; 00:16:3e:66:01:01; xvda1 /dev/vda6")


def test_a_domain_is_told_in_the_words_of_a_file(off_xen: OffXen) -> None:
    """``xl list -l`` has libxl's configuration of each domain, as ``create -n`` has a file's."""
    config = off_xen.read(xl_config(SPEC))
    listed = json.dumps([{"domid": 0, "config": {}}, {"domid": 4, "config": config}])
    assert parse_running(listed)["domu1"] == values_of(config)
    assert parse_running("") == {}


LIVE: dict[str, Any] = {
    "memory_mib": (256, "xl mem-set domu1 256"),
    "vifs": (
        (*SPEC.vifs, Vif("00:16:3e:66:02:01", "xenbr1")),
        "xl network-attach domu1 mac=00:16:3e:66:02:01 bridge=xenbr1 < /dev/null",
    ),
}
WAITING: dict[str, Any] = {
    "maxmem_mib": 1024,
    "type": "pvh",
    "vcpus": 3,
    "kernel": "/xenboot/another",
    "ramdisk": "/xenboot/initrd",
    "cmdline": "root=/dev/xvda1 rw",
    "disks": SPEC.disks[:1],
    "vifs": (Vif("00:16:3e:66:01:99", "xenbr0"),),
}


@pytest.mark.parametrize("key", LIVE)
def test_what_xl_can_change_while_the_domain_runs(off_xen: OffXen, key: str) -> None:
    value, command = LIVE[key]
    now = read(off_xen, SPEC)
    (change,) = changes("domu1", now, read(off_xen, replace(SPEC, **{key: value})))
    assert change.live is not None
    assert change.live.by_hand() == command


@pytest.mark.parametrize("key", WAITING)
def test_what_waits_until_the_domain_is_created_again(off_xen: OffXen, key: str) -> None:
    now = read(off_xen, SPEC)
    found = changes("domu1", now, read(off_xen, replace(SPEC, **{key: WAITING[key]})))
    assert found and [each for each in found if each.live is not None] == []
    assert changes("domu1", now, now) == []


def test_processors_go_down_live_and_up_to_what_the_domain_was_created_with(
    off_xen: OffXen,
) -> None:
    two = read(off_xen, SPEC)
    one = read(off_xen, replace(SPEC, vcpus=1))
    down = {each.what: each.live for each in changes("domu1", two, one)}
    assert str(down["vcpus"]) == "xl vcpu-set domu1 1"
    assert down["vcpus at most"] is None
    up = changes("domu1", replace(one, most_vcpus=2), two)
    assert [str(each.live) for each in up] == ["xl vcpu-set domu1 2"]


def test_more_memory_than_the_domain_may_have_waits(off_xen: OffXen) -> None:
    now = read(off_xen, replace(SPEC, maxmem_mib=0))
    wanted = read(off_xen, replace(SPEC, memory_mib=400, maxmem_mib=0))
    found = changes("domu1", now, wanted)
    assert [each.live for each in found] == [None, None]
    assert "320 MiB (memory), its file says 400 MiB" in [str(each) for each in found]


def test_a_long_value_stands_in_the_table_alone() -> None:
    assert str(Change("command line", "a" * 40, "b" * 40)) == (
        "another command line than its file says"
    )


@given(st.dictionaries(st.sampled_from(["b_info", "c_info", "nics", "disks"]), st.just({})))
def test_what_libxl_leaves_out_is_survived(config: dict[str, Any]) -> None:
    values_of(config)


# -- live, on an xl that has one domain; what it reads in files the real one says

XL = """#!{python}
import json, subprocess, sys
from pathlib import Path

state = Path({folder!r}, "state")
config = json.loads(state.read_text())
built, words = config["b_info"], sys.argv[1:]
follows = not Path({folder!r}, "deaf").exists()
if words[:2] == ["create", "-n"]:
    print(Path({folder!r}, "file.json").read_text())
elif words == ["list", "-l", "domu1"]:
    print(json.dumps([{{"domid": 4, "config": config}}], indent=1))
elif words == ["domid", "domu3"] and Path({folder!r}, "running").exists():
    print(3)
elif words == ["list"]:
    print("Name ID Mem VCPUs State Time(s)")
    now = config.get("now", [320, 2])
    print(f"domu1  4 {{now[0]}} {{now[1]}}     -b----     1.0")
elif words[:2] in (["mem-set", "domu1"], ["vcpu-set", "domu1"]):
    now = config.setdefault("now", [320, 2])
    number = int(words[2])
    if words[0] == "mem-set":
        built["target_memkb"] = number << 10
    else:
        built["avail_vcpus"] = list(range(number))
    if follows:
        now[words[0] == "vcpu-set"] = number
    state.write_text(json.dumps(config))
else:
    sys.exit(1)
"""


@pytest.fixture
def xl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off_xen: OffXen) -> Path:
    """A folder with an xl whose domain has what the real one has read in `SPEC`'s file."""
    program = tmp_path / "xl"
    program.write_text(XL.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(0o755)
    (tmp_path / "state").write_text(json.dumps(off_xen.read(xl_config(SPEC))))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def test_memory_and_processors_are_changed_and_the_guest_follows(xl: Path, off_xen: OffXen) -> None:
    wanted = replace(SPEC, memory_mib=256, vcpus=1)
    (xl / "file.json").write_text(json.dumps(off_xen.read(xl_config(wanted))))
    live = LiveValues("domu1", "/etc/xen/domu1.cfg", 256, 1)
    found = live.probe(HOST)
    assert found is not None
    assert found.summary == (
        "domu1 runs with 320 MiB (memory), its file says 256 MiB; with 2 (vcpus), its file says 1"
    )
    assert [each.by_hand() for each in live.commands()] == [
        "xl mem-set domu1 256",
        "xl vcpu-set domu1 1",
    ]
    live.apply(HOST, silent)
    live.verify(HOST)
    assert live.probe(HOST) is None
    # the domain may still have two, as it was created
    waits = Xl().waiting("domu1").probe(HOST)
    assert waits is not None
    assert "2 (vcpus at most), its file says 1" in waits.stays
    assert "restart: [domu1]" in waits.stays
    assert Xl().created_again("domu1").probe(HOST) is not None


def test_a_guest_that_does_not_follow_is_said(
    xl: Path, off_xen: OffXen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenlab.platform.running.FOLLOW_SECONDS", 2.0)
    (xl / "deaf").touch()
    wanted = replace(SPEC, memory_mib=256)
    (xl / "file.json").write_text(json.dumps(off_xen.read(xl_config(wanted))))
    live = LiveValues("domu1", "/etc/xen/domu1.cfg", 256, 2)
    live.apply(HOST, silent)
    with pytest.raises(StepFailed, match=r"cannot give domu1 256 MiB .* because it has 320 MiB"):
        live.verify(HOST)


def test_nothing_is_compared_where_no_such_domain_runs(xl: Path) -> None:
    assert compared(HOST, "domu9", "/etc/xen/domu9.cfg") == []


# -- what the site says, and what is left of a guest that it no longer names


def test_the_site_s_word_on_a_guest_has_all_its_interfaces_and_disks() -> None:
    first, *others = [domain.model_dump() for domain in lab_site().domains]
    more = {
        "nics": [{"mac": "00:16:3e:00:01:01", "bridge": "xenbr2"}],
        "disks": [{"path": "/dev/vdb", "name": "xvdb", "readonly": True}],
        "memory_mib": 256,
        "maxmem_mib": 512,
    }
    site = lab_site(domains=[first | more, *others])
    found = site_says(site, site.domains[0])
    assert (found.memory_mib, found.maxmem_mib) == (256, 512)
    assert found.vifs == (
        (site.domains[0].mac, "xenbr0"),
        ("00:16:3e:00:01:01", "xenbr2"),
        (site.lan_guests[0].mac, "xenbr1"),
    )
    assert found.disks[2:] == ("xvdb /dev/vdb (read-only)",)


@pytest.mark.parametrize(
    ("left_out", "sentence"),
    [
        (
            (),
            "autostart, lan_guests, shared_usr and guest_exports name ftp, which is no domain; "
            "there are domu1, domu2, domu3",
        ),
        (("shared_usr", "guest_exports"), "autostart and lan_guests name ftp, which is no domain"),
        (("shared_usr", "guest_exports", "lan_guests"), "autostart names ftp, which is no domain"),
    ],
)
def test_a_guest_that_went_and_is_named_elsewhere_gets_one_sentence(
    left_out: tuple[str, ...], sentence: str
) -> None:
    given: dict[str, Any] = {
        "autostart": ["ftp"],
        "lan_guests": [
            {"name": "ftp", "mac": "00:16:3e:66:02:09", "address": "10.66.0.19/24"},
        ],
        "shared_usr": ["ftp"],
        "guest_exports": [{"name": "ftp", "path": "/srv/ftp"}],
    }
    given |= {key: [] for key in left_out}
    with pytest.raises(BadInput) as refused:
        validate(LAB_VALUES | given, "site.yaml")
    assert sentence in refused.value.message
    assert refused.value.message.count("no domain") == 1


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A dom0's folders, with what xenlab and somebody else have left there."""
    for path in (
        "etc/xen/auto",
        "mnt/domuswap",
        "mnt/guests",
        "var/log/xen/console",
        "var/lib/xenlab/guests/domu3",
        "var/lib/xenlab/guests/refused",
    ):
        (tmp_path / path).mkdir(parents=True)
    for name in ("domu3", "theirs"):
        (tmp_path / f"etc/xen/{name}.cfg").write_text(f'name = "{name}"\n')
    (tmp_path / "etc/xen/auto/0030-domu3.cfg").symlink_to("../domu3.cfg")
    (tmp_path / "mnt/domuswap/domu3.swap").write_text("swap")
    (tmp_path / "var/log/xen/console/guest-domu3.log").write_text("login:")
    root = tmp_path / "mnt/guests/third.img"
    with root.open("wb") as out:
        out.truncate(16 << 20)
    run("mkfs.ext4", "-q", "-F", root)
    record = tmp_path / "var/lib/xenlab/guests/domu3"
    (record / "root").write_text(f"{'a' * 64} {uuid_of(root)}\n")
    (record / "host_key.pub").write_text("ssh-ed25519 AAAA root@domu3\n")
    return tmp_path


def uuid_of(root: str | Path) -> str:
    return run("blkid", "-p", "-s", "UUID", "-o", "value", root)


@pytest.fixture
def attached(machine: Path) -> Iterator[str]:
    """The guest's root as a block device."""
    loop = run("losetup", "--find", "--show", machine / "mnt/guests/third.img")
    yield loop
    run("losetup", "--detach", loop)


def seen(machine: Path, disk: str = "/dev/null") -> list[Thing]:
    return things_on(HOST, disk, base=str(machine))


def test_what_is_left_is_found_and_its_root_by_the_uuid_on_record(machine: Path) -> None:
    found = {(t.kind, t.name): t.where for t in seen(machine)}
    uuid = found["record", "domu3"]
    assert found == {
        ("record", "domu3"): uuid_of(machine / "mnt/guests/third.img"),
        ("configuration", "domu3"): f"{machine}/etc/xen/domu3.cfg",
        ("configuration", "theirs"): f"{machine}/etc/xen/theirs.cfg",
        ("start with dom0", "domu3"): f"{machine}/etc/xen/auto/0030-domu3.cfg",
        ("swap space", "domu3"): f"{machine}/mnt/domuswap/domu3.swap",
        ("console log", "domu3"): f"{machine}/var/log/xen/console/guest-domu3.log",
        ("root", uuid): f"{machine}/mnt/guests/third.img",
    }
    assert things_on(HOST, "/dev/null", base=str(machine / "nowhere")) == []


@given(st.text())
def test_no_text_breaks_the_look(text: str) -> None:
    parse_things(text)


def gone(machine: Path, disk: str = "/dev/null") -> GuestRemoved:
    found = removed(seen(machine, disk), "domu3", str(machine))
    assert isinstance(found, GuestRemoved)
    return found


def test_data_stays_until_somebody_agrees_by_name(machine: Path) -> None:
    guest, uuid = gone(machine), uuid_of(machine / "mnt/guests/third.img")
    found = guest.probe(HOST)
    assert found is not None
    assert f"--destroy domu3, or may_destroy: [domu3 {uuid}]" in found.stays
    with pytest.raises(ConsentNeeded):
        require_consents(HOST, [guest], Consents(made=("domu2", "domu3 another")))
    agreed = require_consents(HOST, [guest], Consents(made=(f"domu3 {uuid}",)))
    consented = guest.consented(*vars(agreed[guest.wipes()]).values())
    consented.apply(HOST, silent)
    consented.verify(HOST)
    assert {(t.kind, t.name) for t in seen(machine)} == {
        # what starts it has gone in the step before
        ("configuration", "domu3"),
        ("configuration", "theirs"),
        ("start with dom0", "domu3"),
    }


def test_what_nobody_agreed_to_lose_is_not_removed(machine: Path) -> None:
    """Also where another file system came there between the look and the command."""
    guest = gone(machine)
    consented = guest.consented("", guest.destroys(HOST))
    run("tune2fs", "-U", "random", machine / "mnt/guests/third.img")
    for each in (guest, consented):
        with pytest.raises(StepFailed, match="nobody agreed to lose"):
            each.apply(HOST, silent)
    assert (machine / "mnt/domuswap/domu3.swap").exists()


def test_a_partition_loses_its_file_system(machine: Path, attached: str) -> None:
    (machine / "mnt/guests/third.img").rename(machine / "third.disk")
    guest = gone(machine, attached)
    assert (guest.device, guest.wipes()) == (attached, attached)
    assert guest.commands()[0].by_hand().splitlines()[0] == f"wipefs -a {attached}"
    with pytest.raises(StepFailed, match="not the one that somebody consented to"):
        guest.consented("SERIAL=other", guest.destroys(HOST)).apply(HOST, silent)
    consented = guest.consented(identified(HOST, attached).identity, guest.destroys(HOST))
    consented.apply(HOST, silent)
    consented.verify(HOST)
    assert subprocess.run(["blkid", "-p", attached], check=False).returncode == 2


def test_a_partition_goes_out_of_the_table_and_no_other_does(machine: Path) -> None:
    root = machine / "mnt/guests/third.img"
    image = machine / "whole.disk"
    with image.open("wb") as out:
        out.truncate(64 << 20)
    subprocess.run(
        ["sfdisk", "-q", str(image)],
        input=b"label: gpt\nsize=16M, name=domu3\nsize=16M, name=domu4\n",
        check=True,
    )
    disk = run("losetup", "--find", "--show", image)
    try:
        run("partx", "--add", disk)
        run("dd", f"if={root}", f"of={disk}p1", "bs=1M", "conv=fsync", "status=none")
        root.unlink()
        guest = gone(machine, disk)
        assert guest.device == f"{disk}p1"
        guest.consented(identified(HOST, disk).identity, guest.destroys(HOST)).apply(HOST, silent)
        table = json.loads(run("sfdisk", "--json", disk))["partitiontable"]["partitions"]
        assert [each["name"] for each in table] == ["domu4"]
        assert not Path(f"{disk}p1").exists() and Path(f"{disk}p2").exists()
    finally:
        subprocess.run(["partx", "--delete", disk], check=False, capture_output=True)
        run("losetup", "--detach", disk)


def test_a_root_that_is_in_use_stays(machine: Path, attached: str) -> None:
    """A disk file that a domain has by a loop device."""
    guest = gone(machine)
    with pytest.raises(StepFailed, match="a running domain uses"):
        guest.consented("", guest.destroys(HOST)).apply(HOST, silent)
    assert (machine / "var/lib/xenlab/guests/domu3/root").exists()


def test_a_copy_of_its_root_is_not_taken_for_it(machine: Path, attached: str) -> None:
    with pytest.raises(StepFailed, match=rf"{attached} and .*third\.img hold the same"):
        gone(machine, attached)


def test_what_is_left_without_a_root_wants_consent_all_the_same(machine: Path) -> None:
    (machine / "mnt/guests/third.img").unlink()
    guest = gone(machine)
    assert guest.device == ""
    with pytest.raises(ConsentNeeded, match=r"domu3 \(.*domu3\.swap"):
        require_consents(HOST, [guest], Consents())
    guest.consented("", guest.destroys(HOST)).apply(HOST, silent)
    assert not (machine / "mnt/domuswap/domu3.swap").exists()


def test_the_tables_say_whose_it_is(machine: Path) -> None:
    site = lab_site()
    things = [*seen(machine), Thing("domain", "theirs", "7")]
    domains = [d for d in site.domains if d.name != "domu3"]
    fewer = site.model_copy(update={"domains": domains})
    left = left_of(fewer, things)
    assert set(left[left["whose"] == "xenlab's"]["guest"]) == {"domu3"}
    others = left[left["whose"] != "xenlab's"]
    assert others[["guest", "what"]].to_numpy().tolist() == [
        ["theirs", "configuration"],
        ["theirs", "domain"],
    ]
    chapter = cast(Chapter, SimpleNamespace(site=fewer, toolstack=Xl(), target=HOST))
    table = guest_values(chapter)
    assert table[["guest", "said by"]].to_numpy().tolist() == [
        ["domu1", "the site"],
        ["domu2", "the site"],
    ]


def test_a_guest_that_comes_back_has_the_configuration_that_it_had(machine: Path) -> None:
    file, kept = machine / "etc/xen/domu3.cfg", machine / "var/lib/xenlab/guests/domu3/domain.cfg"
    text = file.read_text()
    for old, new in ((file, kept), (kept, file)):
        move = Moved(str(old), str(new))
        assert move.probe(HOST) is not None
        move.apply(HOST, silent)
        move.verify(HOST)
        assert new.read_text() == text and not old.exists()


def test_a_guest_s_own_key_alone_is_pinned_no_more(tmp_path: Path) -> None:
    keys = {}
    for name in ("domu3", "other"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name)
        keys[name] = " ".join((tmp_path / f"{name}.pub").read_text().split()[:2])
    known, config = tmp_path / "known_hosts", tmp_path / "ssh_config"
    config.write_text(f"Host domu3\n  HostName 10.0.2.23\n  UserKnownHostsFile {known}\n")
    record = tmp_path / "records/domu3"
    record.mkdir(parents=True)
    (record / "host_key.pub").write_text(f"{keys['domu3']}\n")
    known.write_text(f"10.0.2.22,10.0.2.23 {keys['domu3']}\n10.0.2.23 {keys['other']}\n")
    way = Target("domu3", str(config))
    key = Unpinned("domu3", way, str(tmp_path / "records"))
    assert key.probe(HOST) is not None
    key.apply(HOST, silent)
    key.verify(HOST)
    assert known.read_text() == f"10.0.2.22 {keys['domu3']}\n10.0.2.23 {keys['other']}\n"
    assert hostkeys.unpin(known, "10.0.2.23", 22, keys["domu3"]) is False
    assert hostkeys.unpin(tmp_path / "none", "10.0.2.23", 22, keys["domu3"]) is False


def test_a_guest_that_is_nowhere_any_more_was_pinned_in_the_site_s_own_file() -> None:
    """No ssh_config names it, and the site has no address for it."""
    way = way_to_guest(lab_site(ssh={"host": "192.0.2.10"}), "gone")
    assert hostkeys.place(way) == (hostkeys.own_file("lab"), "gone", 22)


# -- a guest under a new name, and one that has to be down


def renamed(domain: dict[str, Any]) -> dict[str, Any]:
    return domain | {"name": "web", "formerly": "domu1"}


def test_a_guest_under_a_new_name_keeps_what_it_has_on_the_disk() -> None:
    first, *others = [domain.model_dump(exclude_defaults=True) for domain in lab_site().domains]
    for key in ("partition", "maxmem_mib"):
        first.pop(key, None)
    selected = ("autostart", "lan_guests", "shared_usr", "guest_exports")
    given: dict[str, Any] = {key: [] for key in selected}
    site = lab_site(domains=[renamed(first), *others], **given)
    was = lab_site()
    assert (site.domains[0].partition, site.domains[0].record) == ("domu1", "domu1")
    assert device(site, "domu1") == device(was, "domu1")
    assert swap_space(site, site.domains[0]) == swap_space(was, was.domains[0])
    with pytest.raises(BadInput, match="web was formerly domu2, which is domu2's name"):
        lab_site(domains=[renamed(first) | {"formerly": "domu2"}, *others], **given)


def test_its_file_is_called_so_and_nothing_starts_it_by_the_old_name(machine: Path) -> None:
    folder = machine / "etc/xen"
    rename = GuestRenamed("domu3", "web", str(folder))
    assert rename.probe(HOST) == Difference("call domu3 web from now on")
    rename.apply(HOST, silent)
    rename.verify(HOST)
    assert (folder / "web.cfg").read_text() == 'name = "domu3"\n'
    assert not (folder / "domu3.cfg").exists()
    assert list((folder / "auto").iterdir()) == []
    # a script makes the same, and nothing where that is done
    (script,) = (command.in_script() for command in rename.commands())
    run("sh", "-eu", "-c", script)
    (folder / "web.cfg").rename(folder / "domu3.cfg")
    run("sh", "-eu", "-c", script)
    assert rename.probe(HOST) is None


def test_a_guest_that_runs_by_its_old_name_is_not_renamed(xl: Path, machine: Path) -> None:
    (xl / "running").touch()
    rename = GuestRenamed("domu3", "web", str(machine / "etc/xen"))
    with pytest.raises(StepFailed, match="cannot call domu3 web: because it runs") as refused:
        rename.apply(HOST, silent)
    assert rename.refusal(HOST) == refused.value.message
    assert (machine / "etc/xen/domu3.cfg").exists()


def test_a_guest_is_shut_down_for_a_change_where_the_site_says_so() -> None:
    site = lab_site(restart=["domu2"])
    chapter = cast(Chapter, SimpleNamespace(site=site, toolstack=Xl()))
    wanted = GuestRenamed("mail", "domu2")
    assert allowed_down(chapter, "domu1", wanted) is wanted
    down = allowed_down(chapter, "domu2", wanted, "mail")
    assert next(iter(down.commands())).by_hand() == "xl shutdown -ww mail"
    assert set(waiting(chapter)) == {"domu1", "domu2", "domu3"}
    assert isinstance(waiting(chapter)["domu2"], CreatedAgain)
