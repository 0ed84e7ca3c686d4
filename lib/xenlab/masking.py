"""Masking: what is recorded or shown has a mask where a secret stood; what code reads has not.

A secret is found in each form that it takes on its way through programs: as it is, quoted for a
shell or a URL, and in base64, wherever in the encoded data it begins. The credentials in a URL
are masked whoever's they are.
"""

from __future__ import annotations

import base64
import re
import urllib.parse
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

# What a machine printed, as plain text: it is shown to people, and moves no cursor of theirs.

# Sequences of both forms, the one that begins with ESC and the single control character (ECMA-48);
# a string that is not ended is left as text, without what would make it a command.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
# Line ends and tabs are text. The last are those that turn the direction of what follows.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Terminal output as plain lines: no escape sequences; what a line overwrote is gone."""
    text = _SEQUENCES.sub("", text.replace("\r\n", "\n"))
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return _CONTROLS.sub("", "\n".join(lines))


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
_BREAK = re.compile(rb"\r?\n")
_BREAK_IN_DIFF = re.compile(rb"\r?\n[ +-]")
_CREDENTIALS_BEGIN = re.compile(rb':/?\Z|://[^\s/"<>]{0,800}\Z')


@dataclass(frozen=True)
class Secret:
    """A value that may reach a remote command's input but never a record, log or page.

    Hand it over by reference, never as a literal: ``Secret(os.environ[name])``.
    """

    value: str = field(repr=False)

    def __str__(self) -> str:
        return MASK


class _Finder:
    """Finds some forms of secrets in bytes, and where the end of the bytes may have cut one."""

    def __init__(self, forms: Collection[bytes]) -> None:
        self._sorted = sorted(forms)
        self._longest = max(map(len, forms), default=0)
        self._pattern = _alternation(forms)

    def spans(self, data: bytes) -> list[tuple[int, int]]:
        """Where they stand."""
        return [found.span() for found in self._pattern.finditer(data)]

    def begun(self, data: bytes) -> tuple[list[tuple[int, int]], int]:
        """Those that no more data changes, and where the rest starts, which may begin one."""
        spans, place, end = list[tuple[int, int]](), 0, self._beginning(data, 0)
        while (found := self._pattern.search(data, place)) and found.start() < end:
            spans.append(found.span())
            place = found.end()
            if place > end:
                end = self._beginning(data, place)
        return spans, end

    def _beginning(self, data: bytes, place: int) -> int:
        """Where the first one begins that the end of the data may have cut, if any does."""
        for start in range(max(place, len(data) - self._longest + 1), len(data)):
            end = data[start:]
            next_one = bisect_right(self._sorted, end)
            if next_one < len(self._sorted) and self._sorted[next_one].startswith(end):
                return start
        return len(data)


class _Joined:
    """Bytes without the breaks of their lines, and where each of them stood."""

    def __init__(self, data: bytes, breaks: re.Pattern[bytes]) -> None:
        self.data = breaks.sub(b"", data)
        self._places: list[int] = []
        self._lengths = [0]
        for found in breaks.finditer(data):
            self._places.append(found.start() - self._lengths[-1])
            self._lengths.append(self._lengths[-1] + len(found[0]))

    def before(self, place: int) -> int:
        """Where a byte stood."""
        return place + self._lengths[bisect_right(self._places, place)]

    def spans_before(self, spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Where these stood, each with the breaks inside it."""
        return [(self.before(start), self.before(end - 1) + 1) for start, end in spans]


class Masker:
    """Replaces every form of each of some secrets by a mask, in texts, in bytes, in streams."""

    def __init__(self, secrets: Iterable[Secret]) -> None:
        values = [secret.value for secret in secrets]
        encoded = {form for value in values for form in _encoded(value)}
        forms = {form for value in values for form in _forms(value)} | encoded
        self._plain = _Finder(forms) if forms else None
        self._wrapped = _Finder(encoded) if encoded else None

    def text(self, text: str) -> str:
        """The text with every occurrence of each secret replaced by a mask."""
        data = self.data(text.encode("utf-8", "surrogatepass"))
        if self._wrapped is not None and b"\n" in data:
            joined = _Joined(data, _BREAK_IN_DIFF)
            data = _masked(data, joined.spans_before(self._wrapped.spans(joined.data)))
        return data.decode("utf-8", "surrogatepass")

    def data(self, data: bytes) -> bytes:
        """The bytes with every occurrence of each secret replaced by a mask."""
        return _without_credentials(self.known(data))

    def known(self, data: bytes) -> bytes:
        """The bytes with each secret masked that was given, and nothing else."""
        return self.unwrapped(self.on_a_line(data))

    def on_a_line(self, data: bytes) -> bytes:
        """The bytes with each secret masked that stands there in one piece."""
        return data if self._plain is None else _masked(data, self._plain.spans(data))

    def unwrapped(self, data: bytes) -> bytes:
        """The bytes with each secret masked whose base64 goes over several lines."""
        if self._wrapped is None or b"\n" not in data:
            return data
        joined = _Joined(data, _BREAK)
        return _masked(data, joined.spans_before(self._wrapped.spans(joined.data)))

    def begun(self, data: bytes) -> tuple[bytes, bytes]:
        """Masked bytes that no more data changes, and the rest, which may begin a secret."""
        if self._plain is None:
            return data, b""
        spans, end = self._plain.begun(data)
        return _masked(data[:end], spans), data[end:]

    def unwrapping(self, data: bytes) -> tuple[bytes, bytes]:
        """Likewise for secrets whose base64 goes over several lines."""
        if self._wrapped is None:
            return data, b""
        # half a break
        cut = len(data) - data.endswith(b"\r")
        joined = _Joined(data[:cut], _BREAK)
        spans, end = self._wrapped.begun(joined.data)
        place = joined.before(end) if end < len(joined.data) else cut
        return _masked(data[:place], joined.spans_before(spans)), data[place:]


class MaskedStream:
    """Masks secrets in a stream of bytes, as if it came whole: also one split over two pieces."""

    def __init__(self, secrets: tuple[Secret, ...]) -> None:
        self._masker = _masker(secrets)
        self._held = b""
        self._lines = b""
        self._url = b""

    def feed(self, piece: bytes) -> bytes:
        """The masked bytes that can be shown by now."""
        masked, self._held = self._masker.begun(self._held + piece)
        masked, self._lines = self._masker.unwrapping(self._lines + masked)
        data = self._url + masked
        begun = _CREDENTIALS_BEGIN.search(data, max(0, len(data) - 1024))
        end = begun.start() if begun else len(data)
        self._url = data[end:]
        return _without_credentials(data[:end])

    def flush(self) -> bytes:
        """What was held back."""
        rest = self._masker.unwrapped(self._lines + self._masker.on_a_line(self._held))
        rest = self._url + rest
        self._held = self._lines = self._url = b""
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


def _masked(data: bytes, spans: Iterable[tuple[int, int]]) -> bytes:
    """The bytes with a mask in each of these places."""
    parts, place = list[bytes](), 0
    for start, end in spans:
        parts += [data[place:start], _MASK]
        place = end
    return b"".join([*parts, data[place:]])


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
    raw = _raw(value)
    # as `Masker.text` has what is no UTF-8, and as a difference shows it
    passed, shown = value.encode("utf-8", "surrogatepass"), raw.decode("utf-8", "backslashreplace")
    for form in (raw, passed, shown.encode()):
        yield form
        yield form.replace(b"'", b"'\"'\"'")
    if len(value) < LEAST:
        return
    yield raw.replace(b"'", rb"'\''")
    yield re.sub(rb"[^\w@%+=:,./\x80-\xff-]", lambda found: b"\\" + found[0], raw)
    for safe in ("", "/"):
        for quoted in (urllib.parse.quote(raw, safe), urllib.parse.quote_plus(raw, safe)):
            yield quoted.encode()
            yield re.sub("%..", lambda found: found[0].lower(), quoted).encode()


def _raw(value: str) -> bytes:
    """The bytes of a value: those that are no UTF-8 came as `surrogateescape` has them."""
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")


def _encoded(value: str) -> Iterator[bytes]:
    return _in_base64(_raw(value)) if len(value) >= LEAST else iter(())


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
