"""The command line: ``xenlab run``, ``plan``, ``check``, what was run, and ``lab …``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from xenlab.cli import lab as cli_lab
from xenlab.cli import runs as cli_runs
from xenlab.cli.runs import Runs
from xenlab.cli.terminal import Terminal
from xenlab.errors import BadInput, XenlabError

if TYPE_CHECKING:
    from xenlab.runs.execute import Outcome

DEFAULT_FILE = Path("parameters/lab.yaml")

app = typer.Typer(
    help="A Xen host from an empty disk, chapter by chapter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_runs.app)
app.add_typer(cli_lab.app, name="lab")

DRIFT = 3
"""The exit status of ``xenlab check`` where a machine is not what the chapters made of it."""

Chapters = Annotated[
    list[str] | None, typer.Argument(help="Names or numbers (08); all if none.", show_default=False)
]
File = Annotated[
    Path | None,
    typer.Option("-f", "--file", help=f"Parameters of the site.  [default: {DEFAULT_FILE}]"),
]
From = Annotated[str, typer.Option("--from", help="The chapter to begin with.")]
LabName = Annotated[
    str, typer.Option("--lab", help="The embedded lab to work on, whatever the file names.")
]
Destroy = Annotated[
    list[str] | None,
    typer.Option(
        "--destroy",
        metavar="NAME",
        help="What xenlab made and this run may destroy: a guest, or dom0. May be repeated.",
        show_default=False,
    ),
]
Notebooks = Annotated[
    Path | None, typer.Option("--notebooks", help="Where the chapters are.", show_default=False)
]


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """A Xen host from an empty disk, chapter by chapter."""


@app.command()
def run(
    chapters: Chapters = None,
    file: File = None,
    from_: From = "",
    resume: Annotated[
        str, typer.Option("--resume", metavar="RUN", help="Take up a run where it stopped.")
    ] = "",
    mode: Annotated[str, typer.Option("--mode", help="apply or plan.")] = "apply",
    destroy: Destroy = None,
    lab: LabName = "",
    runs: Runs = None,
    notebooks: Notebooks = None,
) -> None:
    """Execute chapters, all of them if none is named; exit status 0 if all are done."""
    if resume and (chapters or from_ or lab or mode != "apply"):
        raise BadInput(
            "a run that is taken up again has its own chapters, mode and lab",
            hint="give only --resume, and -f where the parameters file was moved",
        )
    _run(chapters or [], file, from_, resume, mode, destroy or [], lab, runs, notebooks)


@app.command()
def plan(
    chapters: Chapters = None,
    file: File = None,
    from_: From = "",
    destroy: Destroy = None,
    lab: LabName = "",
    runs: Runs = None,
    notebooks: Notebooks = None,
) -> None:
    """Say what the chapters would change, with diffs; touch nothing."""
    _run(chapters or [], file, from_, "", "plan", destroy or [], lab, runs, notebooks)


@app.command()
def check(
    chapters: Chapters = None,
    file: File = None,
    from_: From = "",
    lab: LabName = "",
    runs: Runs = None,
    notebooks: Notebooks = None,
) -> None:
    """Look whether everything is still as the chapters left it; exit status 3 if it is not."""
    outcome = _run(chapters or [], file, from_, "", "plan", [], lab, runs, notebooks)
    from xenlab.chapter.step import REFUSED, WOULD_CHANGE

    drift = [s for c in outcome.chapters for s in c.steps if s.status in (WOULD_CHANGE, REFUSED)]
    console = Terminal(soft_wrap=True, highlight=False)
    if not drift:
        console.print(Text("\nno drift"))
        return
    console.print(Text(f"\ndrift in {len(drift)} steps:"))
    for step in drift:
        found = (step.record.get("difference") or {}).items()
        # several states without names are counted: only a name says whose the difference is
        said = (
            (f"{label}: " if label.strip("0123456789") else "") + difference["summary"]
            for label, difference in found
        )
        console.print(Text(f"  {step.title}: {'; '.join(said)}"))
    raise typer.Exit(DRIFT)


@app.command()
def render(
    site: Annotated[str, typer.Argument(help="A site by its name, gentoo-2006, or its file.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="A folder that is not there yet.")
    ],
) -> None:
    """Write out the files and commands of the howto as it was, with no machine at hand."""
    from xenlab.site import schema as parameters

    file = (
        Path(site) if site.endswith((".yaml", ".yml")) else DEFAULT_FILE.with_name(f"{site}.yaml")
    )
    wanted = parameters.load(file)
    from xenlab.runs.report import write_files

    written = write_files(wanted, output)
    chapters = len({artefact.chapter for artefact in written})
    console = Terminal(soft_wrap=True, highlight=False)
    console.print(f"{len(written)} files in {chapters} chapters; {output / 'CONTENTS'} lists them")


def main(words: list[str] | None = None) -> None:
    """Run the command line; an error of xenlab is one message on stderr, no traceback."""
    words = sys.argv[1:] if words is None else words
    own = words[: words.index("--")] if "--" in words else words
    try:
        app(words, prog_name="xenlab")
    except XenlabError as error:
        if "--debug" in own:
            raise
        console = Terminal(stderr=True, soft_wrap=True)
        console.print(Text(str(error), style="bold red" if console.is_terminal else ""))
        sys.exit(2 if isinstance(error, BadInput) else 1)


def _run(
    chapters: list[str],
    file: Path | None,
    from_: str,
    resume: str,
    mode: str,
    destroy: list[str],
    lab: str,
    runs: Path | None,
    notebooks: Path | None,
) -> Outcome:
    """Execute chapters and show what came of it; ends the program where not all are done."""
    from xenlab.runs import execute

    console = Terminal()
    chapter_folder = notebooks or kept_notebooks()
    if resume:
        plan = execute.prepare_resume(chapter_folder, cli_runs.find(resume, runs), file)
    else:
        overrides = cli_lab.overrides(lab) if lab else {}
        chosen = file or DEFAULT_FILE
        plan = execute.prepare(
            chapter_folder, chapters, chosen, overrides=overrides, mode=mode, from_=from_
        )
    plan = execute.allowing(plan, destroy)
    # these take a second to import, which a refusal need not wait for
    from xenlab.runs.progress import summary

    reach = cli_lab.introduce_guests(plan.site)
    outcome = execute.execute_plan(plan, cli_runs.runs_folder(runs), console)
    outcome = execute.close(outcome, lambda: cli_lab.keep_console(plan.site, outcome.folder))
    console.print()
    console.print(summary(outcome.chapters))
    console.print(Text(f"\nrun folder: {outcome.folder}"), soft_wrap=True)
    if outcome.report is not None:
        console.print(Text(f"report:     {outcome.report}"), soft_wrap=True)
    if outcome.status:
        problem = outcome.problem or "not all chapters are done"
        again = f"xenlab run --resume {outcome.folder.name}"
        complaint = Terminal(stderr=True, soft_wrap=True)
        style = "bold red" if complaint.is_terminal else ""
        complaint.print(Text(f"\n{problem}", style=style))
        complaint.print(Text(f"take it up again: {again}"))
        raise typer.Exit(outcome.status)
    for line in reach:
        console.print(Text(line), soft_wrap=True)
    return outcome


def kept_notebooks() -> Path:
    """The folder ``notebooks`` here or in a folder above; raises BadInput."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir():
            return folder / "notebooks"
    raise BadInput(f"there is no folder notebooks in {here} or above", hint="use --notebooks")
