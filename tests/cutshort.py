"""This machine behind a connection that breaks: the input of a command ends early, unsaid."""

from __future__ import annotations

import threading
from collections.abc import Callable

from xenlab.transport.local import Local


class CutShort(Local):
    """Lets so many bytes of each input through; ``-1``: all but the last."""

    def __init__(self, arrive: int) -> None:
        super().__init__("cut short")
        self._arrive = arrive

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
        """Like `Local`, with less input."""
        return super().execute(
            text,
            input=input[: self._arrive],
            timeout=timeout,
            on_output=on_output,
            stop=stop,
            mark=mark,
        )
