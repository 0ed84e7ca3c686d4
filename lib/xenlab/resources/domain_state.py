"""What xl says of the domains: which there are, and whether each runs; all who ask look here.

``xl domid`` answers for every domain that there is, also for one that is paused, has crashed or is
being taken down: only the state column of ``xl list`` tells (xl(1), "list").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host

CONSOLE_LOGS = "/var/log/xen/console"
CONSOLE_LINES = 24
"""How many of a crashed guest's last lines are shown."""

BOOT_SECONDS = 300
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
        raise CommandFailed(found, hint="xl works only in a dom0 that runs on Xen")
    return parse_list(found.stdout)


def domain(host: Host, name: str) -> Domain | None:
    """The domain of a name, None if there is none; raises CommandFailed where xl cannot say."""
    return next((one for one in domains(host) if one.name == name), None)


def require_running(host: Host, name: str) -> Domain:
    """The domain of a name; raises StepFailed, with a crashed one's last lines, unless it runs."""
    found = domain(host, name)
    if found is None:
        raise StepFailed(f"{name} does not run", hint="create it first", where=host.name)
    if not found.runs:
        hint = f"xl unpause {name}" if found.state == PAUSED else "create it again"
        raise StepFailed(_stands(host, found), hint=hint, where=host.name)
    return found


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
    young = Command.form(
        "grep -qs control_d /proc/xen/capabilities && awk '{ exit $1 >= %s }' /proc/uptime",
        BOOT_SECONDS,
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
