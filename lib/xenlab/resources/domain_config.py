"""Domains' configuration files: written by one chapter, added to by later ones, accepted by xl.

A chapter that gives a guest something more (a second interface, another /usr) adds a block of its
own at the end of the file. Each block begins with a line that names its chapter; the chapter that
wrote the file leaves what stands below its own part alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource, text_difference

MARK = "#+ chapter "
"""What the first line of an addition begins with; the chapter's name follows."""


@dataclass(frozen=True)
class DomainConfig(Resource):
    """The first part of a domain's configuration file; additions below it stay."""

    path: str
    text: str

    def probe(self, host: Host) -> Difference | None:
        """The diff of the first part."""
        now = host.read(self.path)
        first = None if now is None else parts(now)[""]
        verb = "create" if now is None else "write"
        return text_difference(f"{verb} {self.path}", self.path, first, self.text)

    def apply(self, host: Host, report: Report) -> None:
        """Write it, once xl has accepted it."""
        found = parts(host.read(self.path) or "")
        write_accepted(host, self.path, joined(found | {"": self.text}))


@dataclass(frozen=True)
class DomainAddition(Resource):
    """A chapter's block in a domain's configuration file; no block at all where ``text`` is ""."""

    path: str
    chapter: str
    text: str

    def probe(self, host: Host) -> Difference | None:
        """The diff of the block."""
        now = parts(host.read(self.path) or "").get(self.chapter)
        summary = f"{'add to' if self.text else 'take from'} {self.path}"
        return text_difference(summary, self.path, now, self.text) if now or self.text else None

    def apply(self, host: Host, report: Report) -> None:
        """Write the file with the block, once xl has accepted it."""
        found = parts(host.read(self.path) or "")
        if not found[""]:
            raise StepFailed(f"there is no {self.path}", hint="run chapter 10_domain_configuration")
        write_accepted(host, self.path, joined(found | {self.chapter: self.text}))


def parts(text: str) -> dict[str, str]:
    """A file taken apart: the first part under "", each addition under its chapter's name."""
    pieces = re.split(rf"^{re.escape(MARK)}(.*)\n", text, flags=re.MULTILINE)
    return {"": pieces[0]} | dict(zip(pieces[1::2], pieces[2::2], strict=True))


def joined(found: dict[str, str]) -> str:
    """The parts as one file, the additions in the order of their chapters."""
    additions = (f"{MARK}{name}\n{found[name]}" for name in sorted(found) if name and found[name])
    return found[""] + "".join(additions)


def write_accepted(host: Host, path: str, text: str) -> None:
    """Write a configuration beside its place; ``xl create -n`` must accept it before it goes there.

    xl reads and checks so without creating; it does not even do this off Xen. Raises StepFailed
    with xl's own words.
    """
    draft = f"{path}.draft"
    host.write(draft, text)
    script = """
        trap 'rm -f -- "$1"' EXIT
        xl create -n "$1" < /dev/null > /dev/null
    """
    result = host.run(Command.script(script, draft), check=False)
    if not result.ok:
        raise StepFailed(
            f"xl refuses the configuration for {path}: {result.stderr.strip()}", where=host.name
        )
    host.write(path, text)
