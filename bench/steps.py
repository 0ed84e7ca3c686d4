"""What one step costs: 20 probes over a warm connection, side by side with other tools.

    python bench/steps.py [--runs N] [--check]

A real sshd is started on the loopback interface, each tool connects once, and then all of them
take turns, so that whatever else the machine does hits all alike. The table shows medians. The
promise that ``--check`` holds xenlab to (exit status 1 otherwise): a step, with its records
hashed, costs at most 1.45 times a bare paramiko command.
"""

from __future__ import annotations

import argparse
import getpass
import importlib.util
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import paramiko
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "lib"), str(ROOT)]

from tests.sites import lab_site  # noqa: E402
from tests.ssh.conftest import Sshd  # noqa: E402

from xenlab.chapter.chapter import Chapter  # noqa: E402
from xenlab.host import Host  # noqa: E402
from xenlab.journal import Journal, verify  # noqa: E402
from xenlab.resources.base import Difference, Report, Resource  # noqa: E402
from xenlab.site.schema import Ssh  # noqa: E402
from xenlab.transport.ssh import SSH  # noqa: E402

STEPS = 20
PROBE = "test -e /proc/self"
FACTOR = 1.45


@dataclass
class Way:
    """One way to run the probes: ``measure`` returns the seconds that STEPS of them took."""

    name: str
    note: str
    measure: Callable[[], float]
    close: Callable[[], None] = lambda: None
    slow: bool = False


@dataclass(frozen=True)
class Probe(Resource):
    """A state that already holds, so that a step consists of looking and recording."""

    def probe(self, host: Host) -> Difference | None:
        """One trivial command."""
        host.run(PROBE)
        return None

    def apply(self, host: Host, report: Report) -> None:
        """Never needed."""


def timed(act: Callable[[int], object]) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        for number in range(STEPS):
            act(number)
        return time.perf_counter() - start

    return measure


def bare_paramiko(sshd: Sshd) -> Way:
    link = socket.create_connection(("127.0.0.1", sshd.port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = paramiko.Transport(link)
    transport.connect(
        username=getpass.getuser(),
        pkey=paramiko.Ed25519Key.from_private_key_file(str(sshd.identity)),
    )

    def act(_: int) -> None:
        channel = transport.open_session()
        channel.exec_command(PROBE)
        channel.makefile("rb").read()
        assert channel.recv_exit_status() == 0
        channel.close()

    return Way("paramiko, bare", "TCP_NODELAY, one channel a command", timed(act), transport.close)


def xenlab_step(sshd: Sshd, folder: Path) -> Way:
    ssh = Ssh(host=sshd.alias, config=str(sshd.config))
    site = lab_site(ssh=ssh)
    journal = Journal(folder / "run")
    chapter = Chapter("00_ingredients", site, journal)

    def act(number: int) -> None:
        chapter.ensure(f"00.{number + 1} Look", Probe(), on=chapter.host)

    def close() -> None:
        chapter.close()
        verify(journal.path)

    note = "a look in the shell that stays, journal hashed"
    return Way("xenlab, step", note, timed(act), close)


def xenlab_command(sshd: Sshd) -> Way:
    host = Host(SSH(sshd.target))
    host.transport.connect()
    note = "a shell of its own, as a change has"
    return Way("xenlab, Host.run", note, timed(lambda _: host.run(PROBE)), host.transport.close)


def disk(folder: Path) -> Way:
    """What the journal's promise to be on disk costs by itself: a line and its fsync."""
    file = (folder / "lines").open("ab", buffering=0)

    def act(_: int) -> None:
        file.write(b"x" * 400 + b"\n")
        os.fsync(file.fileno())

    return Way("a line and fsync", "no command: this disk alone", timed(act), file.close)


def openssh(sshd: Sshd, folder: Path) -> Way:
    sharing = ["-o", "ControlMaster=auto", "-o", f"ControlPath={folder}/c", "-F", str(sshd.config)]
    command = ["ssh", *sharing, "-o", "ControlPersist=600", sshd.alias]

    def close() -> None:
        subprocess.run(["ssh", *sharing, "-O", "exit", sshd.alias], capture_output=True)

    def act(_: int) -> None:
        subprocess.run([*command, PROBE], check=True, stdin=subprocess.DEVNULL, capture_output=True)

    return Way("OpenSSH", "ControlMaster, one process a command", timed(act), close)


def fabric(sshd: Sshd) -> Way:
    from fabric import Config, Connection

    config = Config(runtime_ssh_path=str(sshd.config))
    connection = Connection(sshd.alias, config=config)
    connection.open()
    act = timed(lambda _: connection.run(PROBE, hide=True, in_stream=False))
    return Way("Fabric", "", act, connection.close)


def ansible(sshd: Sshd, folder: Path, module: str, note: str) -> Way:
    """A playbook of 20 further tasks against one of a single task: start-up is not counted."""
    settings = folder / "ansible.cfg"
    settings.touch()
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(settings),
        "ANSIBLE_LOCAL_TEMP": str(folder / "ansible"),
        "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_SSH_ARGS": f"-F {sshd.config} -o ControlMaster=auto -o ControlPersist=600",
        "ANSIBLE_SSH_CONTROL_PATH": str(folder / "a"),
        "ANSIBLE_PYTHON_INTERPRETER": shutil.which("python3", path="/usr/bin") or sys.executable,
        "LC_ALL": "C.UTF-8",
    }
    program = str(Path(sys.executable).with_name("ansible-playbook"))

    def play(tasks: int) -> float:
        chapter = folder / f"{module}{tasks}.yml"
        task = f"    - ansible.builtin.{module}: {PROBE}\n"
        chapter.write_text(f"- hosts: all\n  gather_facts: false\n  tasks:\n{task * tasks}")
        start = time.perf_counter()
        command = [program, "-i", f"{sshd.alias},", str(chapter)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return time.perf_counter() - start

    def close() -> None:
        command = ["ssh", "-F", str(sshd.config), "-o", f"ControlPath={folder}/a", "-O", "exit"]
        subprocess.run([*command, sshd.alias], capture_output=True)

    return Way(f"Ansible, {module}", note, lambda: play(STEPS + 1) - play(1), close, slow=True)


def ways(sshd: Sshd, folder: Path) -> list[Way]:
    found = [
        bare_paramiko(sshd),
        xenlab_command(sshd),
        xenlab_step(sshd, folder),
        disk(folder),
        openssh(sshd, folder),
    ]
    if importlib.util.find_spec("fabric"):
        found.append(fabric(sshd))
    if Path(sys.executable).with_name("ansible-playbook").exists():
        found.append(ansible(sshd, folder, "raw", "ControlPersist"))
        found.append(ansible(sshd, folder, "command", "ControlPersist, pipelining"))
    return found


def medians(found: list[Way], runs: int) -> dict[str, float]:
    """Milliseconds a step of each way, all ways taking turns."""
    for way in found:
        if not way.slow:
            way.measure()
    seconds: dict[str, list[float]] = {way.name: [] for way in found}
    for run in track(range(runs), "measuring", transient=True):
        for way in found:
            # A playbook takes seconds; a few turns tell as much.
            if not way.slow or run % max(1, runs // 3) == 0:
                seconds[way.name].append(way.measure())
    return {name: statistics.median(values) / STEPS * 1000 for name, values in seconds.items()}


def show(found: list[Way], costs: dict[str, float]) -> bool:
    """Print the table; whether the promise is kept."""
    bare, ours = costs["paramiko, bare"], costs["xenlab, step"]
    table = Table(title=f"{STEPS} probes over a warm connection to a real sshd, medians")
    table.add_column("way")
    table.add_column("ms a step", justify="right")
    table.add_column("of bare paramiko", justify="right")
    table.add_column("how", style="dim")
    for way in found:
        cost = costs[way.name]
        style = "bold" if way.name.startswith("xenlab") else ""
        table.add_row(way.name, f"{cost:.1f}", f"{cost / bare:.2f} x", way.note, style=style)
    console = Console()
    console.print(table)
    limit = FACTOR * bare
    kept = ours <= limit
    verdict = "kept" if kept else "BROKEN"
    console.print(
        f"promise {verdict}: a step costs {ours:.1f} ms, "
        f"at most {FACTOR} x {bare:.1f} = {limit:.1f} ms"
    )
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=15, help="turns of each way (default 15)")
    parser.add_argument("--check", action="store_true", help="exit 1 if the promise is broken")
    options = parser.parse_args()
    # Short: the path of a control socket has at most 108 characters.
    folder = Path(tempfile.mkdtemp(prefix="xs-", dir="/tmp"))
    sshd = Sshd(folder / "sshd")
    found: list[Way] = []
    try:
        found = ways(sshd, folder)
        kept = show(found, medians(found, options.runs))
    finally:
        for way in found:
            way.close()
        sshd.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if options.check and not kept else 0


if __name__ == "__main__":
    sys.exit(main())
