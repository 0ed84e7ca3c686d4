"""Gentoo's answer to what a service shall be: OpenRC's scripts and runlevels (rc-update(8)).

Howto: „sshd … + Runlevel“, „syslogd, crond (mind. Runlevel)“, the BUGFIX script.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xenlab.command import Command
from xenlab.host import Host
from xenlab.platform.base import START_SECONDS, Carrying, NoneFailed, Services, ServiceStates
from xenlab.resources.base import All, Condition, Report, Resource
from xenlab.resources.files import File, ShellWord

SCRIPTS = "/etc/init.d"
SETTINGS = "/etc/conf.d"

ALSO_CALLED = {
    "ssh": ("sshd",),
    "cron": ("cronie",),
    "xen": ("xencommons",),
    "distcc": ("distccd",),
    "nfs-server": ("nfs", "nfs-kernel-server"),
}
"""What the script of a service is called by others: Gentoo, or Debian where its scripts serve."""

# Who has a script of a name takes it; the first of several counts.
FUNCTIONS = """
    script_of() {
        for each in $(printf %s "$1" | tr '|' ' '); do
            if [ -e "/etc/init.d/$each" ]; then printf '%s\\n' "$each"; return; fi
        done
        return 1
    }
    levels_of() {
        for each in sysinit boot default; do
            [ ! -L "/etc/runlevels/$each/$1" ] || printf '%s\\n' "$each"
        done
    }
    runs() {
        rc-service --quiet -- "$1" status > /dev/null 2>&1
    }
    # what the boot is just starting (status 8) is waited for
    started() {
        until state=0; runs "$1" || state=$?; [ "$state" != 8 ]; do sleep 1; done
        [ "$state" = 0 ]
    }
    # rc-service's own --ifstarted and --ifstopped do not see what a script did that is not OpenRC's
    asked() {
        case $1 in
            # a boot may begin it after it was looked at: then this start fails, and that one counts
            start) started "$2" || rc-service -- "$2" start || started "$2" ;;
            stop) ! runs "$2" || rc-service -- "$2" stop ;;
            *) rc-service -- "$2" "$1" ;;
        esac
    }
"""


# What failed to start is in a folder, whose daemon died is worked out (rc-status(8)). The boot is
# waited for: what has not been started yet cannot have failed.
_FAILED = """
    command -v rc-status > /dev/null || exit 127
    for second in $(seq 300); do
        [ -n "$(ls -A /run/openrc/starting 2> /dev/null)" ] || break
        sleep 1
    done
    {
        ls -A /run/openrc/failed 2> /dev/null || :
        rc-status --crashed 2> /dev/null || :
    } | sort -u | while read -r script; do
        printf '%s\\n' "$script"
        cat /var/log/rc.log /var/log/messages /var/log/syslog 2> /dev/null \\
            | grep -F -- "$script" | tail -n 5 | sed 's/^/\\t/'
    done
"""


def candidates(name: str) -> str:
    """The names that a service's script may have, separated by bars."""
    return "|".join((name, *ALSO_CALLED.get(name, ())))


@dataclass(frozen=True)
class Scripts(ServiceStates):
    """Whether scripts are in a runlevel of the boot, and started where somebody asks for that."""

    at_boot = "runlevel"

    def look(self, host: Host) -> Command:
        """Looks for each script in the runlevels, and asks for its status."""
        script = """
            booted=$1; shift
            command -v rc-update > /dev/null || exit 127
            for names do
                name=${names%%|*}
                if ! script=$(script_of "$names"); then
                    printf '%s missing -\\n' "$name"
                    continue
                fi
                levels=$(levels_of "$script" | tr '\\n' ',')
                run=-
                if [ -n "$booted" ]; then
                    if runs "$script"; then run=started; else run=stopped; fi
                fi
                printf '%s %s %s\\n' "$name" "${levels:-none}" "$run"
            done
        """
        booted = "yes" if self.asked(host) else ""
        return Command.script(FUNCTIONS + script, booted, *map(candidates, self.names))

    def holds(self, boot: str, run: str, asked: bool) -> bool:
        """A script that is not there is disabled, too."""
        off = boot in ("none", "missing")
        good = off is not self.enabled and boot != ""
        return good and (not asked or run == "-" or (run == "started") == bool(self.running))

    def commands(self) -> tuple[Command, ...]:
        """Put the scripts into the runlevel or out of all, and start or stop them."""
        found = []
        for name in self.names:
            words = ("add", name, "default") if self.enabled else ("--all", "del", name)
            found.append(Command.argv("rc-update", *words))
            if self.running is not None:
                verb = "start" if self.running else "stop"
                found.append(Command.argv("rc-service", name, verb))
        return tuple(found)

    def apply(self, host: Host, report: Report) -> None:
        """Put the scripts into their runlevel or out of all; start or stop them."""
        report(f"{self.verb} {', '.join(self.names)}")
        script = """
            enable=$1 now=$2; shift 2
            for names do
                script=$(script_of "$names") || {
                    [ -n "$enable" ] || continue
                    echo "there is no script ${names%%|*} in /etc/init.d" >&2
                    exit 1
                }
                if [ -z "$enable" ]; then
                    [ -z "$now" ] || asked stop "$script"
                    rc-update --quiet --all del "$script" || :
                elif [ -z "$(levels_of "$script")" ]; then
                    level=default
                    # what the network waits for comes a runlevel before it
                    if grep -qx '# runlevel: network' "/etc/init.d/$script"; then
                        level=boot
                    fi
                    rc-update --quiet add "$script" "$level"
                fi
                [ -z "$enable" ] || [ -z "$now" ] || asked start "$script"
            done
        """
        now = "yes" if self.asked(host) else ""
        enable = "yes" if self.enabled else ""
        command = Command.script(FUNCTIONS + script, enable, now, *map(candidates, self.names))
        host.run(command, timeout=START_SECONDS)


# What is started before a file system is mounted, which `Services.early` lists.
#
# Howto: „/usr sharing“.

EARLY = r"""
PATH=$PATH:/lib/rc/bin:/usr/libexec/rc/bin
echo "PID 1	/sbin/init"
for program in mount mount.nfs4; do
    echo "netmount	$(command -v "$program")"
done
set --
for service in $(
    ls -A /etc/runlevels/sysinit /etc/runlevels/boot | grep -v ':$'
    rc-depend --type ineed,iuse,iafter netmount
); do
    [ -e "/etc/init.d/$service" ] && [ -e "/run/openrc/started/$service" ] || continue
    set -- "$@" "/etc/init.d/$service"
done
# every word of a script that is a program's name: more than it starts, but none less
ls -A $(printf %s "$PATH" | tr : ' ') 2> /dev/null | awk '
    FNR == NR { program[$0]; next }
    /^[ \t]*#/ { next }
    {
        service = FILENAME; sub(/.*\//, "", service)
        count = split($0, words, /[^A-Za-z0-9_\/.+-]+/)
        for (i = 1; i <= count; i++)
            if ((words[i] in program || words[i] ~ /^\//) && !seen[service, words[i]]++)
                print service "\t" words[i]
    }' - "$@" \
    | while read -r service word; do
        # what the shell does itself has no path
        program=$(command -v -- "$word") || continue
        case $program in /*) [ ! -f "$program" ] || printf '%s\t%s\n' "$service" "$program" ;; esac
    done
"""
"""The scripts that are started before netmount, with the programs that they name."""


class OpenRc(Services):
    """OpenRC, as Gentoo has it; Debian's scripts serve where they stand in its place."""

    early = EARLY
    of_cgroup = "s#^[^:]*:(name=openrc)?:/(openrc[.])?([^/]+)(/.*)?$#\\3#p"
    states = Scripts

    def masked(self, *names: str) -> Resource:
        """As disabled: what needs such a service would start it all the same."""
        return self.disabled(*(name for name in names if "." not in name))

    def reload(self, name: str) -> Command:
        """``rc-service NAME reload``."""
        script = """
            script=$(script_of "$1")
            ! runs "$script" || asked reload "$script" || asked restart "$script"
        """
        command = Command.script(FUNCTIONS + script, candidates(name))
        return command.typed_as("rc-service {name} reload", name=name)

    def carrying(self, name: str, process: str, argument: str) -> Resource:
        """The process of a script has an argument; a script of the process's own counts first."""
        return Carrying(name, process, argument, self.control(f"{process}|{name}", "restart"))

    def defined(self, name: str, **values: Any) -> Resource:
        """A script in /etc/init.d."""
        return File(f"{SCRIPTS}/{name}", template=f"{name}.openrc", values=values, mode=0o755)

    def adjusted(self, name: str, **values: Any) -> Resource:
        """A script of its own that comes before it: OpenRC has no additions to a script."""
        own = f"xenlab-{name}"
        return All((self.defined(own, **values), self.enabled(own)))

    def after_mount(self, name: str, folder: str) -> Resource:
        """``rc_need`` in conf.d(5): what is mounted over the network comes first."""
        names = candidates(name).split("|")
        return All(tuple(ShellWord(f"{SETTINGS}/{each}", "rc_need", "netmount") for each in names))

    def waited(self, folder: str, *names: str) -> Resource:
        """The folder is mounted, and the services come after what mounts it (rc-depend(8))."""
        script = (
            FUNCTIONS
            + """
            PATH=$PATH:/lib/rc/bin:/usr/libexec/rc/bin
            mountpoint -q -- "$1"; shift
            for name do
                rc-depend --type ineed,iafter "$(script_of "$name")" | grep -qw netmount
            done
        """
        )
        return Condition(
            Command.script(script, folder, *(candidates(name) for name in names)),
            f"{folder} is not mounted, or a service does not wait for it",
            "rc-status; rc-depend --type ineed SERVICE",
        )

    def none_failed(self) -> NoneFailed:
        """No script has failed to start, and no daemon that one has started is gone."""
        return NoneFailed(Command.script(_FAILED), "rc-status --all; rc-service SCRIPT status")

    def server_unordered(self) -> Resource:
        """Nothing: OpenRC orders no mount after this machine's own server by itself."""
        return All(())

    def control(self, name: str, verb: str) -> Command:
        """``rc-service NAME VERB``, where there is something to do; bars separate names."""
        script = """
            script=$(script_of "$1")
            asked "$2" "$script"
        """
        names = "|".join(candidates(each) for each in name.split("|"))
        command = Command.script(FUNCTIONS + script, names, verb)
        return command.typed_as("rc-service {name} {verb}", name=name.split("|")[0], verb=verb)

    def hint(self, name: str) -> str:
        """``rc-service NAME status``."""
        return f"rc-service {name} status; rc-status"
