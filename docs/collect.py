"""Make the pages that nobody writes: executed chapters, the howto's machine, the references.

python docs/collect.py [RUN]        the newest run that made a whole lab, unless one is named

Where no run here has made one, each chapter's page is the committed notebook and says what is
missing.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell
from reference import commands, parameters, profiles
from then_and_now import page

from xenlab.durable import kept_file
from xenlab.errors import BadInput, XenlabError
from xenlab.journal import read_chain
from xenlab.runs import folder as runs

HERE = Path(__file__).parent
CHAPTERS = HERE / "chapters"
MADE = HERE / "made"
NOTEBOOKS = HERE.parent / "notebooks"

INDEX = """\
# The chapters

As they ran, unattended, on {started}: every cell with what it changed and printed. The howto's
own heading stands beside each title. Run `{run}`, {seconds:.0f} seconds in steps; the head of its
journal is `{head}`.

```{{toctree}}
:maxdepth: 1

{names}
```
"""

NOT_RUN_INDEX = """\
# The chapters

No run here has made a whole lab yet, so these are the notebooks as they are committed: text and
code, without what the steps changed and printed. `make lab` makes the run (twenty minutes or so),
and `make docs` after it puts the executed chapters here.

```{{toctree}}
:maxdepth: 1

{names}
```
"""

NOT_RUN = """\
:::{note}
Not executed here: no run on this machine has made a whole lab yet. `make lab` makes one, and
`make docs` after it shows what each step changed and printed.
:::
"""


def newest(folder: Path) -> Path | None:
    """The newest run that carried out every chapter and changed something, if there is one."""
    for run in reversed(runs.every(folder)):
        if not (run / "run.json").exists() or runs.read(run)["mode"] != "apply":
            continue
        states = runs.states(run)
        counts = sum(state.counts.get("changed", 0) for state in states)
        if len(states) > 15 and counts and all(state.status == runs.DONE for state in states):
            return run
    return None


def collect(run: Path) -> None:
    """Copy a run's chapters and write their index."""
    shutil.rmtree(CHAPTERS, ignore_errors=True)
    CHAPTERS.mkdir()
    states = runs.states(run)
    ours = [path.stem for path in NOTEBOOKS.glob("*.ipynb")]
    for state in states:
        if state.name not in ours:
            raise BadInput(f"the run {run.name} has a chapter that is none of ours: {state.name}")
        made = [kept_file(run, path.name) for path in run.glob(f"{state.name}*.ipynb")]
        latest = max(made, key=lambda path: path.stat().st_mtime)
        nbformat.write(_for_readers(latest), CHAPTERS / f"{state.name}.ipynb")
    text = INDEX.format(
        started=runs.read(run)["started"][:10],
        run=run.name,
        seconds=sum(step.seconds for state in states for step in state.steps),
        head=read_chain(run / "journal.jsonl").head[:16],
        names="\n".join(state.name for state in states),
    )
    (CHAPTERS / "index.md").write_text(text)


def stand_in() -> None:
    """Show the committed notebooks in place of executed ones, each with a note that says so."""
    shutil.rmtree(CHAPTERS, ignore_errors=True)
    CHAPTERS.mkdir()
    places = sorted(NOTEBOOKS.glob("[0-8]*.ipynb"))
    for place in places:
        notebook = _for_readers(place)
        notebook.cells.insert(1, new_markdown_cell(NOT_RUN))
        nbformat.write(notebook, CHAPTERS / place.name)
    names = "\n".join(place.stem for place in places)
    (CHAPTERS / "index.md").write_text(NOT_RUN_INDEX.format(names=names))


def _for_readers(place: Path) -> nbformat.NotebookNode:
    """A chapter whose parameters and opening are folded away."""
    notebook = nbformat.read(place, 4)
    for cell in notebook.cells:
        tags = cell.metadata.setdefault("tags", [])
        if "injected-parameters" in tags:
            # what papermill was given: the run's run.json has it whole
            tags.append("remove-cell")
        elif "parameters" in tags or "open_chapter" in cell.source:
            tags.append("hide-input")
        elif cell.source == "chapter.close()":
            tags.append("remove-cell")
    return notebook


def main() -> int:
    """Make the pages; exit status 1, with a sentence, where the run that was named will not do."""
    folder = HERE.parent / "runs"
    try:
        run = runs.find(folder, sys.argv[1]) if len(sys.argv) > 1 else newest(folder)
        if run is None:
            stand_in()
        else:
            collect(run)
        (HERE / "2006.md").write_text(page())
        MADE.mkdir(exist_ok=True)
        (MADE / "parameters.md").write_text(parameters())
        (MADE / "commands.md").write_text(commands())
        (MADE / "profiles.md").write_text(profiles(HERE / "figures" / "profiles.json"))
    except XenlabError as error:
        print(error, file=sys.stderr)
        return 1
    if run is None:
        print(f"no run in {folder} made a whole lab: the chapters are shown as they are committed")
    else:
        print(f"chapters of {run.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
