"""Every chapter reads the same way, holds no logic, and is committed as nobody has run it."""

import ast
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import nbformat
import pytest
from tests.notebooks.chapters import FOLDER, NOTEBOOKS, cells, code_cells, parameters_cell, read
from tests.site_files import with_files

import xenlab
import xenlab.resources.disk
import xenlab.site.disk_plan
from xenlab.chapter.chapter import Chapter
from xenlab.chapters.configuration import bridge_made
from xenlab.chapters.disk import first_partition, guests_partitions, partition_table
from xenlab.chapters.kernel import xen_entry
from xenlab.runs import execute
from xenlab.runs.script import runbook
from xenlab.site.loader import declared
from xenlab.site.schema import Parameters, load

CHAPTERS = [
    "00_ingredients",
    "01_partitions",
    "02_base_system",
    "03_dom0_kernel",
    "04_grub",
    "05_base_configuration",
    "06_imaging",
    "07_dom0_configuration",
    "08_domu_kernel",
    "09_domu_root",
    "10_domain_configuration",
    "11_action",
    "12_autostart",
    "13_network",
    "14_shared_filesystems",
    "15_shared_usr",
    "16_guests_come_and_go",
    "17_updates",
    "18_a_way_back",
]
FIRST_SLICE = 12

LOGIC = (
    ast.For,
    ast.While,
    ast.If,
    ast.IfExp,
    ast.Match,
    ast.Try,
    ast.With,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)

GUESTS = {f"chapter.site.{key}" for key in ("domains", "lan_guests", "guest_exports")}


def of_guests(node: ast.AST) -> bool:
    """Whether this says something of each guest, and of no other thing."""
    if not isinstance(node, ast.ListComp | ast.DictComp):
        return False
    (each,) = node.generators
    return ast.unparse(each.iter) in GUESTS and not each.ifs


every_chapter = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_the_chapters_are_the_howto_s_in_its_order() -> None:
    names = [path.stem for path in NOTEBOOKS]
    assert len(names) >= FIRST_SLICE
    assert names == CHAPTERS[: len(names)]


@every_chapter
def test_it_is_a_valid_notebook_of_the_present_format(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


@every_chapter
def test_nobody_has_run_it(path: Path) -> None:
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []
    assert [cell.id for cell in code if set(cell.metadata) - {"tags", "jupyter"}] == []


@every_chapter
def test_it_begins_with_its_number_and_the_howto_s_heading(path: Path) -> None:
    first = cells(path)[0]
    assert first.kind == "markdown"
    assert re.match(rf"# {path.stem[:2]} \S", first.source)
    assert re.search(r"Howto: „[^“]+“", first.source)


@every_chapter
def test_the_parameters_are_the_first_code_cell_and_typed_literals_with_a_comment(
    path: Path,
) -> None:
    cell = parameters_cell(path)
    assert cell.id == code_cells(path)[0].id
    lines = cell.source.splitlines()
    for statement in cell.tree.body:
        assert isinstance(statement, ast.AnnAssign), f"line {statement.lineno} has no type"
        assert isinstance(statement.target, ast.Name)
        assert statement.value is not None
        ast.literal_eval(statement.value)
        own = lines[statement.lineno - 1 : statement.end_lineno]
        assert re.search(r"  # \S", "\n".join(own)), f"line {statement.lineno} has no comment"


@every_chapter
def test_the_parameters_alone_are_folded_below_those_that_a_reader_may_want_to_change(
    path: Path,
) -> None:
    folded = [cell for cell in read(path).cells if "jupyter" in cell.metadata]
    assert [cell.metadata for cell in folded] == [
        {"jupyter": {"source_hidden": True}, "tags": ["parameters"]}
    ]
    (above,) = (above for above, cell in pairwise(cells(path)) if "parameters" in cell.tags)
    named = set(re.findall(r"`([a-z_]+)`", above.source)) & set(Parameters.model_fields)
    assert named and named <= set(declared(path))


@every_chapter
def test_it_opens_its_own_chapter_and_says_what_it_needs(path: Path) -> None:
    opening = code_cells(path)[1]
    body = [s for s in opening.tree.body if not isinstance(s, ast.Import | ast.ImportFrom)]
    assert ast.unparse(body[0]) == f"chapter = open_chapter({path.stem!r}, globals())"
    assert all(ast.unparse(statement).startswith("chapter.needs(") for statement in body[1:])


@every_chapter
def test_each_cell_asks_the_chapter_for_one_thing(path: Path) -> None:
    for cell in code_cells(path)[2:]:
        assert len(cell.chapter_calls()) == 1, cell.id
        *values, last = cell.tree.body
        assert all(isinstance(statement, ast.Assign) for statement in values), cell.id
        assert isinstance(last, ast.Expr | ast.Assign), cell.id
        assert last.value == cell.chapter_calls()[0], cell.id


@every_chapter
def test_no_cell_holds_logic(path: Path) -> None:
    found = {
        f"{cell.id}: {type(node).__name__}"
        for cell in code_cells(path)
        for node in ast.walk(cell.tree)
        if (isinstance(node, LOGIC) and not of_guests(node))
        # what a step makes only once it runs, since making it takes a look at the machine
        or (
            isinstance(node, ast.Lambda)
            and not (isinstance(node.body, ast.Call) or of_guests(node.body))
        )
    }
    assert found == set()


@every_chapter
def test_each_step_stands_under_a_heading_of_its_number(path: Path) -> None:
    all_cells = cells(path)
    for above, cell in pairwise(all_cells):
        title = cell.step()
        if title is None:
            continue
        number = title.split()[0]
        assert above.kind == "markdown", cell.id
        assert above.source.startswith(f"## {number} "), f"{cell.id}: {title}"


@every_chapter
def test_the_steps_are_numbered_in_order(path: Path) -> None:
    titles = [title for cell in code_cells(path) if (title := cell.step()) is not None]
    numbers = [re.match(r"(\d\d)\.(\d+) \S", title) for title in titles]
    assert all(numbers), titles
    pairs = [(match[1], int(match[2])) for match in numbers if match]
    assert {chapter for chapter, _ in pairs} == {path.stem[:2]}
    steps = [step for _, step in pairs]
    assert steps == sorted(set(steps)), titles


@every_chapter
def test_it_closes_the_chapter_at_its_end(path: Path) -> None:
    last = cells(path)[-1]
    assert last.kind == "code"
    assert ast.unparse(last.tree) == "chapter.close()"
    closing = [cell.id for cell in code_cells(path) if "chapter.close(" in cell.source]
    assert closing == [last.id]


@every_chapter
def test_papermill_can_format_its_path(path: Path) -> None:
    # papermill passes every path through str.format
    assert re.fullmatch(r"[0-9a-z_]+\.ipynb", path.name)


@every_chapter
def test_no_name_of_a_cell_hides_a_parameter(path: Path) -> None:
    names = set()
    for cell in code_cells(path)[1:]:
        for node in ast.walk(cell.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    assert names.isdisjoint(Parameters.model_fields)


@every_chapter
def test_it_imports_from_one_place_what_it_uses(path: Path) -> None:
    nodes = [node for cell in code_cells(path) for node in ast.walk(cell.tree)]
    found = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [node.module for node in found if isinstance(node, ast.ImportFrom)] == ["xenlab"]
    imported = {alias.name for node in found for alias in node.names}
    assert imported == {node.id for node in nodes if isinstance(node, ast.Name)} & set(
        xenlab.__all__
    )


@every_chapter
def test_what_it_imports_is_there(path: Path) -> None:
    for cell in code_cells(path):
        for node in ast.walk(cell.tree):
            if isinstance(node, ast.ImportFrom):
                exec(ast.unparse(node), {})


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_the_partitions_of_chapter_01_are_those_that_the_site_is_reckoned_by(
    firmware: str,
) -> None:
    site = load(NOTEBOOKS[0].parents[1] / "parameters/lab.yaml", {"firmware": firmware})
    cell = next(c for c in code_cells(NOTEBOOKS[1]) if (c.step() or "").startswith("01.2 "))
    (call,) = cell.chapter_calls()
    own = {
        "chapter": SimpleNamespace(site=site),
        "first_partition": first_partition,
        "guests_partitions": guests_partitions,
        "partitioned": lambda _, table: table,
    }
    names = vars(xenlab.resources.disk) | vars(xenlab.site.disk_plan) | own
    table = eval(compile(ast.Expression(call.args[1]), cell.id, "eval"), names)
    assert table() == partition_table(site)


def test_what_a_cell_spells_out_is_what_later_steps_check(tmp_path: Path) -> None:
    plan = execute.prepare(FOLDER, ("04", "07"), with_files(tmp_path, "lab"))
    entry, bridge = (runbook(plan, path) for path in plan.notebooks)
    steps = {step.title[:5]: step.resources for step in (*entry.steps, *bridge.steps)}
    wanted = xen_entry(cast(Chapter, entry))
    assert steps["04.2 "] == entry.bootloader.entry(wanted)
    assert steps["07.7 "] == (bridge_made(plan.site),)
