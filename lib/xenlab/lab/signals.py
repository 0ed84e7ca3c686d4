"""Interruptions at the right moment: an exception where we can clean up, later where we cannot."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_Handler = Callable[[int, FrameType | None], object]


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Within this block SIGTERM and SIGHUP raise SystemExit, so that `finally` runs.

    Only a main thread can do this; in other threads the block changes nothing.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handlers((signal.SIGTERM, signal.SIGHUP), leave):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within this short block interruptions wait; they take effect at its end."""
    seen: list[int] = []
    try:
        with _handlers(_ALL, lambda number, frame: seen.append(number)):
            yield
    finally:
        for number in seen:
            os.kill(os.getpid(), number)


@contextmanager
def _handlers(numbers: tuple[signal.Signals, ...], handler: _Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            # None: installed outside Python, which cannot be put back from here
            signal.signal(number, signal.SIG_DFL if old is None else old)
