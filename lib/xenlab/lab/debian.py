"""A Debian root directory as a tar file, built by mmdebstrap without what nobody reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xenlab.errors import LabError
from xenlab.lab import sources, tools

NO_DOCUMENTS = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*",
    "/usr/share/i18n/*", "/usr/share/lintian/*", "/usr/share/bug/*",
)  # fmt: skip
COPYRIGHTS = "/usr/share/doc/*/copyright"

FORGET_LOGIN = """find "$1"/etc/apt -type f -exec sed -i -E 's#(://)[^/@[:space:]]+@#\\1#g' {} +"""
"""What this machine logs in with at a mirror or a proxy stays here, and out of every image."""


def mmdebstrap(
    tree: Path,
    packages: Sequence[str],
    entries: Sequence[str],
    options: Sequence[str],
    report: tools.Report,
    what: str,
) -> None:
    """Build ``tree`` of these packages from these apt entries; raises LabError."""
    report(what, None)
    tools.run(
        [
            "mmdebstrap",
            *sources.mmdebstrap_keyring(),
            f"--include={','.join(packages)}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in NO_DOCUMENTS),
            f"--dpkgopt=path-include={COPYRIGHTS}",
            *options,
            f"--customize-hook={FORGET_LOGIN}",
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
