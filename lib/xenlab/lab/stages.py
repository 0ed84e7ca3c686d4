"""The stages that a lab can make, by the file that each of them is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xenlab.lab.portage_stage import NAME, portage_stage
from xenlab.lab.stage import stage
from xenlab.lab.tools import Report

Made = Callable[[Report], tuple[Path, Path]]


def maker(path: str) -> Made:
    """What makes the stage that a site names; where it is one of the person's own, Debian's."""
    return portage_stage if Path(path).name == f"{NAME}.tar.zst" else stage
