"""This machine with mounts of its own, where a test is root: user and mount namespaces."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable

from xenlab.command import Command
from xenlab.transport.local import Local


class Namespace(Local):
    """Runs shell text as root of a user namespace; what it mounts is gone with `end`."""

    def __init__(self, *, users: bool = False) -> None:
        """``users``: not root alone, others as well (a root directory unpacked with its owners)."""
        super().__init__("namespace")
        words = ["--user", "--map-root-user"]
        if users:
            words = [] if os.geteuid() == 0 else [*words, "--map-auto"]
        self._enter = ["-m", *(["-U", "--preserve-credentials"] if words else [])]
        self._holder = subprocess.Popen(
            ["unshare", *words, "--mount", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.read(1) == b"\n", "user namespaces are not allowed here"

    def execute(
        self,
        text: str,
        *,
        input: bytes = b"",
        timeout: float,
        on_output: Callable[[str, bytes], None] | None = None,
        stop: threading.Event | None = None,
        mark: str = "",
        look: bool = False,
    ) -> tuple[int, bytes, bytes]:
        """Like `Local`, inside."""
        enter = Command.argv(
            "nsenter", "-t", self._holder.pid, *self._enter, "/bin/sh", "-c", text,
        )  # fmt: skip
        return super().execute(
            enter.text, input=input, timeout=timeout, on_output=on_output, stop=stop, mark=mark
        )

    def end(self) -> None:
        """End the namespaces with all that is mounted in them."""
        self._holder.kill()
        self._holder.communicate()
