"""What a login, a step and a file cost at the end of a long line: 200 ms, then with 5 % loss.

    python bench/far.py [--delay SECONDS] [--loss PERCENT] [--turns N]

Needs root: this process and a real sshd get a network namespace each, with a line between them
that `tc netem` makes slow, or `bench/line.py` where the kernel has no sch_netem. The tables show
medians, and how many round trips a thing costs beyond those of its own commands, with what it takes
over the same line without a delay taken off.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "lib"), str(ROOT)]

from tests.sites import lab_site  # noqa: E402
from tests.ssh.conftest import Sshd  # noqa: E402

from xenlab.chapter.chapter import Chapter  # noqa: E402
from xenlab.chapter.machine_lock import Hold  # noqa: E402
from xenlab.command import Command  # noqa: E402
from xenlab.host import Host  # noqa: E402
from xenlab.journal import Journal  # noqa: E402
from xenlab.resources.base import Difference, Report, Resource  # noqa: E402
from xenlab.site.schema import Ssh  # noqa: E402
from xenlab.transport.ssh import SSH  # noqa: E402

NEAR, FAR = "192.0.2.1", "192.0.2.2"
MOST_SECONDS = 120.0
"""After so long no further turn is begun."""


@dataclass(frozen=True)
class Folder(Resource):
    """A folder: one command to look, one to make it, one to look again."""

    path: Path

    def probe(self, host: Host) -> Difference | None:
        """One command."""
        there = host.test(Command.argv("test", "-d", self.path))
        return None if there else Difference("make it")

    def commands(self) -> tuple[Command, ...]:
        """One command."""
        return (Command.argv("mkdir", self.path),)


@dataclass(frozen=True)
class Copy(Resource):
    """A file of this machine: one command to look, the copy itself, one to look again."""

    source: Path
    path: Path

    def probe(self, host: Host) -> Difference | None:
        """One command."""
        there = host.test(Command.argv("test", "-s", self.path))
        return None if there else Difference("copy it")

    def apply(self, host: Host, report: Report) -> None:
        """One command."""
        host.upload(self.source, str(self.path))


@contextmanager
def line(delay: float, loss: float) -> Iterator[tuple[int, str]]:
    """A process in the namespace at the other end, and what makes the line slow."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None and holder.stdout.read(1) == b"\n"
        there = ("nsenter", f"--net=/proc/{holder.pid}/ns/net")
        run("ip", "link", "add", "near", "type", "veth", "peer", "far", "netns", str(holder.pid))
        rule = ("root", "netem", "delay", f"{delay / 2}s", "loss", f"{loss}%", "limit", "100000")
        netem = ("tc", "qdisc", "add", "dev", "near", *rule)
        by, process = "tc netem", 0
        if subprocess.run(netem, capture_output=True).returncode:
            by = "bench/line.py, since this kernel has no sch_netem"
            run("ip", "link", "del", "near")
            words = (sys.executable, str(ROOT / "bench/line.py"), "near", "far")
            process = int(run(*words, str(delay / 2), str(loss)))
            run("ip", "link", "set", "far", "netns", str(holder.pid))
        else:
            run(*there, "tc", "qdisc", "add", "dev", "far", *rule)
        for enter, name, address in (((), "near", NEAR), (there, "far", FAR)):
            run(*enter, "ip", "address", "add", f"{address}/24", "dev", name)
            run(*enter, "ip", "link", "set", name, "txqueuelen", "100000", "up")
            run(*enter, "ip", "link", "set", "lo", "up")
        try:
            yield holder.pid, by
        finally:
            if process:
                os.kill(process, signal.SIGKILL)
            else:
                run("ip", "link", "del", "near")
            holder.kill()


def run(*words: str) -> str:
    """What a command says."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def costs(sshd: Sshd, folder: Path, turns: int) -> dict[str, tuple[int, float]]:
    """Of each thing: how many commands it has, and how many seconds it takes."""
    site = lab_site(ssh=Ssh(host=sshd.alias, config=str(sshd.config)))

    def login(_: int) -> None:
        ssh = SSH(sshd.target, connect_timeout=120)
        ssh.connect()
        ssh.close()

    def steps(hold: Hold, make: Callable[[int], Resource], times: int = turns) -> float:
        chapter = Chapter("05_base", site, Journal(Path(tempfile.mkdtemp(dir=folder))), hold=hold)
        cost = seconds(
            lambda turn: chapter.ensure("05.1 Measure", make(turn), on=chapter.host), times
        )
        chapter.close()
        return cost

    def copy(size: int, times: int) -> float:
        source = folder / f"of-{size}"
        source.write_bytes(os.urandom(size))
        return steps(Hold.CHAPTER, lambda turn: Copy(source, Path(f"{source}-{turn}")), times)

    return {
        "a login": (0, seconds(login, turns)),
        "a step with nothing to do": (1, steps(Hold.CHAPTER, lambda _: Folder(folder))),
        "a step with one change, in a run": (
            3,
            steps(Hold.CHAPTER, lambda turn: Folder(folder / f"run-{turn}")),
        ),
        "a step with one change, by itself": (
            3,
            steps(Hold.STEP, lambda turn: Folder(folder / f"alone-{turn}")),
        ),
        "a step that copies 1 KiB": (3, copy(1 << 10, turns)),
        "a step that copies 20 MiB": (3, copy(20 << 20, min(turns, 3))),
    }


def seconds(act: Callable[[int], object], turns: int) -> float:
    """The median of several turns."""
    found: list[float] = []
    while len(found) < turns and sum(found) < MOST_SECONDS:
        start = time.perf_counter()
        act(len(found))
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def measured(delay: float, loss: float, turns: int) -> tuple[str, dict[str, tuple[int, float]]]:
    """What makes the line slow, and what things cost over it."""
    folder = Path(tempfile.mkdtemp(prefix="xf-", dir="/tmp"))
    try:
        with line(delay, loss) as (there, by):
            before = ("nsenter", f"--net=/proc/{there}/ns/net")
            sshd = Sshd(folder / "sshd", before=before, address=FAR)
            try:
                return by, costs(sshd, folder, turns)
            finally:
                sshd.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--delay", type=float, default=0.2, help="of a round trip, in seconds")
    parser.add_argument("--loss", type=float, default=5.0, help="of a hundred packets, each way")
    parser.add_argument("--turns", type=int, default=9, help="of which the median is shown")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        if os.geteuid() != 0:
            sys.exit("bench/far.py: cannot make network namespaces: because only root may")
        return subprocess.run(
            ["unshare", "--net", sys.executable, *sys.argv, "--inside"], check=False
        ).returncode
    console = Console()
    _, near = measured(0.0, 0.0, options.turns)
    for loss in (0.0, options.loss):
        by, found = measured(options.delay, loss, options.turns)
        title = f"round trip {options.delay * 1000:.0f} ms, {loss:g} % loss each way, by {by}"
        table = Table(title=title)
        table.add_column("what", no_wrap=True)
        for name in ("seconds", "without a delay", "commands", "round trips beyond these"):
            table.add_column(name, justify="right")
        for what, (commands, cost) in found.items():
            here = near[what][1]
            beyond = f"{(cost - here) / options.delay - commands:.1f}"
            table.add_row(what, f"{cost:.2f}", f"{here:.2f}", str(commands), beyond)
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
