"""Xen on the machine: the hypervisor, what xl says of domains, their configuration files."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from xenlab.command import SAID, Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import UPTIME, Host
from xenlab.resources.base import Difference, Report, Resource, text_difference
from xenlab.resources.nfs import parse_exports

# The hypervisor's image in /boot and the names that it is known by.
#
# Howto: „Die eigentliche Datei heisst bei meiner Version xen-3.0.0.gz, wobei xen.gz, xen-3.gz und
# xen-3.0.gz darauf verlinkt sind.“

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

    def commands(self) -> tuple[Command, ...]:
        """The links to the image of the highest version."""
        text = """
            cd /boot
            image=$(find . -name 'xen-*.gz' -type f -printf '%f\\n' | sort -V | tail -n 1)
            version=$(echo "$image" | sed 's/xen-\\([0-9]*[.][0-9]*\\).*/\\1/')
            for name in xen.gz xen-${version%.*}.gz xen-$version.gz; do
                ln -sf "$image" "$name"
            done
        """
        return (Command.sh(text),)

    def apply(self, host: Host, report: Report) -> None:
        """Make the links. Raises StepFailed where there is no hypervisor."""
        image = newest_image(self._look(host))
        if not image:
            raise StepFailed(
                "cannot link the hypervisor's names: because there is no hypervisor in /boot",
                hint="run chapter 02_base_system",
            )
        set_links(host, "/boot", dict.fromkeys(link_names(image), image))

    def verify(self, host: Host) -> None:
        """The links stand, and what they lead to is an image that GRUB can start as multiboot2."""
        super().verify(host)
        for command in ("gzip -t /boot/xen.gz", "grub-file --is-x86-multiboot2 /boot/xen.gz"):
            if not host.test(command):
                raise StepFailed(
                    f"cannot boot Xen: because GRUB cannot start /boot/xen.gz ({command})",
                    hint="install the hypervisor again: chapter 02_base_system",
                )

    def _look(self, host: Host) -> dict[str, str]:
        return found_links(host, "/boot", "xen*.gz")


def found_links(host: Host, folder: str, names: str = "*") -> dict[str, str]:
    """What lies in a folder under such names, and what it points at ("" for what is no link)."""
    script = """
        for entry in "$1"/$2; do
            [ -e "$entry" ] || [ -L "$entry" ] || continue
            printf '%s\\t%s\\n' "${entry##*/}" "$(readlink -- "$entry" || :)"
        done
    """
    result = host.look(Command.script(script, folder, names))
    pairs = (line.partition("\t") for line in (result.stdout if result else "").splitlines())
    return {name: target for name, _, target in pairs}


def set_links(host: Host, folder: str, links: Mapping[str, str]) -> None:
    """Make these links in a folder, names and what they point at; "" takes one away."""
    script = """
        folder=$1; shift
        mkdir -p -- "$folder"
        while [ $# -gt 0 ]; do
            if [ -n "$2" ]; then ln -sfnT -- "$2" "$folder/$1"; else rm -f -- "$folder/$1"; fi
            shift 2
        done
    """
    host.run(Command.script(script, folder, *(word for pair in links.items() for word in pair)))


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


# The machine runs Xen, with dom0's own kernel and the options that were asked for.

TOOLSTACK_SECONDS = 600.0
"""How long Xen's services may take after a boot until `xl` answers."""

_NO_XL = "there is no xl"

_PROBE = (
    UPTIME
    + f"""
    [ "$(cat /sys/hypervisor/type 2> /dev/null)" = xen ] || exit 44
    uname -r
    cat /proc/cmdline
    grep -qs control_d /proc/xen/capabilities || exit 0
    echo dom0
    command -v xl > /dev/null || {{ echo '{_NO_XL}'; exit 0; }}
    # right after a boot Xen's services may still be starting
    answers() {{ said=$(xl info 2> /dev/null); }}
    wait_until 20 answers || exit 0
    printf '%s\\n' "$said" | sed -n 's/^xen_commandline *: *//p'
"""
)


@dataclass(frozen=True)
class XenState:
    """What a machine says that it runs. ``commandline`` is Xen's, "" while `xl` does not answer."""

    release: str
    kernel_words: tuple[str, ...]
    dom0: bool
    commandline: str


def xen_state(host: Host) -> XenState | None:
    """What the machine runs, None where that is not Xen (map.md: is_xen, is_dom0)."""
    result = host.inside("/").look(Command.script(_PROBE), absent=(44,))
    return None if result is None else parse_state(result.stdout)


def parse_state(text: str) -> XenState:
    """The answer of the probe's command; raises StepFailed where dom0 has no `xl` to be asked."""
    release, kernel, dom0, *rest = [*text.splitlines(), "", "", ""]
    if rest[0] == _NO_XL:
        raise StepFailed(
            f"cannot tell how Xen was booted: because {_NO_XL} in dom0",
            hint="install Xen's tools there: chapter 02_base_system",
        )
    return XenState(release, tuple(kernel.split()), dom0 == "dom0", rest[0])


def compare(
    state: XenState | None, release: str, xen_words: list[str], dom0_words: list[str]
) -> Difference | None:
    """How that differs from a kernel release and the words of both command lines."""
    if state is None:
        return Difference("boot the disk: GRUB, Xen, dom0")
    rows = []

    def row(what: str, now: str, wanted: str) -> None:
        rows.append({"what": what, "now": now, "wanted": wanted})

    if not state.dom0:
        row("privileged domain", "no", "yes")
    if state.release != release:
        row("kernel", state.release, release)
    lost = [word for word in dom0_words if word not in state.kernel_words]
    if lost:
        row("kernel's options", " ".join(state.kernel_words), " ".join(lost))
    found = state.commandline.split()
    lost = [word for word in xen_words if word not in found]
    if lost:
        row("Xen's options", state.commandline, " ".join(lost))
    if not rows:
        return None
    return Difference("boot the disk again: what runs is not what is asked for", rows=tuple(rows))


def toolstack_answers() -> Command:
    """What a person types to see that Xen's services answer; a script waits until they do."""
    return Command("xl info").scripted_as("until xl info; do sleep 2; done")


def wait_for_toolstack(host: Host) -> None:
    """Wait until Xen's services answer after a boot.

    Raises StepFailed at once where the machine does not run Xen, or past the deadline.
    """
    deadline = time.monotonic() + TOOLSTACK_SECONDS
    while True:
        state = xen_state(host)
        if state is None:
            raise StepFailed(
                "cannot use xl: because the machine came up without Xen: its kernel was booted",
                hint="look at GRUB's menu on the console",
            )
        if state.dom0 and state.commandline:
            return
        if time.monotonic() > deadline:
            raise StepFailed(
                f"cannot use xl: because it does not answer within {TOOLSTACK_SECONDS:.0f} s",
                hint="check that xenstored runs; look at xl info",
            )
        time.sleep(2)


# What xl says of the domains: which there are, and whether each runs; all who ask look here.
#
# ``xl domid`` answers for every domain that there is, also for one that is paused, has crashed or
# is being taken down: only the state column of ``xl list`` tells (xl(1), "list").

CONSOLE_LOGS = "/var/log/xen/console"
CONSOLE_LINES = 24
"""How many of a crashed guest's last lines are shown."""

LONG_BOOT_SECONDS = 300
"""How long after dom0's boot guests that start with it may still come."""

RUNNING, PAUSED, SHUT_DOWN, CRASHED, DYING = "running", "paused", "shut down", "crashed", "dying"

# One that is being taken down may have crashed before, and a crash is a way of shutting down.
_LETTERS = (("d", DYING), ("c", CRASHED), ("s", SHUT_DOWN), ("p", PAUSED))
_ROW = re.compile(
    r"(?P<name>.+?)\s+(?P<id>\d+)\s+(?P<memory>\d+)\s+(?P<vcpus>\d+)\s+"
    r"(?P<state>[r-][b-][p-][s-][c-][d-])\s+(?P<seconds>\d+(?:\.\d+)?)"
)

STATE_OF = """
# the letters of a domain's state: nothing where there is none
state_of() { xl list "$1" 2> /dev/null | awk 'NR > 1 { print $(NF - 1) }'; }
"""


@dataclass(frozen=True)
class Domain:
    """A domain that there is; ``state`` is "running" whether it computes, waits or is in between.

    ``seconds`` are those of processor time.
    """

    name: str
    id: int
    memory_mib: int
    vcpus: int
    state: str
    seconds: float

    @property
    def runs(self) -> bool:
        """Whether it runs: a paused, crashed or dying one does nothing."""
        return self.state == RUNNING

    def __str__(self) -> str:
        return f"domain {self.id}" + ("" if self.runs else f", {self.state}")


def parse_list(text: str) -> list[Domain]:
    """The domains that ``xl list`` prints; a line that is no domain's is passed over."""
    rows = (_ROW.fullmatch(line.strip()) for line in text.splitlines())
    return [
        Domain(
            row["name"],
            int(row["id"]),
            int(row["memory"]),
            int(row["vcpus"]),
            next((word for letter, word in _LETTERS if letter in row["state"]), RUNNING),
            float(row["seconds"]),
        )
        for row in rows
        if row
    ]


def domains(host: Host) -> list[Domain]:
    """Every domain that there is; raises CommandFailed where xl cannot say."""
    found = host.run(Command.argv("xl", "list"), check=False)
    if not found.ok:
        raise CommandFailed(found, hint="boot the disk: chapter 04_grub")
    return parse_list(found.stdout)


def domain(host: Host, name: str) -> Domain | None:
    """The domain of a name, None if there is none; raises CommandFailed where xl cannot say."""
    return next((one for one in domains(host) if one.name == name), None)


def require_running(host: Host, name: str) -> Domain:
    """The domain of a name; raises StepFailed, with a crashed one's last lines, unless it runs."""
    found = domain(host, name)
    if found is None:
        why, hint = f"{name} does not run", "create it first"
    elif not found.runs:
        why = _stands(host, found)
        hint = f"xl unpause {name}" if found.state == PAUSED else "create it again"
    else:
        return found
    raise StepFailed(f"cannot reach the guest: because {why}", hint=hint, where=host.name)


def standing(host: Host, name: str) -> str:
    """Why nobody needs to wait for a guest: its domain is not there, or does not run; "" otherwise.

    In dom0's first minutes one that is not there may come yet.
    """
    try:
        found = domain(host, name)
    except CommandFailed:
        found = None
    if found is not None:
        return "" if found.runs else _stands(host, found)
    young = Command.sh(
        "grep -qs control_d /proc/xen/capabilities && awk '{ exit $1 >= '{old}' }' /proc/uptime",
        old=LONG_BOOT_SECONDS,
    )
    return "" if host.inside("/").test(young) else f"{name} does not run: there is no such domain"


def _stands(host: Host, found: Domain) -> str:
    said = f"{found.name} does not run: it is {found.state} (domain {found.id})"
    return said + last_words(host, found)


def last_words(host: Host, of: Domain) -> str:
    """What a crashed domain wrote last to its console, ready for a message; "" for another."""
    if of.state != CRASHED:
        return ""
    command = Command.argv("tail", "-n", CONSOLE_LINES, "--", log_path(of.name))
    lines = host.run(command, check=False).stdout.strip().splitlines()
    if not lines:
        return ""
    return "\nlast lines of its console:\n  " + "\n  ".join(line.rstrip() for line in lines)


def log_path(name: str) -> str:
    """Where xenconsoled keeps the console log of a guest."""
    return f"{CONSOLE_LOGS}/guest-{name}.log"


# Domains' configuration files: written by one chapter, added to by later ones, accepted by xl.
#
# A chapter that gives a guest something more (a second interface, another /usr) adds a block of its
# own at the end of the file. Each block begins with a line that names its chapter; the chapter that
# wrote the file leaves what stands below its own part alone.

MARK = "#+ chapter "
"""What the first line of an addition begins with; the chapter's name follows."""


@dataclass(frozen=True)
class DomainConfig(Resource):
    """The first part of a domain's configuration file; additions below it stay."""

    path: str
    text: str

    def probe(self, host: Host) -> Difference | None:
        """The diff of the first part."""
        now = host.read(self.path)
        first = None if now is None else parts(now)[""]
        verb = "create" if now is None else "write"
        return text_difference(f"{verb} {self.path}", self.path, first, self.text)

    def commands(self) -> tuple[Command, ...]:
        """The file; xl reads and checks it without creating anything."""
        return Command.file(self.path, self.text), Command.argv("xl", "create", "-n", self.path)

    def apply(self, host: Host, report: Report) -> None:
        """Write it, once xl has accepted it."""
        found = parts(host.read(self.path) or "")
        write_accepted(host, self.path, joined(found | {"": self.text}))


@dataclass(frozen=True)
class DomainAddition(Resource):
    """A chapter's block in a domain's configuration file; no block at all where ``text`` is ""."""

    path: str
    chapter: str
    text: str

    def probe(self, host: Host) -> Difference | None:
        """The diff of the block."""
        now = parts(host.read(self.path) or "").get(self.chapter)
        summary = f"{'add to' if self.text else 'take from'} {self.path}"
        return text_difference(summary, self.path, now, self.text) if now or self.text else None

    def commands(self) -> tuple[Command, ...]:
        """The block, at the end of the file; to take it out is an editor's business."""
        if not self.text:
            text = """
                awk -v mark={mark} '/^#[+] chapter / { out = $0 == mark } !out' {path} > {path}.new
                mv {path}.new {path}
            """
            return (Command.sh(text, mark=f"{MARK}{self.chapter}", path=self.path),)
        block = f"{MARK}{self.chapter}\n{self.text}"
        return (Command.file(self.path, block, into=">>"),)

    def apply(self, host: Host, report: Report) -> None:
        """Write the file with the block, once xl has accepted it."""
        found = parts(host.read(self.path) or "")
        if not found[""]:
            raise StepFailed(
                f"cannot add to a domain's configuration: because there is no {self.path}",
                hint="run chapter 10_domain_configuration",
            )
        write_accepted(host, self.path, joined(found | {self.chapter: self.text}))


def parts(text: str) -> dict[str, str]:
    """A file taken apart: the first part under "", each addition under its chapter's name."""
    pieces = re.split(rf"^{re.escape(MARK)}(.*)\n", text, flags=re.MULTILINE)
    return {"": pieces[0]} | dict(zip(pieces[1::2], pieces[2::2], strict=True))


def joined(found: dict[str, str]) -> str:
    """The parts as one file, the additions in the order of their chapters."""
    additions = (f"{MARK}{name}\n{found[name]}" for name in sorted(found) if name and found[name])
    return found[""] + "".join(additions)


def write_accepted(host: Host, path: str, text: str) -> None:
    """Write a configuration beside its place; ``xl create -n`` must accept it before it goes there.

    xl reads and checks so without creating; it does not even do this off Xen. Raises StepFailed
    with xl's own words.
    """
    draft = f"{path}.draft"
    host.write(draft, text)
    script = """
        trap 'rm -f -- "$1"' EXIT
        xl create -n "$1" < /dev/null > /dev/null || exit 45
    """
    refused = (
        f"cannot write {path}: because xl refuses it: {SAID}",
        "correct what it names in the site's parameters",
    )
    host.change(Command.script(script, draft).refusing({45: refused}))
    host.write(path, text)


# Guests that start together with dom0 (howto: „Auto-DomainU-Boot“).

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
        found, wanted = found_links(host, self.folder), self.wanted()
        if found == wanted:
            return None
        rows = tuple(
            {"link": name, "now": found.get(name, "-"), "wanted": wanted.get(name, "-")}
            for name in sorted({*found, *wanted})
            if found.get(name) != wanted.get(name)
        )
        return Difference(f"let {', '.join(self.names) or 'no guest'} start with dom0", rows=rows)

    def commands(self) -> tuple[Command, ...]:
        """The links, in the order of starting."""
        return (
            Command.argv("mkdir", "-p", self.folder),
            *(
                Command.argv("ln", "-sfn", target, f"{self.folder}/{name}")
                for name, target in self.wanted().items()
            ),
        )

    def apply(self, host: Host, report: Report) -> None:
        """Make the links, remove other ones; raises StepFailed where a file is in the way."""
        found, wanted = found_links(host, self.folder), self.wanted()
        if refused := self._foreign(found):
            hint = "move it away: xendomains would start a guest from it"
            raise StepFailed(refused, hint=hint)
        set_links(host, self.folder, dict.fromkeys(found, "") | wanted)

    def refusal(self, host: Host) -> str:
        """That a file is in the way."""
        return self._foreign(found_links(host, self.folder))

    def _foreign(self, found: dict[str, str]) -> str:
        files = ", ".join(name for name, target in found.items() if not target)
        why = f"cannot link guests in {self.folder}: because it holds what is no link: {files}"
        return why if files else ""


# The finished host at a glance: domains, bridges, addresses, exports, who starts with dom0.

_SECTION = "----"
_LOOK = f"""
xl list
echo {_SECTION}
ip -json address show
echo {_SECTION}
exportfs -s 2> /dev/null || :
echo {_SECTION}
for link in /etc/xen/auto/*; do [ ! -e "$link" ] || readlink -f -- "$link"; done
"""


def overview(host: Host) -> dict[str, str] | None:
    """What a host has, in words by heading; None where it runs no Xen."""
    result = host.run(Command(f"set -e\n{_LOOK}"), check=False)
    return parse_overview(result.stdout) if result.ok else None


def parse_overview(text: str) -> dict[str, str]:
    """The answer of the look: four sections."""
    domains, addresses, exports, started = (text.split(f"{_SECTION}\n") + [""] * 4)[:4]
    devices = [d for d in json.loads(addresses or "[]") if "ifname" in d]
    masters = sorted({d["master"] for d in devices if "master" in d})
    ports = {m: [d["ifname"] for d in devices if d.get("master") == m] for m in masters}
    own = [
        f"{d['ifname']} {a['local']}/{a['prefixlen']}"
        for d in devices
        for a in d.get("addr_info", [])
        if a.get("family") == "inet" and d["ifname"] != "lo"
    ]
    names = (path.rpartition("/")[2].removesuffix(".cfg") for path in started.split())
    found = {
        "domains": ", ".join(
            f"{one.name} ({one.memory_mib} MiB{'' if one.runs else f', {one.state}'})"
            for one in parse_list(domains)
        ),
        "bridges": "; ".join(f"{bridge}: {', '.join(ports[bridge])}" for bridge in masters),
        "dom0's addresses": ", ".join(own),
        "exports": ", ".join(f"{each.path} to {each.client}" for each in parse_exports(exports)),
        "start with dom0": ", ".join(names),
    }
    return {heading: words for heading, words in found.items() if words}
