"""What only looks shares a shell that stays for the connection; nobody can tell."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ssh.conftest import Sshd, kill, processes_with, wait_until
from tests.watching import Watching

from xenlab.command import Command
from xenlab.errors import CommandTimeout, ConnectionLost
from xenlab.host import LOOK_SHELL, Host
from xenlab.transport.channel import _UpTo
from xenlab.transport.ssh import SSH


def look(ssh: SSH, text: str, **settings: object) -> tuple[int, bytes, bytes]:
    """What a command gives that only looks."""
    return ssh.execute(text, look=True, **{"timeout": 60, **settings})  # type: ignore[arg-type]


def look_shells(sshd: Sshd) -> int:
    """How many of a server's processes are a shell that stays, or its subshells."""
    found = 0
    for process in sshd.marked():
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found += LOOK_SHELL.encode() in words
    return found


def has_shell(ssh: SSH) -> bool:
    """Whether looks share a shell now."""
    return ssh._shell is not None


@pytest.mark.parametrize(
    "text",
    [
        "echo out; echo err >&2; exit 3",
        "printf 'no end of line'; printf 'here neither' >&2",
        "set -eu\nset -- 'a b' c\necho \"$1\"; false; echo never",
        "cat; echo end of input",
        "trap 'echo bye' EXIT; exit 5",
        "exec printf '\\000\\001\\377'",
        "exec >&- 2>&-; exit 7",
        "kill -KILL $(sh -c 'echo $PPID')",
        "sh -c 'kill -TERM $$'",
        "echo 'it'\\''s'; no-such-program",
        "unset IFS; umask 077; cd /; x=1; set -f; exit",
        "return 4",
        "exit 300",
        "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2",
    ],
)
def test_a_look_gives_what_a_shell_of_its_own_would_give(ssh: SSH, text: str) -> None:
    own = ssh.execute(text, timeout=60)
    for _ in range(2):
        found = look(ssh, text)
        assert (found[:2], found[2][: len(own[2])]) == (own[:2], own[2])
    as_it_begins = 'printf %s "$0 $# ${x-unset}$IFS$(umask)"; pwd'
    assert look(ssh, as_it_begins) == ssh.execute(as_it_begins, timeout=60)


def test_what_is_no_shell_text_is_an_error_of_its_own(ssh: SSH) -> None:
    status, out, err = look(ssh, "echo before; if")
    assert (status, out) == (2, b"")
    assert b"Syntax error" in err or b"syntax error" in err
    assert look(ssh, "echo on") == (0, b"on\n", b"")


def test_many_looks_start_one_shell(sshd: Sshd, ssh: SSH) -> None:
    assert [look(ssh, f"echo {n}")[1] for n in range(50)] == [b"%d\n" % n for n in range(50)]
    wait_until(lambda: look_shells(sshd) == 1)
    ssh.close()
    wait_until(lambda: look_shells(sshd) == 0)


@pytest.mark.parametrize("text", ["sleep 0.1 & echo $!", "echo $$", "echo $PPID"])
def test_what_may_stay_or_means_its_shell_has_one_of_its_own(ssh: SSH, text: str) -> None:
    look(ssh, "echo on")
    shell = ssh._shell
    look(ssh, text)
    assert ssh._shell is shell
    assert look(ssh, "echo on")[1] == b"on\n"


def test_looks_at_once_do_not_wait_for_each_other(ssh: SSH, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with ThreadPoolExecutor(2) as pool:
        waits = pool.submit(look, ssh, f"until [ -e {go} ]; do sleep 0.1; done; echo whole")
        wait_until(lambda: has_shell(ssh))
        assert look(ssh, f"touch {go}; echo on")[1] == b"on\n"
        assert waits.result(60)[1] == b"whole\n"


@pytest.mark.parametrize("how", ["stop", "deadline"])
def test_a_look_that_is_ended_leaves_nothing_running(
    sshd: Sshd, ssh: SSH, how: str, tmp_path: Path
) -> None:
    stop, again = threading.Event(), tmp_path / "again"
    mark = f"look-{time.monotonic_ns()}"
    host = Host(ssh).marked(mark).watched(Watching(stop))
    # in the midst of a pipe of a function of the shell's own
    endless = Command.script(
        'work() { while :; do sleep 1; : > "$1"; done; }\nwork "$1" | cat', again
    )
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(host.run, endless, timeout=3 if how == "deadline" else 500)
        wait_until(lambda: processes_with(f"XENLAB_STEP={mark}"))
        if how == "stop":
            stop.set()
        with pytest.raises(CommandTimeout if how == "deadline" else KeyboardInterrupt):
            running.result(60)
    assert processes_with(f"XENLAB_STEP={mark}") == []
    ssh.close()
    wait_until(lambda: look_shells(sshd) == 0)
    again.unlink(missing_ok=True)
    time.sleep(2)
    assert not again.exists()


def test_a_stop_is_heard_while_the_login_shell_starts(sshd: Sshd, ssh: SSH) -> None:
    (sshd.folder / ".bashrc").write_text("sleep 600\n")
    stop = threading.Event()
    ssh.connect()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(look, ssh, "echo on", timeout=500, stop=stop)
        time.sleep(0.5)
        stop.set()
        with pytest.raises(KeyboardInterrupt):
            running.result(60)


def test_a_look_whose_connection_breaks_is_lost_and_the_next_one_connects(
    ssh: SSH, sshd: Sshd
) -> None:
    look(ssh, "echo on")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(look, ssh, "exec sleep 600", timeout=500, mark="lost/1")
        wait_until(lambda: processes_with("XENLAB_STEP=lost/1"))
        for session in sshd.sessions():
            kill(session)
        with pytest.raises(ConnectionLost, match="cannot say whether the command finished"):
            running.result(60)
    assert look(ssh, "echo again")[1] == b"again\n"
    assert Host(ssh).end_marked("lost/1") == 1


def test_a_dead_peer_is_noticed_by_a_look(sshd: Sshd, opened: Callable[..., SSH]) -> None:
    ssh = opened(sshd.target, keepalive=0.2, patience=1.0)
    look(ssh, "echo on")
    stopped = sshd.sessions()
    for session in stopped:
        os.kill(session, signal.SIGSTOP)
    with pytest.raises(ConnectionLost, match=r"\(no sign of life for 1 s\)"):
        look(ssh, "echo on")
    for session in stopped:
        kill(session)


def test_an_idle_shell_that_was_ended_is_started_anew(ssh: SSH) -> None:
    look(ssh, "echo on")
    assert ssh.execute(f"pkill -f 'sh -s {LOOK_SHELL}$'; echo on", timeout=60)[1] == b"on\n"
    wait_until(lambda: ssh._shell is not None and not ssh._shell.alive)
    assert look(ssh, "echo on")[1] == b"on\n"


def test_the_shell_gives_way_where_its_session_is_wanted(
    make_sshd: Callable[..., Sshd], opened: Callable[..., SSH]
) -> None:
    ssh = opened(make_sshd("MaxSessions 2").target)
    stays = ssh.converse("cat", timeout=60)
    assert look(ssh, "echo on")[1] == b"on\n"
    assert has_shell(ssh)
    assert ssh.execute("echo changed", timeout=60)[1] == b"changed\n"
    assert (ssh.connections, has_shell(ssh), stays.alive) == (1, False, True)
    assert look(ssh, "echo on")[1] == b"on\n"
    assert not has_shell(ssh)
    stays.close()


def test_a_stop_is_heard_while_a_long_look_has_the_session(
    make_sshd: Callable[..., Sshd], opened: Callable[..., SSH]
) -> None:
    ssh = opened(make_sshd("MaxSessions 1").target)
    stop, ends = threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(look, ssh, "sleep 600", timeout=500, stop=ends, mark="long/1")
        wait_until(lambda: processes_with("XENLAB_STEP=long/1"))
        waits = pool.submit(ssh.execute, "echo changed", timeout=500, stop=stop)
        stop.set()
        with pytest.raises(KeyboardInterrupt):
            waits.result(60)
        ends.set()
        with pytest.raises(KeyboardInterrupt):
            long.result(60)
    assert Host(ssh).end_marked("long/1") >= 1


LIAR = """\
import os, re, sys
token = re.search(r"echo (\\w{16});umask", os.environ["SSH_ORIGINAL_COMMAND"])[1]
print(token + ".", file=sys.stderr, flush=True)
print(token, flush=True)
for line in sys.stdin:
    token = re.search(r"echo (\\w{16}) >&2", line)
    if token:
        print(token[1], "whatever", flush=True)
        print(token[1], file=sys.stderr, flush=True)
"""
"""In the place of a login shell: gives no exit status."""


def test_a_machine_that_answers_what_no_shell_does_is_lost(
    make_sshd: Callable[..., Sshd], opened: Callable[..., SSH], tmp_path: Path
) -> None:
    program = tmp_path / "liar.py"
    program.write_text(LIAR)
    ssh = opened(make_sshd(f"ForceCommand {sys.executable} {program}").target)
    with pytest.raises(ConnectionLost):
        look(ssh, "echo on")


@given(data=st.binary(max_size=60), sizes=st.lists(st.integers(1, 9)), rest=st.binary(max_size=5))
def test_a_stream_ends_at_its_token_however_it_comes(
    data: bytes, sizes: list[int], rest: bytes
) -> None:
    token = b"0123456789abcdef"
    data = data.replace(b"9abcdef", b"") + token[:9]
    stream, taken, whole = _UpTo(token), b"", data + token + b" " + rest.replace(b"\n", b"") + b"\n"
    while whole:
        size = sizes.pop() if sizes else len(whole)
        assert not stream.ended
        taken += stream.take(whole[:size])
        whole = whole[size:]
    assert stream.ended
    assert taken == data
