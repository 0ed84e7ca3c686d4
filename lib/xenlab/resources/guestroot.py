"""The one way into a guest's root, which dom0 mounts and works in as root, and nobody trusts.

From the day it first ran, a guest says what each name in its root is: a link into dom0 (absolute or
with ``..``), a device node, a pipe, a program with a suid bit, a path that leads out of /usr. So:

- it is mounted where no other process sees it, in a mount namespace that ends with the work, as
  ext4 whatever it claims to be, ``nosuid,nodev,noexec``, and an error in it is no panic of dom0's;
- never while a domain has the device, or two processes want it;
- what is read or written in it goes through `xenlab.resources.below`, which dom0's own python3 runs
  (Xen's tools and Portage need it, so it is there on every dom0). It changes its root first: the
  kernel resolves every path below that. A chroot holds only who executes nothing of what lies
  inside, so it neither loads nor starts anything. A shell in the chroot would be the guest's own;
- a path that a guest reported is looked at by `reported` before it is used even there;
- a root that was just made, or is seen to be empty, holds no names: an image is unpacked into it by
  dom0's tar. Where only that is asked, of a guest that may run, debugfs lists the names at the top
  of a file system that nobody mounts.

A script finds ``$name``, ``$device``, ``$records`` (dom0's folder of records of this guest) and
``$scratch`` (gone when it ends); the values that follow those of `in_namespace` are ``$1`` and so
on. Between ``enter`` and ``leave`` it says ``guest VERB WORDS…``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from importlib.resources import files as package_files

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.below import REFUSED
from xenlab.resources.identity import ANOTHER_DISK, SAME_DISK, refuse_another
from xenlab.wholefile import RECEIVE

RECORDS = "/var/lib/xenlab/guests"
OPTIONS = "nosuid,nodev,noexec"
"""What a mount of anything that a guest made has."""

_USED, _MOUNTED = 42, 43

REFUSALS = {
    41: ("another process is working on this guest", "wait for its end, or end it"),
    42: ("a running domain uses {device}", "shut the guest down first: xl shutdown -w {name}"),
    43: ("{device} is mounted", "unmount it"),
    44: ("there is no device {device}", "run chapter 01_partitions"),
    45: ("there is no image {value} with its checksum beside it", "run chapter 06_imaging"),
    46: ("xenstore does not answer, so nobody can say whether the guest runs", "see xen.service"),
    47: ("{device} holds no completely unpacked root", "unpack the image first"),
    48: (
        "the guest's root has no poweroff program, so it could never be shut down",
        "install the init system into the image (Debian: systemd-sysv)",
    ),
    49: (
        "{name} has no /usr of its own any more, so it cannot get it back",
        "leave it in shared_usr, or let chapter 09 make its root anew: --destroy {name}",
    ),
    50: (
        "the /bin of {name} lies in its /usr, without which nothing of it would start",
        "this is for a split layout; on a merged one /usr is mounted before the first process",
    ),
    51: (
        "nobody has asked {name} yet what its boot needs of /usr, and it does not run",
        "start it, then run the step again",
    ),
    52: (
        "{device} holds files of {name} that nobody agreed to lose; nothing was destroyed",
        "run the step again: it says what to agree to",
    ),
    55: ("dom0 has no python3", "install it: Xen's tools need it as well"),
    56: (
        "the /usr or the /usr.old of {name} is not the folder that it should be",
        "look at them in the guest, or let chapter 09 make its root anew: --destroy {name}",
    ),
}

_IN_USE = """
[ -b "$device" ] || exit 44
if [ "$(cat /sys/hypervisor/type 2>/dev/null)" = xen ]; then
    used=$(xenstore-ls -f /local/domain/0) || exit 46
    number=$(stat -L -c %t:%T -- "$device")
    case $used in *"/physical-device = \\"$number\\""*) exit 42 ;; esac
fi
! findmnt -n -S "$(readlink -f -- "$device")" > /dev/null || exit 43
"""

# The lock tells of another run, the store of a running guest, whichever name its device has there.
# A private mount namespace takes its mounts along when it is killed: nothing stays mounted.
_GUARD = (
    SAME_DISK
    + RECEIVE
    + """
below=$1 name=$2 device=$3 records=$4/$2
shift 4
exec 9> "/run/xenlab-guest-$name.lock"
flock -n 9 || exit 41
"""
    + _IN_USE
    + f"""
command -v python3 > /dev/null || exit 55
uuid() {{ blkid -p -s UUID -o value -- "$device"; }}
enter() {{ # [ro]
    mount -t ext4 -o "{OPTIONS},errors=remount-ro${{1:+,$1}}" -- "$device" "$scratch/root"
}}
guest() {{ python3 -I -S -c "$below" "$scratch/root" "$@"; }}
leave() {{ umount -- "$scratch/root"; }}
unpack() {{ # IMAGE: into a root that is seen to be empty, so that all names in it are the image's
    guest empty
    tar -C "$scratch/root" -I 'zstd -d' --numeric-owner --acls --xattrs --xattrs-include='*' \\
        -xpf "$1"
}}
note() {{ # NAME: standard input becomes this record, on disk when it ends
    cat > "$records/.new"
    sync -- "$records/.new"
    mv -- "$records/.new" "$records/$1"
    sync -- "$records"
}}
usr_back() {{ # the guest's own /usr in its place again
    case "$(guest look /usr.old)" in folder | empty) ;; *) exit 56 ;; esac
    case "$(guest look /usr)" in none) ;; link | empty) guest remove /usr ;; *) exit 56 ;; esac
    guest move /usr.old /usr
}}
mkdir -p -- "$records"
scratch=$(mktemp -d /run/xenlab-guest-XXXXXX)
trap 'mountpoint -q -- "$scratch/root" && umount -- "$scratch/root"
    rmdir -- "$scratch/root" && rm -rf --one-file-system -- "$scratch" || :' EXIT
trap 'exit 143' HUP INT TERM
mkdir -- "$scratch/root"
"""
)


def in_namespace(
    host: Host,
    script: str,
    guest: tuple[str, str, str],
    values: tuple[str, ...] = (),
    *,
    timeout: float,
    input: bytes = b"",
) -> None:
    """Run a script on a guest (its name, its device, the folder of records), as told above.

    Raises StepFailed where the guest's root must not be worked on, or is not what it must be.
    """
    below = package_files("xenlab").joinpath("resources", "below.py").read_text()
    command = Command.argv(
        *("unshare", "--mount", "--propagation", "private", "--"),
        *("/bin/sh", "-euc", _GUARD + script, "xenlab", below, *guest, *values),
    )
    result = host.run(command, input=input, timeout=timeout, check=False)
    name, device, _ = guest
    if result.status in REFUSALS:
        message, hint = REFUSALS[result.status]
        raise StepFailed(
            message.format(name=name, device=device, value=values[0] if values else ""),
            hint=hint.format(name=name, device=device),
            where=f"{host.name}: {name}",
        )
    if result.status == REFUSED:
        raise StepFailed(
            result.stderr.strip(),
            hint=f"something in {name} is not what it must be: look at it in the guest, or let "
            f"chapter 09 make its root anew: --destroy {name}",
            where=f"{host.name}: {name}",
        )
    if result.status == ANOTHER_DISK:
        raise refuse_another(device)
    if not result.ok:
        raise CommandFailed(result)


def in_use(host: Host, name: str, device: str) -> str:
    """Why a guest's root cannot be worked on now, "" where it can or is not there yet."""
    result = host.run(Command.script(f"name=$1 device=$2{_IN_USE}", name, device), check=False)
    if result.status not in (_USED, _MOUNTED):
        return ""
    return REFUSALS[result.status][0].format(name=name, device=device)


def reported(guest: str, paths: Iterable[str]) -> list[str]:
    """Paths that a guest says lie in its /usr, each once; raises StepFailed where one does not."""
    found = set()
    for path in paths:
        plain = posixpath.normpath(path)
        if ".." in path.split("/") or not plain.startswith("/usr/") or not path.isprintable():
            raise StepFailed(
                f"cannot take {path!r} from {guest}: because it is no path in /usr",
                hint=f"look what {guest} starts at its boot: chapter 15's first table",
                where=guest,
            )
        found.add(plain)
    return sorted(found)
