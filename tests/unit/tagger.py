"""The interface of a VLAN for a kernel that has none: tags what goes out, takes the tags off again.

Usage: tagger.py CARD NAME VLAN. It leaves a process behind, whose number it says: the interface is
there as long as that lives. What is on the wire are IEEE 802.1Q's frames.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import sys

TUNSETIFF, TAP = 0x400454CA, 0x1002
SOL_PACKET, ADD_MEMBERSHIP, AUXDATA, PROMISCUOUS = 263, 1, 8, 1
OUTGOING, TAGGED = 4, 0x10
EVERYTHING = 3


def main(card: str, name: str, vlan: int) -> None:
    """Until it is killed."""
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", name.encode(), TAP))
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING))
    wire.bind((card, EVERYTHING))
    wire.setsockopt(SOL_PACKET, AUXDATA, 1)
    all_of_it = struct.pack("iHH8s", socket.if_nametoindex(card), PROMISCUOUS, 0, b"")
    wire.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, all_of_it)
    child = os.fork()
    if child:
        print(child)
        return
    os.setsid()
    tag = struct.pack("!HH", 0x8100, vlan)
    while True:
        ready, _, _ = select.select([tap, wire.fileno()], [], [])
        # either may be down for a moment
        with contextlib.suppress(OSError):
            if tap in ready:
                frame = os.read(tap, 65536)
                wire.send(frame[:12] + tag + frame[12:])
        with contextlib.suppress(OSError):
            if wire.fileno() in ready:
                frame, extra, _, origin = wire.recvmsg(65536, 256)
                status, *_, found = struct.unpack("IIIHHH", extra[0][2][:18])
                if status & TAGGED and found & 0xFFF == vlan and origin[2] != OUTGOING:
                    os.write(tap, frame)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
