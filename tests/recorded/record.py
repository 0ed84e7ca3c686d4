"""Record what xl prints on a running lab, for the tests of its parser.

Usage: python tests/recorded/record.py SSH_CONFIG [HOST]      (HOST is dom0 unless given)

``list-standing.txt`` is another look's ``xl list``, after ``xl create -p`` of domu1 and a crash of
domu2, which has ``on_crash="preserve"``.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from xenlab.command import Command
from xenlab.host import Host
from xenlab.transport.ssh import SSH
from xenlab.transport.ssh_config import Target


def main(config: str, name: str = "dom0") -> None:
    """Replace ``tests/recorded/xl/list.txt`` by what the host prints now."""
    host = Host(SSH(Target(name, config)))
    folder = Path(__file__).parent / "xl"
    (folder / "list.txt").write_bytes(host.run(Command.argv("xl", "list")).out)
    version = host.run("dpkg-query -W xen-utils-common || true").stdout.strip()
    today = datetime.now(UTC).date()
    (folder / "ORIGIN").write_text(f"Recorded on a running lab, {today}: {version}\n")
    host.transport.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
