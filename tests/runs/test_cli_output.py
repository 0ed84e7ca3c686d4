"""What run, plan and check print over a real sshd: JSON, less, more, no colour."""

from __future__ import annotations

import json
import re

import pytest
from tests.runs.test_batch_runs import on_a_terminal
from tests.ssh.small import Site, one_line

TYPED = """
from dataclasses import dataclass
from parts import Made

@dataclass(frozen=True)
class Typed(Made):
    def commands(self):
        return (Command.sh("echo made > {path}", path=self.path),)
"""


def test_plan_and_check_print_one_document(site: Site) -> None:
    site.chapter("01_first", TYPED, site.made("01.1", "Typed"), site.made("01.2"))
    planned = site.xenlab("plan", "-f", "site.yaml", "--json")
    assert planned.returncode == 0, planned.stderr
    found = json.loads(planned.stdout)
    assert (found["exit_status"], found["problem"]) == (0, "")
    assert found["run"] == site.run_folders()[-1].name and "drift" not in found
    (chapter,) = found["chapters"]
    first, second = (step for step in chapter["steps"] if not step["step"].endswith(".0"))
    assert (first["step"], first["status"]) == ("01.1", "would change")
    assert first["script"] == f"echo made > {site.path('01.1')}"
    assert [each["summary"] for each in first["differences"]] == [f"make {site.path('01.1')}"]
    assert second["title"] == "01.2 Make 01.2"
    # what goes on is seen meanwhile
    assert "01.1 Make 01.1" in planned.stderr

    drifted = site.xenlab("check", "-f", "site.yaml", "--json", "--quiet")
    assert drifted.returncode == 3 and drifted.stderr == ""
    found = json.loads(drifted.stdout)
    assert (found["exit_status"], found["drift"]) == (3, ["01.1", "01.2"])
    for number in found["drift"]:
        site.path(number).write_text("made\n")
    found = json.loads(site.xenlab("check", "-f", "site.yaml", "--json").stdout)
    assert (found["exit_status"], found["drift"]) == (0, [])


def test_a_failed_check_is_a_document_as_well(site: Site) -> None:
    site.chapter("01_first", "raise RuntimeError('lost my head')")
    done = site.xenlab("check", "-f", "site.yaml", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["exit_status"], found["drift"]) == (1, 1, [])
    assert "lost my head" in found["problem"] and "lost my head" in done.stderr


def test_quiet_shows_the_totals_and_errors(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    done = site.xenlab("run", "-q", "-f", "site.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("1 of 1 chapters, 2 steps; 1 ok, 1 changed; ")
    site.chapter("01_first", site.made("01.2", "Impossible"))
    failed = site.xenlab("run", "--quiet", "-f", "site.yaml")
    assert failed.returncode == 1 and "the moon is not full" in failed.stderr
    assert failed.stdout.startswith("0 of 1 chapters") and failed.stdout.count("\n") == 1
    checked = site.xenlab("check", "-q", "-f", "site.yaml")
    assert checked.returncode == 3
    assert "drift in 1 step:" in checked.stdout and "make" in checked.stdout


def test_what_a_step_has_to_say_is_seen_though_it_is_well(site: Site) -> None:
    table = "pd.DataFrame([[1]])"
    says = f"import pandas as pd\nchapter.facts('01.1 Look', {table}, 'see for yourself')"
    site.chapter("01_first", says)
    for words in (("run",), ("plan",)):
        done = site.xenlab(*words, "-f", "site.yaml")
        assert done.returncode == 0, done.stderr
        assert re.search(r"ok +01\.1 Look .*\n    see for yourself\n", done.stdout)


@pytest.mark.parametrize("status", ["ran", "not needed"])
def test_verbose_shows_what_a_step_ran_or_did_not_need_to(site: Site, status: str) -> None:
    if status == "not needed":
        site.path("01.1").write_text("made\n")
    site.chapter("01_first", TYPED, site.made("01.1", "Typed"))
    done = site.xenlab("run", "-v", "-f", "site.yaml")
    assert done.returncode == 0, done.stderr
    assert f"{status}: echo made > {site.path('01.1')}" in one_line(done.stdout)
    again = site.xenlab("run", "-f", "site.yaml")
    assert "echo made" not in again.stdout


def test_a_person_who_must_do_something_is_told_in_quiet_as_well(site: Site) -> None:
    script = "import threading, pathlib\n"
    script += f"place = pathlib.Path({str(site.path('01.1'))!r})\n"
    script += "threading.Timer(3, place.write_text, ['booted\\n']).start()"
    site.chapter("01_first", script, site.made("01.1", "Asking"))
    done = site.xenlab("run", "-q", "-f", "site.yaml")
    assert done.returncode == 0, done.stderr
    assert "waiting for you: boot the machine" in done.stdout


def test_without_colour_a_run_is_lines_on_a_terminal_too(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    screen = on_a_terminal(site, "--no-color", "run", "-f", "site.yaml")
    assert "01.1 Make 01.1" in screen and "run folder:" in screen
    assert "\x1b" not in screen


def test_the_only_site_of_the_folder_is_named(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    done = site.xenlab("plan")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("site: site.yaml\n")
