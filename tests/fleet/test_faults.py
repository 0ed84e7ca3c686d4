"""What goes wrong with one host or one worker costs the other hosts nothing, and is taken up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fleet.rack import SECONDS, Rack
from tests.ssh.conftest import descendants, free_port, kill, wait_until
from tests.ssh.small import one_line

from xenlab.journal import Journal
from xenlab.runs import audit

WAITS = 'until [ -e "$1.go" ]; do sleep 0.1; done; echo made >> "$1"'


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes of a fleet's local cluster that do the work."""
    return [
        pid
        for pid in descendants(process.pid)
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def running(rack: Rack, *hosts: int) -> Callable[[], bool]:
    """Whether a step of each of these hosts is under way."""

    def holds() -> bool:
        found = [list(rack.runs.glob(f"*-host{host}/journal.jsonl")) for host in hosts]
        return all(each and '"phase": "running"' in each[-1].read_text() for each in found)

    return holds


def test_the_host_of_a_killed_worker_is_unknown_and_taken_up_by_another(
    make_rack: Callable[[int], Rack],
) -> None:
    rack = make_rack(4)
    rack.chapter("01_first", *rack.steps_for("01"))
    rack.chapter("02_second", *rack.steps_for("02", script=WAITS))
    words = ("fleet", "run", "-f", "fleet.yaml", "--workers", "2", "--canary", "0")
    process = rack.start(*words)
    wait_until(running(rack, 0, 1), SECONDS)
    wait_until(lambda: any(rack.sshds[0].marked()), SECONDS)
    # the one that has host0, as its journal is open there
    journal = next(rack.runs.glob("*-host0"))
    (worker,) = (pid for pid in workers_of(process) if _holds(pid, journal / "run.lock"))
    kill(worker)
    for number in (1, 2, 3):
        Path(f"{rack.made('02.1', number)}.go").touch()
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, out
    assert rack.statuses() == ["unknown", "done", "done", "done"], out
    assert "host0: unknown" in out and "xenlab fleet run --resume" in out
    # the command that the dead worker gave goes on there
    assert any(rack.sshds[0].marked())
    Path(f"{rack.made('02.1', 0)}.go").touch()
    done = rack.xenlab("fleet", "run", "-f", "fleet.yaml", "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rack.statuses() == ["done"] * 4
    # it was made once, whoever made it
    assert rack.made("02.1", 0).read_text() == "made\n"
    assert rack.ended(0)[0] == ("01.1", "changed")
    assert len(list(rack.runs.glob("*-host0"))) == 1
    found = audit.inspect(rack.run_of(0))
    assert found.problems == ()


def _holds(process: int, file: Path) -> bool:
    return any(
        os.path.realpath(each) == str(file) for each in Path(f"/proc/{process}/fd").iterdir()
    )


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
    wait_until(running(rack, 0, 1), SECONDS)
    # as a terminal does: to the workers as well
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, out
    assert rack.statuses() == ["aborted", "aborted", "not run"], out
    assert "Traceback" not in out
    wait_until(lambda: not rack.sshds[0].marked(), SECONDS)
    assert rack.processes() == []


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Callable[[Rack], str]]:
    """Start a scheduler, and a worker that does not see the controller's runs; its address."""
    started: list[subprocess.Popen[bytes]] = []

    def start(rack: Rack) -> str:
        address = f"tcp://127.0.0.1:{free_port()}"
        python = [sys.executable, "-m"]
        options = ["--host", "127.0.0.1", "--port", address.rpartition(":")[2]]
        scheduler = [*python, "distributed.cli.dask_scheduler", *options, "--no-dashboard"]
        worker = [*python, "distributed.cli.dask_worker", address, "--no-dashboard", "--no-nanny"]
        rack.runs.mkdir(exist_ok=True)
        away = tmp_path / "away"
        away.mkdir()
        mount = f'mount -t tmpfs none "{rack.runs}"; exec "$@"'
        apart = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-euc", mount, "sh"]
        environment = os.environ | {"XENLAB_RUNS": str(away), "RACK_VAULT": "open sesame 7"}
        with (tmp_path / "dask.log").open("ab") as log:
            for words in (scheduler, [*apart, *worker]):
                started.append(
                    subprocess.Popen(words, cwd=away, env=environment, stdout=log, stderr=log)
                )
        return address

    yield start
    for process in started:
        kill(process.pid)
        process.wait()


def test_a_run_is_brought_from_a_worker_that_sees_no_file_of_the_controller(
    make_rack: Callable[[int], Rack], elsewhere: Callable[[Rack], str], tmp_path: Path
) -> None:
    rack = make_rack(2)
    # the secret is in the worker's environment alone
    rack.write(secrets=[{"env": "RACK_VAULT"}])
    prints = 'echo made | tee -a -- "$1"; printf "open %s 7" sesame'
    rack.chapter("01_first", *rack.steps_for("01", script=prints))
    rack.chapter("02_second", *rack.steps_for("02", what="Impossible"))
    address = elsewhere(rack)
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
