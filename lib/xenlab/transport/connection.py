"""One authenticated SSH connection: the shell that it meets, the transport below."""

from __future__ import annotations

import logging
import re
import secrets
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import paramiko
from paramiko.common import MSG_CHANNEL_REQUEST, cMSG_CHANNEL_REQUEST, cMSG_GLOBAL_REQUEST
from paramiko.ssh_exception import IncompatiblePeer

from xenlab.errors import ConnectionRefused, NoConnection, Unreachable
from xenlab.transport import hostkeys
from xenlab.transport.auth import POLL_SECONDS, Login
from xenlab.transport.become import Become
from xenlab.transport.keys import AUTHORITY_SIGNATURES, CERTIFICATE_SUFFIX
from xenlab.transport.liveness import LivenessSocket, dial, proxy_process
from xenlab.transport.ssh_config import Route, Target

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
    "echo {token}.>&2;echo {token};umask 022;{become}{export}i=$IFS;IFS=${{i#??}};"
    'eval "IFS=\\$i;unset i;set --;$*"'
)
_SBIN = "PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin;"
# Nobody knows whether a password is asked for: what was not read is left out up to the token.
_SKIP = "while read -r i;do case $i in {token})break;;esac;done;"


class LoginShell:
    """One command's way through the login shell, and to root where that takes a program.

    ``joined`` says that the login shell has put both streams into one. ``password`` is the line
    that the program may ask for, ``first`` what goes into the input before the command's own.
    Raises BadInput where the password is not to be had.
    """

    def __init__(self, become: Become | None = None) -> None:
        token = secrets.token_hex(8)
        self._token = token
        # A shell that shows what it runs prints the token too, but no end of the line after it.
        self._ends = {"stdout": f"{token}\n".encode(), "stderr": f"{token}.\n".encode()}
        self._held = {"stdout": b"", "stderr": b""}
        self.joined = False
        self._become = become
        self.password = become.password() if become else b""
        self.first = self.password + f"{token}\n".encode() if self.password else b""

    def text(self, command: str, mark: str = "") -> str:
        """What has /bin/sh run the command, under umask 022, whichever shell reads this."""
        export = 'export "$1";shift;' if mark else ""
        token = self._token
        skip = _SKIP.format(token=token) if self.first else ""
        become = skip + _SBIN if self._become else ""
        enter = _ENTER.format(token=token, export=export, become=become)
        marked = (f"XENLAB_STEP={mark}",) if mark else ()
        words = ("/bin/sh", *marked, *command.split("\n"))
        if self._become:
            words = ("/bin/sh", enter, *words)
            enter = f"echo {token}+>&2;{self._become.script}"
        return f"exec /bin/sh -c '{enter}' " + " ".join(map(_word, words))

    def send_first(self, channel: paramiko.Channel, seconds: float) -> None:
        """Send what comes before the command's own input, once the server takes it."""
        if self.first:
            channel.settimeout(seconds)
            channel.sendall(self.first)
            channel.settimeout(None)
            self.password = self.first = b""

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
        """What came instead, in one line; "" where that may hold a password."""
        # a forced command that reads its input as commands complains of each by its name
        return "" if self.password else _in_a_line(b" ".join(self._held.values()))

    @property
    def refused(self) -> str | None:
        """What the program said that does not become root, None where it was not reached."""
        held = b"" if self.passed else self._held.get("stderr", b"")
        _, reached, said = held.partition(f"{self._token}+\n".encode())
        return _in_a_line(said) if reached else None


def _in_a_line(said: bytes) -> str:
    return " ".join(said.decode("utf-8", "replace").split())


def _word(text: str) -> str:
    return "'" + re.sub(r"['\\!]", r"'\\\g<0>'", text) + "'"


# Connection: one authenticated SSH connection; where paramiko's transport is set up and tamed.

FAILURES = (paramiko.SSHException, EOFError, OSError)
"""What paramiko raises where a connection, a channel or a server's SFTP fails."""

ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}


QUICK_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
"""What is asked for first: it encrypts and authenticates in one pass."""


AHEAD_SECONDS = 600.0
"""How long a channel that is asked for ahead may take; who needs it waits as long as it may."""


class SessionRefused(Exception):
    """The server opens no further channel; nothing was started."""


class Connection:
    """An authenticated connection on which channels are opened; ``become`` is its way to root."""

    def __init__(
        self,
        transport: paramiko.Transport,
        liveness: LivenessSocket,
        keepalive: float,
        user: str,
        become: Become | None,
    ) -> None:
        self.liveness = liveness
        self.user = user
        self.become = become
        self._transport = transport
        self._ahead: Future[paramiko.Channel] | None = None
        self._asking = threading.Lock()
        # dropbear (2022.83) takes a channel on which nothing runs yet for one that is over as
        # soon as any other command ends (sesscheckclose): there one follows the other
        self.one_by_one = "dropbear" in transport.remote_version.lower()
        self._asks_ahead = not self.one_by_one
        self._turn = threading.RLock()

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

    def session(self, timeout: float, stop: threading.Event | None = None) -> paramiko.Channel:
        """A channel for one command: the one that was asked for ahead, or another.

        The thread that gets it calls `over` once the command has ended, or runs to stay. Raises
        SessionRefused, TimeoutError, KeyboardInterrupt when ``stop`` is set, or EOFError where the
        connection has died; nothing was started in any of these cases.
        """
        while self.one_by_one and not self._turn.acquire(timeout=POLL_SECONDS):
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
        try:
            return self._session(timeout)
        except BaseException:
            self.over()
            raise

    def over(self) -> None:
        """Let the next command begin, where one follows the other."""
        if self.one_by_one:
            self._turn.release()

    def _session(self, timeout: float) -> paramiko.Channel:
        with self._asking:
            ahead, self._ahead = self._ahead, None
        if ahead is not None:
            with suppress(SessionRefused, EOFError):
                channel = ahead.result(timeout)
                if not channel.closed:
                    return channel
        return self._open("session", None, timeout)

    def ask_ahead(self) -> None:
        """Ask for the next command's channel while this one runs: that saves it a round trip.

        A server that has no channel left is asked but once.
        """
        with self._asking:
            if self._ahead is not None or not self._asks_ahead:
                return
            ahead = self._ahead = Future()
        threading.Thread(target=self._answer_ahead, args=(ahead,), daemon=True).start()

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

    def _answer_ahead(self, ahead: Future[paramiko.Channel]) -> None:
        try:
            ahead.set_result(self._open("session", None, AHEAD_SECONDS))
        except (SessionRefused, TimeoutError, EOFError) as error:
            self._asks_ahead = False
            ahead.set_exception(error)

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
    stop: threading.Event | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Connection:
    """Connect and log in, over another connection where ``via`` is given.

    ``say`` gets what a person must do meanwhile. Raises NoConnection, which kind tells why, with
    one sentence, at the latest after about ``timeout`` seconds, or those of the ssh_config's
    ConnectTimeout; KeyboardInterrupt when ``stop`` is set.
    """
    # An application that has no logging set up would get paramiko's tracebacks on stderr.
    log = logging.getLogger("paramiko")
    if not log.hasHandlers():
        log.addHandler(logging.NullHandler())
    timeout = route.timeout or timeout
    deadline = time.monotonic() + timeout
    channel, last_words, on_close = _open_stream(target, route, via, timeout, stop)
    liveness = LivenessSocket(channel, patience, on_close)
    carrier: Any = liveness
    transport = _Transport(carrier)
    try:
        _choose_algorithms(transport, target, route)
        _exchange_keys(transport, target, route, deadline, timeout, last_words, stop)
        hostkeys.check(
            transport.get_remote_server_key(),
            route.known_hosts,
            *route.pinned_as,
            where=target.host,
            revoked=route.revoked,
            strict=route.strict,
            hash_names=route.hash_names,
            signatures=route.allows("casignaturealgorithms") or AUTHORITY_SIGNATURES,
        )
        Login(transport, target, route, deadline, stop, say).run()
    except BaseException:
        transport.packetizer.complete_handshake()
        transport.close()
        liveness.close()
        raise
    return Connection(transport, liveness, keepalive, route.user, target.become)


class _Transport(paramiko.Transport):
    """A transport that remembers which signal ended a command, and what its peer said at last."""

    def __init__(self, carrier: Any) -> None:
        super().__init__(carrier)
        self.farewell = b""
        self.host_key_types: tuple[str, ...] = ()
        handlers = dict(self._channel_handler_table)  # type: ignore[has-type]
        handlers[MSG_CHANNEL_REQUEST] = _channel_request
        self._channel_handler_table = handlers

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        """The host key types to ask for; certificates only where they can be checked."""
        return self.host_key_types

    def _parse_disconnect(self, message: Any) -> None:
        message.get_int()
        self.farewell = message.get_binary()


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
    target: Target,
    route: Route,
    via: Connection | None,
    timeout: float,
    stop: threading.Event | None,
) -> tuple[Any, Callable[[], str], Callable[[], None]]:
    """A byte stream to the host: what carries it, its last words, how to end it."""
    if via is not None:
        try:
            tunnel = via.tunnel(route.host, route.port, timeout)
        except (SessionRefused, TimeoutError, EOFError) as error:
            raise ConnectionRefused(
                f"cannot connect to {route.address}: because the jump host cannot: {error}",
                where=target.host,
                hint=f"try it there: ssh JUMPHOST nc -vz {route.host} {route.port}",
            ) from error
        return tunnel, str, _nothing
    if route.proxy_command:
        return proxy_process(route.proxy_command)
    return dial(target, route, time.monotonic() + timeout, timeout, stop), str, _nothing


def _nothing() -> None:
    return None


def _choose_algorithms(transport: _Transport, target: Target, route: Route) -> None:
    """Ask for what the ssh_config allows, and for a key type that is pinned.

    Raises Unreachable where nothing of a kind is left.
    """
    options = transport.get_security_options()
    # one pass in C instead of two, of which one in Python: each packet costs less
    options.ciphers = (*QUICK_CIPHERS, *(c for c in options.ciphers if c not in QUICK_CIPHERS))
    for kind, attribute in (("ciphers", "ciphers"), ("macs", "digests"), ("kexalgorithms", "kex")):
        have = tuple(getattr(options, attribute))
        setattr(options, attribute, _allowed(have, route.allows(kind), kind, target, route))
    plain = tuple(options.key_types)
    allowed = route.allows("hostkeyalgorithms")
    files, name = route.known_hosts, route.pinned_as
    wanted = [
        a
        for key in hostkeys.known_keys(files, *name)
        for a in ALGORITHMS.get(key.get_name(), (key.get_name(),))
    ]
    if hostkeys.has_authority(files, *name):
        certified = tuple(f"{kind}{CERTIFICATE_SUFFIX}" for kind in plain)
        plain = (*(kind for kind in certified if allowed is None or kind in allowed), *plain)
        wanted = [*plain[: len(plain) - len(options.key_types)], *wanted]
    # Only the order changes: a server that has none of the pinned types must still show its key.
    first = [a for a in dict.fromkeys(wanted) if a in plain]
    offered = (*first, *(a for a in plain if a not in first))
    transport.host_key_types = _allowed(offered, allowed, "hostkeyalgorithms", target, route)
    accepted = route.allows("pubkeyacceptedalgorithms")
    if accepted is not None:
        kinds = transport._preferred_pubkeys  # type: ignore[attr-defined]
        transport._preferred_pubkeys = tuple(  # type: ignore[attr-defined]
            kind for kind in kinds if kind in accepted
        )


def _allowed(
    have: tuple[str, ...],
    allowed: tuple[str, ...] | None,
    kind: str,
    target: Target,
    route: Route,
) -> tuple[str, ...]:
    left = tuple(one for one in have if allowed is None or one in allowed)
    if not left:
        raise Unreachable(
            f"cannot connect to {route.address}: because {target.config} allows only "
            f"{kind} that xenlab does not have: {', '.join(allowed or ())}",
            where=target.host,
            hint=f"allow one of {', '.join(have)}",
        )
    return left


def _exchange_keys(
    transport: _Transport,
    target: Target,
    route: Route,
    deadline: float,
    timeout: float,
    last_words: Callable[[], str],
    stop: threading.Event | None,
) -> None:
    """Exchange versions and keys."""
    remaining = max(0.1, deadline - time.monotonic())
    transport.banner_timeout = transport.handshake_timeout = remaining
    try:
        done = threading.Event()
        transport.start_client(event=done)
        while not done.wait(POLL_SECONDS) and time.monotonic() < deadline:
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
            if not transport.is_active():
                break
        if not transport.is_active():
            raise transport.get_exception() or EOFError("connection closed")
        transport.get_remote_server_key()
    except FAILURES as error:
        words = f" ({last_words()})" if last_words() else ""
        kind: type[NoConnection] = ConnectionRefused
        hint = "wait for the boot to end; check that the port is sshd's"
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
            hint=hint,
        ) from error
