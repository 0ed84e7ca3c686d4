"""Whether a guest runs: xl's state column decides, wherever it is asked."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from xenlab.chapters.guests import PowerCycled
from xenlab.command import Command
from xenlab.errors import StepFailed, Unreachable
from xenlab.host import Host
from xenlab.platform.choice import services
from xenlab.platform.power import Manual
from xenlab.platform.xl import Xl
from xenlab.resources.base import Resource
from xenlab.resources.domain import FOLLOW, LOGIN, PANIC, ConsoleAnswers, DomainRebooted
from xenlab.resources.ssh_access import GuestAnswers
from xenlab.resources.xen import parse_overview, require_running, standing
from xenlab.transport.local import Local
from xenlab.transport.ssh import SSH, Wait
from xenlab.transport.ssh_config import Target

RECORDED = (Path(__file__).parents[1] / "recorded" / "xl" / "list.txt").read_text()
STANDING = {
    "--p---": "paused",
    "---s--": "shut down",
    "---sc-": "crashed",
    "----c-": "crashed",
    "-----d": "dying",
}
PANICKED = "[   3.1] Kernel panic - not syncing: sysrq triggered crash"

Dom0 = Callable[[str], Host]


def silent(what: str, done: float | None = None) -> None:
    """A report that nobody reads."""


@pytest.fixture
def dom0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dom0:
    """Makes a machine whose xl prints what was recorded, with domu1 in the state of these letters.

    ``xl domid`` answers for every domain that is listed, as the real one does; what else xl is
    told goes to the file ``told``.
    """
    program = f"""#!/bin/sh
    cd {tmp_path}
    case $1 in
        list) if [ $# = 1 ]; then cat list; else sed -n "1p; /^$2 /p" list; fi ;;
        domid) awk -v name="$2" '$1 == name {{ print $2; found = 1 }} END {{ exit !found }}' list ;;
        destroy) echo "$@" >> told; sed -i "/^$2 /d" list ;;
        *) echo "$@" >> told ;;
    esac
    """
    (tmp_path / "xl").write_text(program)
    (tmp_path / "xl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    log = tmp_path / "guest-domu1.log"
    log.write_text(f"Booting\r\n{PANICKED}\r\n")
    monkeypatch.setattr("xenlab.resources.xen.log_path", lambda name: str(log))

    def made(letters: str) -> Host:
        lines = [
            line.replace("-b----", letters) if line.startswith("domu1 ") else line
            for line in RECORDED.splitlines(keepends=True)
            if letters or not line.startswith("domu1 ")
        ]
        (tmp_path / "list").write_text("".join(lines))
        (tmp_path / "told").write_text("")
        return Host(Local())

    return made


@pytest.mark.parametrize(("letters", "state"), STANDING.items())
def test_a_domain_that_stands_is_not_taken_for_one_that_runs(
    dom0: Dom0, letters: str, state: str
) -> None:
    host, xl = dom0(letters), Xl()
    for resource in (xl.running("domu1"), xl.all_running(["domu1", "domu2"])):
        difference = resource.probe(host)
        assert difference is not None and state in difference.summary
        assert "domu2" not in difference.summary
        assert (PANICKED in difference.summary) == (state == "crashed")
    actions: tuple[Resource, ...] = (ConsoleAnswers("domu1"), DomainRebooted("domu1"))
    for resource in actions:
        with pytest.raises(StepFailed, match=f"domu1 does not run: it is {state}") as refused:
            resource.apply(host, silent)
        assert (PANICKED in str(refused.value)) == (state == "crashed")
    assert state in standing(host, "domu1")
    assert host.test(xl.gone("domu1")) and not host.test(xl.gone("domu2"))


@pytest.mark.parametrize("letters", ["r-----", "-b----", "------"])
def test_a_domain_that_computes_or_waits_runs(dom0: Dom0, letters: str) -> None:
    host, xl = dom0(letters), Xl()
    assert xl.running("domu1").probe(host) is None
    assert xl.all_running(["domu1", "domu2"]).probe(host) is None
    assert require_running(host, "domu1").id == 4
    assert standing(host, "domu1") == ""
    assert not host.test(xl.gone("domu1"))
    assert set(xl.domains(host)["state"]) == {"running"}


def test_a_domain_that_is_not_there(dom0: Dom0) -> None:
    host, xl = dom0(""), Xl()
    assert host.test(xl.gone("domu1"))
    # this machine is no dom0 that has just booted: nobody starts that domain
    assert standing(host, "domu1") == "domu1 does not run: there is no such domain"
    with pytest.raises(StepFailed, match="domu1 does not run"):
        require_running(host, "domu1")
    for resource in (xl.stopped("domu1"), xl.destroyed("domu1")):
        assert resource.probe(host) is None


def test_what_makes_each_run_again(dom0: Dom0, tmp_path: Path) -> None:
    again = "destroy domu1\ncreate /etc/xen/domu1.cfg\n"
    wanted = {"-b----": "", "--p---": "unpause domu1\n", "---s--": again, "---sc-": again}
    for letters, told in wanted.items():
        Xl().running("domu1").apply(dom0(letters), silent)
        assert (tmp_path / "told").read_text() == told


def test_what_stops_each(dom0: Dom0, tmp_path: Path) -> None:
    # a paused guest hears nothing until it goes on, a crashed one never: `xl shutdown -w` waits
    asked, gone = "shutdown -ww domu1\n", "destroy domu1\n"
    wanted = {"-b----": asked, "--p---": f"unpause domu1\n{asked}", "---sc-": gone, "": ""}
    for letters, told in wanted.items():
        Xl().stopped("domu1").apply(dom0(letters), silent)
        assert (tmp_path / "told").read_text() == told


def test_who_watches_a_boot_sees_that_the_guest_stands(dom0: Dom0, tmp_path: Path) -> None:
    log = tmp_path / "guest-domu1.log"
    values = (log, log.stat().st_size, LOGIN, PANIC, "domu1", 300, "0.02")
    script = FOLLOW + 'follow "$1" "$2" "$3" "$4" "$5" "$6" "$7"\n'
    for letters, status in (("---sc-", 57), ("--p---", 58), ("-----d", 53), ("", 53)):
        watched = dom0(letters).run(Command.script(script, *values), check=False, timeout=280)
        assert watched.status == status


def deaf(dom0: Host) -> Host:
    """A guest that does not answer, whose domain dom0 knows."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    wait = Wait(in_vain=lambda: standing(dom0, "domu1"))
    return Host(SSH(Target("127.0.0.1", port=port), wait=wait))


def test_nobody_waits_for_a_guest_that_is_not_there(dom0: Dom0) -> None:
    with pytest.raises(Unreachable, match="domu1 does not run: there is no such domain"):
        GuestAnswers("domu1", deaf(dom0(""))).apply(Host(Local()), silent)


def test_nobody_waits_for_a_guest_that_crashed(dom0: Dom0) -> None:
    with pytest.raises(Unreachable, match=r"domu1 does not run: it is crashed(?s:.)*Kernel panic"):
        GuestAnswers("domu1", deaf(dom0("---sc-"))).apply(Host(Local()), silent)


def test_a_guest_that_came_back_and_crashed_did_not_come_back(dom0: Dom0) -> None:
    names = ("domu1", "domu2", "domu3")
    cycle = PowerCycled(names, Xl(), services("debian"), Manual(), Host(Local()))
    with pytest.raises(StepFailed, match=r"domu1 \(crashed\), domu2, domu3 came back, wanted"):
        cycle.verify(dom0("---sc-"))


def test_the_overview_says_what_does_not_run() -> None:
    text = RECORDED.replace("-b----", "--p---", 1) + "----\n[]\n----\n----\n"
    assert "domu1 (320 MiB, paused), domu2 (320 MiB)" in parse_overview(text)["domains"]
