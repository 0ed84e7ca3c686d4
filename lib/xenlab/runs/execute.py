"""Chapters one after another, unattended: papermill executes them, the journal judges them."""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from xenlab import durable
from xenlab.chapter import selected
from xenlab.chapter.recorder import declared_secrets
from xenlab.chapter.selected import Selected
from xenlab.chapter.step import CHANGED
from xenlab.durable import free_place
from xenlab.errors import BadInput, DiskFull, JournalDamaged
from xenlab.host import Host
from xenlab.journal import RESERVE_BYTES, Journal
from xenlab.runs import audit, expected
from xenlab.runs import folder as runs
from xenlab.runs import plan as plans
from xenlab.runs.folder import DONE, NOT_RUN, UNFINISHED, ChapterState
from xenlab.runs.plan import Approved
from xenlab.runs.selection import Choice, Steps, select
from xenlab.site import loader
from xenlab.site import schema as parameters
from xenlab.site.schema import Parameters
from xenlab.transport import local
from xenlab.transport.local import Local

if TYPE_CHECKING:
    from xenlab.runs.expected import Estimate
    from xenlab.runs.kernels import Kernels

FAILED = 1
INTERRUPTED = 130

CHAPTER_BYTES = 2 * 1024 * 1024
"""What a chapter may leave in a run's folder: an executed notebook, outputs, pictures."""

MODES = ("apply", "plan")

CONSENTS = ("may_wipe", "may_destroy")
"""What may be added to a site's file while a run waits to be taken up: a step asks for it."""

NOT_DONE = ("notify",)
"""What changes nothing of what a run does, and may be another at any time."""


@dataclass(frozen=True)
class RunPlan:
    """A run that was found to be in order and can start: nothing has been touched yet.

    ``folder`` is None for a new run. ``notebooks`` are all chapters, ``todo`` those left to do.
    ``destroy`` names what this run may destroy of what xenlab made, until it ends or stops;
    ``consents`` are those that the site's file has beside what the run began with; ``selected``
    says which steps are left out, ``approved`` the plan beyond which it does nothing.
    """

    site: Parameters
    mode: str
    notebooks: tuple[Path, ...]
    todo: tuple[Path, ...]
    values: Mapping[str, Mapping[str, Any]]
    file: str
    overrides: Mapping[str, object]
    folder: Path | None = None
    destroy: tuple[str, ...] = ()
    consents: tuple[str, ...] = ()
    selected: Selected = field(default_factory=Selected)
    approved: Approved | None = None


@dataclass(frozen=True)
class Outcome:
    """A run's folder, what the journal says of its chapters, the exit status, and the report."""

    folder: Path
    chapters: tuple[ChapterState, ...]
    status: int
    problem: str = ""
    report: Path | None = None


class Follows(Protocol):
    """Who is told which chapter begins and how it has ended."""

    def begin(self, chapter: str) -> None:
        """A chapter's notebook is started."""

    def end(self, state: ChapterState) -> None:
        """A chapter's notebook has ended."""


class Executes(Protocol):
    """What executes the notebooks of a run, as `xenlab.runs.kernels.Kernels` does."""

    def prepare(self) -> None:
        """What can be done before the first notebook."""

    def execute(self, notebook: Path, output: Path, parameters: Mapping[str, Any]) -> str:
        """Execute a notebook; return "" or, in one line, what stopped it."""


Follow = Callable[..., AbstractContextManager[Follows]]
"""What makes a run's `Follows`, of its folder and of the titles of each chapter's steps."""

Executor = Callable[[RunPlan, Path], AbstractContextManager[Executes]]
"""What makes a run's `Executes`, of the run and its folder."""


def prepare(
    notebooks: Path,
    chapters: Sequence[str],
    file: Path,
    *,
    overrides: Mapping[str, object] | None = None,
    mode: str = "apply",
    from_: str = "",
    choice: Choice = Choice(),  # noqa: B008 (it is frozen)
) -> RunPlan:
    """Check everything that can be checked before the first notebook of a new run.

    ``chapters`` are names or their beginnings (``08``), all if empty; ``from_`` drops those before
    it, ``choice`` those without a step that is wanted. Raises BadInput.
    """
    if mode not in MODES:
        raise BadInput(
            f"cannot run in mode {mode}: because there is no such mode",
            hint=f"use {' or '.join(MODES)}",
        )
    site = parameters.load(file, overrides)
    declared_secrets(site.masked)
    wanted = wanted_chapters(notebooks, chapters, from_)
    values = {path.stem: _values(path, site) for path in wanted}
    names, left_out = select(choice, _steps(wanted))
    paths = tuple(path for path in wanted if path.stem in names)
    return RunPlan(
        site,
        mode,
        paths,
        paths,
        values,
        str(file.absolute()),
        overrides or {},
        selected=left_out,
    )


def wanted_chapters(notebooks: Path, chapters: Sequence[str], from_: str = "") -> tuple[Path, ...]:
    """The notebooks of these chapters, as `prepare` takes them; raises BadInput."""
    known = chapter_notebooks(notebooks)
    wanted = {_chapter(name, known) for name in chapters} or set(known)
    first = _chapter(from_, known) if from_ else ""
    names = [name for name in known if name in wanted and name >= first]
    if not names:
        raise BadInput(
            f"cannot run from {first} on: because none of the chapters is left then",
            hint="name later chapters, or an earlier one with --from",
        )
    return tuple(known[name] for name in names)


def prepare_resume(
    notebooks: Path,
    folder: Path,
    file: Path | None,
    choice: Choice = Choice(),  # noqa: B008 (it is frozen)
) -> RunPlan:
    """Check everything before a run is taken up again: its chapters that are not done are left.

    ``file`` is where the run's parameters came from unless given. Raises BadInput where it
    differs from what the run began with in more than CONSENTS. Steps that the run left out stay so;
    ``choice`` may skip others. An action that it has carried out is not repeated.
    """
    runs.require_whole(folder, "take up")
    record = runs.read(folder)
    site = parameters.validate(record["parameters"], str(folder / "run.json"))
    declared_secrets(site.masked)
    given = file or Path(record["file"])
    consents: tuple[str, ...] = ()
    if file is not None or given.exists():
        now = parameters.load(given, record["overrides"])
        _refuse_changes(site, now, given, folder)
        old = {*site.may_wipe, *site.may_destroy}
        consents = tuple(each for each in (*now.may_wipe, *now.may_destroy) if each not in old)
        site = now
    known = chapter_notebooks(notebooks)
    paths = tuple(known[_chapter(name, known)] for name in record["chapters"])
    seen = runs.Chapters(folder)
    todo = tuple(path for path in paths if seen.state(path.stem).status != DONE)
    values = {path.stem: _values(path, site) for path in paths}
    _, more = select(choice, _steps(paths))
    before = Selected(**record.get("left_out", {}))
    skip = {**before.skip, **_carried_out(seen, todo), **more.skip}
    return RunPlan(
        site,
        str(record["mode"]),
        paths,
        todo,
        values,
        str(given),
        record["overrides"],
        folder.absolute(),
        consents=consents,
        selected=Selected(skip, before.look),
        approved=plans.of_run(folder, record),
    )


def prepare_apply(notebooks: Path, approved: Approved, file: Path | None) -> RunPlan:
    """Check everything before a saved plan is applied, which says what to do itself.

    ``file`` is where its parameters came from unless given. Raises BadInput where that, or a
    chapter, is not what was planned.
    """
    plan = json.loads(approved.text)
    site = parameters.validate(plan["parameters"], "the plan")
    declared_secrets(site.masked)
    given = file or Path(plan["file"])
    if file is not None or given.exists():
        now = parameters.load(given, plan["overrides"])
        changed = _changed(site, now)
        if changed:
            raise BadInput(
                f"cannot apply the plan: because {given} is not what was planned with: "
                f"{', '.join(changed)} differ",
                hint=f"put the file back, or {plans.AGAIN}",
            )
        site = now
    known = chapter_notebooks(notebooks)
    for name, digest in plan["chapters"].items():
        if name not in known or cells_digest(known[name]) != digest:
            raise BadInput(
                f"cannot apply the plan: because chapter {name} is not the one that was planned",
                hint=f"use the chapters of then (--notebooks), or {plans.AGAIN}",
            )
    paths = tuple(known[name] for name in plan["chapters"])
    values = {path.stem: _values(path, site) for path in paths}
    return RunPlan(
        site,
        "apply",
        paths,
        paths,
        values,
        str(given.absolute()),
        plan["overrides"],
        destroy=tuple(plan["destroy"]),
        selected=Selected(**plan["left_out"]),
        approved=approved,
    )


def save(plan: RunPlan, outcome: Outcome) -> dict[str, Any]:
    """The plan that a run in mode plan has made, which ended well, to be kept."""
    cells = {path.stem: cells_digest(path) for path in plan.notebooks}
    return plans.document(outcome.folder, plan.destroy, cells)


def cells_digest(notebook: Path) -> str:
    """The digest of what a chapter does: of its code, not of its prose or layout."""
    return plans.digest_of(list(code_cells(notebook)))


def _steps(notebooks: Iterable[Path]) -> Steps:
    return {
        path.stem: [(step.number, step.verb) for step in step_cells(path)] for path in notebooks
    }


def _carried_out(seen: runs.Chapters, notebooks: Iterable[Path]) -> dict[str, str]:
    """The actions of chapters (`Chapter.run`) that this run has carried out already."""
    return {
        step.number: f"carried out in this run already, at {step.record['time']}"
        for path in notebooks
        for step in seen.state(path.stem).steps
        if step.status == CHANGED
        and any(cell.verb == "run" and cell.number == step.number for cell in step_cells(path))
    }


def allowing(plan: RunPlan, destroy: Sequence[str]) -> RunPlan:
    """A run that may destroy what has these names; raises BadInput for what is no name."""
    for name in destroy:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise BadInput(
                f"cannot destroy {name!r}: because it is neither dom0 nor a guest's partition",
                hint="use a name that a refused step shows",
            )
    return replace(plan, destroy=tuple(destroy))


def execute_plan(
    plan: RunPlan, runs_folder: Path, follow: Follow, executor: Executor | None = None
) -> Outcome:
    """Execute the chapters in order into the run's folder; stop at the first that is not done.

    ``follow`` makes what shows the run while it goes on, ``executor`` what executes it: a kernel
    of its own, unless given. The exit status is 0 only if the journal holds every chapter's end
    and no step of them that failed; 130 after an interruption, when no process of the run is left.
    """
    _refuse_without_room(plan, plan.folder or runs_folder)
    folder = plan.folder or durable.new_run_folder(runs_folder.absolute(), plan.site.site)
    if plan.folder is None:
        if plan.approved is not None:
            plan.approved.keep(folder)
        runs.create(folder, _record(plan))
    seen = runs.Chapters(folder)
    status, problem, begun = 0, "", list[str]()
    with runs.run_lock(folder) as lock:
        try:
            if plan.folder is not None or plan.approved is not None:
                audit.record_files(folder)
            runs.begin(folder)
            for name in (*plan.consents, *plan.destroy):
                Journal(folder).append(phase="consent", status="given", message=name)
            executor = executor or partial(_kernels, lock=lock)
            problem = _chapters(plan, folder, executor, follow, seen, begun)
            status = FAILED if problem else 0
        except DiskFull as full:
            status, problem = FAILED, str(full)
            Journal(folder).note_full(full)
        except KeyboardInterrupt:
            status, problem = INTERRUPTED, "interrupted"
        except SystemExit as error:
            status, problem = int(error.code or FAILED), "ended by a signal"
        finally:
            _end_leftovers(folder)
    chapters = tuple(_judged(seen, path.stem, begun) for path in plan.notebooks)
    return Outcome(folder, chapters, status, problem)


def _chapters(
    plan: RunPlan,
    folder: Path,
    executor: Executor,
    follow: Follow,
    seen: runs.Chapters,
    begun: list[str],
) -> str:
    """Execute the chapters that are left to do; return "" or what stopped them.

    ``begun`` gets the name of each that is started. Raises DiskFull.
    """
    with ExitStack() as stack:
        stack.enter_context(local.ending_cleanly())
        executes = stack.enter_context(executor(plan, folder))
        if plan.todo:
            executes.prepare()
        steps = {path.stem: [step.title for step in step_cells(path)] for path in plan.todo}
        follower = stack.enter_context(follow(folder, steps))
        for path in plan.todo:
            durable.require(folder, CHAPTER_BYTES)
            begun.append(path.stem)
            follower.begin(path.stem)
            output = free_place(folder, path.stem, ".ipynb")
            problem = executes.execute(path, output, plan.values[path.stem])
            state = _judged(seen, path.stem, begun)
            follower.end(state)
            if state.status != DONE:
                return state.message or problem or f"{path.stem} stopped without its end"
    return ""


def close(outcome: Outcome, copy_console: Callable[[], None]) -> Outcome:
    """Complete a run's folder: the console's log, the report, a record of its files and its end.

    What the disk has no space for is left out, and the outcome says so.
    """
    # what draws tables takes a second to import
    from xenlab.runs import report

    def write_report() -> None:
        nonlocal outcome
        outcome = replace(outcome, report=report.write(outcome.folder))

    def tried(act: Callable[[], None]) -> None:
        nonlocal outcome
        try:
            act()
        except (DiskFull, JournalDamaged) as error:
            if isinstance(error, DiskFull):
                Journal(outcome.folder).note_full(error)
            problem = outcome.problem or str(error)
            outcome = replace(outcome, status=outcome.status or FAILED, problem=problem)

    try:
        # before the end, which names the files of a run: people read the report
        tried(copy_console)
        tried(write_report)
    finally:
        tried(lambda: audit.end(outcome.folder, outcome.status))
    return outcome


def _refuse_without_room(plan: RunPlan, folder: Path) -> None:
    free, needed = durable.free(folder), RESERVE_BYTES + len(plan.todo) * CHAPTER_BYTES
    if plan.todo and free < needed:
        raise BadInput(
            f"cannot start: because what is left to do may need {durable.mib(needed)}, and "
            f"{durable.mib(free)} are free for {folder}",
            hint="free space there, or give another folder with --runs",
        )


def _judged(seen: runs.Chapters, chapter: str, begun: Sequence[str]) -> ChapterState:
    """What the journal says; a chapter that was begun but never opened is not done either."""
    state = seen.state(chapter)
    if chapter in begun and state.status == NOT_RUN:
        return replace(state, status=UNFINISHED)
    return state


def estimate(plan: RunPlan, runs_folder: Path) -> Estimate | None:
    """How long a run is expected to take, from earlier runs; a plan takes no time worth saying."""
    if plan.mode != "apply":
        return None
    names = [path.stem for path in plan.todo]
    return expected.estimate(plan.site, names, runs_folder)


def _kernels(plan: RunPlan, folder: Path, lock: int) -> Kernels:
    # what executes notebooks takes a second to import: a refusal need not wait for that
    from xenlab.runs.kernels import Kernels

    return Kernels(
        plan.notebooks[0].parent,
        {
            "XENLAB_RUN": str(folder),
            "XENLAB_MODE": plan.mode,
            "XENLAB_DESTROY": " ".join(plan.destroy),
            selected.VARIABLE: plan.selected.text,
        },
        lock=lock,
        log=free_place(folder, "kernels", ".log"),
    )


def _end_leftovers(folder: Path) -> None:
    """End what unfinished steps left running on this machine."""
    for attempt in Journal(folder).unfinished():
        Host(Local()).end_marked(attempt["mark"])


def chapter_notebooks(folder: Path) -> dict[str, Path]:
    """The chapters of a folder, by name; notebooks from 90 on look at what was run.

    Raises BadInput where there are none.
    """
    found = {path.stem: path.absolute() for path in sorted(folder.glob("[0-8]*.ipynb"))}
    if not found:
        raise BadInput(
            f"cannot run a chapter: because there are none in {folder}",
            hint="use --notebooks, or start where the folder `notebooks` is",
        )
    return found


def _chapter(name: str, known: Mapping[str, Path]) -> str:
    """The chapter of a name or an unambiguous beginning of it; raises BadInput."""
    plain = name.removesuffix(".ipynb")
    if plain in known:
        return plain
    starting = [chapter for chapter in known if plain and chapter.startswith(plain)]
    if len(starting) == 1:
        return starting[0]
    if starting:
        raise BadInput(
            f"cannot choose a chapter: because {name} may be {' or '.join(starting)}",
            hint="give more of the name",
        )
    near = difflib.get_close_matches(plain, known, 1, 0.5)
    raise BadInput(
        f"cannot run chapter {name!r}: because there is none of that name",
        hint=near[0] if near else f"one of {', '.join(known)}",
    )


def _values(path: Path, site: Parameters) -> dict[str, Any]:
    names = loader.declared(path)
    for name in names:
        if name not in Parameters.model_fields:
            near = difflib.get_close_matches(name, Parameters.model_fields, 1)
            raise BadInput(
                f"cannot run this chapter: because its parameters cell declares {name}",
                where=path.stem,
                hint=f"call it {near[0]}" if near else "declare only what a site may have",
            )
    return parameters.for_chapter(site, names)


def _refuse_changes(began: Parameters, now: Parameters, file: Path, folder: Path) -> None:
    changed = [key for key in _changed(began, now) if key not in CONSENTS]
    if changed:
        raise BadInput(
            f"cannot take up the run {folder.name}: because {file} is not what it began with: "
            f"{', '.join(changed)} differ",
            hint=f"start a new run, or put the file back: only {' and '.join(CONSENTS)} may change",
        )


def _changed(began: Parameters, now: Parameters) -> list[str]:
    """The parameters that differ."""
    old, new = began.model_dump(mode="json"), now.model_dump(mode="json")
    return [key for key in old if old[key] != new[key] and key not in NOT_DONE]


def _record(plan: RunPlan) -> dict[str, Any]:
    return {
        "site": plan.site.site,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "mode": plan.mode,
        "chapters": [path.stem for path in plan.notebooks],
        "file": plan.file,
        "overrides": dict(plan.overrides),
        "left_out": asdict(plan.selected),
        "plan": plan.approved.record if plan.approved else None,
        "parameters": plan.site.model_dump(mode="json"),
        "versions": runs.environment(plan.notebooks[0].parent),
    }


# A chapter's notebook as the panel and a run read it: how it opens, and its steps.

STEP_VERBS = frozenset({"ensure", "each", "run", "facts", "picture", "check"})
"""The methods of a chapter that are one step each."""


@dataclass(frozen=True)
class StepCell:
    """A cell with a step in it."""

    title: str
    code: str
    verb: str = ""

    @property
    def number(self) -> str:
        """``04.2``, with which the title begins."""
        return self.title.partition(" ")[0]


def step_cells(notebook: Path) -> list[StepCell]:
    """The cells of a chapter's steps, in their order."""
    return [
        StepCell(title, code, verb)
        for code, tree in _trees(notebook)
        for title, verb in _titles(tree)
    ]


def opening_code(notebook: Path) -> str:
    """The code of the cell that opens the chapter, "" where there is none."""
    for code, tree in _trees(notebook):
        names = (node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
        if "open_chapter" in names:
            return code
    return ""


def heading(notebook: Path) -> str:
    """The title of a chapter, as its first cell has it."""
    first = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
    return first.partition("\n")[0].lstrip("# ")


def code_cells(notebook: Path) -> Iterator[str]:
    """The code of a chapter's cells after its parameters, in their order."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
            yield "".join(cell["source"])


def _trees(notebook: Path) -> Iterator[tuple[str, ast.Module]]:
    for code in code_cells(notebook):
        try:
            yield code, ast.parse(code)
        except SyntaxError:
            continue


def _titles(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="chapter"), attr=verb),
                args=[ast.Constant(value=str(title)), *_],
            ) if verb in STEP_VERBS:
                yield title, verb
