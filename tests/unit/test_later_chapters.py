"""What chapters 12 to 15 stand on: autostart links, additions, records, exports, the early boot."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sites import lab_site, lab_text

from xenlab.chapters.figures import NOWHERE, Link, layout, nic_figure
from xenlab.chapters.shared_usr import BroughtBack, WhileDown
from xenlab.command import Command
from xenlab.errors import ConnectionRefused, StepFailed
from xenlab.host import Host
from xenlab.platform.xl import Vif, Xl
from xenlab.resources.base import Difference, Once, OnHost, Report, Resource
from xenlab.resources.nfs import Export, ListensOnlyOn, parse_exports, with_entry
from xenlab.resources.shared_usr import parse as parse_needed
from xenlab.resources.xen import (
    MARK,
    AutoLinks,
    DomainAddition,
    DomainConfig,
    joined,
    parse_overview,
    parts,
)
from xenlab.runs import execute
from xenlab.runs.script import runbook
from xenlab.transport.local import Local

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SHOWN = ["11.2", "11.3", "11.4", "11.6"]
HOST = Host(Local())


def silent(what: str, done: float | None = None) -> None:
    """A report that nobody reads."""


# -- autostart


def test_just_the_selected_guests_are_linked_in_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "auto"
    links = AutoLinks(("web", "mail"), str(folder))
    assert links.probe(HOST) is not None
    links.apply(HOST, silent)
    links.verify(HOST)
    assert {path.name: str(path.readlink()) for path in folder.iterdir()} == {
        "0010-web.cfg": "../web.cfg",
        "0020-mail.cfg": "../mail.cfg",
    }
    fewer = AutoLinks(("mail",), str(folder))
    fewer.apply(HOST, silent)
    fewer.verify(HOST)
    assert [path.name for path in folder.iterdir()] == ["0010-mail.cfg"]


def test_a_file_that_xendomains_would_start_is_named(tmp_path: Path) -> None:
    (tmp_path / "mail.cfg~").touch()
    links = AutoLinks(("mail",), str(tmp_path))
    assert links.probe(HOST) is not None
    with pytest.raises(StepFailed) as refused:
        links.apply(HOST, silent)
    assert links.refusal(HOST) == refused.value.message
    assert refused.value.message.endswith("because it holds what is no link: mail.cfg~")
    (tmp_path / "mail.cfg~").unlink()
    assert links.refusal(HOST) == ""


def test_nobody_starts_where_nobody_is_selected(tmp_path: Path) -> None:
    assert AutoLinks((), str(tmp_path / "none")).probe(HOST) is None


# -- additions to a domain's configuration


def test_an_addition_stays_when_the_first_part_is_written_anew() -> None:
    text = joined({"": 'name = "a"\n', "15_x": "b\n", "13_y": "c\n", "14_z": ""})
    assert text == f'name = "a"\n{MARK}13_y\nc\n{MARK}15_x\nb\n'
    assert parts(text) == {"": 'name = "a"\n', "13_y": "c\n", "15_x": "b\n"}


LINES = st.text(
    st.characters(blacklist_characters="\r\n", blacklist_categories=("Cs", "Zl", "Zp", "Cc"))
)


@given(st.lists(LINES), st.dictionaries(st.from_regex(r"1[0-9]_[a-z]+", fullmatch=True), LINES))
def test_what_is_joined_is_taken_apart_again(lines: list[str], added: dict[str, str]) -> None:
    first = "".join(f"{line}\n" for line in lines if not line.startswith(MARK))
    blocks = {name: f"{t}\n" for name, t in added.items() if not t.startswith(MARK)}
    assert parts(joined({"": first} | blocks)) == {"": first} | blocks


def test_the_first_part_does_not_mind_an_addition(tmp_path: Path) -> None:
    path = tmp_path / "domu1.cfg"
    path.write_text(f'name = "domu1"\n{MARK}13_network\nvif += [ "x" ]\n')
    assert DomainConfig(str(path), 'name = "domu1"\n').probe(HOST) is None
    assert DomainAddition(str(path), "13_network", 'vif += [ "x" ]\n').probe(HOST) is None
    other = DomainAddition(str(path), "13_network", 'vif += [ "y" ]\n').probe(HOST)
    assert other is not None and '+vif += [ "y" ]' in other.diff
    gone = DomainAddition(str(path), "13_network", "").probe(HOST)
    assert gone is not None and gone.summary.startswith("take from")
    assert DomainAddition(str(path), "15_shared_usr", "").probe(HOST) is None


def test_an_addition_needs_the_file_it_is_added_to(tmp_path: Path) -> None:
    addition = Xl().extended("domu1", "13_network", vifs=(Vif("00:16:3e:00:00:01", "xenbr1"),))
    assert isinstance(addition, DomainAddition)
    assert addition.text == 'vif += [ "mac=00:16:3e:00:00:01,bridge=xenbr1" ]\n'
    nowhere = DomainAddition(str(tmp_path / "no.cfg"), "13_network", addition.text)
    with pytest.raises(StepFailed, match=r"there is no .*no\.cfg"):
        nowhere.apply(HOST, silent)


# -- what is shown once, and what is elsewhere


@dataclass(frozen=True)
class Action(Resource):
    """An action that counts."""

    done: list[str] = field(default_factory=list, compare=False)
    holds: bool = True

    def probe(self, host: Host) -> Difference | None:
        return Difference("act")

    def apply(self, host: Host, report: Report) -> None:
        self.done.append("applied")

    def verify(self, host: Host) -> None:
        if not self.holds:
            raise StepFailed("it did not hold")


def test_what_was_shown_is_left_alone_whoever_it_was_shown_with(tmp_path: Path) -> None:
    action = Action()
    shown = Once("act", action, "domu1", str(tmp_path))
    assert shown.probe(HOST) == Difference("act")
    shown.apply(HOST, silent)
    shown.verify(HOST)
    assert (tmp_path / "act").read_text() == "act: domu1\n"
    assert shown.probe(HOST) is None
    assert Once("act", action, "domu2", str(tmp_path)).probe(HOST) is None
    assert Once("other", action, "domu1", str(tmp_path)).probe(HOST) is not None


def test_a_record_of_earlier_days_names_the_guest(tmp_path: Path) -> None:
    (tmp_path / "reboot-domu1").write_text("a digest\n")
    assert Once("reboot", Action(), "domu2", str(tmp_path)).probe(HOST) is None
    assert Once("boot", Action(), "domu1", str(tmp_path)).probe(HOST) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_mib": 256, "vcpus": 2, "mac": "00:16:3e:66:01:99"},
        {"name": "another", "partition": "domu1"},
    ],
)
def test_no_other_values_and_no_other_guest_is_demonstrated_with(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    """Chapter 11 by its own cells, for a site whose first guest is another one than was shown."""
    first, *others = [domain.model_dump() for domain in lab_site().domains]
    file = tmp_path / "site.yaml"
    file.write_text(lab_text(domains=[first | changes, *others]))
    plan = execute.prepare(NOTEBOOKS, ("11",), file)
    steps = [s for s in runbook(plan, plan.notebooks[0]).steps if s.title[:4] in SHOWN]
    assert [s.title[:4] for s in steps] == SHOWN
    records = tmp_path / "shown"
    for step in steps:
        (once,) = step.resources
        assert isinstance(once, Once)
        HOST.write(f"{records}/{once.name}", f"{once.name}: domu1\n")
        assert replace(once, records=str(records)).probe(HOST) is None, step.title


def test_what_did_not_hold_is_not_on_record(tmp_path: Path) -> None:
    shown = Once("act", Action(holds=False), "one", str(tmp_path))
    shown.apply(HOST, silent)
    with pytest.raises(StepFailed, match="did not hold"):
        shown.verify(HOST)
    assert shown.probe(HOST) is not None


class Silent(Local):
    """A machine that is switched off."""

    def connect(self, *_: object, **__: object) -> None:
        raise ConnectionRefused("nobody listens")

    def execute(self, *_: object, **__: object) -> tuple[int, bytes, bytes]:
        raise ConnectionRefused("nobody listens")


def test_a_guest_that_does_not_answer_is_a_difference_and_no_end_of_a_plan(tmp_path: Path) -> None:
    links = AutoLinks((), str(tmp_path))
    assert OnHost("web", HOST, links).probe(HOST) is None
    difference = OnHost("web", Host(Silent()), links).probe(HOST)
    assert difference == Difference("once web answers: nobody listens", unknown=True)


# -- exports and listeners


def test_exports_as_exportfs_says_them() -> None:
    text = "/mnt/share  10.66.0.0/24(sync,hide,no_subtree_check,ro)\n/srv/packages\t*(rw)\n"
    assert parse_exports(text.replace("\t", "  ")) == [
        Export("/mnt/share", "10.66.0.0/24", frozenset({"sync", "hide", "no_subtree_check", "ro"})),
        Export("/srv/packages", "*", frozenset({"rw", "subtree_check"})),
    ]


@given(st.text())
def test_any_list_of_exports_is_survived(text: str) -> None:
    parse_exports(text)


def test_a_listener_that_the_outside_reaches_is_named() -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        found = ListensOnlyOn((), ()).probe(HOST)
        assert found is not None
        assert {row["port"]: row["address"] for row in found.rows}[port] == "0.0.0.0"
        others = tuple(row["port"] for row in found.rows)
        assert ListensOnlyOn((), others).probe(HOST) is None


# -- what a boot needs


def test_a_program_of_the_boot_and_where_it_lies() -> None:
    text = (
        "PID 1\t/sbin/init\t/usr/lib/systemd/systemd\t/usr/lib/x86_64-linux-gnu/libc.so.6 \n"
        "x.service\t/opt/x\t/opt/x\t\n"
        "a line that is none\n"
    )
    first, second = parse_needed(text)
    assert (first.unit, first.program, first.in_usr) == ("PID 1", "/sbin/init", True)
    assert (second.libraries, second.in_usr) == ((), False)


@given(st.text())
def test_any_answer_about_the_boot_is_survived(text: str) -> None:
    parse_needed(text)


# -- pictures and the overview

DEVICES: dict[str, dict[str, Any]] = {
    "xenbr0": {"addr_info": []},
    "peth0": {"master": "xenbr0"},
    "vif0.0": {"master": "xenbr0", "link": "eth0"},
    "eth0": {"addr_info": [{"local": "10.0.2.15", "prefixlen": 24}]},
    "vif12.0": {"master": "xenbr0"},
    "vif3.0": {"master": "xenbr0"},
    "vif3.1": {"master": "xenbr1"},
    "xenbr1": {"addr_info": []},
}


def test_the_layout_is_what_the_machine_reports() -> None:
    outer = layout("xenbr0", DEVICES, {3: "web"})
    assert outer.uplink == "peth0"
    assert outer.wires == (
        Link("Domain0", "eth0", "vif0.0", "10.0.2.15/24"),
        Link("web", "eth0", "vif3.0"),
        Link("domain 12", "eth0", "vif12.0"),
    )
    inner = layout("xenbr1", DEVICES, {3: "web"})
    assert (inner.uplink, inner.wires) == (NOWHERE, (Link("web", "eth1", "vif3.1"),))
    texts = {text.get_text() for axes in nic_figure([outer, inner]).axes for text in axes.texts}
    assert {"Domain0", "web", "vif3.1", "xenbr0", "peth0", NOWHERE, "no address"} <= texts


def test_the_overview_of_a_host() -> None:
    recorded = Path(__file__).parents[1] / "recorded" / "xl" / "list.txt"
    text = (
        f"{recorded.read_text()}----\n"
        '[{"ifname": "vif0.1", "master": "xenbr1"}, {"ifname": "veth1", "addr_info": '
        '[{"family": "inet", "local": "10.66.0.1", "prefixlen": 24}]}]\n----\n'
        "/mnt/share  10.66.0.0/24(ro)\n----\n/etc/xen/domu1.cfg\n"
    )
    found = parse_overview(text)
    assert found["bridges"] == "xenbr1: vif0.1"
    assert found["dom0's addresses"] == "veth1 10.66.0.1/24"
    assert found["exports"] == "/mnt/share to 10.66.0.0/24"
    assert found["start with dom0"] == "domu1"
    assert found["domains"].startswith("Domain-0 (")


# -- fstab


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "NEW\n"),
        ("# /mnt/share is shared\na / ext4", "# /mnt/share is shared\na / ext4\nNEW\n"),
        ("old:/ /mnt/share nfs\nb  /b\text4  x\n", "b  /b\text4  x\nNEW\n"),
        ("b /mnt/share2 x\n\n#\udcff\x0c\n", "b /mnt/share2 x\n\n#\udcff\x0c\nNEW\n"),
    ],
)
def test_a_line_of_fstab_replaces_the_one_of_its_path_alone(text: str, wanted: str) -> None:
    assert with_entry(text, "/mnt/share", "NEW") == wanted


@given(st.lists(st.text(st.characters(exclude_characters="\n"), max_size=20), max_size=6))
def test_all_other_lines_of_fstab_stay(lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    kept = [line for line in lines if line.startswith("#") or line.split()[1:2] != ["/x"]]
    once = with_entry(text, "/x", "server:/x /x nfs4")
    assert once == "".join(f"{line}\n" for line in (*kept, "server:/x /x nfs4"))
    assert with_entry(once, "/x", "server:/x /x nfs4") == once


# -- a guest that a run of chapter 15 left down


@dataclass(frozen=True)
class Put(Resource):
    """A file with a text, and who wrote one in which order."""

    path: Path
    text: str

    def probe(self, host: Host) -> Difference | None:
        now = (host.read(str(self.path)) or "") == self.text
        return None if now else Difference(f"write {self.text}")

    def apply(self, host: Host, report: Report) -> None:
        host.write(str(self.path), self.text)
        host.run(Command.script('echo "$2" >> "$1"', f"{self.path.parent}/order", self.text))


@pytest.mark.parametrize(
    ("usr", "told", "order"),
    [
        ("", "own", ["runs"]),
        ("", "the share's", ["own", "runs"]),
        ("half-way", "own", ["swapped", "the share's", "runs"]),
        ("swapped", "own", ["the share's", "runs"]),
        ("swapped", "the share's", ["runs"]),
    ],
)
def test_a_guest_left_down_boots_whatever_moment_the_run_was_cut_off_at(
    tmp_path: Path, usr: str, told: str, order: list[str]
) -> None:
    HOST.write(f"{tmp_path}/usr", usr)
    HOST.write(f"{tmp_path}/config", told)
    config = tmp_path / "config"
    back = BroughtBack(
        Put(tmp_path / "domain", "runs"),
        lambda host: host.read(f"{tmp_path}/usr") != "",
        (Put(tmp_path / "usr", "swapped"), Put(config, "the share's")),
        Put(config, "own"),
    )
    assert back.probe(HOST) == Difference("write runs")
    back.apply(HOST, silent)
    back.verify(HOST)
    assert (tmp_path / "order").read_text().splitlines() == order


def test_a_guest_s_kernel_is_told_before_its_own_usr_comes_back(tmp_path: Path) -> None:
    down, own, back = (Put(tmp_path / name, name) for name in ("down", "own", "back"))
    swap = WhileDown(down, back, (own,))
    swap.apply(HOST, silent)
    swap.verify(HOST)
    assert (tmp_path / "order").read_text().split() == ["down", "own", "back"]
