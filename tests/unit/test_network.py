"""The bridge of dom0, on the real kernel: a network namespace with a real sshd plays dom0."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files as package_files
from pathlib import Path

import pytest

from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.platform.interfaces import BOND, Ifupdown, More, netifrc_settings
from xenlab.resources.base import All, Resource
from xenlab.resources.files import File
from xenlab.resources.network import Bridge, describe, parse_network, physical, vif
from xenlab.transport.ssh import SSH
from xenlab.transport.ssh_config import Target

ADDRESS, GATEWAY = "192.0.2.2", "192.0.2.1"
FAR_GATEWAY = "172.31.1.1"
"""A hoster's: outside of the network of its customers' addresses, which have none (/32)."""
IFUP = Path(__file__).parents[2] / ".venv" / "ifupdown" / "sbin" / "ifup"
IP = os.path.realpath(str(shutil.which("ip")))
PORT = 2222
RECORDED = Path(__file__).parents[1] / "recorded"
VLAN = 100
SIX, GATEWAY6 = "2001:db8::2", "fe80::1"
FURTHER = ("192.0.2.3/24", f"{SIX}/64")
ADVERTISER = Path(__file__).with_name("advertiser.py")
BONDER = Path(__file__).with_name("bonder.sh")
TAGGER = Path(__file__).with_name("tagger.py")
AS_VLAN = (
    f's/"info_kind":"tun","info_data":{{[^}}]*}}/"info_kind":"vlan","info_data":{{"id":{VLAN}}}/g'
)
"""What sed(1) takes so that ip(8) calls that program's interface what it stands for."""


def sh(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def silent(what: str, done: float | None = None) -> None:
    """A report nobody reads."""


@dataclass
class Dom0:
    """A namespace whose only way out is eth0; the outer end of the cable is `cable`."""

    space: str
    cable: str
    folder: Path
    host: Host

    def ip(self, *words: str) -> str:
        return sh("ip", "-n", self.space, *words)

    def answers(self, address: str = ADDRESS) -> bool:
        """Whether one connection, tried once, is made."""
        try:
            socket.create_connection((address, PORT), timeout=3).close()
        except OSError:
            return False
        return True

    def reachable(self, *addresses: str) -> bool:
        """The first attempts may come before a new interface passes frames on a busy machine."""
        deadline = time.monotonic() + 60
        while not all(self.answers(each) for each in addresses or (ADDRESS,)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def bridge(
        self, *, on_bridge: bool = False, seconds: int = 30, name: str = "xenbr0", **more: str
    ) -> Bridge:
        settings = self.folder / "settings"
        values = {
            "UPLINK": "eth0",
            "BRIDGE": name,
            "VIF": "vif0.0",
            "ADDRESS_ON": "bridge" if on_bridge else "uplink",
            **more,
        }
        settings.write_text("".join(f"{k}={shlex.quote(v)}\n" for k, v in values.items()))
        return Bridge(
            uplink="eth0",
            bridge=name,
            address=f"{ADDRESS}/24",
            gateway=GATEWAY,
            address_on_bridge=on_bridge,
            rollback_seconds=seconds,
            program=str(self.program()),
            settings=str(settings),
            confirmed=str(self.folder / "confirmed"),
            meeting=str(self.folder / "meeting"),
        )

    def program(self, then: str = "") -> Path:
        """The real program; ``then`` is shell text that runs after a start, as a fault."""
        path = self.folder / "xenlab-bridge"
        text = package_files("xenlab").joinpath("templates", "xenlab-bridge.sh").read_text()
        path.write_text(text)
        path.chmod(0o755)
        if not then:
            return path
        faulty = self.folder / "faulty"
        faulty.write_text(f'#!/bin/sh\n{path} "$@" || exit 1\n[ "$1" != start ] || {then}\n')
        faulty.chmod(0o755)
        return faulty


@pytest.fixture
def dom0(tmp_path: Path) -> Iterator[Dom0]:
    """dom0 with its plain network: eth0 with address and gateway, and an sshd."""
    space, world, cable = f"xlt{os.getpid()}", f"xlw{os.getpid()}", "cable"
    sshd = None
    sh("ip", "netns", "add", space)
    sh("ip", "netns", "add", world)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        # the test itself moves into the world outside: this machine's own network is not touched
        enter(world)
        sh("ip", "link", "set", "lo", "up")
        words = ("type", "veth", "peer", "name", "eth0", "netns", space)
        sh("ip", "link", "add", "dev", cable, *words)
        sh("ip", "address", "add", f"{GATEWAY}/24", "dev", cable)
        sh("ip", "link", "set", cable, "up")
        for command in (
            "link set lo up",
            "link set eth0 up",
            f"address add {ADDRESS}/24 brd 192.0.2.255 dev eth0",
            f"route add default via {GATEWAY} dev eth0 onlink",
        ):
            sh("ip", "-n", space, *command.split())
        sshd, target = start_sshd(space, tmp_path)
        host = Host(SSH(target, connect_timeout=3.0))
        yield Dom0(space, cable, tmp_path, host)
        host.transport.close()
    finally:
        if sshd is not None:
            sshd.terminate()
            sshd.wait(5)
        set_namespace(home)
        os.close(home)
        sh("ip", "netns", "delete", world)
        sh("ip", "netns", "delete", space)


@pytest.fixture
def tagged(dom0: Dom0, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dom0]:
    """dom0 without any address, in a world that is a VLAN; a kernel that has none gets help."""
    tools = dom0.folder / "bin"
    tools.mkdir()
    ip = shutil.copy(IP, tools / "real")
    on_cable = ("link", "add", "link", dom0.cable, "name", "world", "type", "vlan", "id", str(VLAN))
    if subprocess.run([str(ip), *on_cable], capture_output=True, check=False).returncode:
        (tools / "ip").write_text(
            "#!/bin/sh\n"
            'case "$*" in\n'
            f'"link add link "*) {sys.executable} {TAGGER} "$4" "$6" "${{10}}" >> {tools}/pids'
            " < /dev/null 2> /dev/null || exit\n"
            f'    mac=$({ip} -o link show dev "$4" | sed "s/.*ether \\([^ ]*\\).*/\\1/")\n'
            f'    exec {ip} link set dev "$6" address "$mac" ;;\n'
            f'"-details -json address show") {ip} "$@" | sed \'{AS_VLAN}\' ;;\n'
            f'*) exec {ip} "$@" ;;\nesac\n'
        )
        (tools / "ip").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        sh("ip", *on_cable)
    dom0.ip("address", "flush", "dev", "eth0")
    dom0.ip("link", "set", "eth0", "down")
    sh("ip", "address", "flush", "dev", dom0.cable)
    sh("ip", "address", "add", f"{GATEWAY}/24", "dev", "world")
    sh("ip", "link", "set", "world", "up")
    yield dom0
    pids = tools / "pids"
    for pid in pids.read_text().split() if pids.exists() else ():
        os.kill(int(pid), signal.SIGKILL)


def enter(space: str) -> None:
    handle = os.open(f"/run/netns/{space}", os.O_RDONLY)
    set_namespace(handle)
    os.close(handle)


def set_namespace(handle: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.setns(handle, 0) == 0, os.strerror(ctypes.get_errno())


def start_sshd(space: str, folder: Path) -> tuple[subprocess.Popen[bytes], Target]:
    for name in ("hostkey", "userkey"):
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    public = (folder / "hostkey.pub").read_text().split()
    path = f"{folder}/bin:{os.environ['PATH']}"
    (folder / "known_hosts").write_text(f"[{ADDRESS}]:{PORT} {public[0]} {public[1]}\n")
    config = folder / "sshd_config"
    config.write_text(
        f"Port {PORT}\nHostKey {folder}/hostkey\nAuthorizedKeysFile {folder}/userkey.pub\n"
        "StrictModes no\nUsePAM no\nUseDNS no\nPidFile none\nPasswordAuthentication no\n"
        f"SetEnv PATH={path}\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    sshd = subprocess.Popen(
        ["ip", "netns", "exec", space, "/usr/sbin/sshd", "-D", "-e", "-f", str(config)],
        stderr=subprocess.DEVNULL,
    )
    target = Target(
        ADDRESS,
        port=PORT,
        user="root",
        identity=str(folder / "userkey"),
        known_hosts=str(folder / "known_hosts"),
    )
    for _ in range(100):
        if sh("ip", "netns", "exec", space, "ss", "-Htln", f"sport = :{PORT}"):
            return sshd, target
        time.sleep(0.05)
    raise AssertionError("sshd did not start")


def test_switch_over_is_confirmed_and_lasts(dom0: Dom0) -> None:
    bridge = dom0.bridge(seconds=60)
    mac = dom0.ip("-o", "link", "show", "eth0").split("link/ether ")[1].split()[0]
    difference = bridge.probe(dom0.host)
    assert difference is not None and difference.rows
    assert {row["device"] for row in difference.rows} == {"xenbr0", "peth0", "vif0.0", "eth0"}
    bridge.apply(dom0.host, silent)
    bridge.verify(dom0.host)
    wait_for(lambda: not watchers(bridge))
    assert bridge.probe(dom0.host) is None
    assert dom0.reachable()
    words = ("-json", "route", "show", "default")
    text = "decided\n" + dom0.ip("-details", "-json", "address") + "\n" + dom0.ip(*words)
    _, devices, routes = parse_network(text)
    seen = {name: describe(device, f"{ADDRESS}/24") for name, device in devices.items()}
    assert seen["eth0"]["MAC"] == mac
    assert seen["eth0"]["pair"] == "vif0.0"
    assert seen["peth0"]["MAC"] == seen["vif0.0"]["MAC"] == "fe:ff:ff:ff:ff:ff"
    assert [seen[name]["addresses"] for name in ("xenbr0", "peth0", "vif0.0")] == ["none"] * 3
    assert (seen["xenbr0"]["STP"], seen["xenbr0"]["forward delay"]) == ("off", "0")
    assert [(r["gateway"], r["dev"]) for r in routes] == [(GATEWAY, "eth0")]


def settled(dom0: Dom0) -> str:
    """All addresses, as they are once IPv6 has made sure that nobody else has them."""
    deadline = time.monotonic() + 60
    while " tentative " in (addresses := dom0.ip("-d", "-o", "address")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return addresses


def test_a_second_start_changes_nothing(dom0: Dom0) -> None:
    bridge = dom0.bridge()
    bridge.apply(dom0.host, silent)
    before = settled(dom0)
    dom0.host.run(f"{bridge.program} start {bridge.settings}")
    assert bridge.probe(dom0.host) is None
    assert settled(dom0) == before


def test_nobody_confirms_and_the_former_network_comes_back(dom0: Dom0) -> None:
    before = plain_state(dom0)
    bridge = replace(
        dom0.bridge(seconds=4),
        program=str(dom0.program("ip link set peth0 nomaster")),
    )
    with pytest.raises(StepFailed, match="rolled back, the former network is back"):
        bridge.apply(dom0.host, silent)
    assert plain_state(dom0) == before
    assert dom0.reachable()
    assert dom0.host.run("echo here").stdout == "here\n"


def test_a_layout_that_was_confirmed_before_comes_back(dom0: Dom0) -> None:
    pair = dom0.bridge()
    pair.apply(dom0.host, silent)
    Path(pair.confirmed).write_text(Path(pair.settings).read_text())
    before = settled(dom0)
    fault = '{ case "$2" in */confirmed) ;; *) ip link set eth0 nomaster ;; esac; }'
    flat = replace(dom0.bridge(on_bridge=True, seconds=4), program=str(dom0.program(fault)))
    with pytest.raises(StepFailed, match="rolled back, the former network is back"):
        flat.apply(dom0.host, silent)
    assert pair.probe(dom0.host) is None
    assert settled(dom0).splitlines()[0] == before.splitlines()[0]
    assert dom0.reachable()


def test_a_bridge_that_cannot_be_made_is_undone_at_once(dom0: Dom0) -> None:
    before = plain_state(dom0)
    bridge = dom0.bridge(name="no/name", seconds=100)
    start = time.monotonic()
    with pytest.raises(StepFailed, match="could not be made; the former network is back"):
        bridge.apply(dom0.host, silent)
    assert time.monotonic() - start < 90
    assert plain_state(dom0) == before


def test_a_killed_controller_does_not_lock_anybody_out(dom0: Dom0) -> None:
    before = plain_state(dom0)
    bridge = dom0.bridge(seconds=3)
    bridge._start(dom0.host)
    dom0.host.transport.close()
    outcome = Path(bridge.meeting, "outcome")
    wait_for(lambda: outcome.exists() and outcome.read_text())
    assert outcome.read_text() == "rolled back\n"
    assert plain_state(dom0) == before
    assert bridge.probe(dom0.host) is not None


def test_an_unconfirmed_switch_over_is_no_finished_one(dom0: Dom0) -> None:
    bridge = dom0.bridge(seconds=60)
    bridge._start(dom0.host)
    wait_for(lambda: Path(bridge.meeting, "switched").exists())
    dom0.host.transport.close()
    difference = bridge.probe(dom0.host)
    assert difference is not None and difference.summary.startswith("confirm")
    assert watchers(bridge)
    bridge.apply(dom0.host, silent)
    wait_for(lambda: not watchers(bridge))
    bridge.verify(dom0.host)


def test_the_step_that_is_ended_leaves_the_way_back_alive(dom0: Dom0) -> None:
    bridge = dom0.bridge(seconds=4)
    marked = dom0.host.marked("abcdef")
    bridge._start(marked)
    wait_for(lambda: Path(bridge.meeting, "switched").exists())
    assert dom0.host.end_marked("abcdef") == 0
    outcome = Path(bridge.meeting, "outcome")
    wait_for(lambda: outcome.exists() and outcome.read_text())
    assert outcome.read_text() == "rolled back\n"


def test_address_on_the_bridge_and_from_one_form_to_the_other(dom0: Dom0) -> None:
    before = plain_state(dom0)
    flat = dom0.bridge(on_bridge=True)
    flat.apply(dom0.host, silent)
    flat.verify(dom0.host)
    assert dom0.reachable()
    pair = dom0.bridge()
    assert pair.probe(dom0.host) is not None
    pair.apply(dom0.host, silent)
    pair.verify(dom0.host)
    flat = dom0.bridge(on_bridge=True)
    flat.apply(dom0.host, silent)
    flat.verify(dom0.host)
    assert dom0.reachable()
    dom0.host.run(f"{flat.program} stop {flat.settings}", check=False)
    assert plain_state(dom0) == before


def vlan_bridge(dom0: Dom0, *, on_bridge: bool, vlan: int = VLAN) -> Bridge:
    bridge = dom0.bridge(
        on_bridge=on_bridge, UPLINK="vlan100", VIF="vif0.100", CARD="eth0", VLAN=str(vlan)
    )
    return replace(bridge, uplink="vlan100", vlan=vlan, rollback_seconds=120)


def vlan_values() -> tuple[str, str, str, str, More]:
    return "vlan100", f"{ADDRESS}/24", GATEWAY, "xenbr0", More("eth0", VLAN)


def test_a_vlan_is_moved_to_the_bridge_and_back(tagged: Dom0) -> None:
    assert not tagged.answers()
    ifup(tagged, *Ifupdown().uplink(*vlan_values()))
    assert tagged.reachable()
    before = plain_state(tagged)
    for on_bridge in (False, True, False):
        bridge = vlan_bridge(tagged, on_bridge=on_bridge)
        assert bridge.probe(tagged.host) is not None
        bridge.apply(tagged.host, silent)
        bridge.verify(tagged.host)
        assert tagged.reachable()
        # the card itself stays what it is
        assert " master " not in tagged.ip("-o", "link", "show", "dev", "eth0")
    tagged.host.run(f"{bridge.program} stop {bridge.settings}", check=False)
    assert plain_state(tagged) == before
    assert tagged.reachable()


def names(dom0: Dom0) -> list[str]:
    return [line.split()[1] for line in dom0.ip("-o", "link").splitlines()]


@pytest.mark.parametrize("on_bridge", [False, True])
def test_a_vlan_at_boot(tagged: Dom0, on_bridge: bool) -> None:
    """The bridge first, then the addresses; once more, and as the network's service stops it."""
    bridge = vlan_bridge(tagged, on_bridge=on_bridge)
    sh("ip", "netns", "exec", tagged.space, bridge.program, "start", bridge.settings)
    stanzas = Ifupdown().on_bridge if on_bridge else Ifupdown().beside_bridge
    ifup(tagged, *stanzas(*vlan_values()))
    assert bridge.probe(tagged.host) is None
    assert tagged.reachable()
    links = names(tagged)
    ifup(tagged, *stanzas(*vlan_values()), down=True)
    ifup(tagged, *stanzas(*vlan_values()))
    assert names(tagged) == links
    assert tagged.reachable()


def test_another_vlan_is_another_network(tagged: Dom0) -> None:
    bridge = vlan_bridge(tagged, on_bridge=False, vlan=VLAN + 1)
    sh("ip", "netns", "exec", tagged.space, bridge.program, "start", bridge.settings)
    ifup(tagged, *Ifupdown().beside_bridge(*vlan_values()))
    assert not tagged.answers()


def test_nobody_confirms_a_vlan_s_bridge(tagged: Dom0) -> None:
    ifup(tagged, *Ifupdown().uplink(*vlan_values()))
    before = plain_state(tagged)
    fault = str(tagged.program("ip link set pvlan100 nomaster"))
    bridge = replace(vlan_bridge(tagged, on_bridge=False), rollback_seconds=4)
    with pytest.raises(StepFailed, match="rolled back, the former network is back"):
        replace(bridge, program=fault).apply(tagged.host, silent)
    assert plain_state(tagged) == before
    assert tagged.reachable()


@pytest.fixture
def bonded(dom0: Dom0, monkeypatch: pytest.MonkeyPatch) -> Dom0:
    """dom0 with two cards and without any address; a kernel that has no bonds gets help."""
    tools = dom0.folder / "bin"
    tools.mkdir()
    ip = shutil.copy(IP, tools / "real")
    sh("ip", "link", "add", "dev", "cable2", "type", "veth", "peer", "name", "eth1")
    sh("ip", "link", "set", "eth1", "netns", dom0.space)
    dom0.ip("address", "flush", "dev", "eth0")
    dom0.ip("link", "set", "eth0", "down")
    words = ("-n", dom0.space, "link", "add", "dev", "try0", "type", "bond")
    if subprocess.run([str(ip), *words], capture_output=True, check=False).returncode == 0:
        dom0.ip("link", "delete", "dev", "try0")
        return dom0
    (tools / "cards").touch()
    (tools / "ip").write_text(BONDER.read_text().replace("FOLDER", str(tools)))
    (tools / "ip").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return dom0


def bond_values(dom0: Dom0) -> tuple[str, str, str, str, More]:
    program = dom0.folder / "xenlab-bond"
    text = package_files("xenlab").joinpath("templates", "xenlab-bond.sh").read_text()
    program.write_text(text.replace("-gt 150", "-gt 5"))
    program.chmod(0o755)
    cards = ("eth0", "eth1", "eth9")
    more = More("bond0", 0, bond="bond0", mode="active-backup", cards=cards, bonds=str(program))
    return "bond0", f"{ADDRESS}/24", GATEWAY, "xenbr0", more


def bond_bridge(dom0: Dom0, *, on_bridge: bool) -> Bridge:
    bridge = dom0.bridge(
        on_bridge=on_bridge,
        UPLINK="bond0",
        BOND="bond0",
        MODE="active-backup",
        CARDS="eth0 eth1 eth9",
    )
    bond = ("active-backup", "eth0", "eth1")
    return replace(bridge, uplink="bond0", rollback_seconds=120, bond=bond)


def without_links(dom0: Dom0) -> list[str]:
    """The plain state without the interfaces: a card may have no carrier for a moment."""
    return [line for line in plain_state(dom0) if "<" not in line]


def test_a_bond_is_moved_to_the_bridge_and_back(bonded: Dom0) -> None:
    """Of the three cards one is broken, and not there."""
    program, stanza = Ifupdown().beside_bridge(*bond_values(bonded))
    assert isinstance(program, File) and program.path == BOND
    ifup(bonded, stanza)
    assert bonded.reachable()
    before = without_links(bonded)
    for on_bridge in (False, True, False):
        bridge = bond_bridge(bonded, on_bridge=on_bridge)
        found = bridge.probe(bonded.host)
        assert found is not None
        assert not [row for row in found.rows if row["what"] == "bond"]
        bridge.apply(bonded.host, silent)
        bridge.verify(bonded.host)
        assert bonded.reachable()
    other = replace(bridge, bond=("802.3ad", "eth0", "eth1", "eth9")).probe(bonded.host)
    assert other is not None
    assert [(row["device"], row["now"]) for row in other.rows if row["what"] == "bond"] == [
        ("eth0", "active-backup"),
        ("eth1", "active-backup"),
        ("eth9", "none"),
    ]
    bonded.host.run(f"{bridge.program} stop {bridge.settings}", check=False)
    assert without_links(bonded) == before
    assert bonded.reachable()


@pytest.mark.parametrize("on_bridge", [False, True])
def test_a_bond_at_boot(bonded: Dom0, on_bridge: bool) -> None:
    """The bridge first, then the addresses; once more."""
    stanzas = Ifupdown().on_bridge if on_bridge else Ifupdown().beside_bridge
    _, stanza = stanzas(*bond_values(bonded))
    bridge = bond_bridge(bonded, on_bridge=on_bridge)
    for _ in range(2):
        sh("ip", "netns", "exec", bonded.space, bridge.program, "start", bridge.settings)
    ifup(bonded, stanza)
    assert bridge.probe(bonded.host) is None
    assert bonded.reachable()


def test_nobody_confirms_a_bond_s_bridge(bonded: Dom0) -> None:
    ifup(bonded, Ifupdown().beside_bridge(*bond_values(bonded))[1])
    before = without_links(bonded)
    fault = str(bonded.program("ip link set pbond0 nomaster"))
    bridge = replace(bond_bridge(bonded, on_bridge=False), rollback_seconds=4)
    with pytest.raises(StepFailed, match="rolled back, the former network is back"):
        replace(bridge, program=fault).apply(bonded.host, silent)
    assert without_links(bonded) == before
    assert bonded.reachable()


def test_a_vlan_of_a_bond_comes_after_the_bond(tmp_path: Path) -> None:
    """As Debian's own ifup reads the file."""
    cards = ("uplink0", "uplink1")
    more = More("bond0", VLAN, bond="bond0", mode="802.3ad", cards=cards)
    program, stanza = Ifupdown().beside_bridge("vlan100", "192.0.2.2/24", GATEWAY, "xenbr0", more)
    assert isinstance(program, File) and isinstance(stanza, File)
    place = tmp_path / "interfaces"
    place.write_text(stanza.text())
    words = (str(IFUP), "--no-act", "--verbose", f"--state-dir={tmp_path}", "-i", str(place), "-a")
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    said = (done.stdout + done.stderr).splitlines()
    steps = [
        next(number for number, line in enumerate(said) if what in line)
        for what in (
            f"{program.path} bond0 802.3ad uplink0 uplink1",
            "ip link set dev bond0 up",
            "ip link add link bond0 name vlan100 type vlan id 100",
            "ip addr add 192.0.2.2",
        )
    ]
    assert steps == sorted(steps)


def test_a_bond_without_any_card_is_none(bonded: Dom0) -> None:
    program = str(bond_values(bonded)[-1].bonds)
    words = ("ip", "netns", "exec", bonded.space, program, "bond0", "active-backup", "eth8", "eth9")
    assert subprocess.run(words, capture_output=True, check=False).returncode == 1
    assert "bond0" not in bonded.ip("-o", "link")


def on_many(dom0: Dom0, gateway6: str) -> More:
    """A world with IPv6 as well; dom0 is without any address."""
    for address in ("2001:db8::1/64", f"{GATEWAY6}/64"):
        sh("ip", "address", "add", address, "dev", dom0.cable, "nodad")
    dom0.ip("address", "flush", "dev", "eth0")
    dom0.ip("link", "set", "eth0", "down")
    return More(addresses=FURTHER if gateway6 != "auto" else FURTHER[:1], gateway6=gateway6)


def bridge_of_many(dom0: Dom0, more: More, *, on_bridge: bool) -> Bridge:
    value = {GATEWAY6: "0", "auto": "2"}[more.gateway6]
    bridge = dom0.bridge(on_bridge=on_bridge, seconds=120, ACCEPT_RA=value)
    return replace(bridge, addresses=more.addresses, gateway6=more.gateway6)


def uplink_of_many(more: More) -> tuple[str, str, str, str, More]:
    return "eth0", f"{ADDRESS}/24", GATEWAY, "xenbr0", more


def accepts(dom0: Dom0, interface: str) -> str:
    """What an interface makes of router advertisements."""
    place = f"/proc/sys/net/ipv6/conf/{interface}/accept_ra"
    return sh("ip", "netns", "exec", dom0.space, "cat", place).strip()


def test_further_addresses_are_moved_to_the_bridge_and_back(dom0: Dom0) -> None:
    more = on_many(dom0, GATEWAY6)
    ifup(dom0, *Ifupdown().uplink(*uplink_of_many(more)))
    everywhere = (ADDRESS, "192.0.2.3", SIX)
    assert dom0.reachable(*everywhere)
    settled(dom0)
    before = plain_state(dom0)
    for on_bridge in (False, True, False):
        bridge = bridge_of_many(dom0, more, on_bridge=on_bridge)
        found = bridge.probe(dom0.host)
        assert found is not None
        wanted = [row["wanted"] for row in found.rows if row["what"] in ("address", "gateway")]
        holder = "xenbr0" if on_bridge else "eth0"
        if on_bridge:
            gateways = [f"{each} over {holder}" for each in (GATEWAY, GATEWAY6)]
            assert wanted == [f"{ADDRESS}/24", *FURTHER, *gateways]
        bridge.apply(dom0.host, silent)
        bridge.verify(dom0.host)
        assert dom0.reachable(*everywhere)
        assert accepts(dom0, holder) == "0"
    dom0.host.run(f"{bridge.program} stop {bridge.settings}", check=False)
    assert plain_state(dom0) == before
    assert dom0.reachable(*everywhere)


def test_nobody_confirms_and_further_addresses_come_back(dom0: Dom0) -> None:
    more = on_many(dom0, GATEWAY6)
    ifup(dom0, *Ifupdown().uplink(*uplink_of_many(more)))
    settled(dom0)
    before = plain_state(dom0)
    fault = str(dom0.program("ip link set peth0 nomaster"))
    bridge = replace(bridge_of_many(dom0, more, on_bridge=False), rollback_seconds=4)
    with pytest.raises(StepFailed, match="rolled back, the former network is back"):
        replace(bridge, program=fault).apply(dom0.host, silent)
    assert plain_state(dom0) == before
    assert dom0.reachable(ADDRESS, "192.0.2.3", SIX)


@pytest.mark.parametrize("on_bridge", [False, True])
def test_further_addresses_at_boot(dom0: Dom0, on_bridge: bool) -> None:
    """The bridge first, then the addresses; once more, and as the network's service stops it."""
    more = on_many(dom0, GATEWAY6)
    bridge = bridge_of_many(dom0, more, on_bridge=on_bridge)
    sh("ip", "netns", "exec", dom0.space, bridge.program, "start", bridge.settings)
    stanzas = Ifupdown().on_bridge if on_bridge else Ifupdown().beside_bridge
    ifup(dom0, *stanzas(*uplink_of_many(more)))
    assert bridge.probe(dom0.host) is None
    assert dom0.reachable(ADDRESS, "192.0.2.3", SIX)
    sh("ip", "netns", "exec", dom0.space, bridge.program, "start", bridge.settings)
    assert bridge.probe(dom0.host) is None


@pytest.mark.parametrize("on_bridge", [False, True])
def test_further_addresses_by_hand(dom0: Dom0, on_bridge: bool) -> None:
    more = on_many(dom0, GATEWAY6)
    bridge = bridge_of_many(dom0, more, on_bridge=on_bridge)
    (command,) = bridge.commands()
    sh("ip", "netns", "exec", dom0.space, "sh", "-euc", f"ip link set eth0 up\n{command.by_hand()}")
    addresses = dom0.ip("-o", "address", "show", "dev", "xenbr0" if on_bridge else "eth0")
    assert all(f" {each} " in addresses for each in FURTHER)
    assert f"via {GATEWAY6} " in dom0.ip("-6", "route", "show", "default")


@pytest.fixture
def advertised(dom0: Dom0) -> Iterator[Dom0]:
    """dom0 without any address, in a world with a router that advertises a prefix."""
    on_many(dom0, "auto")
    words = [sys.executable, str(ADVERTISER), dom0.cable, "2001:db8::"]
    router = subprocess.Popen(words)
    yield dom0
    assert router.poll() is None
    router.kill()
    router.wait(5)


def of_the_router(dom0: Dom0, interface: str) -> str:
    """dom0's address that the router's prefix has made, "" without one or without the route."""
    found = dom0.ip("-o", "-6", "address", "show", "dev", interface, "scope", "global")
    routes = dom0.ip("-6", "route", "show", "default", "dev", interface)
    ready = " dynamic " in found and " tentative " not in found and "proto ra" in routes
    return found.split()[3].partition("/")[0] if ready else ""


def from_the_router(dom0: Dom0, interface: str) -> str:
    """The same, once it is there."""
    wait_for(lambda: of_the_router(dom0, interface))
    return of_the_router(dom0, interface)


def test_what_a_router_advertises_is_kept_on_the_bridge_and_back(advertised: Dom0) -> None:
    dom0, more = advertised, More(addresses=FURTHER[:1], gateway6="auto")
    ifup(dom0, *Ifupdown().uplink(*uplink_of_many(more)))
    own = from_the_router(dom0, "eth0")
    everywhere = (ADDRESS, "192.0.2.3", own)
    assert dom0.reachable(*everywhere)
    for on_bridge in (False, True, False):
        bridge = bridge_of_many(dom0, more, on_bridge=on_bridge)
        assert bridge.probe(dom0.host) is not None
        bridge.apply(dom0.host, silent)
        bridge.verify(dom0.host)
        holder = "xenbr0" if on_bridge else "eth0"
        assert accepts(dom0, holder) == "2"
        assert from_the_router(dom0, holder) == own
        assert dom0.reachable(*everywhere)
    dom0.host.run(f"{bridge.program} stop {bridge.settings}", check=False)
    assert from_the_router(dom0, "eth0") == own
    assert dom0.reachable(*everywhere)
    assert accepts(dom0, "eth0") == "2"


@pytest.mark.parametrize("on_bridge", [False, True])
def test_what_a_router_advertises_at_boot(advertised: Dom0, on_bridge: bool) -> None:
    dom0, more = advertised, More(addresses=FURTHER[:1], gateway6="auto")
    bridge = bridge_of_many(dom0, more, on_bridge=on_bridge)
    sh("ip", "netns", "exec", dom0.space, bridge.program, "start", bridge.settings)
    stanzas = Ifupdown().on_bridge if on_bridge else Ifupdown().beside_bridge
    ifup(dom0, *stanzas(*uplink_of_many(more)))
    holder = "xenbr0" if on_bridge else "eth0"
    assert dom0.reachable(ADDRESS, from_the_router(dom0, holder))
    assert bridge.probe(dom0.host) is None


def test_without_a_router_its_address_is_missing(dom0: Dom0) -> None:
    bridge = replace(dom0.bridge(), gateway6="auto")
    found = bridge.probe(dom0.host)
    assert found is not None
    assert "one that a router advertises" in [row["wanted"] for row in found.rows]


@pytest.mark.parametrize(
    ("gateway6", "routes", "accepted"),
    [
        ("", ["192.0.2.1"], ""),
        ("auto", ["192.0.2.1"], "2"),
        ("fe80::1", ["192.0.2.1", "fe80::1"], "0"),
    ],
)
def test_further_addresses_in_gentoo_s_file(
    gateway6: str, routes: list[str], accepted: str
) -> None:
    more = More(addresses=FURTHER, gateway6=gateway6)
    text = netifrc_settings("eth0", f"{ADDRESS}/24", GATEWAY, more)
    shown = 'echo "$config_eth0"; echo "$routes_eth0"'
    lines = sh("sh", "-euc", f"{text}\n{shown}").splitlines()
    assert lines[0].split() == [f"{ADDRESS}/24", *FURTHER]
    assert [line.split()[2] for line in lines[1:]] == routes
    assert (f"echo {accepted} >" in text) == bool(accepted)


def hosted(dom0: Dom0) -> None:
    """The world of a hoster; dom0 is without any address."""
    dom0.ip("address", "flush", "dev", "eth0")
    sh("ip", "address", "flush", "dev", dom0.cable)
    sh("ip", "address", "add", f"{FAR_GATEWAY}/32", "dev", dom0.cable)
    sh("ip", "route", "add", f"{ADDRESS}/32", "dev", dom0.cable, "src", FAR_GATEWAY)


def ifup(dom0: Dom0, *stanzas: Resource, down: bool = False) -> None:
    """Bring dom0's interfaces up (or down) as Debian's own program does, by a chapter's file."""
    (file,) = stanzas
    file = file.parts[0] if isinstance(file, All) else file
    assert isinstance(file, File)
    place = dom0.folder / "interfaces"
    place.write_text(file.text())
    program = IFUP.with_name("ifdown") if down else IFUP
    words = (str(program), "--no-scripts", f"--state-dir={dom0.folder}", "-i", str(place), "-a")
    # ifup has a PATH of its own
    mine = dom0.folder / "bin" / "ip"
    mounted = f"mount --bind {mine} {IP}; " if mine.exists() else ""
    sh("ip", "netns", "exec", dom0.space, "sh", "-ec", f'{mounted}exec "$@"', "sh", *words)


def hosted_bridge(dom0: Dom0, *, on_bridge: bool) -> Bridge:
    bridge = dom0.bridge(on_bridge=on_bridge)
    return replace(bridge, address=f"{ADDRESS}/32", gateway=FAR_GATEWAY)


def test_a_gateway_on_the_wire_is_moved_to_the_bridge_and_back(dom0: Dom0) -> None:
    hosted(dom0)
    assert dom0.ip("route") == ""
    ifup(dom0, *Ifupdown().uplink("eth0", f"{ADDRESS}/32", FAR_GATEWAY, "xenbr0"))
    assert dom0.reachable()
    before = plain_state(dom0)
    for on_bridge in (False, True):
        bridge = hosted_bridge(dom0, on_bridge=on_bridge)
        assert bridge.probe(dom0.host) is not None
        bridge.apply(dom0.host, silent)
        bridge.verify(dom0.host)
        assert dom0.reachable()
    dom0.host.run(f"{bridge.program} stop {bridge.settings}", check=False)
    assert plain_state(dom0) == before


@pytest.mark.parametrize("on_bridge", [False, True])
def test_a_gateway_on_the_wire_at_boot(dom0: Dom0, on_bridge: bool) -> None:
    """The bridge first, then the addresses."""
    hosted(dom0)
    dom0.ip("link", "set", "eth0", "down")
    bridge = hosted_bridge(dom0, on_bridge=on_bridge)
    sh("ip", "netns", "exec", dom0.space, bridge.program, "start", bridge.settings)
    stanzas = Ifupdown().on_bridge if on_bridge else Ifupdown().beside_bridge
    ifup(dom0, *stanzas("eth0", f"{ADDRESS}/32", FAR_GATEWAY, "xenbr0"))
    assert bridge.probe(dom0.host) is None
    assert dom0.reachable()


@pytest.mark.parametrize("on_bridge", [False, True])
def test_a_gateway_on_the_wire_by_hand(dom0: Dom0, on_bridge: bool) -> None:
    hosted(dom0)
    (command,) = hosted_bridge(dom0, on_bridge=on_bridge).commands()
    sh("ip", "netns", "exec", dom0.space, "sh", "-euc", command.by_hand())
    (route,) = dom0.ip("route", "show", "default").splitlines()
    holder = "xenbr0" if on_bridge else "eth0"
    assert route.split() == ["default", "via", FAR_GATEWAY, "dev", holder, "onlink"]


def test_at_boot_there_is_no_address_yet(dom0: Dom0) -> None:
    dom0.ip("address", "flush", "dev", "eth0")
    dom0.ip("link", "set", "eth0", "down")
    bridge = dom0.bridge()
    sh("ip", "netns", "exec", dom0.space, bridge.program, "start", bridge.settings)
    dom0.ip("address", "add", f"{ADDRESS}/24", "dev", "eth0")
    dom0.ip("route", "add", "default", "via", GATEWAY, "dev", "eth0")
    assert bridge.probe(dom0.host) is None
    assert dom0.reachable()


def test_a_guest_behind_the_bridge_reaches_the_world(dom0: Dom0) -> None:
    dom0.bridge().apply(dom0.host, silent)
    guest = f"{dom0.space}g"
    sh("ip", "netns", "add", guest)
    try:
        dom0.ip("link", "add", "vif1.0", "type", "veth", "peer", "name", "eth0", "netns", guest)
        dom0.ip("link", "set", "vif1.0", "address", "fe:ff:ff:ff:ff:ff", "master", "xenbr0", "up")
        sh("ip", "-n", guest, "address", "add", "192.0.2.21/24", "dev", "eth0")
        sh("ip", "-n", guest, "link", "set", "eth0", "up")
        with socket.create_server((GATEWAY, PORT)):
            for address in (GATEWAY, ADDRESS):
                connect = f"import socket; socket.create_connection(({address!r}, {PORT}), 5)"
                sh("ip", "netns", "exec", guest, sys.executable, "-c", connect)
    finally:
        sh("ip", "netns", "delete", guest)


def test_the_names_of_xend() -> None:
    assert (physical("eth0"), vif("eth0"), vif("eth12"), vif("lan")) == (
        "peth0",
        "vif0.0",
        "vif0.12",
        "vif0.0",
    )


def test_recorded_output_of_ip() -> None:
    state, devices, routes = parse_network((RECORDED / "ip-bridge.txt").read_text())
    assert state == "decided"
    assert describe(devices["eth0"], "192.0.2.2/24")["address"] == "192.0.2.2/24"
    assert describe(devices["peth0"], "")["bridge"] == "xenbr0"
    assert routes[0]["dev"] == "eth0"


def test_no_json_is_a_clear_sentence() -> None:
    with pytest.raises(StepFailed, match="gave no JSON"):
        parse_network('decided\nObject "x" is unknown\n')


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def watchers(bridge: Bridge) -> list[str]:
    """The processes that would still roll a switch-over back."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "switch-network" in words and bridge.meeting in words:
            found.append(process.parent.name)
    return found


def plain_state(dom0: Dom0) -> list[str]:
    """Addresses, MAC and routes as a person sees them, without ages and counters."""
    lines = dom0.ip("-o", "address", "show", "scope", "global").splitlines()
    lines += dom0.ip("-o", "link").splitlines() + dom0.ip("route").splitlines()
    lines += dom0.ip("-6", "route", "show", "default").splitlines()
    # an address that was dom0's before is taken without asking whether it is somebody else's
    words = [" ".join(line.replace("\\", " ").replace(" nodad ", " ").split()) for line in lines]
    return sorted(line.split(": ", 1)[-1] for line in words)
