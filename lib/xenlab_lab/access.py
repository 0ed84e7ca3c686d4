"""How a lab is reached: its keys, its ssh_config, its serial console, and until when to wait."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xenlab import durable
from xenlab.errors import LabError
from xenlab_lab import tools
from xenlab_lab.media import CpioWriter

# Waiting until a machine lets us in over ssh.

_BANNER_SECONDS = 5.0
_PAUSE = 0.3
_LOGIN_SECONDS = 60.0
_TAIL = 15
_REFUSALS = 3
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]+")


def wait_for_ssh(
    port: int,
    login: Sequence[str],
    *,
    seconds: float,
    alive: Callable[[], bool],
    console: Path,
    report: tools.Report,
) -> None:
    """Wait for an ssh banner on loopback, then for `login` (an ssh command line) to succeed.

    Raises LabError after `seconds`, at once if `alive` turns false or our key or the host's is
    refused for good; the message holds the last lines of the serial console.
    """
    started = time.monotonic()
    refusals = 0
    words = "no ssh banner"
    while (waited := time.monotonic() - started) < seconds:
        report(f"waiting for ssh ({waited:.0f} s)", None)
        if not alive():
            raise _failed("the machine ended while it booted", console)
        if not _banner(port):
            time.sleep(_PAUSE)
            continue
        try:
            done = subprocess.run(
                login,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_LOGIN_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            raise tools.missing(login[0]) from None
        except subprocess.TimeoutExpired:
            words = f"no login within {_LOGIN_SECONDS:.0f} s"
            continue
        if done.returncode == 0:
            report("ssh answers", 1.0)
            return
        words = done.stderr.strip() or f"exit status {done.returncode}"
        if "verification failed" in words.lower() or "permission denied" in words.lower():
            # a system that is still coming up may refuse once; it does not refuse three times
            refusals += 1
            if refusals >= _REFUSALS:
                raise _refused(words)
        time.sleep(_PAUSE)
    raise _failed(f"ssh did not answer within {seconds:.0f} s ({words})", console)


def _banner(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_BANNER_SECONDS) as link:
            return link.recv(8).startswith(b"SSH-")
    except OSError:
        # QEMU accepts before the guest listens: a reset or silence both mean "not yet"
        return False


def _refused(words: str) -> LabError:
    if "verification failed" in words.lower():
        shown = _FINGERPRINT.search(words)
        key = f"the host key {shown[0]}" if shown else "the host key"
        return LabError(
            f"cannot log in to the lab: because {key} is not a pinned one",
            hint="if the system was installed anew, pin its key; or start over: xenlab lab reset",
        )
    return LabError(
        f"cannot log in to the lab: because ssh was refused: {words.splitlines()[-1]}",
        hint="boot the rescue system and check authorized_keys",
    )


def _failed(reason: str, console: Path) -> LabError:
    lines = console.read_text(errors="replace").splitlines()[-_TAIL:] if console.exists() else []
    tail = "\nlast lines of the console:\n  " + "\n  ".join(lines) if lines else ""
    return LabError(
        f"cannot log in to the lab: because {reason}{tail}",
        hint=f"read the whole console: {console}",
    )


# A person at the machine's serial console; Ctrl-] leaves.

LEAVE = b"\x1d"


def attach_console(path: Path) -> None:
    """Join this terminal and a serial console's socket until Ctrl-] or the machine's end.

    Raises LabError if the console is not there.
    """
    line = socket.socket(socket.AF_UNIX)
    try:
        with tools.short_path(path) as address:
            line.connect(address)
    except OSError as error:
        line.close()
        raise LabError(
            f"cannot attach to the serial console: because of {error.strerror}",
            hint="xenlab lab up",
        ) from error
    keyboard = sys.stdin.fileno()
    with line:
        if not os.isatty(keyboard):
            _copy(line, keyboard)
            return
        before = termios.tcgetattr(keyboard)
        tty.setraw(keyboard)
        try:
            _copy(line, keyboard)
        finally:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _copy(line: socket.socket, keyboard: int) -> None:
    while True:
        for ready in select.select([line.fileno(), keyboard], [], [])[0]:
            if ready == line.fileno():
                data = line.recv(65536)
                if not data:
                    return
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
            else:
                typed = os.read(keyboard, 1024)
                before, left, _ = typed.partition(LEAVE)
                line.sendall(before)
                if left or not typed:
                    return


# How a lab is reached: its own keys, its pinned host keys, its ssh_config.

DOM0 = "dom0"
_LOOPBACK = "[127.0.0.1]:"


@dataclass(frozen=True)
class Access:
    """The files of one lab that OpenSSH and paramiko read."""

    folder: Path

    @property
    def identity(self) -> Path:
        """The private key that opens every machine of the lab."""
        return self.folder / "id_ed25519"

    @property
    def public_key(self) -> str:
        """The line for authorized_keys."""
        return self.identity.with_suffix(".pub").read_text().strip()

    @property
    def known_hosts(self) -> Path:
        """The pinned host keys."""
        return self.folder / "known_hosts"

    @property
    def config(self) -> Path:
        """The ssh_config with dom0 and the guests."""
        return self.folder / "ssh_config"

    @property
    def _rescue_key(self) -> Path:
        return self.folder / "rescue_host_ed25519"

    def create_keys(self) -> None:
        """Make the key pairs that are missing. Raises LabError."""
        for path, comment in ((self.identity, "xenlab"), (self._rescue_key, "rescue")):
            public = path.with_suffix(".pub")
            if path.exists() and public.exists():
                continue
            # a pair that was half-written when the power failed is no pair
            path.unlink(missing_ok=True)
            public.unlink(missing_ok=True)
            tools.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])

    def key_archive(self, path: Path, rescue_image: Path, user: str = "") -> None:
        """Write the rescue initramfs of this lab: the common one, then its own keys.

        They let root in, and a `user` beside root.
        """
        unfinished = path.with_name(f".{path.name}.new")
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            data = rescue_image.read_bytes()
            # the kernel looks for the next archive on a four byte boundary
            out.write(data + b"\0" * (-len(data) % 4))
            archive = CpioWriter(out)
            archive.folder("root/.ssh", mode=0o700)
            authorized = f"{self.public_key}\n".encode()
            archive.file("root/.ssh/authorized_keys", authorized, mode=0o600)
            if user:
                # root's, and readable: what sshd wants of it
                archive.folder(f"home/{user}/.ssh")
                archive.file(f"home/{user}/.ssh/authorized_keys", authorized)
            host = "etc/ssh/ssh_host_ed25519_key"
            archive.file(host, self._rescue_key.read_bytes(), mode=0o600)
            archive.file(f"{host}.pub", self._rescue_key.with_suffix(".pub").read_bytes())
            archive.close()
        unfinished.rename(path)

    def pin(self, port: int) -> None:
        """Make every pin of dom0 name `port`, the rescue system's key among them."""
        words = self._rescue_key.with_suffix(".pub").read_text().split()
        rescue = f"{_LOOPBACK}{port} {words[0]} {words[1]}"
        lines = self.known_hosts.read_text().splitlines() if self.known_hosts.exists() else []
        others = [
            f"{_LOOPBACK}{port} {line.partition(' ')[2]}" if line.startswith(_LOOPBACK) else line
            for line in lines
        ]
        unique = dict.fromkeys([rescue, *others])
        durable.replace(self.known_hosts, "".join(f"{line}\n" for line in unique).encode())

    def forget_hosts(self) -> None:
        """Drop every pin; the rescue system's comes back at the next start."""
        self.known_hosts.unlink(missing_ok=True)

    def write_config(self, port: int, guests: Mapping[str, str]) -> None:
        """Write the ssh_config: dom0 behind its loopback port, the guests behind dom0."""
        common = [
            "    User root",
            f"    IdentityFile {_quoted(self.identity)}",
            "    IdentitiesOnly yes",
            f"    UserKnownHostsFile {_quoted(self.known_hosts)}",
            "    GlobalKnownHostsFile /dev/null",
            "    StrictHostKeyChecking yes",
            "    UpdateHostKeys no",
            "    PasswordAuthentication no",
            "    KbdInteractiveAuthentication no",
            "    LogLevel ERROR",
            "    ServerAliveInterval 15",
            "    ServerAliveCountMax 8",
        ]
        lines = [f"Host {DOM0}", "    HostName 127.0.0.1", f"    Port {port}", *common]
        jump = f"    ProxyJump {DOM0}"
        if " " in str(self.config):
            # a ProxyJump has a shell read this file's path as it is
            jump = f"    ProxyCommand ssh -F {_quoted(self.config)} -W %h:%p {DOM0}"
        for name, address in guests.items():
            lines += ["", f"Host {name}", f"    HostName {address}", *common, jump]
        durable.replace(self.config, "".join(f"{line}\n" for line in lines).encode())

    def argv(self, host: str, command: Sequence[str] = (), *, tty: bool = False) -> list[str]:
        """The ssh command line for a machine of the lab; `command` is for its shell."""
        options = ["-t"] if tty else []
        return [
            "ssh",
            "-F",
            str(self.config),
            *options,
            host,
            *(["--", *command] if command else []),
        ]


def _quoted(path: Path) -> str:
    return f'"{path}"' if " " in str(path) else str(path)
