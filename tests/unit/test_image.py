"""Images, taken of a real file system on a loop device."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cutshort import CutShort
from tests.sites import lab_site

from xenlab.chapters.guests import base, parse_proof
from xenlab.errors import BadInput, CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.archive import RECORD
from xenlab.resources.base import Resource
from xenlab.resources.image import (
    GivenImage,
    Image,
    ImageProof,
    parse_listing,
    parse_record,
    statements,
)
from xenlab.transport.local import Local

RECORDED = Path(__file__).parents[1] / "recorded"
HERE = Host(Local())
FOLDERS = (
    "proc", "sys", "run", "dev", "tmp", "usr/bin", "mnt/share", "etc/ssh", "etc/xen", "root/.ssh",
    "var/tmp", "var/log/apt", "var/log/journal/0a1b", "var/lib/systemd", "var/cache/apt/archives",
    "xenboot", "boot",
)  # fmt: skip
EMPTY = ("./proc/", "./sys/", "./run/", "./mnt/share/")


def silent(what: str, done: float | None = None) -> None:
    """A report nobody reads."""


def sh(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@dataclass
class Machine:
    """A root on a loop device with things mounted over it, and the share in it."""

    device: Path
    root: Path
    image: Image
    proof: ImageProof


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    root = tmp_path / "root"
    root.mkdir()
    mounts: list[Path] = []

    def mount(*words: str | Path) -> None:
        sh("mount", *words)
        mounts.append(Path(words[-1]))

    device = tmp_path / "disk"
    with device.open("wb") as file:
        file.truncate(64 << 20)
    sh("mkfs.ext4", "-q", "-F", device)
    try:
        mount("-o", "loop", device, root)
        fill(root)
        for name in ("proc", "sys", "run", "dev"):
            mount("--bind", f"/{name}", root / name)
        mount("-t", "tmpfs", "share", root / "mnt/share")
        path = str(root / "mnt/share/images/base.tar.zst")
        image = Image(path, "a base", source=str(root))
        yield Machine(device, root, image, ImageProof(path, str(root), EMPTY))
    finally:
        for target in reversed(mounts):
            sh("umount", target)


KEY = "-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n"
SECRETS = {
    "root/.ssh/authorized_keys": "ssh-ed25519 secret\n",
    "root/.netrc": "machine mirror login me password secret\n",
    "home/me/.ssh/id_rsa": KEY,
    "home/me/notes": "secret\n",
    "etc/shadow-": "root:secret:1:0:99999:7:::\n",
    "etc/fstab": "//nas/x /x cifs password=secret 0 0\n",
    "etc/network/interfaces": "wpa-psk secret\n",
    "etc/apt/auth.conf": "machine mirror login me password secret\n",
    "etc/apt/auth.conf.d/mirror.conf": "machine mirror login me password secret\n",
    "etc/ssl/private/snakeoil.key": "secret\n",
    "etc/myservice/its [own]* key": KEY,
    "var/lib/other/key.pem": KEY.replace("PRIVATE", "ENCRYPTED PRIVATE"),
    "etc/ppp/chap-secrets": "* * secret\n",
    "etc/wpa_supplicant/wpa_supplicant.conf": 'psk="secret"\n',
    "etc/NetworkManager/system-connections/home": "psk=secret\n",
    "var/backups/shadow.bak": "root:secret:1:0:99999:7:::\n",
    "var/cache/debconf/passwords.dat": "Value: secret\n",
    "var/spool/cron/crontabs/root": "@daily curl -u me:secret host\n",
    "var/mail/root": "secret\n",
}
# by its path, what is there and what the image has of it
LOGINS = {
    "etc/apt/sources.list": (
        "deb https://me:secret@mirror/debian stable main\ndeb http://mirror:80/x y z\n",
        "deb https://mirror/debian stable main\ndeb http://mirror:80/x y z\n",
    ),
    "etc/apt/apt.conf.d/its [own]* \\tproxy": (
        'Acquire::http::Proxy "http://me@home:p@secret@10.0.0.1:3128";\n',
        'Acquire::http::Proxy "http://10.0.0.1:3128";\n',
    ),
    "etc/environment": (
        "https_proxy=https://token-of-a-secret@proxy\nuser=ssh://git@host/\n",
        "https_proxy=https://proxy\nuser=ssh://git@host/\n",
    ),
}
ACCOUNTS = {
    "passwd": ("root:x:0:0:root:/root:/bin/sh\nold:secret:1:1::/:/bin/sh\nopen::2:2::/:/bin/sh\n"
               "+nis:::::\n"),
    "group": "root:x:0:\n",
    "shadow": "root:$y$j9T$secret:19000:0:99999:7:::\nold:!$6$secret:1::::::\nopen::1::::::\n",
    "gshadow": "root:*::\nstaff:!secret::me\n",
}  # fmt: skip


def fill(root: Path) -> None:
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    files = {
        "etc/machine-id": "0a1b2c\n",
        "etc/hostname": "dom0\n",
        "etc/hosts": "127.0.1.1 dom0.lab.internal dom0\n",
        "etc/ssh/ssh_host_ed25519_key": "secret\n",
        "etc/ssh/sshd_config": "# here\n",
        "etc/xen/domu1.cfg": 'name = "domu1"\n',
        **SECRETS,
        **{name: text for name, (text, _) in LOGINS.items()},
        "root/.ssh/id_ed25519": "secret\n",
        "root/.bash_history": "passwd\n",
        "var/log/apt/history.log": "apt\n",
        "var/log/syslog": "log\n",
        "var/log/journal/0a1b/system.journal": "log\n",
        "var/lib/systemd/random-seed": "seed\n",
        "var/cache/apt/archives/vim.deb": "deb\n",
        "xenboot/vmlinuz-domU": "kernel\n",
        "boot/vmlinuz": "kernel\n",
        "usr/bin/a file\nwith a newline": "x\n",
        "usr/bin/[odd]*name": "x\n",
    }
    files |= {f"etc/{name}": text for name, text in ACCOUNTS.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "etc/apt/auth.conf.d/url.conf").write_text("machine http://me:secret@mirror\n")
    os.chown(root / "etc/apt/sources.list", 0, 42)
    os.chmod(root / "etc/apt/sources.list", 0o640)
    os.chown(root / "etc/shadow", 0, 42)
    os.chmod(root / "etc/shadow", 0o640)
    shutil.copy("/bin/true", root / "usr/bin/pinger")
    # a change of owner takes capabilities away
    os.chown(root / "usr/bin/pinger", 4242, 4343)
    sh("setcap", "cap_net_raw=ep", root / "usr/bin/pinger")
    os.mknod(root / "dev/console", 0o600 | 0o020000, os.makedev(5, 1))
    (root / "usr/bin/link").symlink_to("etc/elsewhere")


def taken(machine: Machine) -> Path:
    machine.image.apply(HERE, silent)
    machine.image.verify(HERE)
    return Path(machine.image.path)


def test_a_share_without_room_ends_the_image_and_leaves_none(machine: Machine) -> None:
    share = machine.root / "mnt/share"
    sh("mount", "-o", "remount,size=4k", share)
    with pytest.raises(StepFailed, match="No space left on device"):
        machine.image.apply(HERE, silent)
    assert list((share / "images").iterdir()) == []


def test_an_image_is_taken_proven_and_found_again(machine: Machine, tmp_path: Path) -> None:
    assert machine.image.probe(HERE) is not None
    path = taken(machine)
    assert machine.proof.probe(HERE) is not None
    machine.proof.apply(HERE, silent)
    machine.proof.verify(HERE)
    table = parse_proof(path.with_name(path.name + ".proof").read_text())
    seen = dict(zip(table["statement"], table["seen"], strict=True))
    assert seen["device node ./dev/console"] == "crw------- 5,1"
    assert seen["device node ./dev/null"] == "crw-rw-rw- 1,3"
    assert "./usr/bin/pinger" in seen["file capabilities"]
    subprocess.run(
        ["sha256sum", "--check", "--status", path.name + ".sha256"], cwd=path.parent, check=True
    )

    copy = tmp_path / "copy"
    copy.mkdir()
    options = ("--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*")
    sh("tar", "-C", copy, *options, "-xpf", path)
    assert sh("getcap", copy / "usr/bin/pinger").split()[1] == "cap_net_raw=ep"
    assert (copy / "usr/bin/pinger").stat().st_uid == 4242
    assert (copy / "etc/machine-id").read_bytes() == b""
    assert "dom0" not in (copy / "etc/hosts").read_text()
    assert os.readlink(copy / "usr/bin/link") == "etc/elsewhere"
    assert (copy / "usr/bin/a file\nwith a newline").exists()
    assert (copy / "usr/bin/[odd]*name").exists()
    assert [p.name for p in (copy / "var/log/apt").iterdir()] == []
    gone = ("etc/hostname", "xenboot", "boot/vmlinuz", "root/.ssh/id_ed25519", "etc/xen/domu1.cfg")
    assert [name for name in gone if (copy / name).exists()] == []
    assert list((copy / "var/log/journal").iterdir()) == []


def test_nothing_that_is_secret_in_dom0_is_in_the_image(machine: Machine, tmp_path: Path) -> None:
    sh("tar", "-C", tmp_path, "--numeric-owner", "-xpf", taken(machine))
    assert [name for name in SECRETS if (tmp_path / name).exists()] == []
    assert list((tmp_path / "etc/apt/auth.conf.d").iterdir()) == []
    for name, (_, text) in LOGINS.items():
        assert (tmp_path / name).read_text() == text
    for file in (tmp_path / "etc").rglob("*"):
        assert not file.is_file() or b"secret" not in file.read_bytes(), file
    etc = tmp_path / "etc"
    assert (etc / "shadow").read_text() == (
        "root:*:19000:0:99999:7:::\nold:!:1::::::\nopen:*:1::::::\n"
    )
    assert (etc / "gshadow").read_text() == "root:*::\nstaff:!::me\n"
    assert (etc / "passwd").read_text().splitlines()[1:] == [
        "old:*:1:1::/:/bin/sh", "open:*:2:2::/:/bin/sh", "+nis:::::",
    ]  # fmt: skip
    for name in ("shadow", "apt/sources.list"):
        state = (etc / name).stat()
        assert (state.st_gid, state.st_mode & 0o777) == (42, 0o640)


def test_an_image_with_somebody_s_password_or_login_is_refused(machine: Machine) -> None:
    path = taken(machine)
    sh("tar", "-C", machine.root, "-I", "zstd", "-cf", path, "--xattrs", "--exclude=./etc/ssh/*",
       "--exclude=./proc", "./etc", "./usr", "./dev")  # fmt: skip
    sh("sh", "-c", f"cd {path.parent} && sha256sum {path.name} > {path.name}.sha256")
    with pytest.raises(StepFailed, match="nobody's password: [a-z ]*root") as caught:
        machine.proof.apply(HERE, silent)
    assert "no login in a URL: ./etc/" in caught.value.message
    assert "secret@" not in caught.value.message


@pytest.mark.parametrize("arrived", [0, 25, -1])
def test_no_image_is_taken_while_what_to_leave_out_did_not_arrive_whole(
    machine: Machine, arrived: int
) -> None:
    with pytest.raises(CommandFailed, match="not all of .* has arrived"):
        machine.image.apply(Host(CutShort(arrived)), silent)
    assert not Path(machine.image.path).exists()
    assert machine.image.probe(HERE) is not None


def test_nothing_stays_mounted(machine: Machine) -> None:
    before = Path("/proc/self/mounts").read_text()
    left = set(Path("/run").glob("xenlab-image-*"))
    taken(machine)
    assert Path("/proc/self/mounts").read_text() == before
    assert set(Path("/run").glob("xenlab-image-*")) == left


def test_dom0_may_change_afterwards_but_another_base_is_another_image(machine: Machine) -> None:
    taken(machine)
    (machine.root / "etc/xenbr0").write_text("new\n")
    assert machine.image.probe(HERE) is None
    other = replace(machine.image, base="other")
    difference = other.probe(HERE)
    assert difference is not None and "another base" in difference.summary


def test_where_the_stage_lies_is_no_part_of_an_image_and_what_it_holds_is(
    machine: Machine,
) -> None:
    here = lab_site()
    moved = lab_site(stage="/srv/other name.tar.zst", stage_checksums="/srv/sums")
    record = machine.root / RECORD
    record.write_text(f"complete {'a' * 64}\n")
    taken(replace(machine, image=replace(machine.image, base=base(here))))
    assert replace(machine.image, base=base(moved)).probe(HERE) is None
    record.write_text(f"complete {'b' * 64}\n")
    difference = replace(machine.image, base=base(here)).probe(HERE)
    assert difference is not None and "another stage" in difference.summary
    taken(replace(machine, image=replace(machine.image, base=base(here))))


def test_an_image_that_is_touched_is_read_and_a_damaged_one_is_seen(machine: Machine) -> None:
    path = taken(machine)
    os.utime(path, (1, 1))
    assert machine.image.probe(HERE) is None
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    difference = machine.image.probe(HERE)
    assert difference is not None and "recorded checksum" in difference.summary
    with pytest.raises(StepFailed, match="does not match its checksum file"):
        machine.proof.apply(HERE, silent)


@pytest.mark.parametrize("missing", ["", ".sha256", ".info"])
def test_an_unfinished_image_is_none(machine: Machine, missing: str) -> None:
    path = taken(machine)
    path.with_name(path.name + missing).unlink()
    assert machine.image.probe(HERE) is not None
    machine.image.apply(HERE, silent)
    machine.image.verify(HERE)


def test_a_new_image_needs_a_new_proof(machine: Machine) -> None:
    taken(machine)
    machine.proof.apply(HERE, silent)
    (machine.root / "etc/new").write_text("new\n")
    taken(machine)
    assert machine.proof.probe(HERE) is not None


def test_chapter_09_takes_only_an_image_whose_proof_holds(machine: Machine) -> None:
    path = Path(machine.image.path)
    needed = ImageProof(str(path))
    assert said(needed) == "there is no image with its checksum beside it"
    taken(machine)
    assert said(needed) == "there is no proof of it that holds"
    machine.proof.apply(HERE, silent)
    assert needed.probe(HERE) is None
    os.utime(path, (1, 1))
    assert needed.probe(HERE) is None
    whole = path.read_bytes()
    # the proof is older than the image, though checksum and record are those of the proven one
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert said(needed) == "it is another one than was proven"
    path.write_bytes(whole)
    path.with_name(path.name + ".sha256").write_text(f"{'0' * 64}  {path.name}\n")
    assert said(needed) == "there is no proof of it that holds"


def said(resource: Resource) -> str:
    """The last part of what a probe finds."""
    difference = resource.probe(HERE)
    assert difference is not None
    return difference.summary.rpartition(": ")[2]


def test_a_host_key_in_the_image_fails_the_proof(machine: Machine, tmp_path: Path) -> None:
    path = Path(taken(machine))
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    options = ("--numeric-owner", "--xattrs", "--xattrs-include=*")
    sh("tar", "-C", unpacked, *options, "-xpf", path)
    (unpacked / "etc/ssh/ssh_host_rsa_key").write_text("secret\n")
    sh("tar", "-C", unpacked, "--zstd", "-cf", path, ".")
    digest = sh("sha256sum", path).split()[0]
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")
    with pytest.raises(StepFailed) as caught:
        machine.proof.apply(HERE, silent)
    assert "no host keys of sshd: ./etc/ssh/ssh_host_rsa_key" in caught.value.message
    assert "file capabilities: ./usr/bin/pinger" in caught.value.message
    assert machine.proof.probe(HERE) is not None


def test_a_share_that_is_not_mounted_is_refused(machine: Machine) -> None:
    path = str(machine.root / "var/images/base.tar.zst")
    with pytest.raises(StepFailed, match="the share is not mounted"):
        replace(machine.image, path=path).apply(HERE, silent)
    assert not Path(path).exists()


def test_a_separate_usr_is_refused(machine: Machine) -> None:
    sh("mount", "-t", "tmpfs", "usr", machine.root / "usr")
    try:
        with pytest.raises(StepFailed, match="a file system of its own"):
            machine.image.apply(HERE, silent)
    finally:
        sh("umount", machine.root / "usr")


def test_a_root_at_rest(machine: Machine, tmp_path: Path) -> None:
    sh("sync", "--file-system", machine.root)
    resting = tmp_path / "resting"
    shutil.copy(machine.device, resting)
    loop = sh("losetup", "--find", "--show", resting).strip()
    try:
        image = replace(machine.image, device=loop)
        image.apply(HERE, silent)
        image.verify(HERE)
        machine.proof.apply(HERE, silent)
    finally:
        sh("losetup", "--detach", loop)


def given_from(machine: Machine, folder: Path) -> GivenImage:
    """The machine's image, as one that was taken elsewhere and lies on the controller."""
    (machine.root / RECORD).write_text(f"complete {'a' * 64}\n")
    shutil.move(taken(machine).parent, folder)
    local = folder / "base.tar.zst"
    return GivenImage(machine.image.path, "a base", str(machine.root), local=str(local))


def test_an_image_that_was_taken_elsewhere_is_brought_and_proven_here(
    machine: Machine, tmp_path: Path
) -> None:
    image = given_from(machine, tmp_path / "elsewhere")
    found = image.probe(HERE)
    assert found is not None and found.summary == f"bring the image {image.path}: there is none"
    image.apply(HERE, silent)
    image.verify(HERE)
    # to whoever asks, it is as if it had been taken here
    assert machine.image.probe(HERE) is None
    record = parse_record(Path(f"{image.path}.info").read_text())
    offered = parse_record(Path(f"{image.local}.info").read_text())
    assert record["modified"] != offered["modified"]
    assert record | {"modified": ""} == offered | {"modified": ""}
    machine.proof.apply(HERE, silent)
    machine.proof.verify(HERE)
    # what is here already needs no file on the controller
    shutil.rmtree(tmp_path / "elsewhere")
    assert image.probe(HERE) is None


def test_an_image_of_another_base_or_stage_is_not_brought(machine: Machine, tmp_path: Path) -> None:
    image = given_from(machine, tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="because it was taken of another base"):
        replace(image, base="other").probe(HERE)
    (machine.root / RECORD).write_text(f"complete {'b' * 64}\n")
    with pytest.raises(BadInput, match="because it was taken of another stage"):
        image.probe(HERE)
    assert not Path(image.path).exists()
    # where there is no root yet, a plan goes on
    (machine.root / RECORD).unlink()
    assert image.probe(HERE) is not None


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        ("", "because it has a wrong checksum"),
        (".sha256", "because its record belongs to another one"),
        (".info", "because its record belongs to another one"),
    ],
)
def test_a_damaged_image_on_the_controller_is_not_brought(
    machine: Machine, tmp_path: Path, end: str, sentence: str
) -> None:
    image = given_from(machine, tmp_path / "elsewhere")
    file = Path(image.local + end)
    # for .sha256 and .info, of their checksum
    data = bytearray(file.read_bytes())
    at = data.index(b"sha256=") + 7 if end == ".info" else 0 if end else len(data) // 2
    data[at] = data[at] ^ 1 if not end else ord("0") if data[at] != ord("0") else ord("1")
    file.write_bytes(data)
    with pytest.raises(BadInput, match=sentence):
        image.probe(HERE)
    with pytest.raises(BadInput, match=sentence):
        image.apply(HERE, silent)
    file.unlink()
    with pytest.raises(BadInput, match="cannot read|cannot take"):
        image.probe(HERE)
    assert not Path(image.path).exists()


def test_an_image_is_not_brought_to_a_share_that_is_not_mounted(
    machine: Machine, tmp_path: Path
) -> None:
    image = given_from(machine, tmp_path / "elsewhere")
    path = str(machine.root / "var/images/base.tar.zst")
    with pytest.raises(StepFailed, match="cannot bring .* the share is not mounted"):
        replace(image, path=path).apply(HERE, silent)
    assert not Path(path).exists()


def test_typed_by_hand_it_is_found_as_well(machine: Machine, tmp_path: Path) -> None:
    image = given_from(machine, tmp_path / "elsewhere")
    there, copy, check = image.commands()
    assert copy.by_hand() == f"scp {image.local} dom0:{image.path}  # on the controller"
    copied = f"cp {image.local} {image.path}"
    text = "\n".join([there.text, copied, check.text, *(each.text for each in image.recorded())])
    sh("sh", "-euc", text)
    assert image.probe(HERE) is None


def test_recorded_listing() -> None:
    members = parse_listing((RECORDED / "tar-listing.txt").read_text())
    by_name = {member.name: member for member in members}
    assert by_name["./usr/bin/ping"].xattrs == ("security.capability",)
    assert by_name["./dev/console"].mode == "crw-rw-rw-"
    assert by_name["./dev/console"].size == "5,1"
    assert by_name["./usr/bin/ping4"].mode[0] == "l"
    assert "./mnt/share/" in by_name
    rows = statements(members, ["./usr/bin/ping"], ("./mnt/share/",))
    # it was taken when the image still had those of dom0
    assert [row["statement"] for row in rows if row["holds"] == "no"] == ["nobody's SSH keys"]


@given(st.text())
def test_any_text_is_no_listing_or_a_listing(text: str) -> None:
    for member in parse_listing(text):
        assert member.name is not None


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]+", fullmatch=True), st.from_regex(r"[!-~]*", fullmatch=True)
    )
)
def test_records_are_read_back(values: dict[str, str]) -> None:
    assert parse_record("".join(f"{k}={v}\n" for k, v in values.items())) == values
