"""The howto's own machine, written out: held against the howto's literal lines."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs.machine_2006 import TEMPLATES, artefacts, contents

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
    return {f"{a.chapter}/{a.path}": a.text for a in artefacts(SITE)}


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
    there = {str(p.relative_to(TEMPLATES))[:-3] for p in TEMPLATES.rglob("*.j2")}
    assert there == {f"{entry['chapter']}/{entry['path']}" for entry in contents()}
    chapters = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    # the howto ends with chapter 15
    first, last = "00_ingredients", "16"
    used = {entry["chapter"] for entry in contents()}
    assert used == {name for name in chapters if first < name < last}


def test_what_is_checked_is_all_that_there_is(texts: dict[str, str]) -> None:
    checked = {entry["file"] for entry in (*BLOCKS, *MENTIONED)}
    reconstructed = {f"{a.chapter}/{a.path}" for a in artefacts(SITE) if a.origin != "howto"}
    assert set(texts) - checked <= reconstructed


def test_commands_and_scripts_are_sound_shell(texts: dict[str, str]) -> None:
    for place, text in texts.items():
        if place.endswith(("commands.txt", "xen-vif", "xenlab-network")):
            done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
            assert done.returncode == 0, (place, done.stderr)


def test_a_path_is_no_command(tmp_path: Path) -> None:
    image = "/mnt/share/$(touch T) 'a' \"b\" `touch T`/base.tar.gz"
    site = SITE.model_copy(update={"image": image})
    text = "\n".join(a.text for a in artefacts(site) if a.path == "commands.txt")
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
    patch = next(a.text for a in artefacts(SITE) if a.path == "syslog-ng.patch")
    old = [line[1:] for line in patch.splitlines()[3:] if line[:1] in " -"]
    script = tmp_path / "syslog-ng"
    script.write_text("".join(f"# {n}\n" for n in range(11)) + "\n".join(old) + "\n")
    command = ["patch", str(script)]
    subprocess.run(command, input=patch, text=True, check=True, capture_output=True)
    assert "\tneed clock hostname netmount\n" in script.read_text()
