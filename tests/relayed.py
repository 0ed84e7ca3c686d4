"""The relay of a lab on a port of this machine: a process for each connection, as QEMU has it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from xenlab_lab import mirrors, relay

PROGRAM = Path(relay.__file__)


@dataclass
class Served:
    """Where it is, and how many connections it has had."""

    url: str
    connections: int = 0


@contextmanager
def relayed(folder: Path) -> Iterator[Served]:
    """It serves what the settings in a folder let through."""
    words = [sys.executable, "-I", "-S", str(PROGRAM), mirrors.SETTINGS]
    children: list[subprocess.Popen[bytes]] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = Served(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def serve() -> None:
            while True:
                try:
                    domain, _ = listener.accept()
                except OSError:
                    return
                with domain:
                    served.connections += 1
                    children.append(subprocess.Popen(words, cwd=folder, stdin=domain.fileno()))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for child in children:
                child.kill()
                child.wait()
