"""SSH: run commands on and copy files to a machine, over one connection that is kept."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from xenlab.errors import (
    BadInput,
    ConnectionLost,
    ConnectionRefused,
    NoConnection,
    Overdue,
    Unreachable,
    XenlabError,
)
from xenlab.host import READ_SECONDS, Output, Progress
from xenlab.transport.channel import (
    POLL_SECONDS,
    Conversation,
    NoShell,
    Shell,
    Source,
    communicate,
    see_root,
    upload,
)
from xenlab.transport.connection import FAILURES, Connection, LoginShell, SessionRefused, connect
from xenlab.transport.ssh_config import Target, hops, resolve

# Wait: a machine that does not answer is waited for, with a word about it, but not in vain.

Answer = TypeVar("Answer")

AGAIN_SECONDS = 1.0
"""How long after an attempt the next one follows."""

SAY_SECONDS = 60.0
"""How often it is said that somebody still waits."""

SURE_SECONDS = 3.0
"""For how long waiting must be in vain: a guest that reboots has no domain for a moment."""

VAIN_HINT = "start it (chapter 11_action does), or look at its console"


def _nobody(text: str) -> None:
    return None


@dataclass(frozen=True)
class Wait:
    """How long a machine that does not answer is waited for, and who is told.

    ``say`` gets a line that says for what. ``in_vain`` gives the reason why the machine cannot
    answer ("its domain does not run"), "" as long as it may; it is asked every ``look_seconds``.
    ``at_once`` says that nothing is going to start the machine: the reason is asked for before
    each attempt, and believed.
    """

    seconds: float = 0.0
    say: Callable[[str], None] = _nobody
    in_vain: Callable[[], str] = str
    look_seconds: float = 10.0
    at_once: bool = False

    def refuse_vain(self) -> None:
        """Raise Unreachable where an attempt would be vain, if that can be said at once."""
        if self.at_once and (reason := self.in_vain()):
            raise Unreachable(reason, hint=VAIN_HINT)

    def until_answered(
        self, name: str, attempt: Callable[[], Answer], stop: threading.Event | None = None
    ) -> Answer:
        """What the first attempt gives that is answered.

        Raises ConnectionRefused when the time is over, Unreachable at once where waiting is vain,
        KeyboardInterrupt when ``stop`` is set; whatever else an attempt raises is raised at once.
        """
        stop = stop or threading.Event()
        start = time.monotonic()
        said = look_at = float("-inf")
        vain = False
        while not stop.is_set():
            try:
                return attempt()
            except ConnectionRefused as error:
                now = time.monotonic()
                left = start + self.seconds - now
                if now >= look_at:
                    reason = self.in_vain()
                    if reason and (vain or left <= 0):
                        raise Unreachable(reason, hint=VAIN_HINT) from error
                    vain = bool(reason)
                    look_at = now + (SURE_SECONDS if vain else self.look_seconds)
                if left <= 0:
                    if self.seconds:
                        error.message += f" (waited for {now - start:.0f} s)"
                    raise
                if not vain and now - said >= SAY_SECONDS:
                    said = now
                    self.say(f"waiting for {name}, for {left:.0f} s at most: {error.message}")
            stop.wait(min(AGAIN_SECONDS, max(left, 0.0)))
        raise KeyboardInterrupt


SESSIONS = 8
"""Commands at once over one connection; sshd's MaxSessions is 10, further ones wait."""

SETTLE_SECONDS = 0.5
"""How long a server may count the session of a command that has just ended."""

LONGEST_COMMAND = 120_000
"""Bytes; the kernel takes 128 KiB for one argument, and sshd passes the command as one."""

OWED_SECONDS = 5.0
"""How long a question may be without an answer where a connection made beforehand is taken over."""

SHELL_END_SECONDS = 10.0
"""How long the shell that stays for looks may take to end, where its session is wanted."""

LONGEST_LOOK = 30_000
"""Characters of a command that a shell is given by its input, without waiting until it takes it."""

_OWN_SHELL = re.compile(r"(?<![&<>|])&(?![&>])|\$\$|PPID")
"""What may leave something running, or means the shell itself: it has a shell of its own."""

MAX_HOPS = 8


class SSH:
    """A machine reached over SSH; the transport behind `xenlab.host.Host`.

    Connects at the first use and again where the connection has died between two commands; a
    command that was sent is never sent twice. May be used by several threads at once.

    ``connect_timeout`` seconds cover everything up to the login; ``keepalive`` seconds of
    silence are followed by a question, ``patience`` seconds without any answer end the
    connection. ``wait`` says for how long it is tried again where nobody answers.
    ``on_connect`` is called for each new connection before a command goes over it, and is itself
    restricted to `converse`; what it raises, the command raises. ``connections`` counts how often
    it has connected. ``near`` is a machine that is worked on beside this one: where it is the jump
    host, or what this one lies behind, the way leads through the connection that it has.
    """

    def __init__(
        self,
        target: Target,
        *,
        via: SSH | None = None,
        connect_timeout: float = 20.0,
        keepalive: float = 5.0,
        patience: float = 30.0,
        wait: Wait | None = None,
        on_connect: Callable[[], None] | None = None,
        near: SSH | None = None,
    ) -> None:
        self.uploading: Callable[[], AbstractContextManager[object]] = (
            nullcontext if near is None else near.uploading
        )
        self.target = target
        self.name = target.host
        self._ways = [replace(target, other=None), *([target.other] if target.other else ())]
        self.connections = 0
        self._via = via
        self._near = near
        self._wait = wait or Wait()
        self._on_connect = on_connect
        self._told: Connection | None = None
        self._telling = threading.Lock()
        self._jump: SSH | None = None
        self._depth = 0
        self._timing = {
            "connect_timeout": connect_timeout,
            "keepalive": keepalive,
            "patience": patience,
        }
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._shell: Shell | None = None
        self._shell_use = threading.Lock()
        self._refuses_shell: Connection | None = None
        self._slots = threading.BoundedSemaphore(SESSIONS)
        self._busy = 0

    def take_over(self, wait: Wait, on_connect: Callable[[], None]) -> None:
        """Wait in this way from now on, and tell of connections, one that is there included.

        One that was made beforehand and owes an answer, as after a reboot, is given up.
        """
        self._wait, self._on_connect, self._told = wait, on_connect, None
        connection = self._connection
        if connection is not None and connection.liveness.owed > OWED_SECONDS:
            self._drop(connection)

    def prepare(self) -> None:
        """Connect beforehand, and start the shell for looks; a command will say what hinders it."""
        with suppress(XenlabError, NoShell), self._look_shell(READ_SECONDS, None):
            pass

    def connect(self, stop: threading.Event | None = None, *, seconds: float | None = None) -> None:
        """Connect if not connected; ``seconds`` say how long it is waited for, if not as usual.

        Raises BadInput for a file or setting that is missing, Unreachable where the host
        lets nobody in, ConnectionRefused where it has not answered for as long as it is waited for,
        HostKeyRefused for a key that is not pinned, KeyboardInterrupt when ``stop`` is set.
        """
        wait = self._wait if seconds is None else replace(self._wait, seconds=max(seconds, 0.0))
        self._tell(wait.until_answered(self.name, lambda: self._connected(stop), stop))

    def close(self) -> None:
        """End the connection; a later call connects again. Commands in flight are lost."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._shell = None
            if self._jump is not None:
                self._jump.close()
                self._jump = None

    def execute(
        self,
        text: str,
        *,
        input: bytes = b"",
        timeout: float,
        on_output: Output | None = None,
        stop: threading.Event | None = None,
        mark: str = "",
        look: bool = False,
    ) -> tuple[int, bytes, bytes]:
        """Run POSIX shell text; return exit status (128 + n for signal n), stdout, stderr.

        /bin/sh runs it, under umask 022, whatever the account's login shell is; what that prints
        by itself is left out. Its processes carry ``XENLAB_STEP=mark`` in their environment or,
        the first, among its words. What only looks runs in a shell that stays for that, where it
        gets no input and puts nothing into the background.

        ``timeout`` seconds count from the moment when a session was free, without those in which
        nobody answered. Raises Overdue past them and KeyboardInterrupt when ``stop`` is set,
        both leaving the remote processes to the caller; ConnectionLost when the connection broke
        after the command was sent; NoConnection when it could not be sent.
        """
        if look and not input and len(text) <= LONGEST_LOOK and not _OWN_SHELL.search(text):
            with suppress(NoShell), self._look_shell(timeout, stop) as shell:
                return shell.execute(
                    text, timeout=timeout, on_output=on_output, stop=stop, mark=mark
                )
        return self._execute(text, input, timeout, on_output, stop, mark=mark)

    def converse(
        self, text: str, *, timeout: float, stop: threading.Event | None = None
    ) -> Conversation:
        """Start a command that stays, beside those that `execute` counts; raises as that does."""
        connection, channel, _ = self._session(timeout, stop, tell=False)
        login_shell = LoginShell(connection.become)
        try:
            connection.start(channel, login_shell.text(text))
            login_shell.send_first(channel, timeout)
            connection.ask_ahead()
            if connection.one_by_one:
                channel.event.wait(timeout)
        except FAILURES as error:
            channel.close()
            raise self._lost(connection) from error
        finally:
            connection.over()
        return Conversation(connection, channel, login_shell)

    def upload(self, local: Path, remote: str, progress: Progress | None = None) -> None:
        """Copy a file to the machine, whole or not at all.

        Raises BadInput for a local file that cannot be read, CommandFailed where the machine
        refuses the file, CommandTimeout past a deadline that goes by its size, ConnectionLost when
        the connection broke; the old file then stays. ``uploading`` says when it may begin.
        """
        with self.uploading():
            upload(self._execute, self.name, local, remote, progress)

    def _execute(
        self,
        text: str,
        data: bytes | Source,
        timeout: float,
        on_output: Output | None = None,
        stop: threading.Event | None = None,
        mark: str = "",
    ) -> tuple[int, bytes, bytes]:
        with self._slot(stop):
            connection, channel, deadline = self._session(timeout, stop)
            try:
                login_shell = LoginShell(connection.become)
                text = login_shell.text(text, mark)
                if len(text.encode("utf-8", "surrogateescape")) > LONGEST_COMMAND:
                    raise BadInput(
                        "cannot send the command: because it is longer than "
                        f"{LONGEST_COMMAND} bytes",
                        where=self.name,
                        hint="pass data through its input",
                    )
                connection.start(channel, text)
                if self._busy == 1:
                    connection.ask_ahead()
                out, err = communicate(
                    channel,
                    data,
                    timeout=deadline - time.monotonic(),
                    first=login_shell.first,
                    on_output=on_output,
                    stop=stop,
                    writable=connection.liveness.writable,
                    without_greeting=login_shell.without_greeting,
                )
                status = self._status(connection, channel)
                if not login_shell.passed:
                    if connection.become and login_shell.refused and status <= 128:
                        raise connection.become.refusal(
                            self.name, connection.user, login_shell.refused
                        )
                    raise self._no_shell(status, login_shell.said)
                return status, out, err
            except FAILURES as error:
                if not _within(0.5, lambda: not connection.alive):
                    raise
                raise self._lost(connection) from error
            finally:
                # A connection that has just died must not hide what became of the command.
                with suppress(*FAILURES):
                    channel.close()
                connection.over()

    @contextmanager
    def _look_shell(self, timeout: float, stop: threading.Event | None) -> Iterator[Shell]:
        """The connection's shell for looks; raises NoShell where it is in use, or there is none."""
        if not self._shell_use.acquire(blocking=False):
            raise NoShell
        try:
            connection = self._wait.until_answered(self.name, lambda: self._connected(stop), stop)
            self._tell(connection)
            shell = self._shell
            if shell is None or shell.connection is not connection or not shell.alive:
                shell = self._shell = self._fresh_shell(connection, timeout, stop)
            try:
                yield shell
            except BaseException as error:
                self._shell = None
                shell.close()
                lost = isinstance(error, FAILURES) and not connection.alive
                if lost or isinstance(error, EOFError):
                    raise self._lost(connection) from error
                raise
        finally:
            self._shell_use.release()

    def _fresh_shell(
        self, connection: Connection, timeout: float, stop: threading.Event | None
    ) -> Shell:
        if self._refuses_shell is connection:
            raise NoShell
        try:
            channel = connection.session(timeout, stop)
            try:
                return Shell(connection, channel, timeout, stop)
            finally:
                connection.over()
        except (NoShell, SessionRefused, *FAILURES) as error:
            self._refuses_shell = connection
            raise NoShell from error

    def _shell_ended(self, connection: Connection) -> bool:
        """Give up a connection's shell for looks: its session is wanted; False if there is none.

        One that is in use is given up later: who asks tries again.
        """
        if self._shell is None or self._shell.connection is not connection:
            return False
        if self._shell_use.acquire(blocking=False):
            try:
                self._refuses_shell = connection
                shell, self._shell = self._shell, None
                if shell is not None:
                    shell.close(SHELL_END_SECONDS)
            finally:
                self._shell_use.release()
        return True

    def _status(self, connection: Connection, channel: Any) -> int:
        status = int(channel.exit_status)
        if status >= 0 and (channel.eof_received or not channel.closed):
            return status
        # A dying connection closes its channels a moment before it says that it is dead.
        if not _within(0.5, lambda: not connection.alive):
            if status >= 0:
                return status
            if not connection.started(channel):
                raise Unreachable(
                    "cannot run commands: because the server starts none for this user",
                    where=self.name,
                    hint="look at ForceCommand and the login shell",
                )
        raise self._lost(connection)

    def _no_shell(self, status: int, said: str) -> NoConnection:
        answer = f"answered “{said[-200:]}”" if said else f"ended with exit status {status}"
        # a machine that shuts down ends its shells by a signal
        kind = ConnectionRefused if status > 128 else Unreachable
        return kind(
            f"cannot run commands: because the user's login shell or a forced command {answer}",
            where=self.name,
            hint="give the user a shell there (usermod -s /bin/sh), or look at ForceCommand in "
            "sshd_config and at command= in authorized_keys",
        )

    def _lost(self, connection: Connection) -> ConnectionLost:
        patience = self._timing["patience"]
        why = f" (no sign of life for {patience:.0f} s)" if connection.liveness.silent else ""
        return ConnectionLost(
            f"cannot say whether the command finished: because the connection broke{why}",
            where=self.name,
            hint="look at the machine, then repeat the step: it probes before it acts",
        )

    def _session(
        self, timeout: float, stop: threading.Event | None, *, tell: bool = True
    ) -> tuple[Connection, Any, float]:
        """A channel on which nothing was sent yet, so everything up to here may be repeated.

        With it comes the time when ``timeout`` is over, which rests while nobody answers.
        """
        deadline = time.monotonic() + timeout
        fresh, settles = False, 0.0
        while True:
            asked = time.monotonic()
            connection = self._wait.until_answered(self.name, lambda: self._connected(stop), stop)
            if tell:
                self._tell(connection)
            deadline += time.monotonic() - asked
            remaining = deadline - time.monotonic()
            if fresh:
                remaining = max(remaining, 1.0)
            if remaining <= 0:
                raise Overdue(timeout)
            try:
                channel = connection.session(remaining, stop)
                if connection.one_by_one:
                    deadline = time.monotonic() + timeout
                return connection, channel, deadline
            except TimeoutError as error:
                raise Overdue(timeout) from error
            except SessionRefused as error:
                settles = settles or time.monotonic() + SETTLE_SECONDS
                soon = not fresh and time.monotonic() < settles
                if self._busy > 1 or self._shell_ended(connection) or soon:
                    time.sleep(POLL_SECONDS / 2)
                    continue
                reason = str(error)
            except EOFError:
                reason = "it closed the connection"
            if fresh:
                raise ConnectionRefused(
                    f"cannot open a session: because the server refuses it: {reason}",
                    where=self.name,
                    hint="look at MaxSessions and the log of its sshd",
                )
            # Processes that outlive their command occupy sessions; a new connection has none.
            self._drop(connection)
            fresh = True

    def _tell(self, connection: Connection) -> None:
        if self._on_connect is None or self._told is connection:
            return
        with self._telling:
            if self._told is not connection:
                self._on_connect()
                self._told = connection

    def _connected(self, stop: threading.Event | None = None) -> Connection:
        with self._lock:
            if self._connection is not None:
                if self._connection.alive:
                    return self._connection
                self._connection.close()
                self._connection = None
            self._wait.refuse_vain()
            self._connection = self._over_one_way(stop)
            self.connections += 1
            return self._connection

    def _over_one_way(self, stop: threading.Event | None) -> Connection:
        """A connection over the first way that is answered, the one that was last before others.

        Waiting may help as long as nobody answers on one of them.
        """
        errors: list[NoConnection] = []
        for way in self._ways:
            try:
                connection = self._over(way, stop)
            except NoConnection as error:
                errors.append(error)
                if self._jump is not None and len(self._ways) > 1:
                    self._jump.close()
                    self._jump = None
            else:
                self._ways.sort(key=lambda each: each is not way)
                return connection
        first, *others = sorted(errors, key=lambda each: not isinstance(each, ConnectionRefused))
        first.message += "".join(f"; and in the other way: {each.message}" for each in others)
        raise first

    def _over(self, way: Target, stop: threading.Event | None) -> Connection:
        route = resolve(way)
        via = self._via or self._jump_over(way, route.jump)
        connection = connect(
            way,
            route,
            via._connected(stop) if via is not None else None,
            timeout=self._timing["connect_timeout"],
            keepalive=self._timing["keepalive"],
            patience=self._timing["patience"],
            stop=stop,
            say=self._wait.say,
        )
        try:
            see_root(connection, self.name, self._timing["patience"], stop)
        except BaseException:
            connection.close()
            raise
        return connection

    def _jump_over(self, way: Target, jump: str) -> SSH | None:
        near, behind = self._near, way.behind
        timing: dict[str, Any] = self._timing
        if behind is not None:
            if near is not None and behind in near._ways:
                return near
            self._jump = self._jump or SSH(behind, **timing)
        if self._jump is not None or not jump:
            return self._jump
        targets = [self._hop(way, hop) for hop in hops(jump)]
        if near is not None and [*map(resolve, targets)] in [[resolve(one)] for one in near._ways]:
            return near
        for target in targets:
            # `Host *` gives the jump host itself the same ProxyJump.
            if target.host == way.host:
                continue
            if self._depth >= MAX_HOPS:
                raise BadInput(
                    f"cannot follow ProxyJump {jump}: because it goes in circles",
                    where=self.name,
                    hint="give the jump host a Host block without ProxyJump",
                )
            self._jump = SSH(target, via=self._jump, **timing)
            self._jump._depth = self._depth + 1
        return self._jump

    def _hop(self, way: Target, hop: Target) -> Target:
        return Target(hop.host, way.config, hop.port, hop.user, known_hosts=way.known_hosts)

    def _drop(self, connection: Connection) -> None:
        with self._lock:
            connection.close()
            if self._connection is connection:
                self._connection = None

    @contextmanager
    def _slot(self, stop: threading.Event | None) -> Iterator[None]:
        while not self._slots.acquire(timeout=POLL_SECONDS):
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
            self._slots.release()


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
