"""Files, directories, lines and symbolic links; settings, words in them, directories moved away."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from textwrap import dedent
from typing import Any

from jinja2 import StrictUndefined

from xenlab.command import Command
from xenlab.host import Host
from xenlab.quoting import environment
from xenlab.resources.base import Difference, Report, Resource, text_difference


def packaged(*path: str) -> str:
    """The text of a file that comes with xenlab, by its path in the package."""
    return package_files("xenlab").joinpath(*path).read_text(encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """The text of a template in ``xenlab/templates`` (Jinja2); an unknown name is an error.

    So is a value that no filter of `xenlab.quoting` has made fit for the file.
    """
    text = packaged("templates", template)
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
        result = host.look(command, absent=(44,))
        if result is None:
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

    def commands(self) -> tuple[Command, ...]:
        """The text, its mode and owner."""
        return (Command.file(self.path, self.text(), self.mode, self.owner),)

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
        found = host.look(command, absent=(44,))
        return None if found is None else Difference(f"remove {self.path}")

    def commands(self) -> tuple[Command, ...]:
        """Remove the file; a directory in its place stays, and is an error."""
        return (Command.argv("rm", "-f", self.path),)


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

    def commands(self) -> tuple[Command, ...]:
        """Make it, with what is missing above it."""
        return (Command.argv("install", "-d", "-m", f"{self.mode:o}", self.path),)


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

    def commands(self) -> tuple[Command, ...]:
        """Make the link; an empty directory or another link in its place is replaced."""
        script = """
            if [ -d "$1" ] && [ ! -L "$1" ]; then rmdir -- "$1" || exit 45; fi
            mkdir -p -- "${1%/*}/"
            ln -sfnT -- "$2" "$1"
        """
        full = f"cannot link {self.path}: because it is a directory with content"
        command = Command.script(script, self.path, self.target)
        command = command.refusing({45: (full, "move away what is in it")})
        return (command.typed_as("ln -sfnT {to} {path}", to=self.target, path=self.path),)


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

    def commands(self) -> tuple[Command, ...]:
        """Take out the lines that begin alike, put this one at the end."""
        values = {"alike": f"/^{basic_expression(self.key)}/d", "path": self.path}
        out = Command.sh("sed -i {alike} {path}", **values)
        return (
            out.scripted_as(f"[ ! -e {{path}} ] || {out.text}", **values),
            Command.sh("echo {line} >> {path}", line=self.line, path=self.path),
        )

    def apply(self, host: Host, report: Report) -> None:
        """Write the file with the line in its place; other lines stay as they are."""
        host.write(self.path, with_line(host.read(self.path) or "", self.line, self.key))


@dataclass(frozen=True)
class LineFirst(Resource):
    """A file has this line; where it has not, it gets it before all that are there.

    That is for files in which many lines are of one kind, and the first ones count most.
    """

    path: str
    line: str

    def probe(self, host: Host) -> Difference | None:
        """The diff that setting the line makes."""
        now = host.read(self.path)
        return text_difference(
            f"set “{self.line}” in {self.path}", self.path, now, self._with_line(now or "")
        )

    def commands(self) -> tuple[Command, ...]:
        """Put it before what is there."""
        text = """
            touch {path}
            echo {line} | cat - {path} > {path}.new
            mv {path}.new {path}
        """
        values = {"line": self.line, "path": self.path}
        again = f"grep -qsxF {{line}} {{path}} || {{\n{dedent(text).strip()}\n}}"
        return (Command.sh(text, **values).scripted_as(again, **values),)

    def apply(self, host: Host, report: Report) -> None:
        """Write the file with the line."""
        host.write(self.path, self._with_line(host.read(self.path) or ""))

    def _with_line(self, text: str) -> str:
        return text if self.line in text.split("\n") else f"{self.line}\n{text}"


def basic_expression(text: str) -> str:
    """A text as a basic regular expression between slashes, which nothing else matches."""
    return re.sub(r"[][.*^$\\/]", r"\\\g<0>", text)


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


# A setting of the running kernel; what sets it at the next boot is a file's business.


@dataclass(frozen=True)
class KernelSetting(Resource):
    """A file under /proc/sys with this value (proc(5)).

    ``required`` false: a kernel that has no such setting is right as it is.
    """

    path: str
    value: str
    required: bool = True

    def probe(self, host: Host) -> Difference | None:
        """Whether the kernel has another value."""
        command = Command.script('[ -e "$1" ] || exit 44; cat -- "$1"', self.path)
        found = host.run(command, check=False)
        if found.status == 44 and not self.required:
            return None
        if found.ok and found.stdout.strip() == self.value:
            return None
        now = f", now {found.stdout.strip()}" if found.ok else ""
        return Difference(f"set {self.path} to {self.value}{now}")

    def commands(self) -> tuple[Command, ...]:
        """Tell the kernel."""
        unless = "" if self.required else "[ ! -e {path} ] || "
        return (Command.sh(f"{unless}echo {{value}} > {{path}}", value=self.value, path=self.path),)


# A word among others in a variable of a file that a shell reads (conf.d, /etc/default).


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

    def commands(self) -> tuple[Command, ...]:
        """A line that adds the word."""
        line = f'{self.variable}="${self.variable} {self.word}"'
        return (Command.sh("echo {line} >> {path}", line=line, path=self.path),)

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


# A directory that was moved to another file system and linked back to its place.

_NOT_THE_SAME = 45
_MOUNTED = 46


@dataclass(frozen=True)
class Relocated(Resource):
    """``path`` is a link to the directory ``to``, and ``to`` holds what was in ``path``.

    The howto's three lines for /usr/src: rsync it to the share, delete it, link it back.
    """

    path: str
    to: str

    def probe(self, host: Host) -> Difference | None:
        """Whether the link or the directory is missing, or the original is not yet deleted."""
        script = 'readlink -- "$1"; [ -d "$2" ] && [ ! -e "$3" ]'
        command = Command.script(script, self.path, self.to, self._aside)
        result = host.run(command, check=False)
        if result.ok and result.stdout == f"{self.to}\n":
            return None
        return Difference(f"move {self.path} to {self.to} and link it back")

    def commands(self) -> tuple[Command, ...]:
        """Copy, compare, link, delete; refused where the copy is not the same.

        The original goes when its copy and the link are on disk. Cut off anywhere, one of the two
        is whole, and the next time goes on from there.
        """
        script = """
            aside=$3
            if [ -d "$aside" ]; then
                # set aside by an earlier time: its copy was on disk, unless somebody took that away
                if [ -d "$2" ]; then
                    rm -rf --one-file-system -- "$aside"
                elif [ ! -e "$1" ]; then
                    rm -f -- "$1"
                    mv -T -- "$aside" "$1"
                fi
            fi
            mkdir -p -- "$2" "${1%/*}/"
            if [ -d "$1" ] && [ ! -L "$1" ]; then
                # a mount below it would be emptied with it
                if grep -qF -- " $(readlink -f -- "$1")/" /proc/self/mounts; then exit 46; fi
                rsync -aHAX -- "$1/" "$2/"
                [ -z "$(rsync -aHAXnc --itemize-changes -- "$1/" "$2/")" ] || exit 45
                sync -f -- "$2"
                mv -T -- "$1" "$aside"
            fi
            ln -sfnT -- "$2" "$1"
            sync -f -- "${1%/*}/"
            rm -rf --one-file-system -- "$aside"
        """
        refusals = {
            _NOT_THE_SAME: (
                f"cannot move {self.path}: because {self.to} is no true copy of it",
                "look what changes in it meanwhile, then run the step again (nothing was deleted)",
            ),
            _MOUNTED: (
                f"cannot move {self.path}: because something is mounted below it",
                f"unmount it: findmnt -R {self.path}",
            ),
        }
        typed = """
            mkdir -p {to}
            rsync -aHAX {path}/ {to}/
            rm -rf {path}
            ln -s {to} {path}
        """
        command = Command.script(script, self.path, self.to, self._aside)
        command = command.typed_as(typed, path=self.path, to=self.to)
        return (command.refusing(refusals).within(3600),)

    @property
    def _aside(self) -> str:
        """What the original is called from when its copy is on disk until it is deleted."""
        return f"{self.path}.xenlab-moved"
