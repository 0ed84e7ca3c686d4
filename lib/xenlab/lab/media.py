"""What the lab boots first: the rescue system, an initramfs made of Debian packages."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from xenlab.lab import cpio, phases, sources, tools
from xenlab.lab.cache import cached
from xenlab.lab.debian import mmdebstrap

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


def rescue(report: tools.Report = tools.quiet) -> tuple[Path, Path]:
    """The rescue system's kernel and initramfs, built if they are not in the cache.

    Holds no key and no secret. Raises LabError.
    """
    entries = sources.debian_sources()
    inputs = {
        "recipe": RECIPE,
        "suite": sources.SUITE,
        "sources": [sources.without_login(entry) for entry in entries],
        "packages": RESCUE_PACKAGES,
        "skip": _RESCUE_SKIP,
        "files": {name: _data(name).decode() for name in _RESCUE_FILES},
    }

    @phases.recorded(phases.RESCUE)
    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            # the hook runs as another user when mmdebstrap has to build without being root
            Path(scratch).chmod(0o755)
            hook, modules = Path(scratch, "hook"), Path(scratch, "modules")
            hook.write_bytes(_data("kernel-hook"))
            modules.write_bytes(_data("modules"))
            tree = folder / "rescue.tar"
            mmdebstrap(
                tree,
                RESCUE_PACKAGES,
                entries,
                ["--variant=essential", f'--customize-hook=sh {hook} "$1" {modules}'],
                report,
                "building the rescue system",
            )
        report("packing the rescue system", None)
        _pack_rescue(tree, folder)
        tree.unlink()

    folder = cached("rescue", inputs, build)
    return folder / "vmlinuz", folder / "rescue.img"


_RESCUE_FILES = ("init", "dhcp", "sshd_config", "power", "modules", "kernel-hook")


def _pack_rescue(tree: Path, folder: Path) -> None:
    plain = folder / "rescue.cpio"
    with tarfile.open(tree) as tar, plain.open("wb") as out:
        kernel = tar.extractfile("./boot/vmlinuz")
        assert kernel is not None
        with (folder / "vmlinuz").open("wb") as copy:
            shutil.copyfileobj(kernel, copy)
        archive = cpio.Writer(out)
        archive.tar(tar, lambda member: not _below(member.name, _RESCUE_SKIP))
        for name in ("boot", "dev", "etc/ssh", "var/cache", "mnt"):
            archive.folder(name)
        archive.file("init", _data("init"), mode=0o755)
        archive.file("etc/xenlab-dhcp", _data("dhcp"), mode=0o755)
        archive.file("etc/xenlab-rescue", b"xenlab rescue system\n")
        archive.file("etc/motd", b"xenlab rescue system: everything here is in memory only\n")
        archive.file("etc/hostname", b"rescue\n")
        archive.file("etc/hosts", b"127.0.0.1 localhost\n127.0.1.1 rescue\n")
        archive.file("etc/ssh/sshd_config", _data("sshd_config"))
        for name in ("reboot", "poweroff", "halt"):
            archive.file(f"usr/sbin/{name}", _data("power"), mode=0o755)
        archive.close()
    tools.run(
        ["zstd", "-q", "-T0", "-10", "--rm", plain.name, "-o", "rescue.img"], cwd=plain.parent
    )


def _below(name: str, folders: Sequence[str]) -> bool:
    return any(name == folder or name.startswith(folder + "/") for folder in folders)


def _data(name: str) -> bytes:
    return resources.files("xenlab.lab").joinpath("rescue", name).read_bytes()
