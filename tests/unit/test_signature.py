"""Checksum files that are signed, and files that a Debian package brought: the real programs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from xenlab.errors import BadInput
from xenlab.resources.archive import checksum_of, packaged_checksum, read_checksum

ARCHIVE = "stage3-amd64-openrc.tar.xz"
RIGHT, FORGED = "a" * 64, "b" * 64


@dataclass(frozen=True)
class Signer:
    """A person with an OpenPGP key."""

    home: Path

    def gpg(self, *words: str, given: str = "") -> bytes:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", *words]
        return subprocess.run(argv, input=given.encode(), capture_output=True, check=True).stdout

    @property
    def fingerprint(self) -> str:
        lines = self.gpg("--with-colons", "--list-keys").decode().splitlines()
        return next(line.split(":")[9] for line in lines if line.startswith("fpr:"))

    def keyring(self) -> str:
        path = self.home / "exported.gpg"
        path.write_bytes(self.gpg("--export"))
        return str(path)

    def signed(self, path: Path, text: str) -> str:
        path.write_bytes(self.gpg("--clearsign", given=text))
        return str(path)


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Signer, Signer]:
    made = []
    for name in ("releng", "somebody"):
        # its agent's socket takes no long path
        home = tmp_path_factory.mktemp(name[0])
        home.chmod(0o700)
        words = ["--passphrase", "", "--quick-generate-key", f"{name}@example.org", "ed25519"]
        Signer(home).gpg(*words, "sign", "never")
        made.append(Signer(home))
    return made[0], made[1]


def listing(digest: str) -> str:
    return f"# SHA256 HASH\n{digest}  {ARCHIVE}\n"


def test_what_the_right_person_signed_is_believed(
    signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    right, _ = signers
    file = right.signed(tmp_path / "DIGESTS", listing(RIGHT))
    assert read_checksum(file, ARCHIVE, right.keyring(), [right.fingerprint]) == RIGHT
    spaced = " ".join(right.fingerprint[place : place + 4] for place in range(0, 40, 4))
    assert read_checksum(file, ARCHIVE, right.keyring(), [spaced.lower()]) == RIGHT


def test_a_signed_file_is_not_believed_without_a_look_at_its_signature(
    signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    file = signers[0].signed(tmp_path / "DIGESTS", listing(RIGHT))
    with pytest.raises(BadInput, match="does not say by whose key") as caught:
        read_checksum(file, ARCHIVE)
    assert "checksum_keyring" in (caught.value.hint or "")
    with pytest.raises(BadInput, match="no file of keys"):
        read_checksum(file, ARCHIVE, str(tmp_path / "none"), [signers[0].fingerprint])


def test_a_forged_line_is_refused_inside_and_not_seen_outside(
    signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    right, _ = signers
    trust = (right.keyring(), [right.fingerprint])
    path = tmp_path / "DIGESTS"
    signed = Path(right.signed(path, listing(RIGHT))).read_text()
    path.write_text(signed.replace(RIGHT, FORGED))
    with pytest.raises(BadInput, match="its signature is not good"):
        read_checksum(str(path), ARCHIVE, *trust)
    for text in (listing(FORGED) + signed, signed + listing(FORGED)):
        path.write_text(text)
        assert read_or_refused(path, trust) in (RIGHT, "")


def read_or_refused(path: Path, trust: tuple[str, list[str]]) -> str:
    try:
        return read_checksum(str(path), ARCHIVE, *trust)
    except BadInput:
        return ""


def test_a_key_that_nobody_named_is_not_believed(
    signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    right, other = signers
    file = other.signed(tmp_path / "DIGESTS", listing(FORGED))
    with pytest.raises(BadInput, match="its signature is not good"):
        read_checksum(file, ARCHIVE, right.keyring(), [right.fingerprint])
    # a key of that name, or all keys of a server, may have come with the right one
    with pytest.raises(BadInput, match=f"signed by {other.fingerprint}"):
        read_checksum(file, ARCHIVE, other.keyring(), [right.fingerprint])


def test_a_file_of_a_debian_package_is_what_dpkg_unpacked() -> None:
    path = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    assert packaged_checksum(str(path)) == checksum_of(path)


def test_a_file_of_no_package_is_not_vouched_for(tmp_path: Path) -> None:
    own = tmp_path / "linux.tar.xz"
    own.write_text("sources")
    with pytest.raises(BadInput, match="no Debian package brought it"):
        packaged_checksum(str(own))
    with pytest.raises(BadInput, match="there is no such file"):
        packaged_checksum(str(tmp_path / "none"))
