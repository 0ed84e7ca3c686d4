"""The commands that a step names: typed by hand, they bring its state about."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import xenlab
from xenlab.chapter.card import Card
from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.masking import Secret
from xenlab.resources.base import Check, OnHost, Resource
from xenlab.resources.disk import Filesystem, PartitionTable
from xenlab.resources.files import Absent, Directory, File, Line, Relocated, ShellWord, Symlink
from xenlab.resources.nfs import Mount, SwapFile
from xenlab.resources.xen import DomainAddition
from xenlab.site.disk_plan import Partition
from xenlab.transport.local import Local

HOST = Host(Local())

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


def typed(resource: Resource) -> None:
    """Type what a resource names into a shell, as it stands on the card."""
    text = "\n".join(command.by_hand() for command in resource.commands())
    subprocess.run(["sh", "-eu"], input=text, text=True, check=True, capture_output=True)


def every_resource() -> list[type[Resource]]:
    for module in pkgutil.walk_packages(xenlab.__path__, "xenlab."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: list[type[Resource]] = []
    left = [Resource]
    while left:
        below = left.pop().__subclasses__()
        found += below
        left += below
    return [kind for kind in found if kind.__module__.startswith("xenlab.")]


@pytest.mark.parametrize("kind", every_resource(), ids=lambda kind: kind.__name__)
def test_whatever_changes_something_names_its_commands(kind: type[Resource]) -> None:
    """ServiceStates is one of two kinds, each with commands of its own."""
    if inspect.isabstract(kind) or kind is Check:
        return
    named = kind.commands is not Resource.commands
    assert named is not issubclass(kind, Check)


@given(words, words, st.lists(words, max_size=3))
def test_a_value_is_one_word_whatever_it_holds(one: str, two: str, more: list[str]) -> None:
    command = Command.sh("printf '%s\\0' {one} {more} {two_2}", one=one, two_2=two, more=more)
    assert HOST.run(command).out.decode().split("\0")[:-1] == [one, *more, two]


def test_a_name_without_a_value_is_an_error_and_the_shell_s_own_is_not() -> None:
    assert Command.sh("echo ${PATH} {a}", a="x y").text == "echo ${PATH} 'x y'"
    with pytest.raises(KeyError):
        Command.sh("echo {forgotten}")


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_here_document_holds_the_text_as_it_is(text: str) -> None:
    path = f"/tmp/xenlab-here-{os.getpid()}"
    try:
        HOST.run(Command.file(path, text, 0o640))
        assert Path(path).read_bytes() == text.encode()
        assert Path(path).stat().st_mode & 0o777 == 0o640
    finally:
        Path(path).unlink(missing_ok=True)


def test_a_secret_is_masked_in_what_is_typed() -> None:
    command = Command.sh("login --password {word}", word=Secret("hunter22"))
    assert "hunter22" not in command.by_hand()
    assert "hunter22" in command.text
    typed = Command("login").typed_as("login --password {word}", word=Secret("hunter22"))
    assert "hunter22" not in typed.by_hand()
    there = OnHost("domu1", HOST, Directory("/srv/a b"))
    assert [one.by_hand() for one in there.commands()] == [
        "ssh domu1 'install -d -m 755 '\"'\"'/srv/a b'\"'\"''"
    ]


def test_a_status_with_a_meaning_is_said() -> None:
    refusing = Command("exit 45").refusing({45: ("it is not so", "make it so")})
    with pytest.raises(StepFailed, match="it is not so") as caught:
        HOST.change(refusing)
    assert caught.value.hint == "make it so"
    with pytest.raises(CommandFailed):
        HOST.change(Command("exit 46").refusing({45: ("it is not so", "")}))
    assert HOST.change(Command("cat").given(b"in")).out == b"in"


def test_no_line_follows_one_that_failed(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed):
        HOST.change(Command.sh("false\ntouch {path}", path=tmp_path / "made"))
    assert not (tmp_path / "made").exists()
    state = Mount("/no/such/device", str(tmp_path / "place"))
    with pytest.raises(CommandFailed):
        state.apply(HOST, lambda what, done=None: None)


def states(folder: Path) -> Iterator[Resource]:
    """States that can be tried in a folder, none of which holds yet."""
    (folder / "there").write_text("now\n")
    (folder / "settings").write_text("key one\nkeep me\nkey two\n")
    (folder / "words").write_text('NEEDS="net"\n')
    (folder / "src").mkdir()
    (folder / "src/file").write_text("of the sources\n")
    (folder / "swap").mkdir()
    yield File(f"{folder}/new", "a 'text'\nwith $lines\n", mode=0o600)
    yield File(f"{folder}/unended", "no end", mode=0o755)
    yield Absent(f"{folder}/there")
    yield Directory(f"{folder}/deep/er", 0o700)
    yield Symlink(f"{folder}/link", "new")
    yield ShellWord(f"{folder}/words", "NEEDS", "disk")
    yield Relocated(f"{folder}/src", f"{folder}/share/src")
    yield SwapFile(f"{folder}/swap/one", 1)


def test_what_is_typed_brings_the_state_about(tmp_path: Path) -> None:
    for state in states(tmp_path):
        assert state.probe(HOST) is not None, state
        typed(state)
        assert state.probe(HOST) is None, state


def test_a_line_takes_the_place_of_those_that_begin_alike(tmp_path: Path) -> None:
    """By hand it comes to the end of the file, where it is as good."""
    place = tmp_path / "settings"
    place.write_text("a/b.c one\nkeep me\na/bxc stays\n")
    typed(Line(str(place), "a/b.c two", "a/b.c"))
    assert place.read_text() == "keep me\na/bxc stays\na/b.c two\n"


def test_an_addition_is_taken_out_and_what_follows_stays(tmp_path: Path) -> None:
    place = tmp_path / "domu1.cfg"
    place.write_text("name = 1\n#+ chapter 13_network\nvif = 2\n#+ chapter 15_shared_usr\nx = 3\n")
    typed(DomainAddition(str(place), "13_network", ""))
    assert place.read_text() == "name = 1\n#+ chapter 15_shared_usr\nx = 3\n"
    typed(DomainAddition(str(place), "16_more", "y = 4\n"))
    assert place.read_text().endswith("x = 3\n#+ chapter 16_more\ny = 4\n")


def test_every_public_name_is_there() -> None:
    assert [name for name in xenlab.__all__ if not hasattr(xenlab, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        xenlab.Nothing  # noqa: B018


def test_a_disk_is_made_by_what_is_typed(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    table = PartitionTable(str(disk), (Partition("boot", 16), Partition("rest", 0)))
    assert table.probe(HOST) is not None
    typed(table)
    assert table.probe(HOST) is None
    device = subprocess.run(
        [
            "losetup",
            "--find",
            "--show",
            "--offset",
            str(1 << 20),
            "--sizelimit",
            str(16 << 20),
            disk,
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    place = tmp_path / "mounted here"
    system = Filesystem(device, "boot")
    mount = Mount(device, str(place), options="noatime")
    try:
        for state in (system, mount):
            assert state.probe(HOST) is not None
            typed(state)
            assert state.probe(HOST) is None
    finally:
        subprocess.run(["umount", place], check=False)
        subprocess.run(["losetup", "--detach", device], check=True)


def test_the_card_says_what_became_of_it() -> None:
    words = {
        "changed": "ran",
        "ok": "not needed",
        "would change": "would run",
        "would be refused": "would run",
        "failed": "to run",
    }
    for status, word in words.items():
        card = Card("04.4 Install GRUB", status=status, script="grub-install /dev/<vda>")
        page = card.html()
        assert f">{word}</span>" in page and "grub-install /dev/&lt;vda&gt;" in page
    assert "xenlab-script" not in Card("00.1 Facts", status="ok").html()
