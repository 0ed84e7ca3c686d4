"""``xenlab lab ssh``: words, input, output and exit status go through as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.ssh.conftest import Sshd

from xenlab_lab import lab

Ssh = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def lab_ssh(tmp_path: Path, make_sshd: Callable[..., Sshd]) -> Iterator[Ssh]:
    """The command on a lab whose machines are real sshds and whose QEMU is any process."""
    cache = tmp_path / "cache"
    folder = cache / "labs" / "lab"
    folder.mkdir(parents=True)
    names = ("dom0", "domu2")
    machines = [make_sshd(f"SetEnv WHO={name}", alias=name) for name in names]
    (folder / "ssh_config").write_text("".join(m.config.read_text() for m in machines))
    lab.save_state(folder / "state.json", lab.State(guests={"domu2": "10.0.2.22"}))
    pidfile = folder / "qemu.pid"
    machine = subprocess.Popen(["/bin/sh", "-c", "read forever", str(pidfile)], stdin=-1)
    pidfile.write_text(str(machine.pid))

    def run(*words: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "xenlab", "lab", "ssh", *words],
            input=input,
            capture_output=True,
            env={**os.environ, "XENLAB_CACHE": str(cache)},
            timeout=120,
        )

    yield run
    machine.kill()
    machine.communicate()


def test_a_command_on_dom0(lab_ssh: Ssh) -> None:
    done = lab_ssh("--", "echo", "on", "$WHO", "-r", "--lab")
    assert (done.returncode, done.stdout) == (0, b"on dom0 -r --lab\n"), done.stderr


def test_a_command_on_a_guest(lab_ssh: Ssh) -> None:
    done = lab_ssh("domu2", "--lab", "lab", "--", "echo", "on", "$WHO")
    assert done.stdout == b"on domu2\n"


def test_the_exit_status_is_the_command_s(lab_ssh: Ssh) -> None:
    done = lab_ssh("--", "echo said >&2; exit 7")
    assert done.returncode == 7
    assert done.stderr == b"said\n"


def test_input_goes_through(lab_ssh: Ssh) -> None:
    data = bytes(range(256)) * 1000
    assert lab_ssh("--", "cat", input=data).stdout == data
    assert lab_ssh("domu2", input=b"echo from a shell; exit 3\n").returncode == 3


def test_a_guest_that_the_lab_does_not_know(lab_ssh: Ssh) -> None:
    done = lab_ssh("domu9", "--", "true")
    assert done.returncode == 2
    assert b"cannot reach 'domu9': because the lab has no domain of that name\n" in done.stderr
    assert b"Try: use one of: dom0, domu2" in done.stderr
