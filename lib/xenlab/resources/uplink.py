"""The network of the first boot from the disk: one address on the uplink."""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import CommandFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource, text_difference
from xenlab.resources.files import render

FOLDER = "/etc/network/interfaces.d"
PATH = f"{FOLDER}/xenlab-uplink"

_ON_BRIDGE = 45
_NO_FILE = (44, 125, 126, 127)


@dataclass(frozen=True)
class Uplink(Resource):
    """interfaces(5): a static address (with prefix) on an interface, until a bridge takes it over.

    It holds as well where ``bridge`` has an address there: chapter 07 moved it.
    """

    interface: str
    address: str
    gateway: str
    bridge: str

    def text(self) -> str:
        """The wanted text."""
        return render(
            "uplink.j2", interface=self.interface, address=self.address, gateway=self.gateway
        )

    def probe(self, host: Host) -> Difference | None:
        """The diff of the file, unless the bridge has the address."""
        script = """
            for file in "$2"/*; do
                [ -e "$file" ] || continue
                while read -r word name rest; do
                    [ "$word $name" != "iface $3" ] || exit 45
                done < "$file"
            done
            [ -e "$1" ] || exit 44
            cat -- "$1"
        """
        result = host.run(Command.script(script, PATH, FOLDER, self.bridge), check=False)
        if result.status == _ON_BRIDGE:
            return None
        if not result.ok and result.status not in _NO_FILE:
            raise CommandFailed(result)
        now = result.stdout if result.ok else None
        verb = "create" if now is None else "write"
        return text_difference(f"{verb} {PATH}", PATH, now, self.text())

    def apply(self, host: Host, report: Report) -> None:
        """Write the file; it counts from the next boot on."""
        host.write(PATH, self.text())
