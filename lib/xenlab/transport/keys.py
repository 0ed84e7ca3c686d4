"""The keys that may let somebody in, and their certificates, in OpenSSH's order."""

from __future__ import annotations

import base64
import fnmatch
import os
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import paramiko
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificate,
    SSHCertificateType,
    load_ssh_public_identity,
)
from paramiko.agent import AgentKey, AgentSSH
from paramiko.pkey import PublicBlob

from xenlab.transport.ssh_config import Route

AGENT_SECONDS = 120.0
"""How long an agent may take for an answer: a person may have to touch a key, or to say yes."""

_MAGIC = b"openssh-key-v1\0"


@dataclass(frozen=True)
class Key:
    """One key that is offered; ``public`` is what is shown to the server."""

    name: str
    signer: paramiko.PKey
    public: PublicBlob
    of_agent: bool = False

    @property
    def wants_a_touch(self) -> bool:
        """Whether it is a FIDO token's."""
        return self.public.key_type.startswith("sk-")


@dataclass(frozen=True)
class _Listed:
    """A key, or a certificate for it, that an identity file stands for."""

    path: Path
    public: bytes | None


@dataclass
class Keys:
    """The keys that may be tried for a host, and why others may not."""

    route: Route
    notes: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    _loaded: dict[Path, paramiko.PKey | None] = field(default_factory=dict)

    def candidates(self) -> Iterator[Key]:
        """Each key: certificates, then the agent's with the named ones first, then files."""
        listed = [one for path in self.route.identities for one in self._listed(path)]
        agent = _agent(self.route, self.notes)
        try:
            held = {key.blob: key for key in agent.get_keys()} if agent else {}
            named = {one.public for one in listed}
            first = [blob for blob in held if blob in named]
            if not self.route.identities_only:
                first += [blob for blob in held if blob not in named]
            seen: set[bytes] = set()
            for key in (
                *self._certified(listed, held),
                *(_of_agent(held[blob]) for blob in first),
                *self._from_files(listed, held),
            ):
                if key.public.key_blob not in seen and self._accepted(key):
                    seen.add(key.public.key_blob)
                    yield key
        finally:
            if agent is not None:
                agent.close()

    def _listed(self, path: Path) -> Iterator[_Listed]:
        public = _public_of(path)
        if public is None and not path.exists():
            return
        yield _Listed(path, public)
        beside = path.with_name(path.name + "-cert.pub")
        blob = blob_of(beside)
        if blob is not None and not self.route.certificates:
            yield _Listed(path, blob)

    def _certified(self, listed: list[_Listed], held: dict[bytes, AgentKey]) -> Iterator[Key]:
        """The certificates that the ssh_config names, each with the key that it is for."""
        for file in self.route.certificates:
            blob = blob_of(file)
            certificate = certificate_from(blob) if blob else None
            if blob is None or certificate is None:
                if file.exists():
                    self.notes.append(f"{file} holds no certificate that can be used")
                continue
            signer = self._signer(certified_key(certificate), listed, held)
            if signer is None:
                self.notes.append(f"{file} is for a key that neither a file nor the agent has")
                continue
            yield self._with(certificate, blob, str(file), signer)

    def _signer(
        self, public: bytes, listed: list[_Listed], held: dict[bytes, AgentKey]
    ) -> paramiko.PKey | None:
        if public in held:
            return held[public]
        paths = [one.path for one in listed if one.public == public]
        return next((key for path in paths if (key := self._load(path)) is not None), None)

    def _with(
        self, certificate: SSHCertificate, blob: bytes, name: str, signer: paramiko.PKey
    ) -> Key:
        if reason := outdated(certificate):
            self.notes.append(f"the certificate {name} {reason}")
        return Key(name, signer, _blob(blob), isinstance(signer, AgentKey))

    def _from_files(self, listed: list[_Listed], held: dict[bytes, AgentKey]) -> Iterator[Key]:
        for one in listed:
            certificate = certificate_from(one.public) if one.public else None
            if certificate is None:
                key = self._load(one.path)
                if key is not None:
                    yield Key(str(one.path), key, _blob(key.asbytes()))
                continue
            signer = held.get(certified_key(certificate)) or self._load(one.path)
            if signer is not None and one.public is not None:
                name = f"{one.path}-cert.pub"
                yield self._with(certificate, one.public, name, signer)

    def _accepted(self, key: Key) -> bool:
        allowed = self.route.allows("pubkeyacceptedalgorithms")
        kind = key.public.key_type.replace("ssh-rsa", "rsa-sha2-512")
        if allowed is None or kind in allowed or kind.replace("512", "256") in allowed:
            return True
        self.notes.append(f"{key.name} is {key.public.key_type}, which the ssh_config excludes")
        return False

    def _load(self, path: Path) -> paramiko.PKey | None:
        if path not in self._loaded:
            self._loaded[path] = self._from_file(path)
        return self._loaded[path]

    def _from_file(self, path: Path) -> paramiko.PKey | None:
        if path.suffix == ".pub" or not path.exists():
            return None
        public = _public_of(path) or b""
        if public[4:].startswith(b"sk-"):
            self.notes.append(
                f"{path} is a FIDO token's, which only an agent can use: ssh-add {path}"
            )
            return None
        try:
            mode = path.stat()
            if mode.st_uid == os.getuid() and mode.st_mode & 0o077:
                self.notes.append(f"{path} can be read by others: chmod 600 {path}")
                return None
            key = _private(path)
        except (paramiko.PasswordRequiredException, TypeError):
            self.notes.append(f"{path} is protected by a passphrase: ssh-add {path}")
        except OSError as error:
            self.notes.append(f"{path} cannot be read: {error.strerror}")
        except UnsupportedAlgorithm:
            self.notes.append(f"{path} is of a kind that only an agent can use: ssh-add {path}")
        except (ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType):
            self.notes.append(f"{path} holds no private key")
        else:
            # a certificate that lies beside it is offered by itself
            key.public_blob = None
            return key
        return None


def _private(path: Path) -> paramiko.PKey:
    """The key in a file, whatever lies beside it; raises as paramiko does."""
    try:
        return paramiko.PKey.from_path(path)
    except ValueError:
        if not path.with_name(path.name + "-cert.pub").exists():
            raise
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey):
        with suppress(paramiko.SSHException):
            return kind.from_private_key_file(str(path))
    return paramiko.RSAKey.from_private_key_file(str(path))


def public_keys(route: Route) -> tuple[str, ...]:
    """The public halves of the keys that would be tried there, as authorized_keys(5) has them."""
    found: dict[tuple[str, str], None] = {}
    for key in Keys(route).candidates():
        certificate = certificate_from(key.public.key_blob)
        public = _blob(certified_key(certificate)) if certificate else key.public
        found[public.key_type, base64.b64encode(public.key_blob).decode()] = None
    return tuple(f"{kind} {text}" for kind, text in found)


class _Agent(AgentSSH):
    """An SSH agent that listens on a socket."""

    def __init__(self, place: str) -> None:
        super().__init__()
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.settimeout(AGENT_SECONDS)
        try:
            link.connect(place)
            self._connect(link)  # type: ignore[attr-defined]
        except BaseException:
            link.close()
            raise

    def close(self) -> None:
        self._close()  # type: ignore[attr-defined]


def _agent(route: Route, notes: list[str]) -> _Agent | None:
    if not route.agent:
        return None
    try:
        return _Agent(route.agent)
    except (OSError, ValueError, paramiko.SSHException) as error:
        notes.append(f"the SSH agent at {route.agent} does not answer: {error}")
        return None


def _of_agent(key: AgentKey) -> Key:
    return Key(f"the agent's {key.comment or key.get_name()}", key, _blob(key.blob), of_agent=True)


def _blob(blob: bytes) -> PublicBlob:
    return PublicBlob.from_message(paramiko.Message(blob))


def _public_of(path: Path) -> bytes | None:
    """The public key of an identity file, or of the file beside it; no passphrase hides it."""
    with suppress(OSError, ValueError):
        text = path.read_bytes()
        if b"BEGIN OPENSSH PRIVATE KEY" in text:
            lines = [line for line in text.split(b"\n") if b"-----" not in line]
            message = paramiko.Message(base64.b64decode(b"".join(lines)))
            if message.get_bytes(len(_MAGIC)) == _MAGIC:
                # cipher, key derivation and its options, the number of keys
                for _ in range(3):
                    message.get_binary()
                message.get_int()
                return message.get_binary() or None
    return blob_of(path) or blob_of(path.with_name(path.name + ".pub"))


# OpenSSH's certificates: what one says, who has signed it, and why it is of no use.

CERTIFICATE_SUFFIX = "-cert-v01@openssh.com"
"""What a certificate's type has after that of the key that it is for."""

FOREVER = 2**64 - 1

AUTHORITY_SIGNATURES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
"""What an authority may sign with, where no ssh_config says it (CASignatureAlgorithms)."""


def certificate_from(blob: bytes) -> SSHCertificate | None:
    """The certificate that a blob is, None if it is none or cannot be read."""
    kind = blob[4 : 4 + int.from_bytes(blob[:4], "big")]
    try:
        found = load_ssh_public_identity(kind + b" " + base64.b64encode(blob))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return found if isinstance(found, SSHCertificate) else None


def blob_of(file: Path) -> bytes | None:
    """The key or certificate in a ``.pub`` file as it is sent, None if there is none."""
    try:
        words = file.read_bytes().split(None, 2)
        blob = base64.b64decode(words[1])
    except (OSError, IndexError, ValueError):
        return None
    return blob if blob[4:].startswith(words[0]) else None


def authority_of(certificate: SSHCertificate) -> bytes:
    """The public key of who has signed it, as it is sent."""
    line = certificate.signature_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return base64.b64decode(line.split()[1])


def certified_key(certificate: SSHCertificate) -> bytes:
    """The public key that it is for, as it is sent."""
    line = certificate.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return base64.b64decode(line.split()[1])


def outdated(certificate: SSHCertificate) -> str:
    """From when and until when it is valid, as a clause, where that is not now; else ""."""
    begins, ends = certificate.valid_after, certificate.valid_before
    if begins <= time.time() < ends:
        return ""
    said = f"is valid from {_date(begins)}" if begins else "is valid"
    return said + (f" until {_date(ends)}" if ends != FOREVER else "")


def refusal_of_host(
    certificate: SSHCertificate, host: str, signatures: Collection[str] = AUTHORITY_SIGNATURES
) -> str:
    """Why a host's certificate does not prove that it is ``host``, as a clause; "" if it does."""
    names = [name.decode("utf-8", "replace") for name in certificate.valid_principals]
    if certificate.type != SSHCertificateType.HOST:
        return "is a user's, not a host's"
    if outdated(certificate):
        return outdated(certificate)
    if names and not any(fnmatch.fnmatchcase(host.lower(), _pattern(name)) for name in names):
        return f"is for {', '.join(names)}"
    if certificate.critical_options:
        return "has options that nobody knows"
    try:
        certificate.verify_cert_signature()
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return "is not signed by its authority"
    made_with = bytes(certificate._inner_sig_type).decode()
    return "" if made_with in signatures else f"is signed with {made_with}"


def _pattern(name: str) -> str:
    return name.lower().replace("[", "[[]")


def _date(seconds: int) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return "a day that no calendar has"
