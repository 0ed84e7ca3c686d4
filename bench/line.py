"""A line with a delay and losses, for a kernel without sch_netem: two TAP interfaces, joined here.

Usage: line.py ONE OTHER SECONDS LOSS. It leaves a process behind, whose number it says: the
interfaces are there as long as that lives. Each frame arrives SECONDS later, and LOSS of a hundred
not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

TUNSETIFF, TAP_WITHOUT_HEADER = 0x400454CA, 0x1002
LONGEST_FRAME = 65536


def tap(name: str) -> int:
    """A new TAP interface's file descriptor."""
    interface = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(interface, TUNSETIFF, struct.pack("16sH", name.encode(), TAP_WITHOUT_HEADER))
    return interface


def join(one: int, other: int, seconds: float, loss: float) -> None:
    """Until it is killed."""
    under_way: deque[tuple[float, int, bytes]] = deque()
    leads_to = {one: other, other: one}
    while True:
        left = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        ready, _, _ = select.select([one, other], [], [], left)
        # either may be down for a moment
        for end in ready:
            with contextlib.suppress(OSError):
                frame = os.read(end, LONGEST_FRAME)
                if random.random() * 100 >= loss:
                    under_way.append((time.monotonic() + seconds, leads_to[end], frame))
        while under_way and under_way[0][0] <= time.monotonic():
            _, end, frame = under_way.popleft()
            with contextlib.suppress(OSError):
                os.write(end, frame)


def main(one: str, other: str, seconds: float, loss: float) -> None:
    """Make both interfaces, and join them in a process of its own."""
    ends = tap(one), tap(other)
    child = os.fork()
    if child:
        print(child)
        return
    os.setsid()
    os.close(1)
    join(*ends, seconds, loss)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
