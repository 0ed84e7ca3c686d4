"""Files on a machine: what was not meant to change stays byte by byte, and whole."""

from __future__ import annotations

import os
import re
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tests.sites import lab_site
from tests.ssh.conftest import Sshd, kill, wait_until
from tests.ssh.test_loginshell import SHELLS, forced, make_noise
from tests.unit.rootdir import root_with

import xenlab.host
from xenlab.chapter.chapter import Chapter
from xenlab.command import Command
from xenlab.errors import ConnectionLost, StepFailed, XenlabError
from xenlab.host import RECEIVE, Host, Output, size_and_digest
from xenlab.journal import Journal
from xenlab.resources.files import File, Line, with_line
from xenlab.site.schema import Ssh
from xenlab.transport.local import Local
from xenlab.transport.ssh import SSH

NOT_UTF8 = b"caf\xe9\r\n\xff\xfe\x00default-route \xc3(\x0c\xe2\x80\xa8end"
ACL = struct.pack(
    "<I" + "HHI" * 5,
    2,
    *(0x01, 6, 0xFFFFFFFF),
    *(0x02, 4, 12345),
    *(0x04, 4, 0xFFFFFFFF),
    *(0x10, 4, 0xFFFFFFFF),
    *(0x20, 0, 0xFFFFFFFF),
)
"""acl(5): the owner reads and writes, user 12345 reads, nobody else does."""

OWNERS = [(0, 0), (65534, 65534), (12345, 4)] if os.getuid() == 0 else [(os.getuid(), os.getgid())]


def silent(what: str, done: float | None = None) -> None:
    """A report nobody reads."""


def left_over(folder: Path) -> list[str]:
    """What an interrupted write has left."""
    return [entry.name for entry in folder.rglob(".xenlab-*")]


@pytest.fixture(params=["ssh", "local"])
def host(request: pytest.FixtureRequest) -> Host:
    return Host(Local() if request.param == "local" else request.getfixturevalue("ssh"))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """A host for each login shell; each prints something before every command."""
    servers: list[Sshd] = []
    for name in SHELLS:
        program = shutil.which(name)
        assert program, f"{name} is missing: scripts/bootstrap test"
        servers.append(Sshd(tmp_path_factory.mktemp(name), forced(program)))
        make_noise(servers[-1].folder)
    found = [Host(SSH(server.target)) for server in servers]
    yield found
    for machine in found:
        machine.transport.close()
    for server in servers:
        server.stop()


# -- bytes, modes, owners, attributes


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    content=st.binary(max_size=300) | st.text(max_size=100).map(str.encode),
    mode=st.integers(0, 0o7777),
    owner=st.sampled_from(OWNERS),
    linked=st.sampled_from(["", "absolute", "relative", "two"]),
    shell=st.integers(0, len(SHELLS) - 1),
)
@example(content=NOT_UTF8, mode=0o4751, owner=OWNERS[-1], linked="two", shell=2)
@example(
    content=b"# the default-route of dom0\nkey=old", mode=0o600, owner=OWNERS[0], linked="", shell=1
)
@example(content=b"", mode=0, owner=OWNERS[0], linked="relative", shell=4)
def test_read_edit_write_changes_one_line_and_nothing_else(
    content: bytes,
    mode: int,
    owner: tuple[int, int],
    linked: str,
    shell: int,
    noisy: list[Host],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADMIN_PASSWORD", "default-route")
    host = noisy[shell]
    shutil.rmtree(tmp_path / "etc", ignore_errors=True)
    (tmp_path / "etc" / "real").mkdir(parents=True)
    path = file = tmp_path / "etc" / "file"
    if linked:
        file = tmp_path / "etc" / "real" / "file"
        path.symlink_to(file if linked != "relative" else "real/../real/file")
    if linked == "two":
        path = tmp_path / "etc" / "again"
        path.symlink_to("file")
    file.write_bytes(content)
    os.chown(file, *owner)
    file.chmod(mode)
    if linked != "relative":
        os.setxattr(file, "user.note", b"\xff kept")

    assert host.read_bytes(str(path)) == content
    text = host.read(str(path))
    assert text is not None
    host.write(str(path), text)
    assert file.read_bytes() == content
    resource = Line(str(path), "key=default-route", key="key=")
    assume(resource.probe(host) is not None)
    resource.apply(host, silent)
    assert resource.probe(host) is None

    wanted = with_line(text, "key=default-route", "key=").encode("utf-8", "surrogateescape")
    assert file.read_bytes() == wanted
    now = file.stat()
    assert (now.st_mode & 0o7777, now.st_uid, now.st_gid) == (mode, *owner)
    if linked != "relative":
        assert os.getxattr(file, "user.note") == b"\xff kept"
    assert path.is_symlink() == bool(linked)
    assert left_over(tmp_path) == []


@given(
    lines=st.lists(st.tuples(st.text(max_size=9), st.sampled_from(["\n", "\r\n"])), max_size=6),
    ended=st.booleans(),
)
@example([("key=old", "\r\n"), ("other\u2028\x0c", "\r\n"), ("key=older", "\n")], True)
@example([("one", "\r\n"), ("key=old", "\r\n")], False)
def test_a_line_is_set_and_all_others_stay(lines: list[tuple[str, str]], ended: bool) -> None:
    text = "".join(line.replace("\n", "") + end for line, end in lines)
    if not ended:
        text = text.rstrip("\r\n")
    result = with_line(text, "key=new", "key=")
    others = [each for each in text.split("\n") if not each.startswith("key=")]
    mine = [each for each in result.split("\n") if each.rstrip("\r") == "key=new"]
    assert len(mine) == 1
    kept = [each for each in result.split("\n") if each not in mine]
    assert [each.rstrip("\r") for each in kept if each] == [
        each.rstrip("\r") for each in others if each
    ]
    assert result.endswith("\n") == (text.endswith("\n") or not text)
    assert with_line(result, "key=new", "key=") == result


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "key=new\n"),
        ("a\n", "a\nkey=new\n"),
        ("a", "a\nkey=new"),
        ("a\r\nb\r\n", "a\r\nb\r\nkey=new\r\n"),
        ("a\r\nb", "a\r\nb\r\nkey=new"),
        ("key=1\r\nb", "key=new\r\nb"),
        ("b\nkey=1", "b\nkey=new"),
        ("key=1\na\x0cb\u2028c\x1ed\nkey=2\n\n", "key=new\na\x0cb\u2028c\x1ed\n\n"),
    ],
)
def test_lines_keep_their_ends(text: str, wanted: str) -> None:
    assert with_line(text, "key=new", "key=") == wanted


def test_attributes_and_acls_stay(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    os.setxattr(file, "user.note", b"kept")
    os.setxattr(file, "system.posix_acl_access", ACL)
    host.write(str(file), "new")
    assert os.getxattr(file, "user.note") == b"kept"
    assert os.getxattr(file, "system.posix_acl_access") == ACL
    new = tmp_path / "new"
    new.write_text("sent")
    host.upload(new, str(file))
    assert file.read_text() == "sent"
    assert os.getxattr(file, "user.note") == b"kept"
    assert os.getxattr(file, "system.posix_acl_access") == ACL


def test_capabilities_stay_and_mode_and_owner_that_are_stated_come(
    host: Host, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    os.setxattr(file, "security.capability", capability)
    host.write(str(file), "new", mode=0o750)
    assert os.getxattr(file, "security.capability") == capability
    assert file.stat().st_mode & 0o7777 == 0o750
    host.write(str(file), "newer", owner="nobody:nogroup")
    assert (file.stat().st_mode & 0o7777, file.owner(), file.group()) == (
        0o750, "nobody", "nogroup",
    )  # fmt: skip


def test_a_new_file_is_root_s_and_has_the_usual_mode(host: Host, tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    tmp_path.chmod(0o2775)
    host.write(str(tmp_path / "deep" / "new"), "text")
    made = (tmp_path / "deep" / "new").stat()
    assert (made.st_mode & 0o7777, made.st_uid, made.st_gid) == (0o644, 0, 0)


def test_a_resource_states_mode_and_owner_or_leaves_them(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"text\xff")
    file.chmod(0o600)
    os.chown(file, 65534, 65534)
    difference = File(str(file), "text\n").probe(host)
    assert difference is not None and "-text\\xff\n" in difference.diff
    File(str(file), "text\n").apply(host, silent)
    assert File(str(file), "text\n").probe(host) is None
    assert (file.stat().st_mode & 0o777, file.stat().st_uid) == (0o600, 65534)
    stated = File(str(file), "text\n", mode=0o640, owner="root:root")
    difference = stated.probe(host)
    assert difference is not None
    assert difference.summary == (f"{file}: set mode 640, owner root:root, now 600, nobody:nogroup")
    stated.apply(host, silent)
    assert stated.probe(host) is None


# -- links


def test_a_link_inside_a_root_stays_inside(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    host = root_with(root)
    outside.write_text("untouched")
    (root / "deep").mkdir()
    for name, target in {
        "absolute": "/deep/file",
        "climbing": f"{'../' * 20}deep/file",
        "folder/file": "",
    }.items():
        link = root / "etc" / name
        if target:
            link.symlink_to(target)
        else:
            (root / "etc" / "folder").symlink_to("/deep")
        host.write(f"/etc/{name}", name)
        assert (root / "deep" / "file").read_text() == name == host.read(f"/etc/{name}")
        here = tmp_path / "here"
        here.write_text(f"sent {name}")
        host.upload(here, f"/etc/{name}")
        assert (root / "deep" / "file").read_text() == f"sent {name}"
    (root / "etc" / "escape").symlink_to(outside)
    with pytest.raises(StepFailed, match="cannot write /etc/escape: .* leads nowhere"):
        host.write("/etc/escape", "text")
    with pytest.raises(XenlabError):
        host.upload(outside, "/etc/escape")
    assert outside.read_text() == "untouched"


@pytest.mark.parametrize("target", ["/dev/null", "folder", "nowhere/file", "link"])
def test_a_link_to_what_is_no_place_for_a_file_is_refused(
    host: Host, tmp_path: Path, target: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(StepFailed, match=f"cannot write {tmp_path}/link: because .*\nTry: "):
        host.write(str(tmp_path / "link"), "text")
    assert (tmp_path / "link").readlink() == Path(target)
    assert left_over(tmp_path) == []


# -- whole or not at all


class Cut(SSH):
    """A way to a server whose sessions are killed when so many bytes of an input have arrived."""

    def __init__(self, sshd: Sshd, folder: Path, arrive: int) -> None:
        super().__init__(sshd.target)
        self._sshd = sshd
        self._folder = folder
        self._arrive = arrive

    def execute(
        self,
        text: str,
        *,
        input: bytes = b"",
        timeout: float,
        on_output: Output | None = None,
        stop: threading.Event | None = None,
        mark: str = "",
        look: bool = False,
    ) -> tuple[int, bytes, bytes]:
        """As SSH does, until then."""
        pieces = [input[: self._arrive], input[self._arrive :]]

        def read(size: int) -> bytes:
            if not pieces:
                return b""
            if len(pieces) == 1 or not pieces[0]:
                wait_until(lambda: [self._arrive] == [f.stat().st_size for f in self._written()])
                for session in self._sshd.sessions():
                    kill(session)
            return pieces.pop(0) or pieces.pop(0)

        return self._execute(text, Reader(read), timeout, on_output, stop, mark=mark)

    def _written(self) -> list[Path]:
        return list(self._folder.glob(".xenlab-*"))


class Reader:
    """A source of input that is one function."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read


@pytest.mark.parametrize("arrived", [0, 25, 4095])
@pytest.mark.parametrize("way", ["write", "receive"])
def test_a_file_that_was_cut_short_takes_no_place(
    sshd: Sshd, tmp_path: Path, way: str, arrived: int
) -> None:
    data = os.urandom(4096)
    host = Host(Cut(sshd, tmp_path, arrived))
    (tmp_path / "fstab").write_text("old")
    script = RECEIVE + 'receive "$1/.xenlab-x" "$2" "$3"\nmv -- "$1/.xenlab-x" "$1/fstab"'
    command = Command.script(script, tmp_path, *size_and_digest(data))
    act: Callable[[], object] = {
        "write": lambda: host.write(str(tmp_path / "fstab"), data),
        "receive": lambda: host.run(command, input=data),
    }[way]
    with pytest.raises(ConnectionLost):
        act()
    wait_until(lambda: not sshd.marked())
    assert (tmp_path / "fstab").read_text() == "old"
    assert left_over(tmp_path) == []


def test_an_upload_that_was_cut_short_takes_no_place(ssh: SSH, sshd: Sshd, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(os.urandom(64))
    there.write_text("old")

    def cut(done: int, total: int) -> None:
        for session in sshd.sessions():
            kill(session)

    ssh.connect()
    with pytest.raises(ConnectionLost):
        ssh.upload(here, str(there), cut)
    wait_until(lambda: not sshd.marked())
    assert there.read_text() == "old"
    assert left_over(tmp_path) == []


def test_another_file_of_the_same_length_is_not_what_was_sent(ssh: SSH, tmp_path: Path) -> None:
    script = RECEIVE + 'receive "$1" "$2" "$3"'
    command = Command.script(script, tmp_path / "file", *size_and_digest(b"right"))
    result = Host(ssh).run(command, input=b"wrong", check=False)
    assert (result.status, result.stderr) == (74, f"not all of {tmp_path}/file has arrived\n")
    assert not (tmp_path / "file").exists()
    assert Host(ssh).run(command, input=b"right").ok


def test_no_other_script_makes_a_file_of_a_command_s_input() -> None:
    package = Path(xenlab.host.__file__).parent
    found = {
        path.name
        for path in package.rglob("*")
        if path.suffix in (".py", ".sh", ".j2")
        and any(re.search(r"\bcat\s*>[^&<]*$", line) for line in path.read_text().splitlines())
    }
    # what `note` of a guest's scripts takes is said by the script itself
    assert found == {"host.py", "channel.py", "guest.py"}


# -- what is hidden from records


def test_a_word_that_is_hidden_from_records_stays_in_files(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_PASSWORD", "default-route")
    make_noise(sshd.folder)
    journal = Journal(tmp_path / "run")
    site = lab_site(ssh=Ssh(host=sshd.alias, config=str(sshd.config)))
    chapter = Chapter("05_base_configuration", site, journal)
    file = tmp_path / "file"
    file.write_bytes(b"# the default-route of dom0\nnew=1\n\xff default-route")
    os.chown(file, 65534, 65534)
    file.chmod(0o640)
    chapter.ensure("05.1 Set it", Line(str(file), "new=default-route", key="new="), on=chapter.host)
    assert file.read_bytes() == (
        b"# the default-route of dom0\nnew=default-route\n\xff default-route"
    )
    assert (file.stat().st_mode & 0o7777, file.stat().st_uid) == (0o640, 65534)
    chapter.close()
    kept = [path for path in journal.folder.rglob("*") if path.is_file()]
    assert kept
    assert [path for path in kept if b"default-route" in path.read_bytes()] == []
