"""Commands and their results: the one place where quoting happens."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from xenlab.masking import Secret, mask


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
    """What a command gave back. ``command`` is masked; ``out`` and ``err`` are raw bytes.

    What is recorded or shown of them is masked by whoever does that: ``secrets`` are to be hidden.
    """

    host: str
    command: str
    status: int
    out: bytes = field(repr=False)
    err: bytes = field(repr=False)
    seconds: float
    secrets: tuple[Secret, ...] = field(default=(), repr=False, compare=False)

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
    return tuple(v for v in values if isinstance(v, Secret))
