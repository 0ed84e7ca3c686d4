"""Management controllers: the simulators that others test with, as a site's machine has them."""

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

OPENIPMI = Path(__file__).parents[1] / ".venv/openipmi/usr"
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
    """A machine with a management controller; `told` is what that had it do so far.

    With `environment` it is reached, and ipmitool on a port that needs no root.
    """

    told: Callable[[], list[str]]
    environment: dict[str, str]


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


@contextmanager
def ipmi_simulated(folder: Path) -> Iterator[Castle]:
    """ipmi_sim, with a machine that notes what it is told."""
    port = free_port(socket.SOCK_DGRAM)
    (folder / "lan.conf").write_text(LAN.format(port=port, folder=folder))
    (folder / "castle.emu").write_text(CONTROLLER_2_0)
    executable(folder / "chassis", CHASSIS)
    # the simulator does not say which ciphers it has, and ipmitool waits 10 seconds for that
    words = f'{OPENIPMI}/bin/ipmitool -p {port} -C 3 "$@"'
    executable(folder / "ipmitool", f"#!/bin/sh\nLD_LIBRARY_PATH={LIBRARIES} exec {words}\n")
    login = {"HOST": "127.0.0.1", **LOGIN}
    environment = {f"IPMI_{name}": value for name, value in login.items()}
    environment["PATH"] = f"{folder}:/usr/bin:/bin"
    files = ("-c", folder / "lan.conf", "-f", folder / "castle.emu", "-s", folder / "state")
    told = folder / "told"
    with running(
        folder / "log",
        OPENIPMI / "bin/ipmi_sim",
        *files,
        "-n",
        PATH="/usr/bin:/bin",
        LD_LIBRARY_PATH=LIBRARIES,
    ) as simulator:
        bound = f":{port:04X} "
        answers(lambda: bound in Path("/proc/net/udp").read_text(), simulator)
        yield Castle(lambda: told.read_text().splitlines() if told.exists() else [], environment)


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

    @property
    def told(self) -> list[str]:
        """What it was told to do with the power so far."""
        lines = [line for line in self.log.read_text().splitlines() if "power state" in line]
        return [line.rpartition(" ")[2].strip('"') for line in lines]

    @property
    def environment(self) -> dict[str, str]:
        """With these it is reached."""
        login = {"HOST": f"127.0.0.1:{self.port}", **LOGIN}
        named = {f"REDFISH_{name}": value for name, value in login.items()}
        return named | {"NO_PROXY": "127.0.0.1"}


@contextmanager
def redfish_emulated(folder: Path) -> Iterator[Emulator]:
    """The emulator of sushy-tools, with its driver that only remembers."""
    ca, pin = certificate(folder)
    hashed = bcrypt.hashpw(LOGIN["PASSWORD"].encode(), bcrypt.gensalt(4)).decode()
    (folder / "login").write_text(f"{LOGIN['USER']}:{hashed}\n")
    (folder / "config").write_text(CONFIG.format(folder=folder, system=SYSTEM))
    port = free_port(socket.SOCK_STREAM)
    key = folder / "key.pem"
    files = ("--config", folder / "config", "--ssl-certificate", ca, "--ssl-key", key)
    program = Path(sys.prefix) / "bin/sushy-emulator"
    where = ("-i", "127.0.0.1", "-p", str(port))
    emulator = Emulator(port, str(ca), pin, folder / "log")

    def listening() -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    with running(emulator.log, program, "--fake", *where, *files, PATH="/usr/bin:/bin") as process:
        answers(listening, process)
        yield emulator
