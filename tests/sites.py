"""The lab's site, for tests that need a whole one."""

from pathlib import Path

import yaml

from xenlab.site.loader import read
from xenlab.site.schema import Parameters, validate

FOLDER = Path(__file__).parents[1] / "parameters"
# named, as a site of another platform has to
LAB_VALUES = read(FOLDER / "lab.yaml").values | {"stage": "~/stage.tar.zst"}

# a site that selects nothing, for what is about a few keys each
BARE = LAB_VALUES | {
    "autostart": [],
    "guest_exports": [],
    "lan_guests": [],
    "shared_packages": [],
    "shared_usr": [],
}


def lab_site(**changes: object) -> Parameters:
    """What ``parameters/lab.yaml`` holds, with some keys changed."""
    return validate(LAB_VALUES | changes, "lab.yaml")


def lab_text(**changes: object) -> str:
    """The text of a site's file: the lab's without its selections, with some keys changed."""
    return yaml.safe_dump(BARE | changes, sort_keys=False)
