"""Fleets of real sshds on loopback ports, run by Dask's own workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fleet.rack import Rack
from tests.ssh.conftest import kill


@pytest.fixture
def make_rack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Rack]]:
    """Start a rack in an empty working folder; it leaves no process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XENLAB_TEST", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in ("NO_COLOR", "XENLAB_RUNS", "XENLAB_SITE"):
        monkeypatch.delenv(name, raising=False)
    racks: list[Rack] = []

    def make(count: int) -> Rack:
        racks.append(Rack(tmp_path, count))
        racks[-1].write()
        return racks[-1]

    yield make
    for rack in racks:
        rack.stop()
        for process in rack.processes():
            kill(process)
