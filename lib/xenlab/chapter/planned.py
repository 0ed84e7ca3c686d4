"""What a saved plan allows: each step what was planned of it, and no more than that."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xenlab.durable import kept_file
from xenlab.errors import StepFailed
from xenlab.resources.base import Difference

FILE = "plan.json"
"""The plan in the folder of a run that applies it."""

AGAIN = "plan again from here, and have that approved"

SHOWN_LOOKS = 3
"""How many looks are named that print something else now."""


@dataclass(frozen=True)
class Planned:
    """The steps of a saved plan by their numbers; ``unforeseen`` ones may be done too, or not."""

    steps: Mapping[str, Mapping[str, Any]]
    unforeseen: bool = False

    @staticmethod
    def of_run(folder: Path) -> Planned | None:
        """The plan that a run applies, None where it applies none."""
        place = kept_file(folder, FILE)
        if not place.exists():
            return None
        record = json.loads(kept_file(folder, "run.json").read_text(encoding="utf-8"))
        steps = json.loads(place.read_text(encoding="utf-8"))["steps"]
        return Planned({step["step"]: step for step in steps}, record["plan"]["unforeseen"])

    def require(
        self,
        number: str,
        script: str,
        differences: Mapping[str, Difference],
        looks: Mapping[str, str],
    ) -> None:
        """Refuse a change that is not among what was planned; less than that is in order.

        ``looks`` has the digest of what each look of the step printed (`look_digest`). Raises
        StepFailed, which says what is other than planned, and which looks print something else.
        """
        step = self.steps.get(number)
        if step is None:
            raise _refused(f"step {number} is not in it", AGAIN)
        if step["unforeseen"]:
            if self.unforeseen:
                return
            hint = f"{AGAIN}, or allow what nobody could foresee with --allow-unforeseen"
            raise _refused(f"step {number} was not foreseen: {step['unforeseen']}", hint)
        moved = [*_other_commands(step["script"], script), *_more(step["differences"], differences)]
        if moved:
            moved += _other_looks(step["looks"], looks)
            raise _refused("\n".join([f"step {number} is other than planned:", *moved]), AGAIN)


def look_digest(status: int | None, printed: bytes) -> str:
    """The digest of how a look ended and what it printed."""
    return hashlib.sha256(f"{status}\n".encode() + printed).hexdigest()


def as_planned(label: str, difference: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan keeps of a difference; a label that only counts is none."""
    # as JSON has it: a tuple is a list there
    rows = [dict(row) for row in difference["rows"]]
    kept = {"summary": difference["summary"], "diff": difference["diff"], "rows": rows}
    return {"label": "" if label.isdigit() else label, **kept}


def _refused(why: str, hint: str) -> StepFailed:
    return StepFailed(f"cannot apply the plan: because {why}", hint=hint)


def _other_commands(planned: str, now: str) -> list[str]:
    if planned == now:
        return []
    lines = difflib.unified_diff(
        planned.splitlines(), now.splitlines(), "planned", "now", lineterm="", n=1
    )
    return ["its commands are others:", *lines]


def _more(planned: Sequence[Mapping[str, Any]], now: Mapping[str, Difference]) -> list[str]:
    """What differs now and was not planned, each with its diff."""
    found = []
    for label, difference in now.items():
        kept = as_planned(label, asdict(difference))
        if kept not in planned:
            whose = f"{kept['label']}: " if kept["label"] else ""
            found += [f"not planned: {whose}{difference.summary}", *difference.diff.splitlines()]
            found += ["  ".join(row.values()) for row in difference.rows]
    return found


def _other_looks(planned: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    other = [command for command, digest in now.items() if planned.get(command) != digest]
    return [f"looked at, and moved on: {_first_line(command)}" for command in other[:SHOWN_LOOKS]]


def _first_line(command: str) -> str:
    first, _, rest = command.strip().partition("\n")
    return f"{first} …" if rest else first
