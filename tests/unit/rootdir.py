"""A root directory with a few of this machine's programs in it, seen from inside by chroot."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from xenlab.host import Host
from xenlab.transport.local import Local

WRITING = (
    *("cat", "chmod", "chown", "cp", "id", "mkdir", "mktemp", "mv", "readlink", "rm"),
    *("sha256sum", "stat", "sync", "wc"),
)


def root_with(root: Path, *programs: str) -> Host:
    """Fill a directory with programs, those that files are written with, and their libraries."""
    for name in ("bin", "dev", "proc", "etc", "root", "run"):
        (root / name).mkdir(parents=True)
    (root / "dev" / "null").touch()
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\n")
    for name in dict.fromkeys(("sh", "env", *WRITING, *programs)):
        program = shutil.which(name)
        assert program, name
        shutil.copy(program, root / "bin" / name)
        listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
        for library in re.findall(r"/\S+", listing.stdout):
            place = root / library.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, place)
    return Host(Local()).inside(str(root))
