"""A value in a file, by the rules of that file: one Jinja2 filter for each kind of file.

A template writes no value without one of these filters (`finished`), and each refuses what its file
has no way to say.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import Environment, Undefined

from xenlab.errors import BadInput


class Quoted(str):
    """Text that a filter made fit for its file."""

    __slots__ = ()


def word(value: object) -> Quoted:
    """A plain word, which every file takes as it stands: hosts(5), resolv.conf(5), interfaces(5).

    For files that know no quoting, and for names inside a longer word.
    """
    text = str(value)
    if not re.fullmatch(r"[\w.:/+@=,-]+", text, re.ASCII):
        raise _refused(text, "a file that knows no quoting", "it is no plain word")
    return Quoted(text)


def comment(value: object) -> Quoted:
    """The rest of a line that a program passes over."""
    return Quoted(_line(value))


def sh(value: object) -> Quoted:
    """A word of a shell: scripts, what they source, OpenRC's files, /etc/default/grub.d."""
    return Quoted(shlex.quote(_line(value)))


def sh_settings(values: Mapping[str, object]) -> str:
    """Lines ``NAME=value`` of a file that a shell sources."""
    return "".join(f"{name}={sh(value)}\n" for name, value in values.items())


def grub(words: Iterable[str]) -> Quoted:
    """Words of GRUB's own shell (grub.cfg), quoted where they hold more than plain characters."""
    return Quoted(" ".join(_grub_word(each) for each in words))


def cmdline(value: object) -> Quoted:
    """A kernel's command line where the file has no quoting: GRUB legacy's grub.conf."""
    text = str(value)
    if not re.fullmatch(r"[A-Za-z0-9._,:;=/@%+~^!*#\[\] -]*", text):
        raise _refused(text, "a file that knows no quoting", "not all of it is plain there")
    return Quoted(text)


def kconfig(value: object) -> Quoted:
    """A line of a kernel's .config."""
    text = _line(value)
    if not re.match(r"CONFIG_\w+=\S", text, re.ASCII):
        raise _refused(text, "a kernel's .config", "it is no CONFIG_NAME=VALUE")
    return Quoted(text)


def xl(value: object) -> Quoted:
    """A string of xl.cfg(5), as its reader takes it apart (libxlu_cfg: backslash escapes)."""
    text = str(value)
    if re.search(r"[^ -~]", text):
        raise _refused(text, "a domain's configuration", "xl reads plain ASCII alone")
    return Quoted('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')


def xl_list(values: Iterable[str]) -> Quoted:
    """A list of strings of xl.cfg(5)."""
    return Quoted("[ " + ", ".join(xl(each) for each in values) + " ]")


def unit(value: object) -> Quoted:
    """A setting of a unit that is one path to the end of its line (systemd.unit(5))."""
    text = _unit_line(value)
    if text != text.strip() or text.endswith("\\"):
        raise _refused(text, "a unit", "a blank or \\ at its end is lost")
    return Quoted(text.replace("%", "%%"))


def unit_word(value: object) -> Quoted:
    """A path among others in a unit's setting (systemd.syntax(7))."""
    text = _unit_line(value).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return Quoted(f'"{text}"')


def instance(value: object) -> Quoted:
    """The part of a unit's name between @ and its suffix, as systemd-escape(1) writes it."""
    encoded = _unit_line(value).encode()
    return Quoted("".join(_escaped(byte, first=not at) for at, byte in enumerate(encoded)))


def fstab(value: object) -> Quoted:
    """One field of a line in /etc/fstab."""
    text = _line(value).replace("\\", "\\134").replace(" ", "\\040").replace("#", "\\043")
    return Quoted(text)


def exports(value: object) -> Quoted:
    """A path in /etc/exports: in octal what may mean something else there (exports(5))."""
    encoded = _line(value).encode()
    plain = re.compile(rb"[\w./+@-]")
    return Quoted(
        "".join(chr(byte) if plain.match(bytes([byte])) else f"\\{byte:03o}" for byte in encoded)
    )


def double_quoted(value: object) -> Quoted:
    """A value in double quotes that neither a shell nor Portage changes (make.conf, conf.d)."""
    text = _line(value)
    if set(text) & set('"$`\\'):
        raise _refused(text, "double quotes", "it would be read as something else")
    return Quoted(f'"{text}"')


def ini(value: object) -> Quoted:
    """The rest of a line after a key, in files that configparser reads."""
    text = _line(value)
    if text != text.strip() or set(text) & set("%"):
        raise _refused(text, "a file of sections and keys", "it would be read as something else")
    return Quoted(text)


FILTERS: dict[str, Callable[[Any], Quoted]] = {
    filter_.__name__: filter_
    for filter_ in (
        word,
        comment,
        sh,
        grub,
        cmdline,
        kconfig,
        xl,
        xl_list,
        unit,
        unit_word,
        instance,
        fstab,
        exports,
        double_quoted,
        ini,
    )
}


def finished(value: object) -> object:
    """What a template may write: what a filter has made, and numbers. Raises TypeError else."""
    if isinstance(value, Quoted | int | Undefined):
        return value
    raise TypeError(f"a template writes {value!r} without a filter of its file")


def environment(**options: Any) -> Environment:
    """Jinja2 with these filters, whose templates write nothing without one."""
    made = Environment(
        finalize=finished, keep_trailing_newline=True, trim_blocks=True, autoescape=False, **options
    )
    made.filters.update(FILTERS)
    return made


def _refused(text: str, file: str, reason: str) -> BadInput:
    return BadInput(
        f"cannot write {text!r:.80} into {file}: because {reason}",
        hint="choose another value, of letters, digits and plain punctuation",
    )


def _line(value: object) -> str:
    text = str(value)
    if re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", text):
        raise _refused(text, "a line of a file", "it is no line of plain text")
    return text


def _unit_line(value: object) -> str:
    text = _line(value)
    # no characters at all to Unicode, and systemd passes over a line with one of them
    if any(ord(each) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(each) <= 0xFDEF for each in text):
        raise _refused(text, "a unit", "it is no text to systemd")
    return text


def _grub_word(text: str) -> str:
    if re.fullmatch(r"[\w.,:=/@%+-]+", text, re.ASCII):
        return text
    return "'" + _line(text).replace("'", "'\\''") + "'"


def _escaped(byte: int, *, first: bool) -> str:
    character = chr(byte)
    if character == "/":
        return "-"
    plain = re.fullmatch(r"[A-Za-z0-9:_.]", character) and not (first and character == ".")
    return character if plain else f"\\x{byte:02x}"
