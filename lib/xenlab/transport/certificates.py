"""OpenSSH's certificates: what one says, who has signed it, and why it is of no use."""

from __future__ import annotations

import base64
import fnmatch
import time
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificate,
    SSHCertificateType,
    load_ssh_public_identity,
)

SUFFIX = "-cert-v01@openssh.com"
"""What a certificate's type has after that of the key that it is for."""

FOREVER = 2**64 - 1

SIGNATURES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
"""What an authority may sign with, where no ssh_config says it (CASignatureAlgorithms)."""


def from_blob(blob: bytes) -> SSHCertificate | None:
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


def authority(certificate: SSHCertificate) -> bytes:
    """The public key of who has signed it, as it is sent."""
    line = certificate.signature_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return base64.b64decode(line.split()[1])


def key_of(certificate: SSHCertificate) -> bytes:
    """The public key that it is for, as it is sent."""
    line = certificate.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return base64.b64decode(line.split()[1])


def is_for_users(certificate: SSHCertificate) -> bool:
    """Whether it lets somebody in, and is not a host's."""
    return certificate.type == SSHCertificateType.USER


def outdated(certificate: SSHCertificate) -> str:
    """From when and until when it is valid, as a clause, where that is not now; else ""."""
    begins, ends = certificate.valid_after, certificate.valid_before
    if begins <= time.time() < ends:
        return ""
    said = f"is valid from {_date(begins)}" if begins else "is valid"
    return said + (f" until {_date(ends)}" if ends != FOREVER else "")


def refusal_of_host(
    certificate: SSHCertificate, host: str, signatures: Collection[str] = SIGNATURES
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
