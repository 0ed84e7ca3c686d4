"""The panel's parts that need no machine: consent, and the parameters form."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from xenlab.chapter.notebook import ConsentCard
from xenlab.errors import ConsentNeeded
from xenlab.panel.site import ParametersForm, SiteFile
from xenlab.site import schema as parameters

LAB = Path(__file__).parents[2] / "parameters" / "lab.yaml"


def test_only_the_right_serial_is_consent() -> None:
    given: list[str] = []
    needed = ConsentNeeded("wipes", device="/dev/vda", serial="XENLAB-LAB")
    card = ConsentCard(needed, given.append)
    for wrong in ("", "xenlab-lab", "XENLAB-LAB2", "<b>"):
        card.typed.value = wrong
        card.allow.click()
        assert given == []
        assert "is not the serial of /dev/vda" in card.answer.value
        assert "<b>" not in card.answer.value
    card.typed.value = " XENLAB-LAB "
    card.allow.click()
    assert given == ["XENLAB-LAB"]
    assert "run the step again" in card.answer.value
    assert card.allow.disabled and card.typed.disabled


def test_what_xenlab_made_is_typed_by_name_and_given_for_what_is_there_now() -> None:
    given: list[str] = []
    needed = ConsentNeeded("destroys", device="/dev/vda", made=("dom0 1-a", "domu1 2-b"))
    card = ConsentCard(needed, given.append)
    for wrong in ("", "domu1", "dom0", "dom0 1-a domu1 2-b", "/dev/vda", "<b>"):
        card.typed.value = wrong
        card.allow.click()
        assert given == []
        assert "is not “dom0 domu1”" in card.answer.value
        assert "<b>" not in card.answer.value
    card.typed.value = "dom0 domu1"
    card.allow.click()
    assert given == ["dom0 1-a", "domu1 2-b"]
    assert "dom0 domu1 may be wiped" in card.answer.value


@pytest.fixture
def form() -> ParametersForm:
    return ParametersForm(SiteFile(LAB))


def test_the_lab_s_form_has_every_parameter_and_no_problem(form: ParametersForm) -> None:
    assert set(form.fields) == set(parameters.Parameters.model_fields)
    assert form.problems() == {}


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("dom0_mem_mib", "many", "dom0_mem_mib must be a whole number"),
        ("power", "steam", "power must be"),
        ("address", "300.1.2.3/24", "address"),
        ("domains", "[{name: domu1}]", "domains[0].memory_mib is missing"),
        ("domains", "[{", "this is not YAML"),
        ("hostname", "off", "put it in quotes"),
    ],
)
def test_what_is_wrong_stands_beside_its_field(
    form: ParametersForm, key: str, text: str, said: str
) -> None:
    form.fields[key].value = text
    assert said in form.errors[key].value
    others = [k for k, error in form.errors.items() if error.value and k != key]
    assert others == []


def test_what_contradicts_itself_is_said_at_the_top(form: ParametersForm) -> None:
    form.fields["autostart"].value = "[domu1, domu9]"
    assert "domu9" in form.answer.value


def test_a_form_is_saved_only_when_it_holds(form: ParametersForm, tmp_path: Path) -> None:
    place = tmp_path / "castle.yaml"
    form.place.value = str(place)
    form.fields["dom0_mem_mib"].value = "0"
    form.save.click()
    assert not place.exists() and "nothing was saved" in form.answer.value
    form.fields["dom0_mem_mib"].value = "768"
    form.fields["site"].value = "castle"
    form.save.click()
    assert "saved to" in form.answer.value
    saved = parameters.load(place)
    assert (saved.site, saved.dom0_mem_mib) == ("castle", 768)
    assert yaml.safe_load(place.read_text())["domains"][0]["mac"] == "00:16:3e:66:01:01"
