"""One notebook, executed by papermill in a kernel of its own that never outlives us."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import papermill
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

LEAVE_SECONDS = 60.0
"""How long an interrupted step may take to end its remote processes and write its record."""


def execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    environment: Mapping[str, str],
    lock: int,
    log: Path,
) -> str:
    """Execute a notebook; return "" or, in one line, what stopped it.

    The kernel has ``environment`` added to ours, inherits the file descriptor ``lock``, writes
    what it has to say outside of cells to ``log``, and is gone when this returns. What the
    notebook did is not ours to say: the journal knows. Raises KeyboardInterrupt after the kernel
    was interrupted and ended.
    """
    kernels: list[AsyncKernelManager] = []
    with log.open("ab") as log_file:
        options = {
            "env": {**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1", **environment},
            "stdout": log_file,
            "stderr": log_file,
            "pass_fds": (lock,),
        }
        try:
            with _quiet():
                papermill.execute_notebook(
                    _plain(notebook),
                    _plain(output),
                    dict(parameters),
                    kernel_name="python3",
                    language="python",
                    progress_bar=False,
                    log_output=False,
                    cwd=str(notebook.parent),
                    kernel_manager_class=_manager(kernels, options),
                )
        except PapermillExecutionError as error:
            return f"{error.ename}: {error.evalue}"
        except DeadKernelError:
            return "the notebook's kernel died"
        except Exception as error:
            # a notebook that papermill cannot read or start: for a person, one line like the rest
            return f"{type(error).__name__}: {error}"
        finally:
            for kernel in kernels:
                _end(kernel)
    return ""


def _manager(
    started: list[AsyncKernelManager], options: Mapping[str, Any]
) -> type[AsyncKernelManager]:
    class Manager(AsyncKernelManager):
        """Starts the kernel with our options, and gives it time to leave."""

        async def start_kernel(self, **given: Any) -> None:  # type: ignore[override]
            self.shutdown_wait_time = 2 * LEAVE_SECONDS
            started.append(self)
            await super().start_kernel(**{**given, **options})

    return Manager


def _end(kernel: AsyncKernelManager) -> None:
    """Kill what is still there of a kernel that was not ended in an orderly way."""
    process = getattr(kernel.provisioner, "process", None)
    if process is not None and process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _plain(path: Path) -> str:
    # papermill sends paths through str.format
    return str(path.absolute()).replace("{", "{{").replace("}", "}}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep papermill's log lines, which the journal makes superfluous, off the terminal."""
    logger = logging.getLogger("papermill")
    silence = logging.NullHandler()
    before = logger.propagate
    # its modules log under names below this one, so disabling this one alone is not enough
    logger.addHandler(silence)
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(silence)
        logger.propagate = before
