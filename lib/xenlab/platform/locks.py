"""Locks of a package manager: whoever holds one is named, and waited for (fcntl(2), proc(5)).

apt-get(8) can wait for one of its locks only, dpkg(1) for none, and emerge(1) does not say for whom
it waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from xenlab.command import Command, Result
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Report, Waiting

WAIT_SECONDS = 600
"""How long a lock is waited for."""

WAITING = "waiting for "
"""How each line begins that says for whom."""

_GIVEN_UP = 75

# Only fcntl(2) itself knows who holds such a lock, on every file system, and perl is in every
# Debian and every Gentoo. Asked is for a lock for writing (1) by F_GETLK (5); 2 is the answer that
# nothing stands against it. The numbers are those of Linux on 64 bits.
_HELD = r"""
    use strict;
    my ($seconds, @files) = @ARGV;
    my ($start, $said, $again) = (time, "", 0);
    sub holder {
        my ($process) = @_;
        return "a process on another machine holds it" if $process <= 0;
        my ($command, $since) = ("", "");
        if (open my $file, "<", "/proc/$process/cmdline") {
            ($command = <$file> // "") =~ tr/\0\n/  /;
            $command =~ s/ +$//;
        }
        if (open my $stat, "<", "/proc/$process/stat" and open my $up, "<", "/proc/uptime") {
            my @fields = split " ", <$stat> =~ s/.*\) //r;
            my ($uptime) = split " ", <$up>;
            my @time = gmtime(time - $uptime + $fields[19] / 100);
            $since = sprintf ", since %04d-%02d-%02d %02d:%02d:%02d UTC",
                $time[5] + 1900, $time[4] + 1, @time[3, 2, 1, 0];
        }
        return "process $process" . ($command ne "" && " ($command)") . " holds it$since";
    }
    sub held {
        for my $file (@files) {
            open my $lock, "<", $file or next;
            my $question = pack "s s x4 q q i x4", 1, 0, 0, 0, 0;
            fcntl $lock, 5, $question or next;
            my ($kind, $process) = (unpack "s s x4 q q i", $question)[0, 4];
            return "$file: " . holder($process) if $kind != 2;
        }
        return "";
    }
    while (my $held = held()) {
        if (time - $start >= $seconds) {
            print STDERR "gave up after $seconds s: $held\n";
            exit 75;
        }
        if ($held ne $said or time >= $again) {
            print STDERR "waiting for $held\n";
            ($said, $again) = ($held, time + 60);
        }
        sleep 1;
    }
    exit($said ne "" ? 46 : 0);
"""

# What was free a moment ago may be locked by now: so a command that failed is tried again, if
# somebody had a lock.
_FUNCTIONS = """
    had_to_wait() {
        answer=0
        perl -e '%s' -- %d %s || answer=$?
        case $answer in 46) return 0 ;; 75) exit 75 ;; *) return 1 ;; esac
    }
    patiently() {
        had_to_wait || :
        until "$@"; do
            failed=$?
            had_to_wait || return "$failed"
        done
    }
"""


def patiently(*files: str, seconds: int = WAIT_SECONDS) -> str:
    """Shell functions: ``patiently COMMAND…`` runs it once nobody has locked one of these files.

    A script that uses them is run by `run`.
    """
    return _FUNCTIONS % (_HELD, seconds, Command.argv(*files).text)


def run(
    host: Host, command: Command, report: Report, *, timeout: float, check: bool = True
) -> Result:
    """Like ``host.run`` for a script that waits `patiently`: whom it waits for is reported.

    Raises StepFailed, with who it is, if a lock was held for too long.
    """
    lines = _Lines(lambda line: report(Waiting(line)) if line.startswith(WAITING) else None)
    result = replace(host, heard=lines.hear).run(command, timeout=timeout, check=False)
    if result.status == _GIVEN_UP:
        said = (result.stderr.strip().splitlines() or [""])[-1]
        raise StepFailed(
            f"cannot lock what packages are installed with: {said}",
            hint="wait until it has ended, or look at what it does; never remove a lock file",
        )
    if check and not result.ok:
        raise CommandFailed(result)
    return result


class _Lines:
    """Whole lines out of the pieces in which standard error comes."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take = take
        self._begun = b""

    def hear(self, stream: str, piece: bytes) -> None:
        """Take a piece of output."""
        if stream == "stderr":
            *whole, self._begun = (self._begun + piece).split(b"\n")
            for line in whole:
                self._take(line.decode("utf-8", "replace"))
