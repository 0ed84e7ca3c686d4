"""Put the executed chapters of a run into the documentation, and the howto's machine beside them.

python docs/collect.py [RUN]        the newest run that made a whole lab, unless one is named
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nbformat
from then_and_now import page

from xenlab.durable import kept_file
from xenlab.errors import BadInput, XenlabError
from xenlab.journal import read_chain
from xenlab.runs import folder as runs

HERE = Path(__file__).parent
CHAPTERS = HERE / "chapters"

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


def newest(folder: Path) -> Path:
    """The newest run that carried out every chapter and changed something; raises BadInput."""
    for run in reversed(runs.every(folder)):
        if not (run / "run.json").exists() or runs.read(run)["mode"] != "apply":
            continue
        states = runs.states(run)
        counts = sum(state.counts.get("changed", 0) for state in states)
        if len(states) > 15 and counts and all(state.status == runs.DONE for state in states):
            return run
    raise BadInput(f"no run in {folder} made a whole lab", hint="make lab")


def collect(run: Path) -> None:
    """Copy a run's chapters and write their index."""
    shutil.rmtree(CHAPTERS, ignore_errors=True)
    CHAPTERS.mkdir()
    states = runs.states(run)
    ours = [path.stem for path in (HERE.parent / "notebooks").glob("*.ipynb")]
    for state in states:
        if state.name not in ours:
            raise BadInput(f"the run {run.name} has a chapter that is none of ours: {state.name}")
        made = [kept_file(run, path.name) for path in run.glob(f"{state.name}*.ipynb")]
        newest = max(made, key=lambda path: path.stat().st_mtime)
        nbformat.write(_for_readers(newest), CHAPTERS / f"{state.name}.ipynb")
    text = INDEX.format(
        started=runs.read(run)["started"][:10],
        run=run.name,
        seconds=sum(step.seconds for state in states for step in state.steps),
        head=read_chain(run / "journal.jsonl").head[:16],
        names="\n".join(state.name for state in states),
    )
    (CHAPTERS / "index.md").write_text(text)


def _for_readers(place: Path) -> nbformat.NotebookNode:
    """An executed chapter whose parameters and opening are folded away."""
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
    """Collect the chapters; exit status 1, with a sentence, where there is no such run."""
    try:
        folder = HERE.parent / "runs"
        run = runs.find(folder, sys.argv[1]) if len(sys.argv) > 1 else newest(folder)
        collect(run)
        (HERE / "2006.md").write_text(page())
    except XenlabError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"chapters of {run.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
