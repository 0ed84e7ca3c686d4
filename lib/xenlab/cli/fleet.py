"""The commands ``xenlab fleet …``: many machines at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xenlab.chapter.card import duration
from xenlab.cli import lab as cli_lab
from xenlab.cli.runs import Json, Runs, runs_folder
from xenlab.cli.terminal import DRIFT, Commands, Terminal, notebooks_folder, print_json, say
from xenlab.errors import BadInput, DiskFull

if TYPE_CHECKING:
    from xenlab.fleet.engine import FleetRun, Settings
    from xenlab.fleet.hosts import Fleet
    from xenlab.fleet.record import Record

app = typer.Typer(
    cls=Commands,
    help="Make many machines Xen hosts: a base site, and of each host what differs.",
    no_args_is_help=True,
)

File = Annotated[Path, typer.Option("-f", "--file", help="The fleet's file.")]
Chapters = Annotated[
    list[str] | None, typer.Argument(help="Names or numbers (08); all if none.", show_default=False)
]
Limit = Annotated[
    str, typer.Option("--limit", metavar="PATTERN", help="These hosts alone: 'web*,db1,!web3'.")
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers", min=0, help="How many hosts at a time.  [default: one a processor]",
        show_default=False,
    ),
]  # fmt: skip
Scheduler = Annotated[
    str,
    typer.Option(
        "--scheduler", metavar="ADDRESS", help="Dask's scheduler, whose workers run the hosts."
    ),
]
Uploads = Annotated[
    int,
    typer.Option(
        "--uploads", min=0, help="How many files leave a machine with workers at a time; 0: all."
    ),
]
From = Annotated[str, typer.Option("--from", help="The chapter to begin with.")]
Notebooks = Annotated[
    Path | None, typer.Option("--notebooks", help="Where the chapters are.", show_default=False)
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Show only errors and the totals.")]


@app.command()
def run(
    file: File,
    chapters: Chapters = None,
    limit: Limit = "",
    workers: Workers = 0,
    canary: Annotated[
        int, typer.Option("--canary", min=0, help="How many hosts run first, before the others.")
    ] = 1,
    max_failures: Annotated[
        int,
        typer.Option("--max-failures", min=0, help="Start no host after so many; 0: all of them."),
    ] = 2,
    scheduler: Scheduler = "",
    uploads: Uploads = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take up the last run: the hosts that are not done.")
    ] = False,
    from_: From = "",
    runs: Runs = None,
    notebooks: Notebooks = None,
    quiet: Quiet = False,
) -> None:
    """Execute chapters on all hosts; exit status 0 if all are done."""
    from xenlab.fleet.engine import Settings

    if resume and (chapters or from_):
        raise BadInput(
            "cannot take up a run with these: because it has its own chapters",
            hint="give only --resume",
        )
    settings = Settings(workers, canary, max_failures, scheduler, uploads)
    fleet = _fleet(file, limit)
    if resume:
        from xenlab.fleet import engine

        todo = engine.resume(fleet, runs_folder(runs), cli_lab.copy_console)
    else:
        todo = _new(fleet, "apply", chapters, from_, runs, notebooks)
    _finish(todo, *_execute(todo, settings, quiet))


@app.command()
def plan(
    file: File,
    chapters: Chapters = None,
    limit: Limit = "",
    workers: Workers = 0,
    scheduler: Scheduler = "",
    from_: From = "",
    runs: Runs = None,
    notebooks: Notebooks = None,
    quiet: Quiet = False,
) -> None:
    """Show on which hosts the chapters would change something; change nothing."""
    from xenlab.fleet.engine import Settings

    todo = _new(_fleet(file, limit), "plan", chapters, from_, runs, notebooks)
    ended = _execute(todo, Settings(workers, 0, 0, scheduler), quiet)
    _say_drift(todo.record, "would change in")
    _finish(todo, *ended)


@app.command()
def check(
    file: File,
    chapters: Chapters = None,
    limit: Limit = "",
    workers: Workers = 0,
    scheduler: Scheduler = "",
    from_: From = "",
    runs: Runs = None,
    notebooks: Notebooks = None,
    quiet: Quiet = False,
) -> None:
    """Report drift of all hosts; exit status 3 if there is any."""
    from xenlab.fleet.engine import Settings

    todo = _new(_fleet(file, limit), "plan", chapters, from_, runs, notebooks)
    ended = _execute(todo, Settings(workers, 0, 0, scheduler), quiet)
    drifted = _say_drift(todo.record, "drift in")
    _finish(todo, *ended)
    if drifted:
        raise typer.Exit(DRIFT)
    say("no drift")


@app.command()
def status(file: File, limit: Limit = "", runs: Runs = None, as_json: Json = False) -> None:
    """Show how the fleet's last run ended, or how far it is."""
    from dataclasses import asdict

    from xenlab.fleet import report as page
    from xenlab.fleet.record import Record
    from xenlab.fleet.view import table_of

    fleet = _fleet(file, limit)
    record = Record.last(runs_folder(runs), fleet.name)
    hosts = {host: state for host, state in record.hosts.items() if host in fleet.sites}
    if as_json:
        print_json(
            record.facts
            | {"folder": str(record.folder)}
            | {"hosts": {host: asdict(state) for host, state in hosts.items()}}
        )
        return
    Terminal().print(table_of(hosts, record.facts["chapters"], page.states(record)))
    for host, state in hosts.items():
        if state.problem:
            say(f"\n{host}: {state.problem}")
    say(f"\n{record.folder}")


@app.command()
def report(file: File, runs: Runs = None) -> None:
    """Write the page of the fleet's last run, and print its place."""
    from xenlab.fleet import report as page
    from xenlab.fleet.record import Record

    print(page.write(Record.last(runs_folder(runs), _fleet(file, "").name)))


def _fleet(file: Path, limit: str) -> Fleet:
    from xenlab.fleet import hosts

    fleet = hosts.load(file)
    return fleet.limited(limit) if limit else fleet


def _new(
    fleet: Fleet,
    mode: str,
    chapters: list[str] | None,
    from_: str,
    runs: Path | None,
    notebooks: Path | None,
) -> FleetRun:
    from xenlab.fleet import engine
    from xenlab.runs.execute import wanted_chapters

    wanted = wanted_chapters(notebooks or notebooks_folder(), chapters or [], from_)
    return engine.begin(fleet, runs_folder(runs), mode, wanted, cli_lab.copy_console)


def _execute(todo: FleetRun, settings: Settings, quiet: bool) -> tuple[int, str]:
    """Run it, shown while it goes on; the exit status, and why not all was done."""
    from xenlab.fleet import engine
    from xenlab.fleet.view import View

    for host in todo.todo:
        cli_lab.introduce_guests(todo.fleet.sites[host])
    console = Terminal(quiet=True, force_terminal=False) if quiet else Terminal()
    states = {host: todo.record.hosts[host] for host in todo.todo}
    with View(console, states, todo.record.facts["chapters"]) as view:
        return engine.execute(todo, settings, view)


def _say_drift(record: Record, words: str) -> bool:
    """Say which steps of which hosts would change something; whether there are any."""
    found: dict[str, list[str]] = {}
    for host, state in record.hosts.items():
        for title in state.drift:
            found.setdefault(title, []).append(host)
    if found:
        say(f"\n{words} {len(found)} step{'s' * (len(found) > 1)}:")
    for title, hosts in found.items():
        say(f"  {title}: {', '.join(hosts)}")
    return bool(found)


def _finish(todo: FleetRun, code: int, problem: str) -> None:
    """Write the page, say where it is; end unless all hosts are done."""
    from xenlab.fleet import report as page

    record = todo.record
    done = sum(state.done for state in record.hosts.values())
    took = duration(sum(state.seconds for state in record.hosts.values()))
    say(f"\n{done} of {len(record.hosts)} hosts done, {took} in all")
    if any(state.run for state in record.hosts.values()):
        try:
            say(f"report: {page.write(record)}")
        except DiskFull as full:
            code, problem = code or 1, f"{problem}\n{full}".strip()
    if code:
        say(f"\n{problem}", "bold red", stderr=True)
        again = f"xenlab fleet run --resume -f {record.facts['file']}"
        if todo.mode == "apply":
            say(f"take it up again: {again}", stderr=True)
        raise typer.Exit(code)
