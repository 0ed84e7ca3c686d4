"""What goes over one channel: the streams of a command, a conversation, a file."""

from __future__ import annotations

import secrets
import select
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from xenlab.command import Command
from xenlab.errors import BadInput, ConnectionRefused, Overdue
from xenlab.host import FOLLOW, LOOK_SHELL, PLACE, Output, Progress
from xenlab.transport.connection import FAILURES, Connection, LoginShell, SessionRefused
from xenlab.transport.local import QUIET_SECONDS, Captured, run_copy

# Both directions of one remote command at once, without threads and without deadlock.

POLL_SECONDS = 0.2
"""How often a stop request and the deadline are looked at while nothing moves."""

LINGER_SECONDS = 15.0
"""How long output may last at most after the exit status; silent for `QUIET_SECONDS` it is over.

What the command itself wrote is on its way and comes without such pauses.
"""

PIECE = 32768 - 64
"""What paramiko sends in one packet."""

RECEIVE = 262144


class Source(Protocol):
    """Where a command's input comes from."""

    def read(self, size: int, /) -> bytes:
        """The next piece, at most ``size`` bytes; b"" at the end."""


def communicate(
    channel: Any,
    data: bytes | Source,
    *,
    timeout: float,
    first: bytes = b"",
    on_output: Output | None = None,
    stop: threading.Event | None = None,
    writable: Callable[[], bool] = lambda: True,
    without_greeting: Callable[[str, bytes], bytes] = lambda _, piece: piece,
) -> tuple[bytes, bytes]:
    """Feed a command's input and collect its output until it has ended.

    ``channel`` is a paramiko Channel on which the command was started; ``first`` goes into its
    input before ``data``. Returns when the exit
    status is known and the output has come in, or when the channel was closed: the caller looks
    at ``channel.exit_status``. ``without_greeting`` takes from each piece what is no output.
    Raises Overdue past ``timeout`` seconds and KeyboardInterrupt when ``stop`` is set.
    """
    channel.settimeout(0.0)
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    captured = Captured(on_output)
    feeder = _Feeder(channel, data, writable, first)
    deadline = time.monotonic() + timeout
    ended_at = moved_at = 0.0
    while True:
        # Looked at first: what arrived before the end is then seen below.
        closed = bool(channel.closed)
        status = channel.status_event.is_set()
        moved = feeder.feed()
        for name, arrived in _arrived(channel):
            moved = True
            captured.add(name, without_greeting(name, arrived))
        now = time.monotonic()
        if moved:
            moved_at = now
        elif closed or (status and channel.eof_received):
            break
        if status:
            ended_at = ended_at or now
            quiet = now - max(ended_at, moved_at)
            if quiet > QUIET_SECONDS or now > min(deadline, ended_at + LINGER_SECONDS):
                break
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        if now > deadline:
            raise Overdue(timeout, *captured.streams)
        if not moved:
            left = max(0.0, deadline - now) + 0.001
            _wait(channel, poller, min(POLL_SECONDS, feeder.pause, left))
    return captured.streams


def _wait(channel: Any, poller: select.poll, seconds: float) -> None:
    if channel.eof_received:
        # The channel's descriptor stays readable from now on and would spin.
        channel.status_event.wait(seconds)
    else:
        poller.poll(seconds * 1000)


def _arrived(channel: Any) -> Iterator[tuple[str, bytes]]:
    """What has come on both streams, without waiting."""
    for name, ready, receive in (
        ("stdout", channel.recv_ready, channel.recv),
        ("stderr", channel.recv_stderr_ready, channel.recv_stderr),
    ):
        if ready():
            yield name, receive(RECEIVE)


def end_input(channel: Any) -> None:
    """Send the end of a command's input, unless the channel has been closed.

    paramiko's own way lets its other thread answer the command's end first; what comes after that
    is about no channel for the server, which ends the connection. While keys are exchanged nothing
    may be sent, and that thread, which exchanges them, must get the channel's lock.
    """
    transport = channel.transport
    while transport.is_active():
        if not transport.clear_to_send.wait(POLL_SECONDS):
            continue
        with transport.clear_to_send_lock, channel.lock:
            if transport.clear_to_send.is_set():
                message = channel._send_eof()
                if message is not None:
                    transport._send_message(message)
                return


class _Feeder:
    """The command's standard input: as much as the peer's window allows, then its end."""

    def __init__(
        self, channel: Any, data: bytes | Source, writable: Callable[[], bool], first: bytes
    ) -> None:
        self._channel = channel
        self._source = BytesIO(data) if isinstance(data, bytes) else data
        self._piece = first + self._source.read(PIECE)
        self._writable = writable
        self._open = True
        self.pause = POLL_SECONDS

    def feed(self) -> bool:
        """Send what can be sent without waiting; whether anything went out."""
        if not self._open:
            return False
        moved = False
        for _ in range(8):
            if not self._piece or not self._channel.send_ready() or not self._writable():
                break
            try:
                sent = self._channel.send(self._piece)
            except TimeoutError:
                break
            except OSError:
                sent = 0
            if not sent:
                # The command has closed its input; what it does not want is not an error.
                self._piece = b""
                break
            self._piece = self._piece[sent:] or self._source.read(PIECE)
            moved = True
        if not self._piece:
            end_input(self._channel)
            self._open = False
            self.pause = POLL_SECONDS
        elif moved or self.pause == POLL_SECONDS:
            self.pause = 0.001
        else:
            # Nothing wakes a poll when the peer's window opens: look often, then ever less.
            self.pause = min(0.05, self.pause * 1.5)
        return moved


# Become: whether a login becomes root is seen before anything else is asked.


def see_root(
    connection: Connection, where: str, timeout: float, stop: threading.Event | None = None
) -> None:
    """See that the login becomes root; what keeps it from running any command is not told here.

    Raises Unreachable where it does not, ConnectionRefused where nothing was answered,
    BadInput for a password that is not to be had, KeyboardInterrupt when ``stop`` is set.
    """
    become = connection.become
    if become is None:
        return
    login_shell = LoginShell(become)
    try:
        with ExitStack() as ended:
            channel = connection.session(timeout, stop)
            ended.callback(connection.over)
            ended.callback(channel.close)
            connection.start(channel, login_shell.text(":"))
            # its end follows at once: a password that is not taken is not asked for again
            communicate(
                channel,
                login_shell.password,
                timeout=timeout,
                stop=stop,
                without_greeting=login_shell.without_greeting,
            )
    except (SessionRefused, Overdue, *FAILURES) as error:
        late = isinstance(error, Overdue)
        reason = f"no answer in {timeout:.0f} s" if late else f"the connection broke: {error}"
        raise ConnectionRefused(
            f"cannot become root by {become.how}: because {reason}",
            where=where,
            hint="look at the machine, then try again",
        ) from error
    if login_shell.refused is not None and connection.alive:
        raise become.refusal(where, connection.user, login_shell.refused)


# Conversation: a command that stays, spoken to over a channel of its own, and gone with it.


END_SECONDS = 10.0
"""How long its end is waited for at least, where no other command may begin before it."""


class Conversation:
    """A remote command whose input stays open: it sees the end of it once the connection is gone.

    `xenlab.transport.ssh.SSH.converse` starts one.
    """

    def __init__(self, connection: Connection, channel: Any, login_shell: LoginShell) -> None:
        self._connection = connection
        self._channel = channel
        self._login_shell = login_shell
        self._heard = {"stdout": b"", "stderr": b""}

    @property
    def alive(self) -> bool:
        """Whether the command still runs, as far as anybody knows."""
        channel = self._channel
        return self._connection.alive and not (channel.closed or channel.exit_status_ready())

    @property
    def complaint(self) -> str:
        """What it has said on standard error."""
        return self._heard["stderr"].decode("utf-8", "replace").strip()

    def answer(self, timeout: float, stop: threading.Event | None = None) -> str:
        """All that it has said when a line is whole, or when it has ended.

        Raises TimeoutError, EOFError where the connection has died, KeyboardInterrupt when ``stop``
        is set.
        """
        channel, deadline = self._channel, time.monotonic() + timeout
        while b"\n" not in self._heard["stdout"]:
            ended = channel.closed or channel.eof_received
            while pieces := list(_arrived(channel)):
                for name, piece in pieces:
                    self._heard[name] += self._login_shell.without_greeting(name, piece)
            if b"\n" in self._heard["stdout"]:
                break
            if not self._connection.alive:
                raise EOFError("the connection was lost")
            if ended:
                break
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
            if time.monotonic() > deadline:
                raise TimeoutError(timeout)
            channel.status_event.wait(0.01)
        return self._heard["stdout"].decode("utf-8", "replace").strip()

    def say(self, text: str) -> bool:
        """Send a few bytes to its input; whether they went out."""
        try:
            return bool(self._channel.send(text.encode()))
        except FAILURES:
            return False

    def close(self, timeout: float = 0.0) -> None:
        """End its input, wait for its end for so long, and close the channel."""
        if self._connection.one_by_one:
            # its end would hit whatever begins meanwhile
            timeout = max(timeout, END_SECONDS)
        try:
            end_input(self._channel)
            self._channel.status_event.wait(timeout)
            self._channel.close()
        except FAILURES:
            return


# Shell: a /bin/sh that stays, so that a look costs neither a channel nor the start of two shells.

SHELL = f"exec /bin/sh -s {LOOK_SHELL}"
"""What starts it; its subshells have these words too, by which `xenlab.host` finds them."""


class NoShell(Exception):
    """There is no shell that could stay, so nothing was run."""


class Shell:
    """Runs commands one after another, each in a subshell of its own that gets no input.

    A command must leave nothing running: what that prints would stand in the next one's output.
    Raises NoShell where none is reached within ``timeout`` seconds, or one that has joined its
    streams: their ends could not be told apart. Raises KeyboardInterrupt when ``stop`` is set.
    """

    def __init__(
        self,
        connection: Connection,
        channel: Any,
        timeout: float,
        stop: threading.Event | None = None,
    ) -> None:
        self.connection = connection
        self._channel = channel
        self._login_shell = LoginShell(connection.become)
        connection.start(channel, self._login_shell.text(SHELL))
        self._login_shell.send_first(channel, timeout)
        connection.ask_ahead()
        channel.settimeout(None)
        self._poller = select.poll()
        self._poller.register(channel.fileno(), select.POLLIN)
        deadline = time.monotonic() + timeout
        while not self._login_shell.passed:
            gone = not self.alive
            pieces = [self._login_shell.without_greeting(*piece) for piece in _arrived(channel)]
            stopped = stop is not None and stop.is_set()
            if not pieces and (gone or stopped or time.monotonic() > deadline):
                self.close()
                raise KeyboardInterrupt if stopped else NoShell
            if not pieces:
                self._poller.poll(POLL_SECONDS * 1000)
        if self._login_shell.joined:
            self.close()
            raise NoShell

    @property
    def alive(self) -> bool:
        """Whether it still waits for commands, as far as anybody knows."""
        channel = self._channel
        return self.connection.alive and not (channel.closed or channel.eof_received)

    def execute(
        self,
        text: str,
        *,
        timeout: float,
        on_output: Output | None = None,
        stop: threading.Event | None = None,
        mark: str = "",
    ) -> tuple[int, bytes, bytes]:
        """Run shell text as `xenlab.transport.ssh.SSH.execute` does.

        After an error the shell is of no use. Raises EOFError where it has gone, Overdue past
        ``timeout`` seconds and KeyboardInterrupt when ``stop`` is set.
        """
        token = secrets.token_hex(8)
        marked = f"export XENLAB_STEP={shlex.quote(mark)};" if mark else ""
        line = (
            f"(set --;{marked}eval {shlex.quote(text)}) </dev/null;"
            f'echo "{token} $?";echo {token} >&2\n'
        )
        self._channel.sendall(line.encode("utf-8", "surrogateescape"))
        streams = {name: _UpTo(token.encode()) for name in ("stdout", "stderr")}
        captured = Captured(on_output)
        deadline = time.monotonic() + timeout
        while not all(stream.ended for stream in streams.values()):
            gone = not self.alive
            moved = False
            for name, arrived in _arrived(self._channel):
                moved = True
                piece = self._login_shell.without_greeting(name, arrived)
                captured.add(name, streams[name].take(piece))
            if moved:
                continue
            if gone:
                raise EOFError("the shell has gone")
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
            left = deadline - time.monotonic()
            if left < 0:
                raise Overdue(timeout, *captured.streams)
            self._poller.poll(min(POLL_SECONDS, left + 0.001) * 1000)
        status = streams["stdout"].rest.strip()
        if not status.isdigit():
            raise EOFError("it answered what no shell does")
        return int(status), *captured.streams

    def close(self, timeout: float = 0.0) -> None:
        """End its input, wait for its end for so long; what it still runs is left to the caller."""
        with suppress(*FAILURES):
            end_input(self._channel)
            self._channel.status_event.wait(timeout)
            self._channel.close()


class _UpTo:
    """What comes of a stream before a token; ``rest`` is what follows in the token's line."""

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._held = b""
        self._found = False
        self.rest = b""

    @property
    def ended(self) -> bool:
        """Whether the token's whole line has come."""
        return self.rest.endswith(b"\n")

    def take(self, piece: bytes) -> bytes:
        """What of a piece, and of what was held back before it, stands before the token."""
        if self._found:
            self.rest += piece
            return b""
        before, found, after = (self._held + piece).partition(self._token)
        if found:
            self._found, self.rest = True, after
            return before
        end = len(before)
        begun = next(
            size
            for size in range(min(len(self._token) - 1, end), -1, -1)
            if before.endswith(self._token[:size])
        )
        self._held = before[end - begun :]
        return before[: end - begun]


# Copying: a file to a machine as one stream through ``cat``, whole or not at all.
#
# A stream costs half of SFTP's processor time, and a machine needs no SFTP server for it.

Stream = Callable[[str, Source, float], tuple[int, bytes, bytes]]
"""Runs shell text with an input and a deadline in seconds: status, stdout, stderr."""

COPY_SECONDS = 600.0
COPY_BYTES_PER_SECOND = 50_000
"""The deadline of an upload: a start and the slowest line that is still of use."""


def upload(stream: Stream, where: str, local: Path, remote: str, progress: Progress | None) -> None:
    """Copy a file to a machine; raises BadInput, CommandError and what ``stream`` raises."""
    try:
        size = local.stat().st_size
        source = local.open("rb")
    except OSError as error:
        raise BadInput(
            f"cannot upload {local}: because it cannot be read: {error.strerror}",
            where=where,
            hint="check the path and its mode",
        ) from error
    # A lost connection looks to cat like the end of its input: the size decides; SSH sees to it
    # that what comes is what was sent. Writing to a closed stderr kills some shells before their
    # trap, so what is left over goes first.
    command = Command.script(
        FOLLOW
        + PLACE
        + """
        [ ! -d "$1" ] || { echo "$1 is a folder" >&2; exit 1; }
        follow "$1"
        temporary=${file%/*}/.xenlab-$2
        trap 'rm -f -- "$temporary"' EXIT
        cat > "$temporary"
        [ "$(wc -c < "$temporary")" -eq "$3" ] || {
            rm -f -- "$temporary"
            echo "the copy is incomplete" >&2
            exit 1
        }
        place "$temporary" "$file" "" ""
        """,
        remote,
        secrets.token_hex(4),
        size,
    )
    with source:
        reader = _Reader(source, size, progress)
        timeout = COPY_SECONDS + size / COPY_BYTES_PER_SECOND
        run_copy(
            where,
            f"upload {local} to {remote}",
            timeout,
            lambda: stream(command.text, reader, timeout),
        )


class _Reader:
    """A file that is read for an upload."""

    def __init__(self, source: BinaryIO, size: int, progress: Progress | None) -> None:
        self._source = source
        self._size = size
        self._progress = progress
        self._done = 0

    def read(self, size: int) -> bytes:
        """The next piece; b"" at the end."""
        # A file that grows meanwhile is copied as long as it was announced.
        piece = self._source.read(min(size, self._size - self._done))
        self._done += len(piece)
        if self._progress is not None:
            self._progress(self._done, self._size)
        return piece
