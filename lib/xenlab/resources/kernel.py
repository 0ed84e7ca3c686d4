"""Kernels to be made: what decides the result, the sources and the finished .config.

Howto: „Domain0-Kernel“, „DomainU-Kernel“. Compiling is in `kernel_built`, copying to where it is
booted from in `kernel_installed`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from xenlab.command import Command
from xenlab.errors import BadInput, CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.checksum import program_of
from xenlab.resources.kernel_config import (
    Option,
    fragment,
    honoured,
    options,
    parse_config,
    script,
)
from xenlab.wholefile import RECEIVE, size_and_digest

RECIPE = 1
"""Counts changes of the build scripts that give another image from the same sources."""

READ_SECONDS = 1800.0
UNPACK_SECONDS = 7200.0
CONFIGURE_SECONDS = 3600.0

_NOTHING_THERE = (44, 125, 126, 127)
_OTHER_CONTENT = 45


@dataclass(frozen=True)
class BuilderFacts:
    """What decides what a build gives, and the kernels that the builder has: key to manifest.

    ``archive`` is the SHA-256 of the sources' archive.
    """

    archive: str
    compiler: str
    manifests: dict[str, dict[str, str]]


@dataclass(frozen=True)
class KernelBuild:
    """One kernel to be made: sources, options and the folders of the builder that it lives in.

    ``archive`` is the source tarball's path on the builder, ``trees`` the folder of unpacked
    sources, ``store`` that of output folders and results. A result is a folder named by the key of
    all that went into it: ``config``, then ``vmlinuz``, the lists of built-in modules and, last,
    ``manifest``.
    """

    flavour: str
    archive: str
    trees: str
    store: str
    own_options: tuple[str, ...] = ()

    def options(self) -> list[Option]:
        """The options that are asked for."""
        return options(self.flavour, self.own_options)

    def facts(self, builder: Host) -> BuilderFacts | None:
        """What is on the builder, in one command; None where the sources' archive is not there."""
        command = Command.script(
            r"""
            [ -f "$1" ] || exit 44
            # read once, when it is unpacked; again as soon as anybody has touched it
            noted=
            { read -r digest noted < "$2/source/.digest" || :; } 2> /dev/null
            if [ "$noted" = "$(stat -L -c '%d %i %s %.9Y %.9Z' -- "$1")" ]; then
                printf '%s\n' "$digest"
            else
                sha256sum < "$1" | cut -c 1-64
            fi
            gcc --version 2> /dev/null | head -n 1 || :
            echo
            for manifest in "$2"/*/manifest; do
                [ -e "$manifest" ] || continue
                folder=${manifest%/manifest}
                printf 'key %s\n' "${folder##*/}"
                cat -- "$manifest"
            done
            """,
            self.archive,
            self.store,
        )
        result = builder.run(command, check=False, timeout=READ_SECONDS)
        if result.status in _NOTHING_THERE:
            return None
        if not result.ok:
            raise CommandFailed(result)
        return parse_facts(result.stdout)

    def tree(self, facts: BuilderFacts) -> str:
        """The folder of the unpacked sources."""
        name = PurePosixPath(self.archive).name.partition(".tar")[0]
        return f"{self.trees}/{name}-{facts.archive[:8]}"

    def work(self, facts: BuilderFacts) -> str:
        """The output folder: two configurations of one source tree never meet."""
        return f"{self.store}/work/{self.flavour}-{facts.archive[:8]}"

    def key(self, facts: BuilderFacts) -> str:
        """What went into the kernel, as one word."""
        name = PurePosixPath(self.archive).name
        wanted = fragment(self.options())
        parts = (str(RECIPE), self.flavour, name, facts.archive, facts.compiler, wanted)
        return f"{self.flavour.lower()}-{_digest(chr(0).join(parts))[:16]}"

    def result(self, facts: BuilderFacts) -> str:
        """The folder of the finished kernel."""
        return f"{self.store}/{self.key(facts)}"

    def manifest(self, builder: Host) -> dict[str, str] | None:
        """What was built: release, checksums of vmlinuz and config, bytes; None if nothing yet."""
        facts = self.facts(builder)
        return facts.manifests.get(self.key(facts)) if facts else None

    def require(self, builder: Host) -> BuilderFacts:
        """The facts; raises StepFailed where the archive or the compiler is missing."""
        facts = self.facts(builder)
        if facts is None:
            raise StepFailed(
                f"there is no kernel source archive {self.archive} on {builder.name}",
                hint="install it (on Debian: apt-get install linux-source) or name another one in "
                "kernel_source",
            )
        if not facts.compiler:
            raise StepFailed(f"there is no compiler (gcc) on {builder.name}")
        for path in (self.trees, self.store):
            if re.search(r"[\s:]", path):
                raise BadInput(f"a kernel cannot be built in {path!r}: it holds a blank or a colon")
        return facts


@dataclass(frozen=True)
class Sources(Resource):
    """The kernel sources, unpacked once (howto: /usr/src, „verlinken“ /usr/src/linux).

    ``checksum`` says what SHA-256 or SHA-512 the archive must have; it is asked when it is needed.
    """

    build: KernelBuild
    checksum: Callable[[], str] = field(compare=False)

    def probe(self, host: Host) -> Difference | None:
        """Whether the tree is missing."""
        facts = self.build.facts(host)
        if facts and host.test(Command.argv("test", "-e", f"{self.build.tree(facts)}/Makefile")):
            return None
        return Difference(f"unpack {self.build.archive} in {self.build.trees}")

    def apply(self, host: Host, report: Report) -> None:
        """Unpack it beside its place and move it there, if what was read is what is wanted.

        Raises StepFailed where it is not, and leaves nothing then.
        """
        facts = self.build.require(host)
        wanted = self.checksum()
        report(f"unpacking {self.build.archive}")
        command = Command.script(
            script("unpack"),
            self.build.archive,
            self.build.tree(facts),
            f"{program_of(wanted)}sum",
            wanted,
            f"{self.build.store}/source/.digest",
        )
        result = host.run(command, check=False, timeout=UNPACK_SECONDS)
        if result.status == _OTHER_CONTENT:
            raise StepFailed(
                f"{self.build.archive} has another checksum than {wanted}, and is not unpacked",
                hint="fetch it again, or look which checksum file goes with it",
            )
        if not result.ok:
            raise CommandFailed(result)


@dataclass(frozen=True)
class KernelConfigured(Resource):
    """A kernel's .config, made of nothing but what is asked for; each option found in it."""

    build: KernelBuild

    def config(self, host: Host) -> dict[str, str] | None:
        """The symbols that are set in the finished .config, None where there is none yet."""
        facts = self.build.facts(host)
        text = host.read(f"{self.build.result(facts)}/config") if facts else None
        return None if text is None else parse_config(text)

    def probe(self, host: Host) -> Difference | None:
        """That there is no .config yet, or a table of the options that it does not honour."""
        config = self.config(host)
        if config is None:
            return Difference(f"configure the {self.build.flavour} kernel")
        rows = honoured(self.build.options(), config)
        lost = tuple(row for row in rows if row["ok"] == "no")
        if not lost:
            return None
        names = ", ".join(f"{row['symbol']}={row['wanted']}" for row in lost)
        return Difference(
            f"the {self.build.flavour} kernel's config does not honour {names}", rows=lost
        )

    def apply(self, host: Host, report: Report) -> None:
        """Run tinyconfig, merge_config.sh and olddefconfig of the sources."""
        facts = self.build.require(host)
        report(f"configuring the {self.build.flavour} kernel")
        text = fragment(self.build.options()).encode()
        command = Command.script(
            RECEIVE + script("configure"),
            self.build.tree(facts),
            self.build.work(facts),
            self.build.result(facts),
            *size_and_digest(text),
        )
        host.run(command, input=text, timeout=CONFIGURE_SECONDS)


def parse_facts(text: str) -> BuilderFacts:
    """The answer of the command in `KernelBuild.facts`."""
    archive, _, rest = text.partition("\n")
    compiler, _, rest = rest.partition("\n")
    manifests: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in rest.splitlines():
        word, _, value = line.partition(" ")
        if word == "key":
            current = manifests.setdefault(value, {})
        elif word:
            current[word] = value
    return BuilderFacts(archive, compiler, manifests)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
