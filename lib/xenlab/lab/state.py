"""What a lab remembers between two commands."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xenlab.errors import LabError
from xenlab.lab.cache import cache_root, write_atomic

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
