"""Host: one machine, reached over SSH or local; run, read, write, wait, boot id."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from xenlab.command import MACHINE, SAID, Command, Result
from xenlab.errors import (
    CommandError,
    CommandFailed,
    CommandTimeout,
    ConnectionLost,
    ConnectionRefused,
    Overdue,
    StepFailed,
    XenlabError,
)
from xenlab.masking import Secret, mask

# The clock that scripts on a machine go by: its uptime, which no time server moves.

UPTIME = """
# $now is the machine's uptime in whole seconds
uptime_seconds() { read -r now rest < /proc/uptime; now=${now%.*}; }
wait_until() { # SECONDS COMMAND…: asks each second, and fails once the time is over
    uptime_seconds; end=$((now + $1)); shift
    until "$@"; do
        uptime_seconds
        [ "$now" -lt "$end" ] || return 1
        sleep 1
    done
}
"""
"""Shell functions for deadlines inside a script."""


# Whole files: what a connection brings takes a file's place only if all of it has arrived.
#
# Where a connection breaks, a command reads the end of its input as if that were all. So size and
# SHA-256 of what is sent go along as arguments, and are compared before anything is replaced.

NO_PLACE = 71
"""What `FOLLOW` ends with where a path leads to nothing that a file could stand in."""

RECEIVE = """\
receive() { # FILE SIZE SHA256: standard input becomes that file, or there is no such file
    cat > "$1"
    if [ "$(wc -c < "$1") $(sha256sum < "$1")" != "$2 $3  -" ]; then
        # first of all: a closed stderr kills some shells
        rm -f -- "$1"
        echo "not all of $1 has arrived" >&2
        exit 74
    fi
}
"""
"""Shell function for scripts that make a file of their input; see `size_and_digest`."""

FOLLOW = """\
follow() { # PATH: $file is the file that the path stands for
    case $1 in */*) file=$1 ;; *) file=./$1 ;; esac
    if [ -L "$1" ]; then
        file=$(readlink -f -- "$1") || { echo "$1 is a link that leads nowhere" >&2; exit 71; }
    fi
    if [ -e "$file" ] && [ ! -f "$file" ]; then
        echo "$file is no regular file" >&2
        exit 71
    fi
}
"""
"""Shell function that finds out what a path stands for, or ends the script; see `NO_PLACE`."""

PLACE = """\
place() { # NEW FILE MODE OWNER: what is empty stays as it is with the file that is replaced
    [ -z "$4" ] || chown -- "$4" "$1"
    if [ -e "$2" ]; then
        # ACLs and other attributes as well, where cp can (busybox cannot)
        cp --attributes-only --preserve=all --no-preserve="timestamps,links${4:+,ownership}" \\
            -- "$2" "$1" 2>/dev/null \\
            || [ -n "$4" ] || chown -- "$(stat -c %u:%g -- "$2")" "$1"
    elif [ -z "$4" ]; then
        chown -- "$(id -u):$(id -g)" "$1"
    fi
    chmod -- "${3:-$(stat -c %a -- "$2" 2>/dev/null || echo 644)}" "$1"
    # of one file where sync can, else of all
    sync -- "$1" 2>/dev/null || sync
    mv -f -- "$1" "$2"
    sync -- "${2%/*}/" 2>/dev/null || sync
}
"""
"""Shell function that replaces a file, on disk when it ends; a new one is root's, mode 644."""


def size_and_digest(data: bytes) -> tuple[int, str]:
    """What `RECEIVE` compares with."""
    return len(data), hashlib.sha256(data).hexdigest()


Output = Callable[[str, bytes], None]
"""Called with "stdout" or "stderr" and each piece of output as it arrives."""

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

NO_ROOT = (125, 126, 127)
"""What chroot(1), or a shell in it, ends with where the root holds no system, or not all of one."""

NO_PROGRAM = 127
"""What a shell ends with where a program is not installed."""

READ_SECONDS = 60.0
"""Deadline of a command that only looks; what changes something names its own."""

LOOK_SHELL = "XENLAB_SHELL"
"""Stands among the words of a shell that stays for the looks of a connection."""

_MARKED = """
marked() {
    # each is one word: as a word of its own it would find this grep
    seeds=$(LC_ALL=C grep -lz "-e^XENLAB_STEP=$mark\\$" "-e^XENLAB_STEP=$mark/" \\
        /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null \\
        | tr -dc '0-9\\n' | tr '\\n' ' ') || :
    [ -n "$seeds" ] || return 0
    # a look runs in subshells of a shell that stays: only the marks of their children betray them
    shells=$(LC_ALL=C grep -lz "$look_shell" /proc/[0-9]*/cmdline 2>/dev/null \\
        | tr -dc '0-9\\n' | tr '\\n' ' ') || :
    cat /proc/[0-9]*/stat 2>/dev/null | awk -v seeds="$seeds" -v shells="$shells" '
        { id = $1; sub(/.*\\) /, ""); if ($1 != "Z") parent[id] = $2 }
        END {
            n = split(shells, each, " ")
            for (; n; n--) shell[each[n]]
            n = split(seeds, seed, " ")
            for (; n; n--) if (seed[n] in parent) {
                doomed[seed[n]]
                for (up = parent[seed[n]]; up in shell && parent[up] in shell; up = parent[up])
                    doomed[up]
            }
            do {
                more = 0
                for (id in parent)
                    if ((parent[id] in doomed) && !(id in doomed)) { doomed[id]; more = 1 }
            } while (more)
            for (id in doomed) printf "%s ", id
        }'
}
mark=$1
"""

FIND_MARKED = f"look_shell='^{LOOK_SHELL}$'\n{_MARKED}"
"""Shell function that prints every process with the mark "$1" or one below it, and all that they
started; "$1" is a basic regular expression (`_as_pattern`).
"""


class Call(Protocol):
    """One command under way, as its watcher follows it."""

    def output(self, stream: str, piece: bytes) -> None:
        """A piece of its output, as it came."""

    def ended(self, status: int | None, seconds: float) -> None:
        """Its exit status, None where nobody knows it, and how long it took."""


class Watcher(Protocol):
    """Who is told of each command that a host runs (`xenlab.chapter.recorder.Recorder`)."""

    stop: threading.Event

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """What must be masked where output is shown."""

    @property
    def mark(self) -> str:
        """The mark that processes of these commands carry."""

    @property
    def looks(self) -> bool:
        """Whether these commands only look, and leave nothing running."""

    def started(self, host: str, command: Command, input: bytes) -> Call:
        """A command is about to run; raises where none may run now."""


class Transport(Protocol):
    """A way to run shell text on a machine, as those of `xenlab.transport.ssh` and ``.local``."""

    name: str

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
        """Run text under /bin/sh, umask 022 and ``XENLAB_STEP=mark`` in its environment.

        One that only looks (``look``) leaves nothing running, so that others may share its shell.
        Returns the exit status (128 + n for signal n), stdout, stderr.
        Raises Overdue past ``timeout`` seconds, KeyboardInterrupt when ``stop`` is set,
        ConnectionLost when the connection broke.
        """

    def upload(self, local: Path, remote: str, progress: Progress | None = None) -> None:
        """Copy a file to the machine."""

    def connect(self, stop: threading.Event | None = None, *, seconds: float | None = None) -> None:
        """Connect if not connected; raises NoConnection, KeyboardInterrupt for a set ``stop``.

        ``seconds`` say how long one that does not answer is waited for, if not as usual.
        """

    def close(self) -> None:
        """End the connection; a later call connects again."""


@dataclass(frozen=True)
class Host:
    """A machine, or a root directory on it (`inside`), that commands and files are handled on.

    ``watcher`` is told of each command; ``on_output`` gets its output as well, unmasked. ``quiet``
    keeps stdout that only a program reads, such as a listing of many MiB, from both.
    """

    transport: Transport
    root: str = "/"
    mark: str | None = None
    watcher: Watcher | None = field(default=None, compare=False)
    on_output: Output | None = field(default=None, compare=False)
    quiet: bool = field(default=False, compare=False)
    stoppable: bool = field(default=True, compare=False)

    @property
    def name(self) -> str:
        """The name by which people know the machine, with the root where it is not ``/``."""
        return self.transport.name + ("" if self.root == "/" else f":{self.root}")

    @property
    def stop(self) -> threading.Event | None:
        """What is set when a person stops the step that the commands belong to."""
        return self.watcher.stop if self.watcher is not None and self.stoppable else None

    def inside(self, root: str) -> Host:
        """The same machine seen from inside a root directory: commands run in a chroot."""
        return replace(self, root=root.rstrip("/") or "/")

    def marked(self, mark: str) -> Host:
        """The same machine, whose commands carry this mark, not their watcher's.

        Each carries ``XENLAB_STEP=mark/…``, a mark of its own below it: one that is late is ended
        alone, and `end_marked` finds all that a lost or stopped step left running.
        """
        return replace(self, mark=mark)

    def watched(self, watcher: Watcher | None) -> Host:
        """The same machine, whose commands this watcher is told of; nobody for None."""
        return replace(self, watcher=watcher)

    def path(self, path: str) -> str:
        """A path inside the root as the machine itself names it."""
        return path if self.root == "/" else str(PurePosixPath(self.root) / path.lstrip("/"))

    def run(
        self,
        command: Command | str,
        *,
        input: bytes = b"",
        timeout: float = READ_SECONDS,
        check: bool = True,
        patience: float | None = None,
    ) -> Result:
        """Run a command (a plain string must hold no foreign value); wait for its end.

        ``patience`` seconds are waited for a machine that is silent; None: the transport's own.
        The result's ``out`` and ``err`` are every byte that it printed. Raises CommandFailed
        unless the status is 0 or ``check`` is False, CommandTimeout past ``timeout`` seconds,
        ConnectionLost when nobody can say whether it finished.
        """
        command = command if isinstance(command, Command) else Command(command)
        watcher = self.watcher
        mark = self.mark if self.mark is not None else watcher.mark if watcher else ""
        mark = mark or f"run-{uuid.uuid4().hex}"
        own = f"{mark}/{uuid.uuid4().hex[:8]}"
        secrets = (*command.secrets, *(watcher.secrets if watcher else ()))
        said = mask(command.by_hand(), secrets)
        with self._announced(command, input) as call:
            try:
                if patience is not None:
                    self.transport.connect(self.stop, seconds=patience)
                call.status, out, err = self.transport.execute(
                    self._in_root(command.text),
                    input=input,
                    timeout=timeout,
                    on_output=call.hear,
                    stop=self.stop,
                    mark=own,
                    look=watcher is not None and watcher.looks,
                )
            except Overdue as late:
                printed = (late.out, late.err)
                result = Result(self.name, said, -1, *printed, call.seconds, secrets)
                self._end_own(own, timeout)
                raise CommandTimeout(result, timeout) from None
            except KeyboardInterrupt as stopped:
                self.end_stopped(mark, stopped)
                raise
        result = Result(self.name, said, call.status, out, err, call.seconds, secrets)
        if check and not result.ok:
            raise CommandFailed(result)
        return result

    def _in_root(self, text: str) -> str:
        if self.root == "/":
            return text
        return "exec " + Command.argv("chroot", self.root, "/bin/sh", "-c", text).text

    @contextlib.contextmanager
    def _announced(self, command: Command, input: bytes = b"") -> Iterator[_Running]:
        """Tell the watcher of a command, of its output and its end, whatever that is."""
        call = self.watcher.started(self.name, command, input) if self.watcher else None
        running = _Running(call, self.on_output, quiet=self.quiet)
        try:
            yield running
        finally:
            if call is not None:
                call.ended(running.status, running.seconds)

    def look(
        self,
        command: Command | str,
        *statuses: int,
        absent: Collection[int] = (),
        timeout: float = READ_SECONDS,
    ) -> Result | None:
        """Run a command that only looks; None where there is nothing to look at yet.

        That is where a root that is not booted holds no system (`NO_ROOT`), or the status is one
        of ``absent``.
        Raises CommandFailed for any other that is neither 0 nor one of ``statuses``.
        """
        result = self.run(command, timeout=timeout, check=False)
        if result.status in absent or (self.root != "/" and result.status in NO_ROOT):
            return None
        if result.status not in (0, *statuses):
            raise CommandFailed(result)
        return result

    def change(self, command: Command) -> Result:
        """Run a command that changes something, of several lines none after one that fails.

        One that belongs to the machine runs there, also where this is a root directory on it.
        Raises StepFailed for an exit status with a meaning, CommandFailed for any other but 0.
        """
        if "\n" in command.text and not command.text.startswith("set -e"):
            typed = command.typed or command.text
            command = replace(command, text=f"set -e\n{command.text}", typed=typed)
        host = self.inside("/") if command.place == MACHINE else self
        seconds = command.seconds or READ_SECONDS
        result = host.run(command, input=command.input, timeout=seconds, check=False)
        if result.status in command.refusals:
            message, hint = command.refusals[result.status]
            said = "\n".join(result.stderr.strip().splitlines()[-10:])
            message = message.replace(SAID, said)
            raise StepFailed(message, hint=hint, where=host.name)
        if not result.ok:
            raise CommandFailed(result)
        return result

    def test(self, command: Command | str, *, timeout: float = READ_SECONDS) -> bool:
        """Whether a command ends with status 0."""
        return self.run(command, timeout=timeout, check=False).ok

    def read(self, path: str) -> str | None:
        """A file's text, None where there is no such file.

        Bytes that are not UTF-8 stand in it as `surrogateescape` has them: `write` puts the same
        bytes back.
        """
        data = self.read_bytes(path)
        return None if data is None else data.decode("utf-8", "surrogateescape")

    def read_bytes(self, path: str) -> bytes | None:
        """A file's content, None where there is no such file."""
        command = Command.script('if [ -e "$1" ]; then cat -- "$1"; else exit 44; fi', path)
        result = self.run(command, check=False)
        if result.status == 44 or (self.root != "/" and result.status in NO_ROOT):
            return None
        if not result.ok:
            raise CommandFailed(result)
        return result.out

    def write(
        self, path: str, text: str | bytes, *, mode: int | None = None, owner: str = ""
    ) -> None:
        """Write a file whole or not at all, and onto the disk.

        Missing folders above it are made. Mode and owner that are not stated stay as they are, as
        do ACLs and extended attributes; a new file is root's and has mode 0644. A symbolic link is
        followed, inside the root. Raises StepFailed where it leads to no place for a file.
        """
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        command = Command.script(
            RECEIVE
            + FOLLOW
            + PLACE
            + """
            mkdir -p -- "${1%/*}/"
            follow "$1"
            temporary=$(mktemp -- "${file%/*}/.xenlab-XXXXXX")
            trap 'rm -f -- "$temporary"' EXIT
            receive "$temporary" "$2" "$3"
            place "$temporary" "$file" "$4" "$5"
            """,
            path,
            *size_and_digest(data),
            "" if mode is None else f"{mode:o}",
            owner,
        )
        no_place = (
            f"cannot write {path}: because {SAID}",
            "look where the link leads; remove it if a file shall stand there",
        )
        command = command.typed_as("write {path}", path=path).given(data)
        self.change(command.refusing({NO_PLACE: no_place}))

    def upload(self, local: Path, remote: str, progress: Progress | None = None) -> None:
        """Copy a local file to a path inside the root; links, mode and owner as in `write`."""
        place = self.followed(remote)
        # as a person would type it
        typed = Command.argv("scp", "--", local, f"{self.transport.name}:{place}")
        with self._announced(typed) as running:
            try:
                self.transport.upload(local, place, progress)
                running.status = 0
            except CommandError as error:
                running.hear("stderr", error.result.err)
                if isinstance(error, CommandFailed):
                    running.status = error.result.status
                raise

    def followed(self, path: str) -> str:
        """A path inside the root as the machine itself names it, its links followed inside it."""
        if self.root == "/":
            return path
        found = self.run(Command.argv("readlink", "-f", "--", path)).out
        return self.path(found.decode("utf-8", "surrogateescape").removesuffix("\n"))

    def boot_id(self) -> str:
        """The kernel's boot id, another one after each boot (random(4))."""
        return self.run("cat /proc/sys/kernel/random/boot_id").stdout.strip()

    def wait_for_reboot(self, old_boot_id: str, *, timeout: float) -> str:
        """Wait until the machine answers with another boot id than the old one; return it.

        Raises ConnectionRefused past ``timeout`` seconds; an unknown host key is raised at once.
        """
        deadline = time.monotonic() + timeout
        reason = "it still has its old boot id"
        self.transport.close()
        while (left := deadline - time.monotonic()) > 0:
            try:
                self.transport.connect(self.stop, seconds=left)
                new = self.boot_id()
            except (ConnectionRefused, ConnectionLost, CommandTimeout) as error:
                reason = str(error)
                self.transport.close()
            else:
                # the connection is kept meanwhile, and the machine's lock with it: no boot leaves
                # one alive
                if new != old_boot_id:
                    return new
            if (self.stop or threading.Event()).wait(1):
                raise KeyboardInterrupt
        raise ConnectionRefused(
            f"no new boot within {timeout:.0f} s: {reason}",
            where=self.name,
            hint="look at the machine's console",
        )

    def end_marked(self, mark: str) -> int:
        """End every process that carries a mark, or one below it, and all that they started.

        Returns how many there were.
        """
        script = (
            FIND_MARKED
            + """
            doomed=$(marked)
            count=0
            for id in $doomed; do count=$((count + 1)); done
            [ -z "$doomed" ] || kill -TERM $doomed 2>/dev/null || :
            for round in 1 2 3 4 5 6 7 8 9 10; do
                [ -n "$(marked)" ] || break
                sleep 0.2
            done
            for round in 1 2 3 4 5; do
                left=$(marked)
                [ -n "$left" ] || break
                kill -KILL $left 2>/dev/null || :
                sleep 0.1
            done
            echo "$count"
        """
        )
        return int(self._aside().run(Command.script(script, _as_pattern(mark)), timeout=120).stdout)

    def end_stopped(self, mark: str, stopped: KeyboardInterrupt) -> None:
        """End what carries a mark, for a person who has stopped it and waits for no machine.

        Where that fails, a note on the interrupt says so.
        """
        try:
            self.transport.connect(seconds=0)
            self.end_marked(mark)
        except XenlabError as error:
            stopped.add_note(f"what it ran on {self.name} may still run: {error.message}")

    def has_marked(self, mark: str) -> bool:
        """Whether a process that carries a mark, or one below it, still runs."""
        script = FIND_MARKED + '[ -n "$(marked)" ]'
        return self._aside().test(Command.script(script, _as_pattern(mark)))

    def _aside(self) -> Host:
        """The machine for a command about a step's processes: not one of them, and not stopped."""
        return replace(self, mark="", root="/", on_output=None, stoppable=False)

    def _end_own(self, mark: str, timeout: float) -> None:
        try:
            self.end_marked(mark)
        except XenlabError as error:
            raise ConnectionLost(
                f"cannot say whether the command still runs: because it timed out after "
                f"{timeout:.0f} s, and ending it failed: {error.message}",
                where=self.name,
                hint="look at the machine's console",
            ) from error


def _as_pattern(mark: str) -> str:
    """A mark as a basic regular expression that nothing else matches."""
    return re.sub(r"[][.*^$\\]", r"\\\g<0>", mark)


class _Running:
    """How a command goes, for those who follow it."""

    def __init__(self, call: Call | None, on_output: Output | None, *, quiet: bool) -> None:
        self.status: int | None = None
        self._start = time.monotonic()
        self._quiet = quiet
        listeners = (call.output if call else None, on_output)
        self._listeners = [listener for listener in listeners if listener is not None]

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self._start

    def hear(self, stream: str, piece: bytes) -> None:
        """Pass a piece of output on."""
        for listener in () if self._quiet and stream == "stdout" else self._listeners:
            listener(stream, piece)
