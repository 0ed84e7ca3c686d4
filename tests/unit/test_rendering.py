"""The howto's own machine, written out: held against the howto's literal lines."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from xenlab.cli.cli import main
from xenlab.errors import BadInput
from xenlab.runs.report import Artefact, contents, render_files, write_files
from xenlab.site import schema as parameters

ROOT = Path(__file__).parents[2]
HOWTO = ROOT / "tests" / "howto"
SITE = parameters.load(ROOT / "parameters" / "gentoo-2006.yaml")


def listed(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((HOWTO / f"{name}.yaml").read_text())
    return found


BLOCKS, MENTIONED, DIFFERENCES = listed("blocks"), listed("mentioned"), listed("differences")


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """The text of each rendered file."""
    return {f"{a.chapter}/{a.path}": a.text for a in render_files(SITE)}


def wanted(block: dict[str, Any]) -> list[str]:
    """The lines that a block asks for: its own, filled in, or what stands in their place."""
    instead = {entry["line"].strip(): entry["instead"] for entry in DIFFERENCES}
    lines = []
    for line in block["lines"].splitlines():
        for word, value in block.get("placeholders", {}).items():
            line = line.replace(word, value)
        lines.append(plain(instead.get(line.strip(), line)))
    return lines


def plain(line: str) -> str:
    """A line without what the wiki changed: tabs became spaces, ends were cut off."""
    return " ".join(line.split())


def missing(block: dict[str, Any], text: str) -> list[str]:
    """The lines of a block that a text does not hold in the block's order."""
    found = iter([plain(line) for line in text.splitlines()])
    return [line for line in wanted(block) if not any(line == one for one in found)]


@pytest.mark.parametrize("block", BLOCKS, ids=[block["heading"] for block in BLOCKS])
def test_each_block_of_the_howto_is_rendered(block: dict[str, Any], texts: dict[str, str]) -> None:
    assert missing(block, texts[block["file"]]) == []


@pytest.mark.parametrize("block", BLOCKS, ids=[block["heading"] for block in BLOCKS])
def test_a_line_that_is_removed_is_missed(block: dict[str, Any], texts: dict[str, str]) -> None:
    for line in filter(None, wanted(block)):
        kept = [one for one in texts[block["file"]].splitlines() if plain(one) != line]
        assert line in missing(block, "\n".join(kept))


@pytest.mark.parametrize("entry", MENTIONED, ids=[entry["howto"] for entry in MENTIONED])
def test_what_the_howto_names_is_rendered(entry: dict[str, Any], texts: dict[str, str]) -> None:
    assert entry["line"] in texts[entry["file"]].splitlines()


def test_each_difference_has_a_reason_and_is_one() -> None:
    filled = {line for block in BLOCKS for line in wanted(block)}
    for entry in DIFFERENCES:
        assert plain(entry["instead"]) in filled
        assert entry["line"] != entry["instead"] and len(entry["reason"]) > 20


def test_every_template_is_listed_and_every_chapter_has_something() -> None:
    folder = ROOT / "lib" / "xenlab" / "data" / "gentoo-2006"
    there = {str(p.relative_to(folder))[:-3] for p in folder.rglob("*.j2")}
    assert there == {f"{entry['chapter']}/{entry['path']}" for entry in contents()}
    chapters = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    first, last = "00_ingredients", "90"
    used = {entry["chapter"] for entry in contents()}
    assert used == {name for name in chapters if first < name < last}


def test_what_is_checked_is_all_that_there_is(texts: dict[str, str]) -> None:
    checked = {entry["file"] for entry in (*BLOCKS, *MENTIONED)}
    reconstructed = {f"{a.chapter}/{a.path}" for a in render_files(SITE) if a.origin != "howto"}
    assert set(texts) - checked <= reconstructed


def test_commands_and_scripts_are_sound_shell(texts: dict[str, str]) -> None:
    for place, text in texts.items():
        if place.endswith(("commands.txt", "xen-vif", "xenlab-network")):
            done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
            assert done.returncode == 0, (place, done.stderr)


def test_a_path_is_no_command(tmp_path: Path) -> None:
    image = "/mnt/share/$(touch T) 'a' \"b\" `touch T`/base.tar.gz"
    site = SITE.model_copy(update={"image": image})
    text = "\n".join(a.text for a in render_files(site) if a.path == "commands.txt")
    lines = [line for line in text.splitlines() if line.startswith(("tar ", 'mkdir -p "$'))]
    said = 'tar() { for each do printf "%s\\n" "$each"; done; }; mkdir() { tar "$2"; }\n'
    done = subprocess.run(
        ["sh", "-euc", said + "\n".join(lines)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    on_share = "/mnt/tmp" + image.removeprefix("/mnt/share")
    assert {image, on_share, on_share.rpartition("/")[0]} <= set(done.stdout.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_the_patch_applies_to_the_script_that_the_howto_shows(tmp_path: Path) -> None:
    patch = next(a.text for a in render_files(SITE) if a.path == "syslog-ng.patch")
    old = [line[1:] for line in patch.splitlines()[3:] if line[:1] in " -"]
    script = tmp_path / "syslog-ng"
    script.write_text("".join(f"# {n}\n" for n in range(11)) + "\n".join(old) + "\n")
    command = ["patch", str(script)]
    subprocess.run(command, input=patch, text=True, check=True, capture_output=True)
    assert "\tneed clock hostname netmount\n" in script.read_text()


def test_files_are_written_with_a_list_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["render", "gentoo-2006", "--output", str(folder)])
    assert ended.value.code == 0
    assert "in 15 chapters" in capsys.readouterr().out
    artefacts: list[Artefact] = render_files(SITE)
    for artefact in artefacts:
        assert (folder / artefact.chapter / artefact.path).read_text() == artefact.text
    head, *lines = (folder / "CONTENTS").read_text().splitlines()
    assert "the howto's statements" in head and len(lines) == len(artefacts)
    assert "04_grub/boot/grub/grub.conf  (howto; S16, S18, S19)" in lines


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious\n")
    with pytest.raises(BadInput, match="is not empty"):
        write_files(SITE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_machine_of_today_is_not_rendered() -> None:
    lab = parameters.load(ROOT / "parameters" / "lab.yaml")
    with pytest.raises(BadInput, match="only gentoo-2006 is rendered, and lab is debian"):
        render_files(lab)
