"""What goes wrong with a host, a worker or the controller costs no other host anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.fleet.rack import SECONDS, Rack
from tests.smalldisk import fill, small_disk
from tests.ssh.conftest import descendants, free_port, kill, wait_until
from tests.ssh.small import one_line

from xenlab.journal import Journal
from xenlab.runs import audit

pytestmark = pytest.mark.timeout(4 * SECONDS)

RUN = ("fleet", "run", "-f", "fleet.yaml", "--canary", "0")
WAITS = 'until [ -e "$1.go" ]; do sleep 0.1; done; echo made >> "$1"'


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes of a fleet's local cluster that do the work."""
    return [
        pid
        for pid in descendants(process.pid)
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def at_work(rack: Rack, *hosts: int, step: str = "02.1") -> Callable[[], bool]:
    """Whether the command of a step runs on each of these hosts."""

    def runs_on(host: int) -> bool:
        names = os.fsencode(rack.made(step, host))
        for process in rack.sshds[host].marked():
            with suppress(OSError):
                if names in Path(f"/proc/{process}/cmdline").read_bytes():
                    return True
        return False

    return lambda: all(map(runs_on, hosts))


def two_chapters(make_rack: Callable[[int], Rack], count: int) -> Rack:
    """Hosts on which the second chapter waits for a word (`go`)."""
    rack = make_rack(count)
    rack.patience = SECONDS
    rack.write()
    rack.chapter("01_first", *rack.steps_for("01"))
    rack.chapter("02_second", *rack.steps_for("02", script=WAITS))
    return rack


def go(rack: Rack, *hosts: int) -> None:
    """Let the second chapter of these hosts go on."""
    for host in hosts:
        Path(f"{rack.made('02.1', host)}.go").touch()


def taken_up(rack: Rack, *words: str) -> None:
    """Every host is done after this, and its step was done once."""
    done = rack.xenlab("fleet", "run", "-f", "fleet.yaml", "--resume", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    for number in range(len(rack.sshds)):
        assert rack.statuses()[number] == "done"
        assert rack.made("02.1", number).read_text() == "made\n"
        assert len(list(rack.runs.glob(f"*-host{number}"))) == 1
        assert audit.inspect(rack.run_of(number)).problems == ()


def test_the_host_of_a_killed_worker_is_unknown_and_taken_up_by_another(
    make_rack: Callable[[int], Rack],
) -> None:
    rack = two_chapters(make_rack, 4)
    process = rack.start(*RUN, "--workers", "2")
    wait_until(at_work(rack, 0, 1), SECONDS)
    # the one that has host0, as its journal is open there
    journal = next(rack.runs.glob("*-host0"))
    (worker,) = (pid for pid in workers_of(process) if _holds(pid, journal / "run.lock"))
    kill(worker)
    go(rack, 1, 2, 3)
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, out
    assert rack.statuses() == ["unknown", "done", "done", "done"], out
    assert "host0: unknown" in out and "xenlab fleet run --resume" in out
    # the command that the dead worker gave goes on there, and is waited for
    assert at_work(rack, 0)()
    opened = len(Journal(journal).records())
    again = rack.start(*RUN, "--resume")
    wait_until(lambda: len(Journal(journal).records()) > opened, SECONDS)
    go(rack, 0)
    out, _ = again.communicate(timeout=SECONDS)
    assert again.returncode == 0, out
    # the second worker found it done
    assert rack.ended(0) == [("01.1", "changed"), ("02.1", "aborted"), ("02.1", "ok")]
    taken_up(rack)


def _holds(process: int, file: Path) -> bool:
    return any(
        os.path.realpath(each) == str(file) for each in Path(f"/proc/{process}/fd").iterdir()
    )


def test_the_hosts_of_a_killed_controller_are_unknown_and_taken_up(
    make_rack: Callable[[int], Rack],
) -> None:
    rack = two_chapters(make_rack, 3)
    process = rack.start(*RUN, "--workers", "2")
    wait_until(at_work(rack, 0, 1), SECONDS)
    said = json.loads(rack.xenlab("fleet", "status", "-f", "fleet.yaml", "--json").stdout)
    assert [each["status"] for each in said["hosts"].values()] == ["running"] * 2 + ["not run"]
    # Dask's scheduler is a part of it, and its workers do not outlive it
    process.kill()
    process.communicate(timeout=SECONDS)
    wait_until(lambda: rack.processes() == [], SECONDS)
    said = json.loads(rack.xenlab("fleet", "status", "-f", "fleet.yaml", "--json").stdout)
    assert [each["status"] for each in said["hosts"].values()] == ["unknown"] * 2 + ["not run"]
    go(rack, 0, 1, 2)
    taken_up(rack)


def test_a_full_disk_of_the_controller_is_said_and_the_hosts_go_on_once_there_is_space(
    make_rack: Callable[[int], Rack],
) -> None:
    rack = two_chapters(make_rack, 3)
    with small_disk(rack.runs, 24 * 1024) as disk:
        process = rack.start(*RUN, "--workers", "2")
        wait_until(at_work(rack, 0, 1), SECONDS)
        filler = fill(disk)
        go(rack, 0, 1, 2)
        out, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 1, out
        assert "cannot go on: because the disk" in out and "Traceback" not in out
        filler.unlink()
        # what was kept in reserve may have held the end of one
        assert {"failed", "refused"} & {*rack.statuses()}
        taken_up(rack)


def test_a_host_that_hangs_and_one_that_refuses_cost_the_others_nothing(
    make_rack: Callable[[int], Rack],
) -> None:
    rack = make_rack(5)
    rack.chapter("01_first", *rack.steps_for("01"))
    hanging, refusing = rack.sshds[1], rack.sshds[3]
    assert hanging.process is not None
    hanging.process.send_signal(signal.SIGSTOP)
    refusing.stop()
    done = rack.xenlab("fleet", "run", "-f", "fleet.yaml", "--workers", "3", "--max-failures", "0")
    assert done.returncode == 1, done.stdout + done.stderr
    assert rack.statuses() == ["done", "unreachable", "done", "unreachable", "done"]
    hanging.process.send_signal(signal.SIGCONT)
    refusing.start()
    done = rack.xenlab("fleet", "run", "-f", "fleet.yaml", "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rack.statuses() == ["done"] * 5
    assert rack.ended(0) == [("01.1", "changed")], "a host that was done was not run again"


def test_a_canary_that_fails_is_the_last_host(make_rack: Callable[[int], Rack]) -> None:
    rack = make_rack(3)
    rack.chapter("01_first", *rack.steps_for("01", what="Impossible"))
    done = rack.xenlab("fleet", "run", "-f", "fleet.yaml")
    assert done.returncode == 1
    assert rack.statuses() == ["failed", "not run", "not run"]
    assert "no other host was started: host0 came first, and is not done" in done.stderr
    assert "host0: failed" in done.stdout and "the moon is not full" in done.stdout


def test_no_host_is_started_after_so_many_failures(make_rack: Callable[[int], Rack]) -> None:
    rack = make_rack(4)
    rack.chapter("01_first", *rack.steps_for("01", what="Impossible"))
    words = ("fleet", "run", "-f", "fleet.yaml", "--workers", "1", "--canary", "0")
    done = rack.xenlab(*words)
    assert done.returncode == 1
    assert rack.statuses() == ["failed", "failed", "not run", "not run"]
    assert "no other host was started: 2 have failed" in done.stderr


def test_an_interruption_stops_the_steps_and_leaves_nothing_running(
    make_rack: Callable[[int], Rack],
) -> None:
    rack = make_rack(3)
    rack.chapter("01_first", *rack.steps_for("01", script=WAITS))
    process = rack.start("fleet", "run", "-f", "fleet.yaml", "--workers", "2", "--canary", "0")
    wait_until(at_work(rack, 0, 1, step="01.1"), SECONDS)
    # as a terminal does: to the workers as well
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, out
    assert rack.statuses() == ["aborted", "aborted", "not run"], out
    assert "Traceback" not in out
    wait_until(lambda: not rack.sshds[0].marked(), SECONDS)
    assert rack.processes() == []


@dataclass(frozen=True)
class Elsewhere:
    """A scheduler and its workers, as people start them."""

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: tuple[subprocess.Popen[bytes], ...]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Callable[..., Elsewhere]]:
    """Start a scheduler and workers; ``apart`` are those that do not see the controller's runs."""
    started: list[subprocess.Popen[bytes]] = []
    away = tmp_path / "away"
    environment = os.environ | {"XENLAB_RUNS": str(away), "RACK_VAULT": "open sesame 7"}

    def process(*words: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "dask.log").open("ab") as log:
            started.append(
                subprocess.Popen(words, cwd=away, env=environment, stdout=log, stderr=log)
            )
        return started[-1]

    def start(rack: Rack, workers: int = 1, *, apart: bool = False) -> Elsewhere:
        away.mkdir(exist_ok=True)
        rack.runs.mkdir(exist_ok=True)
        address = f"tcp://127.0.0.1:{free_port()}"
        python = [sys.executable, "-m"]
        options = ["--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"]
        mount = f'mount -t tmpfs none "{rack.runs}"; exec "$@"'
        blind = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-euc", mount, "sh"]
        worker = [*python, "distributed.cli.dask_worker", address, "--no-dashboard", "--no-nanny"]
        worker += ["--nthreads", "1"]
        return Elsewhere(
            address,
            process(*python, "distributed.cli.dask_scheduler", *options),
            tuple(process(*(blind if apart else []), *worker) for _ in range(workers)),
        )

    yield start
    for each in started:
        kill(each.pid)
        each.wait()


def test_the_hosts_of_a_killed_scheduler_are_unknown_and_taken_up_by_another(
    make_rack: Callable[[int], Rack], elsewhere: Callable[..., Elsewhere]
) -> None:
    rack = two_chapters(make_rack, 4)
    first = elsewhere(rack, 2)
    process = rack.start(*RUN, "--scheduler", first.address)
    wait_until(at_work(rack, 0, 1), SECONDS)
    first.scheduler.kill()
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1 and "Traceback" not in out, out
    assert rack.statuses() == ["unknown", "unknown", "not run", "not run"], out
    assert "host0: unknown" in out and "the scheduler was lost" in out
    page = rack.xenlab("fleet", "report", "-f", "fleet.yaml").stdout.strip()
    assert "the scheduler was lost" in (rack.folder / page).read_text()
    # its workers end by themselves
    for worker in first.workers:
        worker.wait(timeout=SECONDS)
    go(rack, 0, 1, 2, 3)
    taken_up(rack, "--scheduler", elsewhere(rack, 2).address)


def test_a_run_is_brought_from_a_worker_that_sees_no_file_of_the_controller(
    make_rack: Callable[[int], Rack], elsewhere: Callable[..., Elsewhere], tmp_path: Path
) -> None:
    rack = make_rack(2)
    # the secret is in the worker's environment alone
    rack.write(secrets=[{"env": "RACK_VAULT"}])
    prints = 'echo made | tee -a -- "$1"; printf "open %s 7" sesame'
    rack.chapter("01_first", *rack.steps_for("01", script=prints))
    rack.chapter("02_second", *rack.steps_for("02", what="Impossible"))
    address = elsewhere(rack, apart=True).address
    words = ("fleet", "run", "-f", "fleet.yaml", "--scheduler", address)
    done = rack.xenlab(*words, "01")
    assert done.returncode == 0, done.stdout + done.stderr
    for number in (0, 1):
        found = audit.inspect(rack.run_of(number))
        assert (found.problems, found.cut) == ((), ())
        assert (tmp_path / "away" / rack.run_of(number).name).is_dir()
    everything = b"".join(f.read_bytes() for f in rack.runs.rglob("*") if f.is_file())
    log = (tmp_path / "dask.log").read_bytes()
    assert b"open sesame" not in everything + log
    assert "•••".encode() in everything
    # what is taken up goes on in the folder that it began in, and is brought here again
    done = rack.xenlab(*words, "--canary", "0")
    assert done.returncode == 1 and rack.statuses() == ["failed", "failed"]
    before = rack.run_of(0)
    records = len(Journal(before).records())
    rack.chapter("02_second", *rack.steps_for("02"))
    done = rack.xenlab("fleet", "run", "-f", "fleet.yaml", "--scheduler", address, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rack.run_of(0) == before and len(Journal(before).records()) > records
    assert audit.inspect(before).problems == ()
    assert one_line(done.stdout).count("host0: done") == 1
