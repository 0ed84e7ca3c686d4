"""The socket under an SSH connection: how it is made, and that it notices a silent peer."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Any

from xenlab.errors import ConnectionRefused, Unreachable
from xenlab.transport.local import end_group
from xenlab.transport.ssh_config import Route, Target, unknown_name

LONGEST_SILENCE = 10
"""How many times its patience a connection may be silent where no question could be asked."""


class LivenessSocket:
    """A socket-like object that remembers when the peer was last heard.

    A TCP connection to a machine that was switched off looks alive for many minutes, and
    keepalives that want no answer never notice it. The connection's own thread reads here
    several times a second, so this is where a dead peer can be declared dead: `asked` is called
    when a question was sent, and if nothing at all comes back for ``patience`` seconds, reading
    and writing raise EOFError, which ends everything that waits.
    """

    def __init__(self, channel: Any, patience: float, on_close: Callable[[], None]) -> None:
        self._channel = channel
        self._patience = patience
        self._on_close = on_close
        self._heard = time.monotonic()
        self._asked: float | None = None
        self._stuck: float | None = None
        self._closed = False
        self.silent = False

    @property
    def owed(self) -> float:
        """For how many seconds the peer has owed an answer, 0 where it owes none."""
        asked = self._asked
        return 0.0 if asked is None else time.monotonic() - asked

    def asked(self) -> None:
        """A question that the peer must answer was sent."""
        if self._asked is None:
            self._asked = time.monotonic()

    def recv(self, size: int) -> bytes:
        """Up to ``size`` bytes, b"" at the end; TimeoutError, EOFError from a silent peer."""
        try:
            piece: bytes = self._channel.recv(size)
        except TimeoutError:
            # While keys are renegotiated nobody asks; but no peer is that quiet.
            self._check(self._asked or self._heard + LONGEST_SILENCE * self._patience)
            raise
        except OSError:
            # A reset connection has ended like any other; whoever waits learns that it has.
            return b""
        self._heard = time.monotonic()
        self._asked = None
        return piece

    def send(self, data: bytes) -> int:
        """Send some of the bytes; TimeoutError, EOFError to a silent peer."""
        try:
            sent: int = self._channel.send(data)
        except TimeoutError:
            if self._stuck is None:
                self._stuck = time.monotonic()
            self._check(self._stuck)
            raise
        self._stuck = None
        return sent

    def writable(self) -> bool:
        """Whether a packet can be sent now without waiting for the peer."""
        if not isinstance(self._channel, socket.socket) or self._closed:
            return True
        try:
            poller = select.poll()
            poller.register(self._channel, select.POLLOUT)
            return bool(poller.poll(0))
        except (OSError, ValueError):
            return True

    def settimeout(self, seconds: float) -> None:
        """How long reading and writing wait."""
        self._channel.settimeout(seconds)

    def close(self) -> None:
        """Close the socket and what carries it."""
        if not self._closed:
            self._closed = True
            self._channel.close()
            self._on_close()

    def _check(self, since: float) -> None:
        if time.monotonic() - since > self._patience:
            self.silent = True
        if self.silent:
            raise EOFError("the peer is silent")


def proxy_process(command: str) -> tuple[socket.socket, Callable[[], str], Callable[[], None]]:
    """Start a ProxyCommand; return the socket to it, its last words, and how to end it."""
    ours, theirs = socket.socketpair()
    # Read after the end, so nobody but the garbage collector closes it.
    errors = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"],
        stdin=theirs.fileno(),
        stdout=theirs.fileno(),
        stderr=errors,
        start_new_session=True,
    )
    theirs.close()

    def last_words() -> str:
        with contextlib.suppress(OSError, ValueError):
            words = os.pread(errors.fileno(), 65536, 0).decode("utf-8", "replace")
            return (words.strip().splitlines() or [""])[-1]
        return ""

    return ours, last_words, lambda: end_group(process, 1.0)


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
