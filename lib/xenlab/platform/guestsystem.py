"""A guest's own configuration, written from dom0: what files each distribution wants for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from xenlab.errors import BadInput
from xenlab.platform import netifrc
from xenlab.resources.files import render
from xenlab.resources.guest import GuestFile

UNITS = "/etc/systemd/system"

OFF = (
    "xen.service",
    "xendomains.service",
    "xenlab-bridge.service",
    "nfs-server.service",
    "distcc.service",
    "rpcbind.service",
    "rpcbind.socket",
    "modprobe@.service",
    "systemd-modules-load.service",
    "e2scrub_reap.service",
    "getty@.service",
)
"""What the image brings along from dom0 and a guest must not start by itself, or cannot use:
servers (chapter 15 unmasks NFS in a guest that is to serve), what
loads modules into a kernel without any, what looks after LVM; and all terminals but the Xen console
(for which systemd-getty-generator starts serial-getty@hvc0 by itself)."""

# Disks and the console come from dom0, as soon as it has a processor for them: where several guests
# boot at once without hardware support, systemd's 90 seconds end before, and login prompt and swap
# never come (systemd-system.conf(5)).
PATIENT = "[Manager]\nDefaultDeviceTimeoutSec=10min\n"

# „alle tty-Einträge bis auf den für tty1 auskommentiert“; what was tty1 is hvc0 today.
ONE_TERMINAL = r"""1i\
h0:12345:respawn:/sbin/agetty -L 115200 hvc0 linux
/^h0:/d
/^[^#].*:respawn:.*getty/s/^/#/"""


@dataclass(frozen=True)
class GuestSettings:
    """What is a guest's own: its names, its address with prefix, whom it asks, its disks."""

    name: str
    domain: str
    address: str
    gateway: str
    nameserver: str
    dom0: str
    dom0_address: str
    root_device: str = "/dev/xvda1"
    swap_device: str = "/dev/xvda2"


class GuestSystem(Protocol):
    """How a guest of a distribution is configured while it does not run."""

    def files(self, guest: GuestSettings) -> tuple[GuestFile, ...]:
        """The files of a guest."""

    def lan(self, interface: str, address: str) -> tuple[GuestFile, ...]:
        """The files of an interface in the internal LAN."""


class DebianGuest:
    """Debian: ifupdown, systemd."""

    def files(self, guest: GuestSettings) -> tuple[GuestFile, ...]:
        """Names, fstab, network, host key; masked units as links to /dev/null (systemctl(1))."""
        interfaces = render("guest-interfaces.j2", guest=guest)
        return (
            *_common(guest),
            GuestFile("/etc/network/interfaces", interfaces),
            GuestFile("/etc/systemd/system.conf.d/10-xenlab.conf", PATIENT),
            *(GuestFile(f"{UNITS}/{unit}", target="/dev/null") for unit in OFF),
        )

    def lan(self, interface: str, address: str) -> tuple[GuestFile, ...]:
        """A stanza of its own, which /etc/network/interfaces takes in."""
        text = render("guest-lan.j2", interface=interface, address=address)
        return (GuestFile("/etc/network/interfaces.d/xenlab-lan", text),)


class GentooGuest:
    """Gentoo: netifrc, OpenRC under sysvinit. The image holds no service that is dom0's alone."""

    def files(self, guest: GuestSettings) -> tuple[GuestFile, ...]:
        """Names, fstab, network, host key, and inittab(5) with one terminal: the Xen console."""
        return (
            *_common(guest),
            *_interface("eth0", netifrc.settings("eth0", guest.address, guest.gateway)),
            GuestFile("/etc/inittab", edit=ONE_TERMINAL),
        )

    def lan(self, interface: str, address: str) -> tuple[GuestFile, ...]:
        """An interface that stays up while the guest stops: its files come over it."""
        return _interface(interface, netifrc.settings(interface, address, kept=True))


def _common(guest: GuestSettings) -> tuple[GuestFile, ...]:
    return (
        GuestFile("/etc/hostname", f"{guest.name}\n"),
        *(
            GuestFile(f"/etc/{name}", render(f"guest-{name}.j2", guest=guest))
            for name in ("hosts", "fstab", "resolv.conf")
        ),
        # sshd would complain about each key type that was not made
        GuestFile(
            "/etc/ssh/sshd_config.d/10-xenlab-host-key.conf",
            "HostKey /etc/ssh/ssh_host_ed25519_key\n",
        ),
    )


def _interface(name: str, settings: str) -> tuple[GuestFile, ...]:
    script = netifrc.script_path(name)
    in_runlevel = f"/etc/runlevels/default/{netifrc.script(name)}"
    return (
        GuestFile(netifrc.settings_path(name), settings),
        GuestFile(script, target=netifrc.SHARED),
        GuestFile(in_runlevel, target=script),
    )


def guest_system(platform: str) -> GuestSystem:
    """A platform's answer; raises BadInput where there is none."""
    if platform == "debian":
        return DebianGuest()
    if platform == "gentoo":
        return GentooGuest()
    raise BadInput(f"guests of the platform {platform!r} cannot be configured")
