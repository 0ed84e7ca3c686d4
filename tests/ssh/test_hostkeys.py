"""known_hosts, read strictly: what is pinned, what is refused, and how it is said."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import paramiko
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ssh.conftest import keygen, keygen_fingerprint

from xenlab.errors import BadInput, HostKeyRefused
from xenlab.transport.hostkeys import (
    check,
    describe,
    host_name,
    known_keys,
    pin,
    pinned,
    regular_file,
)

BROKEN = (
    "half",
    "box ssh-ed25519",
    "box ssh-ed25519 A",
    "box ssh-ed25519 AAAA",
    "box ssh-ed25519 !!!!not-base64!!!!",
    "box ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA==",
    "box ssh-rsa AAAAB3NzaC1yc2EAAAAD",
    "box ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAI",
    "box no-such-type AAAAC3NzaC1lZDI1NTE5",
    "|1|short box",
    "|1|!|! ssh-ed25519 AAAA",
    "@unknown box ssh-ed25519 AAAA",
    "@revoked",
    "\udcff\udcfe\x00 \x07",
)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Public keys by name, without their comments; ``one`` and ``two`` are of one type."""
    folder = tmp_path_factory.mktemp("keys")
    found = {}
    for name, kind in (("one", "ed25519"), ("two", "ed25519"), ("rsa", "rsa"), ("ec", "ecdsa")):
        keygen(folder / name, kind)
        found[name] = " ".join((folder / f"{name}.pub").read_text().split()[:2])
    return found


@pytest.fixture
def known(tmp_path: Path) -> Path:
    return tmp_path / "known_hosts"


def key(line: str) -> paramiko.PKey:
    entry = paramiko.hostkeys.HostKeyEntry.from_line(f"x {line}")
    assert entry and entry.key
    return entry.key


def accepted(known: Path, line: str, name: str = "box", port: int = 22) -> bool:
    try:
        check(key(line), [known], name, port)
    except HostKeyRefused:
        return False
    return True


@pytest.mark.parametrize("broken", BROKEN)
def test_a_malformed_line_hides_no_good_one(known: Path, keys: dict[str, str], broken: str) -> None:
    text = f"{broken}\n# note\n\nbox {keys['one']}\n{broken}\n"
    known.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert accepted(known, keys["one"])
    assert not accepted(known, keys["two"])


@given(line=st.text(alphabet=st.characters(exclude_characters="\n\r", codec="utf-8")))
def test_no_line_aborts_the_load(
    line: str, tmp_path_factory: pytest.TempPathFactory, keys: dict[str, str]
) -> None:
    known = tmp_path_factory.getbasetemp() / "any_known_hosts"
    known.write_text(f"{line}\nbox {keys['one']}\n")
    assert key(keys["one"]) in known_keys([known], "box")


def test_any_of_several_keys_of_one_type_is_accepted(known: Path, keys: dict[str, str]) -> None:
    known.write_text(f"box {keys['one']}\nbox {keys['two']} rescue system\nbox {keys['rsa']}\n")
    assert [accepted(known, keys[name]) for name in ("one", "two", "rsa", "ec")] == [
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("names", "name", "port", "matches"),
    [
        ("box", "box", 22, True),
        ("box", "BOX", 22, True),
        ("box", "box", 2222, True),
        ("[box]:2222", "box", 2222, True),
        ("[box]:2222", "box", 22, False),
        ("[::1]:2222", "::1", 2222, True),
        ("one,box,two", "box", 22, True),
        ("b?x", "box", 22, True),
        ("*.example.org", "box.example.org", 22, True),
        ("*.example.org", "example.org", 22, False),
        ("*,!box", "box", 22, False),
        ("!box,*", "box", 22, False),
        ("!other,*", "box", 22, True),
        ("[b]ox", "box", 22, False),
    ],
)
def test_names(
    known: Path, keys: dict[str, str], names: str, name: str, port: int, matches: bool
) -> None:
    known.write_text(f"{names}  {keys['one']}\n")
    assert accepted(known, keys["one"], name, port) is matches


def test_hashed_names(known: Path, keys: dict[str, str]) -> None:
    known.write_text(f"box {keys['one']}\n[box]:2222 {keys['two']}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    assert "box" not in known.read_text()
    assert accepted(known, keys["one"])
    assert accepted(known, keys["two"], port=2222)
    assert not accepted(known, keys["one"], port=2222)


def test_a_revoked_key_is_refused_wherever_else_it_stands(
    known: Path, keys: dict[str, str]
) -> None:
    known.write_text(f"box {keys['one']}\n@revoked * {keys['one']}\nbox {keys['two']}\n")
    assert known_keys([known], "box") == [key(keys["two"])]
    with pytest.raises(
        HostKeyRefused,
        match=r"cannot trust box: because it offers ssh-ed25519 SHA256:.*, which is revoked",
    ):
        check(key(keys["one"]), [known], "box")


def test_a_certificate_authority_pins_nothing(known: Path, keys: dict[str, str]) -> None:
    known.write_text(f"@cert-authority * {keys['one']}\n")
    assert known_keys([known], "box") == []


def test_an_unknown_key_says_what_to_do(known: Path, keys: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "one.pub").write_text(keys["one"])
    with pytest.raises(HostKeyRefused) as refused:
        check(key(keys["one"]), [known], "box", 2222, where="dom0")
    fingerprint = keygen_fingerprint(tmp_path / "one.pub")
    assert str(refused.value) == (
        f"dom0: cannot trust [box]:2222: because its key is unknown: it offers ssh-ed25519 "
        f"{fingerprint}, and no key of it stands in {known}\n"
        "Try: compare the fingerprint on the machine's own console "
        "(ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub), then pin the key: "
        f"ssh-keyscan -p 2222 box >> {known}"
    )


def test_a_changed_key_names_both(known: Path, keys: dict[str, str]) -> None:
    known.write_text(f"# mine\nbox {keys['one']}\n")
    with pytest.raises(HostKeyRefused) as refused:
        check(key(keys["rsa"]), [known], "box")
    assert refused.value.message == (
        f"cannot trust box: because its key has changed: it offers {describe(key(keys['rsa']))}, "
        f"pinned is {describe(key(keys['one']))} ({known}:2)"
    )
    assert f"ssh-keygen -R 'box' -f {known}" in refused.value.hint


def test_pinning_adds_a_line_once(known: Path, keys: dict[str, str]) -> None:
    known.write_text("# mine, without a newline")
    known.chmod(0o640)
    assert pin(known, "box", 2222, keys["one"] + " comment")
    assert not pin(known, "box", 2222, f"[box]:2222 {keys['one']}")
    assert pin(known, "box", 2222, keys["two"])
    assert known.read_text() == (
        f"# mine, without a newline\n[box]:2222 {keys['one']}\n[box]:2222 {keys['two']}\n"
    )
    assert known.stat().st_mode & 0o777 == 0o640


def test_pinning_makes_a_private_file_and_keeps_a_link(
    tmp_path: Path, keys: dict[str, str]
) -> None:
    real = tmp_path / "deep" / "known_hosts"
    link = tmp_path / "link"
    link.symlink_to(real)
    assert pin(link, "box", 22, keys["one"])
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in real.parent.iterdir()] == ["known_hosts"]


def test_pinning_at_the_same_time_loses_nothing(known: Path, keys: dict[str, str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda n: pin(known, f"box{n}", 22, keys["one"]), range(16)))
    assert len(known.read_text().splitlines()) == 16


def test_pinning_a_key_alone_drops_the_host_s_others(known: Path, keys: dict[str, str]) -> None:
    kept = (
        f"# mine\x85\nother,third {keys['one']}\n@revoked box {keys['rsa']}\n*.org {keys['two']}\n"
    )
    known.write_text(f"box {keys['two']}\n{kept}box,friend {keys['ec']} old\n")
    assert pin(known, "box", 22, keys["one"], alone=True)
    assert known.read_text() == f"{kept}friend {keys['ec']} old\nbox {keys['one']}\n"
    assert not pin(known, "box", 22, keys["one"], alone=True)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    assert pin(known, "box", 22, keys["two"], alone=True)
    assert known_keys([known], "box") == [key(keys["two"])]
    assert known_keys([known], "friend") == [key(keys["ec"])]


def test_keys_pinned_alone_at_the_same_time_lose_nothing(known: Path, keys: dict[str, str]) -> None:
    known.write_text("".join(f"box{n} {keys['one']}\n" for n in range(16)))
    with ThreadPoolExecutor(8) as pool:
        done = pool.map(lambda n: pin(known, f"box{n}", 22, keys["two"], alone=True), range(16))
        assert all(done)
    found = [known_keys([known], f"box{n}") for n in range(16)]
    assert found == [[key(keys["two"])]] * 16


@pytest.mark.parametrize("line", ["", "ssh-ed25519", "box ssh-ed25519 AAAA", "nonsense " * 3])
def test_pinning_refuses_what_is_no_key(known: Path, line: str) -> None:
    with pytest.raises(BadInput, match="is no public host key"):
        pin(known, "box", 22, line)
    assert not known.exists()


def test_host_names_as_known_hosts_writes_them() -> None:
    assert (host_name("Box", 22), host_name("::1", 2222)) == ("box", "[::1]:2222")


def test_a_key_is_pinned_where_a_link_leads(tmp_path: Path, keys: dict[str, str]) -> None:
    link, real = tmp_path / "known_hosts", tmp_path / "real"
    link.symlink_to("real")
    for _ in range(2):
        pin(link, "box", 22, keys["one"])
        assert link.is_symlink() and not real.is_symlink()
        assert accepted(real, keys["one"])


@pytest.mark.parametrize("linked", [False, True])
def test_nothing_is_pinned_onto_what_is_no_regular_file(
    tmp_path: Path, keys: dict[str, str], linked: bool
) -> None:
    pipe, folder, loop = tmp_path / "pipe", tmp_path / "folder", tmp_path / "loop"
    os.mkfifo(pipe)
    folder.mkdir()
    loop.symlink_to(loop)
    for number, place in enumerate((pipe, folder, loop)):
        file = place
        if linked:
            file = tmp_path / f"link-{number}"
            file.symlink_to(place)
        with pytest.raises(BadInput, match=f"cannot pin a key in {file}: because "):
            pin(file, "box", 22, keys["one"])
        assert pinned([file], "box") == []
    assert pipe.is_fifo() and loop.is_symlink()


def test_the_null_device_holds_no_key_and_keeps_none() -> None:
    null = Path("/dev/null")
    assert pinned([null], "box") == []
    with pytest.raises(BadInput, match="/dev/null: because it is no regular file"):
        regular_file(null, "box")
