"""Power by a management controller, against the simulators that others test with."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from tests.sites import lab_site

from xenlab.errors import BadInput, CommandFailed
from xenlab.host import Host
from xenlab.platform.power import Ipmi, Redfish, power
from xenlab.site.schema import RedfishService
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
def running(log: Path, *words: str | Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with (
        log.open("w") as said,
        subprocess.Popen(words, env=environment, stdout=said, stderr=said) as process,
    ):
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
        tmp_path / "log",
        OPENIPMI / "bin/ipmi_sim",
        *files,
        "-n",
        PATH="/usr/bin:/bin",
        LD_LIBRARY_PATH=LIBRARIES,
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


SYSTEM = "27946b59-9e44-4fa7-8e91-f3527a1ef094"
"""What the emulator calls the one machine that it has."""

CONFIG = """
import logging
logging.basicConfig(level="INFO")
SUSHY_EMULATOR_AUTH_FILE = "{folder}/login"
SUSHY_EMULATOR_STATE_DIR = "{folder}"
SUSHY_EMULATOR_FAKE_SYSTEMS = [
    dict(uuid="{system}", name="castle", power_state="On", nics=[])
]
"""


def certificate(folder: Path) -> tuple[Path, str]:
    """A certificate of 127.0.0.1's own with its key beside it, and the pin of that key."""
    words: list[str | Path] = [
        "-keyout",
        folder / "key.pem",
        "-out",
        folder / "bmc.pem",
        "-subj",
        "/CN=bmc",
    ]
    kind = ["-newkey", "rsa:2048", "-nodes", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", "req", "-x509", *kind, *words], check=True, capture_output=True)
    public: list[str | Path] = [
        "openssl",
        "pkey",
        "-in",
        folder / "key.pem",
        "-pubout",
        "-outform",
        "DER",
    ]
    key = subprocess.run(public, check=True, capture_output=True).stdout
    return folder / "bmc.pem", f"sha256//{base64.b64encode(hashlib.sha256(key).digest()).decode()}"


@dataclass
class Emulator:
    """sushy-tools with one machine, switched on: a Redfish service over HTTPS."""

    port: int
    ca: str
    pin: str
    log: Path

    def system(self) -> dict[str, Any]:
        """What it says of the machine, asked without what is tested."""
        request = urllib.request.Request(
            f"https://127.0.0.1:{self.port}/redfish/v1/Systems/{SYSTEM}",
            headers={
                "Authorization": "Basic "
                + base64.b64encode(":".join(LOGIN.values()).encode()).decode()
            },
        )
        context = ssl.create_default_context(cafile=self.ca)
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def power(self, **service: object) -> Redfish:
        """What a site asks it by, that trusts its certificate if it does not say otherwise."""
        trusted = {"ca": self.ca} if not service.keys() & {"ca", "pin", "plain"} else {}
        values = {"system": SYSTEM, **trusted, **service}
        own = power(lab_site(power="redfish", firmware="uefi", redfish=values))
        assert isinstance(own, Redfish)
        return own


@pytest.fixture
def redfish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """The emulator of sushy-tools, with its driver that only remembers."""
    ca, pin = certificate(tmp_path)
    hashed = bcrypt.hashpw(LOGIN["PASSWORD"].encode(), bcrypt.gensalt(4)).decode()
    (tmp_path / "login").write_text(f"{LOGIN['USER']}:{hashed}\n")
    (tmp_path / "config").write_text(CONFIG.format(folder=tmp_path, system=SYSTEM))
    port = free_port(socket.SOCK_STREAM)
    for name, value in {"HOST": f"127.0.0.1:{port}", **LOGIN}.items():
        monkeypatch.setenv(f"REDFISH_{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    key = tmp_path / "key.pem"
    files = ("--config", tmp_path / "config", "--ssl-certificate", ca, "--ssl-key", key)
    program = Path(sys.prefix) / "bin/sushy-emulator"
    where = ("-i", "127.0.0.1", "-p", str(port))
    emulator = Emulator(port, str(ca), pin, tmp_path / "log")

    def listening() -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    with running(emulator.log, program, "--fake", *where, *files, PATH="/usr/bin:/bin") as process:
        answers(listening, process)
        yield emulator


@pytest.mark.parametrize(("boot", "device"), [("pxe", "Pxe"), ("cdrom", "Cd"), ("usb", "Usb")])
def test_redfish_boots_the_rescue_system_once(redfish: Emulator, boot: str, device: str) -> None:
    own, said = redfish.power(boot=boot), list[str]()
    own.boot("rescue", Host(Local()), lambda what, done=None: said.append(what))
    system = redfish.system()
    assert system["Boot"]["BootSourceOverrideTarget"] == device
    assert system["Boot"]["BootSourceOverrideMode"] == "UEFI"
    recorded = "\n".join([*said, *(each.text for each in own.commands("rescue"))])
    assert [value for value in (str(redfish.port), *LOGIN.values()) if value in recorded] == []


def test_redfish_boots_the_disk_by_a_reset(redfish: Emulator) -> None:
    redfish.power().boot("disk", Host(Local()), silent)
    assert redfish.system()["Boot"]["BootSourceOverrideTarget"] == "Hdd"
    # it is off for some seconds only
    told = [line for line in redfish.log.read_text().splitlines() if "power state" in line]
    assert [line.rpartition(" ")[2] for line in told] == ['"ForceRestart"']


def test_a_redfish_service_is_asked_for_uefi_where_the_site_boots_by_it() -> None:
    for efi in (True, False):
        (device, _) = Redfish(RedfishService(), efi=efi).texts("disk")
        assert ('"BootSourceOverrideMode": "UEFI"' in device) == efi
        assert '"BootSourceOverrideEnabled": "Once"' in device


def test_a_look_at_a_redfish_service_changes_nothing(redfish: Emulator) -> None:
    before = redfish.system()
    redfish.power(boot="http").ready(Host(Local()))
    assert redfish.system() == before
    with pytest.raises(BadInput, match="boots from Pxe, Cd, Hdd, UefiHttp, not from Usb"):
        redfish.power(boot="usb").ready(Host(Local()))


def test_a_redfish_service_is_known_by_its_certificate_or_its_key(redfish: Emulator) -> None:
    for known in ({"ca": redfish.ca}, {"pin": redfish.pin}):
        redfish.power(**known).ready(Host(Local()))
    other = "sha256//r/mIkG3eEpVdm+u/ko/cwxzOMo1bk4TyHIlByibiA5E="
    for unknown, said in (
        ({"ca": ""}, "curl said “curl: .*certificate.*Try: .* redfish: ca or pin"),
        ({"pin": other}, "public key does not match pinned public key"),
        ({"ca": redfish.ca, "pin": other}, "public key does not match pinned public key"),
    ):
        with pytest.raises(BadInput, match=f"(?s){said}"):
            redfish.power(**unknown).ready(Host(Local()))


def test_a_login_that_a_redfish_service_refuses_is_said(
    redfish: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = redfish.system()
    monkeypatch.setenv("REDFISH_PASSWORD", "another-word")
    with pytest.raises(BadInput, match="curl said “.*error: 401”\nTry: compare REDFISH_HOST"):
        redfish.power().ready(Host(Local()))
    with pytest.raises(CommandFailed, match="401"):
        redfish.power().boot("rescue", Host(Local()), silent)
    assert redfish.system() == before


def test_curl_s_own_words_do_not_name_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOST": "bmc.castle.invalid:8443", **LOGIN}.items():
        monkeypatch.setenv(f"REDFISH_{name}", value)
    own = power(lab_site(power="redfish", redfish={"plain": True}))
    (command, _) = own.commands("rescue")
    found = Host(Local()).run(command, check=False)
    assert "Could not resolve host: bmc.castle.invalid" in found.stderr
    with pytest.raises(CommandFailed, match="Could not resolve host: •••") as said:
        own.boot("rescue", Host(Local()), silent)
    assert "bmc.castle" not in str(said.value)


def test_an_answer_that_is_no_redfish_system_s_is_said() -> None:
    for answer in ("<html>", "[]", '{"Name": "castle"}'):
        with pytest.raises(BadInput, match="what answers is no Redfish system"):
            Redfish(RedfishService()).judge(answer)
    Redfish(RedfishService()).judge('{"Boot": {}}')
