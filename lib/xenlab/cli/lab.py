"""The commands ``xenlab lab …``: the embedded lab, from the terminal."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from xenlab import durable
from xenlab.cli.terminal import Terminal
from xenlab.durable import free_place, kept_file
from xenlab.errors import BadInput, XenlabError

if TYPE_CHECKING:
    from xenlab.resources.base import Report
    from xenlab.runs.expected import Whole
    from xenlab.site.schema import Parameters
    from xenlab_lab.lab import Lab, Network, Status

DEFAULT_FILE = Path("parameters/lab.yaml")
DOM0 = "dom0"

app = typer.Typer(help="The embedded lab: a virtual machine that becomes a Xen host.")

Name = Annotated[str, typer.Option("--name", help="Which lab; several can run side by side.")]
File = Annotated[
    Path | None,
    typer.Option("-f", "--file", help=f"Where the guests' addresses stand.  [{DEFAULT_FILE}]"),
]
DomainArgument = Annotated[str, typer.Argument(metavar="[DOMAIN]", help="dom0 or a guest.")]


class WithCommand(TyperCommand):
    """A command whose words after ``--`` are another command's, none of them its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Set the words after ``--`` aside; the rest is parsed as usual."""
        own, rest = args, []
        if "--" in args:
            place = args.index("--")
            own, rest = args[:place], args[place + 1 :]
        ctx.meta["xenlab.command"] = rest
        return super().parse_args(ctx, own)


@app.command()
def up(
    name: Annotated[
        str, typer.Option("--name", help="Which lab.  [default: the one that the file names]")
    ] = "",
    file: File = None,
    open_network: Annotated[
        bool | None,
        typer.Option(
            "--open/--restricted",
            help="Its domains reach all that this machine reaches, or its package mirrors alone."
            "  [default: as before, restricted at first]",
        ),
    ] = None,
) -> None:
    """Build what is missing, start the machine, wait for SSH."""
    from xenlab.site import schema as parameters

    if file or DEFAULT_FILE.exists():
        site = parameters.load(file or DEFAULT_FILE)
    else:
        site = parameters.Parameters()
    from xenlab_lab.stage import maker

    guests = _addresses(site)
    with _reporting(_whole(site, name or site.lab)) as report:
        lab = _lab(name or site.lab, report)
        network: Network | None = None
        if open_network is not None:
            network = "open" if open_network else "restricted"
        status = lab.up(made=maker(site.stage), network=network)
        if guests and guests != status.guests:
            lab.set_guests(guests)
            status = lab.status()
    _print_status(status)


@app.command()
def down(
    name: Name = "lab",
    hard: Annotated[bool, typer.Option("--hard", help="Pull the plug.")] = False,
) -> None:
    """Shut the machine down."""
    with _reporting() as report:
        _lab(name, report).down(hard=hard)


@app.command()
def reset(name: Name = "lab") -> None:
    """Throw the disk away: the next `up` starts with an empty one."""
    with _reporting() as report:
        _lab(name, report).reset()


@app.command()
def status(
    name: Name = "lab", as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False
) -> None:
    """Say what the lab is doing."""
    found = _lab(name).status()
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        _print_status(found)
        _print_overview(found)


@app.command(cls=WithCommand)
def ssh(context: typer.Context, domain: DomainArgument = DOM0, name: Name = "lab") -> None:
    """Log in to dom0 or a guest, or run a command there: ssh [DOMAIN] [-- CMD…]."""
    argv = _lab(name).ssh_argv(domain, context.meta["xenlab.command"])
    # terminal, input and exit status are ssh's own from here on
    os.execvp(argv[0], argv)


@app.command()
def console(domain: DomainArgument = DOM0, name: Name = "lab") -> None:
    """Join the serial console of dom0, or a guest's Xen console; Ctrl-] leaves."""
    raise typer.Exit(_lab(name).attach(domain))


@app.command()
def snapshot(tag: str, name: Name = "lab") -> None:
    """Keep disk and memory of the running machine under a name."""
    with _reporting() as report:
        _lab(name, report).snapshot(tag)


@app.command()
def restore(tag: str, name: Name = "lab") -> None:
    """Go back to a snapshot and run on from there."""
    with _reporting() as report:
        status = _lab(name, report).restore(tag)
    _print_status(status)


@app.command()
def kernels(file: File = None) -> None:
    """Compile dom0's and the guests' kernel, ahead of the chapters that ask for them."""
    from xenlab.site import schema as parameters

    site = parameters.load(file or DEFAULT_FILE)
    if site.build_on != "controller":
        raise BadInput(f"build_on: {site.build_on}: this machine is not the one that compiles")
    from xenlab import cache
    from xenlab.chapters import kernel
    from xenlab.host import Host
    from xenlab.transport import local
    from xenlab.transport.local import Local

    mark = token_hex(16)
    host = Host(Local()).marked(mark)
    try:
        with local.ending_cleanly(), _reporting() as report:
            for flavour, name in cache.KERNELS.items():
                if not kernel.is_made(site, flavour, host):
                    with cache.phase_recorded(name):
                        kernel.make(site, flavour, host, report)
    except BaseException:
        # a build is detached: by its mark it is found, and ends with this command
        host.end_marked(mark)
        raise


@app.command()
def boot(source: Literal["disk", "rescue"], name: Name = "lab") -> None:
    """Start the machine afresh from its disk or from the rescue system."""
    with _reporting() as report:
        status = _lab(name, report).boot(source, wait=True)
    _print_status(status)


def overrides(name: str) -> dict[str, object]:
    """The parameters that name a lab: its way in and its disk's serial. Raises BadInput."""
    found = _lab(name).status()
    return {
        "lab": name,
        "ssh": {"host": DOM0, "config": str(found.ssh_config)},
        "may_wipe": [found.serial],
        "power": "lab",
    }


def introduce_guests(site: Parameters) -> list[str]:
    """Let the lab of a site know its guests; how to reach them, in lines for a person."""
    if site.power != "lab":
        return []
    lab = _lab(site.lab)
    guests = _addresses(site)
    if lab.status().running and lab.status().guests != guests:
        lab.set_guests(guests)
    option = "" if site.lab == "lab" else f" --name {site.lab}"
    config = lab.status().ssh_config
    return [
        "",
        f"dom0:   xenlab lab ssh{option} -- xl list",
        *(f"{name + ':':7} xenlab lab ssh {name}{option}" for name in guests),
        f"or:     ssh -F {config} {next(iter(guests), DOM0)}",
    ]


def keep_console(site: Parameters, folder: Path) -> None:
    """Copy the serial log of the site's lab into a run's folder, beside an earlier copy.

    Raises DiskFull.
    """
    if site.power != "lab":
        return
    log = _lab(site.lab).status().console_log
    if not log.exists():
        return
    shelf = kept_file(folder, "console")
    with durable.space(folder):
        shelf.mkdir(mode=0o700, exist_ok=True)
    durable.create(free_place(shelf, "dom0", ".log"), log.read_bytes())


def _lab(name: str, report: Report | None = None) -> Lab:
    # what speaks to QEMU is not imported to show a help text or to refuse a file
    from xenlab_lab.lab import Lab

    return Lab(name, report=report) if report else Lab(name)


def _addresses(site: Parameters) -> dict[str, str]:
    return {domain.name: domain.address.partition("/")[0] for domain in site.domains}


def _print_overview(status: Status) -> None:
    """What the Xen host has, where the lab runs one."""
    if not status.running or status.boot != "disk":
        return
    from xenlab.host import Host
    from xenlab.resources.xen import overview
    from xenlab.transport.ssh import SSH
    from xenlab.transport.ssh_config import Target

    with suppress(XenlabError):
        host = Host(SSH(Target(DOM0, str(status.ssh_config))))
        _print_facts(overview(host) or {})


def _print_status(status: Status) -> None:
    _print_facts(
        {
            "lab": status.name,
            "state": f"running (pid {status.pid})" if status.running else "off",
            "booted from": status.boot,
            "acceleration": status.accel or "",
            "network": status.network,
            "ssh": f"127.0.0.1:{status.port}" if status.port else "",
            "disk": f"{status.disk} (serial {status.serial})",
            "console log": str(status.console_log),
            "ssh config": str(status.ssh_config),
            "guests": ", ".join(f"{name} {address}" for name, address in status.guests.items()),
            "snapshots": ", ".join(status.snapshots),
        }
    )


def _print_facts(facts: Mapping[str, str]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", min_width=16)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        if value:
            table.add_row(key, Text(value))
    Terminal().print(table)


@contextmanager
def _reporting(whole: Whole | None = None) -> Iterator[Report]:
    """A region that shows what goes on, on a terminal; elsewhere a line for each thing."""
    from xenlab.chapter.card import duration
    from xenlab.runs.progress import Live

    console = Terminal(stderr=True)
    seen: dict[str, float] = {}

    def end() -> None:
        if seen and console.is_terminal:
            thing, begun = list(seen.items())[-1]
            live.end(thing, f"{escape(thing):26} {duration(time.monotonic() - begun):>23}")

    def report(what: str, done: float | None = None) -> None:
        thing, detail = re.match(r"([^:(]*)[:(]?\s*(.*)", what, re.DOTALL).groups()  # type: ignore[union-attr]
        thing = thing.strip()
        if thing not in seen:
            end()
            seen[thing] = time.monotonic()
            live.begin(thing, thing, None, thing)
        total = None if done is None else 1.0
        live.update(now=f"[dim]{escape(detail.rstrip(')')[:60])}", completed=done, total=total)

    with Live(console, whole) as live:
        yield report
        end()


def _whole(site: Parameters, name: str) -> Whole:
    """What starting the lab takes, and then its chapters, where `make lab` goes on with them."""
    from xenlab import cache
    from xenlab.runs import expected
    from xenlab.runs.expected import BEGAN

    now = _lab(name).status()
    parts = [] if now.running else cache.phases_of_start(now.boot, site.stage)
    notebooks = sorted(Path("notebooks").glob("[0-8]*.ipynb")) if BEGAN in os.environ else []
    return expected.of_lab(site, parts, [path.stem for path in notebooks], Path("runs"))
