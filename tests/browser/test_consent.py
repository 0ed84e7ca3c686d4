"""The consent card on a real disk: a wrong serial wipes nothing, the right one goes on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect
from tests.browser.jupyter import Jupyter
from tests.notebooks.chapters import FOLDER

from xenlab.command import Command
from xenlab.host import Host
from xenlab.journal import Journal
from xenlab.transport.ssh import SSH
from xenlab.transport.ssh_config import Target
from xenlab_lab.lab import Lab

NAME = "m-consent"
SERIAL = "XENLAB-M-CONSENT"

# a loaded machine without KVM boots slowly; each wait below has its own deadline
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A machine in its rescue system, with an empty disk."""
    lab = Lab(NAME)
    lab.reset()
    try:
        lab.up(seconds=900)
        yield lab
    finally:
        lab.remove()


def test_the_step_stops_at_the_card_and_goes_on_with_the_right_serial(
    lab: Lab, jupyter: Callable[..., Jupyter], tmp_path: Path
) -> None:
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    place = notebooks / "01_partitions.ipynb"
    shutil.copy(FOLDER / place.name, place)
    notebook = nbformat.read(place, 4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    ssh = {"host": "dom0", "config": str(lab.folder / "ssh_config")}
    cell.source = re.sub(r"(?m)^ssh: dict = \{.*?\}", f"ssh: dict = {ssh!r}", cell.source)
    nbformat.write(notebook, place)
    host = Host(SSH(Target("dom0", ssh["config"])))
    partitions = Command.script("lsblk -nro NAME /dev/vda | wc -l")

    page = jupyter(notebooks, XENLAB_RUNS=str(tmp_path / "runs"))
    page.open(place.name)
    codes = [c.source for c in notebook.cells if c.cell_type == "code"]
    wiping = next(n for n, code in enumerate(codes) if "chapter.ensure(" in code)
    for number in range(wiping):
        page.run_to_end(number)
    step = page.run_to_end(wiping)
    expect(step).to_contain_text("ConsentNeeded")
    card = step.locator(".xenlab-consent")
    expect(card).to_contain_text("wipes /dev/vda")
    typed, wipe = card.get_by_role("textbox"), card.get_by_role("button")
    typed.fill("XENLAB-LAB")
    wipe.click()
    expect(card).to_contain_text("XENLAB-LAB is not the serial of /dev/vda")
    page.shot("consent-refused")
    again = page.run_to_end(wiping)
    expect(again).to_contain_text("ConsentNeeded")
    assert host.run(partitions).stdout.strip() == "1"

    card = again.locator(".xenlab-consent")
    card.get_by_role("textbox").fill(SERIAL)
    card.get_by_role("button").click()
    expect(card).to_contain_text("may be wiped")
    page.shot("consent-given")
    step = page.run(wiping)
    expect(step.locator(".xenlab-step")).to_contain_text("changed")
    assert int(host.run(partitions).stdout) > 6
    host.transport.close()
    (run,) = sorted((tmp_path / "runs").glob("*/"))
    given = [r for r in Journal(run).records() if r["phase"] == "consent"]
    assert [(r["status"], r["message"]) for r in given] == [("given", SERIAL)]
