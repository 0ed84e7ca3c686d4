"""Which steps of a run a person wants: some, from one on, up to one, all but some."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xenlab.chapter.selected import Selected
from xenlab.errors import BadInput

STATES = ("ensure", "each", "check")
"""The verbs of steps that can be looked at; facts are shown, and an action is only carried out."""

Steps = Mapping[str, Sequence[tuple[str, str]]]
"""The steps of each chapter in their order: their numbers and verbs."""


@dataclass(frozen=True)
class Choice:
    """What a person asked for, by the numbers of steps; all of them where nothing is said.

    ``only`` these, from ``first`` on, up to ``last``; those in ``skip`` are left out, each with the
    reason that somebody gave.
    """

    only: tuple[str, ...] = ()
    first: str = ""
    last: str = ""
    skip: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The options that say so, but for what is skipped."""
        options = {"--step": ",".join(self.only), "--from-step": self.first, "--until": self.last}
        return " ".join(f"{name} {value}" for name, value in options.items() if value)


def choice(
    only: Sequence[str] = (), first: str = "", last: str = "", skipped: Sequence[str] = ()
) -> Choice:
    """The choice that options make: ``04.2,04.3`` names two steps, ``04.2=WHY`` skips one.

    Raises BadInput for a step that is skipped without a reason.
    """
    skip: dict[str, str] = {}
    for said in skipped:
        number, _, reason = (part.strip() for part in said.partition("="))
        if not reason:
            raise BadInput(
                f"cannot skip step {number}: because no reason is given, which is put on record",
                hint=f"--skip '{number}=WHY'",
            )
        skip[number] = reason
    names = [name.strip() for each in only for name in each.split(",")]
    return Choice(tuple(dict.fromkeys(filter(None, names))), first, last, skip)


def select(wanted: Choice, steps: Steps) -> tuple[list[str], Selected]:
    """The chapters that are left of these, and which of their steps are left out.

    Those of a chapter that come before a wanted one are looked at. Raises BadInput for a step that
    is none of these, and where no step is left.
    """
    if wanted == Choice():
        return list(steps), Selected()
    numbers = [number for each in steps.values() for number, _ in each]
    for name in filter(None, (*wanted.only, wanted.first, wanted.last, *wanted.skip)):
        _require(name, numbers)
    first = numbers.index(wanted.first) if wanted.first else 0
    last = numbers.index(wanted.last) if wanted.last else len(numbers) - 1
    among = wanted.only or numbers
    do = {n for n in numbers[first : last + 1] if n in among and n not in wanted.skip}
    if not do:
        raise BadInput(
            f"cannot select steps: because none is left of {wanted.words or 'these chapters'}",
            hint="name others, or skip fewer",
        )
    skip = dict(wanted.skip)
    look: dict[str, str] = {}
    chapters = []
    for chapter, each in steps.items():
        doing = [place for place, (number, _) in enumerate(each) if number in do]
        if not doing and not any(number in skip for number, _ in each):
            continue
        chapters.append(chapter)
        for place, (number, verb) in enumerate(each):
            if number in do or number in skip:
                continue
            comes_before = bool(doing) and place < doing[-1] and verb in STATES
            (look if comes_before else skip)[number] = f"not selected ({wanted.words})"
    return chapters, Selected(skip, look)


def _require(name: str, numbers: Sequence[str]) -> None:
    if name not in numbers:
        near = difflib.get_close_matches(name, numbers, 1)
        raise BadInput(
            f"cannot select step {name}: because no chapter of this run has it",
            hint=near[0] if near else "`xenlab show` lists the steps of a run",
        )
