"""Roots that are unpacked, moved and mounted for real, as root of a namespace of their own."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from tests.namespace import Namespace

from xenlab.errors import BadInput, CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.archive import RECORD, Archive, Upload, checksum_of
from xenlab.resources.files import Relocated
from xenlab.resources.nfs import BIND, Mount


@pytest.fixture
def host() -> Iterator[Host]:
    namespace = Namespace()
    yield Host(namespace)
    namespace.end()


@pytest.fixture
def root() -> Iterator[Host]:
    """The same as this machine's own root, who may mount a disk."""
    namespace = Namespace(users=True)
    yield Host(namespace)
    namespace.end()


def quiet(what: str, done: float | None = None) -> None:
    pass


def tarball(path: Path, **files: str) -> str:
    """A tarball with an xattr on each file; returns its checksum."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"./{name.replace('__', '/')}")
            member.size = len(text)
            member.mode = 0o4755
            member.pax_headers = {"SCHILY.xattr.user.kept": "yes"}
            tar.addfile(member, BytesIO(text.encode()))
    return checksum_of(path)


class TestArchive:
    def test_from_the_controller_once(self, host: Host, tmp_path: Path) -> None:
        source, root = tmp_path / "the stage's.tar", tmp_path / "new root"
        (root / "mnt/domuswap").mkdir(parents=True)
        checksum = tarball(source, etc__hostname="box\n", bin__ping="x")
        archive = Archive(str(source), checksum, str(root), store=f"{root}/mnt/share/stage")
        found = archive.probe(host)
        assert found is not None
        assert found.summary == f"unpack the stage's.tar into {root}"
        archive.apply(host, quiet)
        archive.verify(host)
        assert (root / "bin/ping").stat().st_mode & 0o7777 == 0o4755
        assert os.getxattr(root / "bin/ping", "user.kept") == b"yes"
        assert not (root / "mnt/share/stage").exists()

    def test_from_the_host(self, host: Host, tmp_path: Path) -> None:
        source, root = tmp_path / "image.tar", tmp_path / "root"
        root.mkdir()
        archive = Archive(str(source), tarball(source, etc__hostname="box\n"), str(root))
        archive.apply(host, quiet)
        archive.verify(host)

    def test_the_record_in_the_archive_does_not_count(self, host: Host, tmp_path: Path) -> None:
        source, root = tmp_path / "image.tar", tmp_path / "root"
        root.mkdir()
        checksum = tarball(source, **{"etc__xenlab-generation": "complete other\n"})
        Archive(str(source), checksum, str(root)).apply(host, quiet)
        assert (root / RECORD).read_text() == f"complete {checksum}\n"

    def test_half_unpacked_is_done_again(self, host: Host, tmp_path: Path) -> None:
        source, root = tmp_path / "stage.tar", tmp_path / "root"
        root.mkdir()
        files = {f"usr__{number}": "x" * 1000 for number in range(50)}
        checksum = tarball(source, **files)
        whole = source.read_bytes()
        source.write_bytes(whole[:20000])
        broken = Archive(str(source), checksum_of(source), str(root))
        with pytest.raises(CommandFailed):
            broken.apply(host, quiet)
        found = broken.probe(host)
        assert found is not None and "again: it was not finished" in found.summary
        assert (root / "usr/3").exists() and not (root / "usr/49").exists()
        source.write_bytes(whole)
        (root / RECORD).write_text(f"begun {checksum}\n")
        archive = Archive(str(source), checksum, str(root))
        assert archive.refusal(host) == ""
        archive.apply(host, quiet)
        archive.verify(host)
        assert (root / "usr/49").exists()

    def test_other_files_are_not_written_over(self, host: Host, tmp_path: Path) -> None:
        source, root = tmp_path / "stage.tar", tmp_path / "root"
        (root / "home").mkdir(parents=True)
        (root / "home/thesis").write_text("mine")
        archive = Archive(str(source), tarball(source, home__thesis="yours"), str(root))
        with pytest.raises(
            StepFailed, match=r"already holds other files \(there is .*/home/thesis"
        ):
            archive.apply(host, quiet)
        assert "already holds other files (there is " in archive.refusal(host)
        assert (root / "home/thesis").read_text() == "mine"

    def test_another_generation_is_not_written_over(self, host: Host, tmp_path: Path) -> None:
        root = tmp_path / "root"
        root.mkdir()
        first, second = tmp_path / "one.tar", tmp_path / "two.tar"
        Archive(str(first), tarball(first, a="1"), str(root)).apply(host, quiet)
        other = Archive(str(second), tarball(second, a="2"), str(root))
        assert other.probe(host) is not None
        with pytest.raises(StepFailed) as refused:
            other.apply(host, quiet)
        assert "already holds other files (complete " in refused.value.message
        assert other.refusal(host) == refused.value.message
        assert (root / "a").read_text() == "1"

    def test_a_wrong_checksum_touches_nothing(self, host: Host, tmp_path: Path) -> None:
        source, root = tmp_path / "stage.tar", tmp_path / "root"
        root.mkdir()
        tarball(source, a="1")
        sent = Archive(str(source), "a" * 64, str(root), store=f"{root}/stage")
        with pytest.raises(BadInput, match="wrong checksum"):
            sent.probe(host)
        with pytest.raises(BadInput, match="wrong checksum"):
            sent.apply(host, quiet)
        with pytest.raises(StepFailed, match="missing or has a wrong checksum"):
            Archive(str(source), "a" * 64, str(root)).apply(host, quiet)
        assert list(root.iterdir()) == []

    def test_no_root_yet_is_a_difference(self, host: Host, tmp_path: Path) -> None:
        source = tmp_path / "stage.tar"
        archive = Archive(str(source), tarball(source, a="1"), f"{tmp_path}/none")
        assert archive.probe(host) is not None
        assert archive.probe(host.inside(f"{tmp_path}/none")) is not None


class TestUpload:
    def test_once_and_again_when_it_changes(self, host: Host, tmp_path: Path) -> None:
        local, remote = tmp_path / "source.tar.xz", tmp_path / "share/src/source.tar.xz"
        local.write_bytes(b"one")
        upload = Upload(str(local), str(remote))
        assert upload.probe(host) is not None
        upload.apply(host, quiet)
        upload.verify(host)
        local.write_bytes(b"two")
        assert upload.probe(host) is not None
        upload.apply(host, quiet)
        assert remote.read_bytes() == b"two"
        upload.verify(host)

    def test_a_copy_that_was_cut_is_sent_again(self, host: Host, tmp_path: Path) -> None:
        local, remote = tmp_path / "source", tmp_path / "copy"
        local.write_bytes(b"x" * 1000)
        upload = Upload(str(local), str(remote))
        upload.apply(host, quiet)
        remote.write_bytes(b"x" * 999)
        assert upload.probe(host) is not None
        upload.apply(host, quiet)
        upload.verify(host)

    def test_a_missing_file(self, host: Host, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="cannot read .*: because "):
            Upload(f"{tmp_path}/none", f"{tmp_path}/copy").probe(host)


class TestRelocated:
    def test_content_moves_and_the_link_leads_to_it(self, host: Host, tmp_path: Path) -> None:
        source, share = tmp_path / "usr src", tmp_path / "share/src"
        (source / "linux").mkdir(parents=True)
        (source / "linux/Makefile").write_text("all:\n")
        moved = Relocated(str(source), str(share))
        assert moved.probe(host) is not None
        moved.apply(host, quiet)
        moved.verify(host)
        assert source.is_symlink()
        assert (source / "linux/Makefile").read_text() == "all:\n"

    def test_nothing_there_and_a_share_that_is_in_use(self, host: Host, tmp_path: Path) -> None:
        share = tmp_path / "share"
        share.mkdir()
        (share / "other").write_text("kept")
        Relocated(f"{tmp_path}/path", str(share)).apply(host, quiet)
        assert (tmp_path / "path/other").read_text() == "kept"

    def test_the_copy_is_on_disk_before_the_original_goes(self, root: Host, tmp_path: Path) -> None:
        """A power cut: what the disk holds is all that is left, whatever the kernel remembered."""
        disk, share, source = tmp_path / "disk", tmp_path / "share", tmp_path / "src"
        (source / "linux").mkdir(parents=True)
        (source / "linux/Makefile").write_bytes(b"all:\n" * 4096)
        share.mkdir()
        disk.write_bytes(bytes(16 << 20))
        root.run(f"mkfs.ext4 -q '{disk}' && mount -o loop,commit=600 '{disk}' '{share}'; sync")
        Relocated(str(source), f"{share}/src").apply(root, quiet)
        after = tmp_path / "after"
        shutil.copy(disk, after)
        (again := tmp_path / "again").mkdir()
        root.run(f"mount -o loop '{after}' '{again}'")
        assert root.run(f"cat '{again}/src/linux/Makefile'").out == b"all:\n" * 4096

    def test_cut_off_before_the_original_is_deleted(self, root: Host, tmp_path: Path) -> None:
        disk, place, share = tmp_path / "disk", tmp_path / "root", tmp_path / "share"
        place.mkdir()
        disk.write_bytes(bytes(16 << 20))
        root.run(f"mkfs.ext4 -q '{disk}' && mount -o loop '{disk}' '{place}'")
        root.run(f"mkdir '{place}/src' && echo all: > '{place}/src/Makefile'")
        root.run(f"chattr +i '{place}/src/Makefile'")
        moved = Relocated(f"{place}/src", str(share))
        with pytest.raises(CommandFailed):
            moved.apply(root, quiet)
        assert (share / "Makefile").read_text() == "all:\n"
        assert root.run(f"cat '{place}/src/Makefile'").stdout == "all:\n"
        assert moved.probe(root) is not None
        root.run(f"chattr -i '{place}/src.xenlab-moved/Makefile'")
        moved.apply(root, quiet)
        moved.verify(root)
        assert root.run(f"ls '{place}'").stdout.split() == ["lost+found", "src"]

    @pytest.mark.parametrize("copied", [True, False])
    def test_cut_off_before_it_is_linked(self, host: Host, tmp_path: Path, copied: bool) -> None:
        """Whether its copy is still there when the next run comes, or the share was made anew."""
        source, share = tmp_path / "src", tmp_path / "share/src"
        (aside := tmp_path / "src.xenlab-moved").mkdir()
        (aside / "Makefile").write_text("all:\n")
        if copied:
            share.mkdir(parents=True)
            (share / "Makefile").write_text("all:\n")
        moved = Relocated(str(source), str(share))
        assert moved.probe(host) is not None
        moved.apply(host, quiet)
        moved.verify(host)
        assert (source / "Makefile").read_text() == "all:\n"
        assert not aside.exists()

    def test_a_mount_below_it_stops_it(self, host: Host, tmp_path: Path) -> None:
        (tmp_path / "path/inner").mkdir(parents=True)
        host.run(f"mount -t tmpfs none '{tmp_path}/path/inner'; touch '{tmp_path}/path/inner/x'")
        with pytest.raises(StepFailed, match="mounted below"):
            Relocated(f"{tmp_path}/path", f"{tmp_path}/share").apply(host, quiet)
        assert host.test(f"test -e '{tmp_path}/path/inner/x'")


class TestMount:
    def test_once(self, host: Host, tmp_path: Path) -> None:
        place = Mount("none", f"{tmp_path}/new root\\x", "tmpfs", "size=1m")
        assert place.probe(host) is not None
        place.apply(host, quiet)
        place.verify(host)
        with pytest.raises(StepFailed, match="something else"):
            place.apply(host, quiet)

    def test_binds_show_what_is_mounted_below(self, host: Host, tmp_path: Path) -> None:
        Mount("none", f"{tmp_path}/run", "tmpfs").apply(host, quiet)
        Mount("none", f"{tmp_path}/run/lock", "tmpfs").apply(host, quiet)
        host.run(f"touch '{tmp_path}/run/lock/here'")
        bind = Mount(f"{tmp_path}/run", f"{tmp_path}/root/run", BIND)
        bind.apply(host, quiet)
        bind.verify(host)
        assert host.test(f"test -e '{tmp_path}/root/run/lock/here'")
        host.run(f"umount '{tmp_path}/root/run/lock'")
        assert host.test(f"test -e '{tmp_path}/run/lock/here'"), "unmounting must not reach out"

    def test_another_device_there_is_no_success(self, host: Host, tmp_path: Path) -> None:
        Mount("none", f"{tmp_path}/root", "tmpfs").apply(host, quiet)
        other = Mount("/dev/null", f"{tmp_path}/root")
        found = other.probe(host)
        assert found is not None and found.summary.endswith("where something else is now")
        with pytest.raises(StepFailed) as refused:
            other.apply(host, quiet)
        assert (
            refused.value.message
            == f"cannot mount /dev/null: because something else is mounted on {other.target}"
        )
        assert other.refusal(host) == refused.value.message
        assert Mount("/dev/null", f"{tmp_path}/elsewhere").refusal(host) == ""
