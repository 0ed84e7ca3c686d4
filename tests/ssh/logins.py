"""Real sshds, keys, certificates and agents for the table of logins in `test_logins`."""

from __future__ import annotations

import base64
import contextlib
import getpass
import hashlib
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.ssh.conftest import Dropbear, Sshd, keygen, wait_until

ME = getpass.getuser()
LONG_AGO = "20200101:20210101"
ADDRESS = "127.0.0.1"

BASE = f"""
Host *
  HostName {ADDRESS}
  Port <port>
  User {ME}
  IdentityFile <identity>
  UserKnownHostsFile <known>
  GlobalKnownHostsFile none
"""
"""What each case's ssh_config ends with: its own lines come first, so they win."""

SERVERS = {
    "box": (),
    "hop": (),
    "many": ("HostKey <host_rsa>", "HostKey <host_ecdsa>"),
    "certified": ("HostKey <host_good>", "HostCertificate <host_good-cert.pub>"),
    "expired": ("HostKey <host_old>", "HostCertificate <host_old-cert.pub>"),
    "trusting": ("TrustedUserCAKeys <user_ca.pub>",),
    "keyless": ("PubkeyAuthentication no", "PasswordAuthentication yes"),
    "twofold": ("AuthenticationMethods publickey,publickey",),
    "picky": ("Ciphers chacha20-poly1305@openssh.com",),
    "one": ("MaxSessions 1", "Banner <banner>", "MaxStartups 4:100:8"),
    "obedient": ('ForceCommand exec sh -c "$SSH_ORIGINAL_COMMAND"',),
    "stubborn": ("ForceCommand echo only backups here",),
    # as it is on a router of old
    "router": (
        "HostKey <host_rsa>",
        "HostKeyAlgorithms ssh-rsa",
        "KexAlgorithms diffie-hellman-group14-sha1",
        "Ciphers aes128-cbc",
        "MACs hmac-sha1",
        "MaxSessions 1",
    ),
}
"""Each sshd's settings. All but ``trusting`` let the same keys in."""

DROPBEARS = {
    "dropbear": (),
    "dropbear-strict": ("-s", "-T", "2", "-b", "<banner>"),
    "dropbear-twofold": ("-t",),
    "dropbear-obedient": ("-c", 'exec sh -c "$SSH_ORIGINAL_COMMAND"'),
    "dropbear-stubborn": ("-c", "echo only backups here"),
}
"""The options of each dropbear."""

KEYS = (
    *("good", "second", "stranger", "locked", "certain", "outdated", "elsewhere", "forged"),
    "forced",
    *("host_good", "host_old", "host_ca", "user_ca", "other_ca", "open"),
)
LETS_IN = ("good", "second", "rsa", "ecdsa", "locked", "open")


class World:
    """What the cases share: a few sshds, keys made once, agents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: dict[str, Sshd] = {}
        self._ends: list[Callable[[], None]] = []
        self._agents: dict[str, Path] = {}
        self._make_keys()

    def server(self, name: str) -> Sshd:
        """A running sshd, started when it is first asked for."""
        if name not in self.servers:
            place = self.folder / f"sshd-{name}"
            if name in DROPBEARS:
                server: Sshd = Dropbear(place, *map(self.filled, DROPBEARS[name]))
            else:
                server = Sshd(place, "ExposeAuthInfo yes", *map(self.filled, SERVERS[name]))
            self.servers[name] = server
            self._ends.append(server.stop)
            lets_in = () if name == "trusting" else LETS_IN
            lines = [self.public(key) for key in lets_in]
            if name != "trusting":
                lines += [self.token.line, f'from="192.0.2.1" {self.public("forged")}']
                lines += [f'command="echo only a clock" {self.public("forced")}']
            (server.folder / "authorized_keys").write_text("".join(f"{one}\n" for one in lines))
        return self.servers[name]

    def agent(self, keys: str) -> Path:
        """The socket of an agent that holds these keys, by their names; ``token``: a FIDO key."""
        if keys not in self._agents:
            place = self.folder / f"agent{len(self._agents)}"
            self._agents[keys] = place
            if keys == "token":
                self._ends.append(self.token.listen(place))
                return place
            command = ["ssh-agent", "-D", "-a", str(place)]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            self._ends.append(process.kill)
            wait_until(place.exists)
            for key in keys.split():
                # what an agent says of a key is its comment
                words = ["ssh-add", "-q", str(self.folder / "in-agent" / key)]
                subprocess.run(words, check=True, env=os.environ | {"SSH_AUTH_SOCK": str(place)})
        return self._agents[keys]

    def public(self, key: str) -> str:
        """Type and key of a key's public half."""
        return " ".join((self.folder / f"{key}.pub").read_text().split()[:2])

    def filled(self, text: str, **values: str) -> str:
        """A text with its ``<names>``: values, a server's ``port`` or ``key``, a key, a file."""

        def put(found: re.Match[str]) -> str:
            name, _, what = found[1].partition(":")
            if name in values:
                return values[name]
            if what == "port":
                return str(self.server(name).port)
            if what == "key":
                return self.server(name).public_key
            if what == "public":
                return self.public(name)
            if name == "agent":
                return str(self.agent(what.replace("+", " ")))
            return str(self.folder / name)

        return re.sub(r"<([\w.+:/-]+)>", put, text)

    @cached_property
    def token(self) -> Token:
        """A FIDO token, as far as an agent has it."""
        return Token()

    def end(self) -> None:
        """Stop all that was started."""
        for end in reversed(self._ends):
            end()

    def _make_keys(self) -> None:
        at = self.folder
        for name in KEYS:
            keygen(at / name, passphrase="words" if name == "locked" else "")
        keygen(at / "rsa", "rsa")
        keygen(at / "host_rsa", "rsa")
        keygen(at / "ecdsa", "ecdsa")
        keygen(at / "host_ecdsa", "ecdsa")
        (at / "in-agent").mkdir()
        for end in ("", ".pub"):
            shutil.copy(at / f"rsa{end}", at / f"rsa_certain{end}")
        shutil.copy(at / "rsa", at / "pem")
        command = ["ssh-keygen", "-q", "-p", "-N", "", "-m", "PEM", "-f", str(at / "pem")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (at / "open").chmod(0o644)
        (at / "banner").write_text("Nobody may enter here.\n")
        (at / "rubbish").write_text("no key\n")
        (at / "rubbish").chmod(0o600)
        host = ("-h", "-z", "7", "-n", f"{ADDRESS},castle")
        self._sign("host_good", "host_ca", *host)
        self._sign("host_old", "host_ca", *host, "-V", LONG_AGO)
        self._sign("certain", "user_ca", "-n", ME)
        self._sign("rsa_certain", "user_ca", "-n", ME)
        self._sign("outdated", "user_ca", "-n", ME, "-V", LONG_AGO)
        self._sign("elsewhere", "user_ca", "-n", "somebody")
        self._sign("forged", "other_ca", "-n", ME)
        for name in ("good", "second", "stranger", "certain", "rsa", "rsa_certain"):
            for end in ("", ".pub", "-cert.pub"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copy(at / f"{name}{end}", at / "in-agent" / f"{name}{end}")
        shutil.copy(at / "locked.pub", at / "in-agent" / "locked.pub")
        shutil.copy(at / "locked", at / "in-agent" / "locked")
        words = [
            "ssh-keygen",
            "-q",
            "-p",
            "-P",
            "words",
            "-N",
            "",
            "-f",
            str(at / "in-agent/locked"),
        ]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        for number in range(8):
            keygen(at / "in-agent" / f"n{number}")
        shutil.copy(at / "certain-cert.pub", at / "alone-cert.pub")
        self.token.write(at / "token")

    def _sign(self, key: str, authority: str, *words: str) -> None:
        at = self.folder
        command = ["ssh-keygen", "-q", "-s", str(at / authority), "-I", key, *words]
        subprocess.run([*command, str(at / f"{key}.pub")], check=True)


@dataclass
class Token:
    """A FIDO key (sk-ssh-ed25519) in software: PROTOCOL.u2f and PROTOCOL.agent of OpenSSH."""

    application = b"ssh:"
    kind = "sk-ssh-ed25519@openssh.com"

    def __post_init__(self) -> None:
        self._secret = Ed25519PrivateKey.generate()
        self.touched = 0

    @property
    def blob(self) -> bytes:
        """The public key as it is sent."""
        message = paramiko.Message()
        message.add_string(self.kind)
        message.add_string(self._secret.public_key().public_bytes_raw())
        message.add_string(self.application)
        return message.asbytes()

    @property
    def line(self) -> str:
        """The public key as authorized_keys(5) has it."""
        return f"{self.kind} {base64.b64encode(self.blob).decode()}"

    def sign(self, data: bytes) -> bytes:
        """A signature by a touch."""
        self.touched += 1
        state = b"\1" + self.touched.to_bytes(4, "big")
        digests = [hashlib.sha256(part).digest() for part in (self.application, data)]
        message = paramiko.Message()
        message.add_string(self.kind)
        message.add_string(self._secret.sign(digests[0] + state + digests[1]))
        return message.asbytes() + state

    def write(self, path: Path) -> None:
        """A key file as ssh-keygen makes it: what it holds is of no use without the token."""
        message = paramiko.Message()
        message.add_bytes(b"openssh-key-v1\0")
        for text in ("none", "none", ""):
            message.add_string(text)
        message.add_int(1)
        message.add_string(self.blob)
        secret = paramiko.Message()
        secret.add_int(1)
        secret.add_int(1)
        secret.add_bytes(self.blob)
        secret.add_byte(b"\1")
        for part in (b"handle", b"", b"test"):
            secret.add_string(part)
        body = secret.asbytes()
        message.add_string(body + bytes(range(1, 1 + -len(body) % 8)))
        text = base64.encodebytes(message.asbytes()).decode()
        begin, end = (f"-----{word} OPENSSH PRIVATE KEY-----\n" for word in ("BEGIN", "END"))
        path.write_text(begin + text + end)
        path.chmod(0o600)
        Path(f"{path}.pub").write_text(f"{self.line} token\n")

    def listen(self, place: Path) -> Callable[[], None]:
        """Be an agent that holds the key; returns what ends it."""
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(place))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=self._answer, args=(link,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()

        def end() -> None:
            server.shutdown(socket.SHUT_RDWR)
            server.close()

        return end

    def _answer(self, link: socket.socket) -> None:
        with link, link.makefile("rwb") as file:
            while size := file.read(4):
                asked = paramiko.Message(file.read(int.from_bytes(size, "big")))
                kind, reply = asked.get_byte(), paramiko.Message()
                if kind == b"\x0b":
                    reply.add_byte(b"\x0c")
                    reply.add_int(1)
                    reply.add_string(self.blob)
                    reply.add_string("token")
                elif kind == b"\x0d" and asked.get_binary() == self.blob:
                    reply.add_byte(b"\x0e")
                    reply.add_string(self.sign(asked.get_binary()))
                else:
                    reply.add_byte(b"\x05")
                body = reply.asbytes()
                file.write(len(body).to_bytes(4, "big") + body)
                file.flush()
