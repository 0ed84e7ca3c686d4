"""The command line's options: JSON, a consent, the site's file, colours, a guessed command."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.unit.test_cli import Run, refused, xenlab

from xenlab.cache import cache_root
from xenlab.cli.cli import EXIT_STATUSES
from xenlab.journal import Journal

__all__ = ["xenlab"]

ROOT = Path(__file__).parents[2]


def on_its_terminal() -> None:
    """Make the terminal the one whose Ctrl-C is heard."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def asleep(pid: int) -> bool:
    """Whether a process waits, here for what a person types."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def program(
    *words: str, folder: Path, answer: str = "", **environment: str
) -> tuple[int, str, str]:
    """The program on a terminal, where a person types; its exit status, stdout and stderr.

    Standard output is a pipe of its own, unless an empty answer says that nobody types.
    """
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "xenlab", *words],
        cwd=folder,
        env={**os.environ, "TERM": "xterm-256color", **environment},
        stdin=follower,
        stdout=subprocess.PIPE if answer else follower,
        stderr=follower,
        text=True,
        preexec_fn=on_its_terminal,
    )
    os.close(follower)
    screen = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not select.select([leader], [], [], 1)[0]:
            continue
        try:
            piece = os.read(leader, 65536)
        except OSError:
            break
        screen += piece
        if answer and b"to go on: " in screen:
            # a key that comes before Python waits for one interrupts nothing
            while not asleep(process.pid) and time.monotonic() < deadline:
                time.sleep(0.01)
            os.write(leader, answer.encode())
            answer = ""
    else:
        process.kill()
    out = process.stdout.read() if process.stdout else ""
    status = process.wait(60)
    os.close(leader)
    return status, out, screen.decode()


def a_run(runs: Path, name: str, status: str = "ok", **more: object) -> Journal:
    """A run with one chapter, of one step, as its journal tells it."""
    journal = Journal(runs / name)
    (runs / name / "run.json").write_text(
        json.dumps({"chapters": ["01_x"], "parameters": {"site": name}, "mode": "apply"})
    )
    journal.append(chapter="01_x", phase="open", status="apply")
    step = {"chapter": "01_x", "step": "01.1", "title": "01.1 Title", "phase": "final"}
    journal.append(**step, status=status, seconds=2.0, **more)
    journal.append(chapter="01_x", phase="close", status="done")
    return journal


def a_lab(name: str) -> Path:
    """The disk of a lab that was never started."""
    disk = cache_root() / "labs" / name / "disk.qcow2"
    disk.parent.mkdir(parents=True)
    disk.write_bytes(b"x" * 5000)
    return disk


def test_the_version_is_that_of_the_package(xenlab: Run) -> None:
    done = xenlab("--version")
    assert (done.returncode, done.stdout) == (0, f"xenlab {version('xenlab')}\n")


def test_runs_and_their_steps_as_json(xenlab: Run, tmp_path: Path) -> None:
    assert json.loads(xenlab("runs", "--json").stdout) == []
    runs = tmp_path / "runs"
    (tmp_path / "xenlab.toml").write_text(f'runs = "{tmp_path}/runs"\n')
    difference = {"": {"summary": "write x", "diff": "+\x1b]0;y\x07\x9b", "rows": [], "hint": ""}}
    commands = [{"phase": "look", "command": "cat x", "status": 1, "seconds": 0.5, "output": ""}]
    a_run(
        runs,
        "1-x",
        "would change",
        difference=difference,
        script="echo y > x",
        message="unknown",
        commands=commands,
    )
    (listed,) = json.loads(xenlab("runs", "--json").stdout)
    assert (listed["run"], listed["done"], listed["state"]) == ("1-x", 1, "done")
    assert listed["started"] is None
    shown = xenlab("show", "--json").stdout
    found = json.loads(shown)
    assert found["run"] == "1-x" and found["folder"] == str(runs / "1-x")
    (chapter,) = found["chapters"]
    assert (chapter["chapter"], chapter["status"], chapter["message"]) == ("01_x", "done", "")
    (step,) = chapter["steps"]
    assert (step["step"], step["title"], step["status"]) == ("01.1", "01.1 Title", "would change")
    assert (step["seconds"], step["message"], step["script"]) == (2.0, "unknown", "echo y > x")
    (differs,) = step["differences"]
    assert differs == {"label": "", **{k: difference[""][k] for k in ("summary", "diff", "rows")}}
    # a terminal that shows the document executes nothing of it
    assert shown.isascii() and "\x1b" not in shown and "\x07" not in shown
    alone = json.loads(xenlab("show", "--step", "01.1", "--json").stdout)
    assert alone == step | {"commands": commands}


def test_two_runs_as_json(xenlab: Run, tmp_path: Path) -> None:
    (tmp_path / "xenlab.toml").write_text(f'runs = "{tmp_path}/runs"\n')
    a_run(tmp_path / "runs", "1-x")
    later = a_run(tmp_path / "runs", "2-x")
    later.append(
        chapter="01_x", step="01.2", title="01.2 New", phase="final", status="failed", seconds=1.0
    )
    found = json.loads(xenlab("diff", "1-x", "2-x", "--json").stdout)
    assert found["parameters"] == [{"parameter": "site", "first": "1-x", "second": "2-x"}]
    assert found["steps"] == [
        {
            "chapter": "01_x",
            "title": "01.2 New",
            "first": "",
            "second": "failed",
            "first_seconds": None,
            "second_seconds": 1.0,
        }
    ]
    assert (found["compared"], found["differing"]) == (2, 1)
    every = json.loads(xenlab("diff", "1-x", "2-x", "--json", "--all").stdout)
    assert len(every["steps"]) == 2


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("stauts", "xenlab status"),
        ("aply", "xenlab apply"),
        ("verify", "xenlab audit verify"),
        ("up", "xenlab lab up"),
        ("ssh", "xenlab lab ssh"),
        ("chekc", "xenlab check"),
        ("lab stats", "xenlab lab status"),
        ("lab run", "xenlab run"),
        ("lab rest", "xenlab lab reset"),
        ("audit show", "xenlab show"),
        ("version", "xenlab --version"),
    ],
)
def test_a_guessed_command_is_answered_with_the_right_one(
    xenlab: Run, words: str, meant: str
) -> None:
    done = xenlab(*words.split())
    refused(done, f"xenlab {words}: because there is no such command\nTry: {meant}\n")
    assert done.stdout == "" and done.stderr.count("\n") == 2


@pytest.mark.parametrize("group", ["lab", "audit"])
def test_a_group_alone_shows_its_help(xenlab: Run, group: str) -> None:
    done = xenlab(group)
    assert f"Usage: xenlab {group}" in done.stdout + done.stderr
    assert "Commands" in done.stdout + done.stderr


def test_the_exit_statuses_stand_in_the_help_and_in_the_docs(xenlab: Run) -> None:
    said = xenlab("--help").stdout
    pages = (ROOT / "docs/how-it-works.md").read_text()
    for line in EXIT_STATUSES.splitlines()[1:]:
        assert line.strip() in said
    for status in re.findall(r"^  (\d+)", EXIT_STATUSES, re.MULTILINE):
        assert re.search(rf"^\| `{status}` \|", pages, re.MULTILINE), status


def test_every_variable_of_the_environment_is_documented() -> None:
    pages = (ROOT / "docs/how-it-works.md").read_text()
    reads = re.compile(r"""environ(?:\.get\(|\[)\s*"(\w+)"|"(XENLAB_[A-Z]+)" (?:not )?in os""")
    found = {
        name
        for module in (ROOT / "lib").rglob("*.py")
        for names in reads.findall(module.read_text())
        for name in names
        if name
    }
    assert {"XENLAB_CACHE", "XENLAB_RUNS", "XENLAB_SITE", "NO_COLOR"} <= found
    assert [name for name in sorted(found) if f"| `{name}`" not in pages] == []


def test_the_old_name_of_the_option_that_names_a_lab(xenlab: Run) -> None:
    for option in ("--lab", "--name"):
        assert "XENLAB-OTHER" in xenlab("lab", "status", option, "other").stdout
    told = xenlab("lab", "status", "--help").stdout
    assert "--lab" in told and "--name" not in told


def test_a_disk_is_deleted_only_with_a_consent(xenlab: Run) -> None:
    disk = a_lab("lab")
    refused(xenlab("lab", "reset"), "cannot delete the disk of the lab 'lab': because nobody can")
    assert disk.exists()
    assert xenlab("lab", "reset", "--yes").returncode == 0
    assert not disk.exists()


@pytest.mark.parametrize(("answer", "status"), [("other\n", 0), ("lab\n", 2), ("\x04", 2)])
def test_a_person_types_the_name_of_the_lab(
    xenlab: Run, tmp_path: Path, answer: str, status: int
) -> None:
    disk = a_lab("other")
    words = ("lab", "reset", "--lab", "other")
    code, out, screen = program(*words, folder=tmp_path, answer=answer)
    assert (code, out) == (status, ""), screen
    assert "This deletes the disk of the lab 'other'." in screen
    assert disk.exists() is (status != 0)
    assert ("cannot delete" in screen) is (status != 0)


def test_whoever_stops_at_the_question_has_deleted_nothing(xenlab: Run, tmp_path: Path) -> None:
    disk = a_lab("lab")
    code, _, screen = program("lab", "reset", folder=tmp_path, answer="\x03")
    assert code == 130 and "Traceback" not in screen, screen
    assert disk.exists()


def test_labs_are_listed_and_removed(xenlab: Run) -> None:
    assert "there is no lab yet" in xenlab("lab", "list").stdout
    disk = a_lab("first")
    (a_lab("second").parent / "state.json").write_text("{")
    (cache_root() / "labs" / "Not a lab").mkdir()
    listed = xenlab("lab", "list").stdout.splitlines()
    assert [line.split()[:2] for line in listed[1:]] == [["first", "off"], ["second", "damaged"]]
    found = json.loads(xenlab("lab", "list", "--json").stdout)
    assert [each["name"] for each in found] == ["first", "second"]
    assert found[0]["disk_bytes"] == disk.stat().st_blocks * 512 > 0
    refused(xenlab("lab", "remove", "first"), "cannot delete the lab 'first' with its disk")
    refused(
        xenlab("lab", "remove", "third", "--yes"),
        "cannot remove the lab 'third': because there is none",
    )
    assert disk.exists()
    for name in ("first", "second"):
        assert xenlab("lab", "remove", name, "--yes").returncode == 0
    assert json.loads(xenlab("lab", "list", "--json").stdout) == []
    assert not disk.parent.exists()


def test_a_site_is_never_taken_unasked(
    xenlab: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    (tmp_path / "other.yaml").write_text("version: 3\n")
    for word in ("run", "plan", "check"):
        refused(xenlab(word), "no file was given, and this folder has none\nTry: -f FILE, or")
    (tmp_path / "parameters").mkdir()
    (tmp_path / "parameters/lab.yaml").write_text("site: lab\n")
    refused(xenlab("run"), "Try: -f parameters/lab.yaml\n")
    refused(xenlab("lab", "kernels"), "Try: -f parameters/lab.yaml\n")
    (tmp_path / "castle.yaml").write_text("site: castle\ncolour: red\n")
    refused(xenlab("run"), "castle.yaml")
    assert "no file was given" not in xenlab("run").stderr
    (tmp_path / "keep.yml").write_text("# a second one\nsite: keep\n")
    refused(xenlab("plan"), "castle.yaml and keep.yml are here\nTry: -f castle.yaml")
    monkeypatch.setenv("XENLAB_SITE", str(tmp_path / "elsewhere.yaml"))
    refused(xenlab("run"), "there is no such parameters file")
    refused(xenlab("run", "-f", "castle.yaml"), "castle.yaml")


@pytest.mark.parametrize(
    ("words", "environment", "plain"),
    [
        (["--help"], {}, False),
        (["--no-color", "--help"], {}, True),
        (["--help"], {"NO_COLOR": "1"}, True),
        (["lab", "status"], {}, False),
        (["--no-color", "lab", "status"], {}, True),
        (["lab", "status"], {"NO_COLOR": "1", "FORCE_COLOR": "1"}, True),
        (["run", "--frm"], {}, False),
        (["--no-color", "run", "--frm"], {}, True),
        (["show", "gone"], {}, False),
        (["show", "gone"], {"NO_COLOR": "1"}, True),
    ],
)
def test_without_colour_a_terminal_gets_no_escape_sequence(
    xenlab: Run, tmp_path: Path, words: list[str], environment: dict[str, str], plain: bool
) -> None:
    _, _, screen = program(*words, folder=tmp_path, **environment)
    assert ("\x1b" not in screen) is plain, screen


def test_a_shell_completes_commands(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "_XENLAB_COMPLETE": "complete_bash",
        "COMP_WORDS": "xenlab lab stat",
        "COMP_CWORD": "2",
    }
    xenlab = [sys.executable, "-m", "xenlab"]
    done = subprocess.run(
        xenlab, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["status"], done.stderr
    # which shell that is, is seen by the parent
    shell = ["bash", "-c", f"{shlex.join(xenlab)} --show-completion; exit"]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "_XENLAB_COMPLETE=complete_bash" in done.stdout, done.stderr
