"""A TCP connection to a host that may have several addresses, as RFC 8305 makes it."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
import time
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Any

from xenlab.errors import ConnectionRefused, Unreachable
from xenlab.transport.ssh_config import Route, Target, unknown_name

NEXT_SECONDS = 0.25
"""After how long without an answer the next address is tried as well (RFC 8305, section 5)."""

POLL_SECONDS = 0.1
"""How often a stop request is looked at."""

FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}

Address = tuple[int, int, int, str, Any]
"""What getaddrinfo(3) gives."""


def dial(
    target: Target, route: Route, deadline: float, seconds: float, stop: threading.Event | None
) -> socket.socket:
    """A connection to the first address that takes one; ``deadline`` by the monotonic clock.

    Each next address is tried while the ones before may still answer. Raises Unreachable for a
    name that does not resolve, ConnectionRefused, and KeyboardInterrupt when ``stop`` is set;
    ``seconds`` is the time there was, for the message.
    """
    addresses = _in_turn(_addresses(target, route, deadline, stop))
    failure: OSError = TimeoutError()
    with selectors.DefaultSelector() as waiting:
        try:
            next_at = time.monotonic()
            while addresses or waiting.get_map():
                now = time.monotonic()
                if stop is not None and stop.is_set():
                    raise KeyboardInterrupt
                if now > deadline:
                    failure = TimeoutError()
                    break
                if addresses and (now >= next_at or not waiting.get_map()):
                    next_at = now + NEXT_SECONDS
                    try:
                        _begin(addresses.pop(0), route, waiting)
                    except OSError as error:
                        failure = error
                        continue
                until = min(next_at if addresses else deadline, deadline, now + POLL_SECONDS)
                for ready, _ in waiting.select(max(0.001, until - now)):
                    link: Any = ready.fileobj
                    waiting.unregister(link)
                    status = link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not status:
                        link.setblocking(True)
                        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        return socket.socket(fileno=link.detach())
                    link.close()
                    failure = OSError(status, os.strerror(status))
                    next_at = time.monotonic()
        finally:
            for key in list(waiting.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
    raise _refused(target, route, failure, seconds)


def _begin(address: Address, route: Route, waiting: selectors.BaseSelector) -> None:
    family, kind, protocol, _, place = address
    link = socket.socket(family, kind, protocol)
    try:
        link.setblocking(False)
        if route.bind:
            link.bind((route.bind, 0))
        status = link.connect_ex(place)
        if status not in (0, errno.EINPROGRESS):
            raise OSError(status, os.strerror(status))
    except OSError:
        link.close()
        raise
    waiting.register(link, selectors.EVENT_WRITE)


def _addresses(
    target: Target, route: Route, deadline: float, stop: threading.Event | None
) -> list[Address]:
    """What the resolver answers, which may be slow and cannot be interrupted."""
    found: list[Any] = []

    def ask() -> None:
        with suppress(socket.gaierror, UnicodeError):
            family = FAMILIES.get(route.family, socket.AF_UNSPEC)
            found.extend(
                socket.getaddrinfo(route.host, route.port, family, type=socket.SOCK_STREAM)
            )

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    while asking.is_alive():
        asking.join(POLL_SECONDS)
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        if time.monotonic() > deadline and asking.is_alive():
            raise ConnectionRefused(
                f"cannot connect to {route.host}: because no name server answers",
                where=target.host,
                hint="look at /etc/resolv.conf, or name an address in ssh.host",
            )
    if not found and route.family in FAMILIES:
        raise Unreachable(
            f"cannot connect to {route.host}: because it has no address of the family "
            f"{route.family}",
            where=target.host,
            hint="look at AddressFamily in the ssh_config",
        )
    if not found:
        raise unknown_name(target, route)
    return found


def _in_turn(addresses: list[Address]) -> list[Address]:
    """The families in turn, beginning with the one that the system prefers."""
    first = addresses[0][0]
    one = [each for each in addresses if each[0] == first]
    other = [each for each in addresses if each[0] != first]
    return [each for each in chain(*zip_longest(one, other)) if each is not None]


def _refused(target: Target, route: Route, failure: OSError, seconds: float) -> ConnectionRefused:
    if isinstance(failure, ConnectionRefusedError):
        reason, hint = "nobody listens there", "start sshd there"
    elif isinstance(failure, TimeoutError):
        reason = f"there was no answer within {seconds:.0f} s"
        hint = "check that the machine is up and no firewall drops packets"
    else:
        reason, hint = str(failure.strerror), "check the route"
    return ConnectionRefused(
        f"cannot connect to {route.address}: because {reason}", where=target.host, hint=hint
    )
