"""A word among others in a variable of a file that a shell reads (conf.d, /etc/default)."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource, text_difference


@dataclass(frozen=True)
class ShellWord(Resource):
    """A variable whose words name this one too; those that are there, and all else, stay."""

    path: str
    variable: str
    word: str

    def probe(self, host: Host) -> Difference | None:
        """The diff that adding the word makes."""
        now = host.read(self.path)
        wanted = with_word(now or "", self.variable, self.word)
        summary = f"add {self.word} to {self.variable} in {self.path}"
        return text_difference(summary, self.path, now, wanted)

    def apply(self, host: Host, report: Report) -> None:
        """Add it to what the file says."""
        host.write(self.path, with_word(host.read(self.path) or "", self.variable, self.word))


def with_word(text: str, variable: str, word: str) -> str:
    """A file's text in which the variable names the word; the last line that sets it counts.

    What is set as plain words gets one more; after anything else comes a line that adds it.
    """
    lines = list(re.finditer(rf"^[ \t]*(?:export[ \t]+)?{variable}=(.*)$", text, re.MULTILINE))
    if not lines:
        return f'{_ended(text)}{variable}="{word}"\n'
    value = lines[-1][1]
    if word in _words(value):
        return text
    plain = re.fullmatch(r"""(["']?)([\w./=:,@%+ -]*)\1([ \t]*|[ \t]+#.*)""", value, re.ASCII)
    if plain is None or not (plain[1] or " " not in plain[2]):
        return f'{_ended(text)}{variable}="${variable} {word}"\n'
    more = " ".join([*plain[2].split(), word])
    start, end = lines[-1].span(1)
    return f'{text[:start]}"{more}"{plain[3]}{text[end:]}'


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"


def _words(value: str) -> list[str]:
    """The words of what a shell's variable is set to; none where it is more than that."""
    try:
        found = shlex.split(value, comments=True)
    except ValueError:
        return []
    return found[0].split() if len(found) == 1 else []
