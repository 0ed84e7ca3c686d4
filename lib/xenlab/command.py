"""Commands, their results and secrets: the one place where quoting and masking happen."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path

MASK = "•••"


@dataclass(frozen=True)
class Secret:
    """A value that may reach a remote command's input but never a record, log or page.

    Hand it over by reference: ``Secret.from_env`` or ``Secret.from_file``.
    """

    value: str = field(repr=False)

    @classmethod
    def from_env(cls, name: str) -> Secret:
        """The value of an environment variable; raises KeyError if it is not set."""
        return cls(os.environ[name])

    @classmethod
    def from_file(cls, path: str | Path) -> Secret:
        """The content of a file, without the newline at its end; raises OSError."""
        return cls(Path(path).expanduser().read_text().rstrip("\n"))

    def __str__(self) -> str:
        return MASK


def mask(text: str, secrets: tuple[Secret, ...]) -> str:
    """The text with every occurrence of each secret replaced by a mask."""
    for secret in secrets:
        if secret.value:
            text = text.replace(secret.value, MASK)
    return text


class MaskedStream:
    """Masks secrets in a stream of bytes, also where one is split over two pieces."""

    def __init__(self, secrets: tuple[Secret, ...]) -> None:
        self._secrets = secrets
        self._held = b""
        self._longest = max((len(s.value.encode()) for s in secrets), default=0)

    def feed(self, piece: bytes) -> bytes:
        """The masked bytes that can be shown by now."""
        data = mask_bytes(self._held + piece, self._secrets)
        keep = min(max(self._longest - 1, 0), len(data))
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def flush(self) -> bytes:
        """What was held back."""
        held, self._held = self._held, b""
        return held


def mask_bytes(data: bytes, secrets: tuple[Secret, ...]) -> bytes:
    """The bytes with every occurrence of each secret replaced by a mask."""
    for secret in secrets:
        if secret.value:
            data = data.replace(secret.value.encode(), MASK.encode())
    return data


@dataclass(frozen=True)
class Command:
    """POSIX shell text in which every value is quoted; ``str()`` gives its masked form."""

    text: str
    secrets: tuple[Secret, ...] = ()

    @classmethod
    def argv(cls, *words: str | Path | int | Secret) -> Command:
        """One program and its arguments; no shell sees a value unquoted."""
        return cls(" ".join(_quote(w) for w in words), _secrets(words))

    @classmethod
    def form(cls, template: str, *values: str | Path | int | Secret) -> Command:
        """A shell line with ``%s`` for each value: ``Command.form("ls -- %s | wc -l", path)``."""
        return cls(template % tuple(_quote(v) for v in values), _secrets(values))

    @classmethod
    def script(cls, text: str, *values: str | Path | int | Secret) -> Command:
        """A shell script under ``set -eu`` that finds its values in ``"$1"`` and so on."""
        words = " ".join(_quote(v) for v in values)
        return cls(f"set -eu\nset -- {words}\n{text.strip()}\n", _secrets(values))

    def __str__(self) -> str:
        return mask(self.text, self.secrets)


@dataclass(frozen=True)
class Result:
    """What a command gave back. ``command`` is masked; ``out`` and ``err`` are raw bytes."""

    host: str
    command: str
    status: int
    out: bytes
    err: bytes
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the exit status was 0."""
        return self.status == 0

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are replaced."""
        return self.out.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; bytes that are not UTF-8 are replaced."""
        return self.err.decode("utf-8", "replace")


def _quote(value: str | Path | int | Secret) -> str:
    raw = value.value if isinstance(value, Secret) else str(value)
    if "\0" in raw:
        raise ValueError("a NUL byte cannot be passed to a command")
    return shlex.quote(raw)


def _secrets(values: tuple[str | Path | int | Secret, ...]) -> tuple[Secret, ...]:
    found = (v for v in values if isinstance(v, Secret))
    return tuple(s for v in found for s in (v, Secret(shlex.quote(v.value))))
