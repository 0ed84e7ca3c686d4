"""Copying: a file to or from a machine as one stream through ``cat``, whole or not at all.

A stream costs half of SFTP's processor time, and a machine needs no SFTP server for it.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from xenlab.command import Command, Result
from xenlab.errors import BadInput, CommandFailed
from xenlab.pump import Output, Source
from xenlab.wholefile import FOLLOW, PLACE

Progress = Callable[[int, int], None]

Stream = Callable[[str, Source | bytes, Output | None, float], tuple[int, bytes]]
"""Runs shell text with an input, a taker of its output, a deadline in seconds: status, stderr."""

COPY_SECONDS = 600.0
COPY_BYTES_PER_SECOND = 50_000
"""The deadline of an upload: a start and the slowest line that is still of use."""


def upload(stream: Stream, where: str, local: Path, remote: str, progress: Progress | None) -> None:
    """Copy a file to a machine; raises BadInput, CommandFailed and what ``stream`` raises."""
    try:
        size = local.stat().st_size
        source = local.open("rb")
    except OSError as error:
        raise BadInput(f"{local} cannot be read: {error.strerror}", where=where) from error
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
        _copy(stream, where, f"upload {local} to {remote}", command, reader, None, timeout)


def download(
    stream: Stream, where: str, remote: str, local: Path, progress: Progress | None
) -> None:
    """Copy a file from a machine; raises as `upload` does."""
    temporary = local.with_name(f"{local.name}.xenlab-{secrets.token_hex(4)}")
    try:
        sink = temporary.open("xb")
    except OSError as error:
        raise BadInput(f"{local} cannot be written: {error.strerror}", where=where) from error
    what = f"download {remote} to {local}"
    command = Command.script('wc -c < "$1"; cat < "$1"', remote)
    try:
        with sink:
            writer = _Writer(sink, progress)
            _copy(stream, where, what, command, b"", writer.take, float("inf"))
        os.replace(temporary, local)
    finally:
        temporary.unlink(missing_ok=True)


def _copy(
    stream: Stream,
    where: str,
    what: str,
    command: Command,
    source: Source | bytes,
    take: Output | None,
    timeout: float,
) -> None:
    start = time.monotonic()
    try:
        status, err = stream(command.text, source, take, timeout)
    except TimeoutError:
        status, err = -1, f"no end within {timeout:.0f} s".encode()
    if status:
        seconds = time.monotonic() - start
        raise CommandFailed(Result(where, what, status, b"", err, seconds))


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


class _Writer:
    """A file that a download fills: the stream's first line is its size in bytes."""

    def __init__(self, sink: BinaryIO, progress: Progress | None) -> None:
        self._sink = sink
        self._progress = progress
        self._head = b""
        self._size = -1
        self._done = 0

    def take(self, stream: str, piece: bytes) -> None:
        """Take a piece of the remote command's output."""
        if stream != "stdout":
            return
        if self._size < 0:
            head, newline, piece = (self._head + piece).partition(b"\n")
            if not newline:
                self._head = head
                return
            self._size = int(head)
        self._sink.write(piece)
        self._done += len(piece)
        if self._progress is not None:
            self._progress(self._done, max(self._size, self._done))
