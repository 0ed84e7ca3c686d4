"""Files, directories, lines and symbolic links."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files as package_files
from typing import Any

from jinja2 import Environment, StrictUndefined

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource, text_difference


def render(template: str, **values: Any) -> str:
    """The text of a template in ``xenlab/templates`` (Jinja2); an unknown name is an error."""
    text = package_files("xenlab").joinpath("templates", template).read_text()
    environment = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    return environment.from_string(text).render(**values)


@dataclass(frozen=True)
class File(Resource):
    """A file with this very text, mode and owner; ``content``, or ``template`` with ``values``."""

    path: str
    content: str = ""
    template: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    mode: int = 0o644
    owner: str = "root:root"

    def text(self) -> str:
        """The wanted text."""
        return render(self.template, **self.values) if self.template else self.content

    def probe(self, host: Host) -> Difference | None:
        """The diff of the text, or the mode and owner where only they differ."""
        command = Command.script(
            '[ -e "$1" ] || exit 44; stat -c "%a %U:%G" -- "$1"; cat -- "$1"', self.path
        )
        result = host.run(command, check=False)
        if not result.ok:
            if result.status not in (44, 125, 126, 127):
                raise CommandFailed(result)
            return text_difference(f"create {self.path}", self.path, None, self.text())
        state, _, now = result.stdout.partition("\n")
        wanted = f"{self.mode:o} {self.owner}"
        different = text_difference(f"write {self.path}", self.path, now, self.text())
        if different is None and state != wanted:
            return Difference(f"set mode and owner of {self.path} to {wanted}, now {state}")
        return different

    def apply(self, host: Host, report: Report) -> None:
        """Write the file whole or not at all."""
        host.write(self.path, self.text(), mode=self.mode, owner=self.owner)


@dataclass(frozen=True)
class Directory(Resource):
    """A directory with this mode."""

    path: str
    mode: int = 0o755

    def probe(self, host: Host) -> Difference | None:
        """Whether it is missing or has another mode."""
        found = host.run(Command.argv("stat", "-c", "%F %a", "--", self.path), check=False)
        if found.stdout.strip() == f"directory {self.mode:o}":
            return None
        return Difference(f"make directory {self.path} with mode {self.mode:o}")

    def apply(self, host: Host, report: Report) -> None:
        """Make it, with what is missing above it."""
        host.run(Command.argv("install", "-d", "-m", f"{self.mode:o}", "--", self.path))


@dataclass(frozen=True)
class Symlink(Resource):
    """A symbolic link; a directory that stands in its place must be empty, or apply refuses."""

    path: str
    target: str

    def probe(self, host: Host) -> Difference | None:
        """Whether the link is missing or points elsewhere."""
        found = host.run(Command.argv("readlink", "--", self.path), check=False)
        if found.ok and found.stdout == f"{self.target}\n":
            return None
        now = f", now {found.stdout.strip()}" if found.ok else ""
        return Difference(f"link {self.path} to {self.target}{now}")

    def apply(self, host: Host, report: Report) -> None:
        """Make the link; an empty directory or another link in its place is replaced."""
        script = """
            if [ -d "$1" ] && [ ! -L "$1" ]; then rmdir -- "$1" || exit 45; fi
            mkdir -p -- "${1%/*}/"
            ln -sfnT -- "$2" "$1"
        """
        result = host.run(Command.script(script, self.path, self.target), check=False)
        if result.status == 45:
            raise StepFailed(
                f"{self.path} is a directory with content; it is not replaced by a link"
            )
        if not result.ok:
            raise CommandFailed(result)


@dataclass(frozen=True)
class Line(Resource):
    """One line in a file, in the place of a line that starts with ``key``, else at its end."""

    path: str
    line: str
    key: str

    def probe(self, host: Host) -> Difference | None:
        """The diff that setting the line makes."""
        now = host.read(self.path)
        return text_difference(
            f"set “{self.line}” in {self.path}", self.path, now, self._wanted(now)
        )

    def apply(self, host: Host, report: Report) -> None:
        """Write the file with the line; other lines stay as they are."""
        host.write(self.path, self._wanted(host.read(self.path)))

    def _wanted(self, now: str | None) -> str:
        lines = (now or "").splitlines()
        places = [number for number, text in enumerate(lines) if text.startswith(self.key)]
        if places:
            lines[places[0]] = self.line
            lines = [t for n, t in enumerate(lines) if n not in places[1:]]
        else:
            lines.append(self.line)
        return "\n".join(lines) + "\n"
