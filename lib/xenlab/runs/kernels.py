"""A run's notebooks, executed by papermill one after the other in a kernel that dies with us."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from jupyter_core.utils import ensure_event_loop
from traitlets import Unicode

from xenlab import durable
from xenlab.chapter.opening import CONNECTION
from xenlab.errors import DiskFull

LEAVE_SECONDS = 60.0
"""How long an interrupted step may take to end its remote processes and write its record."""

_READY = "import xenlab.chapter.notebook; {} = xenlab.chapter.notebook.run_connection()"
"""What a kernel does beforehand; a chapter finds the connection under the name that goes in."""

_FORGET = "from xenlab.chapter.notebook import forget_chapter; forget_chapter()"
"""What it does between two notebooks: the next one finds no variable and counts from 1."""

FORGET_SECONDS = 60.0
"""How long that may take before the kernel counts as hung, and another one is started."""


class Kernels(ExitStack):
    """The kernel of a run's notebooks, which lie in ``folder``; a dead one is replaced.

    A kernel needs seconds to start, to import xenlab and to log in to the machine. One does it
    beforehand, from `prepare` on, and serves all notebooks: starting is processor time, which an
    emulated machine beside it would miss. It has ``environment`` added to ours, inherits the file
    descriptor ``lock``, and writes what it has to say outside of cells to ``log``, a new file. It
    is gone at the end of the block.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str], *, lock: int, log: Path
    ) -> None:
        super().__init__()
        output = self.enter_context(log.open("xb"))
        self._options: dict[str, Any] = {
            "cwd": str(folder),
            "env": {**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1", **environment},
            "stdout": output,
            "stderr": output,
            "pass_fds": (lock,),
            "extra_arguments": [
                f"--IPKernelApp.exec_lines={_READY.format(CONNECTION)}",
                "--HistoryManager.hist_file=:memory:",
            ],
        }
        self._kernel: _Kernel | None = None
        self._used = False

    def prepare(self) -> None:
        """Start the kernel; what hinders it, `execute` will say."""
        with suppress(Exception):
            self._kernel = self._start()

    def execute(self, notebook: Path, output: Path, parameters: Mapping[str, Any]) -> str:
        """Execute a notebook; return "" or, in one line, what stopped it.

        What the notebook did is not ours to say: the journal knows. Raises KeyboardInterrupt after
        the kernel was interrupted and ended, DiskFull where the executed notebook does not fit on
        the disk.
        """
        # seconds of importing, in which the kernel starts
        import papermill
        from nbclient.exceptions import DeadKernelError
        from papermill.exceptions import PapermillExecutionError

        try:
            with durable.space(output.parent), self._ready() as kernel, _quiet():
                papermill.execute_notebook(
                    _plain(notebook),
                    _plain(output),
                    dict(parameters),
                    kernel_name="python3",
                    language="python",
                    progress_bar=False,
                    log_output=False,
                    cwd=str(notebook.parent),
                    km=kernel,
                )
        except PapermillExecutionError as error:
            name = "" if error.ename == DiskFull.__name__ else f"{error.ename}: "
            return f"{name}{error.evalue}"
        except DeadKernelError:
            return "the notebook's kernel died"
        except DiskFull:
            raise
        except Exception as error:
            # a notebook that papermill cannot read or start: for a person, one line like the rest
            return f"{type(error).__name__}: {error}"
        return ""

    @contextmanager
    def _ready(self) -> Iterator[_Kernel]:
        kernel, self._kernel = self._kernel, None
        if kernel is None or (self._used and not kernel.ready_again()):
            kernel = self._start()
        self._used = True
        try:
            yield kernel
        except BaseException:
            try:
                kernel.hang_up()
            finally:
                kernel.leave()
            raise
        kernel.hang_up()
        self._kernel = kernel

    def _start(self) -> _Kernel:
        kernel = _Kernel(kernel_name="python3")
        self.callback(kernel.end)
        self._used = False
        kernel.start_kernel(**self._options)
        return kernel


class _Kernel(KernelManager):
    """A kernel that is given time to leave. nbclient wants an asynchronous conversation with it."""

    client_class = Unicode("jupyter_client.asynchronous.AsyncKernelClient")

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.shutdown_wait_time = 2 * LEAVE_SECONDS
        self._conversations: list[BlockingKernelClient] = []

    def client(self, **settings: Any) -> BlockingKernelClient:
        """A conversation, which `hang_up` ends."""
        conversation = super().client(**settings)
        self._conversations.append(conversation)
        return conversation

    def hang_up(self) -> None:
        """End the conversations with it, and what an interruption left waiting for its answers."""
        loop = ensure_event_loop()
        waiting = asyncio.all_tasks(loop)
        for task in waiting:
            task.cancel()
        if waiting:
            # collected here, or asyncio would complain on the terminal of errors nobody looked at
            everything = asyncio.gather(*waiting, return_exceptions=True)
            loop.run_until_complete(everything)
        while self._conversations:
            self._conversations.pop().stop_channels()

    def ready_again(self) -> bool:
        """Let it forget the notebook that was executed; whether that worked."""
        if not self.is_alive():
            return False
        conversation = self.blocking_client()
        conversation.start_channels()
        try:
            answer = conversation.execute(_FORGET, silent=True, reply=True, timeout=FORGET_SECONDS)
        except TimeoutError:
            return False
        finally:
            conversation.stop_channels()
        return bool(answer["content"]["status"] == "ok")

    def leave(self) -> None:
        """Interrupt what it does, ask it to leave and wait until it has."""
        if self.is_alive():
            self.shutdown_kernel()
        self.cleanup_resources()

    def end(self) -> None:
        """Kill what is still there of it."""
        process = getattr(self.provisioner, "process", None)
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.cleanup_connection_file()


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
