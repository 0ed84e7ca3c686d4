"""Chapter 05: what is valid for all later domains: software, names, sshd, log, cron.

Howto: „Grundkonfiguration“.
"""

from __future__ import annotations

import pandas as pd

from xenlab.chapter import Chapter
from xenlab.command import Command
from xenlab.host import Host
from xenlab.platform import distcc
from xenlab.platform.packages import Packages
from xenlab.resources.base import Resource
from xenlab.resources.condition import Condition, Together
from xenlab.resources.files import File
from xenlab.resources.setting import KernelSetting
from xenlab.resources.sshd import SshdSettings

LOGS = {
    "rsyslog": ("/var/log/syslog",),
    "syslog-ng": ("/var/log/messages", "/var/log/syslog"),
}
"""Where a daemon writes the system's log: one of these files, as the distribution has it."""


def xen_runs() -> Resource:
    """The condition that the machine is dom0 of a running hypervisor (map.md: is_xen, is_dom0)."""
    script = """
        [ "$(cat /sys/hypervisor/type)" = xen ]
        grep -q control_d /proc/xen/capabilities
    """
    return Condition(
        Command.script(script),
        "the machine does not run as dom0 of Xen",
        "boot it from its disk: chapter 04_grub",
    )


def software_installed(book: Chapter) -> tuple[Resource, ...]:
    """The site's software and what mounts the share, from an index that is not too old.

    What the site does not want goes at last: what was installed may have brought it along.
    """
    names = dict.fromkeys((*book.site.software, *book.packages.nfs_client))
    packages = book.packages
    wanted = (packages.installed(*names), packages.removed(*book.site.unwanted))
    return packages.updated(), Together(wanted)


def named(book: Chapter) -> tuple[Resource, ...]:
    """The machine's name and domain: for the next boot, for programs that ask, for the kernel."""
    site = book.site
    return (
        File("/etc/hostname", f"{site.hostname}\n"),
        File(
            "/etc/hosts",
            template="hosts.j2",
            values={"hostname": site.hostname, "domain": site.domain},
        ),
        KernelSetting("/proc/sys/kernel/hostname", site.hostname),
    )


def full_name(book: Chapter) -> Resource:
    """The condition that the machine knows its full name."""
    name = f"{book.site.hostname}.{book.site.domain}"
    return Condition(
        Command.script('[ "$(hostname --fqdn)" = "$1" ]', name),
        f"the machine does not know its full name {name}",
        "look at /etc/hosts and at “hosts:” in /etc/nsswitch.conf",
    )


def sshd_configured(book: Chapter) -> Resource:
    """sshd takes keys, no passwords; it is asked about the file before that is written."""
    file = File("/etc/ssh/sshd_config.d/10-xenlab.conf", template="sshd.conf")
    return SshdSettings(file, book.services.reload("ssh"))


def services_running(book: Chapter) -> Resource:
    """The site's services run, now and after every boot (the howto's runlevels)."""
    return book.services.running(*book.site.services)


def distcc_off(book: Chapter) -> Resource:
    """distcc's server does not run: whoever reaches it can run programs here."""
    return book.services.disabled(*(["distcc"] if has(book, "distcc") else []))


def log_written(book: Chapter) -> Resource:
    """The condition that the log is written, where the site asks for a daemon that does."""
    daemon = next((name for name in book.site.services if name in LOGS), "")
    files = LOGS.get(daemon, ())
    script = """
        [ $# -gt 0 ] || exit 0
        # a daemon that was just started may not have written its first line
        for attempt in 1 2 3 4 5 6 7 8 9 10; do
            for file do
                [ -s "$file" ] && exit 0
            done
            sleep 1
        done
        exit 1
    """
    return Condition(
        Command.script(script, *files),
        f"nothing is written to {' or '.join(files)}",
        book.services.hint(daemon),
    )


def distcc_silent(book: Chapter) -> Resource:
    """The condition that nobody outside can reach distcc's port."""
    script = """
        ! ss --no-header --tcp --listening --numeric "sport = :$1" \\
            | awk '{ print $4 }' | grep -qvE '^(127\\.|\\[::1\\])'
    """
    return Condition(
        Command.script(script, str(distcc.PORT)),
        "distcc listens on the network",
        "disable distcc's service and stop it",
    )


def listeners(book: Chapter) -> pd.DataFrame:
    """Who listens for connections, and where."""
    command = "ss --no-header --tcp --listening --numeric --processes"
    return parse_listeners(book.target.run(command, check=False).stdout)


def parse_listeners(text: str) -> pd.DataFrame:
    """The output of ``ss --no-header --tcp --listening --numeric --processes`` as a table."""
    rows = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 5:
            continue
        address, _, port = words[3].rpartition(":")
        program = words[5].split('"')[1] if len(words) > 5 and '"' in words[5] else ""
        rows.append({"address": address, "port": port, "program": program})
    frame = pd.DataFrame(rows, columns=["address", "port", "program"])
    return frame.drop_duplicates(ignore_index=True)


KEPT = ("file", "new version", "diff")
"""The columns of what `kept` finds."""


def waiting(book: Chapter) -> pd.DataFrame:
    """What packages have brought to the machine and not put over a file that was changed: KEPT."""
    return pd.DataFrame(kept(book.target, book.packages), columns=list(KEPT))


def kept(host: Host, packages: Packages) -> list[tuple[str, str, str]]:
    """Which changed files packages left alone on a host, a row of KEPT for each line that differs.

    What not everybody may read is named, and not shown: it is read as nobody.
    """
    found = host.run(packages.waiting, check=False).stdout.splitlines()
    script = """
        state=0
        shown=$(setpriv --reuid 65534 --regid 65534 --clear-groups \
            diff --unified=1 -- "$1" "$2" 2> /dev/null) || state=$?
        case $state in
            0) echo "the same" ;;
            1) printf '%s\n' "$shown" | sed -e '1,2{/^---/d' -e '/^+++/d' -e '}' ;;
            *)
                if [ -e "$1" ]; then
                    echo "not shown: not everybody may read it"
                else
                    echo "the old one is gone"
                fi
                ;;
        esac
    """
    rows = []
    for old, _, new in (line.partition("\t") for line in found):
        differs = host.run(Command.script(script, old, new)).stdout
        rows += [(old, new, line) for line in differs.splitlines()]
    return rows


def base_configured(book: Chapter) -> Resource:
    """What later chapters build on: the software and its services."""
    site = book.site
    installed = book.packages.installed(*site.software)
    return Together((installed, book.services.running(*site.services)))


def has(book: Chapter, name: str) -> bool:
    """Whether a program is in the site's software list, whatever category it stands in."""
    return any(package.rpartition("/")[2] == name for package in book.site.software)
