"""Replay: recorded events become one plain shell script that does the same over OpenSSH.

What makes a script of a recording more than a list of commands:

- lanes that ran side by side become background subshells, or follow each other;
- a command that was repeated until its answer changed waited for something: the script repeats it
  until it sees the recorded answer, in which numbers and identifiers may differ (`mask`);
- an attempt to connect that failed becomes waiting until the host answers;
- identifiers that a machine had made up (UUIDs, SHA-256 of what it had built) and that stand in a
  later command are looked up anew at the place where they had appeared.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_letters

from bench.events import CONTROLLER, Event, blocks

PRELUDE = Path(__file__).with_name("replay.sh")
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"

_VALUE = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{64}")
_PUBLIC_KEY = re.compile(rb"(ssh|ecdsa)-\S+ [A-Za-z0-9+/=]+( [^\n]*)?\n?")


@dataclass(frozen=True, eq=False)
class Action:
    """What the script does about one event.

    ``until``: it is repeated until it has the recorded status; with ``compare`` also the recorded
    output, with ``again`` over a new connection each time.
    """

    event: Event
    until: bool = False
    compare: bool = False
    again: bool = False


@dataclass
class Fresh:
    """Values that a machine made up: which action's output shows them, which actions use them."""

    learned: dict[Action, list[tuple[int, bytes]]] = field(default_factory=dict)
    users: set[Action] = field(default_factory=set)


def mask(output: bytes) -> bytes:
    """An output without what differs from run to run; `mask` in replay.sh does the same."""
    return re.sub(rb"[0-9]+", b"N", _VALUE.sub(b"U", output))


def write(
    chapters: Sequence[tuple[str, Sequence[Event]]],
    recording: Path,
    folder: Path,
    *,
    in_order: bool = False,
) -> Path:
    """Write plain.sh and its blobs into a folder; returns the script's path.

    ``in_order``: one command after another, also where the recorded run had several at once.
    """
    blobs = folder / "blobs"
    shutil.copytree(recording / "blobs", blobs, dirs_exist_ok=True)
    script = folder / "plain.sh"
    # a command may hold bytes that are no text; they go through as they came
    script.write_text(
        Writer(blobs, in_order=in_order).script(chapters),
        encoding="utf-8",
        errors="surrogateescape",
    )
    script.chmod(0o755)
    return script


def collapse(lane: Sequence[Event], read: Callable[[str], bytes]) -> list[Action]:
    """A lane's actions; attempts at the same thing become one that waits."""
    found: list[Action] = []
    place = 0
    while place < len(lane):
        attempts = _attempts(lane, place)
        results = [_result(lane[number], read) for number in attempts]
        first = len(results)
        while first and results[first - 1] == results[-1]:
            first -= 1
        if not first or lane[attempts[-1]].error:
            found.append(Action(lane[place]))
            place += 1
            continue
        last = attempts[first]
        final, failed = lane[last], [lane[number] for number in attempts[:first]]
        compare = any(not event.error and event.status == final.status for event in failed)
        again = any(event.kind == "close" for event in lane[place:last])
        found.append(Action(final, until=True, compare=compare, again=again))
        place = last + 1
    return found


def _attempts(lane: Sequence[Event], place: int) -> list[int]:
    """Where the same command stands from a place on, nothing but closed connections between."""
    event = lane[place]
    if event.kind != "run":
        return []
    wanted = (event.transport, event.command, event.input)
    found = []
    for number, other in enumerate(lane[place:], place):
        if other.kind == "run" and (other.transport, other.command, other.input) == wanted:
            found.append(number)
        elif other.kind != "close" or other.transport != event.transport:
            break
    return found


def _result(event: Event, read: Callable[[str], bytes]) -> tuple[object, ...]:
    return (event.error,) if event.error else (event.status, mask(read(event.output)))


def fresh_values(actions: Iterable[Action], read: Callable[[str], bytes]) -> Fresh:
    """The values that came out of a machine and went into a later command or its input.

    A value that the controller knew first (the checksum of a kernel) is the same in each run.
    """
    found = Fresh()
    born: dict[bytes, tuple[Action, int] | None] = {}
    for action in actions:
        event = action.event
        text = event.command.encode("utf-8", "surrogateescape")
        for value in _VALUE.findall(text + b"\n" + read(event.input)):
            origin = born.setdefault(value, None)
            if origin is not None:
                found.users.add(action)
                numbers = found.learned.setdefault(origin[0], [])
                if (origin[1], value) not in numbers:
                    numbers.append((origin[1], value))
        for number, value in enumerate(_VALUE.findall(read(event.output)), 1):
            known = None if event.transport == CONTROLLER else (action, number)
            born.setdefault(value, known)
    return found


def _delimiter(text: str) -> str:
    """A word that ends a here-document; no line of the text has its first letter.

    dash loses bytes of a line that begins like the delimiter and goes on with a letter beyond
    ASCII.
    """
    used = {line[:1] for line in text.split("\n")}
    return next(f"{first}ND" for first in "E" + ascii_letters if first not in used)


class Writer:
    """Writes the script; what it waits to see goes among the blobs."""

    def __init__(self, blobs: Path, *, in_order: bool = False) -> None:
        self._blobs = blobs
        self._in_order = in_order
        self._met: set[str] = set()
        self._pinned: set[str] = set()
        self._outputs: dict[Action, str] = {}
        self._fresh = Fresh()

    def script(self, chapters: Sequence[tuple[str, Sequence[Event]]]) -> str:
        """The whole text."""
        plan = [
            (name, [[collapse(lane, self._read) for lane in block] for block in blocks(events)])
            for name, events in chapters
        ]
        actions = [a for _, found in plan for block in found for lane in block for a in lane]
        self._fresh = fresh_values(sorted(actions, key=lambda a: a.event.start), self._read)
        hosts = dict.fromkeys(a.event.transport for a in actions if a.event.transport != CONTROLLER)
        lines = [PRELUDE.read_text(encoding="utf-8"), f"hosts={shlex.quote(' '.join(hosts))}"]
        for name, found in plan:
            lines += ["", f"chapter {shlex.quote(name)}"]
            for block in found:
                lines += self._block(block)
        return "\n".join([*lines, "", "chapter end", ""])

    def _block(self, lanes: list[list[Action]]) -> list[str]:
        if len(lanes) == 1 or self._in_order:
            return [line for lane in lanes for action in lane for line in self._action(action)]
        lines = ["lanes="]
        for number, lane in enumerate(lanes, 1):
            lines += [f"( lane={number}", *(line for a in lane for line in self._action(a))]
            lines.append(') & lanes="$lanes $!"')
        return [*lines, "together $lanes"]

    def _action(self, action: Action) -> list[str]:
        event = action.event
        host = shlex.quote(event.transport)
        if event.kind == "close":
            return [f"close {host}", f"answers {host}"]
        lines = []
        if event.transport != CONTROLLER and event.transport not in self._met:
            self._met.add(event.transport)
            lines.append(f"answers {host}")
        if event.kind == "upload":
            return [*lines, shlex.join(["upload", event.transport, event.local, event.remote])]
        if event.refused:
            return [f"answers {host}"]
        return lines + self._run(action, host)

    def _run(self, action: Action, host: str) -> list[str]:
        event = action.event
        learned = self._fresh.learned.get(action, [])
        pin = self._is_host_key(event)
        options = [f"-i {event.input}"] if event.input else []
        after = []
        if learned or pin:
            output = self._outputs.setdefault(action, f"{len(self._outputs) + 1}.out")
            options.append(f"-o {output}")
            after += [f"learn {output} {number} {value.decode()}" for number, value in learned]
            after += [f"pin {output} {host}"] if pin else []
        if action in self._fresh.users:
            options.append("-s")
        if action.until:
            options.append("-u" + ("c" if action.again else ""))
        if action.compare:
            options.append(f"-m {self._masked(event)}")
        status = str(event.status)
        if event.error:
            # nobody knows how it ended, and whoever comes next found out by looking
            status = "any"
            after += [f"answers {host}"] if event.transport != CONTROLLER else []
        text = event.command.rstrip("\n")
        end = _delimiter(text)
        return [" ".join(["run", *options, host, status, f"<<'{end}'"]), text, end, *after]

    def _is_host_key(self, event: Event) -> bool:
        """Whether this is the first look at the key by which the lab will know a new system."""
        if event.transport in (CONTROLLER, *self._pinned) or HOST_KEY not in event.command:
            return False
        if not _PUBLIC_KEY.fullmatch(self._read(event.output)):
            return False
        self._pinned.add(event.transport)
        return True

    def _masked(self, event: Event) -> str:
        data = mask(self._read(event.output))
        name = f"masked-{hashlib.sha256(data).hexdigest()}"
        (self._blobs / name).write_bytes(data)
        return name

    def _read(self, blob: str) -> bytes:
        return (self._blobs / blob).read_bytes() if blob else b""
