"""What the panel saves: a site's file, whole, where and as a person would expect it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.sites import lab_text

from xenlab.panel.site import ParametersForm, SiteFile
from xenlab.site import schema as parameters

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjE=\n-----END-----\n"
CASTLE = lab_text(site="castle")
COMPOSE = "services:\n  web:\n    image: nginx\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    place = tmp_path / "castle.yaml"
    place.write_text(CASTLE)
    return place


@pytest.fixture
def form(file: Path) -> ParametersForm:
    return ParametersForm(SiteFile(file))


def save(form: ParametersForm, place: Path | str, **values: str) -> str:
    """Save with other values under a name; what is answered."""
    form.place.value = str(place)
    for key, text in values.items():
        form.fields[key].value = text
    form.save.click()
    answer: str = form.answer.value
    return answer


@pytest.mark.parametrize(
    "content", [KEY.encode(), COMPOSE.encode(), b"site: [", b"\x80\xff\x00", b"", b"- 1\n"]
)
def test_what_is_no_site_s_file_is_not_written_over(
    form: ParametersForm, tmp_path: Path, content: bytes
) -> None:
    place = tmp_path / "id_ed25519"
    place.write_bytes(content)
    place.chmod(0o600)
    before = sorted(tmp_path.iterdir())
    assert "does not hold the parameters of a site" in save(form, place)
    assert (place.read_bytes(), stat.S_IMODE(place.stat().st_mode)) == (content, 0o600)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Path.mkdir, "it is not a file"),
        (os.mkfifo, "it is not a file"),
        (lambda place: place.symlink_to(place.name), "because"),
    ],
)
def test_what_is_no_file_is_refused_in_a_sentence(
    form: ParametersForm, tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    place = tmp_path / "place"
    make(place)
    assert said in save(form, place)


@pytest.mark.parametrize("place", ["", "~nobody-of-this-name/x.yaml", "/nowhere/x.yaml", "a" * 300])
def test_a_place_that_cannot_be_is_refused_in_a_sentence(form: ParametersForm, place: str) -> None:
    assert "cannot save to" in save(form, place)


def test_links_lead_where_they_led_and_modes_stay(form: ParametersForm, tmp_path: Path) -> None:
    real, link = tmp_path / "real" / "castle.yaml", tmp_path / "link.yaml"
    real.parent.mkdir()
    real.write_text(CASTLE)
    real.chmod(0o640)
    link.symlink_to("real/castle.yaml")
    assert "saved to" in save(form, link, hostname="keep")
    assert os.readlink(link) == "real/castle.yaml"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert parameters.load(real).hostname == "keep"
    assert list(real.parent.iterdir()) == [real]


def test_a_file_with_another_name_is_left_with_both(
    form: ParametersForm, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.yaml").hardlink_to(file)
    assert "hard link" in save(form, file, hostname="keep")
    assert file.read_text() == CASTLE


def test_a_new_file_has_the_mode_of_new_files(form: ParametersForm, tmp_path: Path) -> None:
    usual, place = tmp_path / "usual", tmp_path / "new.yaml"
    usual.touch()
    assert "saved to" in save(form, place)
    assert place.stat().st_mode == usual.stat().st_mode


def test_nothing_is_written_through_a_name_that_could_be_guessed(
    form: ParametersForm, file: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".castle.yaml.new").symlink_to(victim)
    assert "saved to" in save(form, file, hostname="keep")
    assert victim.read_text() == "precious"
    assert not file.is_symlink()


def test_what_somebody_else_wrote_meanwhile_stays(form: ParametersForm, file: Path) -> None:
    moat = lab_text(site="castle", hostname="moat")
    file.write_text(moat)
    assert "was changed since it was read" in save(form, file, hostname="keep")
    assert file.read_text() == moat
    form.again.click()
    assert form.fields["hostname"].value == "moat"
    assert "saved to" in save(form, file, hostname="keep")
    assert yaml.safe_load(file.read_text())["hostname"] == "keep"


def test_a_file_is_saved_time_and_again(form: ParametersForm, file: Path, tmp_path: Path) -> None:
    for place in (file, tmp_path / "other.yaml", file):
        for hostname in ("keep", "moat"):
            assert "saved to" in save(form, place, hostname=hostname)
            assert parameters.load(place).hostname == hostname
    assert sorted(tmp_path.iterdir()) == [file, tmp_path / "other.yaml"]


def test_a_value_that_is_no_date_is_said_beside_its_field(form: ParametersForm) -> None:
    form.fields["hostname"].value = "2020-13-45"
    assert "this is not YAML" in form.errors["hostname"].value
