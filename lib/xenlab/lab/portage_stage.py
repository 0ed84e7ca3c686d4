"""A stage with Portage and OpenRC on Debian's userland. It is not Gentoo: see the page about it.

Portage is the genuine one, its packages are ebuilds of our own whose sources are upstream's, and
OpenRC, as Debian packages it, looks after the services.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from xenlab.lab import tools
from xenlab.lab.stage import built

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
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        "portage",
    ]
    tools.run(
        [*pip, "--dest", sdist, "--require-hashes", "-r", folder / "requirements.txt"],
        hint="look whether `pip download portage` works on this machine",
    )
    source.mkdir()
    archive = next(iter(sdist.iterdir()))
    tools.run(["tar", "-x", "-f", archive, "-C", source, "--strip-components=1"])
    report("building Portage", None)
    tools.run(["meson", "setup", *MESON_OPTIONS, "build"], cwd=source)
    tools.run(["meson", "install", "-C", "build"], cwd=source, env={"DESTDIR": str(place)})
    return place
