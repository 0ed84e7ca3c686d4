"""A fleet of real sshds: steps a second and memory, beside Ansible and pyinfra on the same work.

    python bench/fleet.py [--hosts N] [--steps N] [--workers N ...] [--once] [--write]

Each host is an sshd in a network namespace of its own (root is needed), each step a file with a
mode, as chapter 05 has them. The tools take turns: each writes all files where there are none, and
then (unless ``--once``) again, when nothing is to do. What a tool takes to start counts, and
xenlab's journal is on. Memory is that of all processes of a tool on the controller at its most,
each page counted once (PSS); what sshd and the commands on the hosts take is not in it. ``--write``
keeps the figures in docs/figures/fleet.json. Ansible and pyinfra get a venv of their own in the
cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "lib"), str(ROOT)]

from bench.measure import machine  # noqa: E402
from tests.sites import BARE  # noqa: E402
from tests.ssh.conftest import Sshd, processes_with  # noqa: E402

from xenlab.cache import cache_root  # noqa: E402

MARK = "XENLAB_BENCH_FLEET"
TEXT = "".join(f"setting{n} = {n}\n" for n in range(20))
FORKS = 20
CASES = ("to do", "nothing to do")
TOOLS = ("ansible-core==2.19.*", "pyinfra==3.*")
FIGURES = ROOT / "docs" / "figures" / "fleet.json"
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Rack:
    """The hosts, what is to be made on each, and a folder for what the tools read."""

    folder: Path
    sshds: Sequence[Sshd]
    names: Sequence[str]

    def empty(self) -> None:
        """Take away what was made."""
        for sshd in self.sshds:
            shutil.rmtree(sshd.folder / "made", ignore_errors=True)
            (sshd.folder / "made").mkdir()

    def made(self) -> int:
        """How many of the files are there."""
        return sum(len(list((sshd.folder / "made").iterdir())) for sshd in self.sshds)


@dataclass(frozen=True)
class Tool:
    """One way to make the files: ``command`` is what a person types, on so many hosts."""

    name: str
    command: Sequence[str]
    hosts: int
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """How long a turn took; MiB and processes are those at its most."""

    seconds: float
    mib: float
    processes: int


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def racked(hosts: int, steps: int) -> Iterator[Rack]:
    """So many servers, each in a network namespace that only this machine reaches."""
    folder = Path(tempfile.mkdtemp(prefix="xf-"))
    made: list[tuple[str, Sshd]] = []

    def start(number: int) -> None:
        space, there = f"xf{number}", ("ip", "-n", f"xf{number}")
        near, far = (f"10.98.{number // 64}.{number % 64 * 4 + n}" for n in (1, 2))
        run("ip", "netns", "add", space)
        run("ip", "link", "add", f"xf{number}", "type", "veth", "peer", "eth0", "netns", space)
        run("ip", "address", "add", f"{near}/30", "dev", f"xf{number}")
        run("ip", "link", "set", f"xf{number}", "up")
        run(*there, "address", "add", f"{far}/30", "dev", "eth0")
        run(*there, "link", "set", "eth0", "up")
        enter = ("ip", "netns", "exec", space)
        made.append(
            (space, Sshd(folder / f"h{number}", alias=f"h{number}", before=enter, address=far))
        )

    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(start, range(hosts)))
        sshds = sorted((sshd for _, sshd in made), key=lambda sshd: int(sshd.alias[1:]))
        yield Rack(folder, sshds, [f"file{n:02}" for n in range(1, steps + 1)])
    finally:
        for space, sshd in made:
            sshd.stop()
            # the interface is gone with it
            run("ip", "netns", "del", space)
        shutil.rmtree(folder, ignore_errors=True)


def xenlab(rack: Rack, *workers: int) -> list[Tool]:
    """A chapter whose steps are the files: on one host, and on all with so many workers."""
    place = rack.folder / "notebooks"
    place.mkdir()
    parameters = new_code_cell(
        'site: str = "lab"  # name\nssh: dict = {}  # way\nsecrets: list = []  # masked\n'
        'disk: str = "/dev/vda"  # disk'
    )
    parameters.metadata["tags"] = ["parameters"]
    opening = (
        "from xenlab import File, open_chapter\n"
        'chapter = open_chapter("05_bench", globals())\n'
        f'folder, text = "{rack.folder}/" + site + "/made", {TEXT!r}'
    )
    steps = [
        f'chapter.ensure("05.{n} Write {name}", '
        f'File(folder + "/{name}", text, mode=0o640), on=chapter.host)'
        for n, name in enumerate(rack.names, start=1)
    ]
    cells = [new_code_cell(text) for text in (opening, *steps, "chapter.close()")]
    book = new_notebook(cells=[new_markdown_cell("# 05 Bench"), parameters, *cells])
    nbformat.write(book, place / "05_bench.ipynb")
    base = BARE | {"power": "manual", "may_wipe": []}
    (rack.folder / "base.yaml").write_text(yaml.safe_dump(base))
    hosts = {
        sshd.alias: {
            "ssh": {"config": str(sshd.config)},
            "address": f"10.0.2.{20 + n}/24",
            "domains": [
                {
                    "name": f"guest{n}",
                    "memory_mib": 320,
                    "mac": f"00:16:3e:00:00:{n:02x}",
                    "address": f"10.0.2.{130 + n}/24",
                }
            ],
        }
        for n, sshd in enumerate(rack.sshds)
    }
    file = rack.folder / "fleet.yaml"
    file.write_text(yaml.safe_dump({"fleet": "bench", "base": "base.yaml", "hosts": hosts}))
    words = [sys.executable, "-m", "xenlab", "fleet", "run", "-f", str(file), "--canary", "0", "-q"]
    words += ["--notebooks", str(place), "--runs", str(rack.folder / "runs")]
    environment = {"PYTHONPATH": str(ROOT / "lib")}
    one = Tool("xenlab fleet, one host", (*words, "--limit", "h0"), 1, environment)
    return [one] + [
        Tool(f"xenlab fleet, {n} at a time", (*words, "--workers", str(n)), len(hosts), environment)
        for n in workers
    ]


def ansible(rack: Rack, folder: Path) -> Tool:
    """A playbook whose tasks are the files; pipelining and shared connections, as people set it."""
    inventory, book = rack.folder / "hosts.ini", rack.folder / "play.yaml"
    lines = (
        f"{s.alias} ansible_ssh_common_args='-F {s.config}' made={s.folder}/made\n"
        for s in rack.sshds
    )
    inventory.write_text("".join(lines))
    tasks = [
        {"ansible.builtin.copy": {"dest": "{{ made }}/" + name, "content": TEXT, "mode": "0640"}}
        for name in rack.names
    ]
    book.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    (rack.folder / "ansible.cfg").touch()
    environment = {
        "ANSIBLE_CONFIG": str(rack.folder / "ansible.cfg"),
        "ANSIBLE_LOCAL_TEMP": str(rack.folder / "ansible"),
        "ANSIBLE_REMOTE_TEMP": "~/.ansible",
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_FORKS": str(FORKS),
        # a connection that stays for the next turn would spare that one its logins
        "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=5",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(rack.folder / "cp"),
        "ANSIBLE_PYTHON_INTERPRETER": shutil.which("python3", path="/usr/bin") or sys.executable,
        "LC_ALL": "C.UTF-8",
    }
    command = (str(folder / "bin" / "ansible-playbook"), "-i", str(inventory), str(book))
    return Tool(f"Ansible, forks {FORKS}", command, len(rack.sshds), environment)


def pyinfra(rack: Rack, folder: Path) -> Tool:
    """A deploy whose operations are the files, with as many hosts at a time as Ansible's forks."""
    inventory, deploy = rack.folder / "inventory.py", rack.folder / "deploy.py"
    hosts = [
        (
            s.alias,
            {
                "ssh_hostname": s.address,
                "ssh_port": s.port,
                "ssh_user": "root",
                "ssh_key": str(s.identity),
                "ssh_known_hosts_file": str(s.known_hosts),
                "made": f"{s.folder}/made",
            },
        )
        for s in rack.sshds
    ]
    inventory.write_text(f"hosts = {hosts!r}\n")
    deploy.write_text(
        "from io import StringIO\nfrom pyinfra import host\nfrom pyinfra.operations import files\n"
        f"for name in {list(rack.names)!r}:\n"
        f"    files.put(src=StringIO({TEXT!r}), dest=f'{{host.data.made}}/{{name}}', mode='640')\n"
    )
    command = (str(folder / "bin" / "pyinfra"), "-y", "--parallel", str(FORKS))
    return Tool(
        f"pyinfra, parallel {FORKS}", (*command, str(inventory), str(deploy)), len(rack.sshds)
    )


def measured(tool: Tool, rack: Rack) -> Seen:
    """Run it, and look at its processes meanwhile."""
    token, most, over = os.urandom(8).hex(), [(0.0, 0)], threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            mine = processes_with(f"{MARK}={token}")
            most.append((sum(map(_pss, mine)), len(mine)))

    watch = threading.Thread(target=look)
    watch.start()
    start = time.perf_counter()
    environment = {**os.environ, **tool.environment, MARK: token}
    try:
        done = subprocess.run(
            tool.command, cwd=rack.folder, env=environment, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
    finally:
        over.set()
        watch.join()
    said = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0 and rack.made() == tool.hosts * len(rack.names), said
    mib, processes = max(size for size, _ in most), max(count for _, count in most)
    return Seen(round(seconds, 1), round(mib), processes)


def _pss(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def compare(rack: Rack, tools: Sequence[Tool], wanted: Sequence[str]) -> dict[str, dict[str, Seen]]:
    """Each tool in its turn, on empty hosts and then on finished ones."""
    seen: dict[str, dict[str, Seen]] = {}
    for tool in tools:
        rack.empty()
        cases = seen[tool.name] = {}
        for case in wanted:
            cases[case] = measured(tool, rack)
            print(f"{tool.name}, {case}: {cases[case]}", flush=True)
    return seen


def table(rack: Rack, tools: Sequence[Tool], seen: dict[str, dict[str, Seen]]) -> Table:
    """A line for each tool and case."""
    shown = Table(title=f"{len(rack.sshds)} hosts, {len(rack.names)} steps each")
    for column in ("tool", "case", "seconds", "steps a second", "MiB", "processes"):
        shown.add_column(column, justify="left" if column in ("tool", "case") else "right")
    for tool in tools:
        for case, one in seen[tool.name].items():
            rate = tool.hosts * len(rack.names) / one.seconds
            numbers = (f"{one.seconds}", f"{rate:.1f}", f"{one.mib}", f"{one.processes}")
            shown.add_row(tool.name, case, *numbers)
    return shown


def figures(
    rack: Rack, tools: Sequence[Tool], seen: dict[str, dict[str, Seen]], load: float
) -> dict[str, object]:
    """What is kept: each turn, the machine, and how many processes it ran before that."""
    words = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    revision = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    return {
        "command": " ".join(["python", "bench/fleet.py", *sys.argv[1:]]),
        "measured": datetime.now(UTC).date().isoformat(),
        "revision": revision,
        "machine": machine("kvm" if os.access("/dev/kvm", os.W_OK) else "tcg"),
        "load before": round(load, 1),
        "hosts": len(rack.sshds),
        "steps of each": len(rack.names),
        "tools": {
            tool.name: {
                "hosts": tool.hosts,
                **{
                    case: asdict(one)
                    | {"steps a second": round(tool.hosts * len(rack.names) / one.seconds, 1)}
                    for case, one in seen[tool.name].items()
                },
            }
            for tool in tools
        },
    }


def others() -> Path:
    """A venv with Ansible and pyinfra, made where there is none yet."""
    folder = cache_root() / "bench-fleet"
    if not (folder / "bin" / "pyinfra").exists():
        venv.create(folder, clear=True, with_pip=True)
        run(str(folder / "bin" / "pip"), "install", "--quiet", *TOOLS)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[FORKS, 2])
    parser.add_argument("--once", action="store_true", help="not again when nothing is to do")
    parser.add_argument("--alone", action="store_true", help="xenlab alone")
    parser.add_argument("--write", action="store_true", help="keep the figures")
    options = parser.parse_args()
    folder = None if options.alone else others()
    load = os.getloadavg()[0]
    with racked(options.hosts, options.steps) as rack:
        tools = xenlab(rack, *options.workers)
        if folder is not None:
            tools += [ansible(rack, folder), pyinfra(rack, folder)]
        seen = compare(rack, tools, CASES[:1] if options.once else CASES)
        Console().print(table(rack, tools, seen))
        if options.write:
            found = figures(rack, tools, seen, load)
            FIGURES.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
