"""Recorder: what xenlab's transports carry, written down while a notebook runs.

Python imports this file by itself where its folder stands in $PYTHONPATH. It acts only in a
notebook's kernel and only if $XENLAB_TRACE names a folder. There each kernel writes one line of
JSON for each command, upload and closed connection, with input and output as files by their
SHA-256. xenlab itself knows nothing of it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KERNEL = "ipykernel_launcher"


class Recorder:
    """The events of this process, in a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{time.time_ns()}-{os.getpid()}.jsonl").open("x", buffering=1)
        self._lock = threading.Lock()

    def watch(self, transport: Any, kind: str, method: str) -> None:
        """Have every call of a transport's method recorded as an event of that kind."""
        original: Callable[..., Any] = getattr(transport, method)

        @functools.wraps(original)
        def recorded(own: Any, *words: Any, **options: Any) -> Any:
            event: dict[str, Any] = {
                "kind": kind,
                "transport": own.name,
                "thread": threading.get_ident(),
                "start": time.time(),
            }
            try:
                result = original(own, *words, **options)
                if kind == "run":
                    event["status"], out, _ = result
                    event["output"] = self._keep(out)
            except BaseException as error:
                event["error"] = type(error).__name__
                raise
            finally:
                event["end"] = time.time()
                if kind == "run":
                    event["text"] = words[0]
                    event["input"] = self._keep(options.get("input", b""))
                elif kind == "upload":
                    event["local"], event["remote"] = str(Path(words[0]).absolute()), words[1]
                self._add(event)
            return result

        setattr(transport, method, recorded)

    def _keep(self, data: bytes) -> str:
        if not data:
            return ""
        digest = hashlib.sha256(data).hexdigest()
        place = self._blobs / digest
        if not place.exists():
            place.write_bytes(data)
        return digest

    def _add(self, event: dict[str, Any]) -> None:
        line = json.dumps(event)
        with self._lock:
            self._file.write(line + "\n")


def record(folder: Path) -> None:
    """Record what this process does from now on."""
    from xenlab.transport.local import Local
    from xenlab.transport.ssh import SSH

    recorder = Recorder(folder)
    recorder.watch(SSH, "run", "execute")
    recorder.watch(SSH, "upload", "upload")
    recorder.watch(SSH, "close", "close")
    recorder.watch(Local, "run", "execute")


if "XENLAB_TRACE" in os.environ and KERNEL in sys.orig_argv:
    record(Path(os.environ["XENLAB_TRACE"]))
