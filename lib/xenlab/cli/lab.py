"""The commands ``xenlab lab …``: the embedded lab, from the terminal."""

from __future__ import annotations

import os
import re
import sys
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
from xenlab.cache import DEFAULT_RELEASE, Release
from xenlab.cli.runs import Json
from xenlab.cli.terminal import Commands, Terminal, confirm, find_site, print_json, site_file, table
from xenlab.command import Command
from xenlab.durable import free_place, kept_folder
from xenlab.errors import BadInput, XenlabError
from xenlab.masking import mask_bytes

if TYPE_CHECKING:
    from xenlab.resources.base import Report
    from xenlab.runs.expected import Estimate
    from xenlab.site.schema import Parameters
    from xenlab_lab.hardware import Hardware
    from xenlab_lab.lab import Lab, Network, Status

DOM0 = "dom0"

ANY_LAB = {
    "site": "lab",
    "power": "lab",
    "lab": "lab",
    "release": DEFAULT_RELEASE,
    "stage": "",
    "kernel_source": "",
    "build_on": "controller",
    "kernel": "build",
}
"""What starting a lab asks a site for, where no file was given."""


def _renamed(word: str) -> str:
    """``--name`` is what ``--lab`` was called before."""
    return "lab" if word == "name" else word


app = typer.Typer(
    cls=Commands,
    help="Manage the embedded lab: a virtual machine that becomes a Xen host.",
    no_args_is_help=True,
    context_settings={"token_normalize_func": _renamed},
)

Name = Annotated[str, typer.Option("--lab", help="Which lab; several can run side by side.")]
File = Annotated[
    Path | None,
    typer.Option(
        "-f",
        "--file",
        help="The site's file.  [default: $XENLAB_SITE, xenlab.toml, or the only one here]",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Delete without asking.")]
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
        str,
        typer.Option("--lab", help="Which lab.  [default: the one that the file names, or lab]"),
    ] = "",
    file: File = None,
    open_network: Annotated[
        bool | None,
        typer.Option(
            "--open/--restricted",
            help="Let domains reach all that this machine reaches, or its package mirrors alone."
            "  [default: as before, restricted at first]",
        ),
    ] = None,
    hardware: Annotated[
        Path | None,
        typer.Option(
            "--hardware",
            metavar="FILE",
            help="What the machine is made of, until a reset: firmware, disk, network cards,"
            " memory.",
        ),
    ] = None,
) -> None:
    """Build what is missing, start the machine, wait for SSH."""
    site, known = _site_of_lab(file)
    parts = _hardware(hardware) if hardware else None
    from xenlab_lab.stage import fetch_source, maker

    guests = _addresses(site) if known else {}
    with _reporting(_estimate(site, name or site.lab)) as report:
        fetch_source(_sources(site), report)
        lab = _lab(name or site.lab, report)
        network: Network | None = None
        if open_network is not None:
            network = "open" if open_network else "restricted"
        firmware = site.firmware if known else None
        status = lab.up(
            make_stage=maker(site.stage), network=network, firmware=firmware, hardware=parts
        )
        if guests and guests != status.guests:
            lab.set_guests(guests)
            status = lab.status()
    _print_status(status)


@app.command()
def down(
    name: Name = "lab",
    hard: Annotated[bool, typer.Option("--hard", help="Cut its power at once.")] = False,
) -> None:
    """Shut the machine down."""
    with _reporting() as report:
        _lab(name, report).down(hard=hard)


@app.command()
def reset(name: Name = "lab", yes: Yes = False) -> None:
    """Delete the disk: the next `up` starts with an empty one."""
    _lab(name)
    confirm(name, f"the disk of the lab {name!r}", f"xenlab lab reset --lab {name}", yes=yes)
    with _reporting() as report:
        _lab(name, report).reset()


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which lab.")], yes: Yes = False
) -> None:
    """Stop a lab and delete all of it: disk, snapshots, keys."""
    if not _lab(name).folder.is_dir():
        raise BadInput(
            f"cannot remove the lab {name!r}: because there is none", hint="xenlab lab list"
        )
    confirm(name, f"the lab {name!r} with its disk", f"xenlab lab remove {name}", yes=yes)
    with _reporting() as report:
        _lab(name, report).remove()


@app.command("list")
def list_labs(as_json: Json = False) -> None:
    """List all labs with their state and what their disks take here."""
    from xenlab.durable import mib

    labs = _labs()
    if as_json:
        print_json(labs)
        return
    listed = table("lab", "state", "disk")
    for lab in labs:
        listed.add_row(lab["name"], lab["state"], mib(lab["disk_bytes"]))
    Terminal().print(listed if labs else "there is no lab yet")


@app.command()
def status(name: Name = "lab", as_json: Json = False) -> None:
    """Show what the lab is doing."""
    found = _lab(name).status()
    if as_json:
        print_json(found.model_dump(mode="json"))
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
    """Attach to the serial console of dom0, or a guest's Xen console; Ctrl-] leaves."""
    raise typer.Exit(_lab(name).attach(domain))


@app.command()
def snapshot(tag: str, name: Name = "lab") -> None:
    """Save disk and memory of the running machine under a name."""
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
    from xenlab.site.rules import builds_kernel

    site = parameters.load(site_file(file))
    if not builds_kernel(site):
        print("nothing to compile: the site has kernel: distribution")
        return
    if site.build_on != "controller":
        raise BadInput(
            f"cannot compile kernels here: because the site has build_on: {site.build_on}",
            hint="build_on: controller",
        )
    from xenlab import cache
    from xenlab.chapters import kernel
    from xenlab.host import Host
    from xenlab.transport import local
    from xenlab.transport.local import Local
    from xenlab_lab.stage import fetch_source

    mark = token_hex(16)
    host = Host(Local()).marked(mark)
    try:
        with local.ending_cleanly(), _reporting() as report:
            fetch_source(site.kernel_source, report)
            for flavour, name in cache.KERNELS.items():
                if kernel.kernel_build(site, flavour).manifest(host) is None:
                    with cache.phase_recorded(name):
                        kernel.make(site, flavour, host, report)
    except BaseException:
        # a build is detached: by its mark it is found, and ends with this command
        host.end_marked(mark)
        raise


@app.command()
def stage(
    suite: Annotated[
        Release, typer.Option("--release", help="Which release of Debian.")
    ] = DEFAULT_RELEASE,
) -> None:
    """Build Debian's root as a tarball and fetch the kernel's sources; start no machine."""
    from xenlab_lab.stage import kernel_source
    from xenlab_lab.stage import stage as debian

    with _reporting() as report:
        made = *debian(report, suite), *kernel_source(suite, report)
    keys = ("stage", "stage_checksums", "kernel_source", "kernel_checksums")
    print("\n".join(f"{key}: {path}" for key, path in zip(keys, made, strict=True)))


@app.command()
def boot(source: Literal["disk", "rescue"], name: Name = "lab") -> None:
    """Restart the machine from its disk or from the rescue system."""
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
    option = "" if site.lab == "lab" else f" --lab {site.lab}"
    config = lab.status().ssh_config
    return [
        "",
        f"dom0:   xenlab lab ssh{option} -- xl list",
        *(f"{name + ':':7} xenlab lab ssh {name}{option}" for name in guests),
        f"or:     ssh -F {config} {next(iter(guests), DOM0)}",
    ]


def copy_console(site: Parameters, folder: Path) -> None:
    """Copy the serial log of the site's lab, masked, into a run's folder, beside an earlier copy.

    Raises DiskFull, BadInput where a declared secret cannot be read any more.
    """
    from xenlab.chapter.recorder import discover_secrets

    if site.power != "lab":
        return
    log = _lab(site.lab).status().console_log
    if not log.exists():
        return
    shelf = kept_folder(folder, "console")
    secrets = discover_secrets(site.ssh.identity, site.masked)
    durable.create(free_place(shelf, "dom0", ".log"), mask_bytes(log.read_bytes(), secrets))


def _lab(name: str, report: Report | None = None) -> Lab:
    # what speaks to QEMU is not imported to show a help text or to refuse a file
    from xenlab_lab.lab import Lab

    return Lab(name, report=report) if report else Lab(name)


def _hardware(file: Path) -> Hardware:
    """The hardware that a file names; raises BadInput with a sentence for each problem."""
    from pydantic import ValidationError

    from xenlab.site import loader
    from xenlab_lab.hardware import Hardware

    found = loader.read(file)
    try:
        return Hardware.model_validate(found.values)
    except ValidationError as error:
        problems = loader.format_validation_errors(error, Hardware, found.origins)
        raise BadInput("; ".join(problems), where=str(file)) from None


def left_here(runs: Path) -> Iterator[tuple[str, str, str]]:
    """What xenlab has left on this machine: what, its size where that can be told, what removes it.

    ``runs`` is the folder of the run folders.
    """
    from xenlab.cache import cache_root
    from xenlab.durable import mib

    for lab in _labs():
        yield f"the lab {lab['name']}", mib(lab["disk_bytes"]), f"xenlab lab remove {lab['name']}"
    root, environment = cache_root(), Path(sys.prefix)
    folders = {
        "kernels, stage, rescue system, labs": root,
        "run folders": runs,
        "Python packages": environment,
    }
    for what, folder in folders.items():
        if folder.is_dir() and (folder != environment or sys.prefix != sys.base_prefix):
            taken = sum(p.lstat().st_blocks for p in folder.rglob("*")) * 512
            yield what, mib(taken), Command.argv("rm", "-rf", folder.absolute()).text
    packages = root / "packages"
    if packages.exists():
        names = dict.fromkeys(packages.read_text().split())
        yield "Debian packages", "", Command.argv("apt-get", "remove", *names).text
    if Path("/etc/systemd/system/ssh.service").is_symlink():
        yield "ssh.service, masked", "", "systemctl unmask ssh.service ssh.socket"
    yield "keys pinned for a machine of your own", "", "ssh-keygen -R HOST -f FILE"


def _labs() -> list[dict[str, Any]]:
    """All labs in the cache, by name: each one's state, and how many bytes its disk takes."""
    from xenlab.cache import cache_root

    found = []
    for folder in sorted((cache_root() / "labs").glob("[!.]*/")):
        # what is called otherwise was put there by somebody else
        with suppress(BadInput):
            lab = _lab(folder.name)
            disk = lab.machine.disk
            try:
                state = "running" if lab.status().running else "off"
            except XenlabError:
                state = "damaged"
            taken = disk.stat().st_blocks * 512 if disk.exists() else 0
            found.append({"name": lab.name, "state": state, "disk_bytes": taken})
    return found


def _site_of_lab(file: Path | None) -> tuple[Parameters, bool]:
    """The site of the lab that is started, and whether a file says so; else what all labs have.

    A file that was not named counts where its machine is the lab.
    """
    from xenlab.site import schema as parameters

    found = find_site(file)
    if found is not None:
        site = parameters.load(found)
        if file or site.power == "lab":
            return site, True
    return parameters.part(ANY_LAB, "the lab"), False


def _sources(site: Parameters) -> str:
    """The kernel sources that a site needs, "" for none."""
    from xenlab.site.rules import builds_kernel

    return site.kernel_source if builds_kernel(site) else ""


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
        print_facts(overview(host) or {})


def _print_status(status: Status) -> None:
    print_facts(
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


def print_facts(facts: Mapping[str, str]) -> None:
    """Print facts of a machine, a line each; those without a value are left out."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", min_width=16)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        if value:
            table.add_row(key, Text(value))
    Terminal().print(table)


@contextmanager
def _reporting(estimate: Estimate | None = None) -> Iterator[Report]:
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

    with Live(console, estimate) as live:
        yield report
        end()


def _estimate(site: Parameters, name: str) -> Estimate:
    """What starting the lab takes, and then its chapters, where `make lab` goes on with them."""
    from xenlab import cache
    from xenlab.runs import expected
    from xenlab.runs.execute import chapter_notebooks
    from xenlab.runs.expected import BEGAN

    now = _lab(name).status()
    phases = [] if now.running else cache.phases_of_start(now.boot, site.stage, _sources(site))
    chapters = [*chapter_notebooks(Path("notebooks"))] if BEGAN in os.environ else []
    return expected.estimate(site, chapters, Path("runs"), phases)
