"""Masking: what is recorded or shown has a mask where a secret stood; what code reads has not.

A secret is found in each form that it takes on its way through programs: as it is, quoted for a
shell or a URL, and in base64, wherever in the encoded data it begins. The credentials in a URL
are masked whoever's they are.
"""

from __future__ import annotations

import base64
import os
import re
import urllib.parse
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

MASK = "•••"

LEAST = 6
"""How many characters a secret has at least to be found in the environment, or encoded.

A shorter one would blot out half of each output.
"""

_MASK = MASK.encode()
# What a URL's user part may hold; a user alone is masked where it is as long as a token.
_CREDENTIALS = re.compile(
    rb'(?P<head>://)(?:(?P<user>[^\s/:@"<>]{0,256}):[^\s/"<>]{1,512}@|[^\s/:@"<>]{16,512}@)'
)
_CREDENTIALS_BEGIN = re.compile(rb':/?\Z|://[^\s/"<>]{0,800}\Z')


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


class Masker:
    """Replaces every form of each of some secrets by a mask, in texts, in bytes, in streams."""

    def __init__(self, secrets: Iterable[Secret]) -> None:
        forms = {form for secret in secrets for form in _forms(secret.value)}
        self._sorted = sorted(forms)
        self._longest = max(map(len, forms), default=0)
        self._pattern = _alternation(forms) if forms else None

    def text(self, text: str) -> str:
        """The text with every occurrence of each secret replaced by a mask."""
        return self.data(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def data(self, data: bytes) -> bytes:
        """The bytes with every occurrence of each secret replaced by a mask."""
        return _without_credentials(self.known(data))

    def known(self, data: bytes) -> bytes:
        """The bytes with each secret masked that was given, and nothing else."""
        return data if self._pattern is None else self._pattern.sub(_MASK, data)

    def begun(self, data: bytes) -> tuple[bytes, bytes]:
        """Masked bytes that no more data changes, and the rest, which may begin a secret."""
        if self._pattern is None:
            return data, b""
        masked, place, end = [], 0, self._beginning(data, 0)
        while (found := self._pattern.search(data, place)) and found.start() < end:
            masked += [data[place : found.start()], _MASK]
            place = found.end()
            if place > end:
                end = self._beginning(data, place)
        return b"".join([*masked, data[place:end]]), data[end:]

    def _beginning(self, data: bytes, place: int) -> int:
        """Where the first secret begins that the end of the data may have cut, if any does."""
        for start in range(max(place, len(data) - self._longest + 1), len(data)):
            end = data[start:]
            next_one = bisect_right(self._sorted, end)
            if next_one < len(self._sorted) and self._sorted[next_one].startswith(end):
                return start
        return len(data)


class MaskedStream:
    """Masks secrets in a stream of bytes, as if it came whole: also one split over two pieces."""

    def __init__(self, secrets: tuple[Secret, ...]) -> None:
        self._masker = _masker(secrets)
        self._held = b""
        self._url = b""

    def feed(self, piece: bytes) -> bytes:
        """The masked bytes that can be shown by now."""
        masked, self._held = self._masker.begun(self._held + piece)
        data = self._url + masked
        begun = _CREDENTIALS_BEGIN.search(data, max(0, len(data) - 1024))
        end = begun.start() if begun else len(data)
        self._url = data[end:]
        return _without_credentials(data[:end])

    def flush(self) -> bytes:
        """What was held back."""
        rest = self._url + self._masker.data(self._held)
        self._held = self._url = b""
        return _without_credentials(rest)


def mask(text: str, secrets: tuple[Secret, ...]) -> str:
    """The text with every occurrence of each secret replaced by a mask."""
    return _masker(secrets).text(text)


def mask_bytes(data: bytes, secrets: tuple[Secret, ...]) -> bytes:
    """The bytes with every occurrence of each secret replaced by a mask."""
    return _masker(secrets).data(data)


@lru_cache(maxsize=8)
def _masker(secrets: tuple[Secret, ...]) -> Masker:
    return Masker(secrets)


def _without_credentials(data: bytes) -> bytes:
    if b"://" not in data:
        return data

    def masked(found: re.Match[bytes]) -> bytes:
        user = found["user"]
        return found["head"] + (b"" if user is None else user + b":") + _MASK + b"@"

    return _CREDENTIALS.sub(masked, data)


def _alternation(forms: Iterable[bytes]) -> re.Pattern[bytes]:
    """One expression for all, the longest first; grouped by their first byte, which is faster."""
    groups: dict[bytes, list[bytes]] = {}
    for form in sorted(forms, key=len, reverse=True):
        groups.setdefault(form[:1], []).append(form[1:])
    parts = (
        re.escape(first) + b"(?:" + b"|".join(map(re.escape, rest)) + b")"
        for first, rest in groups.items()
    )
    return re.compile(b"|".join(parts))


def _forms(value: str) -> Iterator[bytes]:
    """The bytes by which a secret is recognised; a short one only as it is, or between quotes."""
    if not value:
        return
    raw = value.encode("utf-8", "surrogateescape")
    yield raw
    yield raw.replace(b"'", b"'\"'\"'")
    if len(value) < LEAST:
        return
    yield raw.replace(b"'", rb"'\''")
    yield re.sub(rb"[^\w@%+=:,./\x80-\xff-]", lambda found: b"\\" + found[0], raw)
    for safe in ("", "/"):
        for quoted in (urllib.parse.quote(raw, safe), urllib.parse.quote_plus(raw, safe)):
            yield quoted.encode()
            yield re.sub("%..", lambda found: found[0].lower(), quoted).encode()
    yield from _in_base64(raw)


def _in_base64(raw: bytes) -> Iterator[bytes]:
    """What base64 makes of the secret alone, for each of the three places it may begin at.

    The digits at its ends that depend on its neighbours are left out, unless the data ends there.
    """
    for before in range(3):
        digits = base64.b64encode(bytes(before) + raw)
        start, end = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
        for form in (digits[start:end], digits[start:].rstrip(b"="), digits[start:]):
            yield form
            yield form.replace(b"+", b"-").replace(b"/", b"_")
