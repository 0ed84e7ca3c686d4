"""Importing what a chapter will need, in a kernel that waits for it, out of everybody's way."""

from __future__ import annotations

import os
import threading
from importlib import import_module

LOWEST = 19
"""The niceness of what should use idle time only (setpriority(2))."""


def begin() -> None:
    """Import xenlab in a thread of its own; who needs it earlier waits for that thread.

    Only that thread is slowed down by others: the machines of the lab have work to do while the
    next chapter's kernel gets ready.
    """
    threading.Thread(target=_import, daemon=True).start()


def _import() -> None:
    # Linux has a niceness for each thread
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
    import_module("xenlab.notebook")
