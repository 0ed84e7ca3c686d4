"""Writing initramfs archives (cpio, "newc" format) without unpacking anything as root."""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Callable
from typing import BinaryIO

_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.LNKTYPE: stat.S_IFREG,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
_BLOCK = 512


class Writer:
    """Appends entries to an archive; `close()` ends it on a block boundary.

    Archives written one behind the other are unpacked in turn by the kernel.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0
        self._written = 0

    def folder(self, name: str, *, mode: int = 0o755) -> None:
        """Add a folder owned by root."""
        self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, data: bytes, *, mode: int = 0o644) -> None:
        """Add a regular file owned by root."""
        self._entry(name, stat.S_IFREG | mode, data)

    def tar(self, archive: tarfile.TarFile, keep: Callable[[tarfile.TarInfo], bool]) -> None:
        """Add the members of a seekable tar that `keep` wants; hard links become copies."""
        for member in archive:
            if not keep(member):
                continue
            if member.issym():
                data = member.linkname.encode()
            elif member.isreg() or member.islnk():
                source = archive.extractfile(member)
                assert source is not None
                data = source.read()
            else:
                data = b""
            self._entry(
                member.name,
                _KINDS[member.type] | stat.S_IMODE(member.mode),
                data,
                uid=member.uid,
                gid=member.gid,
                device=(member.devmajor, member.devminor),
            )

    def close(self) -> None:
        """Write the end mark and pad to a whole block."""
        self._entry("TRAILER!!!", 0, b"")
        self._write(b"\0" * (-self._written % _BLOCK))

    def _entry(
        self,
        name: str,
        mode: int,
        data: bytes,
        *,
        uid: int = 0,
        gid: int = 0,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        self._inode += 1
        path = name.encode().removeprefix(b"./") + b"\0"
        major, minor = device if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else (0, 0)
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (
            self._inode, mode, uid, gid, links, 0, len(data), 0, 0, major, minor, len(path), 0,
        )  # fmt: skip
        header = b"070701" + b"".join(b"%08X" % value for value in fields)
        for part in (header + path, data):
            self._write(part + b"\0" * (-len(part) % 4))

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._written += len(data)
