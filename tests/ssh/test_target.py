"""Targets: what an ssh_config, a person and the defaults say about a host."""

from __future__ import annotations

import getpass
import os
import pwd
from dataclasses import replace
from pathlib import Path

import pytest

from xenlab.errors import BadInput
from xenlab.transport.ssh_config import Target, config_aliases, hops, is_named, resolve


@pytest.fixture
def config(tmp_path: Path) -> Path:
    spaced = tmp_path / "a folder" / "known hosts"
    spaced.parent.mkdir()
    spaced.touch()
    (tmp_path / "more").write_text("Host guest*\n  ProxyJump admin@dom0:2200,[::1]:22\n")
    path = tmp_path / "ssh_config"
    path.write_text(f"""
Include {tmp_path}/more
Host dom0 alias-of-dom0
  HostName 127.0.0.1
  Port 2201
  User admin
  IdentityFile "{tmp_path}/a folder/%h key"
  UserKnownHostsFile "{spaced}" ~/second
  IdentityFile ~/third
  IdentityFile %d/fourth
  GlobalKnownHostsFile none
  HostKeyAlias the-lab
Host behind
  ProxyCommand nc %h %p %%
Match host guest1
  User root
""")
    return path


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The account's own folder, by which OpenSSH goes, while HOME is another one."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return Path(pwd.getpwuid(os.getuid()).pw_dir)


def test_an_alias_brings_everything(config: Path, account: Path) -> None:
    route = resolve(Target("dom0", config=str(config)))
    folder = config.parent / "a folder"
    assert (route.host, route.port, route.user) == ("127.0.0.1", 2201, "admin")
    key = folder / "127.0.0.1 key"
    assert route.identities == (key, account / "third", account / "fourth")
    assert route.known_hosts == (folder / "known hosts", account / "second")
    assert (route.key_alias, route.jump, route.proxy_command) == ("the-lab", "", "")


def test_what_the_person_says_wins(config: Path, tmp_path: Path) -> None:
    for name in ("key", "hosts"):
        (tmp_path / name).touch()
    target = Target(
        "dom0",
        config=str(config),
        port=7,
        user="me",
        identity=str(tmp_path / "key"),
        known_hosts=str(tmp_path / "hosts"),
    )
    route = resolve(target)
    assert (route.host, route.port, route.user) == ("127.0.0.1", 7, "me")
    assert route.identities == (tmp_path / "key",)
    assert route.identities_only
    assert route.known_hosts == (tmp_path / "hosts",)


def test_include_match_and_both_kinds_of_proxy(config: Path) -> None:
    guest = resolve(Target("guest1", config=str(config)))
    assert (guest.user, guest.jump) == ("root", "admin@dom0:2200,[::1]:22")
    assert resolve(Target("behind", config=str(config))).proxy_command == "nc behind 22 %"


def test_a_guest_behind_has_user_and_keys_of_its_host(config: Path, tmp_path: Path) -> None:
    host = Target("dom0", config=str(config), port=7)
    guest = Target("mail", known_hosts=str(tmp_path / "not yet"), address="192.0.2.11", behind=host)
    route, way = resolve(guest), resolve(host)
    assert (route.host, route.port, route.user) == ("192.0.2.11", 22, "admin")
    assert route.identities == way.identities
    assert route.known_hosts == (tmp_path / "not yet",)
    assert route.pinned_as == ("mail", 22)
    assert resolve(replace(guest, user="me", port=8)).user == "me"
    # what `Host *` says of jump hosts leads to the host that it lies behind, not to it
    inner = resolve(
        Target("mail", known_hosts="x", address="::1", behind=Target("guest1", str(config)))
    )
    assert (inner.jump, inner.proxy_command, inner.user) == ("", "", "root")


def test_whether_an_ssh_config_knows_a_name(config: Path, tmp_path: Path) -> None:
    named = {name: is_named(Target(name, str(config))) for name in ("dom0", "behind", "guest1")}
    # a pattern alone, be it in an included file, tells no place
    assert named == {"dom0": True, "behind": True, "guest1": False}
    (tmp_path / "more").write_text("Host mail web\n  HostName %h.example.org\n")
    assert is_named(Target("web", str(config))) and not is_named(Target("Web2", str(config)))
    assert not is_named(Target("web"))


def test_no_ssh_config_is_read_unless_named(config: Path, account: Path) -> None:
    home = config.parent / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "config").write_text("Host dom0\n  Port 99\n")
    route = resolve(Target("dom0"))
    assert (route.host, route.port, route.user) == ("dom0", 22, getpass.getuser())
    assert route.known_hosts[0] == account / ".ssh" / "known_hosts"
    assert route.identities[0] == account / ".ssh" / "id_ed25519"
    # what a person says is expanded as their shell would
    tilde = resolve(Target("dom0", config="~/.ssh/config"))
    assert tilde.port == 99


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            Target("dom0", config="/nowhere/config"),
            "cannot use the ssh_config file /nowhere/config: because",
        ),
        (
            Target("dom0", identity="/nowhere/key"),
            "cannot use the identity file /nowhere/key: because",
        ),
        (
            Target("dom0", known_hosts="/nowhere/k"),
            "cannot use the known_hosts file /nowhere/k: because",
        ),
        (Target(""), "cannot connect to '': because that is no host"),
        (
            Target("-oProxyCommand=true"),
            "cannot connect to '-oProxyCommand=true': because that is no host",
        ),
        (Target("two words"), "cannot connect to 'two words': because that is no host"),
        (Target("a;reboot"), "cannot connect to 'a;reboot': because that is no host"),
        (Target("$(reboot)"), "cannot connect to '$(reboot)': because that is no host"),
        (
            Target("dom0", user="me;reboot"),
            "cannot log in as 'me;reboot': because that is no user name",
        ),
    ],
)
def test_bad_input_gets_one_sentence(target: Target, message: str) -> None:
    with pytest.raises(BadInput) as refused:
        resolve(target)
    assert refused.value.message.startswith(message)


def test_a_damaged_config_is_named_with_its_line(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host dom0\n  Hostnam x\n")
    with pytest.raises(BadInput, match=r"line 2: Bad configuration option: hostnam"):
        resolve(Target("dom0", config=str(config)))


def test_aliases_for_suggestions(config: Path) -> None:
    assert config_aliases(config) == ["dom0", "alias-of-dom0", "behind"]


def test_hops() -> None:
    assert hops("a, me@b:22,ssh://[::1]:2200") == [
        Target("a"),
        Target("b", port=22, user="me"),
        Target("::1", port=2200),
    ]
    with pytest.raises(BadInput, match="ProxyJump 'a:b:c': because 'a:b:c' names no host"):
        hops("a:b:c")
