"""The cable of a machine whose network is not plain: a VLAN's tag, and a hoster's router.

It is started in QEMU's place, as ``python -I -S cable.py SETTINGS qemu-system-x86_64 …``, gives
QEMU two sockets and becomes it; what was split off before passes frames from one to the other,
and ends with QEMU. So it imports what a start needs and nothing else. The settings are JSON, as
`xenlab_lab.hardware` writes them. `near` is the machine's end, `far` that of QEMU's user network.

With ``vlan`` the machine's frames pass with that tag alone. With ``neighbours`` the gateway passes
on what one of the machine's own addresses sends to another, as a router does between customers that
share no network (/32 on both sides); QEMU's would drop it.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress

NEAR, FAR = 10, 11
"""The descriptors under which QEMU finds its ends."""

_TAG = b"\x81\x00"
_ARP, _IPV4 = b"\x08\x06", b"\x08\x00"
_EVERYBODY = b"\xff" * 6
_QUESTION = bytes.fromhex("0001080006040001")
_PIECE = 1 << 18


class Cable:
    """What becomes of each frame; ``neighbours`` are the leading bytes of their addresses."""

    def __init__(self, vlan: int = 0, neighbours: bytes = b"", gateway: bytes = b"") -> None:
        self._tag = _TAG + vlan.to_bytes(2, "big") if vlan else b""
        self._neighbours = neighbours
        self._gateway = gateway
        # of QEMU's user network: its gateway's address is in that
        self._router = b"\x52\x55" + gateway
        self._known: dict[bytes, bytes] = {}

    def from_machine(self, frame: bytes) -> tuple[bytes, bytes]:
        """What goes on to the network, and what comes back to the machine; b"": nothing."""
        if self._tag:
            if frame[12:14] != _TAG or int.from_bytes(frame[14:16], "big") & 0xFFF != self._number:
                return b"", b""
            frame = frame[:12] + frame[16:]
        if frame[12:14] == _ARP:
            self._known[frame[28:32]] = frame[22:28]
        to = frame[30:34]
        if not self._neighbours or frame[12:14] != _IPV4 or frame[:6] != self._router:
            return frame, b""
        if not to.startswith(self._neighbours):
            return frame, b""
        if to in self._known:
            return b"", self._known[to] + self._router + frame[12:]
        # whoever sent it sends it again, as over any router
        asks = _QUESTION + self._router + self._gateway + bytes(6) + to
        return b"", _EVERYBODY + self._router + _ARP + asks

    def to_machine(self, frame: bytes) -> bytes:
        """What arrives there of a frame."""
        return frame[:12] + self._tag + frame[12:]

    @property
    def _number(self) -> int:
        return int.from_bytes(self._tag[2:], "big")


def frames(stream: bytearray) -> Iterator[bytes]:
    """Take all whole frames out of what QEMU has sent: each behind its length, in 4 bytes."""
    while len(stream) >= 4 and len(stream) >= (end := 4 + int.from_bytes(stream[:4], "big")):
        yield bytes(stream[4:end])
        del stream[:end]


def carry(cable: Cable, near: socket.socket, far: socket.socket) -> None:
    """Pass frames on, both ways, until QEMU closes one of the ends."""
    read = {near: bytearray(), far: bytearray()}
    with selectors.DefaultSelector() as ready:
        for end in read:
            ready.register(end, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                end = near if key.fileobj is near else far
                piece = end.recv(_PIECE)
                if not piece:
                    return
                read[end] += piece
                for frame in frames(read[end]):
                    on, back = cable.from_machine(frame) if end is near else (b"", frame)
                    back = cable.to_machine(back) if back else back
                    for to, sent in ((far, on), (near, back)):
                        if sent:
                            to.sendall(len(sent).to_bytes(4, "big") + sent)


def main(settings: str, words: list[str]) -> None:
    """Split the cable off and become QEMU; where QEMU cannot be started, its caller is told."""
    values = json.loads(settings)
    gateway = socket.inet_aton(values["gateway"])
    neighbours = socket.inet_aton(values["neighbours"])[:3] if values["neighbours"] else b""
    (near, near_of_qemu), (far, far_of_qemu) = socket.socketpair(), socket.socketpair()
    if os.fork() == 0:
        near_of_qemu.close()
        far_of_qemu.close()
        # a machine that is cut off takes both ends with it
        with suppress(OSError):
            carry(Cable(values["vlan"], neighbours, gateway), near, far)
        os._exit(0)
    near.close()
    far.close()
    for end, number in ((near_of_qemu, NEAR), (far_of_qemu, FAR)):
        os.dup2(end.fileno(), number, inheritable=True)
    os.execvp(words[0], words)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
