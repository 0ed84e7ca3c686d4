"""What is kept of a fleet's run, also on a disk that is full meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.sites import FOLDER
from tests.smalldisk import fill, small_disk

from xenlab.errors import BadInput
from xenlab.fleet.hosts import load
from xenlab.fleet.record import Record
from xenlab.runs.folder import run_lock


def created(runs: Path) -> Record:
    fleet = load(FOLDER / "fleet.yaml")
    return Record.create(runs, fleet, "apply", ["04_grub"], FOLDER.parent / "notebooks")


def test_the_last_run_of_a_fleet_is_found_with_what_became_of_its_hosts(tmp_path: Path) -> None:
    record = created(tmp_path)
    record.change("castle2", status="failed", problem="why", run="a-run", seconds=2.5)
    found = Record.last(tmp_path, "rack")
    assert (found.folder, found.facts, found.hosts) == (record.folder, record.facts, record.hosts)
    site = yaml.safe_load((record.folder / "sites" / "castle2.yaml").read_text())
    assert (site["site"], site["autostart"]) == ("castle2", ["mail2", "web2"])
    assert record.folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(BadInput, match="cannot find a run of the fleet other"):
        Record.last(tmp_path, "other")


def test_a_full_disk_costs_no_host_its_run(tmp_path: Path) -> None:
    with small_disk(tmp_path / "runs", 256) as runs:
        record = created(runs)
        filler = fill(runs)
        record.change("castle1", status="running", problem="x" * 8192)
        assert Record.last(runs, "rack").hosts["castle1"].status == "not run"
        filler.unlink()
        record.change("castle2", status="done")
        with run_lock(record.folder):
            assert Record.last(runs, "rack").hosts == record.hosts
        # nobody works on it any more
        assert Record.last(runs, "rack").hosts["castle1"].status == "unknown"


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    record = created(tmp_path)
    (record.folder / "fleet.json").write_text("{}")
    with pytest.raises(BadInput, match=r"cannot read fleet\.json"):
        Record.last(tmp_path, "rack")
