"""Kernels: what they are to be able to do, how they are made, compiled and installed."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from xenlab.command import CONTROLLER, Command
from xenlab.errors import BadInput, CommandFailed, ConnectionLost, StepFailed
from xenlab.host import RECEIVE, Host, size_and_digest
from xenlab.resources.archive import program_of
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.files import packaged

# What a kernel is to be able to do: the howto's list as options, and what a .config made of it.
#
# Kconfig fragments in ``xenlab/data/kernel`` hold the lists; a line that begins with ``##`` opens a
# group and quotes the howto's statement (headings „Domain0-Kernel“ and „DomainU-Kernel“).

DOM0 = "dom0"
OWN_GROUP = "(kernel_options of this site)"

_SET = re.compile(r"CONFIG_(\w+)=(.+)")
_UNSET = re.compile(r"# CONFIG_(\w+) is not set")
_VERSION = re.compile(r"\blinux-(?:source-)?(\d+)\.(\d+)")


@dataclass(frozen=True)
class Option:
    """A kernel option that is asked for, and the statement it stands for.

    ``wanted`` is as a .config writes it (``y``, a number, a quoted text), ``n`` for not set.
    """

    statement: str
    symbol: str
    wanted: str

    @property
    def line(self) -> str:
        """The option as a line of a fragment or .config."""
        if self.wanted == "n":
            return f"# CONFIG_{self.symbol} is not set"
        return f"CONFIG_{self.symbol}={self.wanted}"


def parse_fragment(text: str) -> list[Option]:
    """The options of a fragment, each with the statement of the group it stands in.

    Raises BadInput for a line that is neither an option nor a comment.
    """
    found, statement = [], ""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        option = _option(line)
        if line.startswith("## "):
            statement = line[3:]
        elif option is not None:
            found.append(Option(statement, *option))
        elif line and not line.startswith("#"):
            raise BadInput(
                f"cannot read the fragment: because line {number} is no kernel option: {line!r}",
                hint="write CONFIG_NAME=value, or # CONFIG_NAME is not set",
            )
    return found


def parse_config(text: str) -> dict[str, str]:
    """The symbols of a .config that are set, with their values."""
    found = (_option(line) for line in text.splitlines())
    return {symbol: value for symbol, value in filter(None, found) if value != "n"}


def options(flavour: str, own: Iterable[str] = (), archive: str = "") -> list[Option]:
    """All options of a kernel, ``dom0`` or ``domU``; ``own`` are lines ``CONFIG_NAME=value``.

    A symbol that is named twice counts as it is named last: a site's own option wins. The name of
    the sources' ``archive`` says whether they are older than an option's change.
    """
    found: dict[str, Option] = {}
    old = (match := _VERSION.search(archive)) and (int(match[1]), int(match[2])) < (6, 10)
    for name in ("common", *(["before-6.10"] if old else []), flavour.lower()):
        for option in parse_fragment(packaged("data", "kernel", f"{name}.fragment")):
            found.pop(option.symbol, None)
            found[option.symbol] = option
    for line in own:
        symbol, _, value = line.removeprefix("CONFIG_").partition("=")
        found.pop(symbol, None)
        found[symbol] = Option(OWN_GROUP, symbol, value)
    return list(found.values())


def fragment(wanted: Iterable[Option]) -> str:
    """The options as one fragment for Linux' ``merge_config.sh``."""
    return "".join(f"{option.line}\n" for option in wanted)


def honoured(wanted: Iterable[Option], config: Mapping[str, str]) -> list[dict[str, str]]:
    """A row an option: the howto's statement, symbol, wanted, found in the .config, whether ok.

    Kconfig drops an option without a word if something it depends on is missing; a fragment is
    never proof, the finished .config is.
    """
    return [
        {
            "howto": option.statement,
            "symbol": option.symbol,
            "wanted": option.wanted,
            "found": (found := config.get(option.symbol, "n")),
            "ok": "yes" if found == option.wanted else "no",
        }
        for option in wanted
    ]


def script(name: str) -> str:
    """The text of one of the shell scripts that configure and build kernels."""
    return packaged("data", "kernel", f"{name}.sh")


def _option(line: str) -> tuple[str, str] | None:
    if unset := _UNSET.fullmatch(line.strip()):
        return unset[1], "n"
    return (found[1], found[2]) if (found := _SET.fullmatch(line.strip())) else None


# Kernels to be made: what decides the result, the sources and the finished .config.
#
# Howto: „Domain0-Kernel“, „DomainU-Kernel“.

RECIPE = 1
"""Counts changes of the build scripts that give another image from the same sources."""

FACTS_SECONDS = 1800.0
UNPACK_SECONDS = 7200.0
CONFIGURE_SECONDS = 3600.0

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

    @property
    def _name(self) -> str:
        return PurePosixPath(self.archive).name.partition(".tar")[0]

    @property
    def by_hand(self) -> tuple[str, str]:
        """The folder of the sources and the output folder of a person who types the commands."""
        return f"{self.trees}/{self._name}", f"{self.store}/{self.flavour}"

    def options(self) -> list[Option]:
        """The options that are asked for."""
        return options(self.flavour, self.own_options, self.archive)

    def facts(self, builder: Host) -> BuilderFacts | None:
        """What is on the builder, in one command; None where the sources' archive is not there."""
        command = Command.script(script("facts"), self.archive, self.store)
        result = builder.look(command, absent=(44,), timeout=FACTS_SECONDS)
        return None if result is None else parse_facts(result.stdout)

    def tree(self, facts: BuilderFacts) -> str:
        """The folder of the unpacked sources."""
        return f"{self.trees}/{self._name}-{facts.archive[:8]}"

    def work(self, facts: BuilderFacts) -> str:
        """The output folder: two configurations of one source tree never meet."""
        return f"{self.store}/work/{self.flavour}-{facts.archive[:8]}"

    def first(self, facts: BuilderFacts) -> str:
        """The output folder that this one begins as a copy of; "" for dom0's, which is first."""
        return "" if self.flavour == DOM0 else replace(self, flavour=DOM0).work(facts)

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
                f"cannot build a kernel on {builder.name}: because there is no kernel source "
                f"archive {self.archive}",
                hint="`xenlab lab stage` fetches Debian's, or name another one in kernel_source",
            )
        if not facts.compiler:
            raise StepFailed(
                f"cannot build a kernel on {builder.name}: because there is no compiler",
                hint="install gcc and make",
            )
        for path in (self.trees, self.store):
            if re.search(r"[\s:]", path):
                raise BadInput(
                    f"cannot build a kernel in {path!r}: because that holds a blank or a colon",
                    hint="name another folder",
                )
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

    def commands(self) -> tuple[Command, ...]:
        """Unpack the archive."""
        text = "mkdir -p {trees}\ntar -C {trees} -xf {archive}"
        values = {"trees": self.build.trees, "archive": self.build.archive}
        values["tree"], _ = self.build.by_hand
        command = Command.sh(text, **values)
        return (command.scripted_as(f"[ -d {{tree}} ] || {{\n{text}\n}}", **values),)

    def apply(self, host: Host, report: Report) -> None:
        """Unpack it beside its place and move it there, if what was read is what is wanted.

        Raises StepFailed where it is not, and leaves nothing then.
        """
        facts = self.build.require(host)
        wanted = self.checksum()
        report(f"unpacking {self.build.archive}")
        command = Command.script(
            *(script("unpack"), self.build.archive, self.build.tree(facts)),
            *(f"{program_of(wanted)}sum", wanted, f"{self.build.store}/source/.digest"),
        )
        other = (
            f"cannot unpack {self.build.archive}: because it has another checksum than {wanted}",
            "fetch it again, or look which checksum file goes with it",
        )
        host.change(command.refusing({_OTHER_CONTENT: other}).within(UNPACK_SECONDS))


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
            f"the {self.build.flavour} kernel's config does not honour {names}",
            rows=lost,
            hint="add what it depends on too: `make menuconfig` in the sources, / and its name",
        )

    def commands(self) -> tuple[Command, ...]:
        """From nothing but what is asked for."""
        text = """
            cd {tree}
            make O={out} tinyconfig
            scripts/kconfig/merge_config.sh -m -O {out} {out}/.config {out}/fragment
            make O={out} olddefconfig
        """
        tree, out = self.build.by_hand
        file = Command.file(f"{out}/fragment", fragment(self.build.options()))
        return Command.argv("mkdir", "-p", out), file, Command.sh(text, out=out, tree=tree)

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


# Kernels compiled: detached, followed, found again after a lost connection.

COMPILED_FILES = {"dom0": 1590, "domU": 1490}
SHARED_FILES = 1250
"""About how many files a build compiles, and how many of them it may find compiled already."""

BUILD_SECONDS = 8 * 3600.0
RECONNECT_SECONDS = 600.0

_FAILED, _OTHER_BUILD = 46, 47
_COMPILED = re.compile(rb"^  (?:CC|AS)  ")
_SHARED = b"begins with what was compiled in "


@dataclass(frozen=True)
class KernelBuilt(Resource):
    """A kernel compiled from its config; the same inputs are never compiled twice."""

    build: KernelBuild

    def probe(self, host: Host) -> Difference | None:
        """Whether the builder has no kernel of this key."""
        if self.build.manifest(host) is not None:
            return None
        return Difference(f"compile the {self.build.flavour} kernel on {host.name}")

    def commands(self) -> tuple[Command, ...]:
        """Compile it: the same sources, options and compiler give the same image, bit by bit."""
        tree, out = self.build.by_hand
        text = """
            cd {tree}
            export LC_ALL=C KBUILD_BUILD_USER=xenlab KBUILD_BUILD_HOST=xenlab KBUILD_BUILD_VERSION=1
            export KBUILD_BUILD_TIMESTAMP="$(date -u -r Makefile)"
            make O={out} -j"$(nproc)" bzImage
        """
        return (Command.sh(text, out=out, tree=tree),)

    def apply(self, host: Host, report: Report) -> None:
        """Compile it detached from the connection; a build that runs already is followed.

        Raises StepFailed with the log's last lines if the build fails.
        """
        facts = self.build.require(host)
        log = _Log(self.build.flavour, report)
        text = script("build").encode()
        deadline = time.monotonic() + BUILD_SECONDS
        while True:
            follow = Command.script(
                RECEIVE + script("follow"),
                *(self.build.tree(facts), self.build.work(facts), self.build.result(facts)),
                *(self.build.key(facts), self.build.first(facts), log.lines),
                *size_and_digest(text),
            )
            try:
                result = log.watch(host).run(
                    follow, input=text, check=False, timeout=deadline - time.monotonic()
                )
            except ConnectionLost:
                report("the connection was lost; the build goes on without it")
                _reconnect(host)
                continue
            if result.ok:
                return
            if result.status == _FAILED:
                why = "\n  ".join(["make failed; the log ends:", *log.tail])
                raise StepFailed(
                    f"cannot compile the {self.build.flavour} kernel: because {why}",
                    hint=f"read the whole log: {self.build.work(facts)}/log on {host.name}",
                )
            if result.status != _OTHER_BUILD:
                raise CommandFailed(result)


class _Log:
    """Counts what a build's log says, and passes it on."""

    def __init__(self, flavour: str, report: Report) -> None:
        self.lines = 0
        self.tail: list[str] = []
        self._flavour = flavour
        self._report = report
        self._files = COMPILED_FILES[flavour]
        self._compiled = 0
        self._rest = b""

    def watch(self, host: Host) -> Host:
        """The host, whose output is counted too."""

        def seen(stream: str, piece: bytes) -> None:
            if stream == "stdout":
                self._count(piece)

        return replace(host, on_output=seen)

    def _count(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self.lines += len(lines)
        self._compiled += sum(1 for line in lines if _COMPILED.match(line))
        self._files -= sum(SHARED_FILES for line in lines if line.startswith(_SHARED))
        self.tail = [*self.tail, *(line.decode("utf-8", "replace") for line in lines)][-15:]
        if lines:
            done = min(0.99, self._compiled / self._files)
            self._report(f"compiling the {self._flavour} kernel", done)


def _reconnect(host: Host) -> None:
    deadline = time.monotonic() + RECONNECT_SECONDS
    while True:
        try:
            return host.transport.connect(host.stop, seconds=deadline - time.monotonic())
        except ConnectionLost:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


# Kernels copied to where they are booted from: dom0's to /boot, the guests' to /xenboot.

GUEST_KERNELS = "/xenboot"
"""Never /boot: GRUB's scripts would take a vmlinuz-domU there for the newest native kernel."""

RELEASE = "RELEASE"
"""What stands for a kernel's release (``uname -r``) that nobody knows before it is built."""

MODULE_LISTS = ("modules.builtin", "modules.builtin.modinfo")


@dataclass(frozen=True)
class KernelInstalled(Resource):
    """A built kernel and its config on the target.

    dom0's: ``/boot/vmlinuz-RELEASE`` and ``config-RELEASE``, without which GRUB's own script for
    Xen does not take it, and the lists by which modprobe knows what is built in. The guests':
    ``/xenboot/vmlinuz-domU`` and ``config-domU``, the previous ones kept as ``.old``.
    """

    build: KernelBuild
    builder: Host
    root: str = "/"

    def paths(self, release: str) -> tuple[str, str]:
        """Where kernel and config of a release go."""
        flavour = self.build.flavour
        folder, end = ("/boot", release) if flavour == DOM0 else (GUEST_KERNELS, flavour)
        return f"{folder}/vmlinuz-{end}", f"{folder}/config-{end}"

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
        result = host.look(command)
        printed = result.stdout if result else ""
        found = parse_checksums(printed)
        rows = [
            {"file": path, "now": found.get(path, "missing")[:16], "wanted": wanted[:16]}
            for path, wanted in ((kernel, manifest["vmlinuz"]), (config, manifest["config"]))
            if found.get(path) != wanted
        ]
        if lists and not printed.startswith("listed\n"):
            rows.append({"file": lists, "now": "missing", "wanted": "made by depmod"})
        if not rows:
            return None
        return Difference(f"install {kernel} ({release})", rows=tuple(rows))

    def commands(self) -> tuple[Command, ...]:
        """Copy kernel and config to where they are booted from."""
        _, out = self.build.by_hand
        far = self.builder.name == CONTROLLER
        copy, to = ("scp {files}", "dom0:" + self.root.rstrip("/")) if far else ("cp {files}", "")
        kernel, config = self.paths(RELEASE)
        modules = f"/lib/modules/{RELEASE}"
        files = [(f"{out}/arch/x86/boot/bzImage", to + kernel), (f"{out}/.config", to + config)]
        files += [(f"{out}/{name}", to + modules) for name in MODULE_LISTS]
        text = ": > {modules}/modules.order\ndepmod {release}"
        last = [Command.sh(text, modules=modules, release=RELEASE)]
        if self.build.flavour != DOM0:
            modules, files, last = GUEST_KERNELS, files[:2], []
        copies = (Command.sh(copy, files=pair).at(CONTROLLER if far else "") for pair in files)
        return (Command.argv("mkdir", "-p", modules), *copies, *last)

    def apply(self, host: Host, report: Report) -> None:
        """Copy, compare the checksums, and only then put the new files in place.

        Raises StepFailed if a copy is damaged, or if dom0's kernel changed under a guest's.
        """
        facts = self.build.require(self.builder)
        manifest = self.build.manifest(self.builder)
        if manifest is None:
            raise StepFailed(
                f"cannot install the {self.build.flavour} kernel: because it is not compiled yet",
                hint="run the steps before this one first",
            )
        release = manifest["release"]
        report(f"copying the {self.build.flavour} kernel {release}")
        kernel, config = self.paths(release)
        others = "" if self.build.flavour == DOM0 else _boot_kernels(host)
        copies = {"vmlinuz": f"{kernel}.new", "config": f"{config}.new"}
        if self.build.flavour == DOM0:
            copies |= {name: f"/lib/modules/{release}/{name}" for name in MODULE_LISTS}
        self._copy(host, self.build.result(facts), copies)
        keep_old = "" if self.build.flavour == DOM0 else "yes"
        values = (manifest["vmlinuz"], kernel, manifest["config"], config, keep_old, release)
        command = Command.script(script("install"), *values)
        host.run(command, timeout=600)
        if self.build.flavour != DOM0 and _boot_kernels(host) != others:
            raise StepFailed(
                "cannot install the guests' kernel: because a kernel in /boot changed meanwhile",
                hint="look what else works there, then run the step again",
            )

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
