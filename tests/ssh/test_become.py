"""A login that is not root becomes root by sudo, doas or su, or one sentence says why not.

A real sshd, sudo, doas and su with an /etc of their own, which only they see.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.ssh.conftest import Sshd, processes_with, wait_until
from tests.ssh.small import Site, one_line
from tests.unit.rootdir import root_with
from tests.watching import Watching

from xenlab.chapter.machine_lock import MachineLock
from xenlab.errors import BadInput, CommandTimeout, NoConnection
from xenlab.host import Host
from xenlab.transport.become import Become
from xenlab.transport.ssh import SSH
from xenlab.transport.ssh_config import Target

PASSWORD = "anna's horse !9"
ROOTS = "root's own battery"
ANNA = 4321
KEPT = 'Defaults env_keep += "XENLAB_NOTES XENLAB_TEST_SSHD"\n'
MAY = f"Defaults use_pty\n{KEPT}anna ALL=(ALL:ALL) "
FREELY, WITH_PASSWORD = f"{MAY}NOPASSWD: ALL\n", f"{MAY}ALL\n"
EACH_TIME = f"Defaults timestamp_timeout=0\n{WITH_PASSWORD}"
DOAS = "permit nopass keepenv anna\n"
BY_ENV = {"env": "CASTLE_ROOT"}
MakeBox = Callable[..., "Box"]


class Box:
    """An sshd where anna, who is not root, logs in."""

    def __init__(
        self,
        folder: Path,
        *extra: str,
        sudoers: str = "",
        doas: str = "",
        su: str = "",
        shell: str = "/bin/sh",
    ) -> None:
        self.log = folder / "sudo.log"
        etc = folder / "etc"
        subprocess.run(["cp", "-a", "/etc", etc], check=True)
        with (etc / "passwd").open("a") as file:
            file.write(f"anna:x:{ANNA}:{ANNA}::/:{shell}\n")
        shadow = f"anna:{hashed(PASSWORD)}:19000:0:99999:7:::\nroot:{hashed(ROOTS)}:19000::::::\n"
        write(etc / "shadow", shadow, 0o600)
        write(etc / "sudoers", f"Defaults logfile={self.log}\n{sudoers}", 0o440)
        write(etc / "doas.conf", doas, 0o600)
        write(etc / "pam.d" / "su", su + (etc / "pam.d" / "su").read_text(), 0o644)
        mounts = (
            f"mount --bind {shlex.quote(str(etc))} /etc;mkdir -p /run/sudo;"
            "mount -t tmpfs tmpfs /run/sudo;mount -t tmpfs tmpfs /var/lib/sudo;"
        )
        place = folder / "sshd"
        self.sshd = Sshd(
            place,
            *extra,
            # anna reads nothing in there
            f"AuthorizedKeysCommand /bin/cat {place}/authorized_keys",
            "AuthorizedKeysCommandUser root",
            before=("unshare", "--mount", "sh", "-euc", f'{mounts}exec "$@"', "sh"),
        )

    def ssh(self, how: str, *, user: str = "anna", **password: str) -> SSH:
        become = Become(how, **password)
        return SSH(Target("box", config=str(self.sshd.config), user=user, become=become))


def hashed(password: str) -> str:
    words = ["openssl", "passwd", "-6", "-salt", "salt", password]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def write(path: Path, text: str, mode: int) -> None:
    path.write_text(text)
    path.chmod(mode)


@pytest.fixture
def make_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeBox]:
    """Start such servers; the password that their tests name is anna's."""
    monkeypatch.setenv("CASTLE_ROOT", PASSWORD)
    boxes: list[Box] = []

    def make(*extra: str, **files: str) -> Box:
        folder = tmp_path / f"box{len(boxes)}"
        folder.mkdir()
        boxes.append(Box(folder, *extra, **files))
        return boxes[-1]

    yield make
    for box in boxes:
        box.sshd.stop()


WAYS = {
    "sudo": ("sudo", {"sudoers": FREELY}, {}),
    "sudo, a password": ("sudo", {"sudoers": WITH_PASSWORD}, BY_ENV),
    "sudo, a password each time": ("sudo", {"sudoers": EACH_TIME}, BY_ENV),
    "sudo, a password that nobody asks for": ("sudo", {"sudoers": FREELY}, BY_ENV),
    "doas": ("doas", {"doas": DOAS}, {}),
    "su, a password": ("su", {}, {"env": "ROOTS"}),
    "su": ("su", {"su": "auth sufficient pam_permit.so\n"}, {}),
}


@pytest.fixture(params=WAYS)
def ssh(
    request: pytest.FixtureRequest, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SSH]:
    """A login of anna's, by each of the ways to root."""
    monkeypatch.setenv("ROOTS", ROOTS)
    how, files, password = WAYS[request.param]
    transport = make_box(**files).ssh(how, **password)
    yield transport
    transport.close()


def test_commands_are_root_s_and_their_bytes_their_own(ssh: SSH, tmp_path: Path) -> None:
    script = "id -u; umask; echo err >&2; case $PATH in */sbin*) echo sbin; esac; exit 3"
    for look in (False, True):
        seen = ssh.execute(script, timeout=120, look=look)
        assert seen == (3, b"0\n0022\nsbin\n", b"err\n")
        assert ssh.execute("kill -KILL $$", timeout=120)[0] == 128 + 9
    data = os.urandom(300_000) + bytes(range(256))
    assert ssh.execute("cat", input=data, timeout=120)[1] == data
    assert ssh.execute("cat", timeout=120)[1] == b""
    (local := tmp_path / "local").write_bytes(data)
    ssh.upload(local, str(tmp_path / "remote"))
    assert (tmp_path / "remote").read_bytes() == data
    assert (tmp_path / "remote").stat().st_uid == 0
    talk = ssh.converse("read -r line; echo heard $line by $(id -u)", timeout=120)
    assert talk.say("hello\n")
    assert talk.answer(120) == "heard hello by 0"
    talk.close()
    assert ssh.connections == 1


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/csh", "/bin/tcsh", "/usr/bin/fish"])
def test_any_login_shell(make_box: MakeBox, shell: str) -> None:
    host = Host(make_box(sudoers=EACH_TIME, shell=shell).ssh("sudo", **BY_ENV))
    value = 'it\'s !! $HOME `id` \\ \n"x" ~*'
    script = f"printf %s {shlex.quote(value)}; cat"
    assert host.run(script, input=b"input", timeout=120).stdout == f"{value}input"
    host.transport.close()


def test_a_login_of_root_needs_no_program(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = make_box().ssh("sudo", user="root", **BY_ENV)
    assert ssh.execute("id -u; cat", input=b"input", timeout=120)[1] == b"0\ninput"
    ssh.close()


NO_SUDO = 'ForceCommand PATH=/nowhere exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
REFUSED = {
    "sudo asks": (
        "sudo",
        [],
        {"sudoers": WITH_PASSWORD},
        {},
        "because sudo asks for a password. Try: name it in become_password, or ask for none: "
        "anna ALL=(ALL) NOPASSWD: ALL (visudo)",
    ),
    "a wrong password": (
        "sudo",
        [],
        {"sudoers": WITH_PASSWORD},
        {"env": "WRONG"},
        "because sudo does not take the password in $WRONG. Try: put the right one there",
    ),
    "no variable": (
        "sudo",
        [],
        {"sudoers": WITH_PASSWORD},
        {"env": "NONE"},
        "because the environment has no NONE. Try: correct become_password",
    ),
    "no file": (
        "sudo",
        [],
        {"sudoers": WITH_PASSWORD},
        {"file": "/no/such/file"},
        "because /no/such/file cannot be read: No such file or directory",
    ),
    "not in sudoers": ("sudo", [], {}, BY_ENV, "because sudo does not let anna run everything"),
    "not in sudoers, no password": ("sudo", [], {}, {}, "because sudo asks for a password"),
    "one command alone": (
        "sudo",
        [],
        {"sudoers": "anna ALL=(ALL) NOPASSWD: /bin/true\n"},
        BY_ENV,
        "because sudo does not let anna run everything as root. Try: allow it there: "
        "anna ALL=(ALL) ALL (visudo)",
    ),
    "requiretty": (
        "sudo",
        [],
        {"sudoers": f"Defaults requiretty\n{FREELY}"},
        {},
        "because sudo wants a terminal there (requiretty). Try: write Defaults:anna !requiretty",
    ),
    "a broken doas.conf": ("doas", [], {"doas": "nonsense\n"}, {}, "because it said “doas: "),
    "no sudo": ("sudo", [NO_SUDO], {}, {}, "because there is no sudo. Try: install it there"),
    "no doas": ("doas", [NO_SUDO], {}, {}, "because there is no doas"),
    "doas asks": (
        "doas",
        [],
        {"doas": "permit anna\n"},
        {},
        "because doas takes a password at a terminal alone. Try: ask for none: "
        "permit nopass anna (doas.conf)",
    ),
    "doas denies": (
        "doas",
        [],
        {"doas": "permit nopass root\n"},
        {},
        "because doas does not let anna run everything as root",
    ),
    "su asks": ("su", [], {}, {}, "because su asks for a password. Try: name it"),
    "su, a wrong password": (
        "su",
        [],
        {},
        {"env": "WRONG"},
        "because su does not take the password in $WRONG",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_sentence_says_why_a_login_does_not_become_root(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setenv("WRONG", "wrong horse")
    how, extra, files, password, sentence = REFUSED[case]
    box = make_box(*extra, **files)
    ssh = box.ssh(how, **password)
    with pytest.raises((NoConnection, BadInput)) as refused:
        ssh.execute("echo run", timeout=120)
    text = str(refused.value).replace("\nTry: ", ". Try: ")
    assert f"cannot become root by {how}: {sentence}" in text, text
    assert "horse" not in text and "\n" not in text
    assert ssh.connections == 0
    tried = re.findall(r"(\d) incorrect password", box.log.read_text() if box.log.exists() else "")
    assert tried == (["1"] if case == "a wrong password" else [])


def test_a_password_in_a_file_is_its_first_line(make_box: MakeBox, tmp_path: Path) -> None:
    (file := tmp_path / "word").write_text(f"{PASSWORD}\nanother line\n")
    ssh = make_box(sudoers=EACH_TIME).ssh("sudo", file=str(file))
    assert ssh.execute("id -u", timeout=120)[1] == b"0\n"
    ssh.close()


def test_an_account_without_a_shell_is_told_as_before(make_box: MakeBox) -> None:
    ssh = make_box(sudoers=FREELY, shell="/usr/sbin/nologin").ssh("sudo")
    with pytest.raises(NoConnection, match="because the user's login shell or a forced command"):
        ssh.execute("true", timeout=120)


def test_a_password_that_a_forced_command_takes_for_its_own_is_in_no_message(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRONG", "wrong horse")
    ssh = make_box("ForceCommand exec /bin/sh", sudoers=WITH_PASSWORD).ssh("sudo", env="WRONG")
    with pytest.raises(NoConnection, match="forced command ended with exit status") as refused:
        ssh.execute("true", timeout=120)
    assert "wrong" not in str(refused.value)
    ssh.close()


@pytest.mark.parametrize(
    "files", [{"sudoers": FREELY}, {"sudoers": EACH_TIME}], ids=["free", "asked"]
)
def test_files_roots_stops_and_the_lock_are_root_s(
    make_box: MakeBox, tmp_path: Path, files: dict[str, str]
) -> None:
    box = make_box(**files)
    ssh = box.ssh("sudo", **(BY_ENV if files["sudoers"] == EACH_TIME else {}))
    host = Host(ssh)
    path = tmp_path / "folder" / "file"
    host.write(str(path), "text\n", mode=0o640, owner=f"{ANNA}:0")
    found = path.stat()
    assert (found.st_mode & 0o7777, found.st_uid, path.parent.stat().st_uid) == (0o640, ANNA, 0)
    root_with(tmp_path / "root")
    inside = host.inside(str(tmp_path / "root")).watched(Watching())
    inside.write("/etc/hostname", "castle\n")
    assert (tmp_path / "root/etc/hostname").read_text() == "castle\n"
    assert inside.run("cat /etc/hostname; id -u").stdout == "castle\n0\n"
    lock = MachineLock(ssh, tmp_path / "run")
    lock.take()
    assert lock.held
    (entry,) = (box.sshd.notes / "working").iterdir()
    assert entry.stat().st_uid == 0
    lock.release()
    wait_until(lambda: not entry.exists(), 120)
    with pytest.raises(CommandTimeout):
        host.marked("late").run("sleep 500", timeout=2)
    assert processes_with("XENLAB_STEP=late") == []
    stop, mark = threading.Event(), f"stop-{time.monotonic_ns()}"
    for looks in (True, False):
        machine = host.marked(mark).watched(Watching(stop, looks=looks))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(machine.run, "sleep 500", timeout=500)
            wait_until(lambda: processes_with(f"XENLAB_STEP={mark}"), 120)
            stop.set()
            with pytest.raises(KeyboardInterrupt):
                running.result(120)
        stop.clear()
        assert processes_with(f"XENLAB_STEP={mark}") == []
    ssh.close()


def test_a_run_as_anna_leaves_her_password_nowhere(
    make_box: MakeBox, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make_box(sudoers=EACH_TIME)
    ssh = {"host": "box", "config": str(box.sshd.config), "user": "anna", "become": "sudo"}
    site.write(ssh=ssh | {"become_password": BY_ENV})
    site.chapter(
        "01_first",
        site.made("01.1"),
        'chapter.run("01.2 Tell", Told(Command.script("env; cat")), on=chapter.host)',
        "import os",
        'chapter.run("01.3 Say it", Told(Command.script("echo it is \\"$1\\"", '
        'os.environ["CASTLE_ROOT"])), on=chapter.host)',
    )
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.path("01.1").stat().st_uid == 0
    kept = {
        str(path): path.read_text(errors="replace")
        for path in site.runs.rglob("*")
        if path.is_file()
    }
    quoted = PASSWORD.replace("'", "'\"'\"'")
    everything = {**kept, "out": done.stdout, "err": done.stderr}
    assert [n for n, text in everything.items() if PASSWORD in text or quoted in text] == []
    assert "it is •••" in "".join(kept.values())
    monkeypatch.setenv("CASTLE_ROOT", "another horse")
    site.chapter("01_first", site.made("01.9"))
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 1
    assert (
        "cannot become root by sudo: because sudo does not take the password in $CASTLE_ROOT"
        in (one_line(done.stdout + done.stderr))
    )
    monkeypatch.delenv("CASTLE_ROOT")
    done = site.xenlab("run", "-f", "site.yaml")
    assert "because the environment has no such variable" in one_line(done.stderr)
