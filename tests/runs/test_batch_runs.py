"""Whole runs of small notebooks over a real sshd: what ends well, and all that does not."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from jupyter_core.paths import jupyter_runtime_dir
from nbformat.v4 import new_code_cell
from tests.ssh.conftest import Sshd, wait_until
from tests.ssh.small import Site, one_line

from xenlab.journal import verify
from xenlab.runs.report import write


def test_chapters_run_in_order_and_leave_a_folder_that_tells_all(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"), site.made("01.2"))
    site.chapter("02_second", site.made("02.1"))
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert site.steps() == [("01.1", "changed"), ("01.2", "changed"), ("02.1", "changed")]
    lines = [one_line(line) for line in done.stdout.splitlines()]
    assert any(line.startswith("changed 01.2 Make 01.2 0.") for line in lines)
    assert any(line.startswith("2 of 2 chapters, 5 steps 2 ok, 3 changed") for line in lines)
    (folder,) = site.run_folders()
    assert f"run folder: {folder}" in done.stdout
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    kept = {path.name for path in folder.iterdir()}
    wanted = {"run.json", "journal.jsonl", "01_first.ipynb", "02_second.ipynb", "report.html"}
    assert wanted <= kept
    record = json.loads((folder / "run.json").read_text())
    assert record["chapters"] == ["01_first", "02_second"] and record["mode"] == "apply"
    assert record["parameters"]["ssh"]["host"] == site.sshd.alias
    assert record["versions"]["packages"]["papermill"]
    assert verify(folder / "journal.jsonl") == len(site.journal().records())
    page = (folder / "report.html").read_text()
    (named,) = (r for r in site.journal().records() if r.get("path") == "report.html")
    assert "Make 01.2" in page and named["prev"] in page
    assert site.processes() == []


def test_a_second_run_finds_everything_done(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"), site.made("01.2"))
    assert site.xenlab("run", "-f", "site.yaml").returncode == 0
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 0
    assert site.steps() == [("01.1", "ok"), ("01.2", "ok")]
    assert len(site.run_folders()) == 2
    listed = site.xenlab("runs").stdout
    rows = [one_line(line).split() for line in listed.splitlines()[1:]]
    assert [row[2:4] for row in rows] == [["1/1", "done"]] * 2
    shown = site.xenlab("show", "last").stdout
    assert "1 of 1 chapters, 3 steps" in one_line(shown) and "3 ok" in shown
    step = site.xenlab("show", "last", "--step", "01.2").stdout
    assert "look, exit status 0, " in step and "\n$ " in step
    nothing = site.xenlab("show", "last", "--step", "09.9")
    assert nothing.returncode == 2 and "cannot show step 09.9" in nothing.stderr


def test_plan_touches_nothing(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    done = site.xenlab("plan", "-f", "site.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.steps() == [("01.1", "would change")]
    assert not site.path("01.1").exists()


def test_a_person_who_must_do_something_is_told_at_once_and_the_run_goes_on(site: Site) -> None:
    site.chapter("01_first", site.made("01.1", "Asking"))
    process = site.start("run", "-f", "site.yaml")

    def asked() -> bool:
        return any(r["phase"] == "asked" for r in site.journal().records())

    wait_until(lambda: bool(site.run_folders()) and asked(), 120)
    site.path("01.1").write_text("booted\n")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "waiting for you: boot the machine from its rescue system." in out
    assert site.steps() == [("01.1", "changed")]
    verify(site.journal().path)


def connection_files() -> set[Path]:
    """What tells how to reach each kernel that runs, or was left behind."""
    return set(Path(jupyter_runtime_dir()).glob("kernel-*.json"))


def test_a_failed_step_ends_the_run_with_its_sentence(site: Site) -> None:
    before = connection_files()
    site.chapter("01_first", site.made("01.1"), site.made("01.2", "Impossible"), site.made("01.3"))
    site.chapter("02_second", site.made("02.1"))
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 1
    assert "the moon is not full\nTry: wait for it" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert site.steps() == [("01.1", "changed"), ("01.2", "failed")]
    table = [one_line(line) for line in done.stdout.splitlines()]
    assert any(line.startswith("01_first failed") for line in table)
    assert any(line.startswith("02_second not run") for line in table)
    assert f"xenlab run --resume {site.run_folders()[0].name}" in done.stderr
    assert site.processes() == []
    assert connection_files() <= before


def test_a_kernel_that_dies_between_two_chapters_is_replaced(site: Site) -> None:
    died = "chapter.close()\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    site.chapter("01_first", site.made("01.1"), close=died)
    site.chapter("02_second", site.made("02.1"))
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_chapter_finds_nothing_of_the_one_before_in_the_kernel_but_xenlab(site: Site) -> None:
    site.chapter("01_first", "import os\nleft, process = 1, os.getpid()\nprint(process)")
    site.chapter("02_second", "import os\nprint(os.getpid())")
    site.chapter("03_third", "left")
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 1
    assert "name 'left' is not defined" in done.stderr
    (folder,) = site.run_folders()
    first, second = (
        [cell for cell in nbformat.read(folder / name, 4).cells if cell.cell_type == "code"]
        for name in ("01_first.ipynb", "02_second.ipynb")
    )
    assert [cell.execution_count for cell in second] == list(range(1, len(second) + 1))
    # one process has served both
    printed = [cell.outputs[-1].text for cells in (first, second) for cell in cells[-2:-1]]
    assert printed[0] == printed[1]


def test_the_kernel_has_imported_xenlab_when_the_first_chapter_comes(site: Site) -> None:
    site.chapter("01_first", "xenlab.chapter.notebook", site.made("01.1"))
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def logins(site: Site) -> int:
    """How often somebody has logged in to the machine."""
    return site.sshd.log.read_text().count("Accepted publickey")


@pytest.mark.parametrize(
    ("meanwhile", "count"), [(Sshd.sessions, 1), (Sshd.restart, 2)], ids=["kept", "broken"]
)
def test_chapters_hand_their_connection_on(
    site: Site, meanwhile: Callable[[Sshd], object], count: int
) -> None:
    closed, go = site.folder / "closed", site.folder / "go"
    wait = (
        f"open({str(closed)!r}, 'x')\nwhile not os.path.exists({str(go)!r}):\n    time.sleep(0.05)"
    )
    site.chapter("01_first", site.made("01.1"), close=f"chapter.close()\n{wait}")
    site.chapter("02_second", site.made("02.1"))
    run = site.start("run", "-f", "site.yaml")
    wait_until(closed.exists, 120)
    meanwhile(site.sshd)
    go.touch()
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 0, out
    assert site.steps() == [("01.1", "changed"), ("02.1", "changed")]
    assert logins(site) == count


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("import sys\nsys.exit(0)", "without its end"),
        ("raise RuntimeError('lost my head')", "RuntimeError: lost my head"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "kernel died"),
    ],
    ids=["sys.exit", "exception", "killed"],
)
def test_a_chapter_without_its_end_has_failed(site: Site, cell: str, said: str) -> None:
    site.chapter("01_first", site.made("01.1"), cell, site.made("01.2"))
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 1, done.stdout
    assert said in done.stderr
    assert any(one_line(x).startswith("01_first unfinished") for x in done.stdout.splitlines())
    wait_until(lambda: site.processes() == [])


def test_a_missing_end_of_chapter_is_no_success(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"), close="'forgotten'")
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 1
    assert "without its end" in done.stderr


def test_a_kernel_killed_inside_a_step_is_resumed(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    site.chapter("02_second", site.made("02.1"), site.made("02.2", "KernelKilled"))
    site.chapter("03_third", site.made("03.1"))
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 1
    assert "kernel died" in done.stderr
    assert site.journal().unfinished("02_second", "02.2")
    # what killed the kernel is mended, as a person would
    site.chapter("02_second", site.made("02.1"), site.made("02.2"))
    again = site.xenlab("run", "--resume", "last")
    assert again.returncode == 0, again.stdout + again.stderr
    (folder,) = site.run_folders()
    assert site.steps() == [
        ("01.1", "changed"),
        ("02.1", "changed"),
        ("02.1", "ok"),
        ("02.2", "aborted"),
        ("02.2", "changed"),
        ("03.1", "changed"),
    ]
    assert {"02_second.ipynb", "02_second.2.ipynb"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "01_first.2.ipynb").exists()
    verify(folder / "journal.jsonl")
    assert "3 of 3 chapters" in one_line(again.stdout)


def test_the_whole_run_killed_inside_a_step_is_resumed_and_nothing_done_twice(site: Site) -> None:
    slow = 'echo once >> "$1.count"; sleep 2; echo made > "$1"'
    site.chapter("01_first", site.made("01.1"), site.made("01.2", script=slow), site.made("01.3"))
    process = site.start("run", "-f", "site.yaml")
    count = Path(f"{site.path('01.2')}.count")
    wait_until(count.exists, 150)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    again = site.xenlab("run", "--resume", str(site.run_folders()[0]))
    assert again.returncode == 0, again.stdout + again.stderr
    states = dict(site.steps())
    assert states["01.3"] == "changed" and states["01.1"] == "ok"
    assert site.path("01.1").read_text() == "made\n"
    verify(site.journal().path)
    wait_until(lambda: site.processes() == [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process(site: Site, number: signal.Signals) -> None:
    long = 'echo $$ > "$1.pid"; exec sleep 300'
    site.chapter("01_first", site.made("01.1"), site.made("01.2", script=long), site.made("01.3"))
    process = site.start("run", "-f", "site.yaml")
    pid = Path(f"{site.path('01.2')}.pid")
    wait_until(lambda: pid.exists() and pid.read_text().endswith("\n"), 150)
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 128 + number, output
    assert site.steps() == [("01.1", "changed"), ("01.2", "aborted")]
    assert any(one_line(line).startswith("01_first aborted") for line in output.splitlines())
    assert "Traceback" not in output
    assert not Path("/proc", pid.read_text().strip()).exists()
    assert site.processes() == []
    site.chapter("01_first", site.made("01.1"), site.made("01.2"), site.made("01.3"))
    assert site.xenlab("run", "--resume", "last").returncode == 0


def test_an_interruption_between_two_steps_is_heard(site: Site) -> None:
    idle = f"open({str(site.folder / 'idle')!r}, 'w').close()\nimport time\ntime.sleep(300)"
    site.chapter("01_first", site.made("01.1"), idle, site.made("01.2"))
    process = site.start("run", "-f", "site.yaml")
    wait_until((site.folder / "idle").exists, 150)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 130, output
    assert site.steps() == [("01.1", "changed")]
    assert site.processes() == []


def test_a_host_that_does_not_answer(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    site.sshd.stop()
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 1
    assert "01_first unreachable" in one_line(done.stdout)
    assert "Traceback" not in done.stdout + done.stderr


def test_a_run_is_taken_up_only_with_the_parameters_it_began_with(site: Site) -> None:
    site.chapter("01_first", site.made("01.1", "Impossible"))
    assert site.xenlab("run", "-f", "site.yaml").returncode == 1
    site.write(hostname="other")
    done = site.xenlab("run", "--resume", "last")
    assert done.returncode == 2
    assert "began with: hostname differ" in one_line(done.stderr)
    site.write()
    assert site.xenlab("run", "--resume", "last").returncode == 1
    site.file.unlink()
    site.chapter("01_first", site.made("01.1"))
    assert site.xenlab("run", "--resume", "last").returncode == 0


def test_a_consent_that_was_added_to_the_file_is_taken_and_on_record(site: Site) -> None:
    """A step stops where nobody agreed to wipe the disk, and says what to add."""
    site.chapter(
        "01_first",
        "from xenlab.resources.base import Condition\n"
        'names = Command.argv("test", " ".join(chapter.agreed_to.disks), "=", "QM001")\n'
        'chapter.check("01.1 May wipe", Condition(names, "may not"), on=chapter.host)',
    )
    site.write(may_wipe=[])
    first = site.xenlab("run", "-f", "site.yaml")
    assert first.returncode == 1
    again = f"take it up again: xenlab run --resume {site.run_folders()[-1].name}"
    assert again in one_line(first.stderr)
    site.write(may_wipe=["QM001"], hostname="other")
    refused = one_line(site.xenlab("run", "--resume", "last").stderr)
    assert "began with: hostname differ" in refused
    assert "only may_wipe and may_destroy may change" in refused
    site.write(may_wipe=["QM001"])
    assert site.xenlab("run", "--resume", "last").returncode == 0
    given = [r["message"] for r in site.journal().records() if r["phase"] == "consent"]
    assert given == ["QM001"]


def test_what_a_run_may_destroy_is_its_own_and_on_record(site: Site) -> None:
    site.chapter(
        "01_first",
        "from xenlab.resources.base import Condition\n"
        'names = Command.argv("test", " ".join(chapter.agreed_to.made), "=", "dom0 domu1")\n'
        'chapter.check("01.1 May destroy", Condition(names, "may not"), on=chapter.host)',
    )
    allowed = ("--destroy", "dom0", "--destroy", "domu1")
    assert site.xenlab("run", "-f", "site.yaml").returncode == 1
    assert site.xenlab("run", "--resume", "last", *allowed).returncode == 0
    given = [r["message"] for r in site.journal().records() if r["phase"] == "consent"]
    assert given == ["dom0", "domu1"]
    assert site.xenlab("plan", "-f", "site.yaml", *allowed).returncode == 0
    assert site.steps() == [("01.1", "ok")]
    assert site.xenlab("run", "-f", "site.yaml").returncode == 1
    refused = site.xenlab("run", "-f", "site.yaml", "--destroy", "domu1 domu2")
    assert refused.returncode == 2 and "cannot destroy 'domu1 domu2'" in refused.stderr


def test_two_processes_do_not_work_on_one_run(site: Site) -> None:
    slow = 'echo > "$1.begun"; while [ ! -e "$1.go" ]; do sleep 0.1; done; echo made > "$1"'
    site.chapter("01_first", site.made("01.1", script=slow))
    process = site.start("run", "-f", "site.yaml")
    wait_until(Path(f"{site.path('01.1')}.begun").exists, 150)
    second = site.xenlab("run", "--resume", "last")
    assert second.returncode == 2
    assert "because another process does" in second.stderr
    Path(f"{site.path('01.1')}.go").touch()
    process.communicate(timeout=150)
    assert process.returncode == 0


def test_only_some_chapters(site: Site) -> None:
    for number in ("01", "02", "03"):
        site.chapter(f"{number}_part", site.made(f"{number}.1"))
    assert site.xenlab("run", "03", "01_part", "-f", "site.yaml").returncode == 0
    assert [number for number, _ in site.steps()] == ["01.1", "03.1"]
    time.sleep(1)
    assert site.xenlab("run", "--from", "02", "-f", "site.yaml").returncode == 0
    assert site.steps() == [("02.1", "changed"), ("03.1", "ok")]


def test_hostile_text_arrives_as_it_was_written(site: Site) -> None:
    text = "/a'b\"; touch /tmp/xenlab-owned; $(id) `id` <script>alert(1)</script> {curly} ${x} ünï"
    site.write(image=text)
    site.chapter("01_first", site.made("01.1"))
    place = site.folder / "notebooks" / "01_first.ipynb"
    notebook = nbformat.read(place, as_version=4)
    notebook.cells[1].source += '\nimage: str = "/a"  # where it is kept'
    seen = f"assert chapter.site.image == {text!r}"
    notebook.cells.insert(3, new_code_cell(seen))
    show = 'import pandas as pd\nchapter.facts("01.2 Seen", pd.DataFrame([[chapter.site.image]]))'
    notebook.cells.insert(4, new_code_cell(show))
    nbformat.write(notebook, place)
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    page = write(site.run_folders()[0]).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_a_folder_with_braces_and_spaces(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    runs = site.folder / "my {runs} here"
    done = site.xenlab("run", "-f", "site.yaml", "--runs", str(runs))
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = runs.iterdir()
    assert (folder / "01_first.ipynb").exists()


def test_progress_on_a_terminal(site: Site) -> None:
    waits = 'until [ -e "$1.seen" ]; do sleep 0.1; done; echo > "$1"'
    site.chapter("01_first", site.made("01.1"), site.made("01.2", script=waits))
    screen = on_a_terminal(site, "run", "-f", "site.yaml", shown="1/2")
    assert "1/2" in screen and "01.2 Make 01.2" in screen and "in all" in screen
    assert "2 of 3 changed" in screen
    assert "\x1b[" in screen


def on_a_terminal(site: Site, *words: str, shown: str = "") -> str:
    """What a command writes to a terminal of its own; 01.2 goes on once that has ``shown`` this."""
    leader, follower = os.openpty()
    process = subprocess.Popen(
        site.argv(*words),
        cwd=site.folder,
        env={**os.environ, "TERM": "xterm-256color"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    written = bytearray()

    def read() -> None:
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:
                return
            if not piece:
                return
            written.extend(piece)
            if shown and shown.encode() in written:
                Path(f"{site.path('01.2')}.seen").touch()

    reader = threading.Thread(target=read)
    reader.start()
    status = process.wait(250)
    reader.join()
    assert status == 0, written.decode()
    os.close(leader)
    return written.decode()
