"""What a resource is, and the small ones: conditions, what must be there, once, until."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from xenlab.command import Command
from xenlab.errors import ConnectionLost, ConnectionRefused, StepFailed, Unreachable
from xenlab.host import Host
from xenlab.resources.blockdevices import Devices
from xenlab.site.disk_plan import DOM0_PARTITIONS, ESP

# What xenlab made on a disk, as the disk itself tells it to whichever system looks.
#
# The names in the partition table are the mark: they outlive a new dom0, another name of the site
# and each mkfs, and a rescue system reads them. The UUID of a file system, which each mkfs makes
# anew, tells what is there now from what will be there under the same name.

DOM0 = "dom0"
MARKS = ("dom0root", "domuswap")
"""The partitions that every site's disk has, and hardly any other's."""


@dataclass(frozen=True)
class Made:
    """Something that xenlab made: dom0, or a guest, by the name of its partition.

    ``uuid`` is that of its file system; ``what`` says in words what is there.
    """

    name: str
    uuid: str
    what: str = field(default="", compare=False)

    def __str__(self) -> str:
        """Its name and its UUID, as a consent names it that is for this very file system."""
        return f"{self.name} {self.uuid}".strip()


def made_on(found: Devices) -> tuple[Made, ...]:
    """What is lost of it where the named disk or partition is wiped; each name once.

    A partition that has no file system yet holds nothing; a disk without the mark is not ours.
    """
    if found.disk is None or not any(part.name in MARKS for part in found.disk.all()):
        return ()
    things: dict[str, Made] = {}
    for part in found.device.all() if found.device else ():
        # an array under the same name tells what is there
        if part.name and part.system and not any(each.name == part.name for each in part.parts):
            name = DOM0 if part.name in (*DOM0_PARTITIONS, ESP) else part.name
            what = f"{part.path}, {part.system}, {part.mib} MiB"
            things.setdefault(name, Made(name, part.system_uuid, what))
    return tuple(things.values())


# What a resource is: a desired state that can be probed, applied and verified.


@dataclass(frozen=True)
class Difference:
    """How the machine differs from a desired state.

    ``summary`` is one line in the imperative ("write /etc/hostname"); ``diff`` a unified diff where
    the state is text; ``rows`` a table where it is not, one dict a row; ``hint`` what to try where
    nothing can be applied. ``stays`` says what may stay as it is: a step leaves it so, unless
    somebody agreed to lose what `Resource.destroys` names; of a `Check`, what it cannot tell.
    ``unknown`` is one that nobody can tell before something else has happened.
    """

    summary: str
    diff: str = ""
    rows: tuple[dict[str, str], ...] = ()
    hint: str = ""
    stays: str = ""
    unknown: bool = False

    @staticmethod
    def of_all(found: Sequence[Difference]) -> Difference | None:
        """Several differences as one, in their order; None of none."""
        if len(found) < 2:
            return found[0] if found else None
        return Difference(
            "; ".join(each.summary for each in found),
            "\n".join(each.diff.rstrip("\n") for each in found if each.diff),
            tuple(row for each in found for row in each.rows),
            "; ".join(dict.fromkeys(each.hint for each in found if each.hint)),
            unknown=any(each.unknown for each in found),
        )


class Asked(str):
    """A report's words that ask a person for something, which the step then waits for."""


class Waiting(str):
    """A report's words about something that must come by itself: a terminal shows them too."""


class Report(Protocol):
    """Where a resource tells how far it is."""

    def __call__(self, what: str, done: float | None = None) -> None:
        """Say what is being done and, where it can be counted, the fraction (0 to 1) done."""


class Resource(ABC):
    """A desired state of a machine.

    ``probe`` only looks, with as few commands as it can (one, where possible). ``commands`` name
    what brings the state about. ``apply`` changes; it may assume that ``probe`` has just found a
    difference. ``verify`` raises StepFailed unless the state now holds.
    """

    @abstractmethod
    def probe(self, host: Host) -> Difference | None:
        """The difference between machine and desired state, None where there is none."""

    def commands(self) -> tuple[Command, ...]:
        """What brings the state about, as a person would type it in the host's root.

        `apply` runs just these, in their order, unless a resource says otherwise: it then does the
        same with more care (a file is replaced whole, a lock is waited for).
        """
        return ()

    def recorded(self) -> tuple[Command, ...]:
        """What `apply` leaves on record for later looks, as a script writes it."""
        return ()

    def apply(self, host: Host, report: Report) -> None:
        """Bring the machine into the desired state; raises StepFailed, CommandFailed."""
        for command in self.commands():
            report(command.by_hand().partition("\n")[0])
            host.change(command)

    def verify(self, host: Host) -> None:
        """Raise StepFailed unless the state holds; by default, unless a probe finds nothing."""
        difference = self.probe(host)
        if difference is not None:
            detail = f"\n{difference.diff}" if difference.diff else ""
            message = f"verification failed after applying: {difference.summary}{detail}"
            raise StepFailed(message, hint=difference.hint)

    def wipes(self) -> str:
        """The device whose content ``apply`` destroys (a path), "" where it destroys nothing."""
        return ""

    def destroys(self, host: Host) -> tuple[Made, ...]:
        """What ``apply`` would destroy now that xenlab made: each needs a consent by its name."""
        return ()

    def refusal(self, host: Host) -> str:
        """Why ``apply`` would refuse as the machine is now, "" where it would not; a plan asks."""
        return ""

    def consented(self, identity: str, lost: tuple[Made, ...] = ()) -> Resource:
        """The same, allowed to destroy what `wipes` names, on a disk with this identity alone.

        ``lost`` is what xenlab made of it and somebody agreed to lose. ``apply`` looks again in
        the very command that destroys.
        """
        return self


class Check(Resource):
    """What must hold and nothing here brings about: somebody else does, or another chapter."""

    def apply(self, host: Host, report: Report) -> None:
        """Nothing is changed: raises StepFailed unless it holds."""
        if (found := self.probe(host)) is not None:
            raise StepFailed(found.summary, hint=found.hint)


@dataclass(frozen=True)
class Said(Check):
    """What a look has found: it may stay and is said, or it is a reason to go no further."""

    found: Difference

    def probe(self, host: Host) -> Difference:
        """What was found."""
        return self.found

    def refusal(self, host: Host) -> str:
        """The reason to go no further."""
        return self.found.summary


def text_difference(summary: str, path: str, now: str | None, wanted: str) -> Difference | None:
    """A unified diff between a file's text (None: no such file) and the wanted text.

    Bytes that are not UTF-8 (`Host.read`) are shown in hexadecimal.
    """
    if now == wanted:
        return None
    lines = difflib.unified_diff(
        (now or "").splitlines(keepends=True),
        wanted.splitlines(keepends=True),
        path if now is not None else "/dev/null",
        path,
    )
    diff = "".join(line if line.endswith("\n") else line + "\n" for line in lines)
    shown = diff.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return Difference(summary, shown)


# Conditions: what must hold on a machine and cannot be brought about from here.


@dataclass(frozen=True)
class Condition(Check):
    """A command that only looks and ends with status 0; ``otherwise`` says what is wrong if not."""

    command: Command
    otherwise: str
    hint: str = ""

    def probe(self, host: Host) -> Difference | None:
        """``otherwise``, unless the command ends with status 0."""
        return None if host.test(self.command) else Difference(self.otherwise, hint=self.hint)


@dataclass(frozen=True)
class All(Resource):
    """Several states as one: it holds if all of them do."""

    parts: tuple[Resource, ...]

    def probe(self, host: Host) -> Difference | None:
        """All differences that are found, as one."""
        found = [part.probe(host) for part in self.parts]
        return Difference.of_all([each for each in found if each is not None])

    def commands(self) -> tuple[Command, ...]:
        """Those of all parts."""
        return tuple(command for part in self.parts for command in part.commands())

    def recorded(self) -> tuple[Command, ...]:
        """What all parts record."""
        return tuple(command for part in self.parts for command in part.recorded())

    def apply(self, host: Host, report: Report) -> None:
        """Apply each part that differs."""
        for part in self.parts:
            if part.probe(host) is not None:
                part.apply(host, report)


# What another chapter makes and this one needs: files and devices that must be there.


def present(host: Host, paths: Sequence[str]) -> set[str]:
    """Which of these paths are there; none of them where there is no root yet."""
    script = 'for path; do [ ! -e "$path" ] || printf "%s\\n" "$path"; done'
    found = host.run(Command.script(script, *paths), check=False)
    return set(found.stdout.splitlines()) if found.ok else set()


@dataclass(frozen=True)
class PathsExist(Check):
    """A condition: files and devices that must be there; nothing is made."""

    paths: tuple[str, ...]
    hint: str = ""

    def probe(self, host: Host) -> Difference | None:
        """Which of them are missing."""
        there = present(host, self.paths)
        missing = [path for path in self.paths if path not in there]
        if not missing:
            return None
        return Difference(f"missing: {', '.join(missing)}", hint=self.hint)


# Programs that a machine must have for a step, and which we do not install on it by ourselves.


@dataclass(frozen=True)
class Programs(Check):
    """Programs found on the machine's PATH, or files where a name begins with ``/``."""

    names: tuple[str, ...]
    hint: str = ""

    def probe(self, host: Host) -> Difference | None:
        """The names of those that are missing."""
        script = """
            for name do
                case $name in
                    /*) [ -e "$name" ] || printf '%s\\n' "$name" ;;
                    *) command -v -- "$name" > /dev/null || printf '%s\\n' "$name" ;;
                esac
            done
        """
        missing = host.run(Command.script(script, *self.names), check=False).stdout.split()
        if not missing:
            return None
        return Difference(f"{', '.join(missing)} missing on {host.name}", hint=self.hint)


# A state that counts until another has taken its place.


@dataclass(frozen=True)
class Until(All):
    """These states, unless ``replaced`` ends with status 0: a later chapter moved on from them."""

    replaced: Command

    def probe(self, host: Host) -> Difference | None:
        """All differences as one, none where another state has taken the place."""
        return None if host.test(self.replaced) else super().probe(host)


# A state of another machine than the step's own: a guest's, in a step of dom0's.

ANSWER_SECONDS = 900.0
"""How long a machine that boots may take to answer."""


@dataclass(frozen=True)
class OnHost(Resource):
    """A resource on a host of its own; what it does there is the step's output all the same."""

    name: str
    host: Host = field(compare=False)
    resource: Resource
    seconds: float = field(default=ANSWER_SECONDS, compare=False)

    def probe(self, host: Host) -> Difference | None:
        """The resource's difference, or that the machine does not answer yet."""
        try:
            return self.resource.probe(self.host)
        except (ConnectionRefused, Unreachable, ConnectionLost) as error:
            return Difference(f"once {self.name} answers: {error.message}", unknown=True)

    def commands(self) -> tuple[Command, ...]:
        """Those of the resource, as typed each over SSH."""
        return tuple(
            each if each.place else each.at(self.name) for each in self.resource.commands()
        )

    def apply(self, host: Host, report: Report) -> None:
        """Wait until the other machine answers, which may still boot; bring it into the state.

        Raises ConnectionRefused past the deadline, Unreachable at once where waiting is vain.
        """
        self.host.transport.connect(host.stop, seconds=self.seconds)
        self.resource.apply(self.host, report)

    def recorded(self) -> tuple[Command, ...]:
        """What the resource records there."""
        return tuple(each.at(self.name) for each in self.resource.recorded())

    def verify(self, host: Host) -> None:
        """Raise StepFailed unless the state holds there."""
        self.resource.verify(self.host)


# What is shown once: an action that a machine keeps on record, and that a second run leaves alone.
#
# A state can be looked at. That a guest reboots, or that a machine comes back from a power cycle,
# can only be tried; the record says that it was, and with what. It is tried on no guest again
# because the site's file is another one by now: that guest may be at work.

RECORDS = "/var/lib/xenlab/shown"


@dataclass(frozen=True)
class Once(Resource):
    """An action that was carried out on this machine, and verified, with whatever it was.

    ``about`` is what it is shown with (a guest, a list of guests), which the record says.
    Whoever wants to see the action again removes the record, ``/var/lib/xenlab/shown/NAME``.
    """

    name: str
    action: Resource
    about: str = ""
    records: str = RECORDS

    def probe(self, host: Host) -> Difference | None:
        """None where there is a record; else what the action would do."""
        # a record of earlier days has the guest in its name: NAME-GUEST
        script = 'for record in "$1" "$1"-*; do [ ! -s "$record" ] || exit 0; done; exit 1'
        if host.test(Command.script(script, self._path)):
            return None
        return self.action.probe(host) or Difference(f"show {self.name}")

    def commands(self) -> tuple[Command, ...]:
        """Those of the action."""
        return self.action.commands()

    def apply(self, host: Host, report: Report) -> None:
        """Carry the action out."""
        self.action.apply(host, report)

    def recorded(self) -> tuple[Command, ...]:
        """The record, and those of the action."""
        folder = Command.argv("mkdir", "-p", self.records)
        return (*self.action.recorded(), folder, Command.file(self._path, self._record))

    def verify(self, host: Host) -> None:
        """Put on record that the action's own verification holds."""
        self.action.verify(host)
        host.write(self._path, self._record)

    @property
    def _path(self) -> str:
        return f"{self.records}/{self.name}"

    @property
    def _record(self) -> str:
        return f"{self.name}: {self.about or 'shown'}\n"
