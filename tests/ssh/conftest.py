"""A real sshd on a free port of the loopback interface, without privileges and without a trace."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from xenlab.transport.ssh import SSH
from xenlab.transport.ssh_config import Target

if TYPE_CHECKING:
    from tests.ssh.small import Site

MARK = "XENLAB_TEST_SSHD"


class Sshd:
    """One sshd with its own folder, keys, known_hosts and ssh_config (alias ``box``)."""

    program = "sshd"

    def __init__(
        self,
        folder: Path,
        *extra: str,
        alias: str = "box",
        before: tuple[str, ...] = (),
        address: str = "127.0.0.1",
    ) -> None:
        """``extra`` settings win over the usual ones; ``before`` is a command that runs sshd."""
        self.address = address
        self.folder = folder
        self.before = before
        self.alias = alias
        self.extra = extra
        self.token = secrets.token_hex(8)
        self.port = 0
        self.config = folder / "ssh_config"
        self.known_hosts = folder / "known_hosts"
        self.identity = folder / "id_ed25519"
        self.host_key = folder / "host_key"
        self.log = folder / "sshd.log"
        self.notes = folder / "notes"
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        keygen(self.identity)
        keygen(self.host_key)
        shutil.copy(f"{self.identity}.pub", folder / "authorized_keys")
        self.start()
        self.pin()
        self.write_config()

    @property
    def target(self) -> Target:
        """The alias in this server's own ssh_config."""
        return Target(self.alias, config=str(self.config))

    @property
    def public_key(self) -> str:
        """Type and key of the host, as known_hosts holds them."""
        return " ".join(Path(f"{self.host_key}.pub").read_text().split()[:2])

    @property
    def fingerprint(self) -> str:
        """The host key's fingerprint as OpenSSH prints it."""
        return keygen_fingerprint(self.host_key)

    def pin(self) -> None:
        """Make the current host key the only one pinned."""
        self.known_hosts.write_text(f"[{self.address}]:{self.port} {self.public_key}\n")

    def write_config(self, *lines: str) -> None:
        """Write the ssh_config anew, with further lines for the alias."""
        settings = (
            f"HostName {self.address}",
            f"Port {self.port}",
            f"User {getpass.getuser()}",
            f'IdentityFile "{self.identity}"',
            "IdentitiesOnly yes",
            f'UserKnownHostsFile "{self.known_hosts}"',
            "StrictHostKeyChecking yes",
            *lines,
        )
        self.config.write_text(f"Host {self.alias}\n" + "".join(f"  {s}\n" for s in settings))

    def start(self) -> None:
        """Start the server and wait until it greets."""
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for _ in range(5):
            if not self.port:
                self.port = free_port()
            self._write_settings()
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [*self.before, *self.command()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            if self._greets():
                return
            self.port = 0
        raise AssertionError(f"sshd does not start: {self.log.read_text()}")

    def command(self) -> tuple[str, ...]:
        """What starts it in the foreground."""
        return (installed(self.program), "-D", "-e", "-f", str(self.folder / "sshd_config"))

    def stop(self) -> None:
        """Kill the server, its sessions and everything that they started."""
        if self.process is not None:
            # Parents first: a session must not live to tell how its command ended.
            doomed = (self.process.pid, *descendants(self.process.pid), *self.marked())
            for process in dict.fromkeys(doomed):
                kill(process)
            self.process.wait()
            self.process = None
        for process in self.marked():
            kill(process)

    def restart(self, *, new_key: bool = False) -> None:
        """Start again on the same port, like a rebooted (or reinstalled) machine."""
        self.stop()
        if new_key:
            keygen(self.host_key)
        self.start()

    def sessions(self) -> list[int]:
        """The server's own processes for the connections it has."""
        assert self.process is not None
        return descendants(self.process.pid, name=self.program)

    def marked(self) -> list[int]:
        """Every process that a session of this server started."""
        return processes_with(f"{MARK}={self.token}")

    def hang_once(self, name: str) -> Path:
        """Have a program hang where it is run first; returns the file that is there by then."""
        program, hangs = self.folder / "bin" / name, self.folder / "hangs"
        program.parent.mkdir()
        program.write_text(
            f'#!/bin/sh\n[ -e "{hangs}" ] || {{ : > "{hangs}"; echo hangs >&2; sleep 600; }}\n'
            f'exec {shutil.which(name)} "$@"\n'
        )
        program.chmod(0o755)
        (self.folder / ".bashrc").write_text(f'PATH="{program.parent}:$PATH"\n')
        return hangs

    def _write_settings(self) -> None:
        settings = (
            *self.extra,
            f"Port {self.port}",
            f"ListenAddress {self.address}",
            f'HostKey "{self.host_key}"',
            f'AuthorizedKeysFile "{self.folder}/authorized_keys"',
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "UseDNS no",
            "PermitRootLogin yes",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PrintMotd no",
            # of several of these the last one counts
            *(() if any(s.startswith("MaxStartups") for s in self.extra) else ("MaxStartups 100",)),
            "Subsystem sftp internal-sftp",
            # The account's own start-up files would slow each command down, or change it.
            f'SetEnv {MARK}={self.token} HOME="{self.folder}" XENLAB_NOTES="{self.notes}"',
        )
        (self.folder / "sshd_config").write_text("".join(f"{s}\n" for s in settings))

    def _greets(self) -> bool:
        assert self.process is not None
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with socket.create_connection((self.address, self.port), timeout=30) as link:
                    if link.recv(4) == b"SSH-":
                        return True
            except OSError:
                time.sleep(0.01)
        return False


class Dropbear(Sshd):
    """Dropbear in the place of OpenSSH's sshd; ``extra`` are its options.

    It takes keys from the home that passwd(5) names alone, so it has a passwd that only it sees.
    """

    program = "dropbear"

    def command(self) -> tuple[str, ...]:
        """What starts it in the foreground."""
        passwd = self.folder / "passwd"
        variables = (f"{MARK}={self.token}", f"XENLAB_NOTES={self.notes}")
        mount = f'mount --bind "{passwd}" /etc/passwd; exec "$@"'
        accounts = ("env", *variables, "unshare", "--mount", "sh", "-euc", mount, "sh")
        listens = ("-p", f"{self.address}:{self.port}", "-P", str(self.folder / "pid"))
        keys = (word for key in self._host_keys() for word in ("-r", str(key)))
        return (
            *accounts,
            installed(self.program),
            "-F",
            "-E",
            "-e",
            "-m",
            *listens,
            *keys,
            *self.extra,
        )

    def _host_keys(self) -> list[Path]:
        return [self.folder / f"dropbear_{kind}" for kind in ("ed25519", "rsa", "ecdsa")]

    def _write_settings(self) -> None:
        home = self.folder / ".ssh"
        if home.exists():
            return
        home.mkdir(mode=0o700)
        (home / "authorized_keys").symlink_to(self.folder / "authorized_keys")
        for key in self._host_keys():
            kind = key.name.partition("_")[2]
            words = ["dropbearkey", "-t", kind, "-f", str(key)]
            said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            public = next(line for line in said.splitlines() if " AAAA" in line)
            Path(f"{key}.pub").write_text(f"{public}\n")
        shutil.copy(self.folder / "dropbear_ed25519.pub", f"{self.host_key}.pub")
        me = getpass.getuser()
        accounts = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
        lines = (
            ":".join([*fields[:5], str(self.folder), "/bin/sh"] if fields[0] == me else fields)
            for fields in accounts
        )
        (self.folder / "passwd").write_text("".join(f"{line}\n" for line in lines))


def installed(name: str) -> str:
    """Where a server is installed."""
    found = shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin:" + os.environ["PATH"])
    assert found, f"{name} is missing: scripts/bootstrap test"
    return found


def keygen(path: Path, kind: str = "ed25519", passphrase: str = "") -> None:
    """Make a key pair, replacing an old one."""
    path.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True)


def keygen_fingerprint(path: Path) -> str:
    """The fingerprint of a key as ssh-keygen prints it."""
    command = ["ssh-keygen", "-lf", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[1]


def free_port() -> int:
    """A port that nobody used a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def processes_with(variable: str) -> list[int]:
    """The processes that have ``NAME=value``, or ``NAME=value/…``, in their environment."""
    wanted = variable.encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            values = (folder / "environ").read_bytes().split(b"\0")
            if any(value == wanted or value.startswith(wanted + b"/") for value in values):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def descendants(root: int, name: str = "") -> list[int]:
    """All processes below one, only those of a program if ``name`` is given."""
    children: dict[int, list[tuple[int, str]]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            head, _, tail = (folder / "stat").read_text(errors="replace").rpartition(")")
        except OSError:
            continue
        number, _, program = head.partition(" (")
        children.setdefault(int(tail.split()[1]), []).append((int(number), program))
    found, todo = [], [root]
    while todo:
        for process, program in children.get(todo.pop(), []):
            todo.append(process)
            if not name or program.startswith(name):
                found.append(process)
    return found


def kill(process: int) -> None:
    """End one process for good."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_until(holds: Callable[[], object], seconds: float = 30) -> None:
    """Wait for a condition; fail the test if it does not come to hold."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


@pytest.fixture
def make_sshd(tmp_path: Path) -> Iterator[Callable[..., Sshd]]:
    """Start servers with settings of one's own: ``make_sshd("MaxSessions 2")``."""
    servers: list[Sshd] = []

    def make(*extra: str, alias: str = "box") -> Sshd:
        servers.append(Sshd(tmp_path / f"sshd{len(servers)}", *extra, alias=alias))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def sshd(make_sshd: Callable[..., Sshd]) -> Sshd:
    """A running server with the usual settings."""
    return make_sshd()


@pytest.fixture
def ssh(sshd: Sshd) -> Iterator[SSH]:
    """A transport to that server."""
    transport = SSH(sshd.target)
    yield transport
    transport.close()


@pytest.fixture
def opened() -> Iterator[Callable[..., SSH]]:
    """Transports that are closed at the end."""
    transports: list[SSH] = []

    def make(target: Target, **settings: float) -> SSH:
        transports.append(SSH(target, **settings))  # type: ignore[arg-type]
        return transports[-1]

    yield make
    for transport in transports:
        transport.close()


@pytest.fixture
def site(tmp_path: Path, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site whose host is that server, in an empty working folder; it leaves no process."""
    from tests.ssh.small import Site

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XENLAB_TEST", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in ("NO_COLOR", "XENLAB_RUNS", "XENLAB_SITE"):
        monkeypatch.delenv(name, raising=False)
    site = Site(tmp_path, sshd)
    site.write()
    yield site
    for process in site.processes():
        kill(process)
