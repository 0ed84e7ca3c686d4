"""What a boot needs before a file system is mounted, worked out from services and libraries.

Howto: „/usr sharing“: „Zudem hängt der Spass davon ab, welche dieser Systemtools beim Booten des
Systems bis nach dem Mounten des NFS-Shares benötigt werden.“
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xenlab.command import Command
from xenlab.host import Host

LOOK_SECONDS = 600.0

# Each program's real path, and the libraries that the loader would load with it; asked once for a
# program that many start.
_LOOK = """
{
    printf '%s\\n' "$found" | cut -f 2 | sort -u | while IFS= read -r program; do
        [ -e "$program" ] || continue
        real=$(readlink -f -- "$program")
        libraries=$(ldd "$real" 2> /dev/null \\
            | sed -n 's|.*[[:space:]]\\(/[^ ]*\\) (0x.*|\\1|p' \\
            | xargs -r readlink -f -- | sort -u | tr '\\n' ' ')
        printf 'program\\t%s\\t%s\\t%s\\n' "$program" "$real" "$libraries"
    done
    printf '%s\\n' "$found" | sort -u | sed 's/^/unit\\t/'
} | awk '
    BEGIN { FS = OFS = "\\t" }
    $1 == "program" { found[$2] = $3 FS $4 }
    $1 == "unit" && $3 in found { print $2, $3, found[$3] }
'
"""


@dataclass(frozen=True)
class Needed:
    """A program that the boot needs: who starts it, its path, where that leads, its libraries."""

    unit: str
    program: str
    path: str
    libraries: tuple[str, ...] = field(default=())

    @property
    def in_usr(self) -> bool:
        """Whether it, or a library of it, lies in /usr."""
        return any(path.startswith("/usr/") for path in (self.path, *self.libraries))


def needed_before(host: Host, path: str, started: str) -> list[Needed]:
    """What a guest's boot needs before ``path`` is mounted; raises CommandFailed.

    ``started`` is a script whose ``$1`` is the path, and whose output has a line for each program
    that was started before: who did it, a tab, the program's path.
    """
    script = f"found=$(\n{started}\n){_LOOK}"
    return parse(host.run(Command.script(script, path), timeout=LOOK_SECONDS).stdout)


def parse(text: str) -> list[Needed]:
    """The lines of the look: unit, program, real path, libraries, separated by tabs."""
    found = []
    for line in text.splitlines():
        words = line.split("\t")
        if len(words) == 4:
            found.append(Needed(words[0], words[1], words[2], tuple(words[3].split())))
    return found
