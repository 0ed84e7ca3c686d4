"""Where Debian packages come from: the Debian entries of this machine's own apt configuration."""

from __future__ import annotations

import re
from pathlib import Path

from xenlab.errors import LabError
from xenlab.lab import tools

SUITE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FORMAT = "$(CREATED_BY)|$(ORIGIN)|$(LABEL)|$(CODENAME)|$(REPO_URI)|$(COMPONENT)"
_PARTS = {"Debian": ("", "-updates"), "Debian-Security": ("-security",)}
_LOGIN = re.compile(r'(?<=://)[^/@\s"]+@')


def debian_sources() -> list[str]:
    """One-line apt entries for the lab's suite, from the mirrors this machine uses itself.

    Entries of other origins never appear. A machine that has Debian entries for another release
    lends its mirrors; one that has none gives an empty list, and mmdebstrap's own default
    mirrors are used. Raises LabError if apt cannot be asked.
    """
    return sources_from(tools.output(["apt-get", "indextargets", "--format", _FORMAT]))


def sources_from(listing: str) -> list[str]:
    """The entries out of what `apt-get indextargets` prints, in the same order."""
    exact: list[str] = []
    lent: list[str] = []
    for line in listing.splitlines():
        kind, origin, label, codename, uri, component = line.split("|")
        if (kind, origin, component) != ("Packages", "Debian", "main") or label not in _PARTS:
            continue
        if codename in {SUITE + part for part in _PARTS[label]}:
            exact.append(f"deb {uri} {codename} main")
        lent.extend(f"deb {uri} {SUITE}{part} main" for part in _PARTS[label])
    return list(dict.fromkeys(exact or lent))


def without_login(text: str) -> str:
    """A text whose URLs hold no user and no password: what goes into a stage, or a record."""
    return _LOGIN.sub("", text)


def mmdebstrap_keyring() -> list[str]:
    """The option that makes mmdebstrap trust Debian's keys and nobody else's.

    Raises LabError if the keyring is not installed.
    """
    if not KEYRING.exists():
        raise LabError(
            f"Debian's keyring {KEYRING} is missing", hint="install debian-archive-keyring"
        )
    return [f"--keyring={KEYRING}"]
