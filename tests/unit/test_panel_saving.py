"""What the panel saves: a site's file, whole, where and as a person would expect it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from difflib import ndiff
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.sites import BARE, FOLDER, lab_text

from xenlab.panel.site import ParametersForm, SiteFile
from xenlab.site import schema as parameters
from xenlab.site.loader import edited

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


# What a person wrote into the file stays.

OWN = """\
# The castle.
---
site:   "castle"    # its name
ssh: {host: box,   user: root}   # by its alias
hostname: 'keep'
boot_mib: 0x200     # as the vendor says
may_wipe:
- OLD               # the disk on the left
# the one on the right
- "00:16:30:01"
xen_options: >-
  com1=115200
dom0_options: >-    # on the console
  debug net.ifnames=0
software: [ tree,   # small
            screen ]
"""
SCREEN = "-             screen ]"
SSH = "- ssh: {host: box,   user: root}   # by its alias"
GUESTS = """\
domains:            # in the order of the plan
  # seen by all
  - name: web
    memory_mib: 128   # small
    mac: "00:16:3e:00:00:01"
    address: 10.0.2.50/24

  # seen by few
  - {name: mail, memory_mib: 128, mac: "00:16:3e:00:00:02", address: 10.0.2.51/24}
"""
END = "# what every castle says\n"
BLOCK = GUESTS.splitlines()
REST = {key: value for key, value in BARE.items() if f"\n{key}:" not in f"{OWN}{GUESTS}build_on:"}
WEB = "name: web, mac: '00:16:3e:00:00:01', address: 10.0.2.50/24"
MAIL = "{name: mail, memory_mib: 128, mac: '00:16:3e:00:00:02', address: 10.0.2.51/24}"
FTP = "{name: ftp, memory_mib: 64, mac: '10:16:30:00:00:03', address: 10.0.2.52/24}"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    place = tmp_path / "own.yaml"
    place.write_text(OWN + GUESTS + END + yaml.safe_dump(REST))
    return place


def changed(before: str, after: str) -> list[str]:
    """The lines that are gone, and the new ones."""
    return [line for line in ndiff(before.splitlines(), after.splitlines()) if line[0] in "-+"]


@pytest.mark.parametrize("name", ["lab", "lab-gentoo", "debian", "gentoo", "gentoo-2006"])
def test_an_unchanged_form_saves_the_same_bytes(tmp_path: Path, name: str) -> None:
    before = (FOLDER / f"{name}.yaml").read_bytes().replace(b"\n", b"\r\n").rstrip()
    (file := tmp_path / "castle.yaml").write_bytes(before)
    form = ParametersForm(SiteFile(file))
    for place in (file, tmp_path / "other.yaml"):
        assert "saved to" in save(form, place)
        assert place.read_bytes() == before


@pytest.mark.parametrize(
    ("key", "value", "lines"),
    [
        ("site", "moat", ['- site:   "castle"    # its name', "+ site:   moat    # its name"]),
        ("hostname", "1e3", ["- hostname: 'keep'", "+ hostname: 1e3"]),
        ("hostname", "'007'", ["- hostname: 'keep'", "+ hostname: '007'"]),
        (
            "boot_mib",
            "1024",
            [
                "- boot_mib: 0x200     # as the vendor says",
                "+ boot_mib: 1024     # as the vendor says",
            ],
        ),
        ("may_wipe", "[OLD]", None),
        ("may_wipe", "[NEW, OLD, '00:16:30:01']", None),
        ("may_wipe", "[OLD, '00:16:30:01', 'on']", ["+ - 'on'"]),
        ("software", "[tree]", None),
        ("software", "[tree, screen, vim]", [SCREEN, f"+{SCREEN[1:-2]}, vim ]"]),
        ("services", "[ssh]", ["- - cron", "- - rsyslog"]),
        ("services", "[]", ["+  []", "- - ssh", "- - cron", "- - rsyslog"]),
        (
            "xen_options",
            "com1=9600",
            ["+ xen_options: com1=9600", "- xen_options: >-", "-   com1=115200"],
        ),
        ("dom0_options", "quiet net.ifnames=0", None),
        ("ssh", "{host: box}", [SSH, "+ ssh: {host: box}   # by its alias"]),
        ("ssh", "{host: box, user: me}", [SSH, SSH.replace("root", "me").replace("-", "+")]),
        (
            "domains",
            f"[{{{WEB}, memory_mib: 256}}, {MAIL}]",
            ["-     memory_mib: 128   # small", "+     memory_mib: 256   # small"],
        ),
        ("domains", f"[{{{WEB}, memory_mib: 128}}, {MAIL}, {FTP}]", [f"+   - {FTP}"]),
        ("domains", f"[{FTP}, {{{WEB}, memory_mib: 128}}, {MAIL}]", None),
        ("domains", f"[{MAIL}]", None),
        ("domains", f"[{{{WEB}, memory_mib: 128}}]", None),
        (
            "domains",
            f"[{{{WEB}, memory_mib: 128, partition: www}}, {MAIL}]",
            ["+     partition: www"],
        ),
        ("lab", "castle", ["- lab: lab", "+ lab: castle"]),
        ("build_on", "target", ["+ build_on: target"]),
    ],
)
def test_a_changed_value_changes_its_own_line(
    own: Path, key: str, value: str, lines: list[str] | None
) -> None:
    form = ParametersForm(SiteFile(own))
    before = own.read_text()
    answer = save(form, own, **{key: value})
    if lines is None:
        assert "because comments or references (*) of" in answer and "would not stay" in answer
        assert own.read_text() == before
    else:
        assert "saved to" in answer
        assert changed(before, own.read_text()) == lines


def test_what_a_guest_has_not_said_is_added_in_its_lines(own: Path) -> None:
    form = ParametersForm(SiteFile(own))
    value = form.fields["domains"].value.replace("partition: web", "partition: www")
    assert "saved to" in save(form, own, domains=value)
    assert BLOCK[5] + "\n    partition: www\n\n" + BLOCK[7] in own.read_text()


def test_references_stay_unless_what_they_name_is_changed(own: Path) -> None:
    text = own.read_text().replace(' "castle"', " &name castle").replace("'keep'", "*name")
    own.write_text(text)
    form = ParametersForm(SiteFile(own))
    assert "saved to" in save(form, own, share_mib="4097")
    assert changed(text, own.read_text()) == ["- share_mib: 4096", "+ share_mib: 4097"]
    text = own.read_text()
    assert "would not stay" in save(form, own, site="moat")
    assert own.read_text() == text
    form.again.click()
    assert "would not stay" in save(form, own, hostname="moat")
    assert own.read_text() == text


def test_another_file_s_comments_are_not_lost(
    form: ParametersForm, own: Path, tmp_path: Path
) -> None:
    before = own.read_bytes()
    assert "it has comments, which would be lost" in save(form, own)
    assert own.read_bytes() == before
    form, copy = ParametersForm(SiteFile(own)), tmp_path / "copy.yaml"
    assert "saved to" in save(form, copy, hostname="moat")
    assert copy.read_text() == OWN.replace("'keep'", "moat") + own.read_text().removeprefix(OWN)


# What is changed, in whatever way the file has it.

NAMES = st.text("aé 0:-,[]{}'\"&*!|>%@?~", max_size=5) | st.sampled_from(["on", "<<x", "a: b"])
VALUES = st.recursive(
    NAMES | st.booleans() | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.just("name"), inner),
)
SITES = st.dictionaries(NAMES, VALUES, min_size=1)


@given(SITES, SITES, st.booleans() | st.none())
def test_what_is_written_over_a_value_is_read_as_the_other(
    old: dict[str, object], change: dict[str, object], flow: bool | None
) -> None:
    text = yaml.safe_dump(old, default_flow_style=flow, allow_unicode=True, sort_keys=False)
    for new in (change, old | change):
        assert yaml.safe_load(edited(text, old, new)) == new


@given(st.data())
def test_no_comment_is_lost(data: st.DataObject) -> None:
    words = st.sampled_from(["a", "b", "c", "name"])
    values = st.recursive(
        words, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner)
    )
    old, new = data.draw(st.tuples(*[st.dictionaries(words, values, min_size=1)] * 2))
    flow = data.draw(st.none() | st.just(False))
    lines = yaml.safe_dump(old, default_flow_style=flow, width=10_000).splitlines()
    comments = [
        data.draw(st.sampled_from(["", f"  # {n}.", f"\n# {n}."])) for n in range(len(lines))
    ]
    text = "".join(f"{line}{comment}\n" for line, comment in zip(lines, comments, strict=True))
    assert yaml.safe_load(text) == old
    after = edited(text, old, new)
    assert re.findall(r"#.*", after) == re.findall(r"#.*", text)
    if not any(comments):
        assert yaml.safe_load(after) == new
