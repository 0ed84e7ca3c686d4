"""Guests that start together with dom0 (howto: „Auto-DomainU-Boot“)."""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource

FOLDER = "/etc/xen/auto"


@dataclass(frozen=True)
class AutoLinks(Resource):
    """A folder that holds a link to each of these configuration files' names, and nothing else.

    The links are relative („allerdings muss die Pfadangabe relativ gemacht werden!“) and numbered:
    xendomains starts what it finds in the order of the names. It reads every file that lies there,
    an editor's backup too.
    """

    names: tuple[str, ...]
    folder: str = FOLDER

    def wanted(self) -> dict[str, str]:
        """The links' names and what they point at."""
        return {
            f"{10 * place:04}-{name}.cfg": f"../{name}.cfg"
            for place, name in enumerate(self.names, 1)
        }

    def probe(self, host: Host) -> Difference | None:
        """A table of what is there and what should be."""
        found = self._found(host)
        wanted = self.wanted()
        if found == wanted:
            return None
        rows = tuple(
            {"link": name, "now": found.get(name, "-"), "wanted": wanted.get(name, "-")}
            for name in sorted({*found, *wanted})
            if found.get(name) != wanted.get(name)
        )
        return Difference(f"let {', '.join(self.names) or 'no guest'} start with dom0", rows=rows)

    def apply(self, host: Host, report: Report) -> None:
        """Make the links, remove other ones; raises StepFailed where a file is in the way."""
        found, wanted = self._found(host), self.wanted()
        foreign = [name for name, target in found.items() if not target]
        if foreign:
            raise StepFailed(
                f"{self.folder} holds what is no link: {', '.join(foreign)}",
                hint="move it away: xendomains would start a guest from it",
            )
        script = """
            folder=$1; shift
            mkdir -p -- "$folder"
            while [ $# -gt 0 ]; do
                if [ -n "$2" ]; then ln -sfnT -- "$2" "$folder/$1"; else rm -f -- "$folder/$1"; fi
                shift 2
            done
        """
        changes = {name: "" for name in found if name not in wanted} | wanted
        words = [word for pair in changes.items() for word in pair]
        host.run(Command.script(script, self.folder, *words))

    def _found(self, host: Host) -> dict[str, str]:
        """What lies there: names, and what they point at ("" for what is no link)."""
        script = """
            for entry in "$1"/*; do
                [ -e "$entry" ] || [ -L "$entry" ] || continue
                printf '%s\\t%s\\n' "${entry##*/}" "$(readlink -- "$entry" || :)"
            done
        """
        result = host.run(Command.script(script, self.folder), check=False)
        if not result.ok and result.status not in (125, 126, 127):
            raise CommandFailed(result)
        pairs = (line.partition("\t") for line in result.stdout.splitlines())
        return {name: target for name, _, target in pairs} if result.ok else {}
