"""Domains: their consoles, and their life from create to destroy."""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import UPTIME, Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.xen import (
    DYING,
    PAUSED,
    STATE_OF,
    Domain,
    domain,
    domains,
    last_words,
    log_path,
    require_running,
)

# A guest's console: its log as xenconsoled keeps it, and a visit with ``xl console``.
#
# xenconsoled writes ``/var/log/xen/console/guest-NAME.log`` when it runs with ``--log=all``
# (chapter 07). Reading the log takes nothing away from the person who has the console open, which
# two consoles on one guest would do (xenconsole(1) locks the second out).

LOGIN = " login:"
PANIC = "Kernel panic - not syncing"
BOOT_SECONDS = 900
VISIT_SECONDS = 180
CRASHED_STATUS = 57
"""The exit status of what watches a console if the guest crashed."""

_REASONS = {
    51: ("there was none in time", "read the console's output above"),
    52: ("its kernel panicked", "read the console's output above"),
    53: ("it ended before", "look at xl list and /var/log/xen"),
    54: ("xenconsoled keeps no log of it", "run chapter 07_dom0_configuration"),
    55: ("its console could not be opened", "close the console where else it is open"),
    56: ("it does not run", "create it first"),
    57: ("it crashed before", "look at the last lines of its console"),
    58: ("it is paused", "xl unpause {name}"),
}
"""Why a guest's login prompt was not seen, and what to try."""

# `follow` prints what a log gains beyond a size until a text stands in it, in whatever pieces it
# came: a prompt has no end of line. The open file remembers how far it was read, so that a look
# takes one program: starting one is slow on an emulated machine, and xl slower still. It rests a
# second between two looks unless told otherwise.
FOLLOW = (
    STATE_OF
    + UPTIME
    + """
log_size() { stat -c %s -- "$1" 2>/dev/null || echo 0; }
open_log() {
    [ "$(log_size "$log")" -ge "$from" ] || from=0
    exec 4< "$log"
    head -c "$from" <&4 > /dev/null
    from=0 opened=yes
}
follow() {
    log=$1 from=$2 wanted=$3 panic=$4 domain=$5 pause=${7:-1}
    uptime_seconds; end=$((now + $6)) round=0 opened= new= paused=0
    while :; do
        if [ -e "$log" ]; then
            [ "$opened" ] && [ "$log" -ef /dev/fd/4 ] || open_log
            piece=$(tr -d '\\000' <&4; echo .)
            piece=${piece%.}
            printf %s "$piece"
            new=$new$piece
            case $new in *"$wanted"*) return 0 ;; *"$panic"*) return 52 ;; esac
            # a guest may write without end: what came before a long piece is not kept
            [ "${#piece}" -lt 1000 ] || new=$piece
        fi
        uptime_seconds
        if [ "$now" -ge "$end" ]; then [ -e "$log" ] && return 51 || return 54; fi
        round=$((round + 1))
        if [ $((round % 10)) = 0 ]; then
            case $(state_of "$domain") in
                "" | *d) return 53 ;;
                *c*) return 57 ;;
                # a domain that is being created is paused, until its devices are there
                *p*) paused=$((paused + 1)); [ "$paused" -lt 7 ] || return 58 ;;
                *) paused=0 ;;
            esac
        fi
        sleep "$pause"
    done
}
"""
)

# A terminal of its own is what makes xenconsole listen to its keyboard; script(1) gives it one.
# The answer is looked for in the log, where nothing old can be taken for it; a key that is pressed
# before the terminal is ready may be lost, so return is pressed again.
_VISIT = """
name=$1 log=$2 wanted=$3 panic=$4 seconds=$5
folder=$(mktemp -d)
visit=
trap '[ -z "$visit" ] || kill "$visit" 2>/dev/null || :; rm -rf -- "$folder"' EXIT
mkfifo "$folder/keys"
from=$(log_size "$log")
NAME=$name script -qefc 'exec xl console "$NAME"' "$folder/screen" \\
    < "$folder/keys" > "$folder/out" 2>&1 &
visit=$!
exec 3> "$folder/keys"
trap '' PIPE
uptime_seconds; give_up=$((now + seconds))
while :; do
    printf '\\r' >&3 || exit 55
    status=0
    follow "$log" "$from" "$wanted" "$panic" "$name" 10 > /dev/null || status=$?
    [ "$status" = 51 ] && [ "$now" -lt "$give_up" ] || break
done
left() { ! kill -0 "$visit" 2>/dev/null; }
shown() { grep -aqF -- "$wanted" "$folder/out"; }
shown_or_left() { shown || left; }
[ "$status" != 0 ] || { wait_until 30 shown_or_left && shown; } || status=55
cat -- "$folder/out"
[ "$status" = 0 ] || exit "$status"
printf '\\035' >&3 || exit 55
wait_until 30 left || exit 55
echo
echo "left with Ctrl-]; $name goes on running as domain $(xl domid "$name")"
"""


def refuse(host: Host, command: Command, name: str, *, timeout: float) -> None:
    """Run a script that waits for a login prompt on a console.

    Raises StepFailed for the statuses with a meaning, CommandFailed for any other but 0.
    """
    result = host.run(command, timeout=timeout, check=False)
    if result.status in _REASONS:
        why, hint = _REASONS[result.status]
        message = f"cannot see the login prompt of {name}: because {why}"
        there = domain(host, name) if result.status == CRASHED_STATUS else None
        last = last_words(host, there) if there is not None else ""
        raise StepFailed(message + last, hint=hint.format(name=name), where=host.name)
    if not result.ok:
        raise CommandFailed(result)


@dataclass(frozen=True)
class ConsoleAnswers(Resource):
    """An action: open a running guest's console, press return, see the prompt, leave (Ctrl-]).

    The howto's „Konsole“; xl(1), "console".
    """

    name: str

    def probe(self, host: Host) -> Difference | None:
        """What will be done."""
        return Difference(f"open the console of {self.name}, press return, leave with Ctrl-]")

    def commands(self) -> tuple[Command, ...]:
        """Open the console; Ctrl-] leaves it."""
        text = "xl console {name}  # leave with Ctrl-]"
        keys = """
            { sleep 5; printf '\\r'; sleep 5; printf '\\035'; } \\
                | script -qec {console} /dev/null
        """
        command = Command.sh(text, name=self.name)
        return (command.scripted_as(keys, console=Command.argv("xl", "console", self.name).text),)

    def apply(self, host: Host, report: Report) -> None:
        """Visit the console; what it showed is the step's output."""
        require_running(host, self.name)
        report(f"visiting the console of {self.name}")
        values = (self.name, log_path(self.name), LOGIN, PANIC, VISIT_SECONDS)
        command = Command.script(FOLLOW + _VISIT, *values)
        refuse(host, command, self.name, timeout=VISIT_SECONDS + 120)

    def verify(self, host: Host) -> None:
        """Nothing is left behind that could be looked at; apply has seen the answer."""


# Domains: their life from create to destroy (howto: „Und Action!“).
#
# xl(1) is the reference. What creates a domain runs without the step's mark and writes to a file,
# not to the connection: xl leaves a process behind that looks after the domain, and neither a lost
# connection nor the ending of a step may take that one along.

CREATE_SECONDS = 600
END_SECONDS = 600
GONE_SECONDS = 60
"""How long a domain that is being taken down may still be there."""

NOTES = "/run/xenlab"
# The hotplug scripts never get their lock without a standard input. They have 40 seconds each,
# fixed in libxl, which then takes the domain away again: on a busy machine another try helps.
_CREATE = """
config=$1 log=$2 note=$3
shift 3
mkdir -p -- "${note%/*}"
log_size "$log" > "$note"
out=$(mktemp)
trap 'rm -f -- "$out"' EXIT
for try in 1 2 3; do
    status=0
    env -u XENLAB_STEP xl create "$@" "$config" < /dev/null > "$out" 2>&1 || status=$?
    cat -- "$out" >&2
    [ "$status" != 0 ] || exit 0
    grep -q 'killing execution of .* because of timeout' "$out" || break
done
exit 1
"""

_GONE = """
gone() { ! xl domid "$1" > /dev/null 2>&1; }
wait_until "$2" gone "$1"
"""

_WATCH = """
name=$1 log=$2 note=$3 wanted=$4 panic=$5 seconds=$6
read -r from < "$note"
follow "$log" "$from" "$wanted" "$panic" "$name" "$seconds"
"""

# The id is noted before the reboot, so that even after a lost connection one look tells.
_REBOOT = """
name=$1 note=$2 log=$3 wanted=$4 panic=$5 seconds=$6
from=$(log_size "$log")
old=$(xl domid "$name") || exit 56
mkdir -p -- "${note%/*}"
printf '%s\\n' "$old" > "$note"
xl reboot "$name" < /dev/null
anew() { new=$(xl domid "$name" 2>/dev/null) && [ "$new" != "$old" ]; }
wait_until "$seconds" anew || exit 51
echo "$name was domain $old and is domain $new now"
follow "$log" "$from" "$wanted" "$panic" "$name" "$seconds"
"""


def _looked_up(host: Host, name: str) -> Domain | None:
    """The domain, for a first look: where there is no Xen, there is no such domain."""
    try:
        return domain(host, name)
    except CommandFailed:
        return None


@dataclass(frozen=True)
class DomainRunning(Resource):
    """A domain that runs; with ``console``, its boot is followed up to the login prompt.

    A paused one goes on; one that crashed or is down is taken away first, its disks as they are.
    """

    name: str
    config: str
    console: bool = False

    def probe(self, host: Host) -> Difference | None:
        """Whether it runs, and what else it does; a crashed one's last lines."""
        found = _looked_up(host, self.name)
        if found is not None and found.runs:
            return None
        return Difference(_to_do(host, self.name, self.config, found))

    def commands(self) -> tuple[Command, ...]:
        """Create it; with ``console``, watch it boot."""
        create = Command.argv("xl", "create", self.config)
        once = f"xl domid {Command.argv(self.name).text} > /dev/null 2>&1 || "
        if not self.console:
            return (create.scripted_as(once + create.text),)
        typed = Command.sh("xl create {config} -c", config=self.config)
        return (_up_to_the_prompt(typed, create, self.name, once),)

    def apply(self, host: Host, report: Report) -> None:
        """Create it, or let it go on; the console's text is the step's output."""
        if _brought_up(host, self.name, self.config, report) and self.console:
            _watch(host, self.name, report)


def _up_to_the_prompt(typed: Command, scripted: Command, name: str, unless: str = "") -> Command:
    """What is typed; a script has the other command and waits for a new prompt on the console."""
    text = f"""
        prompts() {{ cat {{log}} 2> /dev/null | grep -acF {{prompt}} || :; }}
        seen=$(prompts)
        {unless}{{
            {scripted.text}
            until [ "$(prompts)" -gt "$seen" ]; do sleep 2; done
        }}
    """
    return typed.scripted_as(text, log=log_path(name), prompt=LOGIN)


@dataclass(frozen=True)
class DomainsRunning(Resource):
    """Domains that run: created one after the other, let go, each followed up to its prompt.

    ``configs`` are pairs of a domain's name and its configuration file.
    """

    configs: tuple[tuple[str, str], ...]

    def probe(self, host: Host) -> Difference | None:
        """Which of them do not run, and what else they do."""
        try:
            there = {one.name: one for one in domains(host)}
        except CommandFailed:
            there = {}
        found = [(name, config, there.get(name)) for name, config in self.configs]
        idle = [each for each in found if each[2] is None or not each[2].runs]
        if not idle:
            return None
        if all(one is None for _, _, one in idle):
            return Difference(f"create {', '.join(name for name, _, _ in idle)}")
        return Difference("; ".join(_to_do(host, *each) for each in idle))

    def commands(self) -> tuple[Command, ...]:
        """Create each, paused; let all go."""
        create = "xl create -p {config}"
        again = f"xl domid {{name}} > /dev/null 2>&1 || {create}"
        parts = [{"name": name, "config": config} for name, config in self.configs]
        return (
            *(Command.sh(create, **each).scripted_as(again, **each) for each in parts),
            *(Command.sh("xl unpause {name}", **each) for each in parts),
        )

    def apply(self, host: Host, report: Report) -> None:
        """Create those that do not run, let all go, and watch them boot at the same time.

        A creation runs scripts in dom0 that have 40 seconds each, fixed in libxl: guests that
        boot meanwhile must not take dom0 the processor, so each is paused at first.
        """
        created: list[str] = []
        try:
            for name, config in self.configs:
                if _brought_up(host, name, config, report, options=("-p",)):
                    created.append(name)
        finally:
            # also where one could not be created: no guest stays paused for another's fault
            for name in created:
                _let_go_on(host, name, report)
        for name in created:
            _watch(host, name, report)


def _to_do(host: Host, name: str, config: str, found: Domain | None) -> str:
    """What makes a domain run that does not."""
    if found is None:
        return f"create {name} from {config}"
    if found.state == PAUSED:
        return f"let {name} go on: domain {found.id} is paused"
    words = last_words(host, found)
    return f"create {name} from {config} again: domain {found.id} is {found.state}{words}"


def _brought_up(
    host: Host, name: str, config: str, report: Report, options: tuple[str, ...] = ()
) -> bool:
    """Make a domain run; whether it was created, with options, so that its boot is to be seen."""
    found = domain(host, name)
    if found is not None and found.runs:
        return False
    if found is not None and found.state == PAUSED:
        _let_go_on(host, name, report)
        return False
    if found is not None:
        _taken_away(host, found, report)
    _create(host, name, config, options, report)
    return True


def _let_go_on(host: Host, name: str, report: Report) -> None:
    report(f"letting {name} go on")
    host.run(Command.argv("xl", "unpause", name))


def _taken_away(host: Host, found: Domain, report: Report) -> None:
    """Destroy a domain, unless that is under way, and wait until nothing is left of it."""
    report(f"destroying {found.name} ({found})")
    if found.state != DYING:
        host.run(Command.argv("xl", "destroy", found.name), timeout=CREATE_SECONDS)
    late = (
        f"cannot destroy {found.name}: because domain {found.id} does not go away",
        "reboot the machine: something in dom0 holds its memory or a disk",
    )
    gone = Command.script(UPTIME + _GONE, found.name, GONE_SECONDS).within(GONE_SECONDS + 60)
    host.change(gone.refusing({1: late}))


def _create(host: Host, name: str, config: str, options: tuple[str, ...], report: Report) -> None:
    report(f"creating {name}")
    values = (config, log_path(name), _console_note(name), *options)
    command = Command.script(FOLLOW + _CREATE, *values)
    host.run(command, timeout=CREATE_SECONDS)


def _watch(host: Host, name: str, report: Report) -> None:
    report(f"watching {name} boot")
    values = (name, log_path(name), _console_note(name), LOGIN, PANIC, BOOT_SECONDS)
    command = Command.script(FOLLOW + _WATCH, *values)
    refuse(host, command, name, timeout=CREATE_SECONDS + BOOT_SECONDS)


def _console_note(name: str) -> str:
    """Where the size is noted that a console's log had before its domain was created."""
    return f"{NOTES}/{name}.console"


@dataclass(frozen=True)
class DomainStopped(Resource):
    """A domain that was asked to shut down and is gone."""

    name: str

    def probe(self, host: Host) -> Difference | None:
        """Whether it is still there, and as which domain."""
        found = _looked_up(host, self.name)
        return None if found is None else Difference(f"shut down {self.name} ({found})")

    def commands(self) -> tuple[Command, ...]:
        """Ask the guest to shut down, and wait until its domain is gone."""
        late = (
            f"cannot shut down {self.name}: because it did not within {END_SECONDS} s",
            f"look at its console, or end it with xl destroy {self.name}",
        )
        command = Command.argv("timeout", END_SECONDS, "xl", "shutdown", "-ww", self.name)
        again = "! xl domid {name} > /dev/null 2>&1 || xl shutdown -ww {name}"
        typed = command.typed_as("xl shutdown -ww {name}", name=self.name)
        typed = typed.scripted_as(again, name=self.name)
        return (typed.refusing({124: late}).within(END_SECONDS + 60),)

    def apply(self, host: Host, report: Report) -> None:
        """Ask the guest to shut down and wait until the domain is gone, not only down.

        A paused one has to go on first; one that hears nothing any more is taken away.
        """
        found = domain(host, self.name)
        if found is None:
            return
        if found.state == PAUSED:
            _let_go_on(host, self.name, report)
        elif not found.runs:
            _taken_away(host, found, report)
            return
        super().apply(host, report)

    def verify(self, host: Host) -> None:
        """Hold only if xl says that there is no such domain."""
        found = domain(host, self.name)
        if found is not None:
            raise StepFailed(
                f"cannot end {self.name}: because it is still there ({found})",
                hint=f"look at its console: xl console {self.name}",
            )


@dataclass(frozen=True)
class DomainDestroyed(DomainStopped):
    """A domain that was ended at once, the howto's “Windows-Reboot”; the guest is not asked."""

    def probe(self, host: Host) -> Difference | None:
        """Whether it is there, and as which domain."""
        found = _looked_up(host, self.name)
        return None if found is None else Difference(f"destroy {self.name} ({found})")

    def commands(self) -> tuple[Command, ...]:
        """Destroy the domain."""
        return (Command.argv("xl", "destroy", self.name),)

    def apply(self, host: Host, report: Report) -> None:
        """Destroy the domain."""
        found = domain(host, self.name)
        if found is not None:
            _taken_away(host, found, report)


@dataclass(frozen=True)
class DomainRebooted(Resource):
    """An action: a domain reboots, gets a new id, and shows its login prompt again."""

    name: str
    notes: str = NOTES

    @property
    def _note(self) -> str:
        return f"{self.notes}/{self.name}.rebooting"

    def probe(self, host: Host) -> Difference | None:
        """Which domain will be rebooted."""
        found = _looked_up(host, self.name)
        now = "it does not run" if found is None else str(found)
        return Difference(f"reboot {self.name} ({now})")

    def commands(self) -> tuple[Command, ...]:
        """Reboot it, and see its new number."""
        reboot = Command.argv("xl", "reboot", self.name)
        again = _up_to_the_prompt(reboot, reboot, self.name)
        return again, Command.argv("xl", "domid", self.name)

    def apply(self, host: Host, report: Report) -> None:
        """Reboot; the console's text is the step's output."""
        require_running(host, self.name)
        report(f"rebooting {self.name}")
        log = log_path(self.name)
        values = (self.name, self._note, log, LOGIN, PANIC, BOOT_SECONDS)
        command = Command.script(FOLLOW + _REBOOT, *values)
        refuse(host, command, self.name, timeout=2 * BOOT_SECONDS + 60)

    def verify(self, host: Host) -> None:
        """The domain runs and has another id than the one noted before."""
        old = (host.read(self._note) or "").strip()
        found = domain(host, self.name)
        if found is None or not found.runs or not old or found.id == int(old):
            raise StepFailed(
                f"cannot reboot {self.name}: because its domain was {old or 'not noted'}, and now "
                f"it is {found or 'gone'}",
                hint=f"look at its console: xl console {self.name}",
            )
