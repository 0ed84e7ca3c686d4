"""A machine of one's own, by the words of README and docs/own-machine.md as they stand there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import nbformat
import pytest
import typer
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from xenlab.cli.cli import app
from xenlab.errors import BadInput
from xenlab.runs import execute
from xenlab.site.loader import INJECTED, defaults
from xenlab.site.schema import for_chapter, from_notebook, load, part

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own-machine.md").read_text()
README = (ROOT / "README.md").read_text().partition("## Your own machine")[2].partition("\n## ")[0]
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-8]*.ipynb"))
SITES = pytest.mark.parametrize("distribution", ["debian", "gentoo"])


@pytest.fixture
def castle(tmp_path: Path, distribution: str) -> Path:
    """The page's ``cp parameters/debian.yaml castle.yaml``, the example's values as they are."""
    (words,) = re.findall(rf"`(cp parameters/{distribution}\.yaml castle\.yaml)`", PAGE)
    _, source, target = words.split()
    return Path(shutil.copy(ROOT / source, tmp_path / target))


@SITES
def test_every_chapter_takes_what_it_is_given_of_the_site(castle: Path) -> None:
    plan = execute.prepare(ROOT / "notebooks", [], castle, mode="plan")
    assert [path.stem for path in plan.todo] == [path.stem for path in CHAPTERS]
    for chapter, values in plan.values.items():
        site = from_notebook(values)
        assert for_chapter(site, values) == for_chapter(plan.site, values), chapter


@SITES
def test_a_chapter_alone_takes_the_whole_file(castle: Path) -> None:
    """As ``papermill -f castle.yaml`` gives it, in a cell of its own behind the lab's values."""
    values = yaml.safe_load(castle.read_text())
    cell = INJECTED + "".join(f"{key} = {value!r}\n" for key, value in values.items())
    whole = load(castle)
    for path in CHAPTERS:
        site = from_notebook(defaults(path) | values | {"In": ["", "…", cell]})
        names = {*defaults(path), *values}
        assert for_chapter(site, names) == for_chapter(whole, names), path.stem


def test_a_chapter_s_own_cell_is_enough_for_it() -> None:
    """As JupyterLab has it, stepped through by hand."""
    for path in CHAPTERS:
        assert from_notebook(defaults(path)).model_dump().keys() == defaults(path).keys()


@SITES
def test_nothing_that_is_right_for_the_lab_alone_is_in_the_site(castle: Path) -> None:
    lab = load(ROOT / "parameters" / "lab.yaml")
    site = load(castle)
    for key in ("ssh", "power", "may_wipe", "package_proxy", "xen_options", "dom0_options"):
        assert getattr(site, key) != getattr(lab, key), key
    assert not re.search(r"spec-ctrl|mitigations|10\.0\.2\.", castle.read_text() + repr(site))


@pytest.mark.parametrize("distribution", ["debian"])
@pytest.mark.parametrize(
    "ways",
    [
        [["-f", "castle.yaml", "in.ipynb", "out.ipynb"]],
        # a copy that is stepped through later
        [
            ["-f", "castle.yaml", "in.ipynb", "my.ipynb", "--prepare-only"],
            ["my.ipynb", "out.ipynb"],
        ],
    ],
)
def test_papermill_with_the_site_s_file_mixes_nothing_of_the_lab_in(
    castle: Path, tmp_path: Path, ways: list[list[str]]
) -> None:
    """All chapters' parameters in one cell; the file leaves some out that the lab's have."""
    cells = [nbformat.read(path, 4).cells for path in CHAPTERS]
    parameters = [
        c.source for each in cells for c in each if "parameters" in c.metadata.get("tags", [])
    ]
    first = new_code_cell("\n".join(parameters), metadata={"tags": ["parameters"]})
    told = new_code_cell(
        "from xenlab.site.schema import from_notebook\n"
        "from pathlib import Path\n"
        "Path('told').write_text(from_notebook(globals()).model_dump_json())"
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    nbformat.write(new_notebook(cells=[first, told], metadata=kernel), tmp_path / "in.ipynb")
    for words in ways:
        subprocess.run(
            [sys.executable, "-m", "papermill", *words],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            timeout=300,
        )
    site = load(castle).model_dump(mode="json")
    told_of: dict[str, Any] = yaml.safe_load((tmp_path / "told").read_text())
    assert "package_proxy" not in yaml.safe_load(castle.read_text())
    assert told_of == {key: site[key] for key in told_of}
    assert told_of.keys() >= yaml.safe_load(castle.read_text()).keys()


def examples() -> list[str]:
    return [textwrap.dedent(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)] + [
        text for text in re.findall(r"`([a-z_]+: [^`…]*)`", PAGE) if "…" not in text
    ]


@pytest.mark.parametrize("text", examples())
def test_what_the_page_says_to_write_is_accepted(text: str) -> None:
    part(yaml.safe_load(text), "the page")


def test_the_examples_were_found() -> None:
    assert any("may_wipe" in text for text in examples())
    assert any("may_destroy" in text for text in examples())
    with pytest.raises(BadInput):
        part({"may_wipe": "S4X0NE0000"}, "the page")


def command_lines() -> list[str]:
    found = re.findall(r"`(xenlab [^`]+)`", " ".join((PAGE + README).split()))
    return sorted({line.replace(" … ", " ") for line in found})


@pytest.mark.parametrize("line", command_lines())
def test_a_command_of_the_page_is_understood(line: str) -> None:
    words = shlex.split(line)[1:]
    command: Any = typer.main.get_command(app)
    context: Any = None
    while True:
        context = command.make_context(command.name, list(words), parent=context)
        if not hasattr(command, "resolve_command"):
            break
        _, command, words = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )


def test_the_commands_were_found() -> None:
    assert {"xenlab plan -f castle.yaml", "xenlab run -f castle.yaml"} <= set(command_lines())
