"""What a saved plan allows of a step, and what is refused of a plan as such."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from xenlab.chapter.planned import Planned, as_planned, look_digest
from xenlab.errors import BadInput, StepFailed
from xenlab.resources.base import Difference
from xenlab.runs import plan

FIRST = Difference("write /etc/hosts", "-a\n+b\n", ({"device": "/dev/vda", "lost": "ext4"},))
SECOND = Difference("write /etc/hostname")
LOOKS = {"cat /etc/hosts": look_digest(0, b"a\n")}


def allowing(*, allowed: bool = False, **more: Any) -> Planned:
    step = {
        "step": "05.2",
        "unforeseen": "",
        "script": "cp a b",
        "differences": [as_planned("1", asdict(FIRST)), as_planned("domu1", asdict(SECOND))],
        "looks": LOOKS,
    }
    # as it comes out of a file
    return Planned({"05.2": json.loads(json.dumps(step | more))}, allowed)


@pytest.mark.parametrize(
    "found", [{"1": FIRST, "domu1": SECOND}, {"domu1": SECOND, "2": FIRST}, {"": FIRST}, {}]
)
def test_what_was_planned_and_less_is_in_order(found: dict[str, Difference]) -> None:
    allowing().require("05.2", "cp a b", found, LOOKS)


@pytest.mark.parametrize(
    ("script", "found", "said"),
    [
        ("cp a c", {"": FIRST}, "its commands are others:\n--- planned\n+++ now"),
        (
            "cp a b",
            {"": Difference("write /etc/hosts", "-x\n+b\n")},
            "not planned: write /etc/hosts",
        ),
        ("cp a b", {"1": FIRST, "2": Difference("wipe /dev/vdb")}, "not planned: wipe /dev/vdb"),
        ("cp a b", {"domu2": SECOND}, "not planned: domu2: write /etc/hostname"),
        (
            "cp a b",
            {
                "1": Difference(
                    "write /etc/hosts", "-a\n+b\n", ({"device": "/dev/vdb", "lost": "xfs"},)
                )
            },
            "/dev/vdb  xfs",
        ),
    ],
)
def test_more_or_something_else_is_refused(
    script: str, found: dict[str, Difference], said: str
) -> None:
    with pytest.raises(StepFailed) as refused:
        allowing().require("05.2", script, found, {"cat /etc/hosts": look_digest(0, b"x\n")})
    assert "step 05.2 is other than planned" in str(refused.value) and said in str(refused.value)
    assert "looked at, and moved on: cat /etc/hosts" in str(refused.value)


def test_a_step_that_is_not_in_the_plan_is_refused() -> None:
    with pytest.raises(StepFailed, match=re.escape("step 05.3 is not in it")):
        allowing(allowed=True).require("05.3", "", {}, {})


def test_unforeseen_steps_are_done_only_where_that_was_allowed() -> None:
    waits: dict[str, Any] = {"unforeseen": "once domu1 answers"}
    with pytest.raises(StepFailed, match="was not foreseen: once domu1 answers"):
        allowing(**waits).require("05.2", "cp a b", {"": FIRST}, LOOKS)
    allowing(**waits, allowed=True).require("05.2", "rm -r x", {"": Difference("x")}, {})


def test_a_change_that_nobody_can_tell_is_one_among_several_too() -> None:
    found = Difference.of_all([FIRST, Difference("once domu1 answers", unknown=True)])
    assert found is not None and found.unknown


def test_a_plan_with_a_refusal_is_not_applied(tmp_path: Path) -> None:
    step = {"step": "01.2", "status": "would be refused", "message": "would be refused: no consent"}
    made = {"format": plan.FORMAT, "steps": [step]}
    place = tmp_path / "plan.json"
    place.write_bytes(plan.as_text(made | {"sha256": plan.digest_of(made)}))
    with pytest.raises(BadInput, match=re.escape("step 01.2 would be refused: no consent")):
        plan.approved(place, None, allow_unforeseen=True)
    with pytest.raises(BadInput, match="cannot read the plan: because No such file"):
        plan.approved(tmp_path / "none", None, allow_unforeseen=False)
