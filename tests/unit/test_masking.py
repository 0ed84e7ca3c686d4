"""Masking: a secret is found in every form, in a whole and in pieces."""

from __future__ import annotations

import base64
import itertools
import re
import shlex
import subprocess
import urllib.parse

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xenlab.masking import MASK, MaskedStream, Masker, Secret, mask

SECRET = "s3cr3t/w+rd's=?"
# few characters, so that secrets overlap, begin alike and contain one another
texts = st.text("ab:/@' =", max_size=30)
secrets = st.lists(st.text("ab:/@' =", min_size=1, max_size=9).map(Secret), max_size=4).map(tuple)


def in_pieces(data: bytes, cuts: list[int], known: tuple[Secret, ...]) -> bytes:
    stream = MaskedStream(known)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    return b"".join(map(stream.feed, pieces)) + stream.flush()


@settings(deadline=None, max_examples=400)
@given(text=texts, cuts=st.lists(st.integers(0, 30), max_size=6), known=secrets)
@example(text="://a:b@", cuts=[1, 2, 3, 4, 5, 6], known=())
@example(text="abab", cuts=[2], known=(Secret("aba"), Secret("ab")))
def test_a_stream_is_masked_as_if_it_came_whole(
    text: str, cuts: list[int], known: tuple[Secret, ...]
) -> None:
    data = text.encode()
    assert in_pieces(data, cuts, known) == Masker(known).data(data)


@settings(deadline=None, max_examples=200)
@given(text=texts, known=secrets)
def test_no_secret_is_left(text: str, known: tuple[Secret, ...]) -> None:
    masked = mask(text, known)
    assert not [s for s in known if s.value in masked.replace(MASK, "\0")]


@given(before=st.binary(max_size=9), after=st.binary(max_size=9))
def test_a_secret_inside_base64_is_masked(before: bytes, after: bytes) -> None:
    data = before + SECRET.encode() + after
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        masked = mask(encode(data).decode(), (Secret(SECRET),))
        assert masked.count(MASK) == 1
        # what may be left of the secret are the bits that it shares a digit with its neighbours
        assert len(masked) - len(MASK) <= (len(before) + len(after)) * 4 / 3 + 6


def test_a_secret_alone_in_base64_leaves_nothing() -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        assert mask(encode(SECRET.encode()).decode(), (Secret(SECRET),)) == MASK


LONG = Secret("a passphrase that is long enough to stand on three lines: " + "xenlab " * 20)
SHORT = Secret("s3cr3t")
pieces = st.sampled_from(["\n", "\r\n", "\r", "a", "line", " ", "=", "-----\n"])


@given(
    before=st.binary(max_size=90),
    after=st.binary(max_size=90),
    columns=st.sampled_from([0, 20, 64, 76]),
    secret=st.sampled_from([LONG, SHORT]),
)
@settings(deadline=None, max_examples=60)
def test_base64_over_several_lines_is_masked(
    before: bytes, after: bytes, columns: int, secret: Secret
) -> None:
    data = before + secret.value.encode() + after
    words = ["base64", "-w", str(columns)]
    wrapped = subprocess.run(words, input=data, capture_output=True, check=True).stdout.decode()
    for text in (wrapped, wrapped.replace("\n", "\r\n"), "+" + wrapped.replace("\n", "\n+")):
        masked = mask(text, (secret,))
        assert masked.count(MASK) == 1
        around = 4 * (len(before) + len(after)) / 3 + 6
        left = re.sub(r"[\r\n]|^\+|(?<=\n)\+", "", masked.replace(MASK, ""))
        assert len(left) <= around


@given(
    before=st.lists(pieces, max_size=6),
    after=st.lists(pieces, max_size=6),
    secret=st.sampled_from([LONG, SHORT]),
    columns=st.integers(1, 90),
    end=st.sampled_from(["\n", "\r\n"]),
    cuts=st.lists(st.integers(0, 900), max_size=9),
)
@settings(deadline=None, max_examples=300)
def test_a_stream_of_wrapped_base64_is_masked_as_if_it_came_whole(
    before: list[str], after: list[str], secret: Secret, columns: int, end: str, cuts: list[int]
) -> None:
    digits = base64.b64encode(secret.value.encode()).decode()
    lines = end.join(digits[n : n + columns] for n in range(0, len(digits), columns))
    data = "".join([*before, lines, *after]).encode()
    whole = Masker((secret,)).data(data)
    assert MASK.encode() in whole
    assert in_pieces(data, cuts, (secret,)) == whole


@pytest.mark.parametrize("half", [0xDCFF, 0xD800])
def test_a_secret_that_is_no_utf_8_is_masked(half: int) -> None:
    """In a text as Python has it, in bytes, in a difference; other half characters stay."""
    value = f"pass{chr(half)}word"
    secret = (Secret(value),)
    assert mask(f"<{value}> \udcfe \ud801", secret) == f"<{MASK}> \udcfe \ud801"
    if half == 0xDCFF:
        raw = value.encode("utf-8", "surrogateescape")
        assert Masker(secret).data(b"<" + raw + b">") == f"<{MASK}>".encode()
        shown = raw.decode("utf-8", "backslashreplace")
        assert mask(f"<{shown}>", secret) == f"<{MASK}>"
        assert mask(base64.b64encode(raw).decode(), secret) == MASK


def test_it_is_masked_as_programs_quote_it() -> None:
    traced = subprocess.run(
        ["bash", "-xc", 'true "$1"; printf %q "$1"', "sh", SECRET],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    forms = {
        "shlex": shlex.quote(SECRET),
        "set -x": traced.stderr,
        "printf %q": traced.stdout,
        "a path": urllib.parse.quote(SECRET),
        "a query": urllib.parse.quote_plus(SECRET),
        "small digits": re.sub("%..", lambda hit: hit[0].lower(), urllib.parse.quote(SECRET)),
    }
    for name, form in forms.items():
        masked = mask(f"<{form}>", (Secret(SECRET),))
        assert MASK in masked and "s3cr3t" not in masked, name


def test_a_short_secret_is_masked_as_it_is_and_blots_out_nothing_else() -> None:
    encoded = base64.b64encode(b"xxabyy").decode()
    assert mask(f"ab {encoded}", (Secret("ab"), Secret(""))) == f"{MASK} {encoded}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pw@host/x", f"http://me:{MASK}@host/x"),
        ("deb http://me:p%40w@deb.example.org/ sid", f"deb http://me:{MASK}@deb.example.org/ sid"),
        ("http://:pw@host", f"http://:{MASK}@host"),
        ("http://me:p@ss:w@host", f"http://me:{MASK}@host"),
        ("https://ghp_0123456789abcdef@example.org", f"https://{MASK}@example.org"),
        ("ssh://root@host http://host:80/a@b", "ssh://root@host http://host:80/a@b"),
        ("http://[::1]:80/ a:b@c", "http://[::1]:80/ a:b@c"),
    ],
)
def test_credentials_in_a_url_are_masked_always(text: str, shown: str) -> None:
    assert mask(text, ()) == shown
    data = text.encode()
    assert in_pieces(data, list(range(len(data))), ()).decode() == shown


def test_a_user_of_a_url_may_be_a_secret_too() -> None:
    assert mask("http://token-abc:x@host", (Secret("token-abc"),)) == f"http://{MASK}:{MASK}@host"


def test_what_begins_no_secret_is_shown_at_once() -> None:
    stream = MaskedStream((Secret("a much longer secret than this"),))
    assert stream.feed(b"domu1 login: ") == b"domu1 login: "
    assert stream.feed(b"a mu") == b""
    assert stream.feed(b"ch") == b""
    assert stream.feed(b" ado") == b"a much ado"


def test_bytes_that_are_no_text_pass() -> None:
    data = bytes(range(256)) * 3
    assert Masker((Secret(SECRET),)).data(data) == data
