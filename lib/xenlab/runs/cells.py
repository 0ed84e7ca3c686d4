"""A run's notebooks, their cells executed in this process: no kernel is started for them."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from xenlab import durable
from xenlab.chapter import events
from xenlab.chapter.card import Card
from xenlab.chapter.chapter import Chapter
from xenlab.chapter.machine_lock import Hold
from xenlab.chapter.notebook import bundle, opening_bundle
from xenlab.chapter.opening import RUNBOOK
from xenlab.errors import DiskFull
from xenlab.journal import Journal
from xenlab.masking import clean
from xenlab.resources.ssh_access import way_to
from xenlab.runs.execute import RunPlan
from xenlab.site.loader import INJECTED
from xenlab.site.schema import part
from xenlab.transport.ssh import SSH


class Cells(ExitStack):
    """Executes the notebooks of a run; several runs may do so in threads of one process.

    A kernel takes seconds and more than a hundred megabytes; a chapter's cells need none. What
    they show is kept in the executed notebook as a kernel's would be; what they print is not.
    ``told`` gets each event of the chapters; ``stop`` stops the step under way once it is set.
    Files are copied to the machine and its guests within ``uploading``.
    """

    def __init__(
        self,
        plan: RunPlan,
        folder: Path,
        stop: threading.Event,
        told: events.Sink = events.ignore,
        uploading: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        super().__init__()
        self._plan = plan
        self._journal = Journal(folder)
        self._stop = stop
        self._told = told
        self._ssh = SSH(way_to(plan.site))
        self._ssh.uploading = uploading
        self.callback(self._ssh.close)

    def prepare(self) -> None:
        """Connect beforehand; what hinders it, `execute` will say."""
        beside = str(self._plan.notebooks[0].parent)
        # a chapter's own module lies beside it, as a kernel finds it
        if beside not in sys.path:
            sys.path.append(beside)
        threading.Thread(target=self._ssh.prepare, daemon=True).start()

    def execute(self, notebook: Path, output: Path, parameters: Mapping[str, Any]) -> str:
        """Execute a notebook; return "" or, in one line, what stopped it.

        Raises KeyboardInterrupt after a step was stopped, DiskFull where the executed notebook
        does not fit on the disk.
        """
        book = json.loads(notebook.read_text(encoding="utf-8"))
        _inject(book["cells"], parameters)
        namespace: dict[str, Any] = {"__name__": "__main__"}
        shown = _Shown(self._told)
        whole = False
        try:
            code = (cell for cell in book["cells"] if cell["cell_type"] == "code")
            for number, cell in enumerate(code, start=1):
                cell["execution_count"] = number
                try:
                    self._run(notebook, "".join(cell["source"]), namespace, parameters, shown)
                finally:
                    cell["outputs"] = shown.taken()
            whole = True
        except (Exception, SystemExit) as error:
            cell["outputs"].append(_error(error))
            name = "" if isinstance(error, DiskFull) else f"{type(error).__name__}: "
            return f"{name}{error}"
        finally:
            chapter = namespace.get(RUNBOOK)
            if isinstance(chapter, Chapter) and not whole:
                chapter.hang_up()
            text = json.dumps(book, indent=1, ensure_ascii=False) + "\n"
            durable.create(output, text.encode("utf-8", "backslashreplace"))
        return ""

    def _run(
        self,
        notebook: Path,
        source: str,
        namespace: dict[str, Any],
        parameters: Mapping[str, Any],
        shown: _Shown,
    ) -> None:
        """Execute a cell; `open_chapter` in it gives back the chapter that is opened for it."""
        if "open_chapter(" in source and RUNBOOK not in namespace:
            namespace[RUNBOOK] = self._opened(notebook.stem, parameters, shown.on)
        exec(compile(source, f"<{notebook.name}>", "exec"), namespace)

    def _opened(self, name: str, parameters: Mapping[str, Any], sink: events.Sink) -> Chapter:
        plan = self._plan
        return Chapter(
            name,
            part(parameters, f"the parameters of {name}"),
            self._journal,
            sink,
            mode=plan.mode,
            hold=Hold.within(self._journal.folder, name),
            stop=self._stop,
            destroy=plan.destroy,
            selected=plan.selected,
            connection=self._ssh,
        )


class _Shown:
    """What a notebook's steps show, cell by cell, as its file holds it."""

    def __init__(self, told: events.Sink) -> None:
        self._told = told
        self._lock = threading.Lock()
        self._opening: list[dict[str, str]] = []
        self._cards: list[Card] = []
        self._folder = ""

    def on(self, event: events.Event) -> None:
        """Take an event (`events.Sink`): output comes from several threads at once."""
        with self._lock:
            match event:
                case events.Opened():
                    self._folder = f"{event.place}/output"
                    self._opening.append(opening_bundle(event))
                case events.Started(title):
                    self._cards.append(Card(title, folder=self._folder))
                case _ if self._cards:
                    self._cards[-1].take(event)
        self._told(event)

    def taken(self) -> list[dict[str, Any]]:
        """What was shown since the last call."""
        with self._lock:
            bundles = [*self._opening, *(bundle(card) for card in self._cards)]
            self._opening, self._cards = [], []
        return [{"output_type": "display_data", "data": b, "metadata": {}} for b in bundles]


def _inject(cells: list[dict[str, Any]], parameters: Mapping[str, Any]) -> None:
    """Put a cell with these values behind the parameters cell, as papermill does."""
    lines = "".join(f"{name} = {value!r}\n" for name, value in parameters.items())
    for number, cell in enumerate(cells):
        if "parameters" in cell["metadata"].get("tags", []):
            injected = {
                "cell_type": "code",
                "id": "injected-parameters",
                "metadata": {"tags": ["injected-parameters"]},
                "source": INJECTED + lines,
            }
            cells.insert(number + 1, injected)
            return


def _error(error: BaseException) -> dict[str, Any]:
    line = clean(f"{type(error).__name__}: {error}")
    return {
        "output_type": "error",
        "ename": type(error).__name__,
        "evalue": clean(str(error)),
        "traceback": [line],
    }
