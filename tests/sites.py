"""The lab's site, for tests that need a whole one."""

from pathlib import Path

import yaml

from xenlab.site.loader import read
from xenlab.site.schema import Parameters, validate

FOLDER = Path(__file__).parents[1] / "parameters"
LAB_VALUES = read(FOLDER / "lab.yaml").values


def lab_site(**changes: object) -> Parameters:
    """What ``parameters/lab.yaml`` holds, with some keys changed."""
    return validate(LAB_VALUES | changes, "lab.yaml")


def lab_text(**changes: object) -> str:
    """The text of a site's file that says what the lab's does, with some keys changed."""
    return yaml.safe_dump(LAB_VALUES | changes, sort_keys=False)
