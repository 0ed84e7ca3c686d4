"""One piece of work at a time in a thread of its own, so that buttons are heard meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Worker:
    """Does what it is given in a thread; tells ``changed`` when it begins and when it ends.

    ``stop`` is set to stop what is being done, whatever it does.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.stop = threading.Event()
        self._changed = changed
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether something is being done."""
        return self._thread is not None

    def start(self, work: Callable[[], None]) -> bool:
        """Do this now; False, and nothing is done, where something else still is."""
        with self._lock:
            if self._thread is not None:
                return False
            self.stop.clear()
            self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
            self._thread.start()
            self._changed()
        return True

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for its end; whether it came in time."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return not self.busy

    def _run(self, work: Callable[[], None]) -> None:
        with self._lock:
            # that it begins is told before that it ends
            pass
        try:
            work()
        finally:
            self._thread = None
            self._changed()
