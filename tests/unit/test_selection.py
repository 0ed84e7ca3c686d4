"""Steps that a person selects: which are done, looked at and skipped, and what is refused."""

from __future__ import annotations

import re

import pytest

from xenlab.chapter.selected import Selected
from xenlab.errors import BadInput
from xenlab.runs.selection import Choice, choice, select

STEPS = {
    "04_grub": [("04.1", "ensure"), ("04.2", "facts"), ("04.3", "check"), ("04.4", "ensure")],
    "05_base": [("05.1", "run"), ("05.2", "each"), ("05.10", "ensure")],
    "06_image": [("06.1", "ensure")],
}


def test_all_steps_where_nobody_says_otherwise() -> None:
    assert select(Choice(), STEPS) == (list(STEPS), Selected())


def test_what_comes_before_is_looked_at_and_what_comes_after_is_not() -> None:
    chapters, found = select(choice(["04.3"]), STEPS)
    assert chapters == ["04_grub"]
    assert found.look == {"04.1": "not selected (--step 04.3)"}
    assert set(found.skip) == {"04.2", "04.4"}


def test_an_action_is_never_looked_at() -> None:
    _, found = select(choice(["05.10"]), STEPS)
    assert (set(found.look), set(found.skip)) == ({"05.2"}, {"05.1"})


def test_from_one_step_to_another_over_chapters() -> None:
    chapters, found = select(choice(first="04.4", last="05.2"), STEPS)
    assert chapters == ["04_grub", "05_base"]
    assert set(found.look) == {"04.1", "04.3"}
    assert set(found.skip) == {"04.2", "05.10"}


def test_steps_in_one_word_or_in_several() -> None:
    assert choice(["04.1, 04.3", "04.1"]) == choice(["04.1", "04.3"])


def test_a_skipped_step_has_its_reason_and_is_not_looked_at() -> None:
    chapters, found = select(choice(skipped=["04.1 = done by = hand"]), STEPS)
    assert chapters == list(STEPS)
    assert found == Selected({"04.1": "done by = hand"})


def test_what_goes_to_a_chapter_comes_back_the_same() -> None:
    for found in (Selected(), Selected({"04.1": "“why” 'so'"}, {"04.2": "not"})):
        assert Selected.of_text(found.text) == found
    assert Selected().text == ""


@pytest.mark.parametrize("said", ["04.1", "04.1=", "04.1=  "])
def test_nothing_is_skipped_without_a_reason(said: str) -> None:
    with pytest.raises(BadInput, match=re.escape("cannot skip step 04.1: because no reason")):
        choice(skipped=[said])


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Choice(only=("04.9",)), "cannot select step 04.9: because no chapter of this run has it"),
        (Choice(first="4.1"), "Try: 04.1"),
        (Choice(last="99"), "Try: `xenlab show` lists"),
        (Choice(first="05.1", last="04.1"), "none is left of --from-step 05.1 --until 04.1"),
        (Choice(only=("06.1",), skip={"06.1": "why"}), "none is left of --step 06.1"),
    ],
)
def test_what_cannot_be_selected(wanted: Choice, said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        select(wanted, STEPS)
