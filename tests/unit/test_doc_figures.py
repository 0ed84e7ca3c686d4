"""The page of figures says what `bench/lab.py --measure` has written, and shows its charts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
MEASURED = json.loads((DOCS / "figures" / "lab.json").read_text())["seconds"]
COLD, WARM, SECOND = "nothing cached", "caches warm, an empty disk", "a second run"


def in_words(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def test_the_page_has_the_medians_that_were_measured() -> None:
    page = (DOCS / "figures.md").read_text()
    said = re.findall(r"^\| .* \| (.*) \| `python bench/lab\.py --measure` \|$", page, re.MULTILINE)
    cold, warm, second = (MEASURED[case] for case in (COLD, WARM, SECOND))
    whole, to_11 = "to the end of 15", "to the end of 11"
    kernels = cold["phases"]["dom0's kernel"] + cold["phases"]["domU's kernel"]
    wanted = [cold[whole]["median"], cold[to_11]["median"], kernels]
    wanted += [warm[whole]["median"], warm[to_11]["median"], second["in all"]["median"]]
    assert said == [in_words(seconds) for seconds in wanted]


def test_the_page_has_the_rates_of_fleets_that_were_measured() -> None:
    fleet = json.loads((DOCS / "figures" / "fleet.json").read_text())
    said = re.findall(
        r"^\| (.*) \| (.*) steps a second, (.*) MiB \| `(python bench/fleet\.py.*)` \|$",
        (DOCS / "figures.md").read_text(),
        re.MULTILINE,
    )
    assert [(rate, mib, command) for _, rate, mib, command in said] == [
        (f"{tool['to do']['steps a second']}", f"{tool['to do']['mib']}", fleet["command"])
        for tool in fleet["tools"].values()
    ]


def test_each_chart_is_shown() -> None:
    shown = re.findall(r"!\[.*\]\((figures/.*\.svg)\)", (DOCS / "figures.md").read_text())
    assert {DOCS / each for each in shown} == {*(DOCS / "figures").glob("*.svg")}


def table(figures: Path) -> list[str]:
    """The lines of what `docs/collect.py` makes of the times of other machines."""
    told = "import sys, pathlib, reference; print(reference.profiles(pathlib.Path(sys.argv[1])))"
    words = [sys.executable, "-c", told, str(figures)]
    done = subprocess.run(words, cwd=DOCS, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip().splitlines()


def test_a_machine_that_was_not_measured_has_no_times(tmp_path: Path) -> None:
    none = table(tmp_path / "none.json")
    assert none[0] == "| machine | a second run |"
    assert len(none) == 2 + 8 and all(line.endswith("|  |") for line in none[2:])
    measured = {
        "mini-pc": {"chapters": {"00_ingredients": 61, "04_grub": 599.6}, "a second run": 9}
    }
    (tmp_path / "some.json").write_text(json.dumps(measured))
    some = table(tmp_path / "some.json")
    assert some[0] == "| machine | 00 | 04 | a second run |"
    (line,) = (line for line in some if "`mini-pc`" in line)
    assert line.endswith("| 1:01 | 10:00 | 0:09 |")
