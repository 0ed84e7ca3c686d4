"""What the lab boots first: the rescue system, an initramfs made of Debian packages."""

from __future__ import annotations

import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import BinaryIO, Literal

from xenlab import cache
from xenlab.cache import cached
from xenlab.errors import LabError
from xenlab_lab import tools
from xenlab_lab.mirrors import SUITE, debian_sources, mmdebstrap, without_login

# Writing initramfs archives (cpio, "newc" format) without unpacking anything as root.

_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.LNKTYPE: stat.S_IFREG,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
_BLOCK = 512


class CpioWriter:
    """Appends entries to an archive; `close()` ends it on a block boundary.

    Archives written one behind the other are unpacked in turn by the kernel.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0
        self._written = 0

    def folder(self, name: str, *, mode: int = 0o755) -> None:
        """Add a folder owned by root."""
        self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, data: bytes, *, mode: int = 0o644) -> None:
        """Add a regular file owned by root."""
        self._entry(name, stat.S_IFREG | mode, data)

    def tar(self, archive: tarfile.TarFile, keep: Callable[[tarfile.TarInfo], bool]) -> None:
        """Add the members of a seekable tar that `keep` wants; hard links become copies."""
        for member in archive:
            if not keep(member):
                continue
            if member.issym():
                data = member.linkname.encode()
            elif member.isreg() or member.islnk():
                source = archive.extractfile(member)
                assert source is not None
                data = source.read()
            else:
                data = b""
            self._entry(
                member.name,
                _KINDS[member.type] | stat.S_IMODE(member.mode),
                data,
                uid=member.uid,
                gid=member.gid,
                device=(member.devmajor, member.devminor),
            )

    def close(self) -> None:
        """Write the end mark and pad to a whole block."""
        self._entry("TRAILER!!!", 0, b"")
        self._write(b"\0" * (-self._written % _BLOCK))

    def _entry(
        self,
        name: str,
        mode: int,
        data: bytes,
        *,
        uid: int = 0,
        gid: int = 0,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        self._inode += 1
        path = name.encode().removeprefix(b"./") + b"\0"
        major, minor = device if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else (0, 0)
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (
            self._inode, mode, uid, gid, links, 0, len(data), 0, 0, major, minor, len(path), 0,
        )  # fmt: skip
        header = b"070701" + b"".join(b"%08X" % value for value in fields)
        for part in (header + path, data):
            self._write(part + b"\0" * (-len(part) % 4))

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._written += len(data)


# What the lab boots first: the rescue system, an initramfs made of Debian packages.

RECIPE = 1

RESCUE_PACKAGES = (
    "busybox", "e2fsprogs", "fdisk", "iproute2", "kmod", "mount", "openssh-client",
    "openssh-server", "openssh-sftp-server", "procps", "rsync", "tar", "udev", "util-linux",
    "xz-utils", "zstd",
)  # fmt: skip
# Contents of the initramfs nobody asks for: the package database, and what only perl needs.
_RESCUE_SKIP = (
    "./boot", "./var/lib/dpkg", "./var/lib/apt", "./var/cache", "./usr/share/perl",
    "./usr/share/perl5", "./usr/lib/x86_64-linux-gnu/perl-base", "./usr/bin/perl",
    "./usr/share/zoneinfo", "./usr/lib/x86_64-linux-gnu/gconv", "./usr/lib/udev/hwdb.bin",
    "./usr/lib/udev/hwdb.d", "./usr/share/common-licenses", "./usr/share/doc", "./init",
    "./etc/ssh", "./etc/hostname", "./etc/hosts", "./etc/resolv.conf", "./etc/motd",
    "./usr/lib/systemd/network", "./dev", "./usr/sbin/reboot", "./usr/sbin/poweroff",
    "./usr/sbin/halt",
)  # fmt: skip
_OF_SYSTEMD = _RESCUE_SKIP[-3:]


# What a UEFI machine's takes beside that: for its system partition and its firmware's variables.
_UEFI_PACKAGES = ("dosfstools",)
_UEFI_MODULES = b"vfat\nnls_cp437\nnls_ascii\nefivarfs\n"
_UEFI_MOUNT = b"mount -t efivarfs efivarfs /sys/firmware/efi/efivars\n"
_AFTER_MODULES = b"ip link set lo up\n"

# What a machine's takes whose disk or card is none of virtio's: Debian's kernel for real machines,
# with these drivers. Its cards ask for an address beside one another: one may have no cable.
_HOOK_CHANGES = (
    (b"linux-image-cloud-amd64", b"linux-image-amd64"),
    # some of its drivers need a module below kernel/lib
    (b"lib/${file##*/lib/}", b"lib/modules/${file##*/lib/modules/}"),
)
_HARDWARE_MODULES = (
    b"nvme\nahci\nsd_mod\nvirtio_scsi\nxhci_pci\nusb_storage\nuas\ne1000\ne1000e\nigb\nraid1\n"
)
_ASK = b"-s /etc/xenlab-dhcp\n"

# What makes it a Debian as hosters boot it: systemd starts udev, the network and sshd.
_DEBIAN_PACKAGES = ("systemd-sysv", "mdadm")
_DEBIAN_INIT = b"#!/bin/sh\nexec /lib/systemd/systemd\n"
_DEBIAN_NETWORK = b"[Match]\nName=e*\n\n[Network]\nDHCP=ipv4\n"
_ENABLE = '--customize-hook=chroot "$1" systemctl enable systemd-networkd'

# Some let in no root, but a user who becomes root by sudo.
RESCUE_USER = "admin"
_SUDO_PACKAGES = ("passwd", "sudo")
_SUDO = f"{RESCUE_USER} ALL=(ALL) NOPASSWD: ALL\n".encode()
# "*" is no password, and no lock either
_ADD_USER = f"""--customize-hook=chroot "$1" useradd -m -s /bin/bash -p '*' {RESCUE_USER}"""

Rescue = Literal["lab", "debian", "debian-sudo"]
"""Which rescue system: the lab's own, a plain Debian, or one with a user who has sudo."""


def rescue(
    report: tools.Report = tools.quiet,
    firmware: Firmware = "bios",
    *,
    any_hardware: bool = False,
    kind: Rescue = "lab",
) -> tuple[Path, Path]:
    """The rescue system's kernel and initramfs, built if they are not in the cache.

    With `any_hardware` it has the drivers of other disks and network cards as well, for either
    firmware; of another `kind` besides it is a plain Debian with systemd. Holds no key and no
    secret. Raises LabError.
    """
    uefi = firmware == "uefi" or any_hardware
    entries = debian_sources()
    packages = (*RESCUE_PACKAGES, *(_UEFI_PACKAGES if uefi else ()))
    debian, sudo = kind != "lab", kind == "debian-sudo"
    packages += _DEBIAN_PACKAGES if debian else ()
    packages += _SUDO_PACKAGES if sudo else ()
    skip = tuple(place for place in _RESCUE_SKIP if not (debian and place in _OF_SYSTEMD))
    files = contents(uefi=uefi, any_hardware=any_hardware, kind=kind)
    inputs = {
        "recipe": RECIPE,
        "suite": SUITE,
        "sources": [without_login(entry) for entry in entries],
        "packages": packages,
        "skip": skip,
        "files": {name: data.decode() for name, data in files.items()},
    }

    @cache.phase_recorded(cache.RESCUE)
    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            # the hook runs as another user when mmdebstrap has to build without being root
            Path(scratch).chmod(0o755)
            hook, modules = Path(scratch, "hook"), Path(scratch, "modules")
            hook.write_bytes(files["kernel-hook"])
            modules.write_bytes(files["modules"])
            hooks = [*([_ENABLE] if debian else []), *([_ADD_USER] if sudo else [])]
            tree = folder / "rescue.tar"
            mmdebstrap(
                tree,
                packages,
                entries,
                ["--variant=essential", *hooks, f'--customize-hook=sh {hook} "$1" {modules}'],
                report,
                "building the rescue system",
            )
        report("packing the rescue system", None)
        _pack_rescue(tree, folder, files, skip)
        tree.unlink()

    folder = cached("rescue", inputs, build)
    return folder / "vmlinuz", folder / "rescue.img"


_RESCUE_FILES = ("init", "dhcp", "sshd_config", "power", "modules", "kernel-hook")


def contents(*, uefi: bool, any_hardware: bool, kind: Rescue = "lab") -> dict[str, bytes]:
    """The rescue system's own files, and those that it is built by; by their names."""
    files = {name: _data(name) for name in _RESCUE_FILES}
    if any_hardware:
        files["init"] = files["init"].replace(_ASK, _ASK.replace(b"\n", b" &\n"))
        for old, new in _HOOK_CHANGES:
            files["kernel-hook"] = files["kernel-hook"].replace(old, new)
        files["modules"] += _HARDWARE_MODULES
    if uefi:
        files["init"] = files["init"].replace(_AFTER_MODULES, _UEFI_MOUNT + _AFTER_MODULES)
        files["modules"] += _UEFI_MODULES
    if kind != "lab":
        files |= {"init": _DEBIAN_INIT, "network": _DEBIAN_NETWORK}
    if kind == "debian-sudo":
        files["sudoers"] = _SUDO
    return files


def _pack_rescue(tree: Path, folder: Path, files: Mapping[str, bytes], skip: Sequence[str]) -> None:
    plain = folder / "rescue.cpio"
    with tarfile.open(tree) as tar, plain.open("wb") as out:
        kernel = tar.extractfile("./boot/vmlinuz")
        assert kernel is not None
        with (folder / "vmlinuz").open("wb") as copy:
            shutil.copyfileobj(kernel, copy)
        archive = CpioWriter(out)
        archive.tar(tar, lambda member: not _below(member.name, skip))
        for name in ("boot", "dev", "etc/ssh", "var/cache", "mnt"):
            archive.folder(name)
        archive.file("init", files["init"], mode=0o755)
        debian = "network" in files
        if debian:
            archive.file("etc/systemd/network/80-cards.network", files["network"])
            # there, and empty: systemd makes one, and asks nobody about a first boot
            archive.file("etc/machine-id", b"")
            if "sudoers" in files:
                archive.file(f"etc/sudoers.d/{RESCUE_USER}", files["sudoers"], mode=0o440)
        else:
            archive.file("etc/xenlab-dhcp", _data("dhcp"), mode=0o755)
            archive.file("etc/xenlab-rescue", b"xenlab rescue system\n")
        archive.file("etc/motd", b"xenlab rescue system: everything here is in memory only\n")
        archive.file("etc/hostname", b"rescue\n")
        archive.file("etc/hosts", b"127.0.0.1 localhost\n127.0.1.1 rescue\n")
        archive.file("etc/ssh/sshd_config", _data("sshd_config"))
        for name in () if debian else ("reboot", "poweroff", "halt"):
            archive.file(f"usr/sbin/{name}", _data("power"), mode=0o755)
        archive.close()
    tools.run(
        ["zstd", "-q", "-T0", "-10", "--rm", plain.name, "-o", "rescue.img"], cwd=plain.parent
    )


def _below(name: str, folders: Sequence[str]) -> bool:
    return any(name == folder or name.startswith(folder + "/") for folder in folders)


def _data(name: str) -> bytes:
    return resources.files("xenlab_lab").joinpath("rescue", name).read_bytes()


# What boots the machine: QEMU's own BIOS, or OVMF, which is UEFI.

Firmware = Literal["bios", "uefi"]

OVMF = Path("/usr/share/OVMF")
VARIABLES = "uefi-variables.fd"
"""Where a lab keeps what its firmware remembers, such as boot entries."""


def firmware_words(firmware: Firmware, folder: Path) -> tuple[str, ...]:
    """QEMU's words for a lab's firmware; UEFI's variables are the lab's own. Raises LabError."""
    if firmware == "bios":
        return ()
    code, variables = OVMF / "OVMF_CODE_4M.fd", OVMF / "OVMF_VARS_4M.fd"
    for file in (code, variables):
        if not file.exists():
            raise LabError(
                f"cannot start a UEFI machine: because there is no {file}",
                hint="apt-get install ovmf",
            )
    own = folder / VARIABLES
    if not own.exists():
        unfinished = own.with_suffix(".new")
        shutil.copyfile(variables, unfinished)
        unfinished.rename(own)
    flash = "if=pflash,format=raw,file"
    return ("-drive", f"{flash}={code},readonly=on", "-drive", f"{flash}={own.name}")
