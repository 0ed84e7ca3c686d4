"""The embedded lab's machine, for real: QEMU, the rescue system, power, snapshots, signals."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.whole_lab import said

from xenlab.errors import BadInput, LabError
from xenlab_lab.lab import Lab
from xenlab_lab.mirrors import SUITE

NAME = "m-one"
OTHER = "m-two"
MEMORY = 1024
DEADLINE = 600.0

# a loaded machine without KVM boots slowly; each wait below has its own deadline
pytestmark = pytest.mark.timeout(1800)


def make(name: str) -> Lab:
    return Lab(name, memory=MEMORY, disk_gib=2)


def processes_of(lab: Lab) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(lab.folder / "qemu.pid") in words:
            found.append(int(entry.parent.name))
    return found


def ssh(lab: Lab, script: str) -> str:
    return said(lab, script, DEADLINE).strip()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    it = make(NAME)
    it.reset()
    try:
        it.up(seconds=DEADLINE)
        yield it
    finally:
        it.remove()
    assert processes_of(it) == []


def test_rescue_boots_to_a_shell_of_its_own(lab: Lab) -> None:
    status = lab.status()
    assert status.running
    assert status.boot == "rescue"
    assert ssh(lab, "hostname; cat /etc/xenlab-rescue; id -u").splitlines() == [
        "rescue",
        "xenlab rescue system",
        "0",
    ]
    assert ssh(lab, "readlink -f /dev/stdin >/dev/null; ls -d /dev/fd /mnt") == "/dev/fd\n/mnt"


def test_disk_carries_the_serial_that_may_wipe_names(lab: Lab) -> None:
    assert lab.status().serial == "XENLAB-M-ONE"
    assert ssh(lab, "lsblk -dno SERIAL /dev/vda") == "XENLAB-M-ONE"


def answer(lab: Lab, request: str) -> str:
    """The first line that the relay to the mirrors answers."""
    heard = ssh(lab, f"printf '{request} HTTP/1.1\\r\\n\\r\\n' | busybox nc -w 60 10.0.2.4 3142")
    return heard.partition("\r\n")[0]


def reaches(lab: Lab, address: str) -> bool:
    """Whether a connection from inside gets to a program on this machine's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ssh(lab, f"timeout 60 bash -c ': > /dev/tcp/{address}/{port}' || :")
        return bool(select.select([listener], [], [], 0)[0])


def test_the_package_mirrors_are_reached_and_nothing_else(lab: Lab) -> None:
    assert not reaches(lab, "10.0.2.2")
    assert not reaches(lab, "10.0.2.4")
    # no name server, no IPv6 but the link's own; what is asked for a sign of life still answers
    given = "cat /etc/resolv.conf /proc/net/if_inet6 2> /dev/null | grep -v -e ' lo$' -e ^fe80 || :"
    assert ssh(lab, given) == ""
    assert "1 packets received" in ssh(lab, "busybox ping -c 1 -W 60 10.0.2.2")
    mirror = json.loads((lab.folder / "relay.json").read_text())[0]
    place = urlsplit(mirror["place"])
    if place.scheme == "http":
        file = f"{mirror['place']}{mirror['path']}dists/{SUITE}/InRelease"
        assert answer(lab, f"HEAD {file}").startswith("HTTP/1.1 200 ")
    else:
        assert answer(lab, f"CONNECT {place.netloc}").startswith("HTTP/1.1 200 ")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = f"127.0.0.1:{listener.getsockname()[1]}"
        for request in (f"GET http://{here}/", f"CONNECT {here}"):
            assert "is below no package mirror" in answer(lab, request)
        assert not select.select([listener], [], [], 0)[0]


def test_partition_labels_and_filesystems(lab: Lab) -> None:
    table = r"label: gpt\nname=one, size=100MiB\nname=two\n"
    out = ssh(
        lab,
        f"printf '{table}' | sfdisk -q --wipe always /dev/vda && udevadm settle"
        " && mkfs.ext4 -q -L root /dev/disk/by-partlabel/one && udevadm settle"
        " && mount /dev/disk/by-label/root /mnt && findmnt -no FSTYPE /mnt && umount /mnt"
        " && lsblk -no PARTLABEL /dev/vda",
    )
    assert out.split() == ["ext4", "one", "two"]


def test_listens_on_loopback_only(lab: Lab) -> None:
    port = lab.status().port
    assert port is not None
    listening = subprocess.run(
        ["ss", "-Hltnp"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    pid = lab.status().pid
    mine = [line.split()[3] for line in listening if f"pid={pid}," in line]
    assert mine == [f"127.0.0.1:{port}"]


def test_an_unknown_host_key_is_refused(lab: Lab) -> None:
    pins = lab.access.known_hosts.read_text()
    foreign = make(NAME + "x")
    try:
        foreign.folder.mkdir(parents=True, exist_ok=True)
        foreign.access.create_keys()
        foreign.access.pin(lab.status().port or 0)
        lab.access.known_hosts.write_text(foreign.access.known_hosts.read_text())
        with pytest.raises(LabError, match=r"because the host key SHA256:\S+ is not"):
            lab.wait_for_ssh(DEADLINE)
    finally:
        lab.access.known_hosts.write_text(pins)
        foreign.remove()


def test_files_of_the_lab_are_private(lab: Lab) -> None:
    assert lab.folder.stat().st_mode & 0o077 == 0


def test_console_is_on_file_and_can_be_joined(lab: Lab) -> None:
    code = f"from xenlab_lab.lab import Lab; Lab({NAME!r}).attach()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin
        assert child.stdout
        guard = threading.Timer(DEADLINE, child.kill)
        guard.start()
        speaker = threading.Thread(
            target=ssh,
            args=(lab, "for i in 1 2 3 4 5 6 7 8 9; do echo mark >/dev/ttyS0; sleep 1; done"),
        )
        speaker.start()
        assert b"mark" in child.stdout.readline() + child.stdout.readline()
        child.stdin.write(b"\x1d")
        child.stdin.flush()
        assert child.wait(DEADLINE) == 0
        guard.cancel()
        speaker.join()
    assert "mark" in lab.status().console_log.read_text(errors="replace")


def test_snapshot_and_restore_running_and_off(lab: Lab) -> None:
    boot_id = ssh(lab, "echo before >/run/mark; cat /proc/sys/kernel/random/boot_id")
    lab.snapshot("one")
    ssh(lab, "echo after >/run/mark")
    lab.restore("one")
    assert ssh(lab, "cat /run/mark /proc/sys/kernel/random/boot_id").split() == ["before", boot_id]
    lab.down(hard=True)
    assert processes_of(lab) == []
    lab.restore("one")
    assert ssh(lab, "cat /run/mark /proc/sys/kernel/random/boot_id").split() == ["before", boot_id]
    with pytest.raises(BadInput, match=r"cannot restore snapshot 'two'[\s\S]*one"):
        lab.restore("two")


def test_up_again_changes_nothing(lab: Lab) -> None:
    before = lab.status()
    assert lab.up() == before


def test_the_network_is_open_on_request_and_restricted_again(lab: Lab) -> None:
    assert lab.status().network == "restricted"
    assert lab.up(network="open", seconds=DEADLINE).network == "open"
    assert reaches(lab, "10.0.2.2")
    assert ssh(lab, "cat /etc/resolv.conf") == "nameserver 10.0.2.3"
    # remembered, until it is said otherwise
    assert lab.up(seconds=DEADLINE).network == "open"
    assert lab.up(network="restricted", seconds=DEADLINE).network == "restricted"
    assert not reaches(lab, "10.0.2.2")


def test_two_labs_side_by_side(lab: Lab) -> None:
    other = make(OTHER)
    try:
        # no boot is needed to see that both machines have got a port and keys of their own
        status = other.boot("rescue")
        assert status.running
        assert lab.status().running
        assert status.port != lab.status().port
        assert status.serial == "XENLAB-M-TWO"
        assert other.access.public_key != lab.access.public_key
    finally:
        other.remove()
    assert processes_of(other) == []
    assert lab.status().running


def test_a_second_command_on_the_same_lab_is_refused(lab: Lab) -> None:
    code = (
        f"import sys; from xenlab_lab.lab import Lab; it = Lab({NAME!r})\n"
        "with it._locked(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LabError, match="another command"):
            lab.down()
        assert lab.status().running


def test_a_stale_pid_file_is_not_believed(lab: Lab) -> None:
    other = make(OTHER)
    other.folder.mkdir(parents=True, exist_ok=True)
    try:
        (other.folder / "qemu.pid").write_text(f"{os.getpid()}\n")
        assert not other.status().running
    finally:
        other.remove()


def test_a_taken_port_is_replaced_and_the_pins_follow(lab: Lab) -> None:
    old = lab.status().port
    lab.down()
    assert processes_of(lab) == []
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", old or 0))
        thief.listen()
        new = lab.up(seconds=DEADLINE).port
    assert new != old
    pins = lab.access.known_hosts.read_text()
    assert f"]:{new} " in pins
    assert f"]:{old} " not in pins


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_up_leaves_no_process(lab: Lab, number: signal.Signals) -> None:
    other = make(OTHER)
    try:
        code = f"from xenlab_lab.lab import Lab; Lab({OTHER!r}, memory={MEMORY}, disk_gib=2).up()"
        with subprocess.Popen(
            # A test run started in the background hands an ignored SIGINT down.
            preexec_fn=partial(signal.signal, number, signal.SIG_DFL),
            args=[sys.executable, "-c", code],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as child:
            limit = time.monotonic() + DEADLINE
            while not processes_of(other):
                assert child.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.05)
            child.send_signal(number)
            assert child.wait(DEADLINE) != 0
        assert processes_of(other) == []
        assert not other.status().running
    finally:
        other.remove()


def test_a_machine_that_dies_is_reported_at_once(lab: Lab) -> None:
    ssh(lab, "nohup sh -c 'sleep 1; poweroff' >/dev/null 2>&1 </dev/null &")
    assert lab.machine.wait_off(DEADLINE)
    with pytest.raises(LabError, match="not running"):
        lab.wait_for_ssh(DEADLINE)
    with pytest.raises(LabError, match="not running"):
        lab.ssh_argv("dom0")


@pytest.mark.parametrize("name", ["", "Lab", "a b", "../x", "-a", "a-", "far-too-long-name"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises((BadInput, LabError)):
        Lab(name)
