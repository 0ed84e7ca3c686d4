"""The packages are layers: the contracts of pyproject.toml, and what they cannot say."""

import ast
import graphlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIB = ROOT / "lib"
PACKAGES = (LIB / "xenlab", LIB / "xenlab_lab")
NOTEBOOKS = ROOT / "notebooks"

MOST_LINES = 600
MOST_MODULES = 118
"""88, and what later work took: selected, planned and opening of the chapter; selection, plan,
notify, metrics, spans, prune and cells of the runs; the fleets' package and commands; what a domain
runs with, guests that go, roots like another's; uplink and references of the site; hardware and
network of the lab's machine; the overview of a host; fleets in JupyterLab; updates and backups."""
MOST_IN_A_PACKAGE = 15
ABOVE_THE_PLATFORM = ("chapter", "chapters", "runs", "fleet", "panel", "cli")

SIDE_EFFECTS = """
import importlib, os, sys, sysconfig, threading
packages, modules = tuple(sys.argv[1:3]), sys.argv[3:]
standard = sysconfig.get_path("stdlib")
site = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
doors = ("socket.connect", "socket.bind", "subprocess.Popen", "os.mkdir", "os.remove")

def by_xenlab():
    frame = sys._getframe(2)
    while frame:
        name = frame.f_code.co_filename
        library = name.startswith("<") or name.startswith(standard) and not name.startswith(site)
        if not library:
            return name.startswith(packages)
        frame = frame.f_back
    return False

def watch(event, arguments):
    writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (writes or event in doors) and by_xenlab():
        print(event, *arguments[:1])

sys.addaudithook(watch)
for module in modules:
    before = threading.active_count()
    importlib.import_module(module)
    if threading.active_count() != before:
        print("a thread was started by", module)
"""


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in package.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(LIB).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def with_content() -> list[Path]:
    """The modules, without the ``__init__.py`` that hold a docstring alone."""
    return [path for path in modules() if len(ast.parse(path.read_text()).body) > 1]


def imports(path: Path, *, at_run_time: bool = False) -> Iterator[str]:
    """The full names that a module imports, also inside its functions."""
    tree = ast.parse(path.read_text())
    checking = {
        id(node)
        for block in ast.walk(tree)
        if at_run_time and isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in checking:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name their module in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(name: str) -> str | None:
    """The module of ours that an imported name belongs to."""
    parts = name.split(".")
    while parts and parts[0] in ("xenlab", "xenlab_lab"):
        place = LIB.joinpath(*parts)
        if place.with_suffix(".py").exists() or (place / "__init__.py").exists():
            return ".".join(parts)
        parts.pop()
    return None


def above_the_platform() -> list[Path]:
    """The chapters, and each module above the platform layer."""
    high = [path for layer in ABOVE_THE_PLATFORM for path in (PACKAGES[0] / layer).glob("*.py")]
    return [*sorted(high), *sorted(NOTEBOOKS.glob("*.ipynb"))]


def source_of(path: Path) -> str:
    """A module's text; the code cells of a notebook, but for its parameters."""
    if path.suffix == ".py":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    code = (c for c in cells if c["cell_type"] == "code")
    plain = (c for c in code if "parameters" not in c["metadata"].get("tags", []))
    return "\n".join("".join(c["source"]) for c in plain)


def distributions(source: str) -> Iterator[str]:
    """Each place where code names a distribution, or decides by the site's platform."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in ("debian", "gentoo"):
            yield f"line {node.lineno}: {node.value!r}"
        asked: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.If | ast.IfExp | ast.While):
            asked = [node.test]
        elif isinstance(node, ast.Match):
            asked = [node.subject]
        for expression in asked:
            if isinstance(expression, ast.Attribute) and expression.attr == "platform":
                yield f"line {expression.lineno}: {ast.unparse(expression)}"


def test_the_contracts_of_the_layers_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", above_the_platform(), ids=lambda path: path.stem)
def test_nobody_above_the_platform_asks_which_distribution(path: Path) -> None:
    assert list(distributions(source_of(path))) == []


@pytest.mark.parametrize(
    "source",
    [
        'if site.platform == "gentoo":\n    emerge()',
        'names = {"debian": "ssh"}',
        "words = a if chapter.site.platform in known else b",
        "match site.platform:\n    case _:\n        pass",
    ],
)
def test_a_question_for_the_distribution_is_found(source: str) -> None:
    assert list(distributions(source)) != []


def test_no_module_imports_itself_around_a_corner() -> None:
    graph = {
        name_of(path): {
            target
            for imported in imports(path, at_run_time=True)
            if (target := own(imported)) is not None and target != name_of(path)
        }
        for path in modules()
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_no_module_is_too_long() -> None:
    long = {name_of(path): len(path.read_text().splitlines()) for path in modules()}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}


def test_there_are_not_too_many_modules() -> None:
    assert len(with_content()) <= MOST_MODULES
    crowded = Counter(str(path.parent.relative_to(LIB)) for path in with_content())
    assert {name: n for name, n in crowded.items() if n > MOST_IN_A_PACKAGE} == {}


def test_importing_does_nothing_else() -> None:
    names = [name for path in modules() if not (name := name_of(path)).endswith("__main__")]
    script = [sys.executable, "-B", "-c", SIDE_EFFECTS, *map(str, PACKAGES), *names]
    done = subprocess.run(script, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_module_alone_makes_what_prints_to_a_terminal() -> None:
    """Texts of other machines would reach it with their escape sequences."""
    makers = [
        path.name
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Console", "rich.print")
    ]
    assert makers == []
