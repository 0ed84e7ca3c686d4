"""A person steps through a chapter in JupyterLab, stops what runs, and uses the panel."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Route, expect
from tests.browser.jupyter import SECONDS, Jupyter, shows_its_end
from tests.notebooks.chapters import FOLDER
from tests.ssh.conftest import wait_until
from tests.ssh.small import Site
from tests.ssh.test_panel import sleepers

# kernels of a busy machine take their time, and a test may need more than one
pytestmark = pytest.mark.timeout(1800)

COUNT = 'for i in $(seq 60); do echo "line number $i"; sleep 0.5; done; echo made > "$1"'
WHOLE_SITE = re.compile("^site$")

SLEEP = 'echo asleep; sleep 1234567 & wait; echo made > "$1"'


def write_chapter(site: Site, *cells: str) -> None:
    """A chapter whose parameters cell names the site's own host, as one opens it by hand."""
    site.chapter("01_first", *cells)
    place = site.folder / "notebooks" / "01_first.ipynb"
    notebook = nbformat.read(place, 4)
    ssh = {"host": site.sshd.alias, "config": str(site.sshd.config)}
    notebook.cells[1].source = (
        f'ssh: dict = {ssh!r}  # how to reach it\nsite: str = "lab"  # name\n'
        'secrets: list = []\ndisk: str = "/dev/vda"'
    )
    nbformat.write(notebook, place)


def open_panel(site: Site, jupyter: Callable[..., Jupyter]) -> Jupyter:
    """The panel's notebook, opened for the site; its second cell shows the panel."""
    place = site.folder / "notebooks" / "91_panel.ipynb"
    shutil.copy(FOLDER / place.name, place)
    notebook = nbformat.read(place, 4)
    file = os.path.relpath(site.file, place.parent)
    notebook.cells[1].source = f'parameters_file: str = "{file}"  # the site'
    nbformat.write(notebook, place)
    lab = jupyter(site.folder / "notebooks")
    lab.open("91_panel.ipynb")
    lab.run_to_end(0)
    return lab


def test_a_console_shows_its_last_lines(tmp_path: Path, jupyter: Callable[..., Jupyter]) -> None:
    lines = "\\n".join(f"[{second}] a line of a boot" for second in range(200))
    show = (
        "from ipywidgets import HTML\n"
        "from xenlab.panel.domains import console_box\n"
        f"HTML(console_box('{lines}\\ndomu3 login: '))"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(show)])
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(notebook, folder / "console.ipynb")
    lab = jupyter(folder)
    lab.open("console.ipynb")
    text = lab.run_to_end(0).locator("pre", has_text="domu3 login:")
    expect(text).to_be_visible(timeout=SECONDS * 1000)
    assert shows_its_end(text)


def test_output_arrives_while_a_step_runs_and_stays_when_it_is_saved(
    site: Site, jupyter: Callable[..., Jupyter]
) -> None:
    write_chapter(site, site.made("01.1", script=COUNT), site.made("01.2"))
    lab = jupyter(site.folder / "notebooks")
    lab.open("01_first.ipynb")
    for number in (0, 1):
        lab.run_to_end(number)
    expect(lab.cell(1)).to_contain_text("01_first")
    step = lab.run(2)
    expect(step).to_contain_text("line number 3")
    expect(step.locator(".xenlab-step")).to_contain_text("running")
    assert not site.path("01.1").exists()
    expect(step.locator(".xenlab-step")).to_contain_text("changed")
    assert site.path("01.1").exists()
    for number in (3, 4):
        lab.run_to_end(number)
    assert site.steps() == [("01.1", "changed"), ("01.2", "changed")]
    lab.save()
    lab.page.reload()
    lab.page.wait_for_selector(".jp-Notebook .jp-Cell")
    expect(lab.cell(2).locator(".xenlab-step")).to_contain_text("line number 60")
    expect(lab.cell(3).locator(".xenlab-step")).to_contain_text("changed")


def test_a_step_that_needs_a_person_says_so_and_goes_on_by_itself(
    site: Site, jupyter: Callable[..., Jupyter]
) -> None:
    write_chapter(site, site.made("01.1", "Asking"))
    lab = jupyter(site.folder / "notebooks")
    lab.open("01_first.ipynb")
    for number in (0, 1):
        lab.run_to_end(number)
    step = lab.run(2)
    waiting = step.locator(".xenlab-waiting")
    expect(waiting).to_contain_text("boot the machine from its rescue system")
    expect(step).to_contain_text("waiting until the rescue system answers")
    site.path("01.1").write_text("booted\n")
    expect(step.locator(".xenlab-step")).to_contain_text("changed")
    expect(waiting).to_have_count(0)


def test_jupyterlab_s_stop_button_ends_the_remote_command(
    site: Site, jupyter: Callable[..., Jupyter]
) -> None:
    write_chapter(site, site.made("01.1", script=SLEEP))
    lab = jupyter(site.folder / "notebooks")
    lab.open("01_first.ipynb")
    for number in (0, 1):
        lab.run_to_end(number)
    step = lab.run(2)
    expect(step).to_contain_text("asleep")
    wait_until(sleepers, SECONDS)
    lab.interrupt()
    expect(step.locator(".xenlab-step")).to_contain_text("aborted")
    wait_until(lambda: not sleepers(), SECONDS)
    assert site.steps() == [("01.1", "aborted")]


def test_the_panel_runs_and_stops(site: Site, jupyter: Callable[..., Jupyter]) -> None:
    write_chapter(site, site.made("01.1"), site.made("01.2", script=SLEEP))
    lab = open_panel(site, jupyter)
    panel = lab.run_to_end(1)
    steps = panel.locator(".xenlab-steps")
    expect(steps).to_contain_text("to do")
    panel.get_by_role("button", name="Run next").click()
    expect(panel.locator(".xenlab-cards").first).to_contain_text("Make 01.1")
    expect(steps).to_contain_text(re.compile("changed.*01.1"))
    panel.get_by_role("button", name="Run to the end").click()
    expect(panel.locator(".xenlab-cards").first).to_contain_text("asleep")
    expect(steps).to_contain_text(re.compile("running.*01.2"))
    wait_until(sleepers, SECONDS)
    panel.get_by_role("button", name="Stop").first.click()
    expect(steps).to_contain_text(re.compile("aborted.*01.2"))
    wait_until(lambda: not sleepers(), SECONDS)
    assert site.steps() == [("01.1", "changed"), ("01.2", "aborted")]


def test_what_stands_in_the_panel_s_form_is_saved_before_anything_starts(
    site: Site, jupyter: Callable[..., Jupyter]
) -> None:
    write_chapter(site, site.made("01.1"))
    lab = open_panel(site, jupyter)
    panel = lab.run_to_end(1)
    panel.get_by_role("tab", name="Parameters").click()
    line = panel.locator(".widget-hbox", has=lab.page.locator("code", has_text=WHOLE_SITE)).last
    field = line.get_by_role("textbox")
    field.fill("castle!")
    field.press("Tab")
    expect(line).to_contain_text("site must be")
    lab.shot("panel-parameters")
    field.fill("castle")
    field.press("Tab")
    expect(line).not_to_contain_text("site must be")
    panel.get_by_role("tab", name="Chapters").click()
    panel.get_by_role("button", name="Run next").click()
    expect(panel).to_contain_text("the form says something else")
    # nothing is saved while something runs, and what it says comes before its end
    expect(panel.get_by_role("button", name="Run next")).to_be_enabled()
    lab.shot("panel-not-saved")
    panel.get_by_role("tab", name="Parameters").click()
    panel.get_by_role("button", name="Save").click()
    expect(panel.locator(".xenlab-answer")).to_contain_text("the panel works from it now")
    lab.shot("panel-saved")
    panel.get_by_role("tab", name="Domains").click()
    expect(panel.get_by_label("console")).to_have_value("no console")
    panel.get_by_role("tab", name="Chapters").click()
    panel.get_by_role("button", name="Run next").click()
    expect(panel.locator(".xenlab-steps")).to_contain_text(re.compile("changed.*01.1"))
    (run,) = site.run_folders()
    assert run.name.endswith("-castle")


def test_a_cell_is_not_run_before_a_busy_server_has_given_the_notebook_its_kernel(
    site: Site, jupyter: Callable[..., Jupyter]
) -> None:
    write_chapter(site)
    lab = jupyter(site.folder / "notebooks")

    def late(route: Route) -> None:
        lab.page.wait_for_timeout(8000)
        route.continue_()

    lab.page.route("**/api/sessions*", late)
    lab.open("01_first.ipynb")
    cell = lab.run_to_end(0)
    expect(cell.locator(".jp-InputPrompt")).to_have_text("[1]:")
    expect(lab.page.locator(".jp-Dialog")).to_have_count(0)
