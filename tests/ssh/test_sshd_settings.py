"""Settings of a real sshd: tried before they are written, and used by the daemon that runs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.ssh.conftest import Sshd

from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.resources.files import File, render
from xenlab.resources.ssh_access import SshdSettings, parse_settings
from xenlab.transport.local import Local

HERE = Host(Local())


def quiet(what: str, done: float | None = None) -> None:
    """A report that nobody reads."""


@dataclass
class Daemon:
    """A server that includes a folder, and settings in a file of that folder."""

    sshd: Sshd
    folder: Path

    def settings(self, text: str) -> SshdSettings:
        assert self.sshd.process is not None
        return SshdSettings(
            File(str(self.folder / "10-xenlab.conf"), text),
            Command.argv("kill", "-HUP", self.sshd.process.pid),
            config=str(self.sshd.folder / "sshd_config"),
        )

    def greeting(self) -> str:
        """What the server that runs says first, VersionAddendum at its end."""
        with socket.create_connection(("127.0.0.1", self.sshd.port), timeout=30) as link:
            return link.recv(256).decode().strip()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    folder = tmp_path / "sshd" / "conf.d"
    folder.mkdir(parents=True)
    pid = f"PidFile {tmp_path}/sshd.pid"
    sshd = Sshd(tmp_path / "sshd", pid, f"Include {folder}/*.conf")
    yield Daemon(sshd, folder)
    sshd.stop()


def test_the_daemon_that_runs_uses_what_was_written(daemon: Daemon) -> None:
    wanted = daemon.settings("# first\nVersionAddendum one\nPermitRootLogin prohibit-password\n")
    assert wanted.probe(HERE) is not None
    wanted.apply(HERE, quiet)
    wanted.verify(HERE)
    assert daemon.greeting().endswith(" one")


def test_what_chapter_05_writes_is_what_sshd_says_it_uses(daemon: Daemon) -> None:
    wanted = daemon.settings(render("sshd.conf"))
    wanted.apply(HERE, quiet)
    wanted.verify(HERE)


def test_a_file_that_nobody_includes_is_not_used(daemon: Daemon, tmp_path: Path) -> None:
    wanted = replace(daemon.settings(""), file=File(f"{tmp_path}/x.conf", "VersionAddendum x\n"))
    wanted.apply(HERE, quiet)
    assert not daemon.greeting().endswith(" x")
    with pytest.raises(StepFailed, match="does not use all"):
        wanted.verify(HERE)


def test_a_file_that_the_daemon_has_not_read_is_a_difference(daemon: Daemon) -> None:
    """A run that was cut off between the file and the reload."""
    wanted = daemon.settings("VersionAddendum two\n")
    HERE.write(wanted.file.path, wanted.file.text())
    difference = wanted.probe(HERE)
    assert difference is not None
    assert difference.summary == f"have sshd read {wanted.file.path}"
    assert not daemon.greeting().endswith(" two")
    wanted.apply(HERE, quiet)
    wanted.verify(HERE)
    assert daemon.greeting().endswith(" two")


def test_what_sshd_refuses_is_never_in_place(daemon: Daemon) -> None:
    good = daemon.settings("VersionAddendum good\n")
    good.apply(HERE, quiet)
    before = Path(good.file.path).stat()
    for text in ("Passwords never\n", "PasswordAuthentication perhaps\n"):
        with pytest.raises(StepFailed, match="because sshd refuses it"):
            daemon.settings(text).apply(HERE, quiet)
    assert Path(good.file.path).stat() == before
    assert good.probe(HERE) is None
    assert sorted(path.name for path in daemon.folder.iterdir()) == ["10-xenlab.conf"]


def test_a_setting_that_another_file_rules_is_named(daemon: Daemon) -> None:
    (daemon.folder / "01-other.conf").write_text("VersionAddendum theirs\n")
    wanted = daemon.settings("VersionAddendum ours\n")
    wanted.apply(HERE, quiet)
    with pytest.raises(StepFailed, match="does not use all"):
        wanted.verify(HERE)
    difference = wanted.probe(HERE)
    assert difference is not None and "include the file before" in difference.hint
    row = {"setting": "versionaddendum", "sshd uses": "theirs", "wanted": "ours"}
    assert difference.rows == (row,)


def test_a_configuration_that_is_broken_since_is_a_difference(daemon: Daemon) -> None:
    wanted = daemon.settings("VersionAddendum ours\n")
    wanted.apply(HERE, quiet)
    (daemon.folder / "20-broken.conf").write_text("Nonsense yes\n")
    difference = wanted.probe(HERE)
    assert difference is not None and "sshd refuses its configuration" in difference.summary
    assert "20-broken.conf" in difference.summary


def test_where_no_sshd_runs_the_next_one_reads_it(daemon: Daemon) -> None:
    wanted = daemon.settings("VersionAddendum later\n")
    daemon.sshd.stop()
    HERE.write(wanted.file.path, wanted.file.text())
    assert wanted.probe(HERE) is None
    other = replace(wanted, reload=Command("true"), file=File(wanted.file.path, "UseDNS no\n"))
    other.apply(HERE, quiet)
    other.verify(HERE)


NAME = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,12}", fullmatch=True).filter(
    lambda name: name.lower() != "match"
)
VALUE = st.from_regex(r"[a-z0-9][a-z0-9:/.-]{0,12}", fullmatch=True)


@given(st.lists(st.tuples(NAME, VALUE)))
def test_the_first_of_several_settings_counts(pairs: list[tuple[str, str]]) -> None:
    text = "".join(f"  {name}  {value}\n" for name, value in pairs)
    found = parse_settings(f"# a comment\n\n{text}Match user x\n  Other yes\n")
    wanted: dict[str, str] = {}
    for name, value in pairs:
        wanted.setdefault(name.lower(), value)
    assert found == wanted


@given(st.text())
@example("Match")
def test_any_text_is_settings_or_none(text: str) -> None:
    assert all(name == name.lower() for name in parse_settings(text))
