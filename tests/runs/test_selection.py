"""Runs of some steps alone, over a real sshd: what is left out is on record, with the reason."""

from __future__ import annotations

import os
from typing import Any

from tests.ssh.small import Site, one_line

from xenlab.journal import verify
from xenlab.runs.report import render


def four_steps(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"), site.made("01.2"), site.made("01.3"))
    site.chapter("02_second", site.made("02.1"))


def finals(site: Site) -> dict[str, dict[str, Any]]:
    records = site.journal().records()
    return {r["step"]: r for r in records if r["phase"] == "final"}


def test_one_step_is_done_and_the_others_are_on_record_as_left_out(site: Site) -> None:
    four_steps(site)
    site.path("01.1").write_text("by hand\n")
    done = site.xenlab("run", "-f", "site.yaml", "--step", "01.2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.steps() == [("01.1", "skipped"), ("01.2", "changed"), ("01.3", "skipped")]
    assert not site.path("01.3").exists() and not site.path("02.1").exists()
    before, after = finals(site)["01.1"], finals(site)["01.3"]
    assert before["message"] == "not selected (--step 01.2); it holds"
    assert before["commands"] and {c["phase"] for c in before["commands"]} == {"look"}
    assert after["message"] == "not selected (--step 01.2)" and "commands" not in after
    page = render(site.run_folders()[-1])
    assert ">skipped</span>" in page and "not selected (--step 01.2); it holds" in page
    assert "done in part" in site.xenlab("runs").stdout
    verify(site.journal().path)


def test_nothing_is_changed_behind_a_step_that_does_not_hold(site: Site) -> None:
    four_steps(site)
    done = site.xenlab("run", "-f", "site.yaml", "--step", "01.2")
    assert done.returncode == 1
    said = one_line(done.stderr)
    assert "cannot go on: because step 01.1 comes first, and does not hold: make " in said
    assert "leave it out with --skip STEP=REASON" in said
    assert site.steps() == [("01.1", "skipped"), ("01.2", "failed")]
    assert not site.path("01.2").exists()


def test_a_plan_says_what_such_a_run_would_refuse(site: Site) -> None:
    four_steps(site)
    done = site.xenlab("plan", "-f", "site.yaml", "--step", "01.2")
    assert done.returncode == 0, done.stderr
    assert site.steps()[:2] == [("01.1", "skipped"), ("01.2", "would be refused")]
    assert "would be refused: step 01.1 comes first" in finals(site)["01.2"]["message"]


def test_a_step_that_is_skipped_on_somebody_s_word_hinders_nothing(site: Site) -> None:
    four_steps(site)
    words = ("--step", "01.2", "--skip", "01.1=the disk was <b>replaced</b>")
    done = site.xenlab("run", "-f", "site.yaml", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert finals(site)["01.1"]["message"] == "the disk was <b>replaced</b>"
    assert "commands" not in finals(site)["01.1"]
    assert "the disk was &lt;b&gt;replaced&lt;/b&gt;" in render(site.run_folders()[-1])
    refused = site.xenlab("run", "-f", "site.yaml", "--skip", "01.1")
    assert refused.returncode == 2 and "because no reason is given" in refused.stderr


def test_what_a_chapter_needs_is_looked_at_whichever_steps_are_selected(site: Site) -> None:
    needs = f"chapter.needs('00_zeroth', Made({str(site.path('00.1'))!r}))"
    site.chapter("01_first", site.made("01.1"), site.made("01.2"), needs=needs)
    done = site.xenlab("run", "-f", "site.yaml", "--from-step", "01.2")
    assert done.returncode == 1
    assert "cannot go on: because chapter 01_first needs chapter 00_zeroth first" in done.stderr
    assert not site.path("01.2").exists()


def test_from_a_step_up_to_another(site: Site) -> None:
    four_steps(site)
    site.path("01.1").write_text("by hand\n")
    words = ("--from-step", "01.2", "--until", "02.1")
    assert site.xenlab("run", "-f", "site.yaml", *words).returncode == 0
    ended = [status for _, status in site.steps()]
    assert ended == ["skipped", "changed", "changed", "changed"]


def test_a_run_of_some_steps_that_is_taken_up_leaves_out_the_same(site: Site) -> None:
    site.chapter("01_first", site.made("01.1", "Impossible"), site.made("01.2"))
    assert site.xenlab("run", "-f", "site.yaml", "--until", "01.1").returncode == 1
    refused = site.xenlab("run", "--resume", "last", "--step", "01.2")
    assert refused.returncode == 2 and "it has its own chapters, steps" in refused.stderr
    site.chapter("01_first", site.made("01.1"), site.made("01.2"))
    assert site.xenlab("run", "--resume", "last").returncode == 0
    assert site.steps()[1:] == [("01.1", "changed"), ("01.2", "skipped")]


def test_a_resumed_run_repeats_no_action_and_may_skip_what_stopped_it(site: Site) -> None:
    count = site.path("count")
    told = f"Told(Command.script('echo once >> \"$1\"', {str(count)!r}))"
    act = f'chapter.run("01.2 Act", {told}, on=chapter.host)'
    cells = (site.made("01.1"), act, site.made("01.3", "Impossible"), site.made("01.4"))
    site.chapter("01_first", *cells)
    assert site.xenlab("run", "-f", "site.yaml").returncode == 1
    os.remove(site.path("01.1"))
    done = site.xenlab("run", "--resume", "last", "--skip", "01.3=no moon tonight")
    assert done.returncode == 0, done.stdout + done.stderr
    assert count.read_text() == "once\n"
    assert site.steps()[3:] == [
        ("01.1", "changed"),
        ("01.2", "skipped"),
        ("01.3", "skipped"),
        ("01.4", "changed"),
    ]
    assert "carried out in this run already, at 20" in finals(site)["01.2"]["message"]
    assert finals(site)["01.3"]["message"] == "no moon tonight"
    verify(site.journal().path)
