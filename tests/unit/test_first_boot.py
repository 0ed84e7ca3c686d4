"""What is in place before the machine boots from its disk: address, host keys, logins, pins."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.sites import lab_site
from tests.unit.rootdir import root_with

from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.platform.interfaces import STANZAS, Ifupdown
from xenlab.platform.interfaces import UPLINK as PATH
from xenlab.resources.base import Programs
from xenlab.resources.files import Directory
from xenlab.resources.ssh_access import (
    AUTHORIZED,
    PUBLIC_KEY,
    AuthorizedKeys,
    OwnKeyPinned,
    way_to_guest,
)
from xenlab.resources.xen import HypervisorLinks
from xenlab.transport import hostkeys
from xenlab.transport.local import Local
from xenlab.transport.ssh_config import Target

(UPLINK,) = Ifupdown().uplink("eth0", "192.0.2.10/24", "192.0.2.1", bridge="xenbr0")
LINES = ["ssh-ed25519 AAAA1 one", 'command="x" ssh-ed25519 AAAA2 two']


def silent(what: str, done: float | None = None) -> None:
    """A report nobody reads."""


@pytest.fixture
def root(tmp_path: Path) -> Host:
    names = "mkdir mktemp chmod chown mv rm cp awk grep ln readlink stat"
    return root_with(tmp_path / "root", *names.split())


def at(root: Host, path: str) -> Path:
    place = Path(root.path(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


# -- the address


def test_the_uplink_gets_the_address(root: Host) -> None:
    difference = UPLINK.probe(root)
    assert difference is not None
    assert "+iface eth0 inet static" in difference.diff
    UPLINK.apply(root, silent)
    assert UPLINK.probe(root) is None
    assert "\taddress 192.0.2.10/24\n\tgateway 192.0.2.1\n" in at(root, PATH).read_text()


def test_another_address_is_a_difference(root: Host) -> None:
    UPLINK.apply(root, silent)
    text = at(root, PATH).read_text()
    at(root, PATH).write_text(text.replace("192.0.2.10", "192.0.2.11"))
    difference = UPLINK.probe(root)
    assert difference is not None
    assert "-\taddress 192.0.2.11/24" in difference.diff


def test_a_bridge_that_has_taken_over_is_left_alone(root: Host) -> None:
    at(root, f"{STANZAS}/xenlab-bridge").write_text("auto xenbr0\niface xenbr0 inet static\n")
    assert UPLINK.probe(root) is None


# -- who may log in


def authorized(folder: Path, *lines: str) -> None:
    path = folder / AUTHORIZED.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def rescue(tmp_path: Path, root: Host) -> Host:
    """A rescue system whose installed root is at /mnt/dom0; its own root is a chroot here."""
    machine = Path(root.root)
    root_with(machine / "mnt" / "dom0")
    authorized(machine, *LINES)
    return Chrooted(root)


class Chrooted(Host):
    """A machine whose ``/`` is a directory: `inside` never leaves it."""

    def __init__(self, host: Host) -> None:
        super().__init__(host.transport, host.root)

    def inside(self, root: str) -> Host:
        return self if root == "/" else Host(self.transport, f"{self.root}{root}")


def test_who_may_log_in_to_the_rescue_system_may_log_in_to_dom0(rescue: Host) -> None:
    keys = AuthorizedKeys("/mnt/dom0")
    difference = keys.probe(rescue)
    assert difference is not None
    assert "2 key(s)" in difference.summary
    keys.apply(rescue, silent)
    assert keys.probe(rescue) is None
    there = at(rescue, f"/mnt/dom0{AUTHORIZED}")
    assert there.read_text().splitlines() == LINES
    assert there.stat().st_mode & 0o777 == 0o600


def test_keys_that_are_there_stay(rescue: Host) -> None:
    authorized(Path(rescue.path("/mnt/dom0")), "ssh-ed25519 AAAA3 three", LINES[0])
    AuthorizedKeys("/mnt/dom0").apply(rescue, silent)
    there = at(rescue, f"/mnt/dom0{AUTHORIZED}").read_text().splitlines()
    assert there == ["ssh-ed25519 AAAA3 three", *LINES]


def test_a_key_for_dom0_alone_is_authorized_beside_them(rescue: Host, tmp_path: Path) -> None:
    key = tmp_path / "castle"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public = " ".join(Path(f"{key}.pub").read_text().split()[:2])
    AuthorizedKeys("/mnt/dom0").apply(rescue, silent)
    keys = AuthorizedKeys("/mnt/dom0", Target("dom0", identity=str(key)))
    difference = keys.probe(rescue)
    assert difference is not None and "1 key(s)" in difference.summary
    assert keys.commands()[-1].by_hand() == f"echo '{public}' >> /mnt/dom0{AUTHORIZED}"
    keys.apply(rescue, silent)
    assert keys.probe(rescue) is None
    assert at(rescue, f"/mnt/dom0{AUTHORIZED}").read_text().splitlines() == [*LINES, public]
    # where nothing is said of the key, that of the rescue system is enough
    assert AuthorizedKeys("/mnt/dom0", Target("dom0", port=2222)).commands() == (
        AuthorizedKeys("/mnt/dom0").commands()
    )


def test_a_key_for_dom0_alone_is_enough(rescue: Host, tmp_path: Path) -> None:
    """Where a user that becomes root logs in to the rescue system, its root has no keys."""
    key = tmp_path / "castle"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    at(rescue, AUTHORIZED).unlink()
    keys = AuthorizedKeys("/mnt/dom0", Target("dom0", identity=str(key)))
    difference = keys.probe(rescue)
    assert difference is not None and "1 key(s)" in difference.summary
    keys.apply(rescue, silent)
    assert keys.probe(rescue) is None


def test_dom0_itself_needs_nobody_else_s_keys(rescue: Host) -> None:
    assert AuthorizedKeys("/").probe(rescue) is None


def test_a_system_that_nobody_could_log_in_to_is_refused(rescue: Host) -> None:
    at(rescue, AUTHORIZED).unlink()
    assert AuthorizedKeys("/mnt/dom0").probe(rescue) is not None
    with pytest.raises(StepFailed, match="nobody could log in"):
        AuthorizedKeys("/mnt/dom0").apply(rescue, silent)


# -- the pinned key


def test_dom0_s_key_is_pinned_beside_the_rescue_system_s(tmp_path: Path, root: Host) -> None:
    for name in ("rescue", "dom0"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(words, check=True)
    known = tmp_path / "known_hosts"
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host dom0\n  HostName 127.0.0.1\n  Port 2222\n  UserKnownHostsFile {known}\n"
    )
    hostkeys.pin(known, "127.0.0.1", 2222, (tmp_path / "rescue.pub").read_text())
    pinned = OwnKeyPinned(Target("dom0", config=str(config)))
    assert pinned.probe(root) is not None
    with pytest.raises(StepFailed, match="there is no host key yet"):
        pinned.apply(root, silent)
    at(root, PUBLIC_KEY).write_text((tmp_path / "dom0.pub").read_text())
    difference = pinned.probe(root)
    assert difference is not None
    assert difference.rows[0]["host"] == "[127.0.0.1]:2222"
    pinned.apply(root, silent)
    assert pinned.probe(root) is None
    assert len(hostkeys.known_keys([known], "127.0.0.1", 2222)) == 2


# -- the hypervisor's names, programs


def test_the_hypervisor_gets_its_names(root: Host) -> None:
    links = HypervisorLinks()
    assert links.probe(root) is not None
    with pytest.raises(StepFailed, match="no hypervisor"):
        links.apply(root, silent)
    at(root, "/boot/xen-4.17-amd64.gz").write_text("")
    at(root, "/boot/xen.gz").symlink_to("xen-4.14-amd64.gz")
    difference = links.probe(root)
    assert difference is not None
    assert difference.rows[0] == {
        "link": "xen.gz",
        "now": "xen-4.14-amd64.gz",
        "wanted": "xen-4.17-amd64.gz",
    }
    links.apply(root, silent)
    assert links.probe(root) is None
    names = ("xen.gz", "xen-4.gz", "xen-4.17.gz")
    assert {str(at(root, f"/boot/{name}").readlink()) for name in names} == {"xen-4.17-amd64.gz"}


def test_an_empty_root_differs_and_raises_nothing(tmp_path: Path) -> None:
    nowhere = Host(Local()).inside(str(tmp_path / "nowhere"))
    for resource in (HypervisorLinks(), UPLINK, Directory("/boot")):
        assert resource.probe(nowhere) is not None


def test_programs_that_are_missing_are_named() -> None:
    host = Host(Local())
    assert Programs(("sh", "/bin/sh")).probe(host) is None
    programs = Programs(("sh", "no-such-program", "/no/such/header.h"), "install them")
    difference = programs.probe(host)
    assert difference is not None
    assert difference.summary.startswith("no-such-program, /no/such/header.h missing")
    with pytest.raises(StepFailed, match="install them"):
        programs.apply(host, silent)


def test_a_guest_s_key_is_pinned_where_its_connection_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (known := tmp_path / "known").touch()
    (config := tmp_path / "config").write_text("Host domu1\n  ProxyJump dom0\n")
    ssh = {"host": "dom0", "port": 2222, "known_hosts": str(known)}
    named = lab_site(ssh=ssh | {"config": str(config)})
    assert hostkeys.place(way_to_guest(named, "domu1")) == (known, "domu1", 2222)
    # no name is looked up: it may be another machine's
    own = tmp_path / "xenlab" / "lab" / "known_hosts"
    for site in (named, lab_site(ssh=ssh)):
        assert hostkeys.place(way_to_guest(site, "domu2")) == (own, "domu2", 22)
