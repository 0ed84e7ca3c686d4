"""The SSH transport against real servers: commands, streams, deadlines, lost connections."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.ssh.conftest import Sshd, free_port, keygen, kill, wait_until

from xenlab.errors import BadInput, ConnectionLost, ConnectionRefused, HostKeyRefused, NoConnection
from xenlab.transport import hostkeys
from xenlab.transport.channel import end_input
from xenlab.transport.ssh import OWED_SECONDS, SSH, Wait
from xenlab.transport.ssh_config import Target

MakeSshd = Callable[..., Sshd]
MIB = 1 << 20


def refusal(target: Target, **settings: float) -> str:
    """What a person reads when the target cannot be connected to."""
    with pytest.raises((NoConnection, BadInput)) as refused:
        SSH(target, **settings).connect()  # type: ignore[arg-type]
    return str(refused.value)


# --- commands ------------------------------------------------------------------------------


def test_status_and_both_streams(ssh: SSH) -> None:
    seen: list[tuple[str, bytes]] = []
    result = ssh.execute(
        "cat; echo err >&2; exit 3",
        input=b"in\0\xff",
        timeout=60,
        on_output=lambda stream, piece: seen.append((stream, piece)),
    )
    assert result == (3, b"in\0\xff", b"err\n")
    assert sorted(seen) == [("stderr", b"err\n"), ("stdout", b"in\0\xff")]


def test_many_mebibytes_both_ways_at_once(ssh: SSH) -> None:
    data = os.urandom(8 * MIB)
    # Errors first: a client that reads one stream to its end before the other never gets here.
    script = f"head -c {8 * MIB} /dev/zero >&2 & cat; wait"
    status, out, err = ssh.execute(script, input=data, timeout=120)
    assert (status, out == data, err == bytes(8 * MIB)) == (0, True, True)


def test_an_ipv6_address_can_be_told_from_its_port(ssh: SSH) -> None:
    port = free_port()
    with pytest.raises(ConnectionRefused) as refused:
        SSH(Target("::1", port=port), via=ssh).connect()
    assert f"cannot connect to [::1]:{port}: because the jump host cannot" in str(refused.value)
    assert f"nc -vz ::1 {port}" in str(refused.value)


def test_the_end_of_input_stops_no_other_thread_while_keys_are_exchanged(ssh: SSH) -> None:
    ssh.execute("true", timeout=60)
    connection = ssh._connected()
    channel = connection.session(60)
    connection.start(channel, "sleep 1; exec >&- 2>&-; cat; exit 7")
    connection._transport.clear_to_send.clear()
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(end_input, channel)
        try:
            # what it waits for has to be read by the thread that exchanges keys
            wait_until(lambda: channel.eof_received, 20)
        finally:
            connection._transport.clear_to_send.set()
        ending.result(60)
    wait_until(channel.exit_status_ready, 60)
    assert channel.recv_exit_status() == 7
    channel.close()
    connection.over()


def test_input_that_nobody_wants(ssh: SSH) -> None:
    assert ssh.execute("exec <&-; echo done", input=bytes(8 * MIB), timeout=60)[:2] == (
        0,
        b"done\n",
    )


def test_a_quiet_command_outlives_the_watchdog(sshd: Sshd, opened: Callable[..., SSH]) -> None:
    ssh = opened(sshd.target, keepalive=0.2, patience=1.0)
    assert ssh.execute("sleep 3; echo alive", timeout=60)[1] == b"alive\n"


def test_closed_streams_do_not_end_a_command(ssh: SSH) -> None:
    start = time.process_time()
    assert ssh.execute("exec >&- 2>&-; sleep 2; exit 5", timeout=60) == (5, b"", b"")
    assert time.process_time() - start < 1, "waiting must not spin"


def test_a_process_left_in_the_background_does_not_hang(ssh: SSH) -> None:
    start = time.monotonic()
    assert ssh.execute("sleep 600 & echo started", timeout=300)[:2] == (0, b"started\n")
    assert time.monotonic() - start < 60


def test_a_signal_is_told_apart_from_a_lost_connection(ssh: SSH) -> None:
    assert ssh.execute("kill -KILL $$", timeout=60)[0] == 128 + signal.SIGKILL
    assert ssh.execute("kill -TERM $$", timeout=60)[0] == 128 + signal.SIGTERM


def test_a_command_that_no_kernel_would_take(ssh: SSH) -> None:
    with pytest.raises(BadInput, match="because it is longer than 120000 bytes"):
        ssh.execute(": " + "x" * 130_000, timeout=60)
    assert ssh.execute(": " + "x" * 100_000, timeout=60)[0] == 0


def test_a_deadline_ends_the_wait(ssh: SSH) -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        ssh.execute("sleep 600", timeout=0.5)
    assert 0.5 <= time.monotonic() - start < 60
    assert ssh.execute("echo on", timeout=60)[1] == b"on\n"


def test_a_stop_is_heard_while_nothing_moves(ssh: SSH, sshd: Sshd) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ssh.execute, "exec sleep 600", timeout=500, stop=stop)
        wait_until(sshd.marked)
        set_at = time.monotonic()
        stop.set()
        with pytest.raises(KeyboardInterrupt):
            running.result(60)
        assert time.monotonic() - set_at < 5


def test_a_stop_is_heard_while_output_pours(ssh: SSH) -> None:
    stop = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        ssh.execute("yes", timeout=500, stop=stop, on_output=lambda *_: stop.set())


def test_what_a_listener_raises_comes_through(ssh: SSH) -> None:
    def full(stream: str, piece: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        ssh.execute("echo", timeout=60, on_output=full)
    assert ssh.execute("echo on", timeout=60)[1] == b"on\n"


# --- lost connections ------------------------------------------------------------------------


def test_a_killed_session_is_a_lost_connection(ssh: SSH, sshd: Sshd, tmp_path: Path) -> None:
    count = tmp_path / "count"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ssh.execute, f"echo x >> {count}; exec sleep 600", timeout=500)
        wait_until(lambda: count.exists() and count.read_text())
        for session in sshd.sessions():
            kill(session)
        with pytest.raises(ConnectionLost) as lost:
            running.result(60)
    assert str(lost.value) == (
        "box: cannot say whether the command finished: because the connection broke\n"
        "Try: look at the machine, then repeat the step: it probes before it acts"
    )
    assert ssh.execute("echo again", timeout=60)[1] == b"again\n"
    assert count.read_text() == "x\n", "a command that was sent is never sent twice"


@pytest.mark.parametrize("data", [b"", bytes(32 * MIB)], ids=["idle", "sending"])
def test_a_dead_peer_is_noticed(sshd: Sshd, opened: Callable[..., SSH], data: bytes) -> None:
    ssh = opened(sshd.target, keepalive=0.2, patience=1.0)
    ssh.connect()
    stopped = sshd.sessions()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ssh.execute, "exec sleep 600", timeout=500, input=data)
        wait_until(sshd.marked)
        stopped = sshd.sessions()
        for session in stopped:
            os.kill(session, signal.SIGSTOP)
        stopped_at = time.monotonic()
        with pytest.raises(ConnectionLost, match=r"\(no sign of life for 1 s\)"):
            running.result(60)
    assert time.monotonic() - stopped_at < 30
    for session in stopped:
        kill(session)
    assert ssh.execute("echo again", timeout=60)[1] == b"again\n"


@pytest.mark.parametrize("frozen", [False, True])
def test_what_connected_beforehand_is_taken_over_unless_it_is_silent(
    sshd: Sshd, opened: Callable[..., SSH], frozen: bool
) -> None:
    ssh = opened(sshd.target, keepalive=0.2, patience=300.0)
    ssh.prepare()
    made = ssh._connection
    assert made is not None
    sessions = sshd.sessions()
    for session in sessions if frozen else ():
        os.kill(session, signal.SIGSTOP)
    wait_until(lambda: (made.liveness.owed > OWED_SECONDS) == frozen)
    told: list[int] = []
    ssh.take_over(Wait(), lambda: told.append(ssh.connections))
    assert ssh.execute("echo here", timeout=60, look=True)[1] == b"here\n"
    connections = 2 if frozen else 1
    assert told == [connections]
    for session in sessions:
        kill(session)


def test_what_cannot_be_connected_beforehand_is_left_to_the_first_command(sshd: Sshd) -> None:
    ssh = SSH(sshd.target)
    sshd.stop()
    ssh.prepare()
    with pytest.raises(ConnectionRefused, match="nobody listens there"):
        ssh.execute("true", timeout=60)
    sshd.start()
    assert ssh.execute("echo here", timeout=60)[1] == b"here\n"
    ssh.close()


def test_an_idle_connection_that_broke_is_made_anew(ssh: SSH, sshd: Sshd) -> None:
    assert ssh.execute("echo 1", timeout=60)[1] == b"1\n"
    sshd.restart()
    assert ssh.execute("echo 2", timeout=60)[1] == b"2\n"


def test_a_reinstalled_machine_is_refused_in_between(ssh: SSH, sshd: Sshd) -> None:
    ssh.execute("true", timeout=60)
    sshd.restart(new_key=True)
    with pytest.raises(HostKeyRefused):
        ssh.execute("true", timeout=60)


def test_close_is_final_only_until_the_next_use(ssh: SSH) -> None:
    ssh.close()
    assert ssh.execute("echo on", timeout=60)[1] == b"on\n"
    ssh.close()
    ssh.close()


# --- several at once -------------------------------------------------------------------------


def test_more_commands_at_once_than_the_server_has_sessions(ssh: SSH) -> None:
    with ThreadPoolExecutor(24) as pool:
        results = pool.map(lambda n: ssh.execute(f"sleep 0.2; echo {n}", timeout=120)[1], range(24))
        assert list(results) == [f"{n}\n".encode() for n in range(24)]


def test_a_server_with_few_sessions(make_sshd: MakeSshd, opened: Callable[..., SSH]) -> None:
    ssh = opened(make_sshd("MaxSessions 2").target)
    with ThreadPoolExecutor(6) as pool:
        results = pool.map(lambda n: ssh.execute(f"sleep 0.2; echo {n}", timeout=120)[1], range(6))
        assert list(results) == [f"{n}\n".encode() for n in range(6)]


def test_sessions_held_by_abandoned_processes(
    make_sshd: MakeSshd, opened: Callable[..., SSH]
) -> None:
    ssh = opened(make_sshd("MaxSessions 1").target)
    with pytest.raises(TimeoutError):
        ssh.execute("sleep 600", timeout=0.5)
    assert ssh.execute("echo on", timeout=60)[1] == b"on\n"


def test_a_stop_is_heard_in_the_queue(ssh: SSH) -> None:
    stop, never = threading.Event(), threading.Event()
    with ThreadPoolExecutor(9) as pool:
        busy = [pool.submit(ssh.execute, "sleep 600", timeout=500, stop=stop) for _ in range(8)]
        wait_until(lambda: ssh._busy == 8)
        never.set()
        with pytest.raises(KeyboardInterrupt):
            pool.submit(ssh.execute, "echo", timeout=60, stop=never).result(60)
        stop.set()
        for running in busy:
            with pytest.raises(KeyboardInterrupt):
                running.result(60)


# --- ways to a host --------------------------------------------------------------------------


def test_a_proxy_command(sshd: Sshd, opened: Callable[..., SSH]) -> None:
    relay = (
        "import socket,sys,threading,os\n"
        "s=socket.create_connection((sys.argv[1],int(sys.argv[2])))\n"
        "def up():\n"
        " while d:=os.read(0,65536): s.sendall(d)\n"
        "threading.Thread(target=up,daemon=True).start()\n"
        "while d:=s.recv(65536): os.write(1,d)\n"
    )
    script = sshd.folder / "relay.py"
    script.write_text(relay)
    sshd.write_config(f"ProxyCommand python3 {script} %h %p")
    ssh = opened(sshd.target)
    assert ssh.execute("cat", input=bytes(MIB), timeout=60)[1] == bytes(MIB)


def test_a_proxy_command_that_fails_says_why(sshd: Sshd) -> None:
    sshd.write_config("ProxyCommand echo 'no way there' >&2; exit 1")
    assert refusal(sshd.target).startswith(
        f"box: cannot connect to 127.0.0.1:{sshd.port}: because it closed the connection before "
        "its SSH greeting (no way there)"
    )


@pytest.fixture
def bastion(make_sshd: MakeSshd, sshd: Sshd) -> Sshd:
    """A second server, by which ``sshd`` is reached from now on."""
    bastion = make_sshd(alias="bastion")
    both = sshd.known_hosts.read_text() + bastion.known_hosts.read_text()
    sshd.known_hosts.write_text(both)
    sshd.write_config("ProxyJump bastion")
    with sshd.config.open("a") as config:
        config.write(bastion.config.read_text())
    return bastion


def test_a_jump_host(sshd: Sshd, bastion: Sshd, opened: Callable[..., SSH]) -> None:
    ssh = opened(sshd.target)
    assert ssh.execute("cat", input=bytes(4 * MIB), timeout=60)[1] == bytes(4 * MIB)
    bastion.restart()
    assert ssh.execute("echo again", timeout=60)[1] == b"again\n"
    sshd.stop()
    wait_until(lambda: ssh._connection is None or not ssh._connection.alive)
    assert refusal(sshd.target).startswith("box: cannot connect to 127.0.0.1:")


@pytest.mark.parametrize("same", [True, False])
def test_a_jump_host_that_is_worked_on_is_passed_over_its_own_connection(
    sshd: Sshd, bastion: Sshd, opened: Callable[..., SSH], same: bool
) -> None:
    known = "" if same else str(sshd.known_hosts)
    near = opened(Target("bastion", config=str(sshd.config), known_hosts=known))
    near.connect()
    ssh = opened(sshd.target, near=near)
    assert ssh.execute("echo here", timeout=60)[1] == b"here\n"
    logins = bastion.log.read_text().count("Accepted publickey")
    assert logins == (1 if same else 2)
    ssh.close()
    assert near.execute("echo kept", timeout=60)[1] == b"kept\n"
    assert near.connections == 1
    near.close()
    assert ssh.execute("echo again", timeout=60)[1] == b"again\n"


@pytest.mark.parametrize("worked_on", [True, False])
def test_a_guest_that_no_ssh_config_knows_is_reached_through_its_host(
    sshd: Sshd, make_sshd: MakeSshd, opened: Callable[..., SSH], worked_on: bool, tmp_path: Path
) -> None:
    """Neither its name nor an alias says where it is; its key is pinned in a file of its own."""
    host = make_sshd(alias="castle")
    pins = tmp_path / "state" / "known_hosts"
    guest = Target(
        "mail", port=sshd.port, known_hosts=str(pins), address="127.0.0.1", behind=host.target
    )
    shutil.copy(f"{host.identity}.pub", sshd.folder / "authorized_keys")
    near = opened(host.target) if worked_on else None
    ssh = opened(guest, near=near)
    said = refusal(guest)
    assert said.startswith("mail: cannot trust mail: because its key is unknown"), said
    hostkeys.pin(*hostkeys.place(guest), sshd.public_key)
    assert pins.read_text() == f"mail {sshd.public_key}\n"
    assert ssh.execute("echo here", timeout=60)[1] == b"here\n"
    assert ssh.name == "mail"
    if near is not None:
        assert near.connections == 1
    host.stop()
    with pytest.raises((ConnectionLost, ConnectionRefused)):
        ssh.execute("echo no other way", timeout=60)


def test_a_jump_host_that_is_down_is_named(sshd: Sshd, bastion: Sshd) -> None:
    bastion.stop()
    said = refusal(sshd.target)
    assert said.startswith("bastion: cannot connect to 127.0.0.1:") and "nobody listens" in said


def test_a_lost_jump_host_is_a_lost_connection(
    sshd: Sshd, bastion: Sshd, opened: Callable[..., SSH]
) -> None:
    ssh = opened(sshd.target)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ssh.execute, "exec sleep 600", timeout=500)
        wait_until(sshd.marked)
        bastion.stop()
        with pytest.raises(ConnectionLost):
            running.result(60)


def test_jump_hosts_in_a_circle(sshd: Sshd) -> None:
    sshd.write_config("ProxyJump other")
    with sshd.config.open("a") as config:
        config.write("Host other\n  ProxyJump box\n")
    assert "ProxyJump other: because it goes in circles" in refusal(sshd.target)


# --- refusals: each one sentence and what to try ----------------------------------------------


def test_an_unknown_key(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")
    assert refusal(sshd.target).startswith(
        f"box: cannot trust [127.0.0.1]:{sshd.port}: because its key is unknown: it offers "
        f"ssh-ed25519 {sshd.fingerprint}, and no key of it stands in {sshd.known_hosts}\n"
    )


def test_a_changed_key(sshd: Sshd) -> None:
    old = sshd.fingerprint
    sshd.restart(new_key=True)
    assert refusal(sshd.target).startswith(
        f"box: cannot trust [127.0.0.1]:{sshd.port}: because its key has changed: it offers "
        f"ssh-ed25519 {sshd.fingerprint}, pinned is ssh-ed25519 {old} ({sshd.known_hosts}:1)"
    )


def test_a_malformed_line_and_two_pinned_keys(sshd: Sshd, opened: Callable[..., SSH]) -> None:
    pinned = sshd.known_hosts.read_text()
    sshd.known_hosts.write_text("box ssh-ed25519 AAAA\nrubbish\n" + pinned)
    sshd.restart(new_key=True)
    with sshd.known_hosts.open("a") as known:
        known.write(f"[127.0.0.1]:{sshd.port} {sshd.public_key}\n")
    opened(sshd.target).connect()


def test_a_server_with_many_keys_shows_the_pinned_one(
    make_sshd: MakeSshd, tmp_path: Path, opened: Callable[..., SSH]
) -> None:
    keygen(tmp_path / "rsa", "rsa")
    sshd = make_sshd(f"HostKey {tmp_path / 'rsa'}")
    key = " ".join((tmp_path / "rsa.pub").read_text().split()[:2])
    sshd.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {key}\n")
    opened(sshd.target).connect()


def test_a_key_alias_stands_for_the_address(sshd: Sshd, opened: Callable[..., SSH]) -> None:
    sshd.known_hosts.write_text(f"the-lab {sshd.public_key}\n")
    sshd.write_config("HostKeyAlias the-lab")
    opened(sshd.target).connect()


def test_a_password_only_server(make_sshd: MakeSshd) -> None:
    sshd = make_sshd("PubkeyAuthentication no", "PasswordAuthentication yes")
    text = refusal(Target("box", config=str(sshd.config), user="somebody"))
    assert text.splitlines()[0] == (
        f"box: cannot log in as somebody@127.0.0.1:{sshd.port}: because it asks for a password, "
        "and nobody can be asked here"
    )
    assert "~somebody/.ssh/authorized_keys" in text


def test_a_key_that_the_server_does_not_know(sshd: Sshd, tmp_path: Path) -> None:
    keygen(tmp_path / "other")
    target = Target("box", config=str(sshd.config), user="me", identity=str(tmp_path / "other"))
    assert refusal(target).splitlines() == [
        f"box: cannot log in as me@127.0.0.1:{sshd.port}: because it accepts none of the keys "
        f"offered: {tmp_path / 'other'}",
        "Try: add the public key to ~me/.ssh/authorized_keys there, or name another key in "
        "ssh.identity",
    ]


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("", "holds no private key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "holds no private key"),
        (None, "is protected by a passphrase: ssh-add"),
    ],
)
def test_a_key_file_that_is_of_no_use(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch, content: str | None, note: str
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    if content is None:
        keygen(sshd.identity, passphrase="secret words")
    else:
        sshd.identity.write_text(content)
    text = refusal(sshd.target)
    assert "because there is no key for that" in text
    assert f"{sshd.identity} {note}" in text


def test_an_agent_holds_the_key(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[..., SSH]
) -> None:
    listening = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(listening)], stdout=subprocess.DEVNULL)
    try:
        wait_until(listening.exists)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(listening))
        subprocess.run(["ssh-add", "-q", str(sshd.identity)], check=True)
        sshd.identity.unlink()
        opened(sshd.target).connect()
        Path(f"{sshd.identity}.pub").unlink()
        assert "because there is no key for that" in refusal(sshd.target), "IdentitiesOnly"
    finally:
        agent.kill()
        agent.wait()


def test_nobody_listens() -> None:
    port = free_port()
    assert refusal(Target("127.0.0.1", port=port)) == (
        f"127.0.0.1: cannot connect to 127.0.0.1:{port}: because nobody listens there\n"
        "Try: start sshd there"
    )


def test_somebody_listens_who_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        start = time.monotonic()
        text = refusal(Target("127.0.0.1", port=port), connect_timeout=1.0)
    assert f"127.0.0.1:{port}: because it did not answer as an SSH server within 1 s" in text
    assert time.monotonic() - start < 30


def test_somebody_listens_who_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as rude, ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: rude.accept()[0].close())
        text = refusal(Target("127.0.0.1", port=rude.getsockname()[1]))
    assert "closed the connection before its SSH greeting\nTry: wait for the boot to end" in text


def test_a_name_that_nobody_knows(sshd: Sshd) -> None:
    text = refusal(Target("boxx", config=str(sshd.config)))
    assert text == (
        f"boxx: cannot connect to boxx: because it is neither an alias of {sshd.config} nor a name "
        "that resolves\nTry: did you mean box?"
    )


def test_a_shell_that_nobody_may_have(make_sshd: MakeSshd) -> None:
    sshd = make_sshd("ForceCommand internal-sftp", "MaxSessions 0")
    ssh = SSH(sshd.target)
    with pytest.raises(ConnectionRefused, match="cannot open a session: because the server"):
        ssh.execute("echo", timeout=60)
    ssh.close()


def test_nothing_is_written_to_the_terminal(sshd: Sshd, capfd: pytest.CaptureFixture[str]) -> None:
    refusal(Target("127.0.0.1", port=free_port()))
    sshd.known_hosts.write_text("")
    refusal(sshd.target)
    with socket.create_server(("127.0.0.1", 0)) as rude, ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: rude.accept()[0].close())
        refusal(Target("127.0.0.1", port=rude.getsockname()[1]))
    assert capfd.readouterr() == ("", "")
