"""The page of figures says what `bench/lab.py --measure` has written, and shows its charts."""

from __future__ import annotations

import json
import re
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


def test_each_chart_is_shown() -> None:
    shown = re.findall(r"!\[.*\]\((figures/.*\.svg)\)", (DOCS / "figures.md").read_text())
    assert {DOCS / each for each in shown} == {*(DOCS / "figures").glob("*.svg")}
