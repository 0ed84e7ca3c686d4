"""Connection: one authenticated SSH connection; where paramiko's transport is set up and tamed."""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import paramiko
from paramiko.common import MSG_CHANNEL_REQUEST, cMSG_CHANNEL_REQUEST, cMSG_GLOBAL_REQUEST
from paramiko.ssh_exception import IncompatiblePeer

from xenlab import hostkeys
from xenlab.errors import ConnectionRefused, NoConnection, Unreachable
from xenlab.login import log_in
from xenlab.target import SSH_PORT, Route, Target, unknown_name
from xenlab.wire import Wire, proxy_process

FAILURES = (paramiko.SSHException, EOFError, OSError)
"""What paramiko raises where a connection, a channel or a server's SFTP fails."""

ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}


QUICK_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
"""What is asked for first: it encrypts and authenticates in one pass."""


class SessionRefused(Exception):
    """The server opens no further channel; nothing was started."""


class Connection:
    """An authenticated connection on which channels are opened."""

    def __init__(self, transport: paramiko.Transport, wire: Wire, keepalive: float) -> None:
        self.wire = wire
        self._transport = transport

        def ask() -> None:
            # paramiko's own keepalive wants no answer, so it cannot tell a dead peer.
            if transport.clear_to_send.is_set():
                message = paramiko.Message()
                message.add_byte(cMSG_GLOBAL_REQUEST)
                message.add_string("keepalive@openssh.com")
                message.add_boolean(True)
                wire.asked()
                transport._send_user_message(message)  # type: ignore[attr-defined]

        transport.packetizer.set_keepalive(keepalive, ask)

    @property
    def alive(self) -> bool:
        """Whether the connection still stands as far as anybody knows."""
        return self._transport.is_active()

    def session(self, timeout: float) -> paramiko.Channel:
        """Open a channel for one command.

        Raises SessionRefused, TimeoutError, or EOFError where the connection has died; nothing
        was started in any of these cases.
        """
        return self._open("session", None, timeout)

    def tunnel(self, host: str, port: int, timeout: float) -> paramiko.Channel:
        """Open a channel that the other side connects to another machine; raises as `session`."""
        return self._open("direct-tcpip", (host, port), timeout)

    def start(self, channel: paramiko.Channel, text: str) -> None:
        """Send a command; whether it started is seen by `started` once the channel closes."""
        channel._event_pending()  # type: ignore[attr-defined]
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_REQUEST)
        message.add_int(channel.remote_chanid)
        message.add_string("exec")
        message.add_boolean(True)
        message.add_string(text.encode("utf-8", "surrogateescape"))
        # Channel.exec_command would wait for the answer with no deadline and deaf to a stop.
        self._transport._send_user_message(message)  # type: ignore[attr-defined]

    @staticmethod
    def started(channel: paramiko.Channel) -> bool:
        """Whether the server accepted the command."""
        return bool(channel.event_ready)

    def close(self) -> None:
        """End the connection and whatever carries it."""
        self._transport.close()
        self.wire.close()

    def _open(self, kind: str, to: tuple[str, int] | None, timeout: float) -> paramiko.Channel:
        start = time.monotonic()
        try:
            return self._transport.open_channel(
                kind, dest_addr=to, src_addr=("127.0.0.1", 0), timeout=timeout
            )
        except paramiko.ChannelException as error:
            raise SessionRefused(error.text) from error
        except FAILURES as error:
            if not self.alive:
                raise EOFError(str(error)) from error
            if time.monotonic() - start >= timeout:
                raise TimeoutError(timeout) from error
            raise SessionRefused(str(error)) from error


def connect(
    target: Target,
    route: Route,
    via: Connection | None,
    *,
    timeout: float,
    keepalive: float,
    patience: float,
) -> Connection:
    """Connect and log in, over another connection where ``via`` is given.

    Raises NoConnection, which kind tells why, with one sentence; at the latest after about
    ``timeout`` seconds.
    """
    # An application that has no logging set up would get paramiko's tracebacks on stderr.
    log = logging.getLogger("paramiko")
    if not log.hasHandlers():
        log.addHandler(logging.NullHandler())
    deadline = time.monotonic() + timeout
    channel, last_words, on_close = _dial(target, route, via, timeout)
    wire = Wire(channel, patience, on_close)
    carrier: Any = wire
    transport = _Transport(carrier)
    try:
        _greet(transport, target, route, deadline, timeout, last_words)
        files, name, port = route.known_hosts, route.key_alias or route.host, route.port
        if route.key_alias:
            port = SSH_PORT
        hostkeys.check(transport.get_remote_server_key(), files, name, port, where=target.host)
        log_in(transport, target, route, deadline)
    except BaseException:
        transport.packetizer.complete_handshake()
        transport.close()
        wire.close()
        raise
    return Connection(transport, wire, keepalive)


class _Transport(paramiko.Transport):
    """A transport that remembers which signal ended a command."""

    def __init__(self, carrier: Any) -> None:
        super().__init__(carrier)
        handlers = dict(self._channel_handler_table)  # type: ignore[has-type]
        handlers[MSG_CHANNEL_REQUEST] = _channel_request
        self._channel_handler_table = handlers


def _channel_request(channel: Any, message: Any) -> None:
    start = message.packet.tell()
    if message.get_text() == "exit-signal":
        message.get_boolean()
        number = getattr(signal, f"SIG{message.get_text()}", signal.SIGKILL)
        # What a shell reports for such a command.
        channel.exit_status = 128 + int(number)
        channel.status_event.set()
        return
    message.packet.seek(start)
    channel._handle_request(message)


def _dial(
    target: Target, route: Route, via: Connection | None, timeout: float
) -> tuple[Any, Callable[[], str], Callable[[], None]]:
    """A byte stream to the host: what carries it, its last words, how to end it."""
    if via is not None:
        try:
            tunnel = via.tunnel(route.host, route.port, timeout)
        except (SessionRefused, TimeoutError, EOFError) as error:
            raise ConnectionRefused(
                f"the jump host cannot reach {route.address}: {error}",
                where=target.host,
                hint="try it there: ssh JUMPHOST nc -vz " + route.address.replace(":", " "),
            ) from error
        return tunnel, str, _nothing
    if route.proxy_command:
        return proxy_process(route.proxy_command)
    deadline = time.monotonic() + timeout
    try:
        addresses = socket.getaddrinfo(route.host, route.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise unknown_name(target, route) from error
    failure: OSError = TimeoutError()
    for family, kind, protocol, _, address in addresses:
        link = socket.socket(family, kind, protocol)
        try:
            link.settimeout(max(0.1, deadline - time.monotonic()))
            link.connect(address)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return link, str, _nothing
        except OSError as error:
            link.close()
            failure = error
    if isinstance(failure, ConnectionRefusedError):
        problem, advice = f"nobody listens on {route.address}", "is sshd running there?"
    elif isinstance(failure, TimeoutError):
        problem = f"no answer from {route.address} within {timeout:.0f} s"
        advice = "is the machine up, and does a firewall drop packets?"
    else:
        problem, advice = (
            f"{route.address} cannot be reached: {failure.strerror}",
            "check the route",
        )
    raise ConnectionRefused(problem, where=target.host, hint=advice) from failure


def _nothing() -> None:
    return None


def _greet(
    transport: paramiko.Transport,
    target: Target,
    route: Route,
    deadline: float,
    timeout: float,
    last_words: Callable[[], str],
) -> None:
    """Exchange versions and keys, asking for a key type that is pinned."""
    known = hostkeys.known_keys(
        route.known_hosts,
        route.key_alias or route.host,
        SSH_PORT if route.key_alias else route.port,
    )
    options = transport.get_security_options()
    # one pass in C instead of two, of which one in Python: each packet costs less
    options.ciphers = (*QUICK_CIPHERS, *(c for c in options.ciphers if c not in QUICK_CIPHERS))
    wanted = [a for key in known for a in ALGORITHMS.get(key.get_name(), (key.get_name(),))]
    offered = tuple(options.key_types)
    # Only the order changes: a server that has none of the pinned types must still show its key.
    first = [a for a in dict.fromkeys(wanted) if a in offered]
    options.key_types = (*first, *(a for a in offered if a not in first))
    remaining = max(0.1, deadline - time.monotonic())
    transport.banner_timeout = transport.handshake_timeout = remaining
    try:
        transport.start_client(timeout=remaining)
        transport.get_remote_server_key()
    except FAILURES as error:
        words = f" ({last_words()})" if last_words() else ""
        kind: type[NoConnection] = ConnectionRefused
        if time.monotonic() >= deadline - 0.05:
            problem = f"{route.address} does not answer as an SSH server within {timeout:.0f} s"
        elif isinstance(error, IncompatiblePeer):
            problem = f"{route.address} speaks no algorithm in common: {error}"
            kind = Unreachable
        elif not transport.remote_version:
            problem = f"{route.address} closed the connection before its SSH greeting"
        else:
            problem = f"{route.address} broke off the key exchange: {error or 'connection closed'}"
        raise kind(
            problem + words,
            where=target.host,
            hint="is it still booting, and is that port its sshd?",
        ) from error
