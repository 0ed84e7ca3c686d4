"""A machine that OpenRC boots: the BUGFIX service, a power cycle, a package from the store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.gentoo.roots import Roots, quiet
from tests.sites import lab_site

from xenlab.cache import cache_root
from xenlab.chapters import configuration
from xenlab.command import Command
from xenlab.host import Host
from xenlab.platform.interfaces import GuestSettings, guest_system, interfaces
from xenlab.platform.openrc import OpenRc
from xenlab.platform.portage import Portage
from xenlab.resources.files import File
from xenlab.resources.network import LanDevices
from xenlab.resources.shared_usr import needed_before
from xenlab.transport.ssh import SSH
from xenlab.transport.ssh_config import Target
from xenlab_lab import media, tools
from xenlab_lab.access import DOM0, Access, wait_for_ssh
from xenlab_lab.machine import Direct, Machine
from xenlab_lab.media import CpioWriter

# stage and rescue system are built first, where they are not in the cache
pytestmark = pytest.mark.timeout(3600)

NAME = "m-rc"
SECONDS = 900.0
TREE = "app-text/tree"
SITE = lab_site(platform="gentoo", software=[], shared_packages=[])
OWN = ("xenlab-lan", "xenlab-vif", "xenlab-lan-address")

# What the rescue system does before its own work, and then the disk's own init in its place.
INIT = b"""\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do modprobe -q "$module"; done < /etc/xenlab-modules
until [ -b /dev/vda ]; do sleep 0.2; done
mount -t ext4 /dev/vda /mnt
for folder in proc sys dev; do mount --move "/$folder" "/mnt/$folder"; done
exec switch_root /mnt /sbin/init
"""
DISK = """
    mkdir -p "$1.view"
    # without what is mounted below it
    mount --bind "$1" "$1.view"
    mkfs.ext4 -q -d "$1.view" "$2" 2000M
    umount "$1.view"
"""


class Guest:
    """A QEMU machine whose disk is a root directory, booted past any boot loader."""

    def __init__(self, roots: Roots) -> None:
        self.folder = cache_root() / "labs" / NAME
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.machine = Machine(self.folder, NAME, memory=1024)
        self.machine.disk.unlink(missing_ok=True)
        self.access = Access(self.folder)
        self.access.create_keys()
        kernel, image = media.rescue()
        self.initrd = self.folder / "rescue.img"
        self.access.key_archive(self.initrd, image)
        with self.initrd.open("ab") as out:
            archive = CpioWriter(out)
            archive.file("init", INIT, mode=0o755)
            archive.close()
        self.direct = Direct(kernel, self.initrd)
        self._fill(roots)
        self.port: int | None = None

    def _fill(self, roots: Roots) -> None:
        root = roots.domain("guest")
        values = {"interface": SITE.lan_interface, "address": SITE.lan_address}
        lan = (
            File("/usr/local/sbin/xenlab-lan", template="xenlab-lan.sh", mode=0o755),
            configuration.lan_settings(SITE),
            *(OpenRc().defined(name, **values) for name in OWN),
            *interfaces("gentoo").lan(SITE.lan_interface, SITE.lan_address),
        )
        for resource in (*lan, *Portage(SITE.portage).settled()):
            resource.apply(root, quiet)
        OpenRc().disabled("nfs-server", "xendomains").apply(root, quiet)
        OpenRc().enabled(*OWN).apply(root, quiet)
        # built here, where it is quick, taken off again, and installed from its package later
        Portage(SITE.portage).installed(TREE).apply(root, quiet)
        root.run(Command.argv("emerge", "--quiet", "--unmerge", TREE), timeout=300)
        root.run("rm -rf /usr/lib/gcc /usr/bin/*gcc*")
        settings = GuestSettings(
            "guest", "lab.internal", SITE.address, SITE.gateway, SITE.nameserver, "dom0", "10.0.2.2"
        )
        for file in guest_system("gentoo").files(settings):
            if not file.edit:
                file.resource().apply(root, quiet)
        root.write("/etc/fstab", "/dev/vda / ext4 noatime 0 1\n")
        root.run("install -d -m 700 /root/.ssh")
        root.write("/root/.ssh/authorized_keys", f"{self.access.public_key}\n", mode=0o600)
        key = self.folder / "rescue_host_ed25519"
        root.write("/etc/ssh/ssh_host_ed25519_key", key.read_text(), mode=0o600)
        root.write("/etc/ssh/ssh_host_ed25519_key.pub", key.with_suffix(".pub").read_text())
        raw = self.folder / "disk.raw"
        roots.machine.run(Command.script(DISK, root.root, str(raw)), timeout=600)
        tools.run(["qemu-img", "convert", "-q", "-O", "qcow2", raw, self.machine.disk])
        raw.unlink()

    def start(self) -> Host:
        """Switch it on, and wait for SSH."""
        self.port = self.machine.start(self.direct, accel="tcg", port=self.port)
        self.access.pin(self.port)
        self.access.write_config(self.port, {})
        wait_for_ssh(
            self.port,
            self.access.argv(DOM0, ["true"]),
            seconds=SECONDS,
            alive=lambda: self.machine.pid() is not None,
            console=self.machine.console_log,
            report=tools.quiet,
        )
        return Host(SSH(Target(DOM0, config=str(self.access.config))))

    def end(self) -> None:
        """Switch it off; nothing of it is left."""
        self.machine.quit()
        tools.run(["rm", "-r", "--", self.folder])


@pytest.fixture(scope="module")
def guest(roots: Roots) -> Iterator[Guest]:
    it = Guest(roots)
    try:
        yield it
    finally:
        it.end()


@pytest.fixture(scope="module")
def host(guest: Guest) -> Host:
    return guest.start()


def lan(*, joined: bool = True) -> LanDevices:
    """The devices of the internal LAN, with dom0 in it or out of it."""
    if not joined:
        return LanDevices(SITE.lan_bridge, SITE.lan_interface, joined=False)
    return LanDevices(SITE.lan_bridge, SITE.lan_interface, SITE.lan_address)


def test_openrc_has_started_what_is_in_its_runlevels(host: Host) -> None:
    assert host.run("cat /proc/1/comm").stdout == "init\n"
    assert OpenRc().running("ssh", "cron", "syslog-ng", *OWN).probe(host) is None
    in_runlevel = host.run("ls /etc/runlevels/default").stdout.split()
    known = host.run("cat /run/openrc/deptree").stdout
    # a script whose dependencies OpenRC cannot read is left out without a word
    assert [name for name in in_runlevel if f"_service='{name}'" not in known] == []
    assert OpenRc().disabled("nfs-server").probe(host) is None
    assert lan().probe(host) is None


def test_what_a_boot_needs_before_a_mount_over_the_network(host: Host) -> None:
    needed = needed_before(host, "/mnt/share", OpenRc.early)
    by_script = {
        unit: {each.program.rpartition("/")[2] for each in needed if each.unit == unit}
        for unit in ("PID 1", "netmount", "net.eth0")
    }
    assert by_script["PID 1"] == {"init"}
    assert {"mount", "mount.nfs4"} <= by_script["netmount"]
    assert "ip" in by_script["net.eth0"]
    libraries = {library for each in needed for library in each.libraries}
    assert any(library.endswith("/libc.so.6") for library in libraries)


def test_what_does_not_run_is_started(host: Host) -> None:
    wanted = OpenRc().running("cron")
    host.run(OpenRc().stop("cron"), timeout=SECONDS)
    assert not host.test(OpenRc().runs("cron"), timeout=SECONDS)
    difference = wanted.probe(host)
    assert difference is not None
    assert difference.rows == ({"service": "cron", "runlevel": "default", "now": "stopped"},)
    wanted.apply(host, quiet)
    wanted.verify(host)
    assert host.test(OpenRc().runs("cron"), timeout=SECONDS)


def test_the_bugfix_takes_dom0_out_of_its_lan_and_back(host: Host) -> None:
    for _ in range(2):
        host.run(OpenRc().stop("xenlab-vif"), timeout=SECONDS)
        assert lan(joined=False).probe(host) is None
    host.run(OpenRc().start("xenlab-vif"), timeout=SECONDS)
    assert lan(joined=False).probe(host) is not None
    # stopped with it, since it comes after: OpenRC starts no more than it is asked for
    host.run(OpenRc().start("xenlab-lan-address"), timeout=SECONDS)
    assert lan().probe(host) is None


def test_a_package_comes_from_the_store_without_a_compiler(host: Host) -> None:
    assert not host.test("command -v gcc")
    wanted = Portage(SITE.portage).from_store(TREE)
    assert wanted.probe(host) is not None
    wanted.apply(host, quiet)
    wanted.verify(host)
    assert "Merging Binary" in (host.read("/var/log/emerge.log") or "")
    assert "make.conf" in host.run("tree --noreport -L 1 /etc/portage").stdout


def test_after_a_power_cycle_the_lan_is_there_in_the_right_order(guest: Guest, host: Host) -> None:
    before = host.boot_id()
    host.run("sync")
    guest.machine.quit()
    again = guest.start()
    assert again.boot_id() != before
    wanted = OpenRc().running(*OWN)
    assert wanted.probe(again) is None
    assert lan().probe(again) is None
    # OpenRC links what it has started, when it has started it
    started = again.run("ls -1tr /run/openrc/started").stdout.split()
    assert [name for name in started if name in OWN] == list(OWN)
