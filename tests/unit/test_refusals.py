"""What a site's file alone shows is refused in one sentence, which stands in the docs."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from tests.refusals import IN_A_FILE, ON_A_MACHINE, is_said, said
from tests.sites import lab_text

from xenlab.cli.cli import main


@pytest.mark.parametrize("wrong", IN_A_FILE)
def test_what_the_file_shows_is_refused_before_anybody_connects(
    wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "1000")
    case = IN_A_FILE[wrong]
    with socket.create_server(("127.0.0.1", 0)) as machine:
        ssh = {"host": "127.0.0.1", "port": machine.getsockname()[1]}
        (tmp_path / "castle.yaml").write_text(
            case if isinstance(case, str) else lab_text(**{"ssh": ssh} | dict(case))
        )
        with pytest.raises(SystemExit) as caught:
            main(["run", "00", "-f", str(tmp_path / "castle.yaml")])
        machine.setblocking(False)
        with pytest.raises(BlockingIOError):
            machine.accept()
    text = capsys.readouterr().err
    assert caught.value.code == 2
    assert is_said(wrong, text), text
    assert not (tmp_path / "runs").exists()


def test_the_page_has_them_all() -> None:
    assert [*said()] == [*IN_A_FILE, *ON_A_MACHINE]
