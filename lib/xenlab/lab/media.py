"""What the lab boots and unpacks: the rescue system and the stage, built by mmdebstrap."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from xenlab.errors import LabError
from xenlab.lab import cpio, sources, tools
from xenlab.lab.cache import cache_root, cached, locked

RECIPE = 1

RESCUE_PACKAGES = (
    "busybox", "e2fsprogs", "fdisk", "iproute2", "kmod", "mount", "openssh-client",
    "openssh-server", "openssh-sftp-server", "procps", "rsync", "tar", "udev", "util-linux",
    "xz-utils", "zstd",
)  # fmt: skip
STAGE_PACKAGES = (
    "cpio", "e2fsprogs", "fdisk", "ifupdown", "iproute2", "iputils-ping", "isc-dhcp-client",
    "kmod", "libcap2-bin", "netbase", "nfs-common", "openssh-client", "openssh-server",
    "openssh-sftp-server", "procps", "rsync", "systemd-sysv", "udev", "usr-is-merged",
    "xz-utils", "zstd",
)  # fmt: skip
# What the howto's programs lean on. The programs themselves are the chapters' business; dpkg is
# some twenty-five times slower in the emulated machine than here.
STAGE_LIBRARIES = (
    "file", "gettext-base", "keyutils", "libavahi-client3", "libblas3", "libcrack2", "libdbus-1-3",
    "libefiboot1", "libestr0", "libevent-core-2.1-7", "libexpat1", "libfastjson4", "libfreetype6",
    "libfuse2", "liblinear4", "liblognorm5", "liblua5.3-0", "libmagic1", "libncurses6",
    "libpcap0.8", "libpcre3", "libpng16-16", "libpwquality1", "libsqlite3-0", "libssh2-1",
    "libutempter0", "libyajl2", "lua-lpeg", "media-types", "python3", "rpcbind",
)  # fmt: skip
# systemd runs every generator at each boot and each time that it reads its units, half a second for
# each in the emulated machine. These look for what a lab does not have, and the services serve a
# kernel with modules, or LVM. A machine of your own that takes this stage gets them masked as well.
STAGE_OFF = (
    *(
        f"system-generators/{name}-generator"
        for name in (
            "rpc-pipefs", "systemd-cryptsetup", "systemd-debug", "systemd-gpt-auto",
            "systemd-hibernate-resume", "systemd-integritysetup", "systemd-rc-local",
            "systemd-run", "systemd-system-update", "systemd-veritysetup",
        )
    ),
    "system/e2scrub_reap.service",
    "system/modprobe@.service",
    "system/systemd-modules-load.service",
)  # fmt: skip

_NO_DOCUMENTS = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*",
    "/usr/share/i18n/*", "/usr/share/lintian/*", "/usr/share/bug/*",
)  # fmt: skip
# Each file is unpacked once for dom0 and once for each guest: what names other hardware than a
# lab's, and what no program of it reads.
_NOT_IN_STAGE = (
    "/lib/udev/hwdb.d/*", "/usr/lib/udev/hwdb.d/*", "/usr/share/zoneinfo/posix/*",
    "/usr/share/zoneinfo/right/*", "/usr/share/bash-completion/*", "/usr/share/zsh/*",
)  # fmt: skip
_COPYRIGHTS = "/usr/share/doc/*/copyright"
_APT_CONF = """\
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
"""
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
        "sources": entries,
        "packages": RESCUE_PACKAGES,
        "skip": _RESCUE_SKIP,
        "files": {name: _data(name).decode() for name in _RESCUE_FILES},
    }

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            # the hook runs as another user when mmdebstrap has to build without being root
            Path(scratch).chmod(0o755)
            hook, modules = Path(scratch, "hook"), Path(scratch, "modules")
            hook.write_bytes(_data("kernel-hook"))
            modules.write_bytes(_data("modules"))
            tree = folder / "rescue.tar"
            _mmdebstrap(
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


def stage(report: tools.Report = tools.quiet) -> tuple[Path, Path]:
    """The root tarball and its checksum file (sha256sum format), built if not in the cache.

    Both have names that do not change: stage/stage.tar.zst and .sha256 in the cache folder.
    Raises LabError.
    """
    entries = sources.debian_sources()
    secure = any(" https:" in entry for entry in entries)
    packages = (*STAGE_PACKAGES, *STAGE_LIBRARIES, *(["ca-certificates"] if secure else []))
    conf = _APT_CONF + "".join(f"{line}\n" for line in sources.guest_proxies())
    inputs = {
        "recipe": RECIPE,
        "suite": sources.SUITE,
        "sources": entries,
        "packages": packages,
        "apt": conf,
        "off": STAGE_OFF,
        "left out": _NOT_IN_STAGE,
        "package index": "kept",
        "hooks": 2,
    }

    def build(folder: Path) -> None:
        tree, name = folder / "stage.tar", "stage.tar.zst"
        with tempfile.TemporaryDirectory() as scratch:
            Path(scratch).chmod(0o755)
            apt, dpkg = Path(scratch, "apt"), Path(scratch, "dpkg")
            apt.write_text(conf)
            excludes = "".join(f"path-exclude={pattern}\n" for pattern in _NO_DOCUMENTS)
            dpkg.write_text(f"force-unsafe-io\n{excludes}path-include={_COPYRIGHTS}\n")
            hooks = [
                f"upload {apt} /etc/apt/apt.conf.d/80xenlab",
                f"upload {dpkg} /etc/dpkg/dpkg.cfg.d/xenlab",
                'rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/hostname "$1"/etc/resolv.conf',
                'rm -f "$1"/var/lib/dbus/machine-id; : > "$1"/etc/machine-id',
                'mkdir -p "$1"/etc/systemd/system-generators',
                *(f'ln -sf /dev/null "$1"/etc/systemd/{name}' for name in STAGE_OFF),
                # what was left out here is not left out of what is installed later
                'rm -f "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap',
            ]
            if secure:
                # a mirror behind a company's own authority is trusted inside as it is outside
                hooks.append(
                    "upload /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt"
                )
            _mmdebstrap(
                tree,
                packages,
                entries,
                [
                    "--variant=minbase",
                    # merged from the start: the package that merges later needs all of perl
                    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
                    # half a minute less in the emulated machine, as long as they are young
                    "--skip=cleanup/apt/lists",
                    *(f"--dpkgopt=path-exclude={pattern}" for pattern in _NOT_IN_STAGE),
                    *(f"--customize-hook={hook}" for hook in hooks),
                ],
                report,
                "building the stage",
            )
        report("compressing the stage", None)
        tools.run(["zstd", "-q", "-T0", "-9", "--rm", tree.name, "-o", name], cwd=folder)
        with (folder / name).open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        (folder / f"{name}.sha256").write_text(f"{digest}  {name}\n")

    folder = cached("stage", inputs, build)
    shelf = cache_root() / "stage"
    with locked(shelf / ".names.lock"):
        for name in ("stage.tar.zst", "stage.tar.zst.sha256"):
            _point(shelf / name, Path(folder.name, name))
    return shelf / "stage.tar.zst", shelf / "stage.tar.zst.sha256"


def _mmdebstrap(
    tree: Path,
    packages: Sequence[str],
    entries: Sequence[str],
    options: Sequence[str],
    report: tools.Report,
    what: str,
) -> None:
    report(what, None)
    tools.run(
        [
            "mmdebstrap",
            *sources.mmdebstrap_keyring(),
            f"--include={','.join(packages)}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _NO_DOCUMENTS),
            f"--dpkgopt=path-include={_COPYRIGHTS}",
            *options,
            sources.SUITE,
            tree,
            *entries,
        ],
        report=report,
        what=what,
        hint="look whether `apt-get update` works on this machine",
    )
    if not tree.exists():
        raise LabError(f"mmdebstrap left no {tree.name}")


def _below(name: str, folders: Sequence[str]) -> bool:
    return any(name == folder or name.startswith(folder + "/") for folder in folders)


def _point(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.rename(link)


def _data(name: str) -> bytes:
    return resources.files("xenlab.lab").joinpath("rescue", name).read_bytes()
