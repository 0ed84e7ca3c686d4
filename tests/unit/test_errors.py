"""Errors: what is raised has no kinds, so that nobody has to sort them by hand."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest

from xenlab import errors
from xenlab.command import Result
from xenlab.errors import (
    CommandError,
    CommandFailed,
    CommandTimeout,
    ConnectionRefused,
    HostKeyRefused,
    NoConnection,
    Overdue,
    XenlabError,
)
from xenlab.host import Host
from xenlab.resources.base import OnHost, PathsExist, Resource
from xenlab.resources.domain import DomainRunning
from xenlab.resources.ssh_access import GuestAnswers
from xenlab.transport.local import Local

PACKAGE = Path(__file__).parents[2] / "lib" / "xenlab"
KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, XenlabError)
]
PARENTS = {base.__name__ for kind in KINDS for base in kind.__bases__} - {"XenlabError"}


def silent(what: str, done: float | None = None) -> None:
    """A report that nobody reads."""


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_what_is_raised_has_no_kinds_of_its_own(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            assert ast.unparse(node.exc.func) not in PARENTS, f"line {node.lineno}"


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_no_error_is_sorted_by_hand(module: Path) -> None:
    """``except X: raise`` before an ``except Y`` says that X should not be a kind of Y."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Try):
            # whoever catches every exception has to let some through
            named = [h for h in node.handlers if h.type and ast.unparse(h.type) != "Exception"]
            for handler in named[:-1]:
                assert ast.unparse(handler.body[0]) != "raise", f"line {handler.lineno}"


def test_a_refused_key_and_a_silent_machine_are_two_things_that_share_a_base() -> None:
    assert not issubclass(HostKeyRefused, ConnectionRefused)
    assert not issubclass(CommandTimeout, CommandFailed)
    assert issubclass(HostKeyRefused, NoConnection) and issubclass(ConnectionRefused, NoConnection)
    assert issubclass(CommandTimeout, CommandError) and issubclass(CommandFailed, CommandError)


def test_a_timeout_says_that_the_command_did_not_end_and_survives_pickling() -> None:
    error = CommandTimeout(Result("dom0", "sleep 9", -1, b"half\n", b"", 2.0), 2.0)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert "dom0: timed out after 2 s: sleep 9\nlast lines of stdout:\n  half" in str(error)
    assert "exit status" not in str(error)


class Impostor(Local):
    """A machine that shows another host key than the pinned one."""

    name = "domu1"

    def connect(self, *_: object, **__: object) -> None:
        raise HostKeyRefused("the key of domu1 has changed")

    def execute(self, *_: object, **__: object) -> tuple[int, bytes, bytes]:
        raise HostKeyRefused("the key of domu1 has changed")


NOBODY = Host(Impostor())


@pytest.mark.parametrize(
    "waiting",
    [GuestAnswers("domu1", NOBODY), OnHost("domu1", NOBODY, PathsExist(("/x",)))],
    ids=lambda resource: type(resource).__name__,
)
def test_nobody_waits_for_a_machine_whose_key_is_refused(waiting: Resource) -> None:
    with pytest.raises(HostKeyRefused):
        waiting.apply(Host(Local()), silent)


def test_nobody_waits_for_the_reboot_of_a_machine_whose_key_is_refused() -> None:
    with pytest.raises(HostKeyRefused):
        NOBODY.wait_for_reboot("old", timeout=600)


class Stuck(Local):
    """A machine whose commands do not end."""

    def execute(self, text: str, **more: object) -> tuple[int, bytes, bytes]:
        if "marked" in text:
            return 0, b"0\n", b""
        raise Overdue(60)


def test_an_xl_that_does_not_answer_is_not_taken_for_a_domain_that_is_not_there() -> None:
    with pytest.raises(CommandTimeout):
        DomainRunning("domu1", "/etc/xen/domu1.cfg").probe(Host(Stuck()))
