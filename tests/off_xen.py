"""The real xl(1), which reads a domain's file where no Xen runs.

xl opens the hypervisor and the store before it reads anything, ``create -n`` included. Here the one
answers 0 to every call (``off_xen.c``), and the other is a socket on which nobody speaks: what xl
says of a file is all its own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
UNPACKED = ROOT / ".venv" / "xen-utils"
"""Where ``scripts/bootstrap test`` unpacks xl with its libraries."""


class OffXen:
    """xl with a hypervisor that answers nothing, made in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self.program,) = UNPACKED.glob("usr/lib/xen-*/bin/xl")
        self.shim = folder / "off_xen.so"
        build = ["gcc", "-shared", "-fPIC", "-o", str(self.shim), str(ROOT / "tests/off_xen.c")]
        subprocess.run(build, check=True)

    def create(self, text: str) -> subprocess.CompletedProcess[str]:
        """``xl create -n`` of a file with this text."""
        file = self.folder / "domain.cfg"
        file.write_text(text)
        store = self.folder / "store"
        store.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(store))
            silent.listen()
            return subprocess.run(
                [str(self.program), "create", "-n", str(file)],
                env=os.environ
                | {
                    "LD_LIBRARY_PATH": str(UNPACKED / "usr/lib/x86_64-linux-gnu"),
                    "LD_PRELOAD": str(self.shim),
                    "XENSTORED_PATH": str(store),
                },
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

    def read(self, text: str) -> dict[str, Any]:
        """What xl has understood of such a file: libxl's own words for it."""
        done = self.create(text)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found
