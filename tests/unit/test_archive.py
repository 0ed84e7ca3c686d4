"""Checksums as the usual tools write them, and files that are not what they should be."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlab.errors import BadInput
from xenlab.host import Host
from xenlab.resources.archive import (
    checksum_of,
    find_checksum,
    has_checksum,
    read_checksum,
    require_checksum,
)
from xenlab.transport.local import Local

HOST = Host(Local())

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Z"), exclude_characters="/\\*"),
    min_size=1,
    max_size=30,
)

DIGESTS = f"""\
-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA512

# BLAKE2B HASH
{"b" * 128}  stage3-amd64-openrc.tar.xz
# SHA512 HASH
{"5" * 128}  stage3-amd64-openrc.tar.xz
# BLAKE2B HASH
{"c" * 128}  stage3-amd64-openrc.tar.xz.CONTENTS.gz
-----BEGIN PGP SIGNATURE-----
"""


@pytest.mark.parametrize("program", ["sha256sum", "sha512sum"])
@pytest.mark.parametrize("options", [[], ["--binary"]])
def test_what_the_programs_write_is_read(tmp_path: Path, program: str, options: list[str]) -> None:
    for name in ("other", "stage one.tar", "stage one.tar.zst"):
        (tmp_path / name).write_text(name)
    names = sorted(path.name for path in tmp_path.iterdir())
    text = subprocess.run(
        [program, *options, "--", *names], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    checksum = find_checksum(text, "stage one.tar")
    assert checksum == checksum_of(tmp_path / "stage one.tar", checksum)
    assert checksum != find_checksum(text, "stage one.tar.zst") != ""


@given(name=NAMES, other=NAMES, data=st.binary())
def test_only_the_named_file_is_found(name: str, other: str, data: bytes) -> None:
    checksum = hashlib.sha256(data).hexdigest()
    text = f"{checksum}  ./{name}\n"
    assert find_checksum(text, name) == checksum
    if other != name:
        assert find_checksum(text, other) == ""


def test_gentoos_digests_are_read_by_their_headings() -> None:
    assert find_checksum(DIGESTS, "stage3-amd64-openrc.tar.xz") == "5" * 128
    assert find_checksum(DIGESTS, "stage3-amd64-openrc.tar.xz.CONTENTS.gz") == ""


@given(st.text())
def test_any_text_is_survived(text: str) -> None:
    assert len(find_checksum(text, "stage.tar")) in (0, 64, 128)


def test_a_checksum_file_that_is_missing_or_of_another_file(tmp_path: Path) -> None:
    missing = tmp_path / "none.sha256"
    with pytest.raises(BadInput, match=r"cannot read .*none\.sha256: because No such file"):
        read_checksum(str(missing), "stage.tar")
    missing.write_text(f"{'a' * 64}  other.tar\n")
    with pytest.raises(BadInput, match=r"has no SHA-256 or SHA-512 checksum of stage\.tar"):
        read_checksum(str(missing), "/some/where/stage.tar")


def test_a_file_that_is_missing_or_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stage.tar"
    with pytest.raises(BadInput, match="cannot read .*: because "):
        require_checksum(path, "a" * 64)
    path.write_bytes(b"one")
    checksum = checksum_of(path)
    require_checksum(path, checksum)
    path.write_bytes(b"other")
    with pytest.raises(BadInput, match="wrong checksum"):
        require_checksum(path, checksum)
    with pytest.raises(BadInput, match="neither a SHA-256 nor a SHA-512"):
        require_checksum(path, "abc")


def test_a_checksum_on_a_host(tmp_path: Path) -> None:
    path = tmp_path / "a 'file; $(touch bad)\n"
    assert not has_checksum(HOST, str(path), "a" * 64)
    path.write_bytes(b"data")
    for program in ("sha256", "sha512"):
        assert has_checksum(HOST, str(path), hashlib.new(program, b"data").hexdigest())
        assert not has_checksum(HOST, str(path), hashlib.new(program, b"other").hexdigest())
