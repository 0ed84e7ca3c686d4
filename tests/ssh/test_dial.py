"""Addresses that swallow all that is sent: the kernel's own, in a network namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

SET_UP = """
mount --bind "$1" /etc/hosts
ip link set lo up
ip link add hole type veth peer name end
ip link set hole up
ip link set end up
ip addr add 2001:db8::2/64 dev hole nodad
ip neigh add 2001:db8::1 lladdr 02:00:00:00:00:01 dev hole
ip neigh add 2001:db8::3 lladdr 02:00:00:00:00:03 dev hole
shift
exec "$@"
"""
"""What goes to 2001:db8::1 and 2001:db8::3 is sent, and nobody answers."""

DIAL = """
import json, socket, sys, threading, time
from xenlab.transport.liveness import dial
from xenlab.transport.ssh_config import Target, resolve
name, stops, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
listener = socket.create_server(("127.0.0.1", 2222))
stop = threading.Event()
if stops:
    threading.Timer(stops, stop.set).start()
start = time.monotonic()
target = Target(name, port=2222)
asked = [each[4][0] for each in socket.getaddrinfo(name, 2222, type=socket.SOCK_STREAM)]
try:
    link = dial(target, resolve(target), start + seconds, seconds, stop)
    ended = link.getpeername()[0]
except KeyboardInterrupt:
    ended = "stopped"
except Exception as error:
    ended = str(error)
print(json.dumps({"asked": asked, "ended": ended, "took": time.monotonic() - start}))
"""


def dialled(tmp_path: Path, name: str, stops: float = 0, seconds: float = 300) -> dict[str, Any]:
    """What became of a connection to a name, in a namespace with those addresses."""
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "2001:db8::1 both\n127.0.0.1 both\n2001:db8::1 three\n2001:db8::3 three\n"
        "127.0.0.1 three\n2001:db8::1 hole\n"
    )
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    words = ["unshare", *user, "--mount", "--net", "sh", "-euc", SET_UP, "sh", str(hosts)]
    words += [sys.executable, "-c", DIAL, name, str(stops), str(seconds)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "lib")}
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("name", ["both", "three"])
def test_an_ipv6_address_that_swallows_all_holds_nobody_up(tmp_path: Path, name: str) -> None:
    found = dialled(tmp_path, name)
    assert found["asked"][0].startswith("2001:db8::"), "the system would begin with IPv6"
    assert found["ended"] == "127.0.0.1"
    assert found["took"] < 60


def test_a_stop_is_heard_while_nobody_answers(tmp_path: Path) -> None:
    found = dialled(tmp_path, "hole", stops=0.5)
    assert found["ended"] == "stopped"
    assert found["took"] < 60


def test_nobody_answers_at_all(tmp_path: Path) -> None:
    found = dialled(tmp_path, "hole", seconds=2)
    assert "cannot connect to hole:2222: because there was no answer within 2 s" in found["ended"]
