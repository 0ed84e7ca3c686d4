"""The hypervisor's image in /boot and the names that it is known by.

Howto: „Die eigentliche Datei heisst bei meiner Version xen-3.0.0.gz, wobei xen.gz, xen-3.gz und
xen-3.0.gz darauf verlinkt sind.“
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource

_NO_ROOT = (125, 126, 127)
_IMAGE = re.compile(r"xen-(\d+)\.(\d+)(\.\d+)?([.-][\w.-]*)?\.gz")


@dataclass(frozen=True)
class HypervisorLinks(Resource):
    """The links xen.gz, xen-MAJOR.gz and xen-MAJOR.MINOR.gz to the newest image in /boot."""

    def probe(self, host: Host) -> Difference | None:
        """A table of the links that are missing or point elsewhere."""
        found = self._look(host)
        image = newest_image(found)
        if not image:
            return Difference("link the hypervisor's names, once it is installed")
        rows = tuple(
            {"link": name, "now": found.get(name) or "missing", "wanted": image}
            for name in link_names(image)
            if found.get(name) != image
        )
        return Difference(f"link {image} by its short names", rows=rows) if rows else None

    def apply(self, host: Host, report: Report) -> None:
        """Make the links. Raises StepFailed where there is no hypervisor."""
        image = newest_image(self._look(host))
        if not image:
            raise StepFailed("there is no hypervisor in /boot", hint="run chapter 02_base_system")
        script = 'image=$1; shift; cd /boot; for name do ln -sfn -- "$image" "$name"; done'
        host.run(Command.script(script, image, *link_names(image)))

    def verify(self, host: Host) -> None:
        """The links stand, and what they lead to is an image that GRUB can start as multiboot2."""
        super().verify(host)
        for command in ("gzip -t /boot/xen.gz", "grub-file --is-x86-multiboot2 /boot/xen.gz"):
            if not host.test(command):
                raise StepFailed(f"/boot/xen.gz is no hypervisor that GRUB can start ({command})")

    def _look(self, host: Host) -> dict[str, str]:
        script = """
            cd /boot 2> /dev/null || exit 127
            for file in xen*.gz; do
                [ -e "$file" ] || [ -L "$file" ] || continue
                printf '%s %s\\n' "$file" "$(readlink -- "$file" || :)"
            done
        """
        result = host.run(Command.script(script), check=False)
        if not result.ok and result.status not in _NO_ROOT:
            raise CommandFailed(result)
        return dict(line.split(" ", 1) for line in result.stdout.splitlines())


def newest_image(found: dict[str, str]) -> str:
    """The image of the highest version among names in /boot (name: what it links to, or "")."""
    images = [
        (int(match[1]), int(match[2]), int((match[3] or ".0")[1:]), name)
        for name, link in found.items()
        if not link and (match := _IMAGE.fullmatch(name))
    ]
    return max(images)[3] if images else ""


def link_names(image: str) -> tuple[str, ...]:
    """The short names of an image; its own is not among them."""
    match = _IMAGE.fullmatch(image)
    if match is None:
        raise ValueError(f"{image!r} is no hypervisor image's name")
    names = ("xen.gz", f"xen-{match[1]}.gz", f"xen-{match[1]}.{match[2]}.gz")
    return tuple(name for name in names if name != image)
