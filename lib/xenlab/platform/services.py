"""Services: the seam between a chapter that wants a daemon and the init system that has it.

Howto: „sshd … + Runlevel“, „syslogd, crond (mind. Runlevel)“.
"""

from __future__ import annotations

from typing import Any, Protocol

from xenlab.command import Command
from xenlab.errors import BadInput
from xenlab.platform.systemd import (
    UNITS,
    ConfiguredUnit,
    Masked,
    ServerUnordered,
    UnitArgument,
    UnitFile,
    Units,
)
from xenlab.resources.base import Resource
from xenlab.resources.condition import Condition
from xenlab.resources.files import File


class Services(Protocol):
    """What an init system can be asked for; each answer is a Resource."""

    def enabled(self, *names: str) -> Resource:
        """These services are started at every boot."""

    def running(self, *names: str) -> Resource:
        """These services are started at every boot, and run now."""

    def disabled(self, *names: str) -> Resource:
        """These services are not started at boot, and do not run now."""

    def masked(self, *names: str) -> Resource:
        """These services do not run, and nothing can start them."""

    def configured(self, name: str, file: File, *test: str) -> Resource:
        """A service's configuration file; it is tested, and the service reads it again."""

    def carrying(self, name: str, process: str, argument: str) -> Resource:
        """A service's process was started with this argument; else the service is restarted."""

    def defined(self, name: str, template: str, **values: Any) -> Resource:
        """A service of our own, as a template has it; it is neither enabled nor started."""

    def adjusted(self, name: str, label: str, text: str) -> Resource:
        """An addition of that label to a service's definition, kept beside it."""

    def after_mount(self, name: str, folder: str) -> Resource:
        """A service starts once what belongs at this folder is mounted (howto: S58)."""

    def waited(self, folder: str, *names: str) -> Resource:
        """The condition that these services started after the folder was mounted."""

    def server_unordered(self) -> Resource:
        """NFS mounts do not wait for this machine's own NFS server (howto: S60)."""


def services(platform: str) -> Services:
    """The answer for a platform of the parameters file. Raises BadInput where there is none."""
    if platform == "debian":
        return Systemd()
    raise BadInput(
        f"platform: nobody has written down yet how {platform!r} handles services",
        hint="use platform: debian",
    )


class Systemd:
    """Debian's answer: systemd, its SysV scripts included."""

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

    def configured(self, name: str, file: File, *test: str) -> Resource:
        """A unit's configuration file, tested by a command, then `systemctl reload`."""
        return ConfiguredUnit(name, file, test)

    def carrying(self, name: str, process: str, argument: str) -> Resource:
        """The process of a unit has an argument on its command line."""
        return UnitArgument(name, process, argument)

    def defined(self, name: str, template: str, **values: Any) -> Resource:
        """A unit below /etc/systemd/system; without a suffix it is a service."""
        unit = name if "." in name else f"{name}.service"
        return UnitFile(f"{UNITS}/{unit}", template=template, values=values)

    def adjusted(self, name: str, label: str, text: str) -> Resource:
        """A drop-in of the unit (systemd.unit(5))."""
        return UnitFile(f"{UNITS}/{name}.service.d/{label}.conf", text)

    def after_mount(self, name: str, folder: str) -> Resource:
        """RequiresMountsFor=, which an update of the package does not undo."""
        text = f"# written by xenlab, chapter 15\n[Unit]\nRequiresMountsFor={folder}\n"
        return self.adjusted(name, "xenlab-usr", text)

    def waited(self, folder: str, *names: str) -> Resource:
        """By the times that systemd noted."""
        return Condition(
            Command.script(_WAITED, folder, *names),
            f"{folder} is not mounted, or a service did not wait for it",
            "systemctl --failed; systemctl list-dependencies --after",
        )

    def server_unordered(self) -> Resource:
        """nfs-server-generator is out of use."""
        return ServerUnordered()


_WAITED = """
    mount=$(systemd-escape --path --suffix=mount -- "$1"); shift
    mounted=$(systemctl show -P ActiveEnterTimestampMonotonic -- "$mount")
    [ "$mounted" -gt 0 ]
    for name do
        [ "$(systemctl show -P ExecMainStartTimestampMonotonic -- "$name")" -gt "$mounted" ]
    done
"""
