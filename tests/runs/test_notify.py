"""People are told how a run goes, over a real HTTP server, by commands and by mail."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.ssh.conftest import free_port, wait_until
from tests.ssh.small import Site, one_line

TOKEN = "t0ken-of-the-castle"


@dataclass
class Receiver:
    """An HTTP server that keeps what it is sent."""

    got: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.port}/{TOKEN}"

    def titles(self) -> list[str]:
        return [each["title"] for each in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.paths.append(self.path)
            found.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


def everything(site: Site) -> bytes:
    """All that a run has left."""
    files = [path for path in site.runs.rglob("*") if path.is_file()]
    assert files
    return b"".join(path.read_bytes() for path in files)


def test_the_end_of_a_run_is_told_by_a_url_that_is_shown_nowhere(
    site: Site, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write(notify=[{"env": "CASTLE_HOOK"}])
    monkeypatch.setenv("CASTLE_HOOK", receiver.url)
    shows = 'chapter.run("01.2 Tell", Told(Command.sh("env")), on=chapter.controller)'
    site.chapter("01_first", site.made("01.1"), shows)
    done = site.xenlab("run", "-f", "site.yaml", "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = receiver.got
    assert told["title"] == "test: run ended" and "1 of 1 chapters" in told["message"]
    assert receiver.paths == [f"/{TOKEN}"]
    assert TOKEN.encode() not in everything(site)
    assert TOKEN not in done.stdout + done.stderr


def test_a_failure_is_told_with_the_sentence_that_says_what_to_do(
    site: Site, receiver: Receiver
) -> None:
    site.chapter("01_first", site.made("01.1", "Impossible"))
    done = site.xenlab("run", "-f", "site.yaml", "--notify", receiver.url)
    assert done.returncode == 1
    (told,) = receiver.got
    assert told["title"] == "test: run failed"
    assert "the moon is not full\nTry: wait for it" in told["message"]
    assert f"xenlab run --resume {site.run_folders()[0].name}" in told["message"]
    assert TOKEN.encode() not in everything(site)


def test_whoever_must_do_something_is_told_while_the_run_waits(
    site: Site, receiver: Receiver
) -> None:
    site.chapter("01_first", site.made("01.1", "Asking"))
    process = site.start("run", "-f", "site.yaml", "--notify", receiver.url)
    wait_until(lambda: receiver.got, 150)
    (told,) = receiver.got
    assert told["title"] == "test: waits for you"
    assert "boot the machine from its rescue system" in told["message"]
    assert "01.1 Make 01.1" in told["message"]
    assert process.poll() is None
    site.path("01.1").write_text("booted\n")
    out, _ = process.communicate(timeout=150)
    assert process.returncode == 0, out
    assert receiver.titles() == ["test: waits for you", "test: run ended"]


def test_drift_is_told_and_no_drift_is_not(site: Site, receiver: Receiver) -> None:
    site.chapter("01_first", site.made("01.1"))
    assert site.xenlab("check", "-f", "site.yaml", "--notify", receiver.url).returncode == 3
    (told,) = receiver.got
    assert told["title"] == "test: drift in 1 step"
    assert f"01.1 Make 01.1: make {site.path('01.1')}" in told["message"]
    site.path("01.1").write_text("made\n")
    assert site.xenlab("check", "-f", "site.yaml", "--notify", receiver.url).returncode == 0
    assert len(receiver.got) == 1


def test_a_command_gets_the_words(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    command = 'printf "%s|%s|" "$XENLAB_EVENT" "$XENLAB_TITLE" > told; cat >> told'
    site.write(notify=[{"command": command}])
    assert site.xenlab("run", "-f", "site.yaml").returncode == 0
    said = (site.folder / "told").read_text()
    assert said.startswith("ended|test: run ended|1 of 1 chapters, 2 steps")
    assert f"run folder: {site.run_folders()[0].name}" in said


def test_a_mail_goes_to_this_machine_s_sendmail(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = site.folder / "sbin"
    folder.mkdir()
    program = folder / "sendmail"
    program.write_text(f'#!/bin/sh\n{{ echo "$@"; cat; }} > {site.folder}/mail\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    site.chapter("01_first", site.made("01.1"))
    done = site.xenlab("run", "-f", "site.yaml", "--notify", "admin@example.org")
    assert done.returncode == 0, done.stderr
    said = (site.folder / "mail").read_text()
    assert said.startswith("-i -- admin@example.org\nTo: admin@example.org\n")
    assert "Subject: test: run ended\n" in said and "1 of 1 chapters" in said


def test_who_cannot_be_told_is_said_and_the_run_goes_its_way(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    nobody = f"json://127.0.0.1:{free_port()}/{TOKEN}"
    words = ("--notify", nobody, "--notify", "echo no line >&2; exit 3")
    done = site.xenlab("run", "-f", "site.yaml", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cannot notify json://•••: because " in done.stderr
    assert "because it ended with status 3: no line; the run goes its way" in done.stderr
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("who", "said"),
    [
        (f"nonsense://{TOKEN}", "cannot notify nonsense://•••: because Apprise knows no such URL"),
        ("admin@example.org", "because this machine has no sendmail"),
    ],
)
def test_who_can_never_be_told_is_refused_first(
    site: Site, monkeypatch: pytest.MonkeyPatch, who: str, said: str
) -> None:
    monkeypatch.setattr("xenlab.runs.notify.SBIN", "/none")
    monkeypatch.setenv("PATH", str(Path("/none")))
    site.chapter("01_first", site.made("01.1"))
    done = site.xenlab("run", "-f", "site.yaml", "--notify", who)
    assert done.returncode == 2 and said in one_line(done.stderr)
    assert TOKEN not in done.stderr and site.run_folders() == []


def test_a_url_that_stands_in_the_file_is_refused_and_not_repeated(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    for written in ([f"json://host/{TOKEN}"], [{"url": f"json://host/{TOKEN}"}]):
        site.write(notify=written)
        done = site.xenlab("run", "-f", "site.yaml")
        assert done.returncode == 2
        assert "must be {env: NAME} or {file: PATH} of a URL" in one_line(done.stderr)
        assert TOKEN not in done.stderr
    site.write(notify=[{"env": "NOT_SET", "command": "true"}])
    assert "must name one thing" in site.xenlab("run", "-f", "site.yaml").stderr
    site.write(notify=[{"env": "NOT_SET_ANYWHERE"}])
    assert "no such variable" in site.xenlab("run", "-f", "site.yaml").stderr
