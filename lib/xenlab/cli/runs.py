"""What was run: ``xenlab runs``, ``show``, ``diff``, ``report`` and ``audit …``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from xenlab import durable
from xenlab.chapter.card import duration
from xenlab.cli.terminal import PROGRAM, Commands, Terminal, confirm, print_json, say, table
from xenlab.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

    from xenlab.runs.folder import ChapterState, StepState

app = typer.Typer()
listing = typer.Typer(cls=Commands, invoke_without_command=True)
app.add_typer(listing, name="runs")
audit = typer.Typer(cls=Commands, help="Verify or sign the record of a run.", no_args_is_help=True)
app.add_typer(audit, name="audit")

Runs = Annotated[
    Path | None,
    typer.Option(
        "--runs",
        help="Where run folders are kept.  [default: $XENLAB_RUNS, or as xenlab.toml says]",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A path, a folder's name, or last.")]
OtherRun = Annotated[str, typer.Argument(metavar="RUN", help="Run to compare with.")]


@listing.callback()
def list_runs(ctx: typer.Context, runs: Runs = None, as_json: Json = False) -> None:
    """List the runs, oldest first; prune old ones."""
    if ctx.invoked_subcommand is not None:
        return
    from xenlab.runs import report as tables

    found = tables.runs(runs_folder(runs))
    if as_json:
        print_json(_records(found))
        return
    if found.empty:
        say(f"no run in {runs_folder(runs)} yet")
        return
    listed = table("run", "mode", "chapters", "state", "time")
    for run in found.to_dict("records"):
        done = f"{run['done']}/{run['chapters']}"
        listed.add_row(run["run"], run["mode"], done, run["state"], duration(run["seconds"]))
    Terminal().print(listed)


@listing.command("prune")
def prune(
    keep: Annotated[
        int, typer.Option("--keep", help="How many of each site stay as they are, the newest.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    runs: Runs = None,
) -> None:
    """Delete the files of old runs; the head, the signature and a summary of each are left.

    A run that goes on stays, and so does one that is not as it was recorded: exit status 1 then.
    """
    from xenlab.runs import prune as old_runs

    found = old_runs.old(runs_folder(runs), keep)
    if not found:
        say("nothing to prune")
        return
    what = f"the files of {len(found)} runs, {found[0].name} to {found[-1].name}"
    confirm("prune", what, f"{PROGRAM} runs prune --keep {keep}", yes=yes)
    stay = 0
    for run in found:
        try:
            old_runs.prune(run)
            say(f"pruned: {run.name}")
        except BadInput as error:
            stay += 1
            say(str(error), "bold red", stderr=True)
    if stay:
        raise typer.Exit(1)


@app.command()
def show(
    run: RunName = "last",
    step: Annotated[
        str,
        typer.Option("--step", metavar="NUMBER", help="Show only this step, with its commands."),
    ] = "",
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Show a run's chapters and steps, or all that is recorded of one step."""
    from xenlab.runs import folder as folders
    from xenlab.runs.progress import step_record, summary

    folder = find(run, runs)
    states = folders.states(folder)
    if step:
        found = [each for state in states for each in state.steps if each.number == step]
        if not found:
            raise BadInput(
                f"cannot show step {step}: because the run {folder.name} has none",
                hint=f"xenlab show {folder.name} lists them",
            )
        if as_json:
            print_json(step_as_dict(found[-1]) | {"commands": found[-1].record.get("commands", [])})
        else:
            Terminal().print(step_record(folder, found[-1]), soft_wrap=True)
        return
    if as_json:
        print_json(run_as_dict(folder, states))
        return
    Terminal().print(summary(states))
    for state in states:
        if state.message:
            say(f"\n{state.name}: {state.message}")
    say(f"\n{folder}")


@app.command()
def diff(
    run: RunName,
    other: OtherRun = "last",
    every: Annotated[bool, typer.Option("--all", help="Include unchanged steps.")] = False,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Show how two runs differ: parameters, steps, states and times."""
    from xenlab.runs import report as tables

    first, second = find(run, runs), find(other, runs)
    changes = tables.parameter_changes(first, second)
    pairs = tables.step_pairs(first, second)
    differing = pairs[pairs["first"] != pairs["second"]]
    steps = pairs if every else differing
    if as_json:
        print_json(
            {
                "first": first.name,
                "second": second.name,
                "parameters": _records(changes),
                "steps": _records(steps.rename(columns=lambda name: name.replace(" ", "_"))),
                "compared": len(pairs),
                "differing": len(differing),
            }
        )
        return
    if not changes.empty:
        _print_parameters(changes, first.name, second.name)
    if not steps.empty:
        _print_steps(steps, first.name, second.name)
    times = (duration(pairs[f"{name} seconds"].sum()) for name in ("first", "second"))
    say(
        f"{len(changes)} parameters and {len(differing)} of {len(pairs)} steps differ; "
        f"{' and '.join(times)} in steps"
    )


@app.command()
def report(
    run: RunName = "last",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write it there; nothing of the run is changed."),
    ] = None,
    runs: Runs = None,
) -> None:
    """Write a run's report.html unless it is there already, and print its place."""
    from xenlab.runs import report as page

    folder = find(run, runs)
    if output is None:
        print(page.write(folder))
        return
    write_out(output, page.render(folder).encode())
    print(output)


def write_out(output: Path, text: bytes) -> None:
    """Write a file that a person named; raises BadInput where that cannot be."""
    # what takes the place of a file would take that of a link or a device as well
    place = Path(os.path.realpath(output))
    if place.exists() and not place.is_file():
        raise _unwritten(output, "it is no regular file")
    try:
        durable.replace(place, text)
    except OSError as error:
        raise _unwritten(output, str(error.strerror)) from None


def _unwritten(output: Path, why: str) -> BadInput:
    return BadInput(
        f"cannot write {output}: because {why}",
        hint="name a file in a folder that you may write to",
    )


@app.command()
def metrics(
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write it there, whole: for a textfile collector."),
    ] = None,
    runs: Runs = None,
) -> None:
    """Print what a monitor reads of the runs, in Prometheus' text format."""
    from xenlab.runs.metrics import text

    found = text(runs_folder(runs))
    if output is None:
        print(found, end="")
    else:
        write_out(output, found.encode())


@audit.command("verify")
def verify(
    run: RunName = "last",
    signers: Annotated[
        Path | None,
        typer.Option("--signers", help="The keys that count, as ssh-keygen(1) has them."),
    ] = None,
    runs: Runs = None,
) -> None:
    """Verify journal, outputs, notebooks and signature; exit status 1 if one does not hold.

    A run that was cut short holds: what it could not record any more is named. RUN may be the file
    of a plan: its digest and its signature are verified.
    """
    from xenlab.runs.audit import inspect
    from xenlab.runs.folder import PRUNED

    if Path(run).is_file():
        _verify_plan(Path(run), signers)
        return
    folder = find(run, runs)
    if (folder / PRUNED).exists():
        _verify_pruned(folder, signers)
        return
    found = inspect(folder, signers)
    if found.problems:
        for problem in found.problems:
            say(problem, "bold red")
        say(f"{folder} is not what was recorded")
        raise typer.Exit(1)
    for said in found.cut:
        say(said, "yellow")
    say(f"{found.records} records and {found.files} files are as recorded")
    say(f"head: {found.head}")
    say(f"signed by: {found.signed_by or 'nobody'}")


@audit.command("sign")
def sign(
    run: RunName = "last",
    key: Annotated[
        Path | None, typer.Option("--key", help="An SSH key.  [default: ~/.ssh/id_ed25519]")
    ] = None,
    runs: Runs = None,
) -> None:
    """Sign a run as it is now, or the file of a plan, with an SSH key."""
    from xenlab.runs import audit as trail
    from xenlab.runs import plan
    from xenlab.transport.ssh_config import expanded

    with_key = key or expanded("~/.ssh/id_ed25519")
    if Path(run).is_file():
        plan.read(Path(run).read_bytes(), Path(run))
        print(trail.sign_file(Path(run), with_key))
    else:
        print(trail.sign(find(run, runs), with_key))


def _verify_pruned(folder: Path, signers: Path | None) -> None:
    from xenlab.runs.prune import verify as verify_summary

    said, who, complaint = verify_summary(folder, signers)
    if complaint:
        say(complaint, "bold red")
        say(f"{folder} is not what was left of it")
        raise typer.Exit(1)
    say(
        f"pruned on {said['pruned']} by {said['pruned_by']}: its journal and files are gone",
        "yellow",
    )
    say(f"what can be verified is its head, of {said['records']} records, and who signed it")
    say(f"head: {said['head']}")
    say(f"signed by: {who or 'nobody'}")


def _verify_plan(place: Path, signers: Path | None) -> None:
    from xenlab.runs import audit as trail
    from xenlab.runs import plan

    text = place.read_bytes()
    found = plan.read(text, place)
    who, complaint = trail.file_signed_by(place, text.decode(), signers)
    if complaint:
        say(f"{place}: {complaint}", "bold red")
        raise typer.Exit(1)
    say(f"a plan of {found['planned']} by {found['operator']}, {len(found['steps'])} steps")
    say(f"digest: {found['sha256']}")
    say(f"signed by: {who or 'nobody'}")


def runs_folder(given: Path | None) -> Path:
    """The folder of all runs: the one given, else where they are kept."""
    return given or durable.runs_folder()


def find(name: str, runs: Path | None) -> Path:
    """A run's folder; raises BadInput with the nearest name."""
    from xenlab.runs import folder as folders

    return folders.find(runs_folder(runs), name)


def run_as_dict(folder: Path, chapters: Sequence[ChapterState]) -> dict[str, Any]:
    """A run for ``--json``: what the table of its chapters and steps shows, and each step whole."""
    return {
        "run": folder.name,
        "folder": str(folder),
        "chapters": [
            {
                "chapter": chapter.name,
                "status": chapter.status,
                "seconds": chapter.seconds,
                "message": chapter.message,
                "steps": [step_as_dict(step) for step in chapter.steps],
            }
            for chapter in chapters
        ],
    }


def step_as_dict(step: StepState) -> dict[str, Any]:
    """A step for ``--json``; ``script`` is what a person would type to bring the same about."""
    found = (step.record.get("difference") or {}).items()
    return {
        "step": step.number,
        "title": step.title,
        "status": step.status,
        "seconds": step.seconds,
        "message": step.message,
        "script": str(step.record.get("script", "")),
        "differences": [
            {"label": label, **{key: each.get(key) for key in ("summary", "diff", "rows")}}
            for label, each in found
        ],
    }


def _records(table: pd.DataFrame) -> Any:
    """The rows of a table for ``--json``: a time is text, what is missing is null."""
    return json.loads(table.to_json(orient="records", date_format="iso", date_unit="s"))


def _print_parameters(changes: pd.DataFrame, first: str, second: str) -> None:
    listed = table("parameter", first, second)
    for row in changes.to_dict("records"):
        listed.add_row(*(Text(str(value)) for value in row.values()))
    Terminal().print(listed, "")


def _print_steps(steps: pd.DataFrame, first: str, second: str) -> None:
    from xenlab.runs.progress import styled

    listed = table("step", first, second)
    for row in steps.to_dict("records"):
        sides = [
            f"{styled(row[name])}  {duration(row[f'{name} seconds'])}" if row[name] else "—"
            for name in ("first", "second")
        ]
        listed.add_row(Text(row["title"]), *sides)
    Terminal().print(listed, "")
