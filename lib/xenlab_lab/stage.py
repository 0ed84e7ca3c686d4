"""What the lab unpacks onto its empty disk, the howto's Stage3: Debian's, or one with Portage."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path

from xenlab import cache
from xenlab.cache import DEFAULT_RELEASE, Release, cache_root, cached, named
from xenlab.errors import LabError
from xenlab_lab import tools
from xenlab_lab.mirrors import (
    COPYRIGHTS,
    NO_DOCUMENTS,
    SUITE,
    debian_sources,
    mmdebstrap,
    require_keyring,
    without_login,
)
from xenlab_lab.tools import Report

RECIPE = 2

STAGE_PACKAGES = (
    "cpio", "e2fsprogs", "fdisk", "ifupdown", "iproute2", "iputils-ping", "kmod", "libcap2-bin",
    "netbase", "nfs-common", "openssh-client", "openssh-server", "openssh-sftp-server", "procps",
    "rsync", "systemd-sysv", "udev", "usr-is-merged", "xz-utils", "zstd",
)  # fmt: skip
# What the howto's programs lean on. The programs themselves are the chapters' business; dpkg is
# some twenty-five times slower in the emulated machine than here.
STAGE_LIBRARIES = (
    "file", "gettext-base", "keyutils", "libavahi-client3", "libblas3", "libcrack2", "libdbus-1-3",
    "libestr0", "libexpat1", "libfastjson4", "libfreetype6", "liblinear4", "liblognorm5",
    "libncurses6", "libpwquality1", "libsqlite3-0", "libutempter0", "libyajl2", "media-types",
    "python3", "rpcbind",
)  # fmt: skip
# The same things where each release calls them otherwise, or has others.
OF_RELEASE: dict[Release, tuple[str, ...]] = {
    "bookworm": (
        "isc-dhcp-client", "libefiboot1", "libevent-core-2.1-7", "libfuse2", "liblua5.3-0",
        "libmagic1", "libpcap0.8", "libpcre3", "libpng16-16", "libssh2-1", "lua-lpeg",
    ),
    "trixie": (
        "dhcpcd-base", "libefiboot1t64", "libevent-core-2.1-7t64", "libfuse3-4", "liblua5.4-0",
        "libmagic1t64", "libnl-genl-3-200", "libpcap0.8t64", "libpng16-16t64", "libssh2-1t64",
        "libxml2",
    ),
}  # fmt: skip
# systemd runs every generator at each boot and each time that it reads its units, half a second for
# each in the emulated machine. These look for what a lab does not have, and the services serve a
# kernel with modules, or LVM. A machine of your own that takes this stage gets them masked as well.
STAGE_OFF = (
    *(
        f"system-generators/{name}-generator"
        for name in (
            "systemd-cryptsetup", "systemd-debug", "systemd-gpt-auto",
            "systemd-hibernate-resume", "systemd-integritysetup", "systemd-rc-local",
            "systemd-run", "systemd-ssh", "systemd-system-update", "systemd-tpm2",
            "systemd-veritysetup",
        )
    ),
    "system/e2scrub_reap.service",
    "system/modprobe@.service",
    "system/systemd-modules-load.service",
)  # fmt: skip

# Each file is unpacked once for dom0 and once for each guest: what names other hardware than a
# lab's, and what no program of it reads.
_NOT_IN_STAGE = (
    "/lib/udev/hwdb.d/*", "/usr/lib/udev/hwdb.d/*", "/usr/share/zoneinfo/posix/*",
    "/usr/share/zoneinfo/right/*", "/usr/share/bash-completion/*", "/usr/share/zsh/*",
)  # fmt: skip
_OPTIONS = (
    "--variant=minbase",
    # merged from the start: the package that merges later needs all of perl
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    # half a minute less in the emulated machine, as long as they are young
    "--skip=cleanup/apt/lists",
    *(f"--dpkgopt=path-exclude={pattern}" for pattern in _NOT_IN_STAGE),
)
_APT_CONF = """\
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
"""


def stage(
    report: tools.Report = tools.quiet, suite: Release = DEFAULT_RELEASE
) -> tuple[Path, Path]:
    """A release's root tarball and its checksum file (sha256sum format), built if not in the cache.

    Both have names that do not change, as `stage_of` says. Raises LabError.
    """
    hooks = (
        'mkdir -p "$1"/etc/systemd/system-generators',
        *(f'ln -sf /dev/null "$1"/etc/systemd/{name}' for name in STAGE_OFF),
    )
    name = _stem(cache.stage_of(suite))
    packages = (*STAGE_PACKAGES, *STAGE_LIBRARIES, *OF_RELEASE[suite])
    return built(name, packages, {"off": STAGE_OFF}, lambda _: hooks, report, suite)


def built(
    name: str,
    wanted: Sequence[str],
    decides: Mapping[str, object],
    hooks: Callable[[Path], Sequence[str]],
    report: tools.Report,
    suite: Release = SUITE,
) -> tuple[Path, Path]:
    """A stage called ``name`` of these Debian packages, and its checksum file, from the cache.

    ``hooks`` gets a folder for what they need, and gives lines of shell that mmdebstrap runs with
    the root directory as ``$1``; ``decides`` must hold all that they depend on. Raises LabError.
    """
    entries = debian_sources(suite)
    what = name.replace("-", " ")
    secure = any(" https:" in entry for entry in entries)
    packages = (*wanted, *(["ca-certificates"] if secure else []))
    inputs = {
        "recipe": RECIPE,
        "suite": suite,
        "sources": [without_login(entry) for entry in entries],
        "packages": packages,
        "apt": _APT_CONF,
        "left out": _NOT_IN_STAGE,
        "package index": "kept",
        "hooks": 2,
        **decides,
    }

    @cache.phase_recorded(name)
    def build(folder: Path) -> None:
        tree = folder / f"{name}.tar"
        with tempfile.TemporaryDirectory() as scratch:
            lines = _customized(Path(scratch), hooks(Path(scratch)), secure=secure)
            mmdebstrap(
                tree,
                packages,
                entries,
                [*_OPTIONS, *(f"--customize-hook={line}" for line in lines)],
                report,
                f"building the {what}",
                suite,
            )
        report(f"compressing the {what}", None)
        _compress(tree)

    folder = cached("stage", inputs, build)
    return named(folder, f"{name}.tar.zst")


def _compress(tree: Path) -> None:
    """Leave in a tarball's place the compressed one and its checksum file."""
    file = f"{tree.name}.zst"
    tools.run(["zstd", "-q", "-T0", "-9", "--rm", tree.name, "-o", file], cwd=tree.parent)
    tools.write_checksum(tree.parent / file)


def _customized(scratch: Path, hooks: Sequence[str], *, secure: bool) -> list[str]:
    """What mmdebstrap does in the finished root; the files that this takes are in ``scratch``."""
    scratch.chmod(0o755)
    apt, dpkg = scratch / "apt", scratch / "dpkg"
    apt.write_text(_APT_CONF)
    excludes = "".join(f"path-exclude={pattern}\n" for pattern in NO_DOCUMENTS)
    dpkg.write_text(f"force-unsafe-io\n{excludes}path-include={COPYRIGHTS}\n")
    # a mirror behind a company's own authority is trusted inside as it is outside
    authorities = "/etc/ssl/certs/ca-certificates.crt"
    return [
        f"upload {apt} /etc/apt/apt.conf.d/80xenlab",
        f"upload {dpkg} /etc/dpkg/dpkg.cfg.d/xenlab",
        'rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/hostname "$1"/etc/resolv.conf',
        'rm -f "$1"/var/lib/dbus/machine-id; : > "$1"/etc/machine-id',
        *hooks,
        # what was left out here is not left out of what is installed later
        'rm -f "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap',
        *([f"upload {authorities} {authorities}"] if secure else []),
    ]


# A stage with Portage and OpenRC on Debian's userland. It is not Gentoo: see the page about it.
#
# Portage is the genuine one, its packages are ebuilds of our own whose sources are upstream's, and
# OpenRC, as Debian packages it, looks after the services.

NAME = "portage-stage"

PACKAGES = (
    # what a Debian stage has as well
    "cpio", "e2fsprogs", "fdisk", "iproute2", "iputils-ping", "kmod", "libcap2-bin", "netbase",
    "nfs-common", "openssh-client", "openssh-server",
    "openssh-sftp-server", "procps", "rsync", "udev", "usr-is-merged", "xz-utils", "zstd",
    # who starts the rest
    "openrc", "sysvinit-core",
    # what Portage works with, and what it compiles with
    "bzip2", "file", "git", "patch", "pax-utils", "python-is-python3", "python3", "wget",
    "g++", "gcc", "libc6-dev", "libncurses-dev", "libpcre2-dev", "make", "pkg-config",
    # what is no package of Portage's here
    "busybox-static", "cron", "distcc", "grub-pc", "logrotate", "nfs-kernel-server",
    "syslog-ng-core", "xen-system-amd64",
)  # fmt: skip

# No C code of Portage's own, which would want this machine's Python to be Debian's; no signatures
# of a tree that is not Gentoo's.
MESON_OPTIONS = (
    "--prefix=/usr",
    "--sysconfdir=/etc",
    "-Dpython.purelibdir=/usr/lib/python3/dist-packages",
    "-Dpython.platlibdir=/usr/lib/python3/dist-packages",
    "-Dnative-extensions=false",
    "-Drsync-verify=false",
)


def portage_stage(report: tools.Report = tools.quiet) -> tuple[Path, Path]:
    """The root tarball and its checksum file, built if they are not in the cache.

    Both have names that do not change: stage/portage-stage.tar.zst and .sha256. Raises LabError.
    """
    data = Path(str(resources.files("xenlab").joinpath("data", "portage")))
    digests = {
        str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(data.rglob("*"))
        if path.is_file()
    }

    def hooks(scratch: Path) -> Sequence[str]:
        folder = scratch / "portage"
        shutil.copytree(data, folder)
        installed = _portage(folder, report)
        return (
            f'tar -C {shlex.quote(str(installed))} -c . | tar -C "$1" -x --no-same-owner',
            f'sh {shlex.quote(str(folder / "stage" / "prepare.sh"))} "$1" '
            f"{shlex.quote(str(folder))}",
        )

    decides = {"portage": digests, "meson": MESON_OPTIONS}
    return built(NAME, PACKAGES, decides, hooks, report)


def _portage(folder: Path, report: tools.Report) -> Path:
    """Portage of the source that requirements.txt names, installed below a folder."""
    sdist, source, place = folder / "sdist", folder / "source", folder / "installed"
    report("fetching Portage", None)
    # the wheel would put configuration and package database inside a virtual environment
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    only = ["--no-binary", "portage", "--require-hashes", "-r", str(folder / "requirements.txt")]
    tools.run(
        [*pip, *only, "--dest", str(sdist)],
        hint="run `pip download portage` on this machine",
    )
    source.mkdir()
    archive = next(iter(sdist.iterdir()))
    tools.run(["tar", "-x", "-f", archive, "-C", source, "--strip-components=1"])
    report("building Portage", None)
    tools.run(["meson", "setup", *MESON_OPTIONS, "build"], cwd=source)
    tools.run(["meson", "install", "-C", "build"], cwd=source, env={"DESTDIR": str(place)})
    return place


# The stages that a lab can make, by the file that each of them is.

StageMaker = Callable[[Report], tuple[Path, Path]]


def maker(path: str) -> StageMaker:
    """What makes the stage that a site names; where it is one of the person's own, Debian's."""
    stem = _stem(path)
    if stem == NAME:
        return portage_stage
    suites = {_stem(cache.stage_of(suite)): suite for suite in cache.LINUX}
    return partial(stage, suite=suites.get(stem, DEFAULT_RELEASE))


def _stem(path: str) -> str:
    return Path(path).name.partition(".")[0]


# The kernel sources of a release, as apt fetches and checks them.

SOURCE_RECIPE = 1


def kernel_source(
    suite: Release = DEFAULT_RELEASE, report: Report = tools.quiet
) -> tuple[Path, Path]:
    """The tarball of a release's kernel sources and its checksum file, fetched once.

    apt compares the package with the index that Debian's keys have signed. Both files have names
    that do not change, as `kernel_source_of` says. Raises LabError.
    """
    package = cache.source_package(suite)
    file = Path(cache.kernel_source_of(suite)).name
    entries = debian_sources(suite)
    if not entries:
        raise LabError(
            "cannot fetch the kernel sources: because this machine's apt knows no Debian mirror",
            hint="name a tarball of yours in kernel_source",
        )
    inputs = {
        "recipe": SOURCE_RECIPE,
        "package": package,
        "sources": [without_login(entry) for entry in entries],
    }

    @cache.phase_recorded(cache.SOURCES)
    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fetched = _fetched(Path(scratch), package, entries, report)
            report("unpacking the kernel sources", None)
            tools.run(["dpkg-deb", "-x", fetched, f"{scratch}/unpacked"])
            Path(scratch, "unpacked", "usr", "src", file).rename(folder / file)
        tools.write_checksum(folder / file)

    return named(cached("source", inputs, build), file)


def fetch_source(path: str, report: Report = tools.quiet) -> None:
    """Fetch the kernel sources that a site names, if they are a release's own, and not here yet.

    Raises LabError.
    """
    place = Path(path).expanduser()
    names = {Path(cache.kernel_source_of(suite)).name: suite for suite in cache.LINUX}
    if place.parent == cache_root() / "source" and place.name in names and not place.exists():
        kernel_source(names[place.name], report)


def _fetched(folder: Path, package: str, entries: Sequence[str], report: Report) -> Path:
    """A package out of these entries, by an apt that knows nothing else; raises LabError."""
    sources = folder / "sources.list"
    keyring = f"[signed-by={require_keyring()}]"
    sources.write_text(
        "".join(f"{entry.replace('deb ', f'deb {keyring} ', 1)}\n" for entry in entries)
    )
    sources.chmod(0o600)
    (folder / "status").touch()
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": folder,
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
        "APT::Update::Error-Mode": "any",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    for what in (("update",), ("download", package)):
        tools.run(
            ["apt-get", "-q", *options, *what],
            report=report,
            what="fetching the kernel sources",
            cwd=folder,
            hint="run `apt-get update` on this machine, and look what it says of its mirrors",
        )
    return next(folder.glob("*.deb"))
