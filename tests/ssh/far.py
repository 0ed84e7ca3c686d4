"""A line with a delay: what comes on a port of this machine goes on to another one, but later."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue

PIECE = 65536


@contextmanager
def delayed(port: int, round_trip: float) -> Iterator[int]:
    """The port that leads to another one of this machine; an answer takes so many seconds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    near, _ = listener.accept()
                except OSError:
                    return
                far = socket.create_connection(("127.0.0.1", port))
                for one, other in ((near, far), (far, near)):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    _late(one, other, round_trip / 2)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _late(one: socket.socket, other: socket.socket, seconds: float) -> None:
    """What one sends arrives at the other so much later, its end as well."""
    under_way: SimpleQueue[tuple[float, bytes]] = SimpleQueue()

    def take() -> None:
        piece = b"begin"
        while piece:
            try:
                piece = one.recv(PIECE)
            except OSError:
                piece = b""
            under_way.put((time.monotonic() + seconds, piece))

    def give() -> None:
        while True:
            due, piece = under_way.get()
            time.sleep(max(0.0, due - time.monotonic()))
            with suppress(OSError):
                if not piece:
                    other.shutdown(socket.SHUT_RDWR)
                    return
                other.sendall(piece)

    for work in (take, give):
        threading.Thread(target=work, daemon=True).start()
