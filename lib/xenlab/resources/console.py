"""A guest's console: its log as xenconsoled keeps it, and a visit with ``xl console``.

xenconsoled writes ``/var/log/xen/console/guest-NAME.log`` when it runs with ``--log=all`` (chapter
07). Reading the log takes nothing away from the person who has the console open, which two
consoles on one guest would do (xenconsole(1) locks the second out).
"""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.domain_state import (
    STATE_OF,
    domain,
    last_words,
    log_path,
    require_running,
)
from xenlab.uptime import UPTIME

LOGIN = " login:"
PANIC = "Kernel panic - not syncing"
BOOT_SECONDS = 900
VISIT_SECONDS = 180
CRASHED_STATUS = 57
"""The exit status of what watches a console if the guest crashed."""

REFUSALS = {
    51: ("the console of {name} showed no login prompt in time", "read the console's output above"),
    52: ("the kernel of {name} panicked", "read the console's output above"),
    53: ("{name} ended before its console showed a login prompt", "xl list; see /var/log/xen"),
    54: ("xenconsoled keeps no log of {name}", "run chapter 07_dom0_configuration"),
    55: ("the console of {name} could not be opened", "is it open elsewhere?"),
    56: ("{name} does not run", "create it first"),
    57: ("{name} crashed before its console showed a login prompt", "read its last lines"),
    58: ("{name} is paused: its console shows nothing more", "xl unpause {name}"),
}

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
uptime_seconds; end=$((now + 30))
until grep -aqF -- "$wanted" "$folder/out" || [ "$status" != 0 ]; do
    kill -0 "$visit" 2>/dev/null || { status=55; break; }
    uptime_seconds
    [ "$now" -lt "$end" ] || status=55
    sleep 1
done
cat -- "$folder/out"
[ "$status" = 0 ] || exit "$status"
printf '\\035' >&3 || exit 55
uptime_seconds; end=$((now + 30))
while kill -0 "$visit" 2>/dev/null; do
    uptime_seconds
    [ "$now" -lt "$end" ] || exit 55
    sleep 1
done
echo
echo "left with Ctrl-]; $name goes on running as domain $(xl domid "$name")"
"""


def refuse(host: Host, command: Command, name: str, *, timeout: float) -> None:
    """Run a console script; turn its own exit statuses into sentences.

    Raises StepFailed for those, CommandFailed for any other status but 0.
    """
    result = host.run(command, timeout=timeout, check=False)
    if result.status in REFUSALS:
        message, hint = (text.format(name=name) for text in REFUSALS[result.status])
        there = domain(host, name) if result.status == CRASHED_STATUS else None
        last = last_words(host, there) if there is not None else ""
        raise StepFailed(message + last, hint=hint, where=host.name)
    if not result.ok:
        raise CommandFailed(result)


@dataclass(frozen=True)
class ConsoleAnswers(Resource):
    """An action: open a running guest's console, press return, see the prompt, leave (Ctrl-]).

    The howto's „Konsole“; xl(1), "console".
    """

    name: str
    seconds: int = VISIT_SECONDS

    def probe(self, host: Host) -> Difference | None:
        """What will be done."""
        return Difference(f"open the console of {self.name}, press return, leave with Ctrl-]")

    def apply(self, host: Host, report: Report) -> None:
        """Visit the console; what it showed is the step's output."""
        require_running(host, self.name)
        report(f"visiting the console of {self.name}")
        values = (self.name, log_path(self.name), LOGIN, PANIC, self.seconds)
        command = Command.script(FOLLOW + _VISIT, *values)
        refuse(host, command, self.name, timeout=self.seconds + 120)

    def verify(self, host: Host) -> None:
        """Nothing is left behind that could be looked at; apply has seen the answer."""
