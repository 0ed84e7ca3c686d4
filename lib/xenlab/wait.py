"""Wait: a machine that does not answer is waited for, with a word about it, but not in vain."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from xenlab.errors import ConnectionRefused, Unreachable

Answer = TypeVar("Answer")

AGAIN_SECONDS = 1.0
"""How long after an attempt the next one follows."""

SAY_SECONDS = 60.0
"""How often it is said that somebody still waits."""

SURE_SECONDS = 3.0
"""For how long waiting must be in vain: a guest that reboots has no domain for a moment."""

VAIN_HINT = "start it (chapter 11_action does), or look at its console"


def _nobody(text: str) -> None:
    return None


@dataclass(frozen=True)
class Wait:
    """How long a machine that does not answer is waited for, and who is told.

    ``say`` gets a line that says for what. ``in_vain`` gives the reason why the machine cannot
    answer ("its domain does not run"), "" as long as it may; it is asked every ``look_seconds``.
    """

    seconds: float = 0.0
    say: Callable[[str], None] = _nobody
    in_vain: Callable[[], str] = str
    look_seconds: float = 10.0

    def until_answered(
        self, name: str, attempt: Callable[[], Answer], stop: threading.Event | None = None
    ) -> Answer:
        """What the first attempt gives that is answered.

        Raises ConnectionRefused when the time is over, Unreachable at once where waiting is vain,
        KeyboardInterrupt when ``stop`` is set; whatever else an attempt raises is raised at once.
        """
        stop = stop or threading.Event()
        start = time.monotonic()
        said = look_at = float("-inf")
        vain = False
        while not stop.is_set():
            try:
                return attempt()
            except ConnectionRefused as error:
                now = time.monotonic()
                left = start + self.seconds - now
                if now >= look_at:
                    reason = self.in_vain()
                    if reason and (vain or left <= 0):
                        raise Unreachable(reason, hint=VAIN_HINT) from error
                    vain = bool(reason)
                    look_at = now + (SURE_SECONDS if vain else self.look_seconds)
                if left <= 0:
                    if self.seconds:
                        error.message += f" (waited for {now - start:.0f} s)"
                    raise
                if not vain and now - said >= SAY_SECONDS:
                    said = now
                    self.say(f"waiting for {name}, for {left:.0f} s at most: {error.message}")
            stop.wait(min(AGAIN_SECONDS, max(left, 0.0)))
        raise KeyboardInterrupt
