"""What a lab remembers between two commands, and what it is doing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xenlab.cache import cache_root, write_atomic
from xenlab.errors import LabError

Boot = Literal["rescue", "disk"]
Network = Literal["restricted", "open"]
"""What the domains reach: the mirrors' relay alone, or all that this machine reaches."""


class State(BaseModel):
    """The content of state.json."""

    model_config = ConfigDict(extra="forbid")

    boot: Boot = "rescue"
    network: Network = "restricted"
    port: int | None = None
    accel: Literal["kvm", "tcg"] = "tcg"
    guests: dict[str, str] = Field(default_factory=dict)
    snapshots: dict[str, Boot] = Field(default_factory=dict)


def of(name: str) -> State:
    """What a lab remembers, by its name. Raises LabError if the file is damaged."""
    return load(cache_root() / "labs" / name / "state.json")


def load(path: Path) -> State:
    """The remembered state, or the first one. Raises LabError if the file is damaged."""
    try:
        return State.model_validate_json(path.read_text())
    except FileNotFoundError:
        return State()
    except ValidationError as error:
        raise LabError(
            f"{path} is damaged: {error.errors()[0]['msg']}", hint="xenlab lab reset"
        ) from error


def save(path: Path, state: State) -> None:
    """Replace the remembered state atomically."""
    write_atomic(path, state.model_dump_json(indent=2) + "\n")


# What a lab is doing, as a value.


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
