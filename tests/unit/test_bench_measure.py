"""Measuring `make lab`: a clone and a cache of its own each turn, medians, and what is kept."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench import measure, processor, timeline
from bench.measure import CASES, COLD, IN_ALL, SECOND, WARM, Lasted, Stopped

ROOT = Path(__file__).parents[2]

MAKEFILE = """\
lab:
\t@test -z "$$XENLAB_BEGAN"
\t@./fill
"""

# writes down what a run would; each one is called later than the one before it
FILL = """\
#!/bin/sh
set -eu
mkdir -p "$XENLAB_CACHE" .venv/bin
cp fill-xenlab .venv/bin/xenlab
now=$(date +%s)
number=$(ls runs 2> /dev/null | grep -c lab || :)
mkdir -p "runs/2026010${number}T000000-lab"
cd "runs/2026010${number}T000000-lab"
status=changed
[ "$number" -lt 2 ] || status=ok
[ "$number" != 0 ] ||
    echo "{\\"what\\": \\"stage\\", \\"began\\": $now.5, \\"ended\\": $((now + 7)).5}" \\
        >> "$XENLAB_CACHE/phases.jsonl"
for chapter in 01_partitions 03_dom0_kernel 11_action 15_shared_usr; do
    cat <<END
{"phase": "open", "chapter": "$chapter", "time": "$(date -u -d "@$now" +%FT%TZ)"}
{"phase": "final", "chapter": "$chapter", "step": "1", "title": "1 Compile", "status": "$status",
END
    now=$((now + 10))
    cat <<END
 "seconds": 6, "host": "dom0", "time": "$(date -u -d "@$now" +%FT%TZ)"}
{"phase": "close", "chapter": "$chapter", "time": "$(date -u -d "@$now" +%FT%TZ)"}
END
done | sed -z 's/,\\n /, /g' > journal.jsonl
"""

XENLAB = """\
#!/bin/sh
echo "$*" >> "$XENLAB_CACHE.calls"
[ "$2" != status ] || echo '{"accel": "tcg"}'
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose `make lab` takes no lab."""
    monkeypatch.setenv("XENLAB_BEGAN", "1")
    place = tmp_path / "root"
    place.mkdir()
    for name, text in (("Makefile", MAKEFILE), ("fill", FILL), ("fill-xenlab", XENLAB)):
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    for words in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "--quiet", "-m", "x"],
    ):
        subprocess.run(["git", "-C", str(place), *words], check=True)
    return place


def test_each_turn_goes_from_nothing_to_a_second_run(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "turns"
    turns = measure.measured(root, folder, 2)
    assert [[one.case for one in turn] for turn in turns] == [list(CASES)] * 2
    for number, (cold, _, again) in enumerate(turns, start=1):
        assert cold.ends["to the end of 15"] == pytest.approx(40, abs=3)
        assert cold.ends["to the end of 11"] == pytest.approx(30, abs=3)
        assert 0 < cold.ends[IN_ALL] < 30
        # the chapter of a kernel has it compiled while the others run
        assert (cold.chapters["03_dom0_kernel"], cold.chapters["11_action"]) == (4, 10)
        assert cold.phases == {"stage": 7}
        assert (cold.changed, again.changed) == (4, 0)
        assert not measure.lasted(SECOND, cold.run, cold.began + 60, cold.began + 90).phases
        calls = (folder / f"{number}/cache.calls").read_text().splitlines()
        assert calls == ["lab status --json", "lab reset --yes", "lab down --hard"]
        assert processor.load(cold.run.parent / processor.BESIDE)
        # caches and environments are gigabytes, runs are what is kept
        assert not (folder / f"{number}/cache").exists()
        assert timeline.load(cold.run).lanes

    facts = measure.facts(root, folder)
    own = facts["machine"]
    assert own["processors"] >= 1 and own["memory, GiB"] > 0.5 and own["KVM"] is False
    assert own["model"] and own["system"] and len(facts["revision"]) >= 7
    found = measure.figures(turns, facts)
    measure.keep(turns, found, tmp_path / "figures")
    kept = json.loads((tmp_path / "figures/lab.json").read_text())
    assert kept == json.loads(json.dumps(found)) and kept["turns"] == 2
    pictures = sorted((tmp_path / "figures").glob("*.svg"))
    assert len(pictures) == 3
    for picture in pictures:
        assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")


def test_a_make_lab_that_fails_is_no_measurement(root: Path, tmp_path: Path) -> None:
    (root / "Makefile").write_text("lab:\n\t@echo no space; exit 3\n")
    git = ["git", "-C", str(root), "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "commit", "--quiet", "-a", "-m", "x"], check=True)
    with pytest.raises(Stopped, match="make lab ended with exit status 2"):
        measure.measured(root, tmp_path / "turns", 1)
    assert "no space" in (tmp_path / "turns/1/log").read_text()


def lasting(case: str, seconds: float) -> Lasted:
    ends = {"to the end of 15": seconds - 1, IN_ALL: seconds}
    return Lasted(
        case, time.time(), Path(str(seconds)), 3, ends, {"stage": seconds / 10}, {"x": seconds / 10}
    )


def test_figures_are_medians() -> None:
    turns = [[lasting(case, seconds) for case in CASES] for seconds in (100, 500, 200)]
    turns[1][2] = replace(turns[1][2], changed=0, phases={})
    found = measure.figures(turns, {"measured": "today"})
    assert found["seconds"][COLD][IN_ALL] == {"median": 200, "turns": [100, 500, 200]}
    assert found["seconds"][SECOND]["steps that changed something"] == [3, 0, 3]
    assert found["seconds"][SECOND]["phases"] == {"stage": 15}
    assert measure.middle(turns, WARM).ends[IN_ALL] == 200


def test_what_was_measured_is_what_a_first_lab_elsewhere_is_reckoned_by(tmp_path: Path) -> None:
    place = tmp_path / "expected-seconds.json"
    before = json.loads((ROOT / "lib/xenlab/data/expected-seconds.json").read_text())
    place.write_text(json.dumps(before))
    turns = [[lasting(case, seconds) for case, seconds in zip(CASES, (900, 300, 70), strict=True)]]
    facts = {"machine": {"processors": 3, "KVM": True}}
    measure.renew(measure.figures(turns, facts), place)
    after = json.loads(place.read_text())
    assert after.keys() == before.keys()
    assert (after["machine"], after["whole"]) == ("3 processors, KVM", 900)
    assert after["phases"] == {**before["phases"], "stage": 90}
    # nothing is compiled beside the chapters of the second case
    assert after["labs"]["debian"] == {"first": {"x": 30}, "again": {"x": 7}}
