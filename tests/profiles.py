"""Machines as people have them: what each is made of, and its site's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "machines" / "profiles"
NAMES = sorted(folder.name for folder in FOLDER.iterdir())
TWO = ("hoster", "mini-pc")
"""Those that `make test-end-to-end` runs."""


def hardware(name: str) -> Path:
    """The file for ``xenlab lab up --hardware``."""
    return FOLDER / name / "hardware.yaml"


def castle(name: str) -> Path:
    """The site's file, as parameters/debian.yaml and docs/own-machine.md have it."""
    return FOLDER / name / "castle.yaml"


def values(name: str) -> dict[str, Any]:
    """What the site's file says."""
    found: dict[str, Any] = yaml.safe_load(castle(name).read_text())
    return found
