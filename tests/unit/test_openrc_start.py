"""Starting an OpenRC service that a boot may be starting at the same moment."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from xenlab.platform.openrc import FUNCTIONS

# No real boot begins a service between a look and a start on request, so a program stands in for
# rc-service(8): it answers from a list, with what OpenRC was seen to say on a busy dom0.
ANSWERS = """#!/bin/sh
read -r answer < answers
sed -i 1d answers
echo "$answer" "$@" >> asked
exit "${answer%% *}"
"""


@pytest.mark.parametrize(
    ("answers", "status", "verbs"),
    [
        (["0"], 0, ["status"]),
        (["3", "0"], 0, ["status", "start"]),
        (["8", "8", "0"], 0, ["status", "status", "status"]),
        # stopped; already starting; and then it runs
        (["3", "1", "8", "0"], 0, ["status", "start", "status", "status"]),
        (["3", "1", "3"], 1, ["status", "start", "status"]),
    ],
)
def test_a_start_that_the_boot_has_begun_is_waited_for(
    tmp_path: Path, answers: list[str], status: int, verbs: list[str]
) -> None:
    program = tmp_path / "rc-service"
    program.write_text(ANSWERS)
    program.chmod(0o755)
    (tmp_path / "answers").write_text("\n".join(answers) + "\n")
    script = f"set -eu; PATH={tmp_path}:$PATH\n{FUNCTIONS}\nasked start xendomains"
    done = subprocess.run(["/bin/sh", "-c", script], cwd=tmp_path)
    assert done.returncode == status
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [next(v for v in ("status", "start") if v in line.split()) for line in asked] == verbs
