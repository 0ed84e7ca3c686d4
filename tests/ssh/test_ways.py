"""The ways that a site says apart: to the rescue system, to dom0, to guests, over real sshds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.sites import lab_site
from tests.ssh.conftest import Sshd, wait_until

from xenlab.chapter.chapter import Chapter
from xenlab.errors import ConnectionRefused, HostKeyRefused, Unreachable
from xenlab.host import Host
from xenlab.journal import Journal
from xenlab.resources.ssh_access import HostKeyPinned, OwnKeyPinned, way_to, way_to_guest
from xenlab.site.schema import Parameters
from xenlab.transport import hostkeys
from xenlab.transport.become import Become
from xenlab.transport.local import Local
from xenlab.transport.ssh import SSH
from xenlab.transport.ssh_config import Target, resolve

MakeSshd = Callable[..., Sshd]


@pytest.fixture
def rescue(make_sshd: MakeSshd) -> Sshd:
    return make_sshd(alias="castle")


@pytest.fixture
def dom0(make_sshd: MakeSshd) -> Sshd:
    """The same machine's other system: another port, host key and authorized key."""
    return make_sshd(alias="castle")


@pytest.fixture
def site(
    rescue: Sshd, dom0: Sshd, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Parameters:
    """A site that says all three apart; its guest is ``sshd``, which no ssh_config knows."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    rescue.known_hosts.write_text(rescue.known_hosts.read_text() + dom0.known_hosts.read_text())
    return lab_site(
        ssh={"host": rescue.alias, "config": str(rescue.config), "patience_seconds": 2},
        dom0_ssh={"port": dom0.port, "identity": str(dom0.identity)},
        guest_ssh={"port": sshd.port, "identity": str(sshd.identity)},
        address="127.0.0.2/8",
        gateway="127.0.0.3",
        domains=[
            {"name": "mail", "memory_mib": 64, "mac": "00:16:3e:66:01:01", "address": "127.0.0.1/8"}
        ],
        autostart=[],
        lan_guests=[],
        shared_usr=[],
        guest_exports=[],
    )


def test_a_chapter_goes_on_in_dom0_and_from_there_to_a_guest(
    site: Parameters, rescue: Sshd, dom0: Sshd, sshd: Sshd, tmp_path: Path
) -> None:
    """As after a reboot: the rescue system answers no more, and dom0 does."""
    dom0.stop()
    chapter = Chapter("04_grub", site, Journal(tmp_path / "run"))
    told: list[str] = []

    def note() -> tuple[()]:
        told.append(chapter.host.run("echo $XENLAB_NOTES").stdout.strip())
        return ()

    chapter.ensure("04.1 In the rescue system", note)
    rescue.stop()
    dom0.start()
    wait_until(lambda: not chapter._ssh._connection or not chapter._ssh._connection.alive)
    chapter.ensure("04.2 In dom0", note)
    assert told == [str(rescue.notes), str(dom0.notes)]
    hostkeys.pin(*hostkeys.place(way_to_guest(site, "mail")), sshd.public_key)

    def ask() -> tuple[()]:
        told.append(chapter.guest("mail").run("echo $XENLAB_NOTES").stdout.strip())
        return ()

    chapter.ensure("04.3 In the guest", ask)
    assert told[2:] == [str(sshd.notes)]
    assert dom0.log.read_text().count("Accepted publickey") == 1
    chapter.close()


@pytest.fixture
def way(site: Parameters) -> Target:
    return way_to(site)


def test_each_of_two_systems_is_found_whichever_runs(
    way: Target, rescue: Sshd, dom0: Sshd, opened: Callable[..., SSH]
) -> None:
    ssh = opened(way)
    ask = "echo $XENLAB_NOTES"
    dom0.stop()
    assert ssh.execute(ask, timeout=60)[1].decode().strip() == str(rescue.notes)
    for ends, begins in ((rescue, dom0), (dom0, rescue)):
        ends.stop()
        begins.start()
        wait_until(lambda: ssh._connection is None or not ssh._connection.alive)
        assert ssh.execute(ask, timeout=60)[1].decode().strip() == str(begins.notes)
    assert ssh.connections == 3


def test_what_hinders_either_way_is_said(
    way: Target, rescue: Sshd, dom0: Sshd, opened: Callable[..., SSH]
) -> None:
    # the rescue system lets nobody in, and dom0 may still boot: waiting may help
    dom0.stop()
    allowed = rescue.folder / "authorized_keys"
    allowed.write_text("")
    with pytest.raises(ConnectionRefused) as refused:
        opened(way).connect()
    said = refused.value.message
    assert f"{dom0.port}: because nobody listens" in said.partition("; and in the other way: ")[0]
    assert "cannot log in" in said.partition("; and in the other way: ")[2]
    # none lets in: it does not
    dom0.start()
    dom0.restart(new_key=True)
    with pytest.raises(Unreachable, match="the other way: cannot trust .* its key has changed"):
        opened(way).connect()


def test_a_changed_key_is_no_reason_to_trust_the_other_way_less(
    way: Target, rescue: Sshd, dom0: Sshd, opened: Callable[..., SSH]
) -> None:
    """Another machine may have the rescue system's address by now; nothing is sent to it."""
    rescue.restart(new_key=True)
    ssh = opened(way)
    assert ssh.execute("echo $XENLAB_NOTES", timeout=60)[1].decode().strip() == str(dom0.notes)
    assert "Accepted" not in rescue.log.read_text()
    dom0.restart(new_key=True)
    with pytest.raises(HostKeyRefused):
        opened(way).connect()


def test_dom0_s_key_is_pinned_where_dom0_answers(site: Parameters, dom0: Sshd) -> None:
    file, name, port = hostkeys.place(way_to(site).other or way_to(site))
    assert (name, port) == ("127.0.0.1", dom0.port)
    pinned = OwnKeyPinned(way_to(site))
    (command,) = pinned.commands()
    assert f"|[127.0.0.1]:{dom0.port} |" in command.by_hand() and str(file) in command.by_hand()


def test_what_is_not_said_apart_is_as_ssh_says() -> None:
    ssh = {"host": "castle", "port": 2200, "user": "me", "identity": "~/key", "known_hosts": "~/k"}
    plain = lab_site(ssh=ssh)
    machine = way_to(plain)
    assert machine == Target("castle", "", 2200, "me", "~/key", "~/k")
    apart = lab_site(ssh=ssh, dom0_ssh={"port": 22}, guest_ssh={"user": "root"})
    other = way_to(apart).other
    assert other == Target("castle", "", 22, "me", "~/key", "~/k")
    mail = way_to_guest(apart, "domu1")
    assert (mail.user, mail.address, mail.behind) == ("root", "10.0.2.21", other)
    assert way_to_guest(plain, "domu1").behind == machine


def test_a_user_becomes_root_as_ssh_says_unless_said_apart() -> None:
    anna = {"host": "castle", "user": "anna", "become": "sudo"}
    asked = anna | {"become_password": {"env": "CASTLE_SUDO"}}
    by_sudo = Become("sudo", env="CASTLE_SUDO")
    assert way_to(lab_site(ssh=anna)).become == Become("sudo")
    plain = lab_site(ssh=asked)
    assert way_to(plain) == Target("castle", user="anna", become=by_sudo)
    assert way_to_guest(plain, "domu1").become == by_sudo
    apart = lab_site(
        ssh=asked,
        dom0_ssh={"become": "su", "become_password": {"file": "/root-s"}},
        guest_ssh={"become": "doas"},
    )
    other = way_to(apart).other
    assert other is not None and other.become == Become("su", file="/root-s")
    assert way_to_guest(apart, "domu1").become == Become("doas")
    assert [each.env or each.file for each in apart.masked] == ["CASTLE_SUDO", "/root-s"]
    otherwise = lab_site(ssh=asked, dom0_ssh={"become": "su"}, guest_ssh={"user": "otto"})
    other = way_to(otherwise).other
    assert other is not None and other.become == Become("su")
    assert way_to_guest(otherwise, "domu1").become == Become("su")
    assert way_to(lab_site(ssh={"host": "castle"})).become is None


def test_an_alias_counts_for_a_guest_that_has_one(tmp_path: Path) -> None:
    (config := tmp_path / "config").write_text("Host domu1\n  HostName 192.0.2.9\n")
    site = lab_site(ssh={"host": "castle", "config": str(config), "user": "me"})
    assert way_to_guest(site, "domu1") == Target("domu1", str(config), user="me")
    apart = lab_site(ssh=site.ssh.model_dump(), guest_ssh={"user": "root", "port": 24})
    assert way_to_guest(apart, "domu1") == Target("domu1", str(config), 24, "root")


def test_the_rescue_system_has_an_address_of_its_own(rescue: Sshd) -> None:
    ssh = {"host": "castle", "config": str(rescue.config), "rescue_address": "127.0.0.9"}
    way = way_to(lab_site(ssh=ssh))
    assert way.other is not None
    first, second = resolve(way), resolve(way.other)
    assert (first.host, second.host) == ("127.0.0.9", "127.0.0.1")
    assert (first.port, first.user, first.identities) == (
        second.port,
        second.user,
        second.identities,
    )


def test_a_guest_s_key_is_pinned_for_the_site_alone(
    site: Parameters, sshd: Sshd, tmp_path: Path
) -> None:
    local = Host(Local())
    records = tmp_path / "records"
    (records / "mail").mkdir(parents=True)
    (records / "mail" / "host_key.pub").write_text(f"{sshd.public_key}\n")
    pin = HostKeyPinned("mail", way_to_guest(site, "mail"), str(records))
    assert pin.probe(local) is not None
    pin.apply(local, lambda what, done=None: None)
    assert pin.probe(local) is None
    file = tmp_path / "state" / "xenlab" / "lab" / "known_hosts"
    assert file.read_text() == f"mail {sshd.public_key}\n"
    assert file.stat().st_mode & 0o777 == 0o600
