"""One authenticated SSH connection: how one logs in, the shell it meets, the transport below."""

from __future__ import annotations

import logging
import re
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko
from paramiko.common import MSG_CHANNEL_REQUEST, cMSG_CHANNEL_REQUEST, cMSG_GLOBAL_REQUEST
from paramiko.pkey import PublicBlob
from paramiko.ssh_exception import IncompatiblePeer

from xenlab.errors import ConnectionRefused, NoConnection, Unreachable
from xenlab.transport import hostkeys
from xenlab.transport.liveness import LivenessSocket, proxy_process
from xenlab.transport.ssh_config import Route, Target, unknown_name

# Login: with a key file or an agent's key, never with a password.


@dataclass
class _KeyOffer:
    """The keys that may be tried, and why others may not."""

    route: Route
    notes: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)

    def candidates(self) -> Iterator[tuple[str, paramiko.PKey]]:
        """Each key with its name, identity files first; an agent is asked only if need be."""
        seen: set[bytes] = set()
        for path in self.route.identities:
            key = self._from_file(path)
            if key is not None and key.asbytes() not in seen:
                seen.add(key.asbytes())
                yield str(path), key
        yield from self._from_agent(seen)

    def _from_file(self, path: Path) -> paramiko.PKey | None:
        if path.suffix == ".pub" or not path.exists():
            return None
        try:
            return paramiko.PKey.from_path(path)
        except (paramiko.PasswordRequiredException, TypeError):
            self.notes.append(f"{path} is protected by a passphrase: ssh-add {path}")
        except OSError as error:
            self.notes.append(f"{path} cannot be read: {error.strerror}")
        except (ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType):
            self.notes.append(f"{path} holds no private key")
        return None

    def _from_agent(self, seen: set[bytes]) -> Iterator[tuple[str, paramiko.PKey]]:
        wanted = set()
        for path in self.route.identities:
            public = path if path.suffix == ".pub" else path.with_name(path.name + ".pub")
            try:
                wanted.add(PublicBlob.from_file(str(public)).key_blob)
            except (OSError, ValueError, paramiko.SSHException):
                continue
        try:
            agent = paramiko.Agent()
        except (paramiko.SSHException, OSError) as error:
            self.notes.append(f"the SSH agent does not answer: {error}")
            return
        try:
            for key in agent.get_keys():
                blob = key.asbytes()
                if blob not in seen and (blob in wanted or not self.route.identities_only):
                    yield f"the agent's {key.comment or key.get_name()}", key
        finally:
            agent.close()


def public_keys(route: Route) -> tuple[str, ...]:
    """The public halves of the keys that would be tried there, as authorized_keys(5) has them."""
    found = (key for name, key in _KeyOffer(route).candidates())
    return tuple(f"{key.get_name()} {key.get_base64()}" for key in found)


def log_in(transport: paramiko.Transport, target: Target, route: Route, deadline: float) -> None:
    """Authenticate an encrypted connection whose host key was checked.

    Raises Unreachable with one sentence where no key is accepted, ConnectionRefused where nobody
    answers any more.
    """
    offer = _KeyOffer(route)
    accepted: list[str] | None = None
    try:
        for name, key in offer.candidates():
            transport.auth_timeout = max(0.1, deadline - time.monotonic())
            offer.tried.append(name)
            try:
                accepted = transport.auth_publickey(route.user, key)
            except paramiko.BadAuthenticationType as error:
                accepted = error.allowed_types
                break
            except paramiko.AuthenticationException:
                if not transport.is_active() or time.monotonic() > deadline:
                    break
                continue
            if not accepted:
                return
            break
        if not offer.tried:
            accepted = _ask_methods(transport, route)
            if not accepted:
                return
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise ConnectionRefused(
            f"cannot log in as {route.user}@{route.address}: because the login was broken off: "
            f"{error or 'connection closed'}",
            where=target.host,
            hint="look at the machine's own log of sshd",
        ) from error
    raise _refusal(target, route, offer, accepted, deadline)


def _ask_methods(transport: paramiko.Transport, route: Route) -> list[str]:
    """What the server wants of somebody who has no key; nothing if it lets them in."""
    try:
        return transport.auth_none(route.user)
    except paramiko.BadAuthenticationType as error:
        return error.allowed_types


def _refusal(
    target: Target,
    route: Route,
    offer: _KeyOffer,
    methods: list[str] | None,
    deadline: float,
) -> NoConnection:
    who = f"{route.user}@{route.address}"
    notes = f" ({'; '.join(offer.notes)})" if offer.notes else ""
    authorize = f"add the public key to ~{route.user}/.ssh/authorized_keys there"
    if methods and "publickey" not in methods:
        again = "further " if offer.tried and "password" not in methods else ""
        reason = f"it asks for a {again}{' or '.join(methods)}; only keys and agents are used"
        hint = f"{authorize} and allow PubkeyAuthentication in its sshd_config"
    elif time.monotonic() > deadline:
        return ConnectionRefused(
            f"cannot log in as {who}: because it did not answer in time",
            where=target.host,
            hint="look at the machine's load, then run the step again",
        )
    elif not offer.tried:
        names = ", ".join(str(path) for path in route.identities) or "no identity file"
        reason = f"there is no key for that: {names} not usable, no agent key{notes}"
        hint = "name a key file in ssh.identity, or ssh-add it to an agent"
    else:
        reason = f"it accepts none of the keys offered: {', '.join(offer.tried)}{notes}"
        hint = f"{authorize}, or name another key in ssh.identity"
    return Unreachable(f"cannot log in as {who}: because {reason}", where=target.host, hint=hint)


# Login shells: how a command gets past whatever shell an account has, and what that prints first.
#
# sshd hands the text of a command to the account's login shell: sh, bash, csh, tcsh, fish. So the
# text holds only what all of these take alike. Each line is a word of its own, since csh takes no
# newline inside quotes; within a word a backslash, a single quote and csh's ``!`` stand outside the
# quotes. All that this shell does is to become /bin/sh, which puts the lines together again.
#
# bash reads ~/.bashrc for such commands, csh ~/.cshrc: what these print comes before anything of
# the command's own. So /bin/sh prints a token first, on both streams.

_HELD = 65536
"""Bytes of what a login shell printed that are kept, for a message."""

# Nothing of it stays behind: no variable, no argument, no other IFS. A process is found by its mark
# among its arguments as well, since this shell only exports it.
_ENTER = (
    "echo {token}.>&2;echo {token};umask 022;{export}i=$IFS;IFS=${{i#??}};"
    'eval "IFS=\\$i;unset i;set --;$*"'
)


class LoginShell:
    """One command's way through the login shell.

    ``joined`` says that the login shell has put both streams into one.
    """

    def __init__(self) -> None:
        token = secrets.token_hex(8)
        self._token = token
        # A shell that shows what it runs prints the token too, but no end of the line after it.
        self._ends = {"stdout": f"{token}\n".encode(), "stderr": f"{token}.\n".encode()}
        self._held = {"stdout": b"", "stderr": b""}
        self.joined = False

    def text(self, command: str, mark: str = "") -> str:
        """What has /bin/sh run the command, under umask 022, whichever shell reads this."""
        export = 'export "$1";shift;' if mark else ""
        enter = _ENTER.format(token=self._token, export=export)
        marked = (f"XENLAB_STEP={mark}",) if mark else ()
        words = ("/bin/sh", *marked, *command.split("\n"))
        return f"exec /bin/sh -c '{enter}' " + " ".join(map(_word, words))

    def without_greeting(self, stream: str, piece: bytes) -> bytes:
        """What of a piece of output the command itself has printed."""
        if stream not in self._held:
            return piece
        held = self._held[stream] + piece
        before, found, rest = held.partition(self._ends[stream])
        if not found:
            self._held[stream] = held[-_HELD:]
            return b""
        self.joined = self.joined or (stream == "stdout" and self._ends["stderr"] in before)
        del self._held[stream]
        return rest

    @property
    def passed(self) -> bool:
        """Whether /bin/sh was reached."""
        return "stdout" not in self._held

    @property
    def said(self) -> str:
        """What came instead, in one line."""
        words = b" ".join(self._held.values()).decode("utf-8", "replace").split()
        return " ".join(words)


def _word(text: str) -> str:
    return "'" + re.sub(r"['\\!]", r"'\\\g<0>'", text) + "'"


# Connection: one authenticated SSH connection; where paramiko's transport is set up and tamed.

FAILURES = (paramiko.SSHException, EOFError, OSError)
"""What paramiko raises where a connection, a channel or a server's SFTP fails."""

ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}


QUICK_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
"""What is asked for first: it encrypts and authenticates in one pass."""


class SessionRefused(Exception):
    """The server opens no further channel; nothing was started."""


class Connection:
    """An authenticated connection on which channels are opened."""

    def __init__(
        self, transport: paramiko.Transport, liveness: LivenessSocket, keepalive: float
    ) -> None:
        self.liveness = liveness
        self._transport = transport

        def ask() -> None:
            # paramiko's own keepalive wants no answer, so it cannot tell a dead peer.
            if transport.clear_to_send.is_set():
                message = paramiko.Message()
                message.add_byte(cMSG_GLOBAL_REQUEST)
                message.add_string("keepalive@openssh.com")
                message.add_boolean(True)
                liveness.asked()
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
        self.liveness.close()

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
    channel, last_words, on_close = _open_stream(target, route, via, timeout)
    liveness = LivenessSocket(channel, patience, on_close)
    carrier: Any = liveness
    transport = _Transport(carrier)
    try:
        _exchange_keys(transport, target, route, deadline, timeout, last_words)
        key = transport.get_remote_server_key()
        hostkeys.check(key, route.known_hosts, *route.pinned_as, where=target.host)
        log_in(transport, target, route, deadline)
    except BaseException:
        transport.packetizer.complete_handshake()
        transport.close()
        liveness.close()
        raise
    return Connection(transport, liveness, keepalive)


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


def _open_stream(
    target: Target, route: Route, via: Connection | None, timeout: float
) -> tuple[Any, Callable[[], str], Callable[[], None]]:
    """A byte stream to the host: what carries it, its last words, how to end it."""
    if via is not None:
        try:
            tunnel = via.tunnel(route.host, route.port, timeout)
        except (SessionRefused, TimeoutError, EOFError) as error:
            raise ConnectionRefused(
                f"cannot connect to {route.address}: because the jump host cannot: {error}",
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
        reason, hint = "nobody listens there", "start sshd there"
    elif isinstance(failure, TimeoutError):
        reason = f"there was no answer within {timeout:.0f} s"
        hint = "check that the machine is up and no firewall drops packets"
    else:
        reason, hint = str(failure.strerror), "check the route"
    raise ConnectionRefused(
        f"cannot connect to {route.address}: because {reason}", where=target.host, hint=hint
    ) from failure


def _nothing() -> None:
    return None


def _exchange_keys(
    transport: paramiko.Transport,
    target: Target,
    route: Route,
    deadline: float,
    timeout: float,
    last_words: Callable[[], str],
) -> None:
    """Exchange versions and keys, asking for a key type that is pinned."""
    known = hostkeys.known_keys(route.known_hosts, *route.pinned_as)
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
            reason = f"it did not answer as an SSH server within {timeout:.0f} s"
        elif isinstance(error, IncompatiblePeer):
            reason = f"it speaks no algorithm in common: {error}"
            kind = Unreachable
        elif not transport.remote_version:
            reason = "it closed the connection before its SSH greeting"
        else:
            reason = f"it broke off the key exchange: {error or 'connection closed'}"
        raise kind(
            f"cannot connect to {route.address}: because {reason}{words}",
            where=target.host,
            hint="wait for the boot to end; check that the port is sshd's",
        ) from error
