"""The house: each module stands on a floor, and imports point down only."""

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LIB = Path(__file__).parents[2] / "lib"
PACKAGE = LIB / "xenlab"
NOTEBOOKS = LIB.parent / "notebooks"
MOST_LINES = 600
ABOVE_THE_SEAMS = 4

# Floor by floor: its rooms, and the modules or packages of each. A room is one idea in several
# modules, which may import each other; another room of the same floor is out of reach.
FLOORS: list[dict[str, tuple[str, ...]]] = [
    {
        "errors": ("errors", "command", "hidden", "masking", "plain"),
        "wholefile": ("wholefile",),
        "uptime": ("uptime",),
    },
    {
        "parameters": (
            "parameters",
            "consistency",
            "disklayout",
            "names",
            "refusals",
            "yamlfile",
        ),
        "journal": ("journal", "chain", "durable", "runfolder"),
        "ssh": (
            "ssh",
            "hostkeys",
            "connection",
            "conversation",
            "copying",
            "login",
            "loginshell",
            "pump",
            "target",
            "wait",
            "wire",
        ),
        "local": ("local",),
        "quoting": ("quoting",),
    },
    {"host": ("host",)},
    {"resources": ("resources",), "platform": ("platform",)},
    {
        "chapter": (
            "abandoned",
            "cells",
            "chapter",
            "consent",
            "machine_lock",
            "opening",
            "recorder",
            "seams",
            "step",
            "view",
        ),
        "recipes": ("recipes",),
    },
    {
        "display": ("display", "painted", "panel", "card"),
        "lab": ("lab",),
        "terminal": ("terminal",),
    },
    {
        "batch": (
            "audit",
            "batch",
            "execution",
            "expected",
            "history",
            "history_figures",
            "live",
            "progress",
            "rendering",
            "report",
            "runs",
            "whole",
        ),
        "notebook": ("notebook",),
    },
    {"cli": ("cli", "cli_lab", "cli_runs", "__main__")},
]

# The ways between rooms of one floor: who may use whom.
SIDEWAYS = {("platform", "resources"), ("recipes", "chapter")}

# Whose business a library is; nobody else imports it.
ONLY_IN = {
    "paramiko": {"ssh"},
    "IPython": {"display"},
    "ipywidgets": {"display"},
    "papermill": {"batch"},
    "qemu": {"lab"},
    "typer": {"cli"},
}

ROOM_OF = {
    module: (number, room)
    for number, floor in enumerate(FLOORS)
    for room, modules in floor.items()
    for module in modules
}

SIDE_EFFECTS = """
import importlib, os, sys, sysconfig, threading
package, modules = sys.argv[1], sys.argv[2:]
standard = sysconfig.get_path("stdlib")
site = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
doors = ("socket.connect", "socket.bind", "subprocess.Popen", "os.mkdir", "os.remove")

def by_xenlab():
    frame = sys._getframe(2)
    while frame:
        name = frame.f_code.co_filename
        library = name.startswith("<") or name.startswith(standard) and not name.startswith(site)
        if not library:
            return name.startswith(package)
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
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(LIB).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str) -> tuple[int, str]:
    """Floor and room of ``xenlab.x.y``; KeyError for a module that has none yet."""
    return ROOM_OF[name.split(".")[1]]


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
    """The module of xenlab that an imported name belongs to."""
    parts = name.split(".")
    if parts[0] != "xenlab":
        return None
    while len(parts) > 1:
        place = LIB.joinpath(*parts)
        if place.with_suffix(".py").exists() or (place / "__init__.py").exists():
            return ".".join(parts)
        parts.pop()
    return None


def above_the_seams() -> list[Path]:
    """The chapters, and each module above the seams: but for what writes one platform's files."""
    found = [path for path in modules() if name_of(path) != "xenlab"]
    high = [path for path in found if room_of(name_of(path))[0] >= ABOVE_THE_SEAMS]
    chapters = sorted(NOTEBOOKS.glob("*.ipynb"))
    return [*(path for path in high if path.stem != "rendering"), *chapters]


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


def test_every_module_has_a_floor() -> None:
    homeless = [name for path in modules() if (name := name_of(path)) != "xenlab"]
    assert [name for name in homeless if name.split(".")[1] not in ROOM_OF] == []


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down(path: Path) -> None:
    if name_of(path) == "xenlab":
        assert list(imports(path)) == []
        return
    floor, room = room_of(name_of(path))
    wrong = []
    for imported in filter(None, map(own, imports(path))):
        below, other = room_of(imported)
        if not (below < floor or room == other or (room, other) in SIDEWAYS):
            wrong.append(f"{imported} (floor {below}) in floor {floor}")
    assert wrong == []


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_library_is_imported_where_it_belongs(path: Path) -> None:
    if name_of(path) == "xenlab":
        return
    room = room_of(name_of(path))[1]
    wrong = {name for name in imports(path) if room not in ONLY_IN.get(name.split(".")[0], {room})}
    assert wrong == set()


@pytest.mark.parametrize("path", above_the_seams(), ids=lambda path: path.stem)
def test_nobody_above_the_seams_asks_which_distribution(path: Path) -> None:
    assert list(distributions(source_of(path))) == []


@pytest.mark.parametrize(
    "source",
    [
        'if site.platform == "gentoo":\n    emerge()',
        'names = {"debian": "ssh"}',
        "words = a if book.site.platform in known else b",
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


def test_every_module_is_one_idea() -> None:
    long = {name_of(path): len(path.read_text().splitlines()) for path in modules()}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}


def test_importing_does_nothing_else() -> None:
    names = [name for path in modules() if not (name := name_of(path)).endswith("__main__")]
    script = [sys.executable, "-B", "-c", SIDE_EFFECTS, str(PACKAGE), *names]
    done = subprocess.run(script, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_module_alone_makes_what_prints_to_a_terminal() -> None:
    """Texts of other machines would reach it with their escape sequences."""
    makers = [
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Console", "rich.print")
    ]
    assert makers == []
