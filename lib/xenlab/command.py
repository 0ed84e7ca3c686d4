"""Commands and their results: the one place where quoting happens."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from xenlab.masking import Secret, mask

Value = str | Path | int | Secret

CONTROLLER, MACHINE = "controller", "machine"
"""Where a command is typed: on this machine, or on the one that becomes dom0, in its own root."""

SAID = "{said}"
"""What stands in a refusal's message for what the command said on standard error."""


@dataclass(frozen=True)
class Command:
    """POSIX shell text in which every value is quoted; ``str()`` gives its masked form.

    ``typed`` is what a person would type to the same end, where that is shorter, and ``place``
    where: "" is the root that the step works in, else ``CONTROLLER``, ``MACHINE`` or a guest's
    alias. ``scripted`` is what a script has in the place of what takes a terminal. ``input`` goes
    into it; ``seconds`` is its deadline, None for that of a look; ``refusals`` are what its own
    exit statuses mean: a message and what to try.
    """

    text: str
    secrets: tuple[Secret, ...] = ()
    typed: str = field(default="", compare=False, repr=False)
    place: str = field(default="", compare=False)
    scripted: str | None = field(default=None, compare=False, repr=False)
    input: bytes = field(default=b"", compare=False, repr=False)
    seconds: float | None = field(default=None, compare=False)
    refusals: Mapping[int, tuple[str, str]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def sh(cls, text: str, **values: Value | Sequence[Value]) -> Command:
        """Shell text as a person types it, each ``{name}`` in it one of these values, quoted.

        A sequence stands for several words. ``Command.sh("mkswap -L {label} {device}", label="a b",
        device="/dev/vda2")`` is ``mkswap -L 'a b' /dev/vda2``. Raises KeyError for a name without
        a value; ``${name}`` is the shell's own.
        """
        used: list[Value] = []

        def words(found: re.Match[str]) -> str:
            value = values[found[1]]
            each = [value] if isinstance(value, Value) else value
            used.extend(each)
            return " ".join(_quote(word) for word in each)

        plain = textwrap.dedent(text).strip("\n")
        return cls(re.sub(r"(?<!\$)\{([a-z_]\w*)\}", words, plain), _secrets(tuple(used)))

    @classmethod
    def file(
        cls, path: str, text: str, mode: int | None = None, owner: str = "", *, into: str = ">"
    ) -> Command:
        """A file's whole text written by a here-document; then its mode and owner, where stated.

        ``into=">>"`` adds the text to what is there.

        A folder for additions (``….d``) is made first: it may not be there yet.
        """
        end = "END"
        while end in text.split("\n"):
            end += "_"
        if text and not text.endswith("\n"):
            lines = [f"printf %s {_quote(text)} {into} {_quote(path)}"]
        else:
            lines = [f"cat {into} {_quote(path)} <<'{end}'\n{text}{end}"]
        folder = path.rpartition("/")[0]
        if folder.endswith(".d"):
            lines.insert(0, f"mkdir -p {_quote(folder)}")
        lines += [] if mode is None else [f"chmod {mode:o} {_quote(path)}"]
        lines += [f"chown {_quote(owner)} {_quote(path)}"] if owner else []
        return cls("\n".join(lines))

    def by_hand(self) -> str:
        """What a person would type, masked; in a guest over SSH."""
        text = (self.typed or self.text).strip("\n")
        if self.place == CONTROLLER and text:
            text = (
                f"# on the controller\n{text}" if "\n" in text else f"{text}  # on the controller"
            )
        elif self.place not in ("", CONTROLLER, MACHINE):
            text = f"ssh {_quote(self.place)} {_quote(text)}"
        return mask(text, self.secrets)

    def in_script(self) -> str:
        """What stands in a script that runs where the command belongs, masked."""
        text = (self.typed or self.text) if self.scripted is None else self.scripted
        return mask(text, self.secrets).strip("\n")

    def at(self, place: str) -> Command:
        """The same, typed at another place than in the step's root."""
        return replace(self, place=place)

    def scripted_as(self, text: str, **values: Value | Sequence[Value]) -> Command:
        """The same; a script has this text, its values as in `sh`, "" for nothing."""
        return replace(self, scripted=Command.sh(text, **values).text)

    def typed_as(self, text: str, **values: Value | Sequence[Value]) -> Command:
        """The same; what a person would type is this text, its values as in `sh`."""
        typed = Command.sh(text, **values)
        return replace(self, typed=typed.text, secrets=(*self.secrets, *typed.secrets))

    def given(self, data: bytes) -> Command:
        """The same, with this on its standard input."""
        return replace(self, input=data)

    def within(self, seconds: float) -> Command:
        """The same, with a deadline."""
        return replace(self, seconds=seconds)

    def refusing(self, refusals: Mapping[int, tuple[str, str]]) -> Command:
        """The same; its exit statuses with a meaning, each a message and what to try."""
        return replace(self, refusals=refusals)

    @classmethod
    def argv(cls, *words: Value) -> Command:
        """One program and its arguments; no shell sees a value unquoted."""
        return cls(" ".join(_quote(w) for w in words), _secrets(words))

    @classmethod
    def script(cls, text: str, *values: Value) -> Command:
        """A shell script under ``set -eu`` that finds its values in ``"$1"`` and so on."""
        words = " ".join(_quote(v) for v in values)
        return cls(f"set -eu\nset -- {words}\n{text.strip()}\n", _secrets(values))

    def __str__(self) -> str:
        return mask(self.text, self.secrets)


@dataclass(frozen=True)
class Result:
    """What a command gave back. ``out`` and ``err`` are raw bytes.

    ``command`` is what a person would type, masked: a script's first lines name no program.

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


def _quote(value: Value) -> str:
    raw = value.value if isinstance(value, Secret) else str(value)
    if "\0" in raw:
        raise ValueError("a NUL byte cannot be passed to a command")
    return shlex.quote(raw)


def _secrets(values: tuple[Value, ...]) -> tuple[Secret, ...]:
    return tuple(v for v in values if isinstance(v, Secret))
