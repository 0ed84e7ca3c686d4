"""The command line: one clear sentence for bad input, exit statuses, words passed on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.sites import lab_text

from xenlab import cache
from xenlab.cli import lab as cli_lab
from xenlab.cli.cli import main
from xenlab.errors import BadInput
from xenlab.journal import Journal


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def xenlab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the command line in an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XENLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("NO_COLOR", "XENLAB_RUNS", "XENLAB_SITE"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str) -> Done:
        with pytest.raises(SystemExit) as caught:
            main(list(words))
        return Done(int(caught.value.code or 0), *capsys.readouterr())

    return run


def refused(done: Done, said: str, status: int = 2) -> None:
    assert done.returncode == status, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


HEAVY = {"IPython", "asyncio", "jinja2", "jupyter_client", "matplotlib", "nbformat", "numpy"}
HEAVY |= {"pandas", "papermill", "paramiko", "qemu", "traitlets", "zmq"}

START = """
import sys
from xenlab.cli.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(end.code, *sorted(%r & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["lab", "--help"], 0),
        (["run", "-f", "bad.yaml"], 2),
        (["plan", "-f", "bad.yaml"], 2),
        (["check", "-f", "bad.yaml"], 2),
        (["run", "99", "-f", "good.yaml"], 2),
        (["run", "99"], 2),
        (["--version"], 0),
        (["status"], 2),
        (["run", "--mode", "try", "-f", "good.yaml"], 2),
        (["lab", "up", "-f", "bad.yaml"], 2),
        (["script", "-f", "bad.yaml", "-o", "out"], 2),
        (["script", "99", "-f", "good.yaml", "-o", "out"], 2),
        (["lab", "kernels", "-f", "bad.yaml"], 2),
    ],
)
def test_a_refusal_waits_for_no_library(tmp_path: Path, words: list[str], status: int) -> None:
    """What takes seconds to import is imported when there is something to do (bench/start.py)."""
    (tmp_path / "bad.yaml").write_text("site: 1\n")
    (tmp_path / "good.yaml").write_text("site: good\n")
    (tmp_path / "notebooks").symlink_to(Path(__file__).parents[2] / "notebooks")
    script = START % HEAVY
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == str(status), done.stdout + done.stderr


def test_without_words_it_says_what_it_can_do(xenlab: Run) -> None:
    done = xenlab("--help")
    assert done.returncode == 0
    for word in ("run", "plan", "runs", "show", "report", "lab"):
        assert word in done.stdout
    for word in ("up", "down", "reset", "status", "ssh", "console", "snapshot", "restore", "boot"):
        assert word in xenlab("lab", "--help").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        # the chapters are those of the clone
        (["run"], "cannot choose a site: because no file was given"),
        (["run", "--mode", "dry", "-f", "x.yaml", "--notebooks", "."], "there is no such mode"),
        (["run", "-f", "gone.yaml", "--notebooks", "."], "there is no such parameters file"),
        (["run", "--resume", "last", "--notebooks", "."], "there is no run in"),
        (["run", "--resume", "last", "04"], "has its own chapters, steps, mode and lab"),
        (
            ["run", "--resume", "last", "--mode", "plan"],
            "has its own chapters, steps, mode and lab",
        ),
        (["run", "--lab", "Über", "-f", "x.yaml", "--notebooks", "."], "cannot name a lab"),
        (["show", "20260101T000000-x"], "cannot find the run 20260101T000000-x"),
        (["report"], "there is no run in"),
        (["lab", "up", "-f", "gone.yaml"], "there is no such parameters file"),
        (["lab", "status", "--lab", "a/b"], "cannot name a lab 'a/b'"),
        (["lab", "boot", "floppy"], "'floppy' is not one of 'disk', 'rescue'"),
        (["lab", "snapshot", "a/b"], "cannot name a snapshot 'a/b'"),
        (["lab", "restore", "gone"], "cannot restore snapshot 'gone'"),
        (["frobnicate"], "cannot run xenlab frobnicate: because there is no such command"),
        (["run", "-q", "-v", "-f", "x.yaml", "--notebooks", "."], "cannot show less: because -v"),
        (["run", "--frm", "08"], "No such option"),
    ],
)
def test_bad_input_is_one_sentence(xenlab: Run, words: list[str], said: str) -> None:
    refused(xenlab(*words), said)


def test_without_a_clone_the_chapters_must_be_here(
    xenlab: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenlab.durable.CLONE", tmp_path / "no clone")
    refused(xenlab("run"), "there is no folder notebooks in")


@pytest.mark.parametrize(
    "words", [["ssh"], ["ssh", "--", "xl", "list"], ["ssh", "domu2", "--", "uname", "-r"]]
)
def test_a_lab_that_is_not_running(xenlab: Run, words: list[str]) -> None:
    said = "cannot reach the lab 'lab': because it is not running"
    refused(xenlab("lab", *words), said, status=1)


def test_a_command_for_a_guest_stands_after_two_dashes(xenlab: Run) -> None:
    refused(xenlab("lab", "ssh", "domu2", "uname", "-r"), "No such option: -r")
    refused(xenlab("lab", "ssh", "domu2", "uname"), "unexpected extra argument")


def test_debug_shows_the_traceback(xenlab: Run) -> None:
    with pytest.raises(BadInput, match="cannot find the run gone"):
        xenlab("--debug", "show", "gone")


def test_the_program_of_its_own_shows_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xenlab", "lab", "status", "--lab", "a/b"],
        env={**os.environ, "XENLAB_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("cannot name a lab 'a/b': because ")


def test_an_option_of_the_other_command_is_not_ours(xenlab: Run) -> None:
    refused(xenlab("lab", "ssh", "--", "grep", "--debug"), "is not running", status=1)


def test_the_status_of_a_lab_that_never_ran(xenlab: Run) -> None:
    done = xenlab("lab", "status", "--lab", "other")
    assert done.returncode == 0
    assert "off" in done.stdout and "XENLAB-OTHER" in done.stdout
    found = json.loads(xenlab("lab", "status", "--json").stdout)
    assert found["name"] == "lab" and found["running"] is False


def test_runs_are_listed_and_shown(xenlab: Run, tmp_path: Path) -> None:
    assert "no run in" in xenlab("runs").stdout
    journal = Journal(tmp_path / "kept" / "20260101T000000-x")
    journal.append(chapter="01_x", phase="open", status="apply")
    fields = {"chapter": "01_x", "step": "01.1", "title": "01.1 [b]Title", "phase": "final"}
    journal.append(**fields, status="failed", seconds=2.0, message="no space left")
    listed = xenlab("runs", "--runs", "kept").stdout
    assert "20260101T000000-x" in listed and "failed" in listed and "0/1" in listed
    shown = xenlab("show", "--runs", "kept").stdout
    assert "01.1 [b]Title" in shown and "01_x: no space left" in shown
    page = xenlab("report", "last", "--runs", "kept").stdout.strip()
    assert "no space left" in (tmp_path / page).read_text()


def test_a_report_takes_the_place_of_a_file_alone(xenlab: Run, tmp_path: Path) -> None:
    Journal(tmp_path / "kept" / "20260101T000000-x").append(chapter="01_x", phase="open")
    (tmp_path / "page").write_text("an older one")
    (tmp_path / "link").symlink_to("page")
    os.mkfifo(tmp_path / "pipe")

    def write(place: str) -> Done:
        return xenlab("report", "last", "--runs", "kept", "-o", place)

    assert write("link").returncode == 0
    assert (tmp_path / "link").is_symlink() and "01_x" in (tmp_path / "page").read_text()
    refused(write("pipe"), "cannot write pipe: because it is no regular file")
    assert (tmp_path / "pipe").is_fifo()
    refused(write("none/x"), "cannot write none/x: because No such file or directory")


def test_kernels_are_not_compiled_where_the_target_compiles(xenlab: Run, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(lab_text(build_on="target"))
    refused(xenlab("lab", "kernels", "-f", str(file)), "because the site has build_on: target")


def test_a_lab_that_is_started_without_a_file_needs_no_other_site_s_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of the site then, how long it takes included, all labs have alike."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XENLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XENLAB_BEGAN", "1")
    monkeypatch.delenv("XENLAB_SITE", raising=False)
    (tmp_path / "notebooks").symlink_to(Path(__file__).parents[2] / "notebooks")
    site, known = cli_lab._site_of_lab(None)
    assert (site.lab, known) == ("lab", False)
    assert site.stage == f"{tmp_path}/cache/stage/{cache.DEFAULT_RELEASE}-stage.tar.zst"
    assert "15_shared_usr" in cli_lab._estimate(site, "lab").parts


def test_what_is_left_here_is_listed_with_what_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, runs = tmp_path / "a cache", tmp_path / "runs"
    runs.mkdir()
    cache.mkdir()
    (cache / "packages").write_text("bison\nflex\nbison\n")
    monkeypatch.setenv("XENLAB_CACHE", str(cache))
    with pytest.raises(SystemExit) as ended:
        main(["uninstall", "--list", "--runs", str(runs)])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for words in (f"rm -rf '{cache}'", f"rm -rf {runs}", "apt-get remove bison flex\n"):
        assert words in said
    assert cache.is_dir() and runs.is_dir()


def test_nothing_is_removed_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["uninstall"])
    assert ended.value.code == 2
    assert "xenlab uninstall --list" in capsys.readouterr().err
