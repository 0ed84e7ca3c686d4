"""A text's OpenPGP signature, looked at by gpgv before a line of the text is believed."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from xenlab.errors import BadInput

_BEGIN = b"-----BEGIN PGP SIGNED MESSAGE-----"
_STATUS = "[GNUPG:] "


def is_signed(data: bytes) -> bool:
    """Whether a text says of itself that it is signed."""
    return _BEGIN in data


def signed_text(data: bytes, what: str, keyring: str, signers: Sequence[str]) -> str:
    """What a clear-signed text says, without anything that stands outside of the signature.

    ``keyring`` is a file of OpenPGP keys, wherever it came from: who is believed is said by
    ``signers``, fingerprints of primary keys. Raises BadInput unless one of them signed.
    """
    if not keyring or not signers:
        raise BadInput(
            f"cannot believe {what}: it is signed, and the site does not say by whose key",
            hint="name a file of keys in checksum_keyring (gpg --export > FILE), and the "
            "fingerprints of those who are believed in checksum_signers",
        )
    keys = Path(keyring).expanduser().absolute()
    if not keys.is_file():
        raise BadInput(f"cannot check the signature of {what}: there is no file of keys {keys}")
    with tempfile.TemporaryFile() as status:
        words = ["gpgv", "--status-fd", str(status.fileno()), "--keyring", str(keys)]
        try:
            done = subprocess.run(
                [*words, "--output", "-", "-"],
                input=data,
                capture_output=True,
                pass_fds=(status.fileno(),),
                check=False,
            )
        except FileNotFoundError:
            raise BadInput(
                f"cannot check the signature of {what}: the program gpgv is not installed",
                hint="apt-get install gpgv",
            ) from None
        status.seek(0)
        said = [
            line.removeprefix(_STATUS).split()
            for line in status.read().decode(errors="replace").splitlines()
        ]
    valid = [words for words in said if words[:1] == ["VALIDSIG"]]
    # a key that has expired, or was taken back, gives a valid signature that is not good
    good = any(words[:1] == ["GOODSIG"] for words in said)
    if done.returncode or not good or not valid:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1].removeprefix("gpgv: ") if lines else "gpgv found no good signature"
        raise BadInput(
            f"cannot believe {what}: its signature is not good ({reason})",
            hint=f"fetch it again; if the key is missing in {keys} or has expired, fetch the key",
        )
    by = [words[-1] for words in valid]
    if not {*by} & {signer.replace(" ", "").upper() for signer in signers}:
        raise BadInput(
            f"cannot believe {what}: it was signed by {', '.join(by)}, whom checksum_signers "
            "does not name"
        )
    return done.stdout.decode(errors="replace")
