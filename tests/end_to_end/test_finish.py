"""The howto's last third, on the finished lab: autostart, the internal LAN, the share, /usr.

These tests run after those of `test_end_to_end`, which bring the lab there.
"""

from __future__ import annotations

import hashlib
import json
import re
import select
import shlex
import shutil
import socket
import struct
import threading
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.end_to_end.conftest import NAME
from tests.whole_lab import (
    CHAPTERS,
    HOUR,
    Site,
    killed,
    power_cycled,
    statuses,
    wait_until,
    without_record,
)

from xenlab.errors import ConnectionLost
from xenlab.host import Host
from xenlab.journal import Journal
from xenlab.resources.base import ANSWER_SECONDS
from xenlab.runs import folder as runs
from xenlab.site.schema import load
from xenlab.transport.ssh import SSH
from xenlab.transport.ssh_config import Target
from xenlab_lab.lab import Lab
from xenlab_lab.mirrors import SUITE
from xenlab_lab.tools import qmp_execute

LAN = bytes((10, 66, 0))
LAN_MACS = tuple(bytes.fromhex(f"00163e66020{number}") for number in (1, 2, 3))
AUTOSTARTED = ("domu1", "domu2")
SHARING = "domu2"
SOURCE_OF_USR = ("findmnt", "-rn", "-o", "SOURCE", "-T", "/usr/.")
SERVING = "domu3"


def qemu() -> Path:
    """The socket on which the machine takes commands."""
    return Lab(NAME).folder / "qmp.sock"


def frames(capture: Path) -> list[bytes]:
    """The frames of a capture as QEMU's filter-dump writes it (pcap, little endian)."""
    data = capture.read_bytes()
    assert data[:4] == b"\xd4\xc3\xb2\xa1"
    place, found = 24, []
    while place + 16 <= len(data):
        (size,) = struct.unpack_from("<I", data, place + 8)
        found.append(data[place + 16 : place + 16 + size])
        place += 16 + size
    return found


def of_the_lan(frame: bytes, macs: tuple[bytes, ...]) -> bool:
    """Whether a frame has anything of the internal LAN: its MAC addresses, or its IPv4 addresses.

    The broadcast address is nobody's; IPv4 and ARP carry addresses in their first 64 bytes.
    """
    return any(mac in frame[:42] for mac in macs) or LAN in frame[14:64]


def test_guests_and_shares_are_as_the_site_says(site: Site) -> None:
    for number, guest in enumerate(("domu1", "domu2", "domu3"), 1):
        assert f"10.66.0.1{number}/24" in site.ssh(guest, "ip", "-o", "-4", "addr")
        mounts = site.ssh(guest, "findmnt", "-rn", "-t", "nfs4", "-o", "TARGET,SOURCE")
        assert "/mnt/share 10.66.0.1:/mnt/share" in mounts
        assert "/mnt/share/apt" not in mounts
        assert "/dev/xvda2" in site.ssh(guest, "cat", "/proc/swaps")
        if guest != SHARING:
            assert site.ssh(guest, "tree", "--version").startswith("tree ")
    assert site.ssh("", "ip", "-o", "addr", "show", "dev", "xenbr1") == ""
    ports = site.ssh("", "ls", "/sys/class/net/xenbr1/brif").split()
    assert "vif0.1" in ports
    assert all(port.startswith("vif") for port in ports)


def test_the_root_of_a_guest_writes_to_nothing_of_dom0_s(site: Site) -> None:
    """Nor does one that mounts dom0's export as it likes."""
    exports = site.ssh("", "exportfs", "-v")
    assert "/mnt/share" in exports and "rw" not in re.split(r"[(),\s]+", exports)
    place = "p=$(mktemp -d /tmp/xenlab.XXXXXX)"
    script = f"""
        {place} && mount -t nfs4 -o vers=4.2,rw 10.66.0.1:/mnt/share $p || :
        for there in /mnt/share $p; do
            touch $there/planted $there/apt/archives/planted $there/apt/lists/planted || :
            for file in $there/apt/archives/*.deb; do echo >> $file; mv $file $file.x || :; done
        done
        umount $p || :; rmdir $p
    """
    look = "cd /mnt/share && find apt images -type f -exec sha256sum {} + | sort | sha256sum"
    before = site.ssh("", look)
    for guest in ("domu1", "domu2", "domu3"):
        site.ssh(guest, f"({script}) 2>&1")
    assert site.ssh("", look) == before
    assert site.ssh("", "find /mnt/share /var/cache/apt -name planted") == ""


def test_no_guest_has_a_secret_of_dom0_s(site: Site) -> None:
    """The image that all of them read, and what was made of it."""
    image = "zstd -dc /mnt/share/images/base.tar.zst | tar -xO"
    assert site.ssh("domu1", f"{image} ./root/.ssh/authorized_keys 2>&1 || :").count("ssh-") == 0
    for guest in ("domu1", "domu2", "domu3"):
        shadow = site.ssh(guest, "cat", "/etc/shadow").splitlines()
        assert {line.split(":")[1] for line in shadow} <= {"*", "!", "!!", "!*"}
        mode = site.ssh(guest, "stat -c '%a %U' /root /root/.ssh /root/.ssh/authorized_keys")
        assert mode.splitlines() == ["700 root", "700 root", "600 root"]


def test_one_guest_runs_from_the_shared_usr(site: Site) -> None:
    source, options = site.ssh(SHARING, "findmnt", "-rn", "-o", "SOURCE,OPTIONS", "/usr").split()
    assert source.startswith("10.66.0.1:/mnt/share/usr/")
    assert "ro" in options.split(",")
    assert site.ssh(SHARING, "ls", "-d", "/usr.old").strip() == "/usr.old"
    assert "Read-only" in site.ssh(SHARING, "touch /usr/x 2>&1 || :")
    assert site.ssh(SHARING, "readlink", "/proc/1/exe").strip() == "/usr/lib/systemd/systemd"


def test_a_guest_serves_something_itself(site: Site) -> None:
    assert "/srv/export" in site.ssh(SERVING, "exportfs", "-s")
    place = "mktemp -d /tmp/xenlab.XXXXXX"
    mount = f"p=$({place}) && mount -t nfs4 -o vers=4.2 10.66.0.13:/srv/export $p"
    site.ssh("domu1", f"{mount} && echo here > $p/word && umount $p")
    assert site.ssh(SERVING, "cat", "/srv/export/word") == "here\n"


def test_the_status_shows_the_finished_lab(site: Site) -> None:
    status = site.xenlab("lab", "status", "--lab", NAME)
    assert status.returncode == 0, status.stderr
    for words in ("Domain-0", "domu3", "xenbr0: ", "xenbr1: ", "/mnt/share to 10.66.0.0/24"):
        assert words in status.stdout
    assert "domu1, domu2" in status.stdout


def test_no_frame_of_the_internal_lan_leaves_the_machine(site: Site, tmp_path: Path) -> None:
    capture = tmp_path / "outside.pcap"
    # the interfaces of the LAN, dom0's own among them
    own = site.ssh("", "cat", "/sys/class/net/veth1/address").strip()
    macs = (*LAN_MACS, bytes.fromhex(own.replace(":", "")))
    dump: dict[str, Any] = {
        "qom-type": "filter-dump",
        "id": "outside",
        "netdev": "net0",
        "file": str(capture),
    }
    qmp_execute(qemu(), "object-add", seconds=60, **dump)
    try:
        site.ssh("domu1", "ip neigh flush dev eth1; ping -n -c 5 10.66.0.12")
        site.ssh("domu3", "ping -n -c 3 10.66.0.1")
        read = "find /mnt/share/ -maxdepth 3 -type f -size -2000k -exec cat {} + | wc -c"
        assert int(site.ssh("domu1", read)) > 10_000
        site.ssh("domu1", "ping -n -c 1 10.0.2.2")
    finally:
        qmp_execute(qemu(), "object-del", id="outside")
    outside = frames(capture)
    assert len(outside) > 20, "the capture holds nothing"
    assert any(bytes((10, 0, 2, 2)) in frame for frame in outside)
    assert [frame.hex() for frame in outside if of_the_lan(frame, macs)] == []


def test_the_outside_finds_ssh_and_nothing_else(site: Site) -> None:
    # nmap is part of the site's software; on the uplink's bridge the guest is outside the LAN
    assert open_ports(site, "10.0.2.15", "1-65535") == ["22"]
    # the scan would have found a server: the one that listens inside
    assert open_ports(site, "10.66.0.1", "2049") == ["2049"]


def open_ports(site: Site, address: str, ports: str) -> list[str]:
    """The TCP ports of dom0 that answer a guest."""
    words = ("nmap", "-n", "-Pn", "-sS", "-T4", "--open", "-p", ports, "-oG", "-", address)
    report = site.ssh("domu1", *words, seconds=1800)
    assert "Status: Up" in report, report
    return re.findall(r"(\d+)/open/tcp", report)


# In the guest: a connection to the address "$1" and port "$2", and what is answered to "$3".
ASK = r"""exec 3<> "/dev/tcp/$1/$2" && printf '%s HTTP/1.1\r\n\r\n' "$3" >&3 && head -n 1 <&3"""


def test_a_guest_reaches_package_mirrors_and_nothing_of_the_controller(site: Site) -> None:
    def asked(address: str, port: int, request: str) -> str:
        words = shlex.join(["timeout", "60", "bash", "-c", ASK, "sh", address, str(port), request])
        return site.ssh("domu1", f"{words} 2>&1 || :")

    mirror = json.loads((Lab(NAME).folder / "relay.json").read_text())[0]
    place = urlsplit(mirror["place"])
    file = f"{mirror['place']}{mirror['path']}dists/{SUITE}/InRelease"
    fetch = f"HEAD {file}" if place.scheme == "http" else f"CONNECT {place.netloc}"
    assert asked("10.0.2.4", 3142, fetch).startswith("HTTP/1.1 200 ")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        asked("10.0.2.2", port, "GET /")
        refused = asked("10.0.2.4", 3142, f"GET http://127.0.0.1:{port}/")
        assert "is below no package mirror" in refused
        assert not select.select([listener], [], [], 0)[0]


TOLD = "xenlab-offline"

# In the guest: wait until the outside is gone, install what dom0 has fetched, and say on the
# console how that went.
WITHOUT_UPLINK = f"""
until ! ping -n -q -c 1 -w 2 10.0.2.2 > /dev/null; do sleep 1; done
export DEBIAN_FRONTEND=noninteractive
status=0
# a client asks anew after a while what a folder holds
until cp /mnt/share/apt/archives/hello_*.deb /var/cache/apt/archives/; do sleep 1; done
apt-get -q -y --no-download install hello || status=$?
! ping -n -q -c 1 -w 2 10.0.2.2 > /dev/null || status="$status, but the outside was there"
echo "{TOLD} $status" > /dev/console
"""

# In dom0: repeat that on the machine's own serial line, the one way out that is left.
REPEAT = f"""
tail -n 0 -F /var/log/xen/console/guest-domu3.log | grep -m 1 --line-buffered {TOLD} > /dev/console
"""


SWITCHING = "xenlab: switching the network over"
BACK = "xenlab: the former network is back"


def detached(script: str) -> str:
    return f"setsid --fork sh -c '{script}' < /dev/null > /root/detached.log 2>&1"


def test_with_the_uplink_cut_a_guest_installs_what_dom0_fetched(site: Site) -> None:
    site.ssh("", "apt-get -q -y --download-only install hello")
    log = Lab(NAME).status().console_log
    before = log.stat().st_size

    def told() -> str:
        return log.read_bytes()[before:].decode(errors="replace")

    site.ssh("", detached(REPEAT))
    site.ssh("domu3", detached(WITHOUT_UPLINK))
    qmp_execute(qemu(), "set_link", name="net0", up=False)
    try:
        wait_until(lambda: TOLD in told(), seconds=900, what="the guest has installed it")
    finally:
        qmp_execute(qemu(), "set_link", name="net0", up=True)
    assert f"{TOLD} 0" in told(), site.ssh("domu3", "cat /root/detached.log")
    assert site.ssh("domu3", "hello").strip() == "Hello, world!"


def test_the_bugfix_takes_dom0_out_of_the_lan_and_back(site: Site) -> None:
    site.ssh("", "systemctl stop xenlab-vif")
    try:
        assert "master" not in site.ssh("", "ip", "-o", "link", "show", "dev", "vif0.1")
    finally:
        site.ssh("", "systemctl start xenlab-vif")
    assert "master xenbr1" in site.ssh("", "ip", "-o", "link", "show", "dev", "vif0.1")
    assert site.ssh("", "ping -n -c 1 -w 20 10.66.0.11")


def test_a_broken_uplink_setting_is_rolled_back_in_time(site: Site) -> None:
    before = len(site_log())
    file = site.changed(dom0_ip_on_bridge=True, rollback_seconds=20)
    outcome: list[str] = []

    def run() -> None:
        done = site.xenlab("run", "07", "-f", str(file))
        outcome.append(f"{done.returncode}\n{done.stdout}\n{done.stderr}")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(
            lambda: SWITCHING in site_log()[before:], seconds=HOUR, what="the switch-over has begun"
        )
        # what a port of a switch does that allows one MAC address only
        qmp_execute(qemu(), "set_link", name="net0", up=False)
        wait_until(
            lambda: BACK in site_log()[before:], seconds=600, what="the machine has gone back"
        )
    finally:
        qmp_execute(qemu(), "set_link", name="net0", up=True)
        thread.join()
    assert outcome[0].startswith("1\n"), outcome[0]
    assert "was rolled back, the former network is back" in outcome[0]
    assert site.ssh("", "ip", "-o", "addr", "show", "dev", "xenbr0") == ""
    assert "10.0.2.15/24" in site.ssh("", "ip", "-o", "-4", "addr", "show", "dev", "eth0")
    # what was tried and never confirmed is forgotten
    assert site.xenlab("run", "07", "-f", str(site.parameters)).returncode == 0


def site_log() -> str:
    """What the machine has said on its serial line."""
    return Lab(NAME).status().console_log.read_text(errors="replace")


def test_a_second_run_of_everything_changes_nothing_and_is_five_times_faster(site: Site) -> None:
    first = next(folder for folder in runs.every(site.runs) if whole(folder))
    again = site.xenlab("run", "-f", str(site.parameters))
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    second = runs.find(site.runs, "last")
    assert {step: s for step, s in statuses(second).items() if s != "ok"} == {}
    assert without_record(second) == []
    spent = [sum(state.seconds for state in runs.states(folder)) for folder in (first, second)]
    assert spent[0] > 5 * spent[1]


def test_drift_made_by_hand_is_reported_and_nothing_else(site: Site) -> None:
    looked_at = ("05", "07", "13")
    check = ("check", *looked_at, "-f", str(site.parameters))
    before = site.xenlab(*check)
    assert before.returncode == 0, before.stdout[-3000:] + before.stderr[-3000:]
    assert "no drift" in before.stdout
    site.ssh("", "systemctl", "stop", "cron")
    site.ssh("", "echo 192.0.2.1 stranger >> /etc/hosts")
    port = f"vif{site.ssh('', 'xl', 'domid', AUTOSTARTED[0]).strip()}.1"
    site.ssh("", "ip", "link", "set", port, "nomaster")
    found = site.xenlab(*check)
    assert found.returncode == 3, found.stdout[-3000:] + found.stderr[-3000:]
    steps = {line.split()[0] for line in found.stdout.partition("drift in ")[2].splitlines()[1:]}
    # the port itself, and that neither the other guests nor dom0 reach the guest behind it
    assert {"05.2", "05.5", "13.7"} <= steps <= {"05.2", "05.5", "13.7", "13.9", "13.13"}
    assert f"put {port}, the port of {AUTOSTARTED[0]}, into xenbr1" in found.stdout
    assert "192.0.2.1 stranger" in site.ssh("", "cat", "/etc/hosts")
    mended = site.xenlab("run", *looked_at, "-f", str(site.parameters))
    assert mended.returncode == 0, mended.stdout[-3000:] + mended.stderr[-3000:]
    assert site.xenlab(*check).returncode == 0


SCRIPT = "/etc/xen/scripts/vif-bridge"
SLOW_ONCE = '[ "$1" != online ] || ! mkdir /run/slow-once 2> /dev/null || sleep 60'


def test_a_guest_is_created_again_where_libxl_gave_a_script_up(site: Site) -> None:
    site.ssh("", f"cp -p {SCRIPT} /root/script && sed -i '2i {SLOW_ONCE}' {SCRIPT}")
    try:
        site.ssh("", "xl", "destroy", SERVING)
        again = site.xenlab("run", "11", "-f", str(site.parameters))
        assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    finally:
        site.ssh("", f"mv /root/script {SCRIPT} && rmdir /run/slow-once")
    shown = site.xenlab("show", "last", "--step", "11.7")
    assert "because of timeout" in shown.stdout, shown.stdout + shown.stderr


TRAPS = "rm -rf /.xenlab && mkdir /.xenlab && cd /.xenlab && ln -s /etc/shadow busybox"
TRAPS += " && ln -s /sbin/init init && ln -s ../../../etc/cron.d/evil evil"


def test_links_that_a_guest_planted_in_its_root_reach_nothing_of_dom0(site: Site) -> None:
    """It gets its own /usr back, and its root is full of traps."""
    site.ssh(SHARING, TRAPS)
    before = of_dom0(site)
    done = site.xenlab("run", "15", "-f", str(site.changed(shared_usr=[])))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert of_dom0(site) == before
    assert site.ssh(SHARING, *SOURCE_OF_USR).startswith("/dev/xvda1")


def test_a_run_killed_while_its_guest_is_down_is_made_up_for_by_the_next(site: Site) -> None:
    """It loses its own /usr again, with new traps in its root; nobody waits for its sshd."""
    site.ssh(SHARING, TRAPS)
    before = of_dom0(site)
    killed(site, "15.6", "15")
    site.ssh("", f"xl domid {SHARING} && xl shutdown -w {SHARING} || :")
    done = site.xenlab("run", "15", "-f", str(site.parameters))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    finals = (r for r in Journal(runs.find(site.runs, "last")).records() if r["phase"] == "final")
    assert max(record["seconds"] for record in finals) < ANSWER_SECONDS
    assert of_dom0(site) == before
    assert site.ssh(SHARING, *SOURCE_OF_USR).startswith("10.66.0.1:")


# In dom0: a session ends as soon as some of a file that it brings is there.
ENDED = (
    """until [ -n "$(find /root -maxdepth 1 -name ".xenlab-*" -size +99k)" ]; do :; done; kill -9"""
)


def test_a_connection_that_breaks_in_the_middle_of_a_file_leaves_the_old_one(site: Site) -> None:
    host = Host(SSH(Target("dom0", str(site.ssh_config))))
    try:
        host.write("/root/precious", "as it was\n")
        session = host.run("echo $PPID").stdout.strip()
        site.ssh("", detached(f"{ENDED} {session}"))
        with pytest.raises(ConnectionLost):
            host.write("/root/precious", bytes(64 << 20))
    finally:
        host.transport.close()
    rest = partial(site.ssh, "", "find /root -maxdepth 1 -name '.xenlab-*'")
    wait_until(lambda: rest() == "", seconds=600, what="what had arrived is gone")
    assert site.ssh("", "cat", "/root/precious") == "as it was\n"


def of_dom0(site: Site) -> str:
    """The digest of every file of dom0's own, but for what the chapter is to change."""
    script = (
        "find /etc /usr /boot /root -xdev -path /etc/xen -prune -o -path '*/__pycache__' -prune "
        "-o -type f -exec sha256sum {} + | sort -k 2"
    )
    return site.ssh("", script, seconds=1800)


def test_a_power_cycle_brings_everything_back_by_itself(site: Site) -> None:
    power_cycled(site, AUTOSTARTED)
    assert "/mnt/share " in site.ssh("", "exportfs", "-s")
    for bridge in ("xenbr0", "xenbr1"):
        assert site.ssh("", "ip", "-o", "addr", "show", "dev", bridge) == ""
    for guest in AUTOSTARTED:
        shares = partial(has_the_share, site, guest)
        wait_until(shares, seconds=600, what=f"{guest} has the share")
    assert "10.66.0.1:" in site.ssh(SHARING, "findmnt", "-rn", "-o", "SOURCE", "/usr")


def whole(run: Path) -> bool:
    """Whether a run carried out every chapter."""
    return runs.read(run)["mode"] == "apply" and len(runs.states(run)) == len(CHAPTERS)


def has_the_share(site: Site, guest: str) -> bool:
    return "/mnt/share" in site.ssh(guest, "findmnt -rn -t nfs4 -o TARGET || :").splitlines()


def test_the_machine_boots_into_xen_by_itself(site: Site) -> None:
    assert site.xenlab("lab", "down", "--lab", NAME).returncode == 0
    assert processes_named(NAME) == []
    up = site.xenlab("lab", "up", "--lab", NAME, "-f", str(site.parameters))
    assert up.returncode == 0, up.stdout + up.stderr
    assert "xen_version" in site.ssh("", "xl", "info")
    assert site.ssh("", "uname", "-r").strip().endswith("-xen0")


def test_where_the_stage_lies_changes_nothing(site: Site, tmp_path: Path) -> None:
    stage = Path(load(site.parameters).stage).expanduser()
    moved, sums = tmp_path / "moved.tar.zst", tmp_path / "sums"
    shutil.copyfile(stage, moved)
    with moved.open("rb") as copy:
        sums.write_text(f"{hashlib.file_digest(copy, 'sha256').hexdigest()}  {moved.name}\n")
    file = site.changed(stage=str(moved), stage_checksums=str(sums))
    run = site.xenlab("run", "02", "06", "09", "-f", str(file))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert set(statuses(runs.find(site.runs, "last")).values()) == {"ok"}


# The same files, packed otherwise, with records to match.
ANOTHER_IMAGE = """
set -e
cd /mnt/share/images
old=$(cut -c 1-64 < base.tar.zst.sha256)
zstd -q -d -c base.tar.zst | zstd -q -5 -f -o again
mv again base.tar.zst
new=$(sha256sum < base.tar.zst | cut -c 1-64)
[ "$new" != "$old" ]
for record in sha256 info proof; do sed -i "s/$old/$new/" base.tar.zst.$record; done
bytes=$(stat -c %s base.tar.zst) modified=$(stat -c %.9Y base.tar.zst)
sed -i "s/^bytes=.*/bytes=$bytes/; s/^modified=.*/modified=$modified/" base.tar.zst.info
"""


def test_another_image_makes_a_guest_anew_only_by_its_name(site: Site) -> None:
    for guest in AUTOSTARTED:
        wait_until(partial(site.answers, guest), seconds=1800, what=f"{guest} answers")
        site.ssh(guest, "echo precious > /root/data")
    site.ssh("", ANOTHER_IMAGE)
    for mode in ("plan", "run"):
        done = site.xenlab(mode, "06", "09", "-f", str(site.parameters))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        kept = unpacked(site)
        assert kept["status"] == "ok" and "domu1 keeps its root" in kept["message"]
    site.ssh("", "xl", "shutdown", "-w", "domu1")
    done = site.xenlab("run", "-f", str(site.parameters), "--destroy", "domu1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert unpacked(site)["status"] == "changed"
    assert list(unpacked(site)["difference"]) == ["domu1"]
    assert site.ssh("domu1", "ls /root/data 2> /dev/null || echo gone") == "gone\n"
    assert site.ssh("domu2", "cat", "/root/data") == "precious\n"


def unpacked(site: Site) -> dict[str, Any]:
    """The final record of the last run's step 09.2."""
    records = Journal(runs.find(site.runs, "last")).records()
    (found,) = (r for r in records if r["phase"] == "final" and r["step"] == "09.2")
    return found


def processes_named(name: str) -> list[str]:
    """QEMU processes whose command line names a lab's folder."""
    folder = str(Lab(name).folder).encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"qemu-system" in words and folder in words:
            found.append(process.name)
    return found
