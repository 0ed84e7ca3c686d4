"""A fleet from its plan to its page: what `make test` has of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from tests.fleet.rack import SECONDS, Rack
from tests.ssh.conftest import wait_until
from tests.ssh.small import one_line

from xenlab.fleet import engine
from xenlab.journal import Journal
from xenlab.panel.fleet import FleetPanel, fleet_history
from xenlab.runs import audit


def test_a_fleet_is_run_its_canary_first_and_its_runs_are_ordinary_ones(
    make_rack: Callable[[int], Rack],
) -> None:
    rack = make_rack(6)
    rack.chapter("01_first", *rack.steps_for("01", 2))
    rack.chapter("02_second", *rack.steps_for("02"))
    done = rack.xenlab("fleet", "run", "-f", "fleet.yaml", "--workers", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rack.statuses() == ["done"] * 6
    assert "6 of 6 hosts done" in done.stdout
    for number in range(6):
        assert rack.made("02.1", number).read_text() == "made\n"
        assert rack.ended(number) == [("01.1", "changed"), ("01.2", "changed"), ("02.1", "changed")]
    run = rack.run_of(3)
    found = audit.inspect(run)
    assert (found.problems, found.cut) == ((), ())
    # the canary had ended when the others began
    first, others = rack.run_of(0), [rack.run_of(number) for number in range(1, 6)]
    ended = Journal(first).records()[-1]["time"]
    assert all(Journal(run).records()[0]["time"] > ended for run in others)
    # what a kernel would leave
    book = nbformat.read(run / "01_first.ipynb", 4)
    nbformat.validate(book)
    shown = [out.data["text/plain"] for cell in book.cells for out in cell.get("outputs", ())]
    assert any(one_line(text).startswith("changed 01.2 Make 01.2") for text in shown)
    assert "Make 01.2" in (run / "report.html").read_text()
    listed = rack.xenlab("runs").stdout
    assert listed.count("apply") == 6
    # one host's run is a run like any other
    again = rack.xenlab("run", "-f", f"{rack.runs}/{_fleet_folder(rack)}/sites/host3.yaml")
    assert again.returncode == 0, again.stderr
    _status_and_page(rack)


def test_no_process_of_the_cluster_is_profiled(tmp_path: Path) -> None:
    """Dask's profiler has stopped workers for ever (Python 3.11)."""
    with engine.connected(engine.Settings(workers=2), 2, tmp_path / "workers.log") as client:
        profiled = client.run(lambda dask_worker: "profile" in dask_worker.periodic_callbacks)
        assert set(profiled.values()) == {False}
        assert not client.cluster.scheduler.io_loop.profile


def _fleet_folder(rack: Rack) -> str:
    return sorted(rack.runs.glob("*-rack"))[-1].name


def _status_and_page(rack: Rack) -> None:
    shown = rack.xenlab("fleet", "status", "-f", "fleet.yaml")
    assert one_line(shown.stdout).startswith("host 01 02 time host0 + + ")
    said = json.loads(rack.xenlab("fleet", "status", "-f", "fleet.yaml", "--json").stdout)
    assert said["hosts"]["host1"]["status"] == "done" and said["chapters"][-1] == "02_second"
    place = rack.xenlab("fleet", "report", "-f", "fleet.yaml").stdout.strip()
    page = (rack.folder / place).read_text()
    assert f'href="../{rack.run_of(2).name}/report.html#02_second"' in page
    assert "domains[1].mac" in page and "00:16:3e:00:00:02" in page


def test_a_plan_and_a_check_change_nothing_and_name_hosts_that_drifted(
    make_rack: Callable[[int], Rack],
) -> None:
    rack = make_rack(3)
    rack.chapter("01_first", *rack.steps_for("01", 2))
    plan = rack.xenlab("fleet", "plan", "-f", "fleet.yaml", "--limit", "!host1")
    assert plan.returncode == 0, plan.stdout + plan.stderr
    assert "  01.2 Make 01.2: host0, host2\n" in plan.stdout
    assert not rack.made("01.1", 0).exists()
    for number in (0, 1, 2):
        for step in ("01.1", "01.2"):
            rack.made(step, number).write_text("made\n")
    rack.made("01.2", 1).unlink()
    check = rack.xenlab("fleet", "check", "-f", "fleet.yaml")
    assert check.returncode == 3, check.stdout + check.stderr
    assert "drift in 1 step:\n  01.2 Make 01.2: host1\n" in check.stdout
    assert not rack.made("01.2", 1).exists()


def test_a_fleet_that_is_refused_leaves_nothing_behind(make_rack: Callable[[int], Rack]) -> None:
    rack = make_rack(2)
    rack.chapter("01_first", *rack.steps_for("01"))
    rack.write(secrets=[{"env": "RACK_VAULT"}])
    done = rack.xenlab("fleet", "run", "-f", "fleet.yaml")
    assert done.returncode == 2
    assert "host0, on the worker t" in done.stderr
    assert "cannot mask the secret in $RACK_VAULT" in done.stderr
    rack.write(boot_mib=1)
    done = rack.xenlab("fleet", "run", "-f", "fleet.yaml")
    assert done.returncode == 2 and "host0, host1: boot_mib must be at least 64" in done.stderr
    rack.write()
    done = rack.xenlab("fleet", "run", "-f", "fleet.yaml", "07")
    assert done.returncode == 2 and "cannot run chapter '07'" in done.stderr
    none = rack.xenlab("fleet", "run", "-f", "fleet.yaml", "--resume")
    assert none.returncode == 2 and "cannot find a run of the fleet rack" in none.stderr
    assert list(rack.runs.glob("*")) == []


def test_nobody_but_a_fleet_imports_dask() -> None:
    script = "import sys, xenlab.cli.cli; print('distributed' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_in_jupyterlab_a_fleet_is_planned_run_and_looked_back_upon(
    make_rack: Callable[[int], Rack], monkeypatch: pytest.MonkeyPatch
) -> None:
    rack = make_rack(2)
    rack.chapter("01_first", *rack.steps_for("01"))
    monkeypatch.setenv("XENLAB_RUNS", str(rack.runs))
    panel = FleetPanel(rack.file, rack.folder / "notebooks")
    assert "2 not run" in panel.table.value
    panel.buttons["Plan"].click()
    assert panel.wait(SECONDS)
    assert not rack.made("01.1", 0).exists()
    panel.buttons["Run"].click()
    assert panel.wait(SECONDS)
    assert "2 done" in panel.table.value and panel.table.value.count(">+<") == 2
    assert "all hosts are done" in panel.said.value
    assert rack.made("01.1", 1).read_text() == "made\n"
    found = fleet_history(str(rack.file))
    steps = found[found["step"] == "01.1"]
    assert steps["status"].tolist() == ["would change"] * 2 + ["changed"] * 2
    assert steps["host"].tolist() == ["host0", "host1"] * 2


def test_stop_in_jupyterlab_stops_the_steps_of_all_hosts(
    make_rack: Callable[[int], Rack], monkeypatch: pytest.MonkeyPatch
) -> None:
    rack = make_rack(2)
    waits = ': > "$1.began"; until [ -e "$1.go" ]; do sleep 0.1; done'
    rack.chapter("01_first", *rack.steps_for("01", script=waits))
    monkeypatch.setenv("XENLAB_RUNS", str(rack.runs))
    panel = FleetPanel(rack.file, rack.folder / "notebooks")
    panel.buttons["Run"].click()
    wait_until(lambda: Path(f"{rack.made('01.1', 0)}.began").exists(), SECONDS)
    panel.stop.click()
    assert panel.wait(SECONDS)
    assert rack.statuses() == ["aborted", "not run"]
    wait_until(lambda: not rack.sshds[0].marked(), SECONDS)
