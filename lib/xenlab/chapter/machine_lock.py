"""One run at a time on a machine: a lock there, held over the connection and gone with it.

Whoever works on a machine has an entry below /run/xenlab there, which a process of his connection
keeps locked (flock(1)). Entries that nobody keeps locked are nobody's any more. So a killed
controller leaves no lock behind, nor does a reboot.

But the command that it was giving may go on. Nobody but who has the lock changes the machine: what
other runs began to change there, and is still at work, is told to whoever takes it.
"""

from __future__ import annotations

import getpass
import json
import platform
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from xenlab.chapter.recorder import CHANGE
from xenlab.command import Command
from xenlab.durable import kept_file
from xenlab.errors import ConnectionLost, MachineBusy, NoConnection, StepFailed
from xenlab.host import UPTIME, Host, Watcher
from xenlab.journal import Journal
from xenlab.transport.channel import Conversation
from xenlab.transport.ssh import SSH

# What an earlier attempt at a step, or another run, has left running: it is ended, and told.

WAIT_SECONDS = 2.0
"""How often it is looked whether an attempt is over that is waited for."""


@dataclass(frozen=True)
class Ended:
    """How many processes of an attempt were ended; which guests did not answer meanwhile."""

    attempt: Mapping[str, Any]
    count: int
    silent: tuple[str, ...]

    def __str__(self) -> str:
        unknown = f"; {', '.join(self.silent)} did not answer" if self.silent else ""
        return f"{self.count} processes ended{unknown}"


@dataclass(frozen=True)
class Stray:
    """A step of another run that is still at work on the machine, though nobody follows it."""

    mark: str
    since: datetime

    def ended(self, machine: Host) -> str:
        """End its processes there; a line for a person."""
        run, number, _ = self.mark.rsplit("/", 2)
        count = machine.end_marked(self.mark)
        return (
            f"step {number} of run {run} was still at work here, since "
            f"{self.since:%Y-%m-%d %H:%M:%S} UTC: {count} processes ended"
        )


def strays(processes: Iterable[str]) -> tuple[Stray, ...]:
    """The steps that processes belong to, oldest first; of each its age in seconds and its mark."""
    ages: dict[str, int] = {}
    for process in processes:
        age, _, mark = process.partition(" ")
        step = mark.rsplit("/", 2)[0]
        ages[step] = max(int(age), ages.get(step, 0))
    now = datetime.now(UTC)
    oldest_first = sorted(ages.items(), key=lambda item: -item[1])
    return tuple(Stray(mark, now - timedelta(seconds=age)) for mark, age in oldest_first)


def end_attempt(
    attempt: Mapping[str, Any], machines: Sequence[Host], guests: Sequence[Host]
) -> Ended:
    """End the processes of an attempt on each machine, whatever its last record says.

    Steps of later chapters work in guests too: those of them that run.
    """
    mark = attempt["mark"]
    count = sum(machine.end_marked(mark) for machine in machines)
    silent = []
    for guest in guests:
        try:
            count += guest.end_marked(mark)
        except (NoConnection, ConnectionLost):
            silent.append(guest.name)
    return Ended(attempt, count, tuple(silent))


def wait_for(
    attempts: Iterable[Mapping[str, Any]],
    machines: Sequence[Host],
    say: Callable[[str], None],
    stop: threading.Event,
    seconds: float,
) -> None:
    """Wait until attempts that have no end on record are at work nowhere, or for so long.

    A machine that does not answer is not waited for. Raises KeyboardInterrupt once ``stop`` is set.
    """
    deadline = time.monotonic() + seconds

    def at_work(machine: Host, mark: str) -> bool:
        try:
            return machine.has_marked(mark)
        except (NoConnection, ConnectionLost):
            return False

    for attempt in attempts:
        while attempt["phase"] == "running" and time.monotonic() < deadline:
            if not any(at_work(machine, attempt["mark"]) for machine in machines):
                break
            say(f"{attempt['title']} is still at work there, though nobody follows it any more")
            if stop.wait(WAIT_SECONDS):
                raise KeyboardInterrupt


def tell_ended(journal: Journal, ended: Ended, boot_id: str) -> None:
    """Write the final record of an attempt that has none, or that was not over after all."""
    attempt = ended.attempt
    if attempt["phase"] == "final" and not ended.count:
        return
    found = "unfinished" if attempt["phase"] == "running" else "still at work"
    journal.append(
        chapter=attempt["chapter"],
        step=attempt["step"],
        title=attempt["title"],
        phase="final",
        status="aborted",
        host=attempt["host"],
        boot_id=boot_id,
        mark=attempt["mark"],
        message=f"found {found} when the run was taken up again; {ended}",
    )


ANSWER_SECONDS = 30.0
"""How long the machine may take to say whether the lock is free."""

BEAT_SECONDS = 30.0
"""How often the machine hears that its run is still there."""

SILENCE_SECONDS = 120
"""How long it may hear nothing: a controller may lose its power, or its network."""

BUSY_SECONDS = 20
"""How long another run may take to look at the entries, before the machine says that it hangs."""

NEXT_SECONDS = 60
"""How long the lock is kept for the next chapter of a run, which has a connection of its own."""

# $strays becomes a tab, an age in seconds and a mark for each process of a change that a run began
# here which had the lock before
FIND_STRAYS = """
strays() {
    strays=
    for id in $(LC_ALL=C grep -lz '^XENLAB_STEP=' /proc/[0-9]*/environ /proc/[0-9]*/cmdline \\
        2>/dev/null | tr -dc '0-9\\n'); do
        mark=$(cat "/proc/$id/environ" "/proc/$id/cmdline" 2>/dev/null | tr '\\0' '\\n' \\
            | sed -n 's/^XENLAB_STEP=//p' | head -n 1)
        case $mark in
            "$name"/*) continue ;;
            */"$change"/*) ;;
            *) continue ;;
        esac
        grep -qxF -- "${mark%%/*}" "$runs" || continue
        read -r stat 2>/dev/null < "/proc/$id/stat" || continue
        set -- ${stat##*') '}
        age=$((now - ${20} / $(getconf CLK_TCK || echo 100)))
        strays=$(printf '%s\\t%s %s' "$strays" "$age" "$mark")
    done
}
"""

# An entry is three lines: the run, until which second of uptime it is kept for the run's next
# chapter though nobody has it locked, and the words for whoever is refused.
TAKE_LOCK = (
    UPTIME
    + FIND_STRAYS
    + """
run=$1 words=$2 silence=$3 next=$4 busy=$5 change=$6
folder=${XENLAB_NOTES:-/run/xenlab}/working
# who can open a file can lock it
umask 077
mkdir -p -- "$folder"
exec 8> "$folder.lock"
status=0
timeout "$busy" flock 8 || status=$?
case $status in
    0) ;;
    124 | 143) printf 'stuck %s\n' "$folder.lock"; exit 0 ;;
    *) exit "$status" ;;
esac
uptime_seconds
entry_says() {
    other= until= said=
    { read -r other && read -r until && read -r said; } 2>/dev/null < "$entry" || :
}
# the word that another run's step is over may be on its way
given_back() {
    [ "$other" != "$run" ] && timeout 1 flock "$entry" true && entry_says
}
for entry in "$folder"/*; do
    [ -f "$entry" ] || continue
    entry_says
    if flock -n "$entry" true || given_back; then
        left=$((${until:-0} - now))
        if [ "$other" = "$run" ] || [ "$left" -le 0 ]; then
            # a chapter that leaves it to this one has looked for what others left at work
            [ "$other" != "$run" ] || [ "$left" -le 0 ] || change=
            rm -f -- "$entry"
            continue
        fi
        printf 'kept %s %s\n' "$left" "$said"
        exit 0
    fi
    [ "$other" = "$run" ] || { printf 'refused %s\\n' "$said"; exit 0; }
done
mine=$(mktemp -- "$folder/XXXXXX")
exec 9> "$mine"
flock 9
printf '%s\\n0\\n%s\\n' "$run" "$words" > "$mine"
name=${run##*/} runs=$folder.runs strays=
if [ -n "$change" ]; then
    : >> "$runs"
    strays
    grep -qxF -- "$name" "$runs" || printf '%s\\n' "$name" >> "$runs"
fi
exec 8>&-
printf 'taken%s\\n' "$strays"
while word=$(timeout "$silence" head -c 1 9>&-) && [ "$word" = . ]; do :; done
if [ "$word" = n ]; then
    uptime_seconds
    printf '%s\\n%s\\n%s\\n' "$run" "$((now + next))" "$words" > "$mine"
else
    rm -f -- "$mine"
fi
"""
)


class Hold(Enum):
    """For how long a chapter holds the lock: a person's chapters may be open side by side."""

    STEP = "while a step changes the machine"
    CHAPTER = "until the chapter is closed"
    RUN = "until the chapter is closed, and a while longer, for the next one of the run"

    @classmethod
    def within(cls, run: Path, chapter: str) -> Hold:
        """A run, of which this is the folder, has the machine until its last chapter is closed."""
        record = kept_file(run, "run.json")
        chapters = json.loads(record.read_text())["chapters"] if record.exists() else [chapter]
        return cls.CHAPTER if chapters[-1] == chapter else cls.RUN


class MachineLock:
    """The right to change a machine: one run's alone, whose chapters may have it together.

    A chapter says when it is opened, when a step is about to change something, when it has
    connected again, when that step is over, and when it is closed; ``hold`` says what follows. Its
    threads may say so at once. ``strays`` are what other runs had left at work there when it was
    taken for the first time.
    """

    def __init__(
        self,
        ssh: SSH,
        run: Path,
        hold: Hold = Hold.STEP,
        *,
        silence: int = SILENCE_SECONDS,
        next_seconds: int = NEXT_SECONDS,
        busy: int = BUSY_SECONDS,
    ) -> None:
        self._ssh = ssh
        self.hold = hold
        self._seconds = (silence, next_seconds, busy)
        self._run = f"{platform.node()}:{run.absolute()}"
        self._who = f"{run.name} of {getpass.getuser()}@{platform.node()} ({run.absolute()})"
        self._held: Conversation | None = None
        self._over = threading.Event()
        self._taken = False
        self.strays: list[Stray] = []
        self._looked = False
        self._lock = threading.RLock()

    @property
    def held(self) -> bool:
        """Whether it is held, as far as anybody knows."""
        return self._held is not None and self._held.alive

    def opened(self, watcher: Watcher) -> None:
        """A chapter that may change it is open; raises as `take`."""
        if self.hold is not Hold.STEP:
            self.take(watcher)

    def again(self, watcher: Watcher) -> None:
        """Take it again where it was lost, with its connection or by a reboot; raises as `take`."""
        with self._lock:
            if self._taken:
                self.take(watcher)

    def step_over(self) -> None:
        """A step is over, whether it changed something or not."""
        if self.hold is Hold.STEP:
            self.release(seconds=0)

    def closed(self) -> None:
        """The chapter is closed."""
        self.release(for_next=self.hold is Hold.RUN)

    def take(self, watcher: Watcher | None = None) -> None:
        """Take the lock, unless it is held; one that was lost with its connection is taken again.

        ``watcher`` is told of the command. Raises MachineBusy, which names who has it, StepFailed
        where the machine cannot lock, ConnectionLost where it was asked twice in vain,
        KeyboardInterrupt when the watcher's ``stop`` is set.
        """
        with self._lock:
            if self.held:
                return
            try:
                self._take(watcher)
            except ConnectionLost:
                # what did not answer holds nothing
                self._take(watcher)

    def release(self, *, for_next: bool = False, seconds: float = ANSWER_SECONDS) -> None:
        """Give it back, or leave it to the run's next chapter for a while.

        For so many seconds it is waited until the machine has done so.
        """
        with self._lock:
            held, self._held, self._taken = self._held, None, False
            self._over.set()
            if held is not None:
                if for_next:
                    held.say("n")
                held.close(seconds)

    def _take(self, watcher: Watcher | None) -> None:
        words = f"{self._who}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        look_for = "" if self._looked else CHANGE
        command = Command.script(TAKE_LOCK, self._run, words, *self._seconds, look_for)
        call = watcher.started(self._ssh.name, command, b"") if watcher else None
        start, status = time.monotonic(), None
        try:
            held, answer = self._ask(command, watcher.stop if watcher else None)
            status = 0
            if call is not None:
                call.output("stdout", f"{answer}\n".encode())
        finally:
            if call is not None:
                call.ended(status, time.monotonic() - start)
        verdict, *found = answer.split("\t")
        if verdict != "taken":
            held.close()
            self._refuse(answer, held.complaint)
        self._looked = True
        self.strays += strays(found)
        self._over.set()
        self._held, self._over, self._taken = held, threading.Event(), True
        threading.Thread(target=_beat, args=(held, self._over), daemon=True).start()

    def _ask(self, command: Command, stop: threading.Event | None) -> tuple[Conversation, str]:
        try:
            held = self._ssh.converse(command.text, timeout=ANSWER_SECONDS, stop=stop)
            try:
                answer = held.answer(ANSWER_SECONDS, stop)
                if not answer and not held.complaint:
                    raise EOFError("it ended the session")
            except BaseException:
                held.close()
                raise
        except (TimeoutError, EOFError) as error:
            why = str(error) if isinstance(error, EOFError) else "no answer in time"
            raise ConnectionLost(
                f"cannot work on this machine: because it did not say whether it is free: {why}",
                where=self._ssh.name,
                hint="run the step again once it answers",
            ) from error
        return held, answer

    def _refuse(self, answer: str, complaint: str) -> None:
        kind, _, what = answer.partition(" ")
        if kind == "refused":
            raise MachineBusy(
                "cannot work on this machine: because another run does, "
                f"{what or 'nobody says which'}",
                where=self._ssh.name,
                hint="wait until that run is over, or end it where it runs",
            )
        if kind == "kept":
            seconds, _, who = what.partition(" ")
            raise MachineBusy(
                f"cannot work on this machine: because it is kept for the next chapter of {who}",
                where=self._ssh.name,
                hint=f"try again in {seconds} s: unless that run goes on, it is free then",
            )
        if kind == "stuck":
            raise StepFailed(
                "cannot lock the machine for this run: because another process has held "
                f"{what} for {self._seconds[-1]} s",
                where=self._ssh.name,
                hint=f"look which one: fuser -v {what}",
            )
        raise StepFailed(
            f"cannot lock the machine for this run: because {complaint or answer or 'no answer'}",
            where=self._ssh.name,
            hint="log in as root, and install util-linux (flock)",
        )


def _beat(held: Conversation, over: threading.Event) -> None:
    while not over.wait(BEAT_SECONDS):
        if not held.say("."):
            return
