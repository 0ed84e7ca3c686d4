"""What a resource is: a desired state that can be probed, applied and verified."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.resources.made import Made


@dataclass(frozen=True)
class Difference:
    """How the machine differs from a desired state.

    ``summary`` is one line in the imperative ("write /etc/hostname"); ``diff`` a unified diff where
    the state is text; ``rows`` a table where it is not, one dict a row; ``hint`` what to try where
    nothing can be applied. ``stays`` says what may stay as it is: a step leaves it so, unless
    somebody agreed to lose what `Resource.destroys` names.
    """

    summary: str
    diff: str = ""
    rows: tuple[dict[str, str], ...] = ()
    hint: str = ""
    stays: str = ""

    @staticmethod
    def of_all(found: Sequence[Difference]) -> Difference | None:
        """Several differences as one, in their order; None of none."""
        if len(found) < 2:
            return found[0] if found else None
        return Difference(
            "; ".join(each.summary for each in found),
            "\n".join(each.diff.rstrip("\n") for each in found if each.diff),
            tuple(row for each in found for row in each.rows),
            "; ".join(dict.fromkeys(each.hint for each in found if each.hint)),
        )


class Asked(str):
    """A report's words that ask a person for something, which the step then waits for."""


class Waiting(str):
    """A report's words about something that must come by itself: a terminal shows them too."""


class Report(Protocol):
    """Where a resource tells how far it is."""

    def __call__(self, what: str, done: float | None = None) -> None:
        """Say what is being done and, where it can be counted, the fraction (0 to 1) done."""


class Resource(ABC):
    """A desired state of a machine.

    ``probe`` only looks, with as few commands as it can (one, where possible). ``apply`` changes;
    it may assume that ``probe`` has just found a difference. ``verify`` raises StepFailed unless
    the state now holds.
    """

    @abstractmethod
    def probe(self, host: Host) -> Difference | None:
        """The difference between machine and desired state, None where there is none."""

    @abstractmethod
    def apply(self, host: Host, report: Report) -> None:
        """Bring the machine into the desired state."""

    def verify(self, host: Host) -> None:
        """Raise StepFailed unless the state holds; by default, unless a probe finds nothing."""
        difference = self.probe(host)
        if difference is not None:
            detail = f"\n{difference.diff}" if difference.diff else ""
            message = f"applied, and yet still to do: {difference.summary}{detail}"
            raise StepFailed(message, hint=difference.hint)

    def wipes(self) -> str:
        """The device whose content ``apply`` destroys (a path), "" where it destroys nothing."""
        return ""

    def destroys(self, host: Host) -> tuple[Made, ...]:
        """What ``apply`` would destroy now that xenlab made: each needs a consent by its name."""
        return ()

    def refusal(self, host: Host) -> str:
        """Why ``apply`` would refuse as the machine is now, "" where it would not; a plan asks."""
        return ""

    def consented(self, identity: str, lost: tuple[Made, ...] = ()) -> Resource:
        """The same, allowed to destroy what `wipes` names, on a disk with this identity alone.

        ``lost`` is what xenlab made of it and somebody agreed to lose. ``apply`` looks again in
        the very command that destroys.
        """
        return self


def text_difference(summary: str, path: str, now: str | None, wanted: str) -> Difference | None:
    """A unified diff between a file's text (None: no such file) and the wanted text.

    Bytes that are not UTF-8 (`Host.read`) are shown in hexadecimal.
    """
    if now == wanted:
        return None
    lines = difflib.unified_diff(
        (now or "").splitlines(keepends=True),
        wanted.splitlines(keepends=True),
        path if now is not None else "/dev/null",
        path,
    )
    diff = "".join(line if line.endswith("\n") else line + "\n" for line in lines)
    shown = diff.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return Difference(summary, shown)
