"""Files, directories, lines and symbolic links."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files as package_files
from typing import Any

from jinja2 import StrictUndefined

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.quoting import environment
from xenlab.resources.base import Difference, Report, Resource, text_difference


def render(template: str, **values: Any) -> str:
    """The text of a template in ``xenlab/templates`` (Jinja2); an unknown name is an error.

    So is a value that no filter of `xenlab.quoting` has made fit for the file.
    """
    text = package_files("xenlab").joinpath("templates", template).read_text()
    return environment(undefined=StrictUndefined).from_string(text).render(**values)


@dataclass(frozen=True)
class File(Resource):
    """A file with this very text; ``content``, or ``template`` with ``values``.

    ``mode`` and ``owner`` are looked at where they are stated (`Host.write` says what becomes of
    them otherwise).
    """

    path: str
    content: str = ""
    template: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    mode: int | None = None
    owner: str = ""

    def text(self) -> str:
        """The wanted text."""
        return render(self.template, **self.values) if self.template else self.content

    def probe(self, host: Host) -> Difference | None:
        """The diff of the text, or the mode and owner where only they differ."""
        command = Command.script(
            '[ -e "$1" ] || exit 44; stat -L -c "%a %U:%G" -- "$1"; cat -- "$1"', self.path
        )
        result = host.run(command, check=False)
        if not result.ok:
            if result.status not in (44, 125, 126, 127):
                raise CommandFailed(result)
            return text_difference(f"create {self.path}", self.path, None, self.text())
        state, _, now = result.out.decode("utf-8", "surrogateescape").partition("\n")
        different = text_difference(f"write {self.path}", self.path, now, self.text())
        if different is None:
            return self._access(*state.split())
        return different

    def _access(self, mode: str, owner: str) -> Difference | None:
        wanted = {}
        if self.mode is not None and mode != f"{self.mode:o}":
            wanted[f"mode {self.mode:o}"] = mode
        if self.owner and owner != self.owner:
            wanted[f"owner {self.owner}"] = owner
        if not wanted:
            return None
        return Difference(f"{self.path}: set {', '.join(wanted)}, now {', '.join(wanted.values())}")

    def apply(self, host: Host, report: Report) -> None:
        """Write the file whole or not at all."""
        host.write(self.path, self.text(), mode=self.mode, owner=self.owner)


@dataclass(frozen=True)
class Absent(Resource):
    """No file, and no link, at this path."""

    path: str

    def probe(self, host: Host) -> Difference | None:
        """Whether something is there."""
        command = Command.script('[ -e "$1" ] || [ -L "$1" ] || exit 44', self.path)
        result = host.run(command, check=False)
        if result.ok:
            return Difference(f"remove {self.path}")
        if result.status not in (44, 125, 126, 127):
            raise CommandFailed(result)
        return None

    def apply(self, host: Host, report: Report) -> None:
        """Remove the file; a directory in its place stays, and is an error."""
        host.run(Command.argv("rm", "-f", "--", self.path))


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
    """One line in a file, in the place of the first that starts with ``key``, else at its end.

    Further lines that start with ``key`` go. All others stay byte by byte, with whatever ends
    them; a file whose last line has no end has none afterwards.
    """

    path: str
    line: str
    key: str

    def probe(self, host: Host) -> Difference | None:
        """The diff that setting the line makes."""
        now = host.read(self.path)
        wanted = with_line(now or "", self.line, self.key)
        return text_difference(f"set “{self.line}” in {self.path}", self.path, now, wanted)

    def apply(self, host: Host, report: Report) -> None:
        """Write the file with the line; other lines stay as they are."""
        host.write(self.path, with_line(host.read(self.path) or "", self.line, self.key))


def with_line(text: str, line: str, key: str) -> str:
    """A file's text with this line in it; see `Line`."""
    # Not splitlines(): a form feed or U+2028 inside a line ends none.
    lines = text.split("\n")
    ended = lines[-1] == ""
    if ended:
        lines.pop()
    places = [number for number, each in enumerate(lines) if each.startswith(key)]
    if places:
        lines[places[0]] = line + _carriage(lines[places[0]])
        lines = [each for number, each in enumerate(lines) if number not in places[1:]]
    else:
        usual = _carriage(lines[0]) if lines else ""
        if lines and not ended:
            lines[-1] += usual
        lines.append(line + (usual if ended else ""))
    return "\n".join(lines) + ("\n" if ended else "")


def _carriage(line: str) -> str:
    return "\r" if line.endswith("\r") else ""
