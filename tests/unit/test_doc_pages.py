"""The pages of ``make docs`` as a fresh clone makes them, where no run has made a lab."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer
import yaml
from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from xenlab.cli.cli import app
from xenlab.site.schema import Parameters

ROOT = Path(__file__).parents[2]
CHAPTERS = [path.stem for path in sorted((ROOT / "notebooks").glob("[0-8]*.ipynb"))]


@dataclass(frozen=True)
class Pages:
    """The pages' sources, made ones included, and what became of them."""

    sources: Path
    html: Path

    def text(self, name: str) -> str:
        """What a page says, without its markup."""
        page = (self.html / f"{name}.html").read_text()
        return html.unescape(re.sub(r"<[^>]+>", "", page))


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """The pages, built once by the commands that ``make docs`` runs."""
    clone = tmp_path_factory.mktemp("clone")
    docs = clone / "docs"
    made = shutil.ignore_patterns("_build", "chapters", "made", "2006.md", "__pycache__")
    shutil.copytree(ROOT / "docs", docs, ignore=made)
    for beside in ("lib", "notebooks", "parameters", "tests"):
        (clone / beside).symlink_to(ROOT / beside)
    sphinx = ["-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html"]
    for words in (["docs/collect.py"], sphinx):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=clone,
            env={"PYTHONPATH": str(ROOT / "lib"), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return Pages(docs, docs / "_build" / "html")


def test_the_index_of_the_chapters_says_what_is_missing_and_what_makes_it(pages: Pages) -> None:
    said = pages.text("chapters/index")
    assert "No run here has made a whole lab yet" in said and "make lab" in said
    assert "From 2006 to today" in pages.text("2006")


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_that_no_run_has_executed_says_so(pages: Pages, name: str) -> None:
    assert "Not executed here: no run on this machine" in pages.text(f"chapters/{name}")


def test_a_run_that_is_named_and_not_there_is_refused() -> None:
    words = [sys.executable, str(ROOT / "docs" / "collect.py"), "gone"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 1 and "cannot find the run gone" in done.stderr


def keys(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the schema as messages spell it, with those inside another."""
    for name, info in model.model_fields.items():
        yield above + name, info
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                entry = "[]" if get_origin(info.annotation) is list else ""
                yield from keys(kind, f"{above}{name}{entry}.")


KEYS = dict(keys(Parameters))


def entry_of(pages: Pages, key: str) -> str:
    """What the reference says of one key."""
    text = (pages.sources / "made" / "parameters.md").read_text()
    found = re.search(rf"^### `{re.escape(key)}`\n(.*?)(?=^##|\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"{key} is not in the reference"
    return found[1]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_the_schema_is_in_the_reference(pages: Pages, key: str) -> None:
    said = entry_of(pages, key)
    explanation, _, facts = said.strip().partition("\n\n")
    assert len(explanation) > 4 and not explanation.startswith("- ")
    assert re.findall(r"^- (\w+): ", facts, re.MULTILINE) in (
        ["Type", "Default", "Example"],
        ["Type", "Allowed", "Default", "Example"],
    )
    if key.endswith("_mib"):
        assert "- Type: whole number, in MiB" in facts
    if get_origin(KEYS[key].annotation) is Literal:
        assert all(f"`{word}`" in facts for word in get_args(KEYS[key].annotation) if word)
    assert f">{key}<" in (pages.html / "parameters.html").read_text()


@pytest.mark.parametrize("key", KEYS)
def test_the_example_of_a_key_is_accepted(pages: Pages, key: str) -> None:
    example = re.search(r"^- Example: `(.*)`$", entry_of(pages, key), re.MULTILINE)
    info = KEYS[key]
    assert example and info.annotation
    (value,) = yaml.safe_load(example[1]).values()
    one = create_model("One", value=(info.annotation, info))
    one.model_validate({"value": value}, strict=True)


def test_no_key_is_explained_twice() -> None:
    lab = (ROOT / "parameters" / "lab.yaml").read_text()
    inside, above = [], ""
    for indent, name, comment in re.findall(r"^(  )?(\w+):(.*# )?", lab, re.MULTILINE):
        above = above if indent else name
        inside += [f"{above}.{name}"] if indent and comment else []
    assert "ssh.host" in inside
    assert [key for key in inside if KEYS[key].description] == []


def commands_of(command: Any, words: str = "xenlab") -> Iterator[tuple[str, Any]]:
    """Every command of the program, and the groups that they are in."""
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands_of(below, f"{words} {name}")


COMMANDS = dict(commands_of(typer.main.get_command(app)))


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_is_in_the_reference(pages: Pages, words: str) -> None:
    if COMMANDS[words].hidden:
        return
    text = (pages.sources / "made" / "commands.md").read_text()
    _, found, rest = text.partition(f"## `{words}`\n")
    assert found and f"Usage: {words} " in rest.partition("\n## ")[0]
    own = rest.partition("\n## ")[0]
    for parameter in COMMANDS[words].params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            assert all(option in own for option in parameter.opts)
    assert f"Usage: {words} " in pages.text("commands")
