"""Talking to a running QEMU: one short QMP connection per request."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError
from qemu.qmp.events import EventListener

from xenlab.errors import LabError

ANSWER_SECONDS = 30.0


@contextlib.contextmanager
def short_path(socket: Path) -> Iterator[str]:
    """A path to a Unix socket that fits into the 108 bytes the kernel allows."""
    folder = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{socket.name}"
    finally:
        os.close(folder)


def execute(
    socket: Path, command: str, *, seconds: float = ANSWER_SECONDS, **arguments: Any
) -> Any:
    """Run one QMP command and return its answer.

    Raises LabError if QEMU does not answer within `seconds` or refuses.
    """

    async def talk(client: QMPClient) -> Any:
        return await client.execute(command, arguments or None)

    return _session(socket, talk, command, seconds)


def run_job(socket: Path, command: str, *, seconds: float, **arguments: Any) -> None:
    """Start a QEMU background job and wait until it has concluded.

    Raises LabError if the job fails or takes longer than `seconds`.
    """
    job = f"xenlab-{command}"

    async def talk(client: QMPClient) -> None:
        with client.listener("JOB_STATUS_CHANGE") as events:
            await client.execute(command, {"job-id": job, **arguments})
            await _concluded(events, job)
        jobs: Any = await client.execute("query-jobs")
        await client.execute("job-dismiss", {"id": job})
        for one in jobs:
            if one["id"] == job and "error" in one:
                raise LabError(f"QEMU could not finish {command}: {one['error']}")

    _session(socket, talk, command, seconds)


async def _concluded(events: EventListener, job: str) -> None:
    async for event in events:
        data: Any = event["data"]
        if data["id"] == job and data["status"] == "concluded":
            return


def _session(
    socket: Path, talk: Callable[[QMPClient], Awaitable[Any]], what: str, seconds: float
) -> Any:
    async def whole() -> Any:
        client = QMPClient("xenlab")
        with short_path(socket) as address:
            await client.connect(address)
        try:
            return await talk(client)
        finally:
            # QEMU closes first after `quit`; a lost connection is then the expected end
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()

    def work() -> Any:
        return asyncio.run(asyncio.wait_for(whole(), seconds))

    try:
        # a thread of its own: a notebook's main thread already runs an event loop
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result()
    except ExecuteError as error:
        raise LabError(f"QEMU refused {what}: {error}") from error
    except TimeoutError as error:
        raise LabError(f"QEMU did not finish {what} within {seconds:.0f} s") from error
    except (QMPError, OSError, EOFError) as error:
        raise LabError(
            f"QEMU does not answer to {what}: {error or type(error).__name__}"
        ) from error
