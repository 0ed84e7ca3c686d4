"""A saved plan: signed, applied to the letter, refused where the machine has moved on since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.ssh.conftest import keygen
from tests.ssh.small import Done, Site, one_line

from xenlab.journal import verify
from xenlab.runs.audit import inspect


def written(site: Site, number: str) -> str:
    place = str(site.path(number))
    return (
        "from xenlab.resources.files import File\n"
        f'chapter.ensure("{number} Write {number}", File({place!r}, "wanted\\n"), on=chapter.host)'
    )


def planned(site: Site) -> dict[str, Any]:
    """Save a plan of a chapter whose second step writes over a file."""
    site.chapter("01_first", site.made("01.1"), written(site, "01.2"), written(site, "01.3"))
    site.path("01.2").write_text("old\n")
    site.path("01.3").write_text("wanted\n")
    done = site.xenlab("plan", "-f", "site.yaml", "--save", "plan.json")
    assert done.returncode == 0, done.stdout + done.stderr
    plan: dict[str, Any] = json.loads((site.folder / "plan.json").read_text())
    assert f"plan: plan.json, {plan['sha256']}" in done.stdout
    assert "not foreseen" not in done.stdout
    assert not site.path("01.1").exists()
    return plan


def applied(site: Site, *words: str) -> Done:
    return site.xenlab("apply", "plan.json", *words)


def test_a_plan_holds_what_differs_the_commands_and_what_they_rest_on(site: Site) -> None:
    plan = planned(site)
    (step,) = (step for step in plan["steps"] if step["step"] == "01.2")
    assert "-old\n+wanted" in step["differences"][0]["diff"]
    assert str(site.path("01.2")) in step["script"]
    assert step["looks"] and all(len(digest) == 64 for digest in step["looks"].values())
    assert (step["status"], step["unforeseen"]) == ("would change", "")


def test_what_was_planned_is_done_and_the_run_keeps_the_plan(site: Site) -> None:
    plan = planned(site)
    done = applied(site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.steps() == [("01.1", "changed"), ("01.2", "changed"), ("01.3", "ok")]
    run = site.run_folders()[-1]
    assert json.loads((run / "plan.json").read_text()) == plan
    assert json.loads((run / "run.json").read_text())["plan"]["unforeseen"] is False
    verify(site.journal().path)
    assert inspect(run).problems == () and inspect(run).cut == ()
    (run / "plan.json").write_text("{}")
    assert "plan.json: it was changed" in " ".join(inspect(run).problems)


def test_a_machine_that_has_moved_on_is_left_alone_and_the_step_is_named(site: Site) -> None:
    planned(site)
    site.path("01.2").write_text("somebody's\n")
    done = applied(site)
    assert done.returncode == 1
    assert site.steps() == [("01.1", "changed"), ("01.2", "failed")]
    assert "cannot apply the plan: because step 01.2 is other than planned" in done.stderr
    assert "-somebody's" in done.stderr and "looked at, and moved on: " in done.stderr
    assert "Try: plan again from here" in done.stderr
    assert site.path("01.2").read_text() == "somebody's\n"
    # nor does the same run go on from there
    assert site.xenlab("run", "--resume", "last").returncode == 1
    assert site.path("01.2").read_text() == "somebody's\n"
    site.path("01.2").write_text("old\n")
    assert site.xenlab("run", "--resume", "last").returncode == 0
    assert site.path("01.2").read_text() == "wanted\n"


def test_what_held_when_it_was_planned_is_not_changed(site: Site) -> None:
    planned(site)
    site.path("01.3").write_text("drifted\n")
    done = applied(site)
    assert done.returncode == 1
    assert "step 01.3 is other than planned" in done.stderr
    assert site.path("01.3").read_text() == "drifted\n"


def test_less_than_was_planned_is_in_order(site: Site) -> None:
    planned(site)
    site.path("01.2").write_text("wanted\n")
    assert applied(site).returncode == 0
    assert site.steps() == [("01.1", "changed"), ("01.2", "ok"), ("01.3", "ok")]


def test_what_nobody_could_foresee_wants_a_word_of_its_own(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    needs = f"chapter.root = '/'\nchapter.needs('01_first', Made({str(site.path('01.1'))!r}))"
    site.chapter("02_second", site.made("02.1"), needs=needs)
    saved = site.xenlab("plan", "-f", "site.yaml", "--save", "plan.json")
    assert saved.returncode == 0, saved.stderr
    assert "02.1 Make 02.1: chapter 01_first comes first" in saved.stdout
    done = applied(site)
    assert done.returncode == 1
    assert site.path("01.1").exists() and not site.path("02.1").exists()
    assert "because step 02.1 was not foreseen: chapter 01_first comes first" in done.stderr
    assert "--allow-unforeseen" in done.stderr
    assert applied(site, "--allow-unforeseen").returncode == 0
    assert site.path("02.1").exists()


def test_only_who_may_approve_has_approved(site: Site) -> None:
    planned(site)
    mine, other = site.folder / "mine", site.folder / "other"
    for key in (mine, other):
        keygen(key)
        public = key.with_suffix(".pub").read_text()
        key.with_suffix(".signers").write_text(f"{key.name}@castle {public}")
    demand = ("--require-signature", "mine.signers")
    before = site.run_folders()
    refused = applied(site, *demand)
    assert refused.returncode == 2 and "because nobody has signed it" in refused.stderr
    assert site.xenlab("audit", "sign", "plan.json", "--key", str(other)).returncode == 0
    refused = applied(site, *demand)
    assert refused.returncode == 2 and "mine.signers does not name" in one_line(refused.stderr)
    assert site.xenlab("audit", "sign", "plan.json", "--key", str(mine)).returncode == 0
    said = site.xenlab("audit", "verify", "plan.json", "--signers", "mine.signers")
    assert said.returncode == 0 and "signed by: mine@castle" in said.stdout
    text = (site.folder / "plan.json").read_text()
    (site.folder / "plan.json").write_text(text + "\n")
    refused = applied(site, *demand)
    assert refused.returncode == 2 and "the signature is not one of what stands" in refused.stderr
    assert site.run_folders() == before
    (site.folder / "plan.json").write_text(text)
    assert applied(site, *demand).returncode == 0
    run = site.run_folders()[-1]
    assert "mine@castle" in json.loads((run / "run.json").read_text())["plan"]["signed_by"]
    assert (run / "plan.json.sig").is_file() and inspect(run).problems == ()


def tampered(site: Site) -> None:
    place = site.folder / "plan.json"
    place.write_text(place.read_text().replace("old", "bad"))


def no_plan(site: Site) -> None:
    (site.folder / "plan.json").write_text("[]")


def other_site(site: Site) -> None:
    site.write(hostname="other")


def other_chapter(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (tampered, "cannot read the plan: because it was changed since it was made"),
        (no_plan, "because it is no plan of this version"),
        (other_site, "is not what was planned with: hostname differ"),
        (other_chapter, "because chapter 01_first is not the one that was planned"),
    ],
)
def test_what_is_refused_before_anything_is_touched(site: Site, change: Any, said: str) -> None:
    planned(site)
    change(site)
    before = site.run_folders()
    done = applied(site)
    assert done.returncode == 2 and said in one_line(done.stderr)
    assert site.run_folders() == before and not Path(site.path("01.1")).exists()


def test_a_plan_that_did_not_come_to_its_end_is_not_saved(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"), "raise RuntimeError('lost')")
    done = site.xenlab("plan", "-f", "site.yaml", "--save", "plan.json")
    assert done.returncode == 1 and "the plan was not saved" in done.stderr
    assert not (site.folder / "plan.json").exists()
