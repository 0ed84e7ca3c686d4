"""Debian's answer to what a service shall be: systemd's units.

Howto: „sshd … + Runlevel“, „syslogd, crond (mind. Runlevel)“.
"""

from __future__ import annotations

from typing import Any

from xenlab.command import Command
from xenlab.platform import early
from xenlab.platform.daemon import Carrying, NoneFailed
from xenlab.platform.units import UNITS, Masked, ServerUnordered, UnitFile, Units
from xenlab.quoting import unit_word
from xenlab.resources.base import Resource
from xenlab.resources.condition import Condition

_WAITED = """
    mount=$(systemd-escape --path --suffix=mount -- "$1"); shift
    mounted=$(systemctl show -P ActiveEnterTimestampMonotonic -- "$mount")
    [ "$mounted" -gt 0 ]
    for name do
        [ "$(systemctl show -P ExecMainStartTimestampMonotonic -- "$name")" -gt "$mounted" ]
    done
"""

# The boot is waited for: what has not been started yet cannot have failed.
_FAILED = """
    command -v systemctl > /dev/null || exit 127
    systemctl is-system-running --wait > /dev/null 2>&1 || :
    for unit in $(systemctl list-units --state=failed --plain --no-legend | cut -d ' ' -f 1); do
        printf '%s\\n' "$unit"
        journalctl --boot --unit "$unit" --lines 5 --output cat --no-pager | sed 's/^/\\t/'
    done
"""


class Systemd:
    """Debian's answer: systemd, its SysV scripts included."""

    early = early.SYSTEMD

    def enabled(self, *names: str) -> Resource:
        """These units are enabled (systemctl(1), is-enabled)."""
        return Units(names, enabled=True)

    def running(self, *names: str) -> Resource:
        """These units are enabled and active."""
        return Units(names, enabled=True, running=True)

    def disabled(self, *names: str) -> Resource:
        """These units are neither enabled nor active."""
        return Units(names, enabled=False, running=False)

    def masked(self, *names: str) -> Resource:
        """These units are masked: also a unit that wants them cannot start them."""
        return Masked(names)

    def reload(self, name: str) -> Command:
        """``systemctl reload``."""
        return Command.argv("systemctl", "try-reload-or-restart", "--", name)

    def carrying(self, name: str, process: str, argument: str) -> Resource:
        """The process of a unit has an argument on its command line."""
        return Carrying(name, process, argument, self.restart(name))

    def defined(self, name: str, **values: Any) -> Resource:
        """A unit below /etc/systemd/system; without a suffix it is a service."""
        unit = name if "." in name else f"{name}.service"
        return UnitFile(f"{UNITS}/{unit}", template=unit, values=values)

    def adjusted(self, name: str, **values: Any) -> Resource:
        """A drop-in of the unit (systemd.unit(5))."""
        path = f"{UNITS}/{name}.service.d/xenlab.conf"
        return UnitFile(path, template=f"{name}.conf", values=values)

    def after_mount(self, name: str, folder: str) -> Resource:
        """RequiresMountsFor=, which an update of the package does not undo."""
        wanted = f"[Unit]\nRequiresMountsFor={unit_word(folder)}\n"
        text = f"# written by xenlab, chapter 15\n{wanted}"
        return UnitFile(f"{UNITS}/{name}.service.d/xenlab-usr.conf", text)

    def waited(self, folder: str, *names: str) -> Resource:
        """By the times that systemd noted."""
        return Condition(
            Command.script(_WAITED, folder, *names),
            f"{folder} is not mounted, or a service did not wait for it",
            "systemctl --failed; systemctl list-dependencies --after",
        )

    def none_failed(self) -> NoneFailed:
        """No unit is in the state "failed" (systemctl(1)), whatever kind it is of."""
        return NoneFailed(Command.script(_FAILED), "systemctl --failed; systemctl status UNIT")

    def server_unordered(self) -> Resource:
        """nfs-server-generator is out of use."""
        return ServerUnordered()

    def start(self, name: str) -> Command:
        """``systemctl start``."""
        return Command.argv("systemctl", "start", "--", name)

    def stop(self, name: str) -> Command:
        """``systemctl stop``."""
        return Command.argv("systemctl", "stop", "--", name)

    def restart(self, name: str) -> Command:
        """``systemctl restart``."""
        return Command.argv("systemctl", "restart", "--", name)

    def runs(self, name: str) -> Command:
        """``systemctl is-active``."""
        return Command.argv("systemctl", "--quiet", "is-active", "--", name)

    def hint(self, name: str) -> str:
        """``systemctl status``."""
        return f"systemctl status {name}"
