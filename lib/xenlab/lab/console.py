"""A person at the machine's serial console; Ctrl-] leaves."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty
from pathlib import Path

from xenlab.errors import LabError
from xenlab.lab.qmp import short_path

LEAVE = b"\x1d"


def attach(path: Path) -> None:
    """Join this terminal and a serial console's socket until Ctrl-] or the machine's end.

    Raises LabError if the console is not there.
    """
    line = socket.socket(socket.AF_UNIX)
    try:
        with short_path(path) as address:
            line.connect(address)
    except OSError as error:
        line.close()
        raise LabError(
            f"the serial console does not answer: {error.strerror}", hint="xenlab lab up"
        ) from error
    keyboard = sys.stdin.fileno()
    with line:
        if not os.isatty(keyboard):
            _copy(line, keyboard)
            return
        before = termios.tcgetattr(keyboard)
        tty.setraw(keyboard)
        try:
            _copy(line, keyboard)
        finally:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _copy(line: socket.socket, keyboard: int) -> None:
    while True:
        for ready in select.select([line.fileno(), keyboard], [], [])[0]:
            if ready == line.fileno():
                data = line.recv(65536)
                if not data:
                    return
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
            else:
                typed = os.read(keyboard, 1024)
                before, left, _ = typed.partition(LEAVE)
                line.sendall(before)
                if left or not typed:
                    return
