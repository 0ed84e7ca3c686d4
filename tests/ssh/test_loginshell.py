"""Commands past any login shell: the same /bin/sh, the same bytes, whatever the shell prints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.ssh.conftest import Sshd, processes_with
from tests.watching import Watching

from xenlab.command import Command
from xenlab.errors import CommandTimeout, ConnectionRefused, Unreachable
from xenlab.host import Host
from xenlab.transport.local import Local
from xenlab.transport.ssh import SSH

SHELLS = ("sh", "bash", "csh", "tcsh", "fish")
NOISE = {
    ".bashrc": "echo WELCOME; echo to stderr >&2; printf 'no end of line'\n",
    ".cshrc": "echo WELCOME; printf 'no end of line'\n",
    ".config/fish/config.fish": "echo WELCOME; echo to stderr >&2; printf 'no end of line'\n",
}
SCRIPT = """
# it's a comment!
set -eu
set -- "$(printf 'a\\tb')" 'two
lines' "it's" '!!' "back\\\\slash"
for each do printf '[%s]' "$each"; done
cat << END
here $# !x 'y' \\$z `echo tick`
END
"""
SAID = b"[a\tb][two\nlines][it's][!!][back\\slash]here 5 !x 'y' $z tick\n"
LOOK = pytest.mark.parametrize("look", [False, True], ids=["its own", "a shell that stays"])
BYTES = st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8"), max_size=60)


def make_noise(home: Path) -> None:
    """Start-up files that print, for each shell."""
    for name, text in NOISE.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)


def forced(program: str) -> str:
    """A setting by which another program is the login shell, as far as a command can tell."""
    return f'ForceCommand exec {program} -c "$SSH_ORIGINAL_COMMAND"'


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Host]]:
    """A host for each login shell, each of which prints something first."""
    servers, found = [], {}
    for name in SHELLS:
        program = shutil.which(name)
        assert program, f"{name} is missing: scripts/bootstrap test"
        server = Sshd(tmp_path_factory.mktemp(name), forced(program))
        make_noise(server.folder)
        servers.append(server)
        found[name] = Host(SSH(server.target))
    yield found
    for host in found.values():
        host.transport.close()
    for server in servers:
        server.stop()


@pytest.fixture(params=SHELLS)
def host(request: pytest.FixtureRequest, hosts: dict[str, Host]) -> Host:
    """A host with one of the login shells."""
    return hosts[request.param]


@LOOK
def test_a_command_runs_under_sh_and_only_its_own_output_counts(host: Host, look: bool) -> None:
    seen: list[tuple[str, bytes]] = []
    status, out, err = host.transport.execute(
        SCRIPT + "echo err >&2\nexit 3",
        timeout=60,
        on_output=lambda *piece: seen.append(piece),
        look=look,
    )
    assert (status, out, err) == (3, SAID, b"err\n")
    assert b"".join(piece for stream, piece in seen if stream == "stdout") == SAID
    assert b"".join(piece for stream, piece in seen if stream == "stderr") == b"err\n"


@LOOK
def test_it_begins_as_a_shell_of_its_own_would(host: Host, look: bool) -> None:
    script = """printf '%s|' "$#" "$0" "${i-}" "$IFS"; umask; case $- in *e*) echo e; esac"""
    said = host.transport.execute(script, timeout=60, look=look)
    assert said == (0, b"0|/bin/sh|| \t\n|0022\n", b"")


def test_input_and_output_are_any_bytes(host: Host) -> None:
    data = os.urandom(1 << 20) + bytes(range(256))
    assert host.run("cat", input=data).out == data
    assert host.run("cat >&2", input=data).err == data


@pytest.mark.parametrize("name", SHELLS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=BYTES)
@example(value="!! !x ^a^b \\! '!' $HOME $(id) `id` \\\n\\\\ \\' ' \n\n #~*?[]{}<>|&; %")
@example(value="".join(map(chr, range(1, 256))))
@example(value="\udcff\udc80 \udcc3(")
@example(value="line\n" * 300)
@example(value="x" * 4000)
def test_any_value_arrives_through_any_shell(value: str, name: str, hosts: dict[str, Host]) -> None:
    wanted = value.encode("utf-8", "surrogateescape")
    for machine in (hosts[name], hosts[name].watched(Watching())):
        assert machine.run(Command.script('printf %s "$1"', value)).out == wanted


def test_copies_past_a_shell_that_prints(host: Host, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(os.urandom(100_000))
    host.upload(here, str(there))
    assert there.read_bytes() == here.read_bytes()


def test_what_it_left_running_is_found_and_ended(host: Host) -> None:
    marked = host.marked("step'1 of !2")
    with pytest.raises(CommandTimeout):
        marked.run("while :; do :; done", timeout=1)
    assert not host.has_marked("step'1 of !2")
    marked.run("sleep 600 > /dev/null 2>&1 &")
    assert processes_with("XENLAB_STEP=step'1 of !2")
    assert host.has_marked("step'1 of !2")
    assert host.end_marked("step'1 of !2") == 1


@LOOK
def test_a_shell_that_shows_what_it_runs(sshd: Sshd, ssh: SSH, look: bool) -> None:
    (sshd.folder / ".bashrc").write_text("set -xv\n")
    assert ssh.execute("echo on; echo err >&2", timeout=60, look=look) == (0, b"on\n", b"err\n")


@LOOK
def test_a_shell_that_joins_the_streams(sshd: Sshd, ssh: SSH, look: bool) -> None:
    (sshd.folder / ".bashrc").write_text("exec 2>&1\necho noise\n")
    assert ssh.execute("echo on", timeout=60, look=look) == (0, b"on\n", b"")


@LOOK
def test_a_shell_that_prints_for_long(sshd: Sshd, ssh: SSH, look: bool) -> None:
    (sshd.folder / ".bashrc").write_text("seq 200000; seq 200000 >&2\n")
    assert ssh.execute("echo on", timeout=60, look=look) == (0, b"on\n", b"")


@LOOK
@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("/usr/sbin/nologin", "answered “This account is currently not available.”"),
        ("/bin/false", "ended with exit status 1"),
        ("echo only backups here", "answered “only backups here”"),
    ],
)
def test_who_runs_no_commands_says_so_in_one_sentence(
    make_sshd: Callable[..., Sshd], program: str, said: str, look: bool
) -> None:
    ssh = SSH(make_sshd(f"ForceCommand {program}").target)
    with pytest.raises(Unreachable) as refused:
        ssh.execute("echo on", timeout=60, look=look)
    assert str(refused.value) == (
        "box: cannot run commands: because the user's login shell or a forced command "
        f"{said}\nTry: give the user a shell there (usermod -s /bin/sh), or look at ForceCommand "
        "in sshd_config and at command= in authorized_keys"
    )
    ssh.close()


def test_a_login_shell_that_was_ended_by_a_signal_may_be_there_again_soon(
    make_sshd: Callable[..., Sshd],
) -> None:
    ssh = SSH(make_sshd("ForceCommand kill -TERM $$").target)
    with pytest.raises(ConnectionRefused, match="ended with exit status 143"):
        ssh.execute("echo on", timeout=60)
    ssh.close()


@pytest.mark.parametrize("kind", ["ssh", "local"])
def test_every_command_runs_under_umask_022(
    kind: str, sshd: Sshd, ssh: SSH, tmp_path: Path
) -> None:
    (sshd.folder / ".bashrc").write_text("umask 077\n")
    here, made = tmp_path / "here", tmp_path / "made"
    here.write_text("x")
    before = os.umask(0o077)
    try:
        host = Host(ssh if kind == "ssh" else Local())
        host.run(Command.argv("mkdir", "-p", made / "exports.d" / "deep"))
        host.write(str(made / "auto" / "name"), "text", mode=0o640)
        host.upload(here, str(made / "auto" / "sent"))
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in made.rglob("*")} == {
        "exports.d": 0o755, "deep": 0o755, "auto": 0o755, "name": 0o640, "sent": 0o644,
    }  # fmt: skip
