"""What is booted: the boot loader, its menu, its code on the disk; the distribution's kernel."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import BadInput, StepFailed
from xenlab.host import NO_PROGRAM, Host
from xenlab.platform.apt import AptPackages
from xenlab.platform.base import by_platform
from xenlab.quoting import grub
from xenlab.resources.base import All, Difference, Resource
from xenlab.resources.files import File
from xenlab.resources.kernel import DOM0, GUEST_KERNELS, RELEASE, parse_config
from xenlab.resources.xen import HypervisorLinks

# GRUB 2: its scripts, the menu that they make, and its code on the disk.

ENTRY = "xenlab"
MKCONFIG_SECONDS = 900.0
INSTALL_SECONDS = 600.0

_WRONG_DISK = 45
_NOT_INSTALLED = (1, 2, 44, NO_PROGRAM)
"""A look's own status, and those of the programs in it where what they read is not there."""


@dataclass(frozen=True)
class ScriptsOff(Resource):
    """Scripts in /etc/grub.d that are not executable, so that grub-mkconfig passes them over."""

    names: tuple[str, ...]

    def probe(self, host: Host) -> Difference | None:
        """Which of them are still executable."""
        script = 'for name do [ ! -x "/etc/grub.d/$name" ] || printf "%s\\n" "$name"; done'
        result = host.look(Command.script(script, *self.names))
        found = list(self.names) if result is None else result.stdout.split()
        return Difference(f"switch off GRUB's {', '.join(found)}") if found else None

    def commands(self) -> tuple[Command, ...]:
        """Take the execute bit from them; dpkg keeps the mode of a changed conffile."""
        script = 'for name do [ ! -e "/etc/grub.d/$name" ] || chmod -x "/etc/grub.d/$name"; done'
        command = Command.script(script, *self.names)
        files = [f"/etc/grub.d/{name}" for name in self.names]
        return (command.typed_as("chmod -x {files}", files=files),)


@dataclass(frozen=True)
class GrubMenu(Resource):
    """/boot/grub/grub.cfg, newer than all it is made from, with the Xen entry as its default."""

    release: str
    xen: str
    dom0: str
    initrd: bool = False

    def lines(self) -> tuple[str, ...]:
        """What stands in a menu of this entry; the root's UUID is GRUB's to find out."""
        initrd = (f"module2 --nounzip /initrd.img-{self.release}",) if self.initrd else ()
        return (
            f'set default="{ENTRY}"',
            f"/xen.gz placeholder {self.xen}",
            f"/vmlinuz-{self.release} placeholder root=",
            f" ro {self.dom0}",
            *initrd,
        )

    def probe(self, host: Host) -> Difference | None:
        """What is missing in the menu, or which of its sources is newer."""
        script = """
            menu=/boot/grub/grub.cfg
            [ -s "$menu" ] || { echo 'there is none yet'; exit 0; }
            find /etc/default/grub /etc/default/grub.d /etc/grub.d -newer "$menu" 2> /dev/null \\
                | sed 's/$/ is newer/' || :
            for line do
                grep -qF -- "$line" "$menu" || printf 'no “%s” in it\\n' "$line"
            done
        """
        result = host.look(Command.script(script, *self.lines()))
        lines = ["there is none yet"] if result is None else result.stdout.splitlines()
        if not lines:
            return None
        rows = tuple({"grub.cfg": line} for line in lines)
        return Difference(f"generate the boot menu: {lines[0]}", rows=rows)

    def commands(self) -> tuple[Command, ...]:
        """Generate it with grub-mkconfig, which puts it in place only if its syntax is right."""
        make = Command("LC_ALL=C grub-mkconfig -o /boot/grub/grub.cfg").within(MKCONFIG_SECONDS)
        return make, Command("grub-script-check /boot/grub/grub.cfg")


@dataclass(frozen=True)
class GrubOnDisk(Resource):
    """GRUB for PC BIOS on a disk: boot sector, BIOS boot partition, its modules in /boot/grub."""

    disk: str

    def probe(self, host: Host) -> Difference | None:
        """Whether the boot sector is GRUB's, points to the BIOS boot partition, and that is whole.

        GRUB notes the first sector of its core at byte 92 of the boot sector (boot.S). The core's
        first two sectors hold addresses that are filled in as it is installed.
        """
        script = """
            core=/boot/grub/i386-pc/core.img
            [ -s "$core" ] && [ -s /boot/grub/i386-pc/normal.mod ] || exit 44
            [ "$(od -An -c -j384 -N4 "$1" | tr -d ' ')" = GRUB ] || exit 44
            start=$(partx -g -r -o START,TYPE -- "$1" \\
                | sed -n 's/ 21686148-6449-6e6f-744e-656564454649$//Ip')
            [ "$(od -An -tu8 -j92 -N8 "$1" | tr -d ' ')" = "$start" ] || exit 44
            rest=$(($(stat -c %s "$core") - 1024))
            cmp -s -n "$rest" -i "$((start * 512 + 1024)):1024" -- "$1" "$core" || exit 44
        """
        result = host.look(Command.script(script, self.disk), *_NOT_INSTALLED)
        if result is not None and result.ok:
            return None
        return Difference(f"install GRUB on {self.disk}")

    def commands(self) -> tuple[Command, ...]:
        """Run grub-install; refused if /boot does not lie on that disk."""
        script = """
            boot=$(mountpoint -d /boot)
            disk=$(readlink -f -- "$1")
            lsblk -n -r -o MAJ:MIN -- "$disk" | grep -qxF -- "$boot" || exit 45
            LC_ALL=C grub-install --target=i386-pc -- "$1"
            sync
        """
        wrong = (
            f"cannot install GRUB on {self.disk}: because /boot does not lie there",
            "mount the installed system's /boot (chapter 02), or correct disk",
        )
        command = Command.script(script, self.disk).refusing({_WRONG_DISK: wrong})
        typed = command.typed_as("grub-install --target=i386-pc {disk}", disk=self.disk)
        return (typed.within(INSTALL_SECONDS),)


EFI_FOLDER = "/boot/efi"
"""Where the EFI system partition is mounted."""

SECOND_EFI_FOLDER = "/boot/efi2"
"""Where the second disk's is, of a mirror."""

EFI_PROGRAMS = ("EFI/BOOT/BOOTX64.EFI", "EFI/xenlab/grubx64.efi")
"""Where GRUB lies there: what any firmware looks for, and what an entry in its menu names."""


@dataclass(frozen=True)
class GrubOnEfi(Resource):
    """GRUB for UEFI on a disk: two programs on its system partition, its modules in /boot/grub.

    ``entry`` is what the firmware's menu calls it: a second disk has one of its own.
    """

    disk: str
    folder: str = EFI_FOLDER
    entry: str = ENTRY

    def probe(self, host: Host) -> Difference | None:
        """Whether both programs are the core that was made for this very /boot.

        That names /boot by its partition's number, or its file system's or its array's UUID, and
        finds its modules and the menu there.
        """
        script = """
            folder=$1; shift
            core=/boot/grub/x86_64-efi/core.efi
            [ -s "$core" ] && [ -s /boot/grub/x86_64-efi/normal.mod ] || exit 44
            mountpoint -q -- "$folder" || exit 44
            uuid=$(grub-probe --target=fs_uuid /boot)
            drive=$(grub-probe --target=drive /boot)
            grep -qaF -e "$uuid" -e "(,${drive##*,}/grub" -e "$drive/grub" "$core" || exit 44
            for file do cmp -s -- "$folder/$file" "$core" || exit 44; done
        """
        programs = (each.replace(ENTRY, self.entry) for each in EFI_PROGRAMS)
        command = Command.script(script, self.folder, *programs)
        result = host.look(command, *_NOT_INSTALLED)
        if result is not None and result.ok:
            return None
        return Difference(f"install GRUB for UEFI on {self.disk}")

    def commands(self) -> tuple[Command, ...]:
        """Run grub-install for each place; refused if the disk is not this installation's.

        The firmware forgets an entry of its menu, or never gets one where the running system does
        not show its variables: then it starts what lies at the place that it looks for by itself.
        """
        options = f"--target=x86_64-efi --efi-directory={self.folder}"
        script = f"""
            disk=$(readlink -f -- "$1")
            for place in /boot {self.folder}; do
                mounted=$(mountpoint -d "$place")
                lsblk -n -r -o MAJ:MIN -- "$disk" | grep -qxF -- "$mounted" || exit {_WRONG_DISK}
            done
            install() {{ LC_ALL=C grub-install {options} "$@"; }}
            install --removable
            if [ -n "$(ls /sys/firmware/efi/efivars 2> /dev/null)" ]; then
                install --bootloader-id={self.entry}
            else
                install --bootloader-id={self.entry} --no-nvram
            fi
            sync
        """
        wrong = (
            f"cannot install GRUB on {self.disk}: because /boot or {self.folder} is elsewhere",
            "mount the installed system's /boot (chapter 02), or correct disk",
        )
        typed = (
            f"grub-install {options} --removable\n"
            f"grub-install {options} --bootloader-id={self.entry}"
        )
        variables = "$(ls /sys/firmware/efi/efivars 2> /dev/null)"
        scripted = f'{typed} $([ -n "{variables}" ] || echo --no-nvram)'
        command = Command.script(script, self.disk).refusing({_WRONG_DISK: wrong})
        command = command.typed_as(typed).scripted_as(scripted)
        return (command.within(2 * INSTALL_SECONDS),)


# The boot loader: between a chapter that wants Xen booted and what boots it.
#
# Howto: „Grub-Konfiguration für Xen“.

TIMEOUT_SECONDS = 2
"""How long the menu waits for a key."""


@dataclass(frozen=True)
class XenEntry:
    """What is booted: the hypervisor with dom0's memory (MiB), and dom0's kernel.

    ``release`` is the kernel's (``uname -r``), with its initrd beside it or none; the two option
    texts are split as a shell would.
    """

    release: str
    dom0_mem_mib: int
    xen_options: str = ""
    dom0_options: str = ""
    initrd: bool = False

    @property
    def xen_words(self) -> list[str]:
        """The hypervisor's command line; ``max:`` keeps dom0 from growing into guests' memory."""
        memory = f"dom0_mem={self.dom0_mem_mib}M,max:{self.dom0_mem_mib}M"
        return [memory, *_split("xen_options", self.xen_options)]

    @property
    def dom0_words(self) -> list[str]:
        """The command line of dom0's kernel, without its root."""
        return _split("dom0_options", self.dom0_options)

    @property
    def native_words(self) -> list[str]:
        """The same kernel's command line without Xen, on the serial line that Xen would use."""
        plain = [word for word in self.dom0_words if not word.startswith("console=hvc")]
        return [*plain, *(f"console=ttyS{n},{speed}" for n, speed in serial_lines(self.xen_words))]


def bootloader(platform: str) -> Grub2:
    """A platform's boot loader. Raises BadInput where it has none."""
    gentoo = Grub2(settings="/etc/default/grub")
    return by_platform(platform, "boot loader", {"debian": Grub2(), "gentoo": gentoo})


@dataclass(frozen=True)
class Grub2:
    """GRUB 2, its menu generated by grub-mkconfig(8).

    ``settings`` is what that reads last: a folder of them is Debian's own.
    """

    settings: str = "/etc/default/grub.d/xenlab.cfg"

    def hypervisor_links(self) -> Resource:
        """The links xen.gz, xen-4.gz, xen-4.17.gz to the hypervisor, which Debian does not make."""
        return HypervisorLinks()

    def entry(self, entry: XenEntry) -> tuple[Resource, ...]:
        """The sources of a menu whose default is Xen with dom0.

        Own settings and an own script for the entries; the other scripts are switched off.

        20_linux_xen would list each link of the hypervisor as one of its own; 10_linux would take
        any vmlinuz in /boot for a kernel to boot by itself, and looks at the disk for a minute.
        """
        return (
            File(
                self.settings,
                template="grub2-defaults.j2",
                values={"timeout": TIMEOUT_SECONDS, "serial": serial_command(entry.xen_words)},
            ),
            File(
                "/etc/grub.d/08_xenlab",
                template="grub2-xen.j2",
                values={
                    "release": entry.release,
                    "xen": entry.xen_words,
                    "dom0": entry.dom0_words,
                    "native": entry.native_words,
                    "initrd": entry.initrd,
                },
                mode=0o755,
            ),
            ScriptsOff(("10_linux", "20_linux_xen", "30_os-prober", "30_uefi-firmware")),
        )

    def menu(self, entry: XenEntry) -> Resource:
        """The menu itself, made from its sources: /boot/grub/grub.cfg."""
        words = grub(entry.xen_words), grub(entry.dom0_words)
        return GrubMenu(entry.release, *words, initrd=entry.initrd)

    def installed(self, disk: str, firmware: str = "bios", mirror: str = "") -> Resource:
        """The boot loader's own code on a disk, where the machine's firmware looks for it.

        For a BIOS GRUB's first stage in the disk's first sector, its core in the BIOS boot
        partition; for UEFI a program on the EFI system partition. And on the ``mirror``, if any.
        """
        first = GrubOnEfi(disk) if firmware == "uefi" else GrubOnDisk(disk)
        if not mirror:
            return first
        second = GrubOnEfi(mirror, SECOND_EFI_FOLDER, f"{ENTRY}-2")
        return All((first, second if firmware == "uefi" else GrubOnDisk(mirror)))


def serial_lines(xen_words: list[str]) -> list[tuple[int, int]]:
    """The serial lines that Xen is told to use: number from 0, and speed in bits per second."""
    found = (re.match(r"com([12])=(\d+)", word) for word in xen_words)
    return [(int(match[1]) - 1, int(match[2])) for match in found if match]


def serial_command(xen_words: list[str]) -> str:
    """GRUB's command for the first serial line that Xen uses, "" where Xen is given none."""
    for number, speed in serial_lines(xen_words):
        return f"serial --unit={number} --speed={speed}"
    return ""


def _split(name: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BadInput(
            f"cannot split {name} into words, {text!r}: because of {error}",
            hint="close each quotation mark",
        ) from None


# The distribution's own kernel, where nothing is compiled: dom0's and the guests', with one initrd.

INITRAMFS, IMAGE = ("initramfs-tools", "zstd"), "linux-image-amd64"
"""What makes an initrd, and Debian's kernel, whose package has it made as it is installed."""

GUEST_KERNEL = f"{GUEST_KERNELS}/vmlinuz-domU"
GUEST_INITRD = f"{GUEST_KERNELS}/initrd-domU"
"""Links to kernel and initrd in /boot: the names that the guests' files have."""

INITRD_SECONDS = 1800.0
"""How long an initrd may take: an emulated machine starts a thousand programs for it."""

NEEDED = {
    DOM0: ("XEN_DOM0", "XEN_BLKDEV_BACKEND", "XEN_NETDEV_BACKEND", "XEN_GNTDEV"),
    "domU": ("XEN_PV", "XEN_BLKDEV_FRONTEND", "XEN_NETDEV_FRONTEND"),
}
"""What such a kernel must have, built in or as a module; the rest is the distribution's."""

SETTINGS = "/etc/initramfs-tools/conf.d/xenlab"

_NO_KERNEL = 44

# $1 the package; a kernel that was taken away again has left its name in dpkg's list
_RELEASE = f"""
    release=$(dpkg-query -W -f '${{db:Status-Abbrev}}${{Depends}}' "$1" 2> /dev/null \\
        | sed -n 's/^.i .*linux-image-\\([0-9][^ ,]*\\).*/\\1/p')
    [ -n "$release" ] || exit {_NO_KERNEL}
"""


def release_of(host: Host) -> str:
    """``uname -r`` of the kernel that the package stands for, "" where it is not installed."""
    command = Command.script(f'{_RELEASE}\necho "$release"', IMAGE)
    found = host.look(command, absent=(_NO_KERNEL, NO_PROGRAM))
    return found.stdout.strip() if found else ""


def release_in(*roots: str) -> str:
    """What prints the same, of the first of these roots that is there: shell text."""
    wanted = f"/^Package: {IMAGE}$/,/^$/s/^Depends:.*linux-image-\\([^ ,]*\\).*/\\1/p"
    files = " ".join(f"{root.rstrip('/')}/var/lib/dpkg/status" for root in roots)
    sed = Command.argv("sed", "-n", wanted).text
    return f'{sed} "$(ls -dU {files} 2> /dev/null | head -n 1)"'


def distribution_kernel(*before: Resource) -> Resource:
    """The distribution's kernel in /boot, with an initrd that is made once, ``before`` first.

    The settings come first, with drivers of any machine and of guests: which ones this machine
    needs the rescue system's kernel does not tell. No memory image is waited for at boot: the
    initrd is the guests' too. The tools are installed before the kernel, or dpkg has them make
    its initrd once more at the end.
    """
    text = "# written by xenlab, chapter 03; see initramfs.conf(5)\nMODULES=most\nRESUME=none\n"
    packages = AptPackages(INITRAMFS), AptPackages((IMAGE,))
    return All((File(SETTINGS, text), *before, *packages, InitrdMade()))


@dataclass(frozen=True)
class InitrdMade(Resource):
    """The installed package's kernel in /boot can be dom0's; its initrd is newer than its settings.

    The package makes it as it is installed: here that is done only where it is missing or old.
    """

    def probe(self, host: Host) -> Difference | None:
        """Whether there is no such kernel or initrd; raises StepFailed where it lacks Xen."""
        script = f"""
            {_RELEASE}
            cd /boot
            state=missing
            [ ! -s "initrd.img-$release" ] || [ "$2" -nt "initrd.img-$release" ] || state=made
            [ -s "vmlinuz-$release" ] || state='without its kernel'
            echo "$release $state"
            cat "config-$release"
        """
        command = Command.script(script, IMAGE, SETTINGS)
        found = host.look(command, 1, absent=(_NO_KERNEL, NO_PROGRAM))
        if found is None:
            return Difference("make the kernel's initrd, as it is installed")
        first, _, config = found.stdout.partition("\n")
        release, _, state = first.partition(" ")
        if config:
            _require(config, DOM0, release)
        return None if state == "made" else Difference(f"make /boot/initrd.img-{release} ({state})")

    def commands(self) -> tuple[Command, ...]:
        """Make it; in a script the package has done so."""
        command = Command.script(f'{_RELEASE}\nupdate-initramfs -c -k "$release"', IMAGE)
        typed = command.typed_as(f"update-initramfs -c -k {RELEASE}").scripted_as("")
        return (typed.within(INITRD_SECONDS),)


@dataclass(frozen=True)
class GuestKernelLinked(Resource):
    """The guests boot dom0's kernel and initrd, by names that do not change with the release."""

    def probe(self, host: Host) -> Difference | None:
        """Whether they lead elsewhere; raises StepFailed where the kernel cannot be a guest's."""
        script = f"""
            {_RELEASE}
            echo "$release"
            {{
                readlink -- "$2" "$3" || :
                [ -s "$2" ] && [ -s "$3" ] && echo there || echo missing
            }} | tr '\\n' ' '
            echo
            cat "/boot/config-$release"
        """
        command = Command.script(script, IMAGE, GUEST_KERNEL, GUEST_INITRD)
        found = host.look(command, 1, absent=(_NO_KERNEL, NO_PROGRAM))
        if found is None:
            return Difference("link dom0's kernel for the guests, once it is installed")
        release, now, config = [*found.stdout.split("\n", 2), "", ""][:3]
        if config:
            _require(config, "domU", release)
        if now.split() == [*_links(release).values(), "there"]:
            return None
        return Difference(f"link {GUEST_KERNEL} and its initrd to those of {release} in /boot")

    def commands(self) -> tuple[Command, ...]:
        """Make both links; a kernel that was built for the guests gives way."""
        links = _links("$release")
        made = "\n".join(f'ln -sfnT -- "{to}" {name}' for name, to in links.items())
        command = Command.script(f"{_RELEASE}\nmkdir -p {GUEST_KERNELS}\n{made}", IMAGE)
        typed = "\n".join(f"ln -sfn {to} {name}" for name, to in _links(RELEASE).items())
        return (command.typed_as(f"mkdir -p {GUEST_KERNELS}\n{typed}"),)


def _links(release: str) -> dict[str, str]:
    return {
        GUEST_KERNEL: f"../boot/vmlinuz-{release}",
        GUEST_INITRD: f"../boot/initrd.img-{release}",
    }


def _require(config: str, flavour: str, release: str) -> None:
    """Raise StepFailed where a kernel's config has not what dom0 or a guest needs."""
    found = parse_config(config)
    lost = [f"CONFIG_{name}" for name in NEEDED[flavour] if found.get(name) not in ("y", "m")]
    if lost:
        raise StepFailed(
            f"cannot boot {release} as {flavour}: because its config lacks {', '.join(lost)}",
            hint="install linux-image-amd64, not one for clouds; or have kernel: build",
        )
