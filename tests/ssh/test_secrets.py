"""Planted secrets occur nowhere in what is kept: run folder, notebooks, pages."""

from __future__ import annotations

import pytest
from tests.ssh.small import Site

from xenlab.command import Secret
from xenlab.hidden import known

TOKEN = "tok-5ae1c9$'\"x"
PASSWORD = "correct horse battery"
FOUND = "•••"


def kept(site: Site) -> dict[str, str]:
    """All that is kept of all runs, by file."""
    return {
        str(path): path.read_text(errors="replace")
        for path in site.runs.rglob("*")
        if path.is_file()
    }


def test_planted_secrets_are_nowhere(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_API_TOKEN", TOKEN)
    monkeypatch.setenv("IPMI_PASSWORD", PASSWORD)
    key = site.sshd.identity
    site.write(ssh={"host": site.sshd.alias, "config": str(site.sshd.config), "identity": str(key)})
    handed = 'Command.script(\'echo "told: $1"\', Secret.from_env("LAB_API_TOKEN"))'
    halves = PASSWORD[: len(PASSWORD) // 2], PASSWORD[len(PASSWORD) // 2 :]
    split = f'Command.script(\'printf %s "$1"; sleep 0.5; printf %s "$2"\', *{halves!r})'
    site.chapter(
        "01_first",
        "from xenlab.command import Secret",
        f'book.run("01.1 Hand one over", Told({handed}), on=book.host)',
        f'book.run("01.2 In two pieces", Told({split}), on=book.host)',
        f'book.run("01.3 A key", Told(Command.argv("cat", {str(key)!r})), on=book.host)',
        'book.run("01.4 Fail with one", Told(Command.script('
        '\'echo "$1" >&2; exit 3\', Secret.from_env("LAB_API_TOKEN"))), on=book.host)',
    )
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 1
    steps = dict(site.steps())
    assert steps == {"01.1": "changed", "01.2": "changed", "01.3": "changed", "01.4": "failed"}
    files = kept(site) | {"the terminal": done.stdout + done.stderr}
    assert any(name.endswith("report.html") for name in files)
    assert any(f"told: {FOUND}" in text for text in files.values())
    lines = [line for line in key.read_text().splitlines() if not line.startswith("-----")]
    assert len(lines) > 3
    for secret in (TOKEN, PASSWORD, *lines):
        assert [name for name, text in files.items() if secret in text] == []


def test_a_password_in_a_parameters_file_is_refused_and_not_repeated(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    site.write(password=PASSWORD)
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 2
    assert "unknown parameter password" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    assert not site.runs.exists()


def test_what_is_known_to_be_secret(site: Site) -> None:
    environment = {
        "GITHUB_TOKEN": "abcdefgh",
        "DB_PASSWORD": "abcdefgh-longer",
        "SHORT_TOKEN": "abc",
        "PATH": "/usr/bin:/bin",
    }
    assert known("", environment) == (Secret("abcdefgh-longer"), Secret("abcdefgh"))
    assert known("/no/such/key", environment) == known("", environment)
    whole = known(str(site.sshd.identity), {})
    assert all(not secret.value.startswith("-----") for secret in whole) and len(whole) > 3
