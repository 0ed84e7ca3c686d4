"""Kernels copied to where they are booted from: dom0's to /boot, the guests' to /xenboot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.kernel import KernelBuild
from xenlab.resources.kernel_config import DOM0

GUEST_KERNELS = "/xenboot"
"""Never /boot: GRUB's scripts would take a vmlinuz-domU there for the newest native kernel."""

MODULE_LISTS = ("modules.builtin", "modules.builtin.modinfo")

_NO_ROOT = (125, 126, 127)


@dataclass(frozen=True)
class KernelInstalled(Resource):
    """A built kernel and its config on the target.

    dom0's: ``/boot/vmlinuz-RELEASE`` and ``config-RELEASE``, without which GRUB's own script for
    Xen does not take it, and the lists by which modprobe knows what is built in. The guests':
    ``/xenboot/vmlinuz-domU`` and ``config-domU``, the previous ones kept as ``.old``.
    """

    build: KernelBuild
    builder: Host

    def paths(self, release: str) -> tuple[str, str]:
        """Where kernel and config of a release go."""
        if self.build.flavour == DOM0:
            return f"/boot/vmlinuz-{release}", f"/boot/config-{release}"
        return (
            f"{GUEST_KERNELS}/vmlinuz-{self.build.flavour}",
            f"{GUEST_KERNELS}/config-{self.build.flavour}",
        )

    def probe(self, host: Host) -> Difference | None:
        """A table of the files that are missing or have another checksum than what was built."""
        manifest = self.build.manifest(self.builder)
        if manifest is None:
            return Difference(f"install the {self.build.flavour} kernel, once it is compiled")
        release = manifest["release"]
        kernel, config = self.paths(release)
        lists = f"/lib/modules/{release}/modules.builtin.bin" if self.build.flavour == DOM0 else ""
        command = Command.script(
            '[ -z "$3" ] || [ ! -e "$3" ] || echo listed; sha256sum -- "$1" "$2" 2> /dev/null || :',
            kernel,
            config,
            lists,
        )
        result = host.run(command, check=False)
        if not result.ok and result.status not in _NO_ROOT:
            raise CommandFailed(result)
        found = parse_checksums(result.stdout)
        rows = [
            {"file": path, "now": found.get(path, "missing")[:16], "wanted": wanted[:16]}
            for path, wanted in ((kernel, manifest["vmlinuz"]), (config, manifest["config"]))
            if found.get(path) != wanted
        ]
        if lists and not result.stdout.startswith("listed\n"):
            rows.append({"file": lists, "now": "missing", "wanted": "made by depmod"})
        if not rows:
            return None
        return Difference(f"install {kernel} ({release})", rows=tuple(rows))

    def apply(self, host: Host, report: Report) -> None:
        """Copy, compare the checksums, and only then put the new files in place.

        Raises StepFailed if a copy is damaged, or if dom0's kernel changed under a guest's.
        """
        facts = self.build.require(self.builder)
        manifest = self.build.manifest(self.builder)
        if manifest is None:
            raise StepFailed(f"the {self.build.flavour} kernel is not compiled yet")
        release = manifest["release"]
        report(f"copying the {self.build.flavour} kernel {release}")
        kernel, config = self.paths(release)
        others = "" if self.build.flavour == DOM0 else _boot_kernels(host)
        copies = {
            "vmlinuz": f"{kernel}.new",
            "config": f"{config}.new",
        }
        if self.build.flavour == DOM0:
            copies |= {name: f"/lib/modules/{release}/{name}" for name in MODULE_LISTS}
        self._copy(host, self.build.result(facts), copies)
        keep_old = "" if self.build.flavour == DOM0 else "yes"
        command = Command.script(
            """
            printf '%s  %s\\n' "$1" "$2.new" "$3" "$4.new" | sha256sum --check --quiet
            for file in "$2" "$4"; do
                chmod 644 -- "$file.new"
                if [ -n "$5" ] && [ -e "$file" ] && ! cmp -s -- "$file" "$file.new"; then
                    cp -p -- "$file" "$file.old"
                fi
            done
            # one after the other: whoever finds the config finds its kernel already
            mv -f -- "$2.new" "$2"
            mv -f -- "$4.new" "$4"
            sync
            [ -n "$5" ] || { : > "/lib/modules/$6/modules.order"; depmod -- "$6"; }
            """,
            manifest["vmlinuz"],
            kernel,
            manifest["config"],
            config,
            keep_old,
            release,
        )
        host.run(command, timeout=600)
        if self.build.flavour != DOM0 and _boot_kernels(host) != others:
            raise StepFailed("a kernel in /boot changed while the guests' kernel was installed")

    def _copy(self, host: Host, result: str, copies: dict[str, str]) -> None:
        folders = sorted({path.rpartition("/")[0] for path in copies.values()})
        host.run(Command.argv("mkdir", "-p", "--", *folders))
        for name, path in copies.items():
            if self.builder.transport is host.transport:
                source = self.builder.path(f"{result}/{name}")
                host.inside("/").run(Command.argv("cp", "--", source, host.followed(path)))
            else:
                host.upload(Path(self.builder.path(f"{result}/{name}")), path)


def parse_checksums(text: str) -> dict[str, str]:
    """What ``sha256sum`` prints, as path to checksum."""
    lines = (line.partition("  ") for line in text.splitlines())
    return {path: checksum for checksum, _, path in lines if path}


def _boot_kernels(host: Host) -> str:
    command = 'for file in /boot/vmlinuz-*; do [ ! -e "$file" ] || sha256sum -- "$file"; done'
    return host.run(command).stdout
