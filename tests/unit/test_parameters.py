"""Bad input gets one clear sentence; each rule of the schema shows its own here."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.sites import BARE, lab_site

from xenlab import cache
from xenlab.errors import BadInput
from xenlab.site.disk_plan import DOM0_PARTITIONS, fits, needed_mib, partitions, swap_files_mib
from xenlab.site.loader import declared, defaults
from xenlab.site.schema import Parameters, for_chapter, from_notebook, load, part, validate
from xenlab.transport.ssh_config import Target, resolve

FILES = Path(__file__).parents[2] / "parameters"
LAB = validate(BARE, "lab.yaml")


def guest(**changes: object) -> dict[str, object]:
    one: dict[str, object] = {
        "name": "web",
        "memory_mib": 64,
        "mac": "00:16:3e:00:00:01",
        "address": "10.0.2.50/24",
    }
    return one | changes


def lan_guest(**changes: object) -> dict[str, object]:
    one: dict[str, object] = {
        "name": "domu1",
        "mac": "00:16:3e:66:02:01",
        "address": "10.66.0.11/24",
    }
    return one | changes


def other(**changes: object) -> dict[str, object]:
    return guest(name="mail", mac="00:16:3e:00:00:02", address="10.0.2.51/24") | changes


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(BadInput) as caught:
        validate(BARE | values, "site.yaml")
    assert caught.value.where == "site.yaml"
    return caught.value.message


def refused_file(folder: Path, text: str | bytes) -> str:
    path = folder / "site.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(BadInput) as caught:
        load(path)
    assert caught.value.where == str(path)
    # what a few lines leave out is another test's
    lines = caught.value.message.split("\n  ")
    own = [line for line in lines if not re.search("cannot be accepted:$|no default can kn", line)]
    return "\n".join(own)


# Each rule, and what it says.

PACKAGE = "the name of a Debian package (lower case letters, digits, + - .)"
HOST_NAME = "a host name (letters, digits and inner hyphens, at most 63; RFC 1123)"
SSH_WORD = "one word that does not begin with a hyphen, without characters of a shell"
INTERFACE = "a network interface's name (letters, digits, . _ -; at most 15)"
LABEL = "a partition name (letters, digits, . _ -; at most 16, as it is the ext4 label too)"
OPTION = "CONFIG_NAME= with y, n, a number or a quoted text (there are no modules)"

MOUNTED = "a path of letters, digits and . _ + @ - (it stands on kernels' command lines)"
DISK = "the path of a disk, such as /dev/sda or one below /dev/disk/by-id"
WORDS = "words of a command line (at most 700 characters, no quotes, none of $`\\|&<>())"

SENTENCES: list[tuple[dict[str, Any], str]] = [
    # unknown keys
    ({"dom0_memm_mib": 1}, "unknown parameter dom0_memm_mib; did you mean dom0_mem_mib?"),
    ({"colour": "red"}, "unknown parameter colour"),
    ({"ssh": {"host": "x", "prt": 1}}, "unknown parameter ssh.prt; did you mean port?"),
    ({"domains": [guest(macc=1)]}, "unknown parameter domains[0].macc; did you mean mac?"),
    # wrong types
    ({"share_mib": "4 GB"}, "share_mib must be a whole number, not '4 GB' (text)"),
    ({"share_mib": 4.0}, "share_mib must be a whole number, not 4.0 (a number)"),
    ({"share_mib": True}, "share_mib must be a whole number, not True (true or false)"),
    ({"share_mib": None}, "share_mib must be a whole number, not nothing"),
    ({"dom0_ip_on_bridge": "yes"}, "dom0_ip_on_bridge must be true or false, not 'yes' (text)"),
    ({"may_wipe": "A"}, "may_wipe must be a list, not 'A' (text)"),
    ({"may_wipe": [12]}, "may_wipe[0] must be text, not 12 (a number); put it in quotes"),
    ({"domains": ["web"]}, "domains[0] must be a mapping (key: value), not 'web' (text)"),
    ({"ssh": "web"}, "ssh must be a mapping (key: value), not 'web' (text)"),
    ({"ssh": {"config": "~/.ssh/config"}}, "ssh.host is missing"),
    (
        {"hostname": 4.2},
        "hostname must be text, not 4.2 (a number); put it in quotes",
    ),
    (
        {"hostname": False},
        "hostname must be text, not False (true or false): "
        "YAML reads on, off, yes and no so; put it in quotes",
    ),
    # one of a few
    (
        {"platform": "suse"},
        "platform must be 'debian', 'gentoo' or 'gentoo-2006', not 'suse' (text)",
    ),
    ({"power": "ups"}, "power must be 'lab', 'ipmi', 'redfish' or 'manual', not 'ups' (text)"),
    ({"imaging": "tar"}, "imaging must be 'bind' or 'rescue', not 'tar' (text)"),
    ({"build_on": "dom0"}, "build_on must be 'controller' or 'target', not 'dom0' (text)"),
    ({"kernel": "debian"}, "kernel must be 'build' or 'distribution', not 'debian' (text)"),
    (
        {"kernel": "distribution", "platform": "gentoo", "software": []},
        "kernel: distribution is for platform debian: build one on platform gentoo",
    ),
    (
        {"kernel": "distribution", "boot_mib": 200},
        "boot_mib must be at least 256, not 200: with kernel: distribution /boot holds an initrd "
        "for each kernel, and the next one while it is made",
    ),
    (
        {"kernel": "distribution", "lan_guests": [lan_guest()], "shared_usr": ["domu1"]},
        "shared_usr names domu1, which needs kernel: build: modules lie in /usr",
    ),
    (
        {"kernel": "distribution", "image_from": "~/base.tar.zst"},
        "image_from needs kernel: build: the distribution's kernel has modules in the image",
    ),
    (
        {"image_from": "castle.tar.zst"},
        "image_from must begin with / or ~/, not 'castle.tar.zst'",
    ),
    # what guests have beside root, swap and their first interface
    (
        {"domains": [guest(disks=[{"path": "/dev/vdb", "name": "xvda3"}])]},
        "domains[0].disks[0].name must be a disk as a guest has it, such as xvdb; xvda are root "
        "and swap, not 'xvda3'",
    ),
    (
        {"domains": [guest(disks=[{"path": "/dev/vda2", "name": "xvdb"}])]},
        "/dev/vda2 cannot be a disk of web: it lies on disk /dev/vda",
    ),
    *(
        (
            {"domains": [guest(disks=[{"path": path, "name": "xvdb"}])]},
            f"{path} cannot be a disk of web: it is a guest's own",
        )
        for path in ("/mnt/guests/mail.img", "/mnt/domuswap/mail.swap")
    ),
    (
        {"domains": [guest(disks=[{"path": "/dev/vdb", "name": n} for n in ("xvdb", "xvdc")])]},
        "web and web cannot both have /dev/vdb: one writes to it",
    ),
    (
        {"domains": [guest(disks=[{"path": f"/dev/vd{n}", "name": "xvdb"} for n in "bc"])]},
        "web has two disks xvdb",
    ),
    (
        {"domains": [guest(nics=[{"mac": "00:16:3e:00:00:01"}])]},
        "domain 1 (web) and domain 1 (web), nics[0] have the same MAC: 00:16:3e:00:00:01",
    ),
    ({"guest_disks": "zfs"}, "guest_disks must be 'partition', 'file' or 'lvm', not 'zfs' (text)"),
    (
        {"volume_group": "../sda"},
        "volume_group must be the name of a volume group (letters, digits, . _ -), not '../sda'",
    ),
    (
        {"guest_disks": "lvm", "platform": "gentoo", "software": []},
        "guest_disks: lvm is for platform debian: nobody writes gentoo's files for it",
    ),
    (
        {"guest_disks": "lvm", "domains": [guest(partition="guests")]},
        "web cannot have the partition guests: the volumes are there",
    ),
    *(
        (
            {"guest_disks": "lvm", "domains": [guest(partition=name)]},
            f"web cannot have the volume {name}: such names are kept",
        )
        for name in ("snapshot1", "web_tdata", "web.swap")
    ),
    (
        {
            "guest_disks": "lvm",
            "domains": [guest(disks=[{"path": "/dev/xenlab/mail", "name": "xvdb"}])],
        },
        "/dev/xenlab/mail cannot be a disk of web: it is a guest's own",
    ),
    (
        {"guest_disks": "file", "domains": [guest(partition="guests")]},
        "web cannot have the partition guests: the disk files are there",
    ),
    ({"guest_type": "hvm"}, "guest_type must be 'auto', 'pv' or 'pvh', not 'hvm' (text)"),
    # numbers
    ({"share_mib": 0}, "share_mib must be more than 0, not 0 (a number)"),
    ({"boot_mib": 1 << 40}, "boot_mib must be at most 8589934592, not 1099511627776 (a number)"),
    ({"rollback_seconds": 1}, "rollback_seconds must be at least 10, not 1 (a number)"),
    ({"ssh": {"host": "x", "port": 65536}}, "ssh.port must be at most 65535, not 65536 (a number)"),
    (
        {"domains": [guest(memory_mib=-1)]},
        "domains[0].memory_mib must be more than 0, not -1 (a number)",
    ),
    ({"domains": [guest(vcpus=0)]}, "domains[0].vcpus must be at least 1, not 0 (a number)"),
    (
        {"domains": [guest(extra={"tsc_mod": "native"})]},
        "domains[0].extra has 'tsc_mod', which is no key of xl.cfg(5); did you mean tsc_mode?",
    ),
    (
        {"domains": [guest(extra={"memory": 64})]},
        "domains[0].extra must not have memory, which xenlab writes itself; say memory_mib",
    ),
    (
        {"domains": [guest(extra={"kernel": "/k"})]},
        "domains[0].extra must not have kernel, which xenlab writes itself",
    ),
    (
        {"domains": [guest(extra={"hap": False})]},
        "domains[0].extra must have 1 or 0 as hap, not False: xl knows neither true nor false",
    ),
    (
        {"domains": [guest(extra={"rtc_timeoffset": -1})]},
        "domains[0].extra must have the text '-1' as rtc_timeoffset: xl reads no number below 0",
    ),
    *(
        (
            {"domains": [guest(extra={"cpus": value})]},
            "domains[0].extra must have plain ASCII text, a whole number or a list of such texts "
            f"as cpus, not {value!r}",
        )
        for value in (1.5, None, [1], "ä", ["a\nb"], {"a": 1})
    ),
    (
        {"domains": [guest(extra="a=1")]},
        "domains[0].extra must be a mapping (key: value), not 'a=1' (text)",
    ),
    (
        {"domains": [guest(memory_mib=512, maxmem_mib=500)]},
        "domains[0].maxmem_mib must be at least 512, its memory_mib, not 500",
    ),
    # names
    ({"site": "a/b"}, "site must be a plain name (letters, digits, . _ -), not 'a/b'"),
    (
        {"lab": "Lab"},
        "lab must be a lab's name (lower case letters, digits and inner hyphens, at most 13), "
        "not 'Lab'",
    ),
    ({"hostname": "-x"}, f"hostname must be {HOST_NAME}, not '-x'"),
    ({"hostname": "a.b"}, f"hostname must be {HOST_NAME}, not 'a.b'"),
    ({"domain": "lab..x"}, "domain must be a DNS domain such as lab.internal, not 'lab..x'"),
    (
        {"ssh": {"host": "-oX"}},
        f"ssh.host must be {SSH_WORD}, not '-oX'",
    ),
    (
        {"ssh": {"host": "$(touch${IFS}/tmp/x)"}},
        f"ssh.host must be {SSH_WORD}, not '$(touch${{IFS}}/tmp/x)'",
    ),
    ({"ssh": {"host": "x", "user": "a;b"}}, f"ssh.user must be {SSH_WORD}, not 'a;b'"),
    ({"ssh": {"host": "a\\1"}}, f"ssh.host must be {SSH_WORD}, not 'a\\\\1'"),
    ({"ssh": {"host": ""}}, "ssh.host must not be empty"),
    (
        {"ssh": {"host": "x", "rescue_address": "mail"}},
        "ssh.rescue_address must be an IPv4 address such as 10.0.2.2, not 'mail'",
    ),
    (
        {"ssh": {"host": "x", "become": "pfexec"}},
        "ssh.become must be '', 'sudo', 'doas' or 'su', not 'pfexec' (text)",
    ),
    (
        {"ssh": {"host": "x", "become": "sudo", "become_password": "hunter2"}},
        "ssh.become_password must be {env: NAME} or {file: PATH}: a secret is named, not written",
    ),
    (
        {"ssh": {"host": "x", "become_password": {"env": "WORD"}}},
        "ssh.become_password goes with become: sudo or su: ssh.become says nothing",
    ),
    (
        {"guest_ssh": {"become": "doas", "become_password": {"env": "WORD"}}},
        "guest_ssh.become_password goes with become: sudo or su: doas wants a terminal",
    ),
    ({"dom0_ssh": {"hots": "x"}}, "unknown parameter dom0_ssh.hots; did you mean host?"),
    ({"guest_ssh": {"host": "x"}}, "unknown parameter guest_ssh.host"),
    (
        {"dom0_ssh": {"host": "web"}, "domains": [guest()]},
        "the target and domain 1 (web) have the same name: web",
    ),
    ({"may_wipe": [" "]}, "may_wipe[0] must not be empty"),
    (
        {"may_destroy": ["domu1"]},
        "may_destroy[0] must be a name with the UUID of its file system, as a refused step says "
        "it; a name alone would hold for whatever is there later, not 'domu1'",
    ),
    ({"domains": []}, "domains must not be empty"),
    ({"domains": [guest(name="a_b")]}, f"domains[0].name must be {HOST_NAME}, not 'a_b'"),
    (
        {"domains": [guest(name="12", partition="x")]},
        "domains[0].name must be a name that xl does not take for an id (not digits only), "
        "not '12'",
    ),
    ({"domains": [guest(partition="a b")]}, f"domains[0].partition must be {LABEL}, not 'a b'"),
    (
        {"domains": [guest(name="a" * 17)]},
        f"domains[0].partition must be {LABEL}, not '{'a' * 17}'",
    ),
    ({"bridge": "a b"}, f"bridge must be {INTERFACE}, not 'a b'"),
    (
        {"uplink": "e" * 16},
        f"uplink must be {INTERFACE}, its MAC address, or auto, not '{'e' * 16}'",
    ),
    (
        {"uplink": "52:54:00:12:34"},
        "uplink must be a MAC address such as 00:16:3e:66:01:01, not '52:54:00:12:34'",
    ),
    (
        {"uplink": "auto", "platform": "gentoo-2006", "software": []},
        "uplink must be an interface's name on platform gentoo-2006: nothing is renamed there",
    ),
    ({"uplink": "auto", "bridge": "uplink0"}, "uplink and bridge are the same: uplink0"),
    (
        {"uplink": "52:54:00:12:34:AA", "domains": [guest(mac="52:54:00:12:34:aa")]},
        "the uplink and domain 1 (web) have the same MAC: 52:54:00:12:34:aa",
    ),
    (
        {"uplink": "e" * 15},
        f"uplink must be at most 14 characters, as it is renamed to p{'e' * 15}",
    ),
    ({"uplink": "x0", "bridge": "x0"}, "uplink and bridge are the same: x0"),
    (
        {"uplink": "x0", "uplink_vlan": 7, "bridge": "x0"},
        "uplink and bridge are the same: x0",
    ),
    (
        {"uplink_bond": {"members": ["eth0"]}},
        "uplink_bond.members[0] is in the bond already: eth0",
    ),
    (
        {"uplink_bond": {"members": ["auto"]}},
        "uplink_bond.members[0] must be a network card's MAC address or name: only uplink can be "
        "auto",
    ),
    (
        {"uplink_bond": {"members": ["bond0"]}},
        "uplink_bond.members[0] must not be called bond0: another interface is",
    ),
    (
        {"uplink": "52:54:00:12:34:56", "uplink_bond": {"members": ["uplink0"]}},
        "uplink_bond.members[0] must not be called uplink0: another interface is",
    ),
    (
        {"uplink": "bond0", "uplink_bond": {"members": ["eth1"]}},
        "uplink must be the first network card, not the bond, which is called bond0",
    ),
    (
        {"uplink_bond": {"members": ["eth1"], "mode": "tlb"}},
        "uplink_bond.mode must be 'active-backup', '802.3ad' or 'balance-xor', not 'tlb' (text)",
    ),
    (
        {"uplink_bond": {"members": ["eth1"]}, "bridge": "bond0"},
        "uplink and bridge are the same: bond0",
    ),
    (
        {"uplink_bond": {"members": ["eth1"]}, "platform": "gentoo", "software": []},
        "uplink_bond is for platform debian: nobody writes gentoo's files for one",
    ),
    (
        {
            "uplink_bond": {"members": ["52:54:00:12:34:AA"]},
            "domains": [guest(mac="52:54:00:12:34:aa")],
        },
        "the uplink and domain 1 (web) have the same MAC: 52:54:00:12:34:aa",
    ),
    ({"uplink_vlan": 7, "bridge": "vlan7"}, "uplink and bridge are the same: vlan7"),
    (
        {"uplink": "vlan7", "uplink_vlan": 7},
        "uplink must be the network card, not its VLAN, which is to be called vlan7",
    ),
    (
        {"uplink_vlan": 7, "platform": "gentoo", "software": []},
        "uplink_vlan is for platform debian: nobody writes gentoo's files for one",
    ),
    (
        {"apt_mirror": "http://me:word@mirror.example.org/debian"},
        "apt_mirror must be a mirror as http://HOST/PATH or https://HOST/PATH, with no login in "
        "it, or nothing, not 'http://me:word@mirror.example.org/debian'",
    ),
    (
        {"apt_mirror": "http://mirror.example.org/debian", "apt_folder": "/srv/packages"},
        "apt_folder is the only source of packages: leave out apt_mirror",
    ),
    (
        {"apt_folder": "/srv/packages", "platform": "gentoo", "software": []},
        "apt_folder is for platform debian: gentoo has no apt",
    ),
    (
        {"uplink_vlan": 1, "lan_interface": "veth1"},
        "lan_interface must have another number than vlan1: the other ends are called vif0.1",
    ),
    (
        {"uplink": "eth0", "uplink_vlan": 7, "lan_interface": "eth0"},
        "lan_bridge and lan_interface must be names of their own, not eth0",
    ),
    ({"bridge": "peth0"}, "bridge must not be peth0: the uplink is renamed to that"),
    ({"services": ["a b"]}, "services[0] must be the name of a service, not 'a b'"),
    ({"software": ["vim; reboot"]}, f"software[0] must be {PACKAGE}, not 'vim; reboot'"),
    ({"software": ["vim", "cron-"]}, f"software[1] must be {PACKAGE}, not 'cron-'"),
    (
        {"platform": "gentoo", "software": ["vim"]},
        "software[0] must be a Gentoo package as category/name, not 'vim'",
    ),
    ({"kernel_options": ["CONFIG_A=m"]}, f"kernel_options[0] must be {OPTION}, not 'CONFIG_A=m'"),
    # addresses
    (
        {"domains": [guest(mac="00:16:3e:00:00")]},
        "domains[0].mac must be a MAC address such as 00:16:3e:66:01:01, not '00:16:3e:00:00'",
    ),
    (
        {"domains": [guest(mac="01:16:3e:00:00:01")]},
        "domains[0].mac must be a unicast MAC address (first byte even), not '01:16:3e:00:00:01'",
    ),
    (
        {"domains": [guest(mac="fe:ff:ff:ff:ff:ff")]},
        "domains[0].mac must be a MAC address that a guest can have, not 'fe:ff:ff:ff:ff:ff'",
    ),
    ({"gateway": "10.0.2"}, "gateway must be an IPv4 address such as 10.0.2.2, not '10.0.2'"),
    (
        {"address": "10.0.2.15"},
        "address must be an IPv4 address with its prefix, such as 10.0.2.15/24, not '10.0.2.15'",
    ),
    (
        {"address": "10.0.2.255/24"},
        "address must be the address of a machine, not of the whole network: '10.0.2.255/24'",
    ),
    (
        {"addresses": ["fe80::2/64"]},
        "addresses[0] must be an address that other machines can reach, not 'fe80::2/64'",
    ),
    (
        {"addresses": ["2001:db8::10"]},
        "addresses[0] must be an address with its prefix, such as 2001:db8::10/64, not "
        "'2001:db8::10'",
    ),
    (
        {"addresses": ["10.0.2.16/24", "2001:DB8::1/64", "2001:db8:0::1/64"]},
        "addresses[1] and addresses[2] are the same: 2001:db8:0::1",
    ),
    ({"addresses": ["10.0.2.15/24"]}, "address and addresses[0] are the same: 10.0.2.15"),
    (
        {"addresses": ["10.66.0.9/24"]},
        "the internal LAN 10.66.0.0/24 must not overlap the network of dom0, 10.66.0.0/24",
    ),
    (
        {"gateway6": "10.0.2.2"},
        "gateway6 must be an IPv6 address such as fe80::1, auto, or nothing, not '10.0.2.2'",
    ),
    *(
        ({"gateway6": text}, f"gateway6 must be an address that a machine can have, not '{text}'")
        for text in ("::", "::1", "ff02::2")
    ),
    (
        {"gateway6": "fe80::1"},
        "gateway6 fe80::1 is for an IPv6 address: name one in addresses",
    ),
    (
        {"gateway6": "2001:db8:1::1", "addresses": ["2001:db8::10/64"]},
        "gateway6 2001:db8:1::1 is in the network of no address of dom0: 2001:db8::10/64",
    ),
    (
        {"addresses": ["2001:db8::10/64"], "platform": "gentoo-2006", "software": []},
        "addresses and gateway6 must be left out on platform gentoo-2006",
    ),
    ({"gateway": "10.0.2.15"}, "gateway and address are the same: 10.0.2.15"),
    (
        {
            "gateway": "10.0.2.15",
            "address": "10.0.2.15/32",
            "domains": [guest(address="10.9.9.9/32")],
        },
        "gateway and address are the same: 10.0.2.15",
    ),
    (
        {"gateway": "172.31.1.1", "domains": [guest(address="10.9.9.9/32")]},
        "gateway 172.31.1.1 is not in the network of dom0: 10.0.2.15/24",
    ),
    (
        {"domains": [guest(address="10.9.9.9/24")]},
        "gateway 10.0.2.2 is not in the network of web: 10.9.9.9/24",
    ),
    (
        {"domains": [guest(address="10.0.2.2/24")]},
        "the gateway and domain 1 (web) have the same address: 10.0.2.2",
    ),
    (
        {"gateway": "10.0.2.255"},
        "gateway 10.0.2.255 is no machine in the network 10.0.2.0/24",
    ),
    (
        {"gateway": "10.0.2.64", "domains": [guest(address="10.0.2.65/26")]},
        "gateway 10.0.2.64 is no machine in the network 10.0.2.64/26",
    ),
    ({"gateway": "0.0.0.0"}, "gateway must be an address that a machine can have, not '0.0.0.0'"),
    (
        {"address": "224.0.0.9/24"},
        "address must be an address that a machine can have, not '224.0.0.9'",
    ),
    ({"address": "10.0.2.15/2"}, "address must have a prefix of at least 8, not '10.0.2.15/2'"),
    (
        {"domains": [guest(address="224.0.0.5/8")]},
        "domains[0].address must be an address that a machine can have, not '224.0.0.5'",
    ),
    (
        {"ssh": {"host": "10.0.2.50"}, "domains": [guest()]},
        "the target and domain 1 (web) have the same address: 10.0.2.50",
    ),
    (
        {"ssh": {"host": "x", "rescue_address": "10.0.2.50"}, "domains": [guest()]},
        "the target and domain 1 (web) have the same address: 10.0.2.50",
    ),
    # what would have another name, or hide something
    (
        {"dom0_options": "quiet"},
        "uplink eth0 needs net.ifnames=0 in dom0_options: udev renames it else",
    ),
    (
        {"uplink": "enp3s0"},
        "uplink enp3s0 is udev's name: net.ifnames=0 in dom0_options forbids it",
    ),
    ({"bridge": "lo"}, "bridge must not be lo, which the kernel has by itself"),
    ({"uplink": "all"}, "uplink must not be all, which the kernel has by itself"),
    ({"hostname": "localhost"}, "hostname must not be localhost, the loopback interface's"),
    ({"share": "/usr"}, "share must not be /usr, which the system itself has"),
    ({"share": "/run/share"}, "share must not be /run/share: nothing there outlives a boot"),
    (
        {"share": "/mnt/domuswap/x"},
        "share must not lie in /mnt/domuswap, where the guests' files are: /mnt/domuswap/x",
    ),
    (
        {"image_exclude": ["/etc"]},
        "image_exclude[0] must not be /etc: no guest boots without the image's own",
    ),
    (
        {"domains": [guest(keep=["/var"])]},
        "domains[0].keep[0] must not be /var: no guest boots without the image's own",
    ),
    (
        {
            "domains": [
                guest(),
                guest(
                    name="copy",
                    mac="00:16:3e:00:00:77",
                    address="10.0.2.77/24",
                    like="web",
                    keep=["/home"],
                ),
            ]
        },
        "copy is to be like web: no copy is made anew, take out keep",
    ),
    ({"xen_options": "dom0_mem=1G"}, "xen_options must not have dom0_mem=1G: say dom0_mem_mib"),
    (
        {"dom0_options": "net.ifnames=0 root=/dev/sda1"},
        "dom0_options must not have root=/dev/sda1: xenlab names the root itself",
    ),
    (
        {"kernel_options": ["CONFIG_A=y", "CONFIG_A=n"]},
        "kernel_options must not give CONFIG_A two values",
    ),
    (
        {
            "domains": [
                guest(name=f"g{n}", mac=f"00:16:3e:00:00:{n:02x}", address=f"10.0.2.{20 + n}/24")
                for n in range(123)
            ]
        },
        "a disk has at most 128 partitions, not 129: use guest_disks: file",
    ),
    # paths
    ({"disk": "vda"}, "disk must be an absolute path, not 'vda'"),
    ({"share": "/mnt/../x"}, "share must be a plain path: write '/x', not '/mnt/../x'"),
    ({"share": "/mnt/share/"}, "share must be a plain path: write '/mnt/share', not '/mnt/share/'"),
    ({"share": "/"}, f"share must be {MOUNTED}, not '/'"),
    ({"stage": "stage.tar"}, "stage must begin with / or ~/, not 'stage.tar'"),
    ({"ssh": {"host": "x", "config": "c"}}, "ssh.config must begin with / or ~/, not 'c'"),
    (
        {"image": "/a\nb"},
        "image must be one line without control or invisible characters, not '/a\\nb'",
    ),
    ({"disk": "/dev/vda -- rm"}, f"disk must be {DISK}, not '/dev/vda -- rm'"),
    ({"disk": "/root/disk.img"}, f"disk must be {DISK}, not '/root/disk.img'"),
    ({"disk": "/dev/$(reboot)"}, f"disk must be {DISK}, not '/dev/$(reboot)'"),
    ({"share": "/mnt/$(touch T)"}, f"share must be {MOUNTED}, not '/mnt/$(touch T)'"),
    ({"share": "/mnt/s *(rw)"}, f"share must be {MOUNTED}, not '/mnt/s *(rw)'"),
    ({"share": "/mnt/50%"}, f"share must be {MOUNTED}, not '/mnt/50%'"),
    # command lines
    ({"xen_options": 'a="b'}, f"xen_options must be {WORDS}, not 'a=\"b'"),
    ({"xen_options": "a=`id`"}, f"xen_options must be {WORDS}, not 'a=`id`'"),
    ({"dom0_options": "a=$(id)"}, f"dom0_options must be {WORDS}, not 'a=$(id)'"),
    ({"domu_options": "it's"}, f'domu_options must be {WORDS}, not "it\'s"'),
    ({"domu_options": "x" * 701}, f"domu_options must be {WORDS}, not '{'x' * 78}…"),
    # what cannot boot
    (
        {"domu_root_mib": 40},
        "domu_root_mib must be at least 768, not 40: the image of dom0's root would not fit",
    ),
    (
        {"dom0_mem_mib": 64},
        "dom0_mem_mib must be at least 256, not 64: dom0 does not boot with less",
    ),
    (
        {"domains": [guest(memory_mib=16)]},
        "domains[0].memory_mib must be at least 64, not 16: kernel and init do not start with less",
    ),
    # names that are another machine's
    (
        {"domains": [guest(name="Domain-0")]},
        "dom0 and domain 1 (Domain-0) have the same name: Domain-0",
    ),
    (
        {"hostname": "castle", "domains": [guest(name="dom0")]},
        "dom0 and domain 1 (dom0) have the same name: dom0",
    ),
    (
        {"domains": [guest(name="localhost")]},
        "the loopback interface and domain 1 (localhost) have the same name: localhost",
    ),
    (
        {"domains": [guest(name="controller")]},
        "the controller and domain 1 (controller) have the same name: controller",
    ),
    (
        {"domains": [guest(name="Machine")]},
        "the machine that becomes dom0 and domain 1 (Machine) have the same name: Machine",
    ),
    (
        {"site": "Web", "domains": [guest()]},
        "the site and domain 1 (web) have the same name: web",
    ),
    (
        {"ssh": {"host": "web"}, "domains": [guest()]},
        "the target and domain 1 (web) have the same name: web",
    ),
    # two domains of one …
    (
        {"domains": [guest(), other(name="WEB", partition="web2")]},
        "domain 1 (web) and domain 2 (WEB) have the same name: WEB",
    ),
    (
        {"domains": [guest(), other(mac="00:16:3E:00:00:01")]},
        "domain 1 (web) and domain 2 (mail) have the same MAC: 00:16:3E:00:00:01",
    ),
    (
        {"domains": [guest(), other(partition="web")]},
        "domain 1 (web) and domain 2 (mail) have the same partition: web",
    ),
    (
        {"domains": [guest(), other(address="10.0.2.50/25")]},
        "domain 1 (web) and domain 2 (mail) have the same address: 10.0.2.50",
    ),
    # the internal LAN, and what is selected
    (
        {"lan_guests": [lan_guest(name="ftp")]},
        "lan_guests names ftp, which is no domain; there are domu1, domu2, domu3",
    ),
    (
        {"autostart": ["domu1", "domu1"]},
        "autostart names domu1 twice",
    ),
    (
        {"lan_guests": [lan_guest()], "shared_usr": ["domu2"]},
        "shared_usr names domu2, which is not in the internal LAN (lan_guests)",
    ),
    (
        {"lan_guests": [lan_guest()], "guest_exports": [{"name": "domu2", "path": "/srv"}]},
        "guest_exports names domu2, which is not in lan_guests",
    ),
    (
        {
            "lan_guests": [lan_guest()],
            "shared_usr": ["domu1"],
            "guest_exports": [{"name": "domu1", "path": "/srv"}],
        },
        "guest_exports names domu1, which installs nothing: shared_usr names it",
    ),
    (
        {
            "lan_guests": [lan_guest()],
            "guest_exports": [{"name": "domu1", "path": "/mnt/share/x"}],
        },
        "guest_exports: /mnt/share/x is dom0's share, which only dom0 can export",
    ),
    (
        {
            "lan_guests": [lan_guest()],
            "guest_exports": [{"name": "domu1", "path": "/srv/my data"}],
        },
        f"guest_exports[0].path must be {MOUNTED}, not '/srv/my data'",
    ),
    (
        {"lan_guests": [lan_guest(address="10.67.0.11/24")]},
        "lan_guests 1 (domu1): 10.67.0.11/24 is not in the internal LAN 10.66.0.0/24",
    ),
    (
        {"lan_guests": [lan_guest(address="10.66.0.1/24")]},
        "dom0 and lan_guests 1 (domu1) both have 10.66.0.1",
    ),
    (
        {"lan_guests": [lan_guest(mac="00:16:3e:66:01:02")]},
        "domu2 and lan_guests 1 (domu1) both have 00:16:3e:66:01:02",
    ),
    (
        {"lan_guests": [lan_guest(address="10.0.2.99/24")], "lan_address": "10.0.2.98/24"},
        "the internal LAN 10.0.2.0/24 must not overlap the network of dom0, 10.0.2.0/24",
    ),
    (
        {"lan_guests": [lan_guest()], "lan_interface": "veth0"},
        "lan_interface must have another number than eth0: the other ends are called vif0.0",
    ),
    (
        {"lan_guests": [lan_guest()], "lan_interface": "lan"},
        "lan_interface must end in a number, as veth1 does, not lan",
    ),
    (
        {"lan_guests": [lan_guest()], "lan_bridge": "xenbr0"},
        "lan_bridge and lan_interface must be names of their own, not xenbr0",
    ),
    ({"shared_packages": ["a b"]}, f"shared_packages[0] must be {PACKAGE}, not 'a b'"),
    ({"domains": [guest(name="dom0")]}, "dom0 and domain 1 (dom0) have the same name: dom0"),
    (
        {"domains": [guest(partition="share")]},
        "dom0 and domain 1 (web) have the same partition: share",
    ),
    (
        {"domains": [guest(partition="esp")]},
        "dom0 and domain 1 (web) have the same partition: esp",
    ),
    (
        {"firmware": "uefi", "platform": "gentoo-2006", "software": [], "shared_packages": []},
        "firmware must be bios on platform gentoo-2006: its GRUB knows no UEFI",
    ),
    (
        {"redfish": {"boot": "http"}},
        "redfish: boot: http needs firmware: uefi, which fetches over HTTP",
    ),
    (
        {"redfish": {"plain": True, "ca": "~/bmc.pem"}},
        "redfish: plain: true is without a certificate: leave out ca and pin",
    ),
    (
        {"redfish": {"pin": "sha256//abc"}},
        "redfish.pin must be sha256//… as curl(1) has it for --pinnedpubkey, not 'sha256//abc'",
    ),
    ({"firmware": "efi"}, "firmware must be 'bios' or 'uefi', not 'efi' (text)"),
]


@pytest.mark.parametrize(("values", "sentence"), SENTENCES, ids=[text for _, text in SENTENCES])
def test_bad_input_gets_one_sentence(values: dict[str, Any], sentence: str) -> None:
    assert refused(values) == sentence


def test_several_problems_are_listed_one_a_line() -> None:
    assert refused({"site": 1, "dom0_memm_mib": 1, "domains": [guest(mac=1)]}).splitlines() == [
        "3 parameters cannot be accepted:",
        "  site must be text, not 1 (a number); put it in quotes",
        "  domains[0].mac must be text, not 1 (a number); put it in quotes",
        "  unknown parameter dom0_memm_mib; did you mean dom0_mem_mib?",
    ]


# Files.


# What is one site's own.
STATED = (
    "site, ssh, platform, disk, boot_mib, dom0_swap_mib, dom0_root_mib, share_mib, domu_root_mib, "
    "domu_swap_mib, dom0_mem_mib, hostname, domain, "
    "software, services, uplink, address, gateway, nameserver and domains"
)


def test_what_a_site_must_state_is_named_in_one_sentence(tmp_path: Path) -> None:
    (path := tmp_path / "site.yaml").write_text("bridge: br0\n")
    with pytest.raises(BadInput) as caught:
        load(path)
    assert caught.value.message == f"{STATED} are missing: no default can know them"


def test_one_key_that_is_missing_is_named_beside_other_problems() -> None:
    values = {key: value for key, value in BARE.items() if key != "gateway"}
    with pytest.raises(BadInput) as caught:
        validate(values | {"bridge": 1}, "site.yaml")
    assert caught.value.message.splitlines() == [
        "2 parameters cannot be accepted:",
        "  gateway is missing: it has no default",
        "  bridge must be text, not 1 (a number); put it in quotes",
    ]


def test_no_default_is_the_lab_s_alone() -> None:
    stated = STATED.replace(" and ", ", ").split(", ")
    least = {key: BARE[key] for key in stated} | {"uplink": "auto"}
    site = validate(least, "site.yaml").model_dump()
    for key in ("autostart", "lan_guests", "shared_packages", "shared_usr", "guest_exports"):
        assert site[key] == []
    for key in ("xen_options", "dom0_options", "domu_options", "package_proxy"):
        assert site[key] == ""
    assert (site["power"], site["may_wipe"], site["kernel_options"]) == ("manual", [], [])


def test_the_lab_s_file_names_every_parameter_in_the_order_of_the_schema() -> None:
    assert list(yaml.safe_load((FILES / "lab.yaml").read_text())) == list(Parameters.model_fields)


SITES = sorted({*FILES.glob("*.yaml")} - {FILES / "fleet.yaml"})


@pytest.mark.parametrize("path", SITES, ids=lambda path: path.name)
def test_every_parameters_file_is_accepted(path: Path) -> None:
    load(path)


def test_the_lab_s_files_are_in_the_cache_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENLAB_CACHE", str(tmp_path / "cache"))
    site = load(FILES / "lab.yaml")
    assert site.ssh.config == f"{tmp_path}/cache/labs/lab/ssh_config"
    assert site.stage == f"{tmp_path}/cache/stage/{site.release}-stage.tar.zst"
    monkeypatch.delenv("XENLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    site = load(FILES / "lab.yaml")
    assert site.stage == f"{tmp_path}/xenlab/stage/{site.release}-stage.tar.zst"
    assert lab_site(stage="~/other/stage.tar").stage == "~/other/stage.tar"


@pytest.mark.parametrize("name", cache.LINUX)
def test_a_release_brings_its_stage_and_its_kernel_sources(name: cache.Release) -> None:
    own = {"stage": "", "stage_checksums": "", "kernel_source": "", "kernel_checksums": ""}
    site = lab_site(release=name, **own)
    assert Path(site.stage).name == f"{name}-stage.tar.zst"
    assert site.stage_checksums == f"{site.stage}.sha256"
    assert Path(site.kernel_source).name == f"linux-source-{cache.LINUX[name]}.tar.xz"
    assert site.kernel_checksums == f"{site.kernel_source}.sha256"
    # a chapter is given the same, and a cell that names the release has it by itself
    assert part({"release": name, "stage": ""}, "cell").stage == site.stage
    assert lab_site(release=name, stage="~/a.tar", stage_checksums="").stage == "~/a.tar"


def test_a_person_s_own_sources_have_no_checksum_file_that_nobody_named() -> None:
    site = lab_site(kernel_source="/usr/src/linux-source-6.1.tar.xz", kernel_checksums="")
    assert site.kernel_checksums == ""


def test_a_stage_of_another_platform_has_to_be_named() -> None:
    with pytest.raises(BadInput, match="stage must not be empty: xenlab makes Debian's alone"):
        lab_site(platform="gentoo", stage="", software=[], shared_packages=[])


def test_a_release_that_nobody_knows_is_refused() -> None:
    with pytest.raises(BadInput, match=r"release must be .*trixie.*bookworm.*, not 'sid'"):
        lab_site(release="sid")


def test_an_override_replaces_a_value_of_the_file() -> None:
    assert load(FILES / "lab.yaml", {"share_mib": 7777}).share_mib == 7777


def test_a_bad_override_is_not_blamed_on_a_line_of_the_file() -> None:
    with pytest.raises(BadInput) as caught:
        load(FILES / "lab.yaml", {"share_mib": "x"})
    assert caught.value.message == "share_mib must be a whole number, not 'x' (text)"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        load(tmp_path / "nowhere.yaml")
    assert str(caught.value) == f"{tmp_path}/nowhere.yaml: there is no such parameters file"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "this parameters file is empty"),
        ("# only words\n", "this parameters file is empty"),
        ("a: [1\nb: 2\n", "line 2 is not YAML: expected ',' or ']', but got ':'"),
        ("a: 1\n b: 2\n", "line 2 is not YAML: mapping values are not allowed here"),
        ("a: \x01\n", "this is not YAML: unacceptable character #x0001: "),
        (b"a: \xff\n", "this parameters file cannot be read: it is not UTF-8 text"),
        ("a: 2026-13-45\n", "a value cannot be read as YAML: month must be in 1..12"),
        ("site: !!python/name:os.system\n", "line 1 is not YAML: could not determine a constr"),
        ("- a\n", "this parameters file must be a list of “key: value” lines, not a list"),
        ("word\n", "this parameters file must be a list of “key: value” lines, not a single value"),
        ("site: a\nshare: /s\nsite: b\n", "line 3: site stands here again (first in line 1)"),
        ("site: a\noff: 1\n", "line 2: the key off is not text to YAML: put it in quotes"),
        ("a: &a [*a]\n", "line 1: this value contains itself"),
        ("site: a\n\nshar: /s\n", "line 3: unknown parameter shar; did you mean share?"),
        ("ssh:\n  user: me\n", "line 2: ssh.host is missing"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    assert refused_file(tmp_path, text).startswith(sentence)


def bomb(levels: int, wide: int) -> str:
    """A file in which each line refers to the one before it, several times."""
    lines = ["l0: &l0 [x]"]
    for level in range(1, levels):
        lines.append(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * wide)}]")
    return "\n".join(lines) + "\n"


FULL = "a: &a [" + "x, " * 9000 + "x]\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (bomb(30, 9), "line 2: more than 8 references (*l0): write the values out"),
        (FULL + "b: [*a, *a]\n", "references (*) make more than 20000 values of this file"),
        ("a: &a {b: 1}\nc: {<<: [*a, *a, *a, *a, *a, *a, *a, *a, *a]}\n", "line 2: more than 8"),
        ("a: &a\n  <<: *a\n", "line 1: this value contains itself"),
        ("a: " + "[" * 60_000, "its values lie too deep in one another"),
        ("a: [" + "1," * 30_000 + "]", "line 1: more than 20000 values are too many for a site"),
        ("a: 1" + ":1" * 200_000, "line 1: a number of 400001 digits is too long"),
        ("site: 0x" + "f" * 9000, "line 1: a number of 9002 digits is too long"),
        ("share: " + "/x" * 200_000, "line 1: share must have at most 4096 characters, not 400000"),
        ("#" * (1 << 20) + "\n", "this parameters file has more than 1 MiB, which no site needs"),
        (b"\xef\xbb\xbfsite: lab\n", "this file begins with a byte order mark: save it as UTF-8 w"),
        ("site: a\ufeffb\n", "line 1: site must be one line without control or invisible charact"),
    ],
)
def test_a_file_that_is_too_much(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    begun = time.monotonic()
    message = refused_file(tmp_path, text)
    assert message.startswith(sentence)
    assert len(message) < 300
    # unlimited, the worst of them take minutes and all the memory there is
    assert time.monotonic() - begun < 30


def test_a_few_references_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    rest = {key: value for key, value in BARE.items() if key not in ("site", "hostname")}
    path.write_text(f"site: &name keep\nhostname: *name\n{yaml.safe_dump(rest)}")
    assert load(path).hostname == "keep"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("build_on: off", "not False (true or false): YAML reads off so; put it in quotes"),
        ("hostname: 007", "not 7 (a number): YAML reads 007 so; put it in quotes"),
        ("hostname: 4.20", "not 4.2 (a number): YAML reads 4.20 so; put it in quotes"),
        ("hostname: no", "not False (true or false): YAML reads no so; put it in quotes"),
        (
            "domains: [{name: a, memory_mib: 1, mac: 52:54:00:12:34:56, address: 10.0.2.9/24}]",
            "not 41135085296 (a number): YAML reads 52:54:00:12:34:56 so; put it in quotes",
        ),
    ],
)
def test_what_yaml_reads_otherwise_is_shown_as_written(
    tmp_path: Path, line: str, sentence: str
) -> None:
    message = refused_file(tmp_path, f"site: x\n{line}\n")
    assert message.startswith("line 2: ")
    assert message.endswith(sentence)


# Notebooks.


def test_a_notebook_s_own_variables_are_left_alone() -> None:
    namespace: dict[str, object] = {
        "dom0_mem_mib": 2048,
        "In": [""],
        "Out": {},
        "_dh": ["."],
        "exit": object(),
        "x": 1,
        "table": [1],
        "domainss": object(),
    }
    site = from_notebook(namespace)
    assert site.model_dump() == {"dom0_mem_mib": 2048}
    assert site.knows("dom0_mem_mib")
    assert not site.knows("dom0_mem_mib", "disk")


def test_what_a_chapter_does_not_declare_is_no_other_site_s_value() -> None:
    site = from_notebook({"dom0_mem_mib": 2048})
    # one that a whole site must state, and one that has a default there
    for name in ("disk", "share"):
        with pytest.raises(BadInput) as caught:
            getattr(site, name)
        assert str(caught.value).splitlines() == [
            f"cannot use the parameter {name}: because this chapter does not declare it",
            f"Try: add {name} to the chapter's parameters cell",
        ]
    with pytest.raises(AttributeError, match="shar"):
        getattr(site, "shar")  # noqa: B009


# what a rule compares, beside a value that it refuses
COMPARED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"domains": [guest()]}, {"gateway": "192.0.2.1"}, "gateway 192.0.2.1 is not in the network"),
    ({"address": "192.0.2.9/24"}, {"gateway": "192.0.2.9"}, "gateway and address are the same"),
    ({"domains": [guest()]}, {"address": "10.0.2.50/24"}, "dom0 and domain 1 (web) have the same"),
    ({"domains": [guest()]}, {"hostname": "web"}, "dom0 and domain 1 (web) have the same name"),
    (
        {"uplink": "xenbr0", "uplink_vlan": 0, "uplink_bond": {}},
        {"bridge": "xenbr0"},
        "uplink and bridge are the same",
    ),
    ({"address": "10.66.0.9/24"}, {"lan_address": "10.66.0.1/24"}, "the internal LAN 10.66.0.0/24"),
    ({"domains": [guest()]}, {"autostart": ["ftp"]}, "autostart names ftp, which is no domain"),
    ({"shared_usr": ["web"]}, {"lan_guests": []}, "shared_usr names web, which is not in"),
    ({"software": ["tree"]}, {"platform": "gentoo"}, "software[0] must be a Gentoo package"),
    ({"software": ["vim"]}, {"unwanted": ["vim"]}, "vim is unwanted, and yet in software"),
    ({"dom0_mem_mib": 64}, {"platform": "debian"}, "dom0_mem_mib must be at least 256, not 64"),
]


@pytest.mark.parametrize(("one", "other", "sentence"), COMPARED, ids=[c[2] for c in COMPARED])
def test_a_chapter_is_judged_by_what_it_was_given(
    one: dict[str, Any], other: dict[str, Any], sentence: str
) -> None:
    from_notebook(one)
    from_notebook(other)
    with pytest.raises(BadInput) as caught:
        from_notebook(one | other)
    assert caught.value.message.startswith(sentence)


CELL_OF_PAPERMILL = '# Parameters\nsite = "castle"\ndisk = "/dev/sda"\n'


def test_a_file_that_papermill_was_given_is_the_whole_site() -> None:
    """What it leaves out has the schema's default, never what the cell says of the lab."""
    cell = {"site": "castle", "disk": "/dev/sda", "package_proxy": "http://10.0.2.4:3142"}
    site = from_notebook(cell | {"In": ["", "…", CELL_OF_PAPERMILL]})
    assert site.model_dump() == {"site": "castle", "disk": "/dev/sda", "package_proxy": ""}
    with pytest.raises(BadInput) as caught:
        from_notebook(cell | {"gateway": "10.0.2.2", "In": ["", "…", CELL_OF_PAPERMILL]})
    assert caught.value.message == "gateway is missing: it has no default"


def test_a_single_parameter_that_papermill_was_given_leaves_the_others_as_they_are() -> None:
    cell = {"site": "lab", "package_proxy": "http://10.0.2.4:3142", "share_mib": 2048}
    assert from_notebook(cell | {"In": ["# Parameters\nshare_mib = 2048\n"]}).model_dump() == cell


PARAMETERS_CELL = """
site: str = "lab"  # a name
ssh: dict = {"host": "dom0"}  # how to reach it
disk: str = "/dev/vda"  # the disk
share_mib: int = 1024  # its size
"""
PAPERMILL_CELL = "# Parameters\nshare_mib = 2048\n"
SCHEDULER_CELL = 'share_mib = 2048\nhostname = "x"'
"""jupyter-scheduler's own cell has no line that says whose it is."""

NOTEBOOKS: list[tuple[list[str], dict[str, object]]] = [
    ([], {}),
    # names that the chapter does not declare are its person's own
    (["import platform\nuplink = 3\nboot_mb = 7"], {}),
    ([PAPERMILL_CELL], {"share_mib": 2048}),
    ([SCHEDULER_CELL], {"share_mib": 2048, "hostname": "x"}),
    # the cell, changed and run again
    (["x = 1", PARAMETERS_CELL.replace("vda", "vdb")], {"disk": "/dev/vdb"}),
    (["disk = 3", PARAMETERS_CELL], {}),
    # computed by the cell itself
    ([PARAMETERS_CELL + "import os\ndisk = os.path.join('/dev', 'vdc')"], {"disk": "/dev/vdc"}),
    (["if"], {}),
]


def run_cells(cells: list[str]) -> dict[str, object]:
    """What a notebook's variables are after these cells, as IPython has them."""
    namespace: dict[str, object] = {"In": ["", *cells]}
    for cell in cells:
        if cell != "if":
            exec(cell, namespace)
    return namespace


@pytest.mark.parametrize(("cells", "other"), NOTEBOOKS)
def test_variables_of_a_person_s_own_are_told_from_parameters(
    cells: list[str], other: dict[str, object]
) -> None:
    site = from_notebook(run_cells([PARAMETERS_CELL, *cells]))
    said = {"site": "lab", "disk": "/dev/vda", "share_mib": 1024} | other
    assert {**site.model_dump(), "ssh": {}} == {**said, "ssh": {}}


@pytest.mark.parametrize(
    ("cells", "name"),
    [
        (["x = 1", 'disk = "/dev/vdb"'], "disk"),
        (["from os import path as disk"], "disk"),
        (["for share_mib in range(3): pass"], "share_mib"),
        (["x = 1", "share_mib = 1024.0"], "share_mib"),
        (["ssh['port'] = 2222"], "ssh"),
        (["x = 1", PAPERMILL_CELL, "share_mib += 1"], "share_mib"),
    ],
)
def test_a_parameter_that_something_else_has_set_is_refused(cells: list[str], name: str) -> None:
    with pytest.raises(BadInput) as caught:
        from_notebook(run_cells([PARAMETERS_CELL, *cells]))
    assert str(caught.value) == (
        f"this notebook's parameters: cannot tell what {name} is: because something else has set "
        f"it since the parameters cell was run\nTry: set {name} in the parameters cell, and call "
        "a variable of your own otherwise; then run both cells again"
    )


@pytest.mark.parametrize(
    ("namespace", "sentence"),
    [
        ({"dom0_mem": 1}, "unknown parameter dom0_mem; did you mean dom0_mem_mib?"),
        ({"hostname": 4.2}, "hostname must be text, not 4.2 (a number); put it in quotes"),
        ({"share_mib": "1"}, "share_mib must be a whole number, not '1' (text)"),
    ],
)
def test_a_notebook_s_parameters_are_validated(namespace: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        from_notebook(namespace)
    assert str(caught.value) == f"this notebook's parameters: {sentence}"


CELL = '{"cells": [{"metadata": {"tags": ["parameters"]}, "source": [%s]}]}'


def test_what_a_chapter_declares(tmp_path: Path) -> None:
    notebook = tmp_path / "a.ipynb"
    notebook.write_text(CELL % r'"site: str = \"a=b\"  # words\n", "share_mib = 3\n"')
    assert declared(notebook) == ["site", "share_mib"]
    assert defaults(notebook) == {"site": "a=b", "share_mib": 3}


def test_a_chapter_is_given_what_it_declares_in_plain_types() -> None:
    given_to = for_chapter(LAB, ["share_mib", "ssh", "domains"])
    assert yaml.safe_load(yaml.safe_dump(given_to)) == given_to
    assert list(given_to) == ["share_mib", "ssh", "domains"]
    assert given_to["domains"][0]["partition"] == "domu1"
    assert from_notebook(given_to).domains == LAB.domains


def test_a_chapter_that_installs_nothing_needs_no_gentoo_names() -> None:
    """Its cell does not declare the software."""
    assert from_notebook({"platform": "gentoo"}).platform == "gentoo"
    with pytest.raises(BadInput, match="category/name, not 'tree'"):
        from_notebook({"platform": "gentoo", "software": ["tree"]})


def test_a_notebook_without_parameters_declares_nothing(tmp_path: Path) -> None:
    notebook = tmp_path / "a.ipynb"
    notebook.write_text('{"cells": []}')
    assert declared(notebook) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "there is no such notebook"),
        ("{", "its parameters cannot be read: JSONDecodeError: "),
        ("{}", "its parameters cannot be read: KeyError: 'cells'"),
        (CELL % '"x = f()"', "its parameters cannot be read: ValueError: "),
        (
            CELL % '"f()"',
            "its parameters cannot be read: ValueError: line 1 of the parameters cell",
        ),
        (CELL % '"x ="', "its parameters cannot be read: SyntaxError: invalid syntax"),
    ],
)
def test_a_notebook_that_cannot_be_read(tmp_path: Path, text: str | None, sentence: str) -> None:
    notebook = tmp_path / "a.ipynb"
    if text is not None:
        notebook.write_text(text)
    with pytest.raises(BadInput) as caught:
        declared(notebook)
    assert caught.value.where == str(notebook)
    assert caught.value.message.startswith(sentence)


# What is legal stays legal: quoting is the business of Command.


@pytest.mark.parametrize(
    "values",
    [
        {"share": "/mnt/my.share_2+@-"},
        {"disk": "/dev/disk/by-id/usb-Maker_Stick_4C53-0:0"},
        {"disk": "/dev/mapper/vg-xen", "image": '/mnt/it\'s a "$(share)"; `x` & <y> | *'},
        {"stage": "~/my stage's $HOME.tar"},
        {"xen_options": "console=vga  loglvl=all com1=115200,8n1,0x3f8,4 cpufreq=xen:performance"},
        {
            "dom0_options": "acpi_osi=!* ivrs_ioapic[10]=00:14.0 video=HDMI-1:1920x1080@60 ",
            "uplink": "enp3s0f1",
            "lan_interface": "veth2",
        },
        {"dom0_options": "rootdelay=5 net.ifnames=0", "xen_options": "dom0_mem_x=1"},
        {"kernel_options": ["CONFIG_A=y", "CONFIG_A=y"]},
        {"share": "/srv/share", "image_exclude": ["/usr/lib/gcc", "/var/tmp"]},
        {"domu_options": "x" * 700},
        {"boot_mib": 64, "dom0_root_mib": 1024, "share_mib": 1024, "domu_root_mib": 768},
        {"dom0_mem_mib": 256, "domains": [guest(memory_mib=64)]},
        {
            "platform": "gentoo-2006",
            "software": [],
            "dom0_mem_mib": 64,
            "domains": [guest(memory_mib=48)],
        },
        {"kernel_options": ["CONFIG_A=y", "CONFIG_B=-1", "CONFIG_C=0xff", 'CONFIG_D="a b"']},
        {"software": ["g++", "libstdc++6", "python3.11"]},
        {"may_wipe": []},
        {"may_destroy": ["domu1 2f0c1b9e-0d7e-4a3b-9f51-3f6f2f3c7a10", "dom0 ABCD-1234"]},
        {"uplink": "e" * 15, "dom0_ip_on_bridge": True},
        {"uplink": "auto"},
        {"uplink": "52:54:00:12:34:AA", "platform": "gentoo", "software": []},
        {"bridge": "peth0", "dom0_ip_on_bridge": True},
        {"platform": "gentoo", "software": ["app-misc/screen"]},
        {"ssh": {"host": "10.0.0.1", "port": 2222, "user": "root", "identity": "~/.ssh/a b"}},
        {
            "address": "10.0.2.15/31",
            "gateway": "10.0.2.14",
            "domains": [guest(address="10.0.2.13/28")],
        },
        {
            "address": "203.0.113.5/32",
            "gateway": "172.31.1.1",
            "domains": [guest(address="203.0.113.6/32")],
        },
    ],
)
def test_unusual_values_that_are_legal(values: dict[str, Any]) -> None:
    site = validate(BARE | values, "site.yaml")
    assert validate(site.model_dump(), "again") == site


def strings(value: object, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, str):
        yield place
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings(item, (*place, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from strings(item, (*place, number))


EVERYTHING = LAB.model_copy(update={"kernel_options": ["CONFIG_A=y"]}).model_dump()
TEXT = st.one_of(st.text(), st.text(st.characters(categories=["Cc", "L", "P", "Zl", "Zs"])))


@given(place=st.sampled_from(list(strings(EVERYTHING))), text=TEXT, keep=st.booleans())
def test_no_text_passes_with_a_control_character(
    place: tuple[str | int, ...], text: str, keep: bool
) -> None:
    values: Any = Parameters.model_validate(EVERYTHING).model_dump()
    inner = values
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = inner[place[-1]] + text if keep else text
    try:
        site = validate(BARE | values, "site.yaml")
    except BadInput as error:
        sentences = error.message.splitlines()[1:] or [error.message]
        assert all(re.fullmatch(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+", s) for s in sentences)
    else:
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", text)
        assert validate(site.model_dump(), "again") == site


@given(
    place=st.sampled_from(list(strings(EVERYTHING))),
    text=st.text(min_size=1, max_size=5),
    listed=st.booleans(),
)
def test_no_message_is_longer_than_a_person_reads(
    place: tuple[str | int, ...], text: str, listed: bool
) -> None:
    values: Any = Parameters.model_validate(EVERYTHING).model_dump()
    inner = values
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = [text * 200_000] if listed else text * 200_000
    message = refused(values)
    assert len(message) < 500


def test_no_more_problems_are_listed_than_a_person_reads() -> None:
    lines = refused({"autostart": [f"web{number}" for number in range(5000)]}).splitlines()
    assert lines[0] == "5000 parameters cannot be accepted:"
    assert (len(lines), lines[-1]) == (22, "  …")


# The disk plan (Howto: „Partitionen“).


def test_the_disk_plan_has_the_howto_s_six_kinds_in_its_order() -> None:
    assert [(part.name, part.mib, part.kind) for part in partitions(LAB)] == [
        ("biosboot", 1, "biosboot"),
        ("boot", 512, "boot"),
        ("dom0swap", 512, "swap"),
        ("dom0root", 3072, "linux"),
        ("share", 4096, "linux"),
        ("domu1", 1536, "linux"),
        ("domu2", 1536, "linux"),
        ("domu3", 1536, "linux"),
        ("domuswap", 847, "linux"),
    ]


def test_a_uefi_machine_has_a_system_partition_of_fat_first() -> None:
    first, *rest = partitions(LAB.model_copy(update={"firmware": "uefi"}))
    assert (first.name, first.mib, first.kind) == ("esp", 260, "esp")
    assert rest == partitions(LAB)[1:]


def test_no_domain_can_take_the_name_of_a_partition_of_dom0() -> None:
    names = [part.name for part in partitions(LAB)]
    assert set(names) - {domain.partition for domain in LAB.domains} == set(DOM0_PARTITIONS)


def test_a_disk_fits_to_the_mib() -> None:
    fits(LAB, needed_mib(LAB))
    with pytest.raises(BadInput) as caught:
        fits(LAB, needed_mib(LAB) - 1)
    assert str(caught.value).splitlines() == [
        "site lab: /dev/vda has 13649 MiB and the site needs 13650 MiB: biosboot 1, boot 512, "
        "dom0swap 512, dom0root 3072, share 4096, domu1 1536, domu2 1536, domu3 1536, domuswap 847",
        "Try: take a larger disk, fewer domains, or smaller sizes (parameters *_mib)",
    ]


@pytest.mark.parametrize("each", [1, 40, 256, 340, 600, 700, 5000, 60_000])
def test_the_swap_files_fit_into_their_file_system(tmp_path: Path, each: int) -> None:
    site = LAB.model_copy(update={"domu_swap_mib": each})
    image = tmp_path / "domuswap"
    with image.open("wb") as file:
        file.truncate(swap_files_mib(site) << 20)
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", image], check=True, timeout=120)
    told = subprocess.run(
        ["/sbin/dumpe2fs", "-h", image], check=True, capture_output=True, text=True, timeout=60
    )
    free = re.search(r"^Free blocks: +(\d+)$", told.stdout, re.M)
    size = re.search(r"^Block size: +(\d+)$", told.stdout, re.M)
    assert free is not None
    assert size is not None
    # an extent block for each hundreds of MiB is all that a file costs beside its own blocks
    assert int(free[1]) * int(size[1]) >> 20 >= len(site.domains) * each + 4


@given(st.text(st.characters(max_codepoint=127, exclude_categories=["C"])))
def test_a_way_to_the_machine_is_as_narrow_as_that_of_ssh(text: str) -> None:
    def refused(check: Callable[[], object]) -> bool:
        try:
            check()
        except BadInput:
            return True
        return False

    for host, user in ((text, ""), ("x", text)):
        site = BARE | {"ssh": {"host": host, "user": user}}
        by_ssh = refused(partial(resolve, Target(host, user=user)))
        assert refused(partial(validate, site, "site.yaml")) == by_ssh
