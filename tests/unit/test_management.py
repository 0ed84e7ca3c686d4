"""Power by a management controller, against the simulators that others test with."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.sites import lab_site

from xenlab.errors import BadInput, CommandFailed
from xenlab.host import Host
from xenlab.platform.power import Ipmi, power
from xenlab.transport.local import Local

OPENIPMI = Path(__file__).parents[2] / ".venv/openipmi/usr"
LIBRARIES = f"{OPENIPMI}/lib/x86_64-linux-gnu"
LOGIN = {"USER": "operator", "PASSWORD": "s3cret-word"}
ANSWER_SECONDS = 60.0

LAN = """
name "castle"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_admin md5
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{folder}/chassis"
  user 2 true "operator" "s3cret-word" admin 10 md5
"""
CONTROLLER_2_0 = """
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
mc_enable 0x20
"""
# the machine that it controls: what it is told to do is noted, its power is as it was told last
CHASSIS = """#!/bin/sh
cd "${0%/*}"
case "$1 $2" in
    "get power") echo "power:$(cat power 2> /dev/null || echo 1)" ;;
    "get boot") echo boot:default ;;
    "set power") echo "$3" > power ;;
esac
[ "$1" = get ] || echo "$@" >> told
"""


@dataclass
class Castle:
    """A machine with a management controller; `told` is what that had it do so far."""

    told: Callable[[], list[str]]


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@contextmanager
def running(*words: str | Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def answers(question: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + ANSWER_SECONDS
    while not question():
        assert process.poll() is None and time.monotonic() < end, "the simulator does not answer"
        time.sleep(0.2)


def silent(what: str, done: float | None = None) -> None:
    """Nobody is told."""


@pytest.fixture
def ipmi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Castle]:
    """ipmi_sim, and ipmitool on a port that needs no root."""
    port = free_port(socket.SOCK_DGRAM)
    (tmp_path / "lan.conf").write_text(LAN.format(port=port, folder=tmp_path))
    (tmp_path / "castle.emu").write_text(CONTROLLER_2_0)
    executable(tmp_path / "chassis", CHASSIS)
    # the simulator does not say which ciphers it has, and ipmitool waits 10 seconds for that
    words = f'{OPENIPMI}/bin/ipmitool -p {port} -C 3 "$@"'
    executable(tmp_path / "ipmitool", f"#!/bin/sh\nLD_LIBRARY_PATH={LIBRARIES} exec {words}\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name, value in {"HOST": "127.0.0.1", **LOGIN}.items():
        monkeypatch.setenv(f"IPMI_{name}", value)
    files = ("-c", tmp_path / "lan.conf", "-f", tmp_path / "castle.emu", "-s", tmp_path / "state")
    told = tmp_path / "told"
    with running(
        OPENIPMI / "bin/ipmi_sim", *files, "-n", PATH="/usr/bin:/bin", LD_LIBRARY_PATH=LIBRARIES
    ) as simulator:
        bound = f":{port:04X} "
        answers(lambda: bound in Path("/proc/net/udp").read_text(), simulator)
        yield Castle(lambda: told.read_text().splitlines() if told.exists() else [])


def test_ipmi_boots_the_rescue_system_and_the_disk(ipmi: Castle) -> None:
    controller = Host(Local())
    own = power(lab_site(power="ipmi", ipmi_boot="cdrom", firmware="uefi"))
    assert isinstance(own, Ipmi)
    own.ready(controller)
    assert ipmi.told() == [], "a look has changed something"
    own.boot("rescue", controller, silent)
    # a cycle is off, and later on
    assert ipmi.told()[:2] == ["set boot cdrom", "set power 0"]
    own.boot("disk", controller, silent)
    # what the simulator calls the disk
    assert "set boot default" in ipmi.told()


def test_a_boot_device_that_ipmi_sim_refuses_leaves_the_power_alone(ipmi: Castle) -> None:
    with pytest.raises(CommandFailed, match="Set Chassis Boot Parameter 5 failed"):
        Ipmi("usb").boot("rescue", Host(Local()), silent)
    assert ipmi.told() == []


def test_a_login_that_ipmi_sim_refuses_is_said_before_anything_else(
    ipmi: Castle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPMI_PASSWORD", "another-word")
    own = power(lab_site(power="ipmi"))
    assert isinstance(own, Ipmi)
    with pytest.raises(BadInput, match="ipmitool said “Error: Unable to establish IPMI v2") as said:
        own.ready(Host(Local()))
    assert "IPMI_HOST, _USER and _PASSWORD" in str(said.value)


def test_ipmitool_s_own_words_do_not_name_the_controller(
    ipmi: Castle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPMI_HOST", "bmc.castle.invalid")
    own = power(lab_site(power="ipmi"))
    assert isinstance(own, Ipmi)
    (command, _) = own.commands("rescue")
    found = Host(Local()).run(command, check=False)
    assert "Address lookup for bmc.castle.invalid failed" in found.stderr
    with pytest.raises(CommandFailed, match="Address lookup for ••• failed") as said:
        own.boot("rescue", Host(Local()), silent)
    assert "bmc.castle" not in str(said.value)
