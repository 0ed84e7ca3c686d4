"""What is recorded: the commands of a chapter's hosts, and never the secrets that are known."""

from __future__ import annotations

import codecs
import os
import re
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xenlab.chapter.events import Output, Phase, Sink
from xenlab.chapter.planned import look_digest
from xenlab.command import Command
from xenlab.errors import BadInput, OutsideStep
from xenlab.journal import Journal
from xenlab.masking import LEAST, MaskedStream, Secret, mask, mask_bytes

if TYPE_CHECKING:
    from xenlab.site.schema import SecretReference

# What must never be recorded: the secrets that xenlab can know of, or was told of by reference.

SECRET_PARTS = ("PASSWORD", "PASSWD", "PASSPHRASE", "TOKEN", "SECRET")
"""A variable of the environment whose name has one of these in it holds a secret."""

SECRET_WORDS = {
    "APIKEY", "BEARER", "COOKIE", "CREDENTIAL", "CREDENTIALS", "CREDS", "KENNWORT", "PASS",
    "PASSCODE", "PASSWORT", "PAT", "PSK", "PW", "PWD", "SSHPASS",
}  # fmt: skip
"""So does one that has one of these as a word of its name, unless its value is a path."""

_ENDINGS = ("PASS", "PWD", "APIKEY")
_NO_PASSWORDS = {"ASKPASS", "BYPASS", "COMPASS", "ENCOMPASS", "OVERPASS", "UNDERPASS"}
_SECRET_KEYS = {"ACCESS", "API", "AUTH", "ENCRYPTION", "MASTER", "PRIVATE", "SESSION"}

MOST_BYTES = 64 * 1024
"""How large a file may be that holds a secret."""

_CREDENTIALS = re.compile(r'://[^\s/:@"<>]*:([^\s/"<>]+)@')
# curl and others take a proxy without a scheme
_BARE_PROXY = re.compile(r"[^\s/:@]*:([^\s/]+)@")


def discover_secrets(
    identity: str,
    references: Iterable[SecretReference] = (),
    environment: Mapping[str, str] = os.environ,
) -> tuple[Secret, ...]:
    """The secrets of this environment, of a private key's file, and those that are referred to.

    Raises BadInput as `declared` does.
    """
    values = {secret.value for secret in declared_secrets(references, environment)}
    for name, value in environment.items():
        values.update(_CREDENTIALS.findall(value))
        if name.upper().endswith("_PROXY") and (bare := _BARE_PROXY.match(value)):
            values.add(bare[1])
        if _is_secret(name.upper(), value):
            values.add(value)
    values |= {urllib.parse.unquote(value) for value in values}
    values = {value for value in values if len(value) >= LEAST}
    values.update(_lines(identity))
    return tuple(Secret(value) for value in sorted(values, key=len, reverse=True))


def declared_secrets(
    references: Iterable[SecretReference], environment: Mapping[str, str] = os.environ
) -> tuple[Secret, ...]:
    """The secrets that are referred to, a file's line by line if it has several.

    Raises BadInput where one cannot be read, so that none is recorded for want of its value.
    """
    return tuple(
        Secret(value)
        for reference in references
        for value in (
            _of_variable(reference.env, environment) if reference.env else _of_file(reference.file)
        )
    )


def _of_variable(name: str, environment: Mapping[str, str]) -> list[str]:
    value = environment.get(name, "")
    if not value:
        raise BadInput(
            f"cannot mask the secret in ${name}: because the environment has no such variable",
            hint=f"export {name}, or take it out of the site's file",
        )
    return _parts(value, f"${name}")


def _of_file(path: str) -> list[str]:
    place = Path(path).expanduser()
    try:
        with place.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise BadInput(
            f"cannot mask the secret in {path}: because {reason}",
            hint="correct its path, or take it out of the site's file",
        ) from None
    if len(data) > MOST_BYTES:
        raise BadInput(
            f"cannot mask the secret in {path}: because the file has more than {MOST_BYTES} bytes",
            hint="name the file that holds the secret alone",
        )
    return _parts(text, path)


def _parts(value: str, where: str) -> list[str]:
    lines = [line.strip() for line in value.splitlines() if line.strip()]
    long = [line for line in lines if len(line) >= LEAST and not line.startswith("-----")]
    if not long:
        raise BadInput(
            f"cannot mask the secret in {where}: because it has less than {LEAST} characters, "
            "and would blot out half of each output",
            hint="take a longer one, or take it out of the site's file",
        )
    return long


def _is_secret(name: str, value: str) -> bool:
    if any(part in name for part in SECRET_PARTS):
        return True
    words = [word for word in re.split(r"[^A-Z0-9]+", name) if word]
    if name in ("PWD", "OLDPWD") or _is_path(value) or not words:
        return False
    last = words[-1]
    if SECRET_WORDS.intersection(words) or last == "AUTH":
        return True
    if last.endswith(_ENDINGS) and last not in _NO_PASSWORDS:
        return True
    if last == "KEY" and _SECRET_KEYS.intersection(words) and " " not in value:
        return True
    # Keys of a keyboard, public keys and names of keys are none.
    is_key = last in ("KEY", "KEYS") and not {"PUBLIC", "PUB"} & set(words)
    return is_key and any(digit in value for digit in "0123456789") and " " not in value


def _is_path(value: str) -> bool:
    """A path; one of 64 secrets in base64 begins with a slash as well."""
    if value.startswith(("~", "./")):
        return True
    return value.startswith("/") and Path("/", value.split("/")[1]).exists()


def _lines(identity: str) -> Iterator[str]:
    if not identity:
        return
    try:
        lines = Path(identity).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    yield from (line for line in lines if len(line) >= LEAST and not line.startswith("-----"))


# The commands of a chapter's hosts: each belongs to the step under way, and is recorded there.

CHANGE: Final = "change"
"""Stands in the mark of a command that is for a change: such a one is not left at work."""

INLINE_BYTES = 4096
"""Output up to this size stands in the journal's record itself, more in a file of its own."""


class CommandLog:
    """The commands of one step, in the order in which they were started; threads may share it."""

    def __init__(
        self, host: str, secrets: tuple[Secret, ...], journal: Journal, sink: Sink
    ) -> None:
        self.secrets = secrets
        self._host = host
        self._journal = journal
        self._sink = sink
        self._lock = threading.Lock()
        self._entries: list[_Entry] = []
        self._began = time.monotonic()

    def started(
        self, host: str, command: Command, input: bytes, phase: Phase, label: str
    ) -> _Entry:
        """Note a command that is about to run; what it is given is kept before it gets it."""
        with self._lock:
            self.secrets = tuple(dict.fromkeys((*command.secrets, *self.secrets)))
            secrets = self.secrets
        entry = _Entry(phase, label, host, mask(str(command), secrets), secrets, self._sink)
        entry.at = time.monotonic() - self._began
        if input:
            data = mask_bytes(input, secrets)
            path, digest = self._journal.save_input(data)
            entry.given = {"path": path, "sha256": digest, "bytes": len(data)}
        prefix = f"[{label}] " if label else ""
        self._sink(Output("command", f"{prefix}$ {entry.command.rstrip()}\n", phase))
        with self._lock:
            self._entries.append(entry)
        return entry

    def looks(self) -> dict[str, str]:
        """The digest of what each look has printed, by its command."""
        with self._lock:
            found = [entry for entry in self._entries if entry.phase == "look"]
        return {entry.command: look_digest(entry.status, bytes(entry.data)) for entry in found}

    def records(self, name: str, *, files: bool = True) -> list[dict[str, Any]]:
        """The commands as a record holds them; long outputs are kept in files that begin so.

        ``phase``, ``command`` (masked), ``status`` (None: nobody knows), ``at`` how many seconds
        after the step's begin, ``seconds``; where they say something: ``host`` (another than the
        step's), ``label``, ``times`` (of a command that was repeated with the same result),
        ``input``, ``output``. An output is the text itself, or path, SHA-256 and size of its file.
        Without ``files``, only the end of a long output is kept. Raises DiskFull.
        """
        with self._lock:
            entries = list(self._entries)
        found: list[dict[str, Any]] = []
        last: _Entry | None = None
        for entry in entries:
            if entry == last:
                found[-1]["times"] = found[-1].get("times", 1) + 1
                found[-1]["seconds"] = round(found[-1]["seconds"] + entry.seconds, 3)
                continue
            found.append(self._record(entry, f"{name}-{len(found) + 1}" if files else ""))
            last = entry
        return found

    def _record(self, entry: _Entry, name: str) -> dict[str, Any]:
        record: dict[str, Any] = {
            "phase": entry.phase,
            "command": entry.command,
            "status": entry.status,
            "at": round(entry.at, 3),
            "seconds": round(entry.seconds, 3),
        }
        if entry.host != self._host:
            record["host"] = entry.host
        if entry.label:
            record["label"] = entry.label
        if entry.given:
            record["input"] = entry.given
        data = bytes(entry.data)
        text = _inline(data) if name else data[-INLINE_BYTES:].decode("utf-8", "replace")
        if text is None:
            path, digest = self._journal.save_output(name, data)
            record["output"] = {"path": path, "sha256": digest, "bytes": len(data)}
        elif text:
            record["output"] = text
        return record


@dataclass
class _Entry:
    """One command, followed to its end (`xenlab.host.Call`).

    It equals another that is this very command again, with the same result.
    """

    phase: Phase
    label: str
    host: str
    command: str
    secrets: tuple[Secret, ...] = field(compare=False)
    sink: Sink = field(compare=False)
    status: int | None = None
    seconds: float = field(default=0.0, compare=False)
    at: float = field(default=0.0, compare=False)
    given: dict[str, Any] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._streams: dict[str, tuple[MaskedStream, codecs.IncrementalDecoder]] = {}

    def output(self, stream: str, piece: bytes) -> None:
        """Keep and show a piece of its output, masked."""
        if stream not in self._streams:
            fresh = codecs.getincrementaldecoder("utf-8")("replace")
            self._streams[stream] = (MaskedStream(self.secrets), fresh)
        masked, decoder = self._streams[stream]
        self._take(stream, masked.feed(piece), decoder, final=False)

    def ended(self, status: int | None, seconds: float) -> None:
        """Its exit status and how long it took."""
        self.status, self.seconds = status, seconds
        for stream, (masked, decoder) in self._streams.items():
            self._take(stream, masked.flush(), decoder, final=True)

    def _take(
        self, stream: str, data: bytes, decoder: codecs.IncrementalDecoder, *, final: bool
    ) -> None:
        self.data += data
        text = decoder.decode(data, final)
        if text:
            self.sink(Output(stream, text, self.phase))


class Recorder:
    """Tells the step under way what a chapter's hosts do (`xenlab.host.Watcher`).

    ``stop`` is set to stop that step.
    """

    def __init__(self, secrets: tuple[Secret, ...], stop: threading.Event | None = None) -> None:
        self.stop = stop or threading.Event()
        self._secrets = secrets
        self._log: CommandLog | None = None
        self._mark = ""
        self._thread = threading.local()

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """What must not be recorded or shown: the chapter's, and those of the step's commands."""
        return self._log.secrets if self._log is not None else self._secrets

    @property
    def mark(self) -> str:
        """The mark of the step under way, and below it that of its changes."""
        return f"{self._mark}/{CHANGE}" if self._phase == CHANGE else self._mark

    @property
    def looks(self) -> bool:
        """Whether this thread changes nothing now."""
        return self._phase != CHANGE

    @property
    def _phase(self) -> Phase:
        found: Phase = getattr(self._thread, "phase", "look")
        return found

    def started(self, host: str, command: Command, input: bytes) -> _Entry:
        """Note a command in the step under way; raises OutsideStep where there is none."""
        if self._log is None:
            raise OutsideStep(
                "cannot run a command: because no step is under way: "
                f"{mask(str(command), self._secrets)}",
                where=host,
                hint="pass the step a function that makes the resource",
            )
        label = getattr(self._thread, "label", "")
        return self._log.started(host, command, input, self._phase, label)

    @contextmanager
    def step(self, log: CommandLog, mark: str) -> Iterator[None]:
        """A step is under way: its commands go to this log and carry this mark."""
        before = self._log, self._mark
        self._log, self._mark = log, mark
        try:
            yield
        finally:
            self._log, self._mark = before

    @contextmanager
    def during(self, phase: Phase, label: str = "") -> Iterator[None]:
        """What this thread runs now is for this; ``label`` names the part of the step."""
        before = self._phase, getattr(self._thread, "label", "")
        self._thread.phase, self._thread.label = phase, label
        try:
            yield
        finally:
            self._thread.phase, self._thread.label = before


def _inline(data: bytes) -> str | None:
    """An output that fits into a record, as text; None where it must be a file."""
    if len(data) > INLINE_BYTES:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
