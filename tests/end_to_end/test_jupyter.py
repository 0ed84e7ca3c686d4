"""A person at JupyterLab, against the finished lab: a chapter cell by cell, and the domains."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
from playwright.sync_api import Locator, expect
from tests.browser.jupyter import Jupyter, shows_its_end
from tests.end_to_end.conftest import NAME
from tests.notebooks.chapters import FOLDER
from tests.whole_lab import Site

MINUTES = 60_000


def notebooks_of(site: Site, folder: Path, *names: str) -> Path:
    """Copies of notebooks whose parameters name the lab under test."""
    place = folder / "notebooks"
    place.mkdir()
    ssh = {"host": "dom0", "config": str(site.ssh_config)}
    for name in names:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
        (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
        cell.source = re.sub(r"(?m)^ssh: dict = \{.*?\}", f"ssh: dict = {ssh!r}", cell.source)
        cell.source = re.sub(r'(?m)^lab: str = "lab"', f'lab: str = "{NAME}"', cell.source)
        file = os.path.relpath(site.parameters, place)
        cell.source = cell.source.replace("../parameters/lab.yaml", file)
        nbformat.write(notebook, place / f"{name}.ipynb")
    return place


def test_chapter_05_runs_cell_by_cell(
    site: Site, jupyter: Callable[..., Jupyter], tmp_path: Path
) -> None:
    lab = jupyter(notebooks_of(site, tmp_path, "05_base_configuration"))
    lab.open("05_base_configuration.ipynb")
    notebook = nbformat.read(FOLDER / "05_base_configuration.ipynb", 4)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    for number in range(cells):
        lab.run_to_end(number)
    # the parameters and the closing show none, the opening its own and what it needs
    expect(lab.cell(1).locator(".xenlab-step").first).to_contain_text("05.0")
    for number in range(2, cells - 1):
        expect(lab.cell(number).locator(".xenlab-step")).to_have_count(1)
    steps = lab.page.locator(".xenlab-step")
    assert [step for step in steps.all_inner_texts() if not step.startswith("ok")] == []
    lab.shot("chapter-05")


def test_a_guest_is_started_and_shut_down_from_the_panel(
    site: Site, jupyter: Callable[..., Jupyter], tmp_path: Path
) -> None:
    site.ssh("", "xl shutdown -w domu3 2> /dev/null || :")
    folder = notebooks_of(site, tmp_path, "05_base_configuration", "91_panel")
    lab = jupyter(folder)
    lab.open("91_panel.ipynb")
    lab.run_to_end(0)
    panel = lab.run_to_end(1)
    panel.get_by_role("tab", name="Domains").click()
    panel.get_by_role("button", name="Watch").click()
    expect(panel).to_contain_text("Domain-0", timeout=5 * MINUTES)

    row = row_of(panel, "domu3")
    expect(row).to_contain_text("not running", timeout=5 * MINUTES)
    panel.get_by_label("console").select_option("domu3")
    row.get_by_role("button", name="start").click()
    expect(row).to_contain_text(re.compile(r"domain \d+"), timeout=10 * MINUTES)
    prompt = panel.locator(".xenlab-console pre", has_text="domu3 login:")
    expect(prompt).to_be_visible(timeout=15 * MINUTES)
    expect(panel.locator(".xenlab-step", has_text="Start domu3")).to_contain_text(
        "changed", timeout=15 * MINUTES
    )
    lab.shot("panel-domains")
    prompt.scroll_into_view_if_needed()
    assert shows_its_end(prompt), "the console's last line is hidden"
    lab.shot("panel-console")
    stop = row.get_by_role("button", name="shut down")
    expect(stop).to_be_enabled(timeout=5 * MINUTES)
    stop.click()
    expect(row).to_contain_text("not running", timeout=15 * MINUTES)
    expect(panel.locator(".xenlab-step", has_text="Shut down domu3")).to_contain_text(
        "changed", timeout=15 * MINUTES
    )
    assert "domu3" not in site.ssh("", "xl", "list")


def row_of(panel: Locator, name: str) -> Locator:
    """A guest's line in the table of domains."""
    return panel.locator(".xenlab-domain", has=panel.page.locator("b", has_text=name))
