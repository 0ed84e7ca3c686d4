"""Files leave a machine with workers no more at a time than its line is to carry."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import pytest
from tests.fleet.rack import SECONDS, Rack

pytestmark = pytest.mark.timeout(4 * SECONDS)

COPIED = """
from pathlib import Path

class Copied(Made):
    def apply(self, host, report):
        def told(done, size):
            with open({log!r}, "a") as file:
                file.write(site + "\\n")

        host.upload(Path({big!r}), self.path, told)
"""


def test_so_many_uploads_as_allowed_go_on_at_a_time(make_rack: Callable[[int], Rack]) -> None:
    rack = make_rack(3)
    big, log = rack.folder / "big", rack.folder / "log"
    big.write_bytes(bytes(16 << 20))
    rack.chapter(
        "01_first",
        COPIED.format(log=str(log), big=str(big)),
        *rack.steps_for("01", what="Copied"),
    )
    words = ("fleet", "run", "-f", "fleet.yaml", "--workers", "3", "--canary", "0")
    done = rack.xenlab(*words, "--uploads", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    pieces = log.read_text().split()
    assert len(pieces) > 30, "each is sent in many pieces"
    assert sorted(host for host, _ in groupby(pieces)) == ["host0", "host1", "host2"]
    for number in range(3):
        assert rack.made("01.1", number).stat().st_size == 16 << 20
