"""Small chapters over a real sshd: their folder, their parameters file, and how they are run."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from tests.sites import lab_text
from tests.ssh.conftest import Sshd, processes_with

from xenlab.cli.cli import main
from xenlab.journal import Journal

PARTS = '''
"""States for the chapters under test."""
import os, signal, time
from dataclasses import dataclass
from xenlab.command import Command
from xenlab.resources.base import Difference, Resource
from xenlab.errors import StepFailed
from xenlab.platform.power import Manual

@dataclass(frozen=True)
class Made(Resource):
    path: str
    script: str = 'echo made | tee -a -- "$1"'

    def probe(self, host):
        made = host.test(Command.argv("test", "-s", self.path))
        return None if made else Difference(f"make {self.path}")

    def apply(self, host, report):
        report("making", 0.5)
        host.run(Command.script(self.script, self.path), timeout=120)

@dataclass(frozen=True)
class KernelKilled(Made):
    def apply(self, host, report):
        os.kill(os.getpid(), signal.SIGKILL)

@dataclass(frozen=True)
class Told(Resource):
    command: Command

    def probe(self, host):
        return Difference("tell")

    def apply(self, host, report):
        host.run(self.command)

    def verify(self, host):
        pass

@dataclass(frozen=True)
class Asking(Made):
    def apply(self, host, report):
        Manual().boot("rescue", host, report)
        report("waiting until the rescue system answers")
        host.run(Command.script('until [ -s "$1" ]; do sleep 0.2; done', self.path), timeout=120)

@dataclass(frozen=True)
class Impossible(Made):
    def apply(self, host, report):
        raise StepFailed("the moon is not full", hint="wait for it")
'''


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Site:
    """A folder with chapters, a parameters file and run folders."""

    folder: Path
    sshd: Sshd

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def file(self) -> Path:
        return self.folder / "site.yaml"

    @property
    def ssh(self) -> dict[str, object]:
        """How the site's machine is reached."""
        return {
            "host": self.sshd.alias,
            "config": str(self.sshd.config),
            "patience_seconds": 2,
        }

    def write(self, **keys: object) -> None:
        values = {"site": "test", "ssh": self.ssh, "power": "manual"}
        self.file.write_text(lab_text(**values | keys))
        (self.folder / "xenlab.toml").write_text(f'runs = "{self.runs}"\n')

    def chapter(
        self,
        name: str,
        *cells: str,
        close: str = "chapter.close()",
        needs: str = "",
        more: str = "",
    ) -> None:
        """``more`` are lines of the parameters cell."""
        parameters = (
            'ssh: dict = {}  # how to reach it\nsite: str = "lab"  # its name\nsecrets: list = []\n'
            'disk: str = "/dev/vda"  # the disk that is partitioned\n'
            f"may_wipe: list = []  # serials of the disks that may be wiped\n{more}"
        )
        first = new_code_cell(parameters)
        first.metadata["tags"] = ["parameters"]
        opening = (
            "from parts import *\nfrom xenlab.chapter.notebook import open_chapter\n"
            f'chapter = open_chapter("{name}", globals())\n{needs}'
        )
        notebook = new_notebook(
            cells=[new_markdown_cell(f"# {name}"), first]
            + [new_code_cell(text) for text in (opening, *cells, close)],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        place = self.folder / "notebooks"
        place.mkdir(exist_ok=True)
        (place / "parts.py").write_text(PARTS)
        nbformat.write(notebook, place / f"{name}.ipynb")

    def made(self, number: str, what: str = "Made", **more: str) -> str:
        words = "".join(f", {key}={value!r}" for key, value in more.items())
        path = str(self.path(number))
        return f'chapter.ensure("{number} Make {number}", {what}({path!r}{words}), on=chapter.host)'

    def path(self, number: str) -> Path:
        return self.folder / f"made-{number}"

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "xenlab", *words]

    def xenlab(self, *words: str) -> Done:
        """Run the command line here and now."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as caught:
            main(list(words))
        return Done(int(caught.value.code or 0), out.getvalue(), err.getvalue())

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*words),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # a background job of a shell ignores SIGINT, and so would all that it starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def processes(self) -> list[int]:
        """Every process of a command that was started here, kernels included."""
        return processes_with(f"XENLAB_TEST={self.folder}")

    def run_folders(self) -> list[Path]:
        return sorted(self.runs.glob("*/"))

    def journal(self) -> Journal:
        return Journal(self.run_folders()[-1])

    def steps(self) -> list[tuple[str, str]]:
        """How the steps of cells ended; opening a chapter is a step as well."""
        finals = [r for r in self.journal().records() if r["phase"] == "final"]
        return [(r["step"], r["status"]) for r in finals if not r["step"].endswith(".0")]


def one_line(text: str) -> str:
    """A text with all white space alike."""
    return " ".join(text.split())
