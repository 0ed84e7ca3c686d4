"""Host: one machine, reached over SSH or local; run, read, write, wait, boot id."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from xenlab.command import Command, MaskedStream, Result, Secret, mask, mask_bytes
from xenlab.errors import (
    CommandFailed,
    CommandTimeout,
    ConnectionLost,
    ConnectionRefused,
    StepFailed,
    XenlabError,
)
from xenlab.wholefile import FOLLOW, NO_PLACE, PLACE, RECEIVE, size_and_digest

Output = Callable[[str, bytes], None]
"""Called with "stdout" or "stderr" and each piece of output as it arrives."""

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_NO_ROOT = (125, 126, 127)
"""What chroot(1) ends with where there is no system in the root yet."""

READ_SECONDS = 60.0
"""Deadline of a command that only looks; what changes something names its own."""

FIND_MARKED = """
marked() {
    # one word: as a word of its own it would find this grep
    seeds=$(grep -lzxF "-eXENLAB_STEP=$mark" /proc/[0-9]*/environ /proc/[0-9]*/cmdline \\
        2>/dev/null \\
        | tr -dc '0-9\\n' | tr '\\n' ' ') || :
    [ -n "$seeds" ] || return 0
    cat /proc/[0-9]*/stat 2>/dev/null | awk -v seeds="$seeds" '
        { id = $1; sub(/.*\\) /, ""); if ($1 != "Z") parent[id] = $2 }
        END {
            n = split(seeds, seed, " ")
            for (; n; n--) if (seed[n] in parent) doomed[seed[n]]
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
"""Shell function that prints every process with the mark "$1", and all that they started."""


class Transport(Protocol):
    """A way to run shell text on a machine: `xenlab.ssh.SSH` or `xenlab.local.Local`."""

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
    ) -> tuple[int, bytes, bytes]:
        """Run text under /bin/sh, umask 022 and ``XENLAB_STEP=mark`` in its environment.

        Returns the exit status (128 + n for signal n), stdout, stderr.
        Raises TimeoutError past ``timeout`` seconds, KeyboardInterrupt when ``stop`` is set,
        ConnectionLost when the connection broke.
        """

    def upload(self, local: Path, remote: str, progress: Progress | None = None) -> None:
        """Copy a file to the machine."""

    def download(self, remote: str, local: Path, progress: Progress | None = None) -> None:
        """Copy a file from the machine."""

    def connect(self, stop: threading.Event | None = None) -> None:
        """Connect if not connected; raises NoConnection, KeyboardInterrupt for a set ``stop``."""

    def close(self) -> None:
        """End the connection; a later call connects again."""


@dataclass(frozen=True)
class Host:
    """A machine, or a root directory on it (`inside`), that commands and files are handled on."""

    transport: Transport
    root: str = "/"
    mark: str = ""
    on_output: Output | None = field(default=None, compare=False)
    on_command: Callable[[str], None] | None = field(default=None, compare=False)
    on_result: Callable[[Result], None] | None = field(default=None, compare=False)
    stop: threading.Event | None = field(default=None, compare=False)
    secrets: tuple[Secret, ...] = field(default=(), repr=False, compare=False)

    @property
    def name(self) -> str:
        """The name by which people know the machine, with the root where it is not ``/``."""
        return self.transport.name + ("" if self.root == "/" else f":{self.root}")

    def inside(self, root: str) -> Host:
        """The same machine seen from inside a root directory: commands run in a chroot."""
        return replace(self, root=root.rstrip("/") or "/")

    def marked(self, mark: str) -> Host:
        """The same machine, whose commands carry ``XENLAB_STEP=mark`` in their environment.

        The mark is how `end_marked` finds what a lost or stopped step left running.
        """
        return replace(self, mark=mark)

    def watched(
        self,
        on_output: Output | None = None,
        on_command: Callable[[str], None] | None = None,
        on_result: Callable[[Result], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Host:
        """The same machine with its commands (masked), their output and results shown to others."""
        return replace(
            self, on_output=on_output, on_command=on_command, on_result=on_result, stop=stop
        )

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
    ) -> Result:
        """Run a command (a plain string must hold no foreign value); wait for its end.

        Raises CommandFailed unless the status is 0 or ``check`` is False, CommandTimeout past
        ``timeout`` seconds, ConnectionLost when nobody can say whether it finished.
        """
        command = command if isinstance(command, Command) else Command(command)
        mark = self.mark or f"run-{uuid.uuid4().hex}"
        text = command.text
        if self.root != "/":
            text = "exec " + Command.argv("chroot", self.root, "/bin/sh", "-c", text).text
        said = mask(str(command), self.secrets)
        if self.on_command is not None:
            self.on_command(said)
        secrets = (*command.secrets, *self.secrets)
        streams = {name: MaskedStream(secrets) for name in ("stdout", "stderr")}
        on_output = self.on_output

        def show(stream: str, piece: bytes) -> None:
            if on_output is not None:
                on_output(stream, streams[stream].feed(piece))

        start = time.monotonic()
        try:
            status, out, err = self.transport.execute(
                text, input=input, timeout=timeout, on_output=show, stop=self.stop, mark=mark
            )
        except TimeoutError:
            self._end_own(mark, timeout)
            elapsed = time.monotonic() - start
            raise CommandTimeout(Result(self.name, said, -1, b"", b"", elapsed), timeout) from None
        except KeyboardInterrupt:
            # An unreachable machine must not hide that a person stopped the step.
            with contextlib.suppress(XenlabError):
                self.end_marked(mark)
            raise
        finally:
            for stream, masked in streams.items():
                rest = masked.flush()
                if rest and on_output is not None:
                    on_output(stream, rest)
        out, err = (mask_bytes(data, secrets) for data in (out, err))
        result = Result(self.name, said, status, out, err, time.monotonic() - start)
        if self.on_result is not None:
            self.on_result(result)
        if check and not result.ok:
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
        if result.status == 44 or (self.root != "/" and result.status in _NO_ROOT):
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
        result = self.run(command, input=data, check=False)
        if result.status == NO_PLACE:
            raise StepFailed(
                f"cannot write {path}: because {result.stderr.strip()}",
                where=self.name,
                hint="look where the link leads; remove it if a file shall stand there",
            )
        if not result.ok:
            raise CommandFailed(replace(result, command=f"write {path}"))

    def upload(self, local: Path, remote: str, progress: Progress | None = None) -> None:
        """Copy a local file to a path inside the root; links, mode and owner as in `write`."""
        self.transport.upload(local, self.followed(remote), progress)

    def download(self, remote: str, local: Path, progress: Progress | None = None) -> None:
        """Copy a file inside the root to this machine."""
        self.transport.download(self.followed(remote), local, progress)

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
        while time.monotonic() < deadline:
            try:
                self.transport.close()
                new = self.boot_id()
            except (ConnectionRefused, ConnectionLost, CommandTimeout) as error:
                reason = str(error)
            else:
                if new != old_boot_id:
                    return new
            time.sleep(1)
        raise ConnectionRefused(
            f"no new boot within {timeout:.0f} s: {reason}",
            where=self.name,
            hint="look at the machine's console",
        )

    def end_marked(self, mark: str) -> int:
        """End every process that carries a mark, and all it started; return how many there were."""
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
        unmarked = replace(self.watched(), mark="", root="/")
        return int(unmarked.run(Command.script(script, mark), timeout=120).stdout)

    def has_marked(self, mark: str) -> bool:
        """Whether a process that carries a mark still runs."""
        script = FIND_MARKED + '[ -n "$(marked)" ]'
        return replace(self.watched(), mark="", root="/").test(Command.script(script, mark))

    def _end_own(self, mark: str, timeout: float) -> None:
        try:
            self.end_marked(mark)
        except XenlabError as error:
            raise ConnectionLost(
                f"no end within {timeout:.0f} s, and ending the command failed: whether it still "
                f"runs is unknown ({error.message})",
                where=self.name,
                hint="look at the machine's console",
            ) from error
