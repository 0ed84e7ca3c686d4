"""Site files and machines that would fail later, each with what is said of it before that.

What is said stands in docs/troubleshooting.md, by the same first words; ``…`` is anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SECTION = PAGE.partition("## What chapter 00 refuses\n")[2].partition("\n## ")[0]

CARD = "52:54:00:12:34:56"
"""The MAC address of the lab's machine."""


def said() -> dict[str, str]:
    """What the page says of each wrong thing."""
    return dict(re.findall(r"^\| (.+?) \| `(.+)` \|$", SECTION, re.MULTILINE))


def is_said(wrong: str, text: str) -> bool:
    """Whether a message has the page's sentence, whose ``…`` is anything."""
    pieces = map(re.escape, said()[wrong].split("…"))
    return re.search(".*".join(pieces), " ".join(text.split())) is not None


def guest(**changes: Any) -> dict[str, Any]:
    """A guest of the lab's network."""
    one = {
        "name": "web",
        "memory_mib": 320,
        "mac": "00:16:3e:66:01:01",
        "address": "10.0.2.21/24",
    }
    return one | changes


def other(**changes: Any) -> dict[str, Any]:
    """A second one."""
    two = {"name": "mail", "mac": "00:16:3e:66:01:02", "address": "10.0.2.22/24"}
    return guest(**two) | changes


IN_A_FILE: dict[str, Mapping[str, Any] | str] = {
    "a file that is no YAML": "site: [lab\n",
    "a key that stands twice": "site: one\ndisk: /dev/vda\nsite: two\n",
    "a key that is missing": "site: castle\n",
    "a key that does not exist": {"dom0_memm_mib": 1024},
    "a value of another kind": {"share_mib": "4 GB"},
    "an unknown distribution": {"platform": "ubuntu"},
    "dom0 of 64 MiB": {"dom0_mem_mib": 64},
    "a guest of 16 MiB": {"domains": [guest(memory_mib=16)]},
    "a guest that may grow to less than it has": {"domains": [guest(maxmem_mib=300)]},
    "a guest's root smaller than the image": {"domu_root_mib": 500},
    "a share of 100 MiB": {"share_mib": 100},
    "more partitions than a disk can have": {
        "domains": [
            guest(name=f"g{n}", mac=f"00:16:3e:66:01:{n:02x}", address=f"10.0.2.{20 + n}/24")
            for n in range(123)
        ]
    },
    "a gateway nowhere": {"gateway": "10.0.3.1"},
    "a gateway that is all machines": {"gateway": "10.0.2.255"},
    "a gateway that is dom0": {"gateway": "10.0.2.15"},
    "a gateway that no machine can be": {"gateway": "224.0.0.1"},
    "an address that is the network's": {"address": "10.0.2.0/24"},
    "an address without its prefix": {"address": "10.0.2.15"},
    "a guest with dom0's address": {"domains": [guest(address="10.0.2.15/24")]},
    "a guest with the rescue system's address": {
        "ssh": {"host": "192.0.2.1", "rescue_address": "10.0.2.21"},
        "domains": [guest()],
    },
    "the same MAC twice": {"domains": [guest(), other(mac="00:16:3E:66:01:01")]},
    "a MAC for many": {"domains": [guest(mac="01:16:3e:66:01:01")]},
    "the same address twice": {"domains": [guest(), other(address="10.0.2.21/24")]},
    "the same name twice": {"domains": [guest(), other(name="WEB", partition="web2")]},
    "a guest called as dom0 is": {"domains": [guest(name="dom0")]},
    "a name that no host can have": {"domains": [guest(name="my_web")]},
    "a name that xl takes for an id": {"domains": [guest(name="12", partition="web")]},
    "a guest outside of the internal LAN": {
        "domains": [guest()],
        "lan_guests": [{"name": "web", "mac": "00:16:3e:66:02:01", "address": "10.67.0.11/24"}],
    },
    "a guest that starts and does not exist": {"domains": [guest()], "autostart": ["wbe"]},
    "a misspelt key of xl": {"domains": [guest(extra={"cpu_wieght": 512})]},
    "a guest's disk that is the site's": {
        "domains": [guest(disks=[{"path": "/dev/vda5", "name": "xvdb"}])]
    },
    "a name of the card that dom0 does not know": {"uplink": "enp3s0"},
    "a name of the card that udev changes": {"dom0_options": "console=hvc0"},
    "a bridge called as the loopback interface": {"bridge": "lo"},
    "a share in the system's place": {"share": "/usr"},
    "an image without what boots": {"image_exclude": ["/etc"]},
    "another machine's image, and the distribution's kernel": {
        "kernel": "distribution",
        "image_from": "~/base.tar.zst",
        "shared_usr": [],
    },
    "another root for dom0's kernel": {"dom0_options": "net.ifnames=0 root=/dev/sda1"},
    "a kernel option with two values": {"kernel_options": ["CONFIG_E1000E=y", "CONFIG_E1000E=n"]},
    "UEFI where 2006 is": {
        "platform": "gentoo-2006",
        "firmware": "uefi",
        "software": [],
        "shared_packages": [],
    },
}
"""What the file alone shows: nobody is connected to. A text is the whole file."""


@dataclass(frozen=True)
class OnMachine:
    """What only the machine shows: how it is brought about there and undone, and what is changed.

    The machine's second disk has a partition with a file system.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    make: str = ""
    undo: str = ""


DAMAGED = "damaged"
"""What a stage is called that has another checksum than its file says."""

SECOND = {"disk": "/dev/vdb"}

ON_A_MACHINE: dict[str, OnMachine] = {
    "no such disk": OnMachine({"disk": "/dev/vdz"}),
    "a partition": OnMachine({"disk": "/dev/vdb1"}),
    "a disk that is too small": OnMachine({"share_mib": 90000}),
    "a disk that is read-only": OnMachine(
        SECOND, "blockdev --setro /dev/vdb", "blockdev --setrw /dev/vdb"
    ),
    "a disk that is in use": OnMachine(
        SECOND,
        "mkdir -p /mnt/used && mount -o ro,noload /dev/vdb1 /mnt/used",
        "umount /mnt/used",
    ),
    "the wrong disk": OnMachine({"may_wipe": ["S4X0NE0000"]}),
    "no memory": OnMachine({"dom0_mem_mib": 4096}),
    "a guest that may grow beyond the machine": OnMachine({"domains": [guest(maxmem_mib=9000)]}),
    "more processors than there are": OnMachine({"domains": [guest(vcpus=9)]}),
    "a guest with the machine's MAC": OnMachine({"domains": [guest(mac=CARD)]}),
    "a card that is not there": OnMachine({"uplink": "52:54:00:99:99:99"}),
    "the other firmware": OnMachine({"firmware": "uefi"}),
    "UEFI under Secure Boot": OnMachine(
        {"firmware": "uefi"},
        # as efivarfs shows it: four bytes of attributes, then the value
        "mount -t tmpfs none /sys/firmware && mkdir -p /sys/firmware/efi/efivars && "
        "printf '\\6\\0\\0\\0\\1' > /sys/firmware/efi/efivars/SecureBoot-8be4df61",
        "umount /sys/firmware",
    ),
    "a processor of 32 bit": OnMachine(
        make="sed 's/ lm / /' /proc/cpuinfo > /run/cpuinfo && mount --bind /run/cpuinfo "
        "/proc/cpuinfo",
        undo="umount /proc/cpuinfo",
    ),
    "a rescue system of 32 bit": OnMachine(
        make="printf '#!/bin/sh\\necho i686\\n' > /run/uname && chmod +x /run/uname && "
        "mount --bind /run/uname /usr/bin/uname",
        undo="umount /usr/bin/uname",
    ),
    "a rescue system without a program": OnMachine(
        make="mv /usr/bin/rsync /run/rsync", undo="mv /run/rsync /usr/bin/rsync"
    ),
    "a wrong clock": OnMachine(
        make="date +%s > /run/clock && date -u -s 2006-01-01 > /dev/null",
        undo="date -u -s @$(cat /run/clock) > /dev/null",
    ),
    "no stage": OnMachine({"stage": "/nowhere/stage.tar.zst"}),
    "a damaged stage": OnMachine({"stage": DAMAGED}),
    "a stage that a root does not hold": OnMachine({"domu_root_mib": 768}),
    "no kernel source": OnMachine({"kernel_source": "/nowhere/linux-6.1.tar.xz"}),
    "nobody to boot it": OnMachine({"power": "ipmi"}),
    "a missing driver": OnMachine({"kernel_options": ["CONFIG_VIRTIO_BLK=n"]}),
}
"""What the machine, or the controller beside it, shows in chapter 00."""
