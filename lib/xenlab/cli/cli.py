"""The command line: ``xenlab run``, ``plan``, ``check``, what was run, ``lab …``, ``fleet …``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from xenlab.cli import fleet as cli_fleet
from xenlab.cli import lab as cli_lab
from xenlab.cli import runs as cli_runs
from xenlab.cli.runs import Json, Runs
from xenlab.cli.terminal import (
    DRIFT,
    PROGRAM,
    Commands,
    Terminal,
    notebooks_folder,
    print_json,
    say,
    site_file,
    table,
    turn_colour_off,
    without_colour,
)
from xenlab.errors import BadInput, XenlabError
from xenlab.runs.selection import Choice, choice

if TYPE_CHECKING:
    from xenlab.runs.execute import Outcome, RunPlan
    from xenlab.runs.folder import StepState
    from xenlab.runs.plan import Approved

EXIT_STATUSES = """\
Exit status:
  0    done
  1    failed
  2    refused: a word, an option or a file is wrong; nothing was touched
  3    `xenlab check` found drift
  130  interrupted by Ctrl-C (143 by SIGTERM)
`xenlab lab ssh` and `console` end with the status of what they ran.
"""

app = typer.Typer(
    cls=Commands,
    help="Make a Xen host from an empty disk, chapter by chapter.",
    epilog=EXIT_STATUSES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_runs.app)
app.add_typer(cli_lab.app, name="lab")
app.add_typer(cli_fleet.app, name="fleet")

Chapters = Annotated[
    list[str] | None, typer.Argument(help="Names or numbers (08); all if none.", show_default=False)
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
Step = Annotated[
    list[str] | None,
    typer.Option(
        "--step",
        metavar="STEPS",
        help="Only these steps (04.2,04.3); what comes before in their chapter is looked at.",
        show_default=False,
    ),
]
FromStep = Annotated[str, typer.Option("--from-step", metavar="STEP", help="The first step.")]
Until = Annotated[str, typer.Option("--until", metavar="STEP", help="The last step.")]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        "--skip",
        metavar="STEP=REASON",
        help="Leave a step out, with the reason, which is recorded. May be repeated.",
        show_default=False,
    ),
]
Notify = Annotated[
    list[str] | None,
    typer.Option(
        "--notify",
        metavar="WHO",
        help="Who is told that it ended, failed, or waits for somebody: a URL of Apprise's, a mail"
        " address, or a command. May be repeated.",
        show_default=False,
    ),
]
Notebooks = Annotated[
    Path | None, typer.Option("--notebooks", help="Where the chapters are.", show_default=False)
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Show only errors and the totals.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show each step's commands, too.")]


@dataclass(frozen=True)
class Request:
    """What a person asked for: the options of ``run``, ``plan`` and ``check``."""

    chapters: Sequence[str]
    file: Path | None
    runs: Path | None
    notebooks: Path | None
    from_: str = ""
    resume: str = ""
    mode: str = "plan"
    destroy: Sequence[str] = ()
    lab: str = ""
    choice: Choice = field(default_factory=Choice)
    approved: Approved | None = None
    save: Path | None = None
    notify: Sequence[str] | None = None
    check: bool = False
    quiet: bool = False
    verbose: bool = False
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise BadInput("cannot show less: because -v asks for more", hint="give -q or -v")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit()


def _no_color(wanted: bool) -> None:
    if wanted:
        turn_colour_off()


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    no_color: Annotated[
        bool,
        typer.Option(
            "--no-color",
            callback=_no_color,
            is_eager=True,
            help="Print plain text, as where $NO_COLOR is set.",
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make a Xen host from an empty disk, chapter by chapter."""


@app.command()
def run(
    chapters: Chapters = None,
    file: cli_lab.File = None,
    from_: From = "",
    resume: Annotated[
        str, typer.Option("--resume", metavar="RUN", help="Take up a run where it stopped.")
    ] = "",
    mode: Annotated[str, typer.Option("--mode", help="apply or plan.")] = "apply",
    step: Step = None,
    from_step: FromStep = "",
    until: Until = "",
    skip: Skip = None,
    destroy: Destroy = None,
    lab: LabName = "",
    runs: Runs = None,
    notebooks: Notebooks = None,
    notify: Notify = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Execute chapters, all of them if none is named; exit status 0 if all are done."""
    if resume and (chapters or from_ or lab or mode != "apply" or step or from_step or until):
        raise BadInput(
            "cannot take up a run with these: because it has its own chapters, steps, mode and lab",
            hint="give only --resume and --skip, and -f where the parameters file was moved",
        )
    request = Request(
        chapters or [],
        file,
        runs,
        notebooks,
        from_,
        resume,
        mode,
        destroy or [],
        lab,
        choice(step or (), from_step, until, skip or ()),
        notify=notify or (),
        quiet=quiet,
        verbose=verbose,
    )
    outcome, reach = _execute(request)
    _show(request, outcome, reach)


@app.command()
def plan(
    chapters: Chapters = None,
    file: cli_lab.File = None,
    from_: From = "",
    step: Step = None,
    from_step: FromStep = "",
    until: Until = "",
    skip: Skip = None,
    destroy: Destroy = None,
    lab: LabName = "",
    runs: Runs = None,
    notebooks: Notebooks = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Keep the plan, for `xenlab apply`."),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Show what the chapters would change, with diffs; change nothing."""
    request = Request(
        chapters or [],
        file,
        runs,
        notebooks,
        from_,
        destroy=destroy or [],
        lab=lab,
        choice=choice(step or (), from_step, until, skip or ()),
        save=save,
        quiet=quiet,
        verbose=verbose,
        as_json=as_json,
    )
    outcome, _ = _execute(request)
    _show(request, outcome)


@app.command()
def apply(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="What `xenlab plan --save` kept.")],
    file: cli_lab.File = None,
    signers: Annotated[
        Path | None,
        typer.Option(
            "--require-signature",
            metavar="FILE",
            help="The keys of which one must have signed it, as ssh-keygen(1) has them.",
        ),
    ] = None,
    allow_unforeseen: Annotated[
        bool,
        typer.Option("--allow-unforeseen", help="Do what the plan could not foresee, too."),
    ] = False,
    runs: Runs = None,
    notebooks: Notebooks = None,
    notify: Notify = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Do what a saved plan says and no more; refuse where the machine has moved on since."""
    from xenlab.runs.plan import approved

    found = approved(plan, signers, allow_unforeseen=allow_unforeseen)
    request = Request(
        (),
        file,
        runs,
        notebooks,
        approved=found,
        notify=notify or (),
        quiet=quiet,
        verbose=verbose,
    )
    outcome, reach = _execute(request)
    _show(request, outcome, reach)


@app.command()
def check(
    chapters: Chapters = None,
    file: cli_lab.File = None,
    from_: From = "",
    lab: LabName = "",
    runs: Runs = None,
    notebooks: Notebooks = None,
    notify: Notify = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Report drift: what is no longer as the chapters left it; exit status 3 if there is any."""
    request = Request(
        chapters or [],
        file,
        runs,
        notebooks,
        from_,
        lab=lab,
        notify=notify or (),
        check=True,
        quiet=quiet,
        verbose=verbose,
        as_json=as_json,
    )
    outcome, _ = _execute(request)
    from xenlab.runs.notify import drifted

    drift = drifted(outcome.chapters)
    _show(request, outcome, drift=drift)
    if drift:
        raise typer.Exit(DRIFT)


@app.command()
def status(file: cli_lab.File = None, lab: LabName = "", as_json: Json = False) -> None:
    """Show how a host and its guests are now, and what waits; exit status 1 off Xen."""
    from xenlab.site.schema import load

    site = load(site_file(file), cli_lab.overrides(lab) if lab else None)
    from xenlab.chapters.overview import overview

    found = overview(site)
    host = {str(row["what"]): str(row["is"]) for row in found.host.to_dict("records")}
    if as_json:
        print_json({"host": host, "guests": found.guests.to_dict("records")})
        return
    cli_lab.print_facts(host)
    listed = table(*map(str, found.guests.columns))
    for row in found.guests.astype(str).itertuples(index=False):
        listed.add_row(*row)
    Terminal().print("", listed)


@app.command()
def script(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="A folder that is not there yet.")
    ],
    chapters: Chapters = None,
    file: cli_lab.File = None,
    notebooks: Notebooks = None,
) -> None:
    """Write the chapters as plain shell scripts, which need no xenlab; nothing is run."""
    from xenlab.runs import execute

    if output.exists():
        raise BadInput(
            f"cannot write into {output}: because it is there already", hint="name another folder"
        )
    plan = execute.prepare(
        notebooks or notebooks_folder(), chapters or [], site_file(file), mode="plan"
    )

    from xenlab.chapters.kernel import release_by_hand
    from xenlab.chapters.shared_usr import GENERATION, generation_by_hand
    from xenlab.resources.kernel import RELEASE
    from xenlab.runs import script

    known = {RELEASE: release_by_hand(plan.site), GENERATION: generation_by_hand(plan.site)}
    for path in script.write(plan, output, known):
        say(str(path))


@app.command()
def uninstall(
    listed: Annotated[bool, typer.Option("--list", help="List it; nothing is removed.")] = False,
    runs: Runs = None,
) -> None:
    """List what xenlab has left on this machine, and what removes each."""
    if not listed:
        raise BadInput(
            "cannot remove it all: because some is yours", hint="xenlab uninstall --list"
        )
    say(f"{'what':36}  {'size':>11}  removed by", "dim")
    for what, size, command in cli_lab.left_here(cli_runs.runs_folder(runs)):
        say(f"{what:36}  {size:>11}  {command}")


def main(words: list[str] | None = None) -> None:
    """Run the command line; an error of xenlab is one message on stderr, no traceback."""
    words = sys.argv[1:] if words is None else words
    own = words[: words.index("--")] if "--" in words else words
    if without_colour():
        turn_colour_off()
    try:
        app(words, prog_name=PROGRAM)
    except XenlabError as error:
        if "--debug" in own:
            raise
        say(str(error), "bold red", stderr=True)
        sys.exit(2 if isinstance(error, BadInput) else 1)


def _execute(request: Request) -> tuple[Outcome, list[str]]:
    """Execute chapters; give what came of it, and how to reach the lab, in lines for a person.

    Progress goes to stderr where standard output is for JSON.
    """
    from xenlab.runs import execute

    person = Terminal(stderr=request.as_json)
    console = Terminal(quiet=True, force_terminal=False) if request.quiet else person
    plan = _prepared(request, console)
    # before the run, whose chapters reach the guests by their names
    reach = cli_lab.introduce_guests(plan.site)
    from xenlab.runs import notify, spans
    from xenlab.runs.progress import Follower

    site, runs = plan.site, cli_runs.runs_folder(request.runs)
    told = [] if request.notify is None else notify.addresses(site, request.notify)
    with notify.Notifier(told, lambda line: say(line, "yellow", stderr=True)) as notifier:
        follow = partial(
            Follower,
            console,
            estimate=execute.estimate(plan, plan.folder.parent if plan.folder else runs),
            person=person,
            commands=request.verbose,
            asked=lambda record: notifier.tell(notify.asked(site.site, record)),
        )
        outcome = execute.execute_plan(plan, runs, follow)
        closed = execute.close(outcome, lambda: cli_lab.copy_console(site, outcome.folder))
        if (notice := notify.ended(site.site, closed, check=request.check)) is not None:
            notifier.tell(notice)
    if spans.wanted() and (why := spans.send(closed.folder)):
        say(f"cannot send spans: because {why}", "yellow", stderr=True)
    if request.save is not None and not closed.status:
        _save(request, request.save, execute.save(plan, closed))
    return closed, reach


def _prepared(request: Request, console: Terminal) -> RunPlan:
    """What was asked for, found to be in order; raises BadInput."""
    from xenlab.runs import execute

    chapter_folder = request.notebooks or notebooks_folder()
    if request.approved is not None:
        return execute.prepare_apply(chapter_folder, request.approved, request.file)
    if request.resume:
        folder = cli_runs.find(request.resume, request.runs)
        plan = execute.prepare_resume(chapter_folder, folder, request.file, request.choice)
    else:
        file = site_file(request.file)
        if request.file is None:
            console.print(Text(f"site: {file}"), soft_wrap=True)
        plan = execute.prepare(
            chapter_folder,
            request.chapters,
            file,
            overrides=cli_lab.overrides(request.lab) if request.lab else {},
            mode=request.mode,
            from_=request.from_,
            choice=request.choice,
        )
    return execute.allowing(plan, request.destroy)


def _save(request: Request, place: Path, document: Mapping[str, Any]) -> None:
    """Keep a plan, and say of which steps it knows nothing."""
    from xenlab.runs import plan

    cli_runs.write_out(place, plan.as_text(document))
    later = plan.unforeseen(document)
    stderr = request.as_json
    say(f"\nplan: {place}, {document['sha256']}", stderr=stderr)
    if later:
        say(f"not foreseen, {len(later)} of {len(document['steps'])} steps:", stderr=stderr)
        for line in later:
            say(f"  {line}", stderr=stderr)


def _show(
    request: Request,
    outcome: Outcome,
    reach: Sequence[str] = (),
    drift: Sequence[StepState] | None = None,
) -> None:
    """Show what came of a run, and how to reach what it made; end unless all chapters are done.

    ``drift`` are the steps that differ, None unless they were asked for.
    """
    if request.as_json:
        _print_document(outcome, drift)
    else:
        _print_outcome(request, outcome)
    if outcome.status:
        problem = outcome.problem or "not all chapters are done"
        problem += "\nthe plan was not saved" if request.save else ""
        again = f"{PROGRAM} run --resume {outcome.folder.name}"
        say(f"\n{problem}", "bold red", stderr=True)
        say(f"take it up again: {again}", stderr=True)
        raise typer.Exit(outcome.status)
    if request.as_json:
        return
    if drift is not None:
        _print_drift(drift)
    for line in () if request.quiet else reach:
        say(line)


def _print_document(outcome: Outcome, drift: Sequence[StepState] | None) -> None:
    document = cli_runs.run_as_dict(outcome.folder, outcome.chapters)
    document["exit_status"] = outcome.status or (DRIFT if drift else 0)
    document["problem"] = outcome.problem
    if drift is not None:
        document["drift"] = [step.number for step in drift]
    print_json(document)


def _print_outcome(request: Request, outcome: Outcome) -> None:
    # what draws a table takes a second to import, which a refusal need not wait for
    from xenlab.runs.progress import summary, totals

    if request.quiet:
        say("; ".join(part for part in totals(outcome.chapters) if part))
        return
    say("")
    Terminal().print(summary(outcome.chapters))
    say(f"\nrun folder: {outcome.folder}")
    if outcome.report is not None:
        say(f"report:     {outcome.report}")


def _print_drift(drift: Sequence[StepState]) -> None:
    from xenlab.runs.notify import drift_line

    if not drift:
        say("\nno drift")
        return
    say(f"\ndrift in {len(drift)} step{'s' * (len(drift) > 1)}:")
    for step in drift:
        say(f"  {drift_line(step)}")
