"""Where Debian's packages come from, if not from the stage's own sources: sources.list(5)."""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from xenlab.command import CONTROLLER, Command
from xenlab.errors import BadInput
from xenlab.host import Host
from xenlab.resources.archive import checksum_of, send
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.files import Absent, File

SOURCES = "/etc/apt/xenlab.list"
"""The one source of packages, where that is a folder."""

ONLY_THESE = "/etc/apt/apt.conf.d/90xenlab-sources"
"""This file tells apt to read that alone; without it the stage's own files count again."""

_ONLY_THESE = f"""\
// written by xenlab, chapter 02: neither sources.list nor sources.list.d is read
Dir::Etc::SourceList "{SOURCES}";
Dir::Etc::SourceParts "/dev/null";
"""

INDEXES: dict[str, Callable[[bytes], bytes]] = {
    "Packages": bytes,
    "Packages.xz": lzma.decompress,
    "Packages.gz": gzip.decompress,
}
"""How a folder's index may be called, and how it is read."""

_CHECK_SECONDS = 600.0


def sources(mirror: str, security: str, folder: str, share: str, root: str) -> tuple[Resource, ...]:
    """What apt fetches packages from; all three empty: what the stage's files say.

    ``folder`` is the controller's, brought to the share; ``root`` is the installed root as the
    machine sees it. Raises BadInput for a folder that cannot be used.
    """
    only = File(ONLY_THESE, _ONLY_THESE)
    if folder:
        index, _ = index_of(folder)
        place = f"{share}/apt/folder"
        # whose digest changes is fetched anew
        text = f"# written by xenlab, chapter 02: {index.name} {checksum_of(index)}\n"
        source = File(SOURCES, f"{text}deb [trusted=yes] copy:{place} ./\n")
        return (Folder(folder, place, root), source, only)
    away = (Absent(ONLY_THESE), Absent(SOURCES))
    return (*away, Mirrored(mirror, security)) if mirror or security else away


# Both forms of sources.list(5): a line for each entry, or a paragraph of fields. $1 the mirror, $2
# that of security, $3 is "write" where the files are not only looked at.
_MIRRORED = r"""
    . /etc/os-release
    new=$(mktemp)
    trap 'rm -f -- "$new" "$new.suites"' EXIT
    : > "$new.suites"
    edited() {
        awk -v name="$VERSION_CODENAME" -v mirror="$mirror" -v security="$security" \
            -v suites_seen="$new.suites" '
            function other(suite) {
                print suite >> suites_seen
                if (suite ~ "^(" name "|stable)-security$") return security
                if (suite ~ "^(" name "|stable)(-updates|-backports)?$") return mirror
                return ""
            }
            function put(   i, count, each, uri) {
                count = split(suites, each)
                for (i = 1; i <= count; i++) if (other(each[i]) != "") uri = other(each[i])
                for (i = 1; i <= lines; i++)
                    if (uri == "" || !(i in uris)) print line[i]
                    else if (uris[i] == "first") print "URIs: " uri
                lines = 0; suites = key = ""; split("", uris)
            }
            FILENAME !~ /[.]sources$/ {
                if ($1 ~ /^deb(-src)?$/) {
                    at = 2
                    if ($at ~ /^\[/) { while ($at !~ /\]$/ && at < NF) at++; at++ }
                    if (other($(at + 1)) != "") $at = other($(at + 1))
                }
                print
                next
            }
            /^[ \t]*$/ { put(); print; next }
            { line[++lines] = $0; value = $0 }
            /^#/ { next }
            /^[^ \t]/ { key = tolower($0); sub(/:.*/, "", key); sub(/^[^:]*:/, "", value) }
            key == "suites" { suites = suites " " value }
            key == "uris" { uris[lines] = /^[ \t]/ ? "more" : "first" }
            END { put() }
        ' "$1"
    }
    mirror=$1 security=$2 verb=$3 own=/etc/apt/sources.list.d/xenlab.list
    settle() { # FILE: has the text of $new
        ! cmp -s -- "$1" "$new" || return 0
        if [ "$verb" = write ]; then
            install -D -m 644 -- "$new" "$1.new"
            mv -f -- "$1.new" "$1"
            # what was fetched is of other sources
            [ ! -e /var/lib/apt/lists ] || touch -d 1970-01-02 /var/lib/apt/lists
        else
            diff -uN --label "$1" --label "$1" -- "$1" "$new" || [ $? = 1 ]
        fi
    }
    parts=/etc/apt/sources.list.d
    for file in /etc/apt/sources.list "$parts"/*.list "$parts"/*.sources; do
        [ -e "$file" ] && [ "$file" != "$own" ] || continue
        edited "$file" > "$new"
        settle "$file"
    done
    # where the stage names none
    lines=
    lacking() { # MIRROR SUITE
        [ -n "$1" ] && ! grep -qxE -- "($VERSION_CODENAME|stable)$2" "$new.suites"
    }
    ! lacking "$mirror" "" || lines="deb $mirror $VERSION_CODENAME main
"
    ! lacking "$security" -security || lines="${lines}deb $security $VERSION_CODENAME-security main
"
    if [ -n "$lines" ] || [ -e "$own" ]; then
        printf %s "$lines" > "$new"
        settle "$own"
    fi
"""


@dataclass(frozen=True)
class Mirrored(Resource):
    """Debian's archive, and that of its security updates, come from these mirrors.

    The stage's own entries get the mirror's URI; all others stay, as does what "" is given for.
    """

    mirror: str
    security: str

    def probe(self, host: Host) -> Difference | None:
        """The diff of all files with such entries."""
        found = host.look(Command.script(_MIRRORED, self.mirror, self.security, "look"))
        summary = f"fetch packages from {self.mirror or self.security}"
        if found is None:
            return Difference(summary)
        return Difference(summary, found.stdout) if found.stdout else None

    def commands(self) -> tuple[Command, ...]:
        """Write the mirror's URI into these entries."""
        return (Command.script(_MIRRORED, self.mirror, self.security, "write"),)


@dataclass(frozen=True)
class Indexed:
    """A file that an index names, by its path below the index."""

    name: str
    size: int
    sha256: str


def index_of(folder: str) -> tuple[Path, tuple[Indexed, ...]]:
    """The index of a folder of the controller, and what it names.

    Raises BadInput, with what to do, where there is none or the folder does not hold all of it.
    """
    top = Path(folder).expanduser()
    hint = f"cd {top} && dpkg-scanpackages --multiversion . > Packages"
    index = next((top / name for name in INDEXES if (top / name).is_file()), None)
    if index is None:
        raise _unusable(folder, "it has no index of packages at its top", hint)
    try:
        found = parse_index(INDEXES[index.name](index.read_bytes()).decode())
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise _unusable(folder, f"{index.name} cannot be read: {error}", hint) from None
    for each in found:
        file = top / each.name
        if not file.is_file() or file.stat().st_size != each.size:
            problem = f"{index.name} names {each.name}, which is missing or has another size"
            raise _unusable(folder, problem, hint)
    return index, found


def _unusable(folder: str, problem: str, hint: str) -> BadInput:
    return BadInput(f"cannot use apt_folder {folder}: because {problem}", hint=hint)


def parse_index(text: str) -> tuple[Indexed, ...]:
    """What an index names; raises ValueError for one that apt could not install from."""
    found = []
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip()), start=1):
        fields = dict(re.findall(r"^(\S+):[ \t]*(.*?)[ \t]*$", paragraph, re.MULTILINE))
        name, size, sha256 = (fields.get(key, "") for key in ("Filename", "Size", "SHA256"))
        path = PurePosixPath(name)
        if not path.name or path.is_absolute() or ".." in path.parts or "\\" in name:
            raise ValueError(f"its entry {number} names no file below it")
        if not size.isdecimal() or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError(f"{name} has no Size, or no SHA256")
        found.append(Indexed(str(path), int(size), sha256))
    return tuple(dict.fromkeys(found))


def require_room(folder: str, free_mib: int) -> None:
    """Raise BadInput unless a folder can be used and takes at most so many MiB of the share."""
    _, files = index_of(folder)
    needed = sum(each.size for each in files) // 1024**2 + 1
    if needed > free_mib:
        raise BadInput(
            f"apt_folder {folder} has {needed} MiB of packages, and share_mib has room for "
            f"{max(free_mib, 0)} MiB of them",
            hint="make share_mib larger, or leave packages out of the folder and its index",
        )


@dataclass(frozen=True)
class Folder(Resource):
    """What the index of a folder of the controller names, and then the index, on the machine.

    ``root`` is the installed root as the machine sees it.
    """

    local: str
    remote: str
    root: str = "/"

    def probe(self, host: Host) -> Difference | None:
        """The files that are missing, or are not what the index says. Raises BadInput."""
        missing = self._missing(host)
        if not missing:
            return None
        rows = tuple({"file": name} for name in missing)
        return Difference(f"upload {len(missing)} files to {self.remote}", rows=rows)

    def commands(self) -> tuple[Command, ...]:
        """Copy it, from this machine."""
        remote = f"{self.root.rstrip('/')}{self.remote}"
        copy = Command.sh("scp -r {local}/. dom0:{remote}", local=self._path(), remote=remote)
        return Command.argv("mkdir", "-p", self.remote), copy.at(CONTROLLER)

    def apply(self, host: Host, report: Report) -> None:
        """Upload what is missing; the index comes last."""
        for name in self._missing(host):
            send(host, self._path() / name, f"{self.remote}/{name}", report)

    def _path(self) -> Path:
        return Path(self.local).expanduser()

    def _missing(self, host: Host) -> list[str]:
        index, files = index_of(self.local)
        digests = {each.name: each.sha256 for each in files} | {index.name: checksum_of(index)}
        script = """
            cd -- "$1" 2> /dev/null || exit 44
            sha256sum --check --quiet - 2> /dev/null || [ $? = 1 ]
        """
        lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
        command = Command.script(script, self.remote)
        found = host.run(command, input=lines.encode(), timeout=_CHECK_SECONDS, check=False)
        if not found.ok:
            return list(digests)
        wrong = {line.rpartition(": ")[0] for line in found.stdout.splitlines()}
        return [name for name in digests if name in wrong]
