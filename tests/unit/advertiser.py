"""Advertises a prefix on an interface, and itself as IPv6's router, until it is ended (RFC 4861).

As radvd(8) does, without being asked: advertiser.py INTERFACE PREFIX
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time

ROUTER_ADVERTISEMENT, PREFIX_INFORMATION = 134, 3
ON_LINK_AND_FOR_ADDRESSES = 0xC0


def main(interface: str, prefix: str) -> None:
    index = socket.if_nametoindex(interface)
    out = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    network = socket.inet_pton(socket.AF_INET6, prefix)
    words = (PREFIX_INFORMATION, 4, 64, ON_LINK_AND_FOR_ADDRESSES, 7200, 3600, 0, network)
    # the kernel writes the checksum
    text = struct.pack("!BBHBBHII", ROUTER_ADVERTISEMENT, 0, 0, 64, 0, 1800, 0, 0)
    text += struct.pack("!BBBBIII16s", *words)
    while True:
        # the interface's own address comes a moment after it is up
        with contextlib.suppress(OSError):
            out.sendto(text, ("ff02::1", 0, 0, index))
        time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
