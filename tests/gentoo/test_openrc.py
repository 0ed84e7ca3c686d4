"""OpenRC for real, in a root directory that is not booted: runlevels, own scripts, their order."""

from __future__ import annotations

import pytest
from tests.gentoo.roots import Roots, quiet

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.platform.base import parse_failed
from xenlab.platform.interfaces import Netifrc
from xenlab.platform.openrc import OpenRc
from xenlab.resources.base import Resource
from xenlab.resources.files import File
from xenlab.resources.ssh_access import SshdSettings

# the stage is built first, where it is not in the cache
pytestmark = pytest.mark.timeout(2400)

OWN = {
    "xenlab-bridge": {"uplink": "eth0"},
    "xenlab-lan": {},
    "xenlab-vif": {"interface": "veth1"},
    "xenlab-lan-address": {"interface": "veth1", "address": "10.66.0.1/24"},
}


def settle(host: Host, *resources: Resource) -> None:
    for resource in resources:
        resource.apply(host, quiet)
        resource.verify(host)


@pytest.fixture
def root(roots: Roots, request: pytest.FixtureRequest) -> Host:
    return roots.domain(request.node.name.replace("[", "-").rstrip("]"))


def test_enabling_and_disabling(root: Host) -> None:
    wanted = OpenRc().enabled("ssh", "cron", "xen", "nfs-server")
    settle(root, OpenRc().enabled("nfs-server"))
    assert wanted.probe(root) is None
    settle(root, OpenRc().disabled("nfs-server", "cron"))
    left = wanted.probe(root)
    assert left is not None
    assert left.rows == (
        {"service": "cron", "runlevel": "none", "now": "-"},
        {"service": "nfs-server", "runlevel": "none", "now": "-"},
    )
    settle(root, wanted)
    shown = root.run("rc-update show default").stdout
    assert "cron" in shown and "nfs" in shown


def test_in_a_root_that_is_not_booted_nothing_is_started(root: Host) -> None:
    wanted = OpenRc().running("cron")
    settle(root, OpenRc().disabled("cron"), wanted)
    assert root.run("ls /run/openrc/started 2> /dev/null || :").stdout == ""


def test_a_service_that_does_not_exist(root: Host) -> None:
    missing = OpenRc().enabled("ssh", "nothing-like-it")
    difference = missing.probe(root)
    assert difference is not None
    assert difference.rows == ({"service": "nothing-like-it", "runlevel": "missing", "now": "-"},)
    with pytest.raises(CommandFailed, match="there is no script nothing-like-it in /etc/init.d"):
        missing.apply(root, quiet)
    assert OpenRc().disabled("nothing-like-it").probe(root) is None


def test_what_failed_to_start_is_named_with_its_last_lines(root: Host) -> None:
    none = OpenRc().none_failed()
    assert root.run(none.look).stdout == ""
    root.run("mkdir -p /run/openrc/failed && ln -s /etc/init.d/cron /run/openrc/failed/cron")
    root.run("printf 'cron: %s\\nsshd: fine\\n' 'no table' 'no time' > /var/log/messages")
    assert parse_failed(root.run(none.look).stdout) == {"cron": ["cron: no table", "cron: no time"]}
    difference = none.probe(root)
    assert difference is not None and difference.summary.startswith("nobody can say yet")


def test_a_root_that_is_not_there_yet(root: Host) -> None:
    nowhere = root.inside("/nowhere")
    difference = OpenRc().running("ssh").probe(nowhere)
    assert difference is not None and difference.summary == "enable and start ssh"


def test_what_the_network_waits_for_comes_before_it(root: Host) -> None:
    define(root)
    settle(root, *Netifrc().uplink("eth0", "192.0.2.2/24", "192.0.2.1", "xenbr0"))
    shown = root.run("rc-update show boot").stdout
    assert "xenlab-bridge" in shown and "xenlab-lan " in shown and "net.lo" in shown
    assert "net.eth0" not in shown and "xenlab-vif" not in shown
    order = started(root, "netmount", "default")
    wanted = ["xenlab-bridge", "net.eth0", "netmount"]
    assert [name for name in order if name in wanted] == wanted


def test_the_address_moves_to_the_bridge_and_back(root: Host) -> None:
    """Chapter 07 both ways; chapter 04 holds with either."""
    values = ("eth0", "192.0.2.2/24", "192.0.2.1", "xenbr0")
    (first,) = Netifrc().uplink(*values)
    settle(root, first)
    settle(root, *Netifrc().on_bridge(*values))
    assert first.probe(root) is None
    shown = root.run("rc-update show default").stdout
    assert "net.xenbr0" in shown and "net.eth0" not in shown
    settle(root, *Netifrc().beside_bridge(*values))
    shown = root.run("rc-update show default").stdout
    assert "net.eth0" in shown and "net.xenbr0" not in shown


def test_the_bugfix_comes_after_xen_and_before_the_guests(root: Host) -> None:
    """The howto's „before net.vethX xendomains“ and „needs xend“, as OpenRC works them out."""
    define(root)
    settle(root, OpenRc().adjusted("xendomains", weight=1024), OpenRc().enabled("nfs-server"))
    order = started(root, "xendomains", "default")
    wanted = ["xen", "xenlab-vif", "xenlab-lan-address", "nfs", "xendomains"]
    assert [name for name in order if name in wanted] == wanted
    assert order.index("xenlab-xendomains") < order.index("xendomains")
    assert started(root, "xenlab-vif", "default").index("xenlab-lan") == 0


def test_what_waits_for_the_share(root: Host) -> None:
    assert "netmount" not in started(root, "cron", "default")
    settle(root, OpenRc().after_mount("cron", "/mnt/share"))
    order = started(root, "cron", "default")
    assert order.index("netmount") < order.index("cron")


def test_a_refused_configuration_takes_no_place(root: Host) -> None:
    path, reload = "/etc/ssh/sshd_config.d/10-xenlab.conf", OpenRc().reload("ssh")
    root.run("ssh-keygen -A; mkdir -p /run/sshd", timeout=120)
    settle(root, SshdSettings(File(path, "PasswordAuthentication no\n"), reload))
    with pytest.raises(StepFailed, match="10-xenlab.conf: because sshd refuses it"):
        SshdSettings(File(path, "Passwords never\n"), reload).apply(root, quiet)
    assert root.read(path) == "PasswordAuthentication no\n"


def define(root: Host) -> None:
    """Every service of xenlab's own, written and in its runlevel."""
    openrc = OpenRc()
    settle(root, *(openrc.defined(name, **values) for name, values in OWN.items()))
    settle(root, openrc.enabled(*OWN))


def started(root: Host, service: str, runlevel: str) -> list[str]:
    """What is started when a service is, in order, as the runlevel has it (rc-depend(8))."""
    script = """
        mkdir -p /run/openrc
        echo "$2" > /run/openrc/softlevel
        /lib/rc/bin/rc-depend --update --type ineed,iuse,iafter "$1"
    """
    said = root.run(Command.script(script, service, runlevel), timeout=120).stdout
    return said.splitlines()[-1].split()
