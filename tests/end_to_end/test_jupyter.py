"""A person at JupyterLab, against the finished lab: a chapter cell by cell, and the domains."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat
from playwright.sync_api import Locator, expect
from tests.browser.jupyter import Jupyter, shows_its_end
from tests.end_to_end.conftest import NAME
from tests.notebooks.chapters import FOLDER
from tests.whole_lab import Site, switched_off_and_on, wait_until

MINUTES = 60_000
BOOTING = re.compile(r"(Started|Stopped|Reached target) ")
"""What a guest's console shows while its services start and stop."""


def notebooks_of(site: Site, folder: Path, *names: str, power: str = "lab") -> Path:
    """Copies of notebooks whose parameters name the lab under test."""
    place = folder / "notebooks"
    place.mkdir()
    ssh = {"host": "dom0", "config": str(site.ssh_config)}
    for name in names:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
        (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
        cell.source = re.sub(r"(?m)^ssh: dict = \{.*?\}", f"ssh: dict = {ssh!r}", cell.source)
        cell.source = re.sub(r'(?m)^lab: str = "lab"', f'lab: str = "{NAME}"', cell.source)
        cell.source = re.sub(r'(?m)^power: str = "lab"', f'power: str = "{power}"', cell.source)
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


def test_a_step_is_watched_stopped_and_run_again(
    site: Site, jupyter: Callable[..., Jupyter], tmp_path: Path
) -> None:
    show_again(site, "reboot")
    lab = jupyter(notebooks_of(site, tmp_path, "11_action"))
    lab.open("11_action.ipynb")
    reboot = cell_of("11_action", "11.3")
    for number in range(reboot):
        lab.run_to_end(number)
    step = lab.run(reboot)
    card = step.locator(".xenlab-step", has_text="running")
    expect(card).to_contain_text(BOOTING, timeout=15 * MINUTES)
    lab.shot("step-running")
    lab.interrupt()
    expect(step.locator(".xenlab-step")).to_contain_text("aborted", timeout=5 * MINUTES)
    lab.shot("step-interrupted")
    wait_until(partial(site.answers, "domu1"), seconds=900, what="domu1 answers")
    step = lab.run(reboot)
    expect(step.locator(".xenlab-step")).to_contain_text("changed", timeout=15 * MINUTES)


def test_a_step_is_stopped_in_the_panel(
    site: Site, jupyter: Callable[..., Jupyter], tmp_path: Path
) -> None:
    show_again(site, "reboot")
    lab = jupyter(notebooks_of(site, tmp_path, "11_action", "91_panel"))
    lab.open("91_panel.ipynb")
    lab.run_to_end(0)
    panel = lab.run_to_end(1)
    panel.get_by_role("button", name="Run to the end").click()
    card = panel.locator(".xenlab-step", has_text="Reboot the domain")
    expect(card).to_contain_text("running", timeout=15 * MINUTES)
    expect(card).to_contain_text(BOOTING, timeout=15 * MINUTES)
    panel.get_by_role("button", name="Stop").first.click()
    steps = panel.locator(".xenlab-steps")
    expect(steps).to_contain_text(re.compile(r"aborted.*11\.3"), timeout=5 * MINUTES)
    lab.shot("panel-stopped")
    wait_until(partial(site.answers, "domu1"), seconds=900, what="domu1 answers")


def test_a_step_waits_until_a_person_has_switched_the_machine_off_and_on(
    site: Site, jupyter: Callable[..., Jupyter], tmp_path: Path
) -> None:
    show_again(site, "power-cycle")
    lab = jupyter(notebooks_of(site, tmp_path, "12_autostart", power="manual"))
    lab.open("12_autostart.ipynb")
    boot = cell_of("12_autostart", "12.4")
    for number in range(boot):
        lab.run_to_end(number)
    step = lab.run(boot)
    waiting = step.locator(".xenlab-waiting")
    expect(waiting).to_contain_text("boot the machine from its disk", timeout=10 * MINUTES)
    lab.shot("step-waiting-for-you")
    switched_off_and_on(site)
    expect(step.locator(".xenlab-step")).to_contain_text("changed", timeout=30 * MINUTES)
    expect(waiting).to_have_count(0)


def show_again(site: Site, action: str) -> None:
    """Have a chapter carry out an action that it has on record."""
    site.ssh("", "rm", f"/var/lib/xenlab/shown/{action}")


def cell_of(chapter: str, step: str) -> int:
    """Which of a chapter's code cells a step is, from 0."""
    notebook = nbformat.read(FOLDER / f"{chapter}.ipynb", 4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return next(number for number, source in enumerate(cells) if f'"{step} ' in source)


def row_of(panel: Locator, name: str) -> Locator:
    """A guest's line in the table of domains."""
    return panel.locator(".xenlab-domain", has=panel.page.locator("b", has_text=name))
