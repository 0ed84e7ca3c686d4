"""Services: the seam between a chapter that wants a daemon and the init system that has it.

Howto: „sshd … + Runlevel“, „syslogd, crond (mind. Runlevel)“.
"""

from __future__ import annotations

from typing import Any, Protocol

from xenlab.command import Command
from xenlab.errors import BadInput
from xenlab.platform.daemon import NoneFailed
from xenlab.platform.openrc import OpenRc
from xenlab.platform.systemd import Systemd
from xenlab.resources.base import Resource


class Services(Protocol):
    """What an init system can be asked for; each answer is a Resource."""

    early: str
    """A script that lists what is started before a mount, as `xenlab.platform.early` says."""

    def enabled(self, *names: str) -> Resource:
        """These services are started at every boot."""

    def running(self, *names: str) -> Resource:
        """These services are started at every boot, and run now."""

    def disabled(self, *names: str) -> Resource:
        """These services are not started at boot, and do not run now."""

    def masked(self, *names: str) -> Resource:
        """These services do not run, and nothing can start them."""

    def reload(self, name: str) -> Command:
        """The command that has a service read its files again, if it runs."""

    def carrying(self, name: str, process: str, argument: str) -> Resource:
        """A service's process was started with this argument; else the service is restarted."""

    def defined(self, name: str, **values: Any) -> Resource:
        """A service of our own, from the template of its name; neither enabled nor started."""

    def adjusted(self, name: str, **values: Any) -> Resource:
        """What xenlab adds to a service of the distribution, from the template of its name."""

    def after_mount(self, name: str, folder: str) -> Resource:
        """A service starts once what belongs at this folder is mounted (howto: S58)."""

    def waited(self, folder: str, *names: str) -> Resource:
        """The condition that these services started after the folder was mounted."""

    def none_failed(self) -> NoneFailed:
        """The condition that no service has failed; one that did is named with its last lines."""

    def server_unordered(self) -> Resource:
        """NFS mounts do not wait for this machine's own NFS server (howto: S60)."""

    def start(self, name: str) -> Command:
        """The command that starts a service, unless it runs."""

    def stop(self, name: str) -> Command:
        """The command that stops a service, if it runs."""

    def restart(self, name: str) -> Command:
        """The command that stops a service and starts it again."""

    def runs(self, name: str) -> Command:
        """The command whose exit status is 0 where a service runs."""

    def hint(self, name: str) -> str:
        """What a person types to see how a service is."""


def services(platform: str) -> Services:
    """The answer for a platform of the parameters file. Raises BadInput where there is none."""
    if platform == "debian":
        return Systemd()
    if platform == "gentoo":
        return OpenRc()
    raise BadInput(
        f"platform: nobody has written down yet how {platform!r} handles services",
        hint="use platform: debian",
    )
