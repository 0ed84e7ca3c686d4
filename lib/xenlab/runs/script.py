"""The runbook of a site as plain shell: its chapters, each a file that needs no xenlab to run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from textwrap import indent
from typing import Any

from xenlab.chapter.opening import RUNBOOK
from xenlab.chapter.step import Wanted, made
from xenlab.command import CONTROLLER, MACHINE, Command
from xenlab.errors import BadInput, CommandFailed, StepFailed
from xenlab.host import Host, Transport
from xenlab.platform.choice import PlatformAnswers
from xenlab.resources.base import Resource
from xenlab.resources.disk import INSTALLED_ROOT
from xenlab.resources.ssh_access import way_to, way_to_guest
from xenlab.runs.execute import RunPlan, code_cells, heading
from xenlab.site.rules import LOGINS
from xenlab.site.schema import Parameters
from xenlab.transport.local import Local
from xenlab.transport.ssh_config import SSH_PORT

BOOTED = "05"
"""The first chapter that works in the installed system itself; those before it mount its root."""

END = "XENLAB"
"""What ends the text for a machine; that text may hold here-documents of its own."""

_HEAD = """\
#!/bin/sh
# {chapter}
# The runbook of the site {site}, written by xenlab script. Run it on the controller, the chapters
# in their order: sh {name}.sh
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

ssh() {{ {ssh}; }}
scp() {{ command scp -q {options} -o BatchMode=yes "$@"; }}

# on HOST ROOT: run what comes in over SSH, as root, in that root, once the host answers
on() {{
    until ssh "$1" true < /dev/null; do sleep 5; done
    ssh "$1" "exec chroot $2 /bin/sh -c '
        umask 022
        export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
        script=\\$(mktemp) && cat > \\"\\$script\\" && sh -eu \\"\\$script\\" < /dev/null
        status=\\$?
        rm -f \\"\\$script\\"
        exit \\$status'"
}}

# what only the machine can tell stands in capitals until it is asked
filled() {{
    ssh {host} sfdisk --dump {disk} < /dev/null \\
        | sed -n 's|.* uuid=\\([^,]*\\), name="\\([^"]*\\)".*|s/UUID-of-\\2\\\\b/\\L\\1/g|p' \\
        > "$scratch/sed"
{known}    sed -f "$scratch/sed"
}}
"""

_KNOWN = """\
    printf 's/\\\\b{word}\\\\b/%s/g\\n' "$({command} < /dev/null 2> /dev/null)" >> "$scratch/sed"
"""


class _Nobody:
    """A machine that is not asked, as if there were no root yet: a script is written without it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def connect(self, *_: object, **__: object) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def execute(self, *_: object, **__: object) -> tuple[int, bytes, bytes]:
        """Fail as a look does that finds nothing."""
        return 44, b"", b"a script is written without a look at the machine"


@dataclass(frozen=True)
class Written:
    """A step that is written down: its title, where its commands run, and its resources.

    ``place`` is `CONTROLLER` or a root of dom0's; ``unknown`` says why nobody can tell what there
    is to do before the machine is asked.
    """

    title: str
    place: str
    resources: tuple[Resource, ...] = ()
    unknown: str = ""

    def blocks(self) -> Iterator[tuple[str, str]]:
        """Where commands run and their text, what xenlab's later looks go by at the end."""
        if self.unknown:
            yield CONTROLLER, indent(self.unknown, "# ") + "\nexit 1"
        done = [one for each in self.resources for one in each.commands()]
        records = [one for each in self.resources for one in each.recorded()]
        for note, commands in (("", done), ("# what xenlab check goes by\n", records)):
            placed = ((self._place(one), one.in_script()) for one in commands)
            for place, same in groupby(placed, lambda each: each[0]):
                texts = [text for (_, text), _ in groupby(same) if text]
                if texts:
                    yield place, note + "\n".join(texts)

    def _place(self, command: Command) -> str:
        return "/" if command.place == MACHINE else command.place or self.place


class Runbook(PlatformAnswers):
    """What a chapter's cells get in the place of a `Chapter`: its steps are written down."""

    def __init__(self, name: str, site: Parameters) -> None:
        super().__init__(site)
        self.name = name
        self.mode = "plan"
        self.root = INSTALLED_ROOT if name < BOOTED else "/"
        self.controller = Host(Local())
        self.host = self._host(site.ssh.host)
        self.target = self.host.inside(self.root)
        self.steps: list[Written] = []
        self.guests: dict[str, Host] = {}

    def guest(self, name: str) -> Host:
        """A guest."""
        self.guests[name] = self._host(name)
        return self.guests[name]

    def ensure(self, title: str, *resources: Wanted, on: Host | None = None) -> None:
        """Write down what brings the states about."""
        self._write(title, lambda: made(resources), on)

    run = ensure

    def each(
        self,
        title: str,
        resources: Mapping[str, Resource] | Callable[[], Mapping[str, Resource]],
        on: Host | None = None,
    ) -> None:
        """Write down what brings the labelled states about."""
        parts = resources if callable(resources) else lambda: resources
        self._write(title, lambda: parts().values(), on)

    def check(self, title: str, *_: object, **__: object) -> None:
        """Nothing: a look changes nothing."""

    needs = facts = picture = check

    def close(self) -> None:
        """Nothing to do."""

    def _write(
        self, title: str, resources: Callable[[], Iterable[Resource]], on: Host | None
    ) -> None:
        host = on or self.target
        place = CONTROLLER if host == self.controller else host.root
        try:
            self.steps.append(Written(title, place, tuple(resources())))
        except (CommandFailed, StepFailed) as error:
            self.steps.append(Written(title, place, unknown=error.message))

    def _host(self, name: str) -> Host:
        nobody: Any = _Nobody(name)
        transport: Transport = nobody
        return Host(transport)


def runbook(plan: RunPlan, notebook: Path) -> Runbook:
    """A chapter of a plan, its cells run with nobody to be asked."""
    written = Runbook(notebook.stem, plan.site)
    namespace: dict[str, Any] = {**plan.values[notebook.stem], RUNBOOK: written}
    for code in code_cells(notebook):
        exec(compile(code, str(notebook), "exec"), namespace)
    return written


def write(plan: RunPlan, folder: Path, known: Mapping[str, Command]) -> list[Path]:
    """Write each chapter of a plan that has commands into a new folder; the files' paths.

    ``known`` are words that stand for what nobody knows before the machine or a build tells it,
    each with what asks for it on the controller. No machine is needed. Raises FileExistsError, and
    BadInput for a machine that is reached in two ways, or where a login becomes root.
    """
    if any(getattr(plan.site, key).become for key in LOGINS):
        raise BadInput(
            "cannot write the runbook: because a login becomes root (become), and plain shell "
            "types no password",
            hint="leave become out, and log in as root to run it",
        )
    if way_to(plan.site).other:
        raise BadInput(
            "cannot write the runbook: because the rescue system and dom0 are reached in two ways "
            "(dom0_ssh, ssh.rescue_address), and plain shell does not see which of them runs",
            hint="leave these keys out, and say in the ssh_config how to reach the machine",
        )
    folder.mkdir(parents=True)
    written = []
    for notebook in plan.notebooks:
        chapter = runbook(plan, notebook)
        if any(block for step in chapter.steps for block in step.blocks()):
            path = folder / f"{notebook.stem}.sh"
            path.write_text(as_text(notebook, chapter, known), encoding="utf-8")
            written.append(path)
    return written


def as_text(notebook: Path, chapter: Runbook, known: Mapping[str, Command]) -> str:
    """A chapter's file: how to reach the machine, then each step's commands."""
    site = chapter.site
    asked = "".join(_KNOWN.format(word=k, command=c.in_script()) for k, c in known.items())
    head = _HEAD.format(
        chapter=heading(notebook),
        name=notebook.stem,
        site=site.site,
        options=_options(site),
        ssh=_ssh(site, chapter.guests),
        host=Command.argv(site.ssh.host).text,
        disk=Command.argv(site.disk).text,
        known=asked,
    )
    parts = [head]
    for step in chapter.steps:
        blocks = [_block(site, place, text, known) for place, text in step.blocks()]
        parts += [f"echo {Command.argv(step.title).text}", *blocks] if blocks else []
    return "\n".join(parts)


def _block(site: Parameters, place: str, text: str, known: Mapping[str, Command]) -> str:
    needed = {word: ask for word, ask in known.items() if re.search(rf"\b{word}\b", text)}
    if place == CONTROLLER:
        for word in needed:
            text = re.sub(rf"\b{word}\b", f"${word}", text)
        asked = "".join(f"{word}=$({ask.in_script()})\n" for word, ask in needed.items())
        host = Command.argv(site.ssh.host).text
        return asked + re.sub(r"(?<![\w./-])dom0(?=[: ])", lambda _: host, text) + "\n"
    end = END
    while end in text.split("\n"):
        end += "_"
    filled = needed or "UUID-of-" in text
    host, root = (site.ssh.host, place) if place.startswith("/") else (place, "/")
    call = Command.argv("on", host, root).text
    first = f"filled <<'{end}' | {call}" if filled else f"{call} <<'{end}'"
    return f"{first}\n{text}\n{end}\n"


def _ssh(site: Parameters, guests: Iterable[str]) -> str:
    """How ssh is called; a guest that no ssh_config knows lies behind the site's machine."""
    usual, machine = f"{_options(site)} -o BatchMode=yes", Command.argv(site.ssh.host).text
    cases = ""
    for way in (way_to_guest(site, name) for name in guests):
        settings, to = {}, way.host
        if way.behind:
            to = machine
            settings = {
                "HostName": way.address,
                "Port": way.port or SSH_PORT,
                "HostKeyAlias": way.host,
                "UserKnownHostsFile": way.known_hosts,
                "ProxyCommand": f"ssh {usual} -W %h:%p {machine}",
            }
        own, key = site.guest_ssh, str(Path(site.guest_ssh.identity).expanduser().absolute())
        settings |= {"Port": own.port} if own.port else {}
        settings |= {"User": own.user} if own.user else {}
        settings |= {"IdentityFile": key} if own.identity else {}
        if settings:
            # the first word on a setting counts
            words = Command.argv(*(f"-o{name}={value}" for name, value in settings.items())).text
            cases += f'    {way.host}) shift; command ssh {words} {usual} {to} "$@" ;;\n'
    command = f'command ssh {usual} "$@"'
    return f"case $1 in\n{cases}    *) {command} ;;\n    esac" if cases else command


def _options(site: Parameters) -> str:
    ssh = site.ssh
    words = ["-F", str(Path(ssh.config).expanduser().absolute())] if ssh.config else []
    words += ["-o", f"Port={ssh.port}"] if ssh.port else []
    words += ["-o", f"User={ssh.user}"] if ssh.user else []
    words += ["-i", str(Path(ssh.identity).expanduser().absolute())] if ssh.identity else []
    words += ["-o", f"UserKnownHostsFile={ssh.known_hosts}"] if ssh.known_hosts else []
    return Command.argv(*words).text
