"""What must never be recorded: the secrets that xenlab can know of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from xenlab.command import Secret

NAMES = ("PASSWORD", "PASSWD", "PASSPHRASE", "TOKEN", "SECRET")
"""A variable of the environment whose name has one of these in it holds a secret."""

LEAST = 6
"""How many characters a secret has at least: a shorter one would blot out half of each output."""


def known(identity: str, environment: Mapping[str, str] = os.environ) -> tuple[Secret, ...]:
    """The secrets of this environment and, line by line, of the private key ``identity``.

    The longest come first, so that one that contains another is hidden whole.
    """
    values = {
        value
        for name, value in environment.items()
        if any(word in name.upper() for word in NAMES) and len(value) >= LEAST
    }
    values.update(_lines(identity))
    return tuple(Secret(value) for value in sorted(values, key=len, reverse=True))


def _lines(identity: str) -> list[str]:
    if not identity:
        return []
    try:
        lines = Path(identity).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [line for line in lines if len(line) >= LEAST and not line.startswith("-----")]
