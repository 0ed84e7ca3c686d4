"""Passwords and other answers: asked for once, in a terminal or in JupyterLab, and not kept.

A real sshd with accounts of its own: it has a passwd, a shadow and a PAM file that only it sees.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager
from tests.ssh.conftest import Sshd

from xenlab.errors import ConnectionRefused, NoConnection, Unreachable
from xenlab.transport.ssh import SSH
from xenlab.transport.ssh_config import Target

ROOT = Path(__file__).parents[2]
PASSWORD = "correct horse"
ACCOUNTS = {"visitor": "/bin/sh", "caged": "/bin/rbash", "away": "/usr/sbin/nologin"}
PAM = "auth required pam_unix.so\naccount required pam_permit.so\nsession required pam_permit.so\n"
NOBODY = r"it asks for a password(?: or keyboard-interactive)?, and nobody can be asked here"
MakeSshd = Callable[..., Sshd]

LOG_IN = """
import os
if {terminal}:
    # a session without a terminal takes the first that it opens
    os.close(os.open(os.ttyname(0), os.O_RDWR))
from xenlab.transport.ssh import SSH
from xenlab.transport.ssh_config import Target
ssh = SSH(Target("box", config={config!r}, user="visitor"))
try:
    print(ssh.execute("echo came as $LOGNAME", timeout=60)[1].decode())
except Exception as error:
    print("refused:", error)
ssh.close()
"""


@pytest.fixture
def with_accounts(tmp_path: Path) -> Iterator[MakeSshd]:
    """Start servers in a mount namespace with accounts of their own."""
    words = ["openssl", "passwd", "-6", "-salt", "salt", PASSWORD]
    hashed = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    passwd, shadow, pam = (tmp_path / name for name in ("passwd", "shadow", "pam"))
    lines = (f"{name}:x:0:0::/:{shell}\n" for name, shell in ACCOUNTS.items())
    passwd.write_text(Path("/etc/passwd").read_text() + "".join(lines))
    shadow.write_text("".join(f"{name}:{hashed}:19000:0:99999:7:::\n" for name in ACCOUNTS))
    shadow.chmod(0o600)
    pam.write_text(PAM)
    places = ((passwd, "/etc/passwd"), (shadow, "/etc/shadow"), (pam, "/etc/pam.d/sshd"))
    mounts = "".join(f"mount --bind {shlex.quote(str(a))} {b};" for a, b in places)
    before = ("unshare", "--mount", "sh", "-euc", f'{mounts}exec "$@"', "sh")
    servers: list[Sshd] = []

    def make(*extra: str) -> Sshd:
        folder = tmp_path / f"sshd{len(servers)}"
        servers.append(Sshd(folder, *extra, before=before))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def in_a_terminal(sshd: Sshd, *answers: str) -> str:
    """All that a terminal shows where answers are typed, each after its question."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", LOG_IN.format(terminal=True, config=str(sshd.config))],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'lib'}"},
    )
    os.close(slave)
    seen, left = "", list(answers)
    try:
        while piece := _read(master):
            seen += piece.decode(errors="replace")
            if left and seen.lower().count("password: ") > len(answers) - len(left):
                os.write(master, f"{left.pop(0)}\n".encode())
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        os.close(master)
    return seen


def _read(master: int) -> bytes:
    try:
        return os.read(master, 4096)
    except OSError:
        # Linux says so where the last that had the terminal open has gone
        return b""


BY_PASSWORD = ("PasswordAuthentication yes", "PubkeyAuthentication no")
BY_PAM = ("UsePAM yes", "KbdInteractiveAuthentication yes")


def test_a_password_is_asked_for_once_in_a_terminal(with_accounts: MakeSshd) -> None:
    sshd = with_accounts(*BY_PASSWORD)
    seen = in_a_terminal(sshd, PASSWORD)
    assert "came as visitor" in seen, seen
    assert "visitor@127.0.0.1's password: " in seen
    assert PASSWORD not in seen


def test_a_wrong_password_is_refused_in_one_sentence(with_accounts: MakeSshd) -> None:
    seen = in_a_terminal(with_accounts(*BY_PASSWORD), "battery staple")
    assert seen.count("password: ") == 1
    assert "because it does not accept what was typed for password" in seen, seen
    assert "battery" not in seen


def test_keyboard_interactive_asks_the_server_s_own_questions(with_accounts: MakeSshd) -> None:
    sshd = with_accounts(*BY_PAM, "PubkeyAuthentication no")
    seen = in_a_terminal(sshd, PASSWORD)
    assert "came as visitor" in seen, seen
    assert "(visitor@127.0.0.1) Password: " in seen


def test_a_second_factor_is_asked_for_after_the_key(with_accounts: MakeSshd) -> None:
    sshd = with_accounts(*BY_PAM, "AuthenticationMethods publickey,keyboard-interactive")
    assert "came as visitor" in in_a_terminal(sshd, PASSWORD)


@pytest.mark.parametrize("methods", ["publickey,password", "password,publickey"])
def test_a_key_and_a_password_in_either_order(with_accounts: MakeSshd, methods: str) -> None:
    sshd = with_accounts("PasswordAuthentication yes", f"AuthenticationMethods {methods}")
    seen = in_a_terminal(sshd, PASSWORD)
    assert "came as visitor" in seen, seen
    assert seen.count("password: ") == 1


def test_a_password_field_in_jupyterlab(with_accounts: MakeSshd) -> None:
    sshd = with_accounts(*BY_PASSWORD)
    code = LOG_IN.format(terminal=False, config=str(sshd.config))
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=os.environ | {"PYTHONPATH": f"{ROOT / 'lib'}"})
    client = manager.blocking_client()
    asked: list[dict[str, object]] = []
    said: list[str] = []

    def answer(message: dict[str, dict[str, object]]) -> None:
        asked.append(message["content"])
        client.input(PASSWORD)

    def note(message: dict[str, dict[str, object]]) -> None:
        said.append(str(message["content"]))

    try:
        client.start_channels()
        client.wait_for_ready(timeout=120)
        client.execute_interactive(
            code, allow_stdin=True, stdin_hook=answer, output_hook=note, timeout=120
        )
        assert "came as visitor" in "".join(said), said
        assert [question["password"] for question in asked] == [True]
        client.execute_interactive(code, allow_stdin=False, output_hook=note, timeout=120)
        assert re.search(NOBODY, "".join(said)), said
        assert len(asked) == 1
        assert PASSWORD not in "".join(said)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def refusal(target: Target) -> str:
    """Why nobody gets in, or no command runs."""
    ssh = SSH(target)
    with pytest.raises(NoConnection) as refused:
        ssh.execute("true", timeout=60)
    ssh.close()
    return str(refused.value)


def test_a_thread_asks_nobody(with_accounts: MakeSshd) -> None:
    sshd = with_accounts(*BY_PASSWORD)
    said: list[str] = []
    target = Target("box", config=str(sshd.config), user="visitor")
    thread = threading.Thread(target=lambda: said.append(refusal(target)))
    thread.start()
    thread.join(120)
    assert re.search(NOBODY, said[0]), said


@pytest.mark.parametrize(
    ("user", "answer"),
    [("caged", "restricted"), ("away", "This account is currently not available")],
)
def test_an_account_whose_shell_runs_nothing(
    with_accounts: MakeSshd, user: str, answer: str
) -> None:
    text = refusal(Target("box", config=str(with_accounts().config), user=user))
    assert text.startswith("box: cannot run commands: because the user's login shell")
    assert answer in text
    assert "Try: give the user a shell there" in text


def test_a_server_that_takes_no_more_logins(make_sshd: MakeSshd) -> None:
    sshd = make_sshd("MaxStartups 1:100:1")
    ssh = SSH(sshd.target)
    greeting = "closed the connection before its SSH greeting"
    with _held(sshd.port), pytest.raises(ConnectionRefused, match=greeting):
        _until_refused(ssh)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            assert ssh.execute("echo in", timeout=60)[1] == b"in\n"
            break
        except ConnectionRefused:
            time.sleep(0.1)
    assert ssh.connections
    ssh.close()


def _held(port: int) -> socket.socket:
    """A login that goes no further: the server may refuse it while it counts one that ends."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        held = socket.create_connection(("127.0.0.1", port))
        if held.recv(4) == b"SSH-":
            return held
        held.close()
        time.sleep(0.1)
    raise AssertionError("the server takes no login at all")


def _until_refused(ssh: SSH) -> None:
    """The server may count the one that says nothing a moment later."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ssh.close()
        ssh.connect()


def test_a_stop_is_heard_while_a_server_says_nothing() -> None:
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        ssh = SSH(Target("127.0.0.1", port=mute.getsockname()[1]), connect_timeout=600)
        threading.Timer(0.5, stop.set).start()
        with pytest.raises(KeyboardInterrupt):
            ssh.connect(stop)
    assert not ssh.connections


def test_batch_mode_asks_nobody(with_accounts: MakeSshd) -> None:
    sshd = with_accounts(*BY_PASSWORD)
    sshd.write_config("BatchMode yes")
    with pytest.raises(Unreachable, match="BatchMode says to ask nobody"):
        SSH(Target("box", config=str(sshd.config), user="visitor")).connect()
