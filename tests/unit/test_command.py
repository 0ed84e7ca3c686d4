"""Commands: values are quoted, secrets are masked."""

from __future__ import annotations

import pickle
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlab.command import Command, Result
from xenlab.errors import CommandFailed, XenlabError
from xenlab.host import Host
from xenlab.masking import MASK, MaskedStream, Secret
from xenlab.transport.local import Local

nasty = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


def shell(command: Command) -> str:
    return subprocess.run(
        ["/bin/sh", "-c", command.text], capture_output=True, check=True
    ).stdout.decode()


@settings(deadline=None, max_examples=60)
@given(value=nasty)
def test_no_value_reaches_a_shell_unquoted(value: str) -> None:
    assert shell(Command.argv("printf", "%s", value)) == value
    assert shell(Command.sh("printf %s {value}", value=value)) == value
    assert shell(Command.script('printf %s "$1"', value)) == value


def test_a_nul_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        Command.argv("echo", "a\0b")


def test_a_script_stops_at_its_first_failing_command() -> None:
    result = Host(Local()).run(Command.script("false\necho on"), check=False)
    assert (result.status, result.stdout) == (1, "")


@given(before=st.binary(max_size=9), cut=st.integers(0, 12), after=st.binary(max_size=9))
def test_a_secret_split_over_two_pieces_is_masked(before: bytes, cut: int, after: bytes) -> None:
    secret = Secret("s3cr3t-w0rd!")
    data = before + secret.value.encode() + after
    stream = MaskedStream((secret,))
    place = len(before) + cut
    shown = stream.feed(data[:place]) + stream.feed(data[place:]) + stream.flush()
    assert secret.value.encode() not in shown
    assert shown == data.replace(secret.value.encode(), MASK.encode())


def test_a_secret_is_masked_in_an_error_and_not_in_the_data() -> None:
    secret = Secret("hunter2 'quoted'")
    host = Host(Local())
    command = Command.script('echo "it is $1"; echo "$1" >&2; exit 3', secret)
    with pytest.raises(CommandFailed) as error:
        host.run(command)
    assert "hunter2" not in str(error.value) + repr(error.value.result) + repr(secret)
    assert "exit status 3" in str(error.value)
    assert MASK in str(error.value)
    assert host.run(command, check=False).stdout == "it is hunter2 'quoted'\n"


def test_a_failure_shows_command_status_and_last_lines() -> None:
    with pytest.raises(CommandFailed) as error:
        Host(Local()).run(Command.script('seq 1 30; echo "disk full" >&2; exit 7'))
    text = str(error.value)
    assert "controller" in text and "exit status 7" in text and "disk full" in text
    assert "\n  30" in text and "\n  20\n" not in text


def test_errors_survive_pickling() -> None:
    result = Result("dom0", "false", 1, b"out", b"err", 0.1)
    for error in (
        XenlabError("what", hint="try", where="dom0"),
        CommandFailed(result, hint="look"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)


def test_a_write_is_whole_and_keeps_the_mode(tmp_path: Path) -> None:
    host = Host(Local())
    path = tmp_path / "new folder" / "it's $HOME"
    host.write(str(path), "über\n", mode=0o600, owner=f"{path.parent.parent.owner()}:")
    assert path.read_text() == "über\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["it's $HOME"]
    assert host.read(str(path)) == "über\n"
    assert host.read(str(tmp_path / "none")) is None
