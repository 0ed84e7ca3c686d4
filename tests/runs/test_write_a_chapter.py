"""The page about one's own chapter: its code, taken as it stands there, runs on a real sshd."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from tests.ssh.small import Site

PAGE = Path(__file__).parents[2] / "docs" / "write-a-chapter.md"
RESOURCE, PARAMETERS, *CELLS = re.findall(r"```python\n(.*?)\n```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def etc(site: Site) -> Path:
    """What stands for /etc on this machine, which is no Xen host; the page's files are made."""
    etc = site.folder / "etc"
    etc.mkdir()
    (etc / "hostname").write_text("box\n")
    notebooks = site.folder / "notebooks"
    notebooks.mkdir()
    resource, *cells = (text.replace("/etc/", f"{etc}/") for text in (RESOURCE, *CELLS))
    # no system is installed below a folder here: the steps work on what runs
    opening = re.sub(r"^chapter = .*$", r'\g<0>\nchapter.root = "/"', cells[0], flags=re.MULTILINE)
    assert opening != cells[0]
    first = new_code_cell(PARAMETERS)
    first.metadata["tags"] = ["parameters"]
    (notebooks / "motd.py").write_text(resource)
    notebook = new_notebook(
        cells=[new_markdown_cell("# 80 Greet people"), first]
        + [new_code_cell(text) for text in (opening, *cells[1:])],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    nbformat.write(notebook, notebooks / "80_motd.ipynb")
    return etc


def test_the_chapter_of_the_page_is_planned_run_and_found_done(site: Site, etc: Path) -> None:
    planned = site.xenlab("plan", "80", "-f", "site.yaml")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "+This is a Xen host." in planned.stdout and not (etc / "motd").exists()
    assert ("80.1", "would change") in site.steps()
    done = site.xenlab("run", "80", "-f", "site.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (etc / "motd").read_text() == "This is a Xen host.\n"
    assert site.steps() == [("80.0.1", "ok"), ("80.1", "changed")]
    again = site.xenlab("run", "80", "-f", "site.yaml")
    assert again.returncode == 0, again.stdout + again.stderr
    assert site.steps() == [("80.0.1", "ok"), ("80.1", "ok")]


def test_the_chapter_of_the_page_says_what_must_come_before(site: Site, etc: Path) -> None:
    (etc / "hostname").unlink()
    done = site.xenlab("run", "80", "-f", "site.yaml")
    assert done.returncode == 1
    assert "80_motd needs chapter 05_base_configuration first" in done.stderr + done.stdout
    assert not (etc / "motd").exists()
