"""What the lab writes and reads as text: package sources, pins, ssh_config, archives, state."""

from __future__ import annotations

import io
import stat
import subprocess
from functools import partial
from pathlib import Path

import paramiko
import pytest

from xenlab import cache
from xenlab.errors import LabError
from xenlab_lab import access, lab, machine, media
from xenlab_lab.media import CpioWriter
from xenlab_lab.mirrors import FORGET_LOGIN, sources_from, without_login
from xenlab_lab.stage import fetch_source, maker, portage_stage

LISTING = """\
Packages|Debian|Debian|bookworm|http://mirror.example/debian/|main
Packages|Debian|Debian|bookworm|http://mirror.example/debian/|contrib
Translations|Debian|Debian|bookworm|http://mirror.example/debian/|main
Packages|Debian|Debian-Security|bookworm-security|http://mirror.example/security/|main
Packages|Debian Backports|Debian Backports|bookworm-backports|http://mirror.example/debian/|main
Packages|. nodistro|. nodistro|nodistro|https://elsewhere.example/|main
Packages|cloud|cloud|bookworm|https://cloud.example/apt/|main
"""


def test_only_debian_entries_of_the_suite_are_taken() -> None:
    assert sources_from(LISTING) == [
        "deb http://mirror.example/debian/ bookworm main",
        "deb http://mirror.example/security/ bookworm-security main",
    ]


def test_another_release_lends_its_mirrors() -> None:
    listing = LISTING.replace("bookworm", "trixie")
    assert sources_from(listing) == [
        "deb http://mirror.example/debian/ bookworm main",
        "deb http://mirror.example/debian/ bookworm-updates main",
        "deb http://mirror.example/security/ bookworm-security main",
    ]


@pytest.mark.parametrize("suite", cache.LINUX)
def test_another_suite_is_asked_of_the_same_mirrors(suite: cache.Release) -> None:
    found = sources_from(LISTING, suite)
    assert {entry.split()[2].partition("-")[0] for entry in found} == {suite}
    assert {entry.split()[1] for entry in found} == {
        entry.split()[1] for entry in sources_from(LISTING)
    }


@pytest.mark.parametrize("suite", cache.LINUX)
def test_the_file_that_a_site_names_says_which_stage_is_made(suite: cache.Release) -> None:
    made = maker(cache.stage_of(suite))
    assert isinstance(made, partial) and made.keywords == {"suite": suite}
    own = maker("/srv/own.tar.zst")
    assert isinstance(own, partial) and own.keywords == {"suite": cache.DEFAULT_RELEASE}
    assert maker("~/portage-stage.tar.zst") is portage_stage


def test_only_a_release_s_own_kernel_sources_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENLAB_CACHE", str(tmp_path))
    for path in ("/usr/src/linux-source-6.1.tar.xz", f"{tmp_path}/source/own.tar.xz", ""):
        fetch_source(path)
    assert [*tmp_path.iterdir()] == []


def test_no_login_of_a_mirror_gets_into_a_stage(tmp_path: Path) -> None:
    entry = "deb http://me:pass@mirror.example/debian bookworm main\n"
    plain = "deb http://mirror.example/debian bookworm main\n"
    assert without_login(entry) == plain
    assert without_login(plain) == plain
    file = tmp_path / "etc/apt/sources.list.d/0000.list"
    file.parent.mkdir(parents=True)
    file.write_text(entry + plain)
    # the hook's text, run as mmdebstrap runs it
    subprocess.run(["sh", "-ec", FORGET_LOGIN, "hook", str(tmp_path)], check=True)
    assert file.read_text() == plain * 2


def test_no_debian_entry_gives_none() -> None:
    assert sources_from("Packages|Ubuntu|Ubuntu|noble|http://u.example/|main\n") == []


@pytest.fixture
def own(tmp_path: Path) -> access.Access:
    folder = tmp_path / "a lab"
    folder.mkdir()
    it = access.Access(folder)
    it.create_keys()
    return it


def test_pins_follow_the_port_and_others_stay(own: access.Access) -> None:
    own.pin(1111)
    with own.known_hosts.open("a") as handle:
        handle.write("[127.0.0.1]:1111 ssh-ed25519 DOM0\n10.66.0.11 ssh-ed25519 GUEST\n")
    own.pin(2222)
    own.pin(2222)
    lines = own.known_hosts.read_text().splitlines()
    assert [line.split()[0] for line in lines] == [
        "[127.0.0.1]:2222",
        "[127.0.0.1]:2222",
        "10.66.0.11",
    ]
    assert lines[1].endswith("DOM0")


def test_config_is_understood_by_openssh_and_paramiko(own: access.Access) -> None:
    own.write_config(2222, {"domu1": "10.66.0.11"})
    for host, name, port in (("dom0", "127.0.0.1", "2222"), ("domu1", "10.66.0.11", "22")):
        said = subprocess.run(
            ["ssh", "-G", "-F", own.config, host], capture_output=True, text=True, check=True
        ).stdout
        read = dict(line.partition(" ")[::2] for line in said.splitlines())
        assert (read["hostname"], read["port"], read["user"]) == (name, port, "root")
        assert read["stricthostkeychecking"] == "true"
        assert read["identityfile"] == str(own.identity)
    config = paramiko.SSHConfig.from_path(str(own.config))
    found = config.lookup("domu1")
    assert found["hostname"] == "10.66.0.11"
    assert found["proxycommand"].endswith("-W 10.66.0.11:22 dom0")
    assert config.lookup("dom0")["port"] == "2222"


def test_the_way_to_a_guest_leads_over_dom0(tmp_path: Path) -> None:
    own = access.Access(tmp_path)
    own.write_config(2222, {"domu1": "10.66.0.11"})
    found = paramiko.SSHConfig.from_path(str(own.config)).lookup("domu1")
    assert (found["hostname"], found["proxyjump"]) == ("10.66.0.11", "dom0")


def test_keys_are_private_and_kept(own: access.Access) -> None:
    before = own.public_key
    assert stat.S_IMODE(own.identity.stat().st_mode) == 0o600
    own.create_keys()
    assert own.public_key == before
    own.identity.with_suffix(".pub").unlink()
    own.create_keys()
    assert own.public_key != before


def test_archive_is_read_by_cpio(tmp_path: Path) -> None:
    out = io.BytesIO()
    archive = CpioWriter(out)
    archive.folder("root/.ssh", mode=0o700)
    archive.file("root/.ssh/file", b"odd", mode=0o600)
    archive.close()
    assert len(out.getvalue()) % 512 == 0
    subprocess.run(
        ["cpio", "--quiet", "-idm", "--no-absolute-filenames"],
        input=out.getvalue(),
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "root/.ssh/file").read_bytes() == b"odd"
    assert stat.S_IMODE((tmp_path / "root/.ssh").stat().st_mode) == 0o700


def test_state_survives_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert lab.load_state(path) == lab.State()
    lab.save_state(path, lab.State(boot="disk", port=7, guests={"domu1": "10.66.0.11"}))
    assert lab.load_state(path).guests == {"domu1": "10.66.0.11"}
    path.write_text('{"boot": "tape"}')
    with pytest.raises(LabError, match="damaged"):
        lab.load_state(path)


def test_serial_is_derived_and_bounded() -> None:
    assert machine.serial_for("lab") == "XENLAB-LAB"
    with pytest.raises(LabError, match="too long"):
        machine.serial_for("x" * 14)


def test_no_kvm_device_means_no_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "KVM_DEVICE", tmp_path / "kvm")
    assert machine.kvm_usable() is False


# -- the firmware


def test_a_uefi_lab_keeps_its_firmwares_variables(tmp_path: Path) -> None:
    assert media.firmware_words("bios", tmp_path) == ()
    assert list(tmp_path.iterdir()) == []
    words = media.firmware_words("uefi", tmp_path)
    (own,) = tmp_path.iterdir()
    assert words[1].endswith("OVMF_CODE_4M.fd,readonly=on")
    assert words[3] == f"if=pflash,format=raw,file={own.name}"
    own.write_bytes(b"an entry")
    assert media.firmware_words("uefi", tmp_path) == words
    assert own.read_bytes() == b"an entry"


def test_without_ovmf_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "OVMF", tmp_path)
    with pytest.raises(LabError, match=r"no .*OVMF_CODE_4M\.fd\nTry: apt-get install ovmf"):
        media.firmware_words("uefi", tmp_path)


def test_a_lab_of_before_is_a_bios_machine(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_text('{"boot": "disk", "network": "open", "port": 2222}')
    assert lab.load_state(file).firmware == "bios"
    lab.save_state(file, lab.State(firmware="uefi"))
    assert lab.load_state(file).firmware == "uefi"
