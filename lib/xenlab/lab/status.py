"""What a lab is doing, as a value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xenlab.lab.state import Boot, Network


@dataclass(frozen=True)
class Status:
    """What a lab is doing. `accel`, `port` and `pid` are None unless it runs."""

    name: str
    running: bool
    boot: Boot
    network: Network
    accel: str | None
    port: int | None
    pid: int | None
    serial: str
    disk: Path
    ssh_config: Path
    console_log: Path
    guests: dict[str, str]
    snapshots: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        return {
            key: str(value) if isinstance(value, Path) else value
            for key, value in asdict(self).items()
        }
