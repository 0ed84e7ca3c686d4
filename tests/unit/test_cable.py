"""The cable of a machine whose network is not plain: frames as they pass, and its process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from xenlab_lab import cable as program
from xenlab_lab.cable import Cable, frames

GATEWAY = bytes((172, 31, 1, 1))
ROUTER = b"\x52\x55" + GATEWAY
DOM0, GUEST = bytes((203, 0, 113, 5)), bytes((203, 0, 113, 6))
DOM0_MAC, GUEST_MAC = bytes.fromhex("525400123456"), bytes.fromhex("00163e000001")
TAGGED = b"\x81\x00\x00\x64"


def ipv4(source: bytes, to: bytes, mac: bytes = ROUTER) -> bytes:
    return mac + DOM0_MAC + b"\x08\x00" + b"\x45" + bytes(11) + source + to + b"payload"


def arp(sender: bytes, address: bytes) -> bytes:
    words = b"\x08\x06" + bytes.fromhex("0001080006040001")
    return b"\xff" * 6 + sender + words + sender + address + bytes(6) + GATEWAY


def test_a_vlan_s_frames_alone_pass_and_arrive_tagged() -> None:
    cable = Cable(100)
    plain = ipv4(DOM0, GUEST)
    tagged = plain[:12] + TAGGED + plain[12:]
    assert cable.from_machine(tagged) == (plain, b"")
    # its priority is no part of a VLAN's number
    assert cable.from_machine(plain[:12] + b"\x81\x00\xe0\x64" + plain[12:]) == (plain, b"")
    assert cable.to_machine(plain) == tagged
    assert cable.from_machine(plain) == (b"", b"")
    assert cable.from_machine(plain[:12] + b"\x81\x00\x00\x65" + plain[12:]) == (b"", b"")


def test_the_gateway_passes_on_what_is_for_a_neighbour() -> None:
    cable = Cable(neighbours=DOM0[:3], gateway=GATEWAY)
    on, question = cable.from_machine(ipv4(DOM0, GUEST))
    assert on == b""
    # nobody has said where it is: the gateway asks, as itself
    assert question[:14] == b"\xff" * 6 + ROUTER + b"\x08\x06"
    assert question[22:32] == ROUTER + GATEWAY and question[38:42] == GUEST
    answer = arp(GUEST_MAC, GUEST)
    assert cable.from_machine(answer) == (answer, b"")
    frame = ipv4(DOM0, GUEST)
    assert cable.from_machine(frame) == (b"", GUEST_MAC + ROUTER + frame[12:])


def test_what_is_for_others_goes_out_as_it_is() -> None:
    cable = Cable(neighbours=DOM0[:3], gateway=GATEWAY)
    for frame in (
        ipv4(DOM0, GATEWAY),
        ipv4(DOM0, bytes((192, 0, 2, 1))),
        # not by way of the gateway: a neighbour on the machine's own bridge
        ipv4(DOM0, GUEST, GUEST_MAC),
        arp(DOM0_MAC, DOM0),
        b"short",
    ):
        assert cable.from_machine(frame) == (frame, b"")
    assert cable.to_machine(b"anything") == b"anything"


@given(st.lists(st.binary(max_size=70)), st.integers(1, 9))
def test_frames_are_whole_however_they_arrive(sent: list[bytes], size: int) -> None:
    stream = b"".join(len(each).to_bytes(4, "big") + each for each in sent)
    buffer = bytearray()
    found: list[bytes] = []
    for start in range(0, len(stream), size):
        buffer += stream[start : start + size]
        found += frames(buffer)
    assert found == sent and buffer == b""


QEMU = f"""
import socket, sys
near, far = (socket.socket(fileno=n) for n in ({program.NEAR}, {program.FAR}))
near.settimeout(60), far.settimeout(60)
def send(end, frame): end.sendall(len(frame).to_bytes(4, "big") + frame)
def receive(end): return end.recv(int.from_bytes(end.recv(4, socket.MSG_WAITALL), "big"))
send(near, b"machine, network" [:12] + b"\\x81\\x00\\x00\\x64" + b"out")
print(receive(far))
send(far, b"machinefarother")
print(receive(near))
"""


def test_it_becomes_the_machine_and_ends_with_it(tmp_path: Path) -> None:
    settings = json.dumps({"vlan": 100, "neighbours": "", "gateway": "10.0.2.2"})
    words = [sys.executable, "-I", "-S", program.__file__, settings, sys.executable, "-c", QEMU]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    # the pipe ends when nobody holds it any more: what passes frames on has ended as well
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["b'machine, netout'", "b'machinefarot\\x81\\x00\\x00dher'"]


def test_a_machine_that_cannot_be_started_is_said() -> None:
    settings = json.dumps({"vlan": 0, "neighbours": "203.0.113.5", "gateway": "172.31.1.1"})
    words = [sys.executable, "-I", "-S", program.__file__, settings, "no-such-qemu"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "FileNotFoundError" in done.stderr
