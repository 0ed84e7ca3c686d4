"""How a lab is reached: its own keys, its pinned host keys, its ssh_config."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xenlab.lab import cpio, tools
from xenlab.lab.cache import write_atomic

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
            # a pair that was half-written when somebody pulled the plug is no pair
            path.unlink(missing_ok=True)
            public.unlink(missing_ok=True)
            tools.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])

    def key_archive(self, path: Path, rescue_image: Path) -> None:
        """Write the rescue initramfs of this lab: the common one, then its own keys."""
        unfinished = path.with_name(f".{path.name}.new")
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            data = rescue_image.read_bytes()
            # the kernel looks for the next archive on a four byte boundary
            out.write(data + b"\0" * (-len(data) % 4))
            archive = cpio.Writer(out)
            archive.folder("root/.ssh", mode=0o700)
            archive.file("root/.ssh/authorized_keys", f"{self.public_key}\n".encode(), mode=0o600)
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
        kept = [
            f"{_LOOPBACK}{port} {line.partition(' ')[2]}" if line.startswith(_LOOPBACK) else line
            for line in lines
        ]
        unique = dict.fromkeys([rescue, *kept])
        write_atomic(self.known_hosts, "".join(f"{line}\n" for line in unique))

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
        # a ProxyJump would not read this file again, and paramiko does not know the option
        jump = f"    ProxyCommand ssh -F {_quoted(self.config)} -W %h:%p {DOM0}"
        for name, address in guests.items():
            lines += ["", f"Host {name}", f"    HostName {address}", *common, jump]
        write_atomic(self.config, "".join(f"{line}\n" for line in lines))

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
