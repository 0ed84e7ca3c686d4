"""Domains where there is no Xen, and the following of a console's log."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pytest
from tests.sites import lab_site

from xenlab.chapters.guests import FurtherDisksApart
from xenlab.command import Command
from xenlab.errors import BadInput, CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.platform.xl import Xl
from xenlab.resources.base import PathsExist
from xenlab.resources.domain import FOLLOW, LOGIN, PANIC, DomainRebooted, DomainStopped
from xenlab.resources.xen import DomainConfig, domain, log_path
from xenlab.site.schema import GuestDisk
from xenlab.transport.local import Local

HOST = Host(Local())


def silent(what: str, done: float | None = None) -> None:
    """A report that nobody reads."""


def follow(log: Path, start: int, seconds: int) -> tuple[int, str]:
    script = FOLLOW + 'follow "$1" "$2" "$3" "$4" nobody "$5"\n'
    command = Command.script(script, log, start, LOGIN, PANIC, seconds)
    result = HOST.run(command, check=False)
    return result.status, result.stdout


def test_follow_shows_what_is_new_up_to_the_prompt(tmp_path: Path) -> None:
    log = tmp_path / "guest-domu1.log"
    log.write_text("an earlier boot\ndomu1 login: ")
    start = log.stat().st_size

    def boot() -> None:
        for piece in ("Linux version\r\n", "Debian GNU/Linux\r\n\r\ndomu1 log", "in: "):
            time.sleep(0.6)
            with log.open("a") as out:
                out.write(piece)

    writer = threading.Thread(target=boot)
    writer.start()
    status, shown = follow(log, start, 30)
    writer.join()
    assert status == 0
    assert shown == "Linux version\r\nDebian GNU/Linux\r\n\r\ndomu1 login: "


def test_follow_ends_at_a_panic(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("[ 1.0] Kernel panic - not syncing: VFS: Unable to mount root fs\n")
    assert follow(log, 0, 30)[0] == 52


def test_follow_starts_over_where_the_log_was_rotated(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("domu1 login: ")
    assert follow(log, 5000, 30) == (0, "domu1 login: ")


def test_follow_takes_bytes_that_are_no_text(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\x00\xff\x1b[0m\r\n domu1 login: ")
    assert follow(log, 0, 30)[0] == 0


def test_follow_gives_up(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert follow(log, 0, 1)[0] == 54
    log.write_text("Loading\n")
    assert follow(log, 0, 1) == (51, "Loading\n")


def test_follow_goes_on_in_the_new_log_after_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\n")

    def rotate() -> None:
        time.sleep(1.5)
        log.rename(tmp_path / "log.1")
        log.write_text("two\ndomu1 login: ")

    writer = threading.Thread(target=rotate)
    writer.start()
    outcome = follow(log, 0, 30)
    writer.join()
    assert outcome == (0, "one\ntwo\ndomu1 login: ")


def test_follow_keeps_little_of_what_a_guest_writes_without_end(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def flood() -> None:
        for piece in ("x" * 400_000, "y" * 2000, "domu1 log", "in: "):
            time.sleep(1.2)
            with log.open("a") as out:
                out.write(piece)

    writer = threading.Thread(target=flood)
    writer.start()
    script = FOLLOW + 'follow "$1" 0 "$2" "$3" nobody 30 0.7 > /dev/null; echo "${#new}"\n'
    kept = HOST.run(Command.script(script, log, LOGIN, PANIC)).stdout
    writer.join()
    assert int(kept) < 100_000


def test_off_xen_there_is_something_to_do_and_no_certainty(tmp_path: Path) -> None:
    xl = Xl()
    difference = xl.running("domu1").probe(HOST)
    assert difference is not None
    assert difference.summary == "create domu1 from /etc/xen/domu1.cfg"
    both = xl.all_running(["domu1", "domu2"]).probe(HOST)
    assert both is not None
    assert both.summary == "create domu1, domu2"
    assert xl.stopped("domu1").probe(HOST) is None
    with pytest.raises(CommandFailed):
        domain(HOST, "domu1")
    with pytest.raises(CommandFailed):
        DomainStopped("domu1").verify(HOST)
    with pytest.raises(CommandFailed):
        DomainRebooted("domu1", notes=str(tmp_path)).verify(HOST)


def test_actions_say_what_they_will_do() -> None:
    xl = Xl()
    summaries = [
        difference.summary
        for resource in (xl.console("domu1"), xl.rebooted("domu1"))
        if (difference := resource.probe(HOST)) is not None
    ]
    assert summaries == [
        "open the console of domu1, press return, leave with Ctrl-]",
        "reboot domu1 (it does not run)",
    ]
    assert xl.destroyed("domu1").probe(HOST) is None


def test_a_configuration_that_nobody_could_check_is_not_put_in_place(tmp_path: Path) -> None:
    path = tmp_path / "domu1.cfg"
    path.write_text("the old one\n")
    with pytest.raises(StepFailed, match="xl refuses"):
        DomainConfig(str(path), "name = \n").apply(HOST, silent)
    assert path.read_text() == "the old one\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["domu1.cfg"]


def test_a_configuration_differs_by_its_text(tmp_path: Path) -> None:
    path = tmp_path / "domu1.cfg"
    config = DomainConfig(str(path), 'name = "domu1"\n')
    first = config.probe(HOST)
    assert first is not None
    assert '+name = "domu1"' in first.diff
    path.write_text('name = "domu1"\n')
    path.chmod(0o644)
    assert config.probe(HOST) is None


def test_missing_paths_are_named(tmp_path: Path) -> None:
    there = tmp_path / "it's there"
    there.touch()
    assert PathsExist((str(there),)).probe(HOST) is None
    difference = PathsExist((str(there), "/no such/thing"), hint="run chapter 08").probe(HOST)
    assert difference is not None
    assert (difference.summary, difference.hint) == ("missing: /no such/thing", "run chapter 08")
    with pytest.raises(StepFailed):
        PathsExist(("/no such/thing",)).apply(HOST, silent)
    gone = PathsExist((str(there),)).probe(HOST.inside(str(tmp_path)))
    assert gone is not None


def test_log_path() -> None:
    assert log_path("domu1") == "/var/log/xen/console/guest-domu1.log"


def test_no_name_of_dom0_s_disk_makes_it_a_guest_s(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(8 << 20))
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    losetup = ["losetup", "--find", "--show", str(tmp_path / "image")]
    loop = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
    (tmp_path / "alias").symlink_to(loop)

    def apart(*names: str) -> FurtherDisksApart:
        pairs = zip(names, ("xvdb", "xvdc"), strict=False)
        disks = [GuestDisk(path=f"{tmp_path}/{name}", name=inside) for name, inside in pairs]
        guest = lab_site().domains[0].model_copy(update={"disks": disks})
        return FurtherDisksApart(lab_site(disk=loop).model_copy(update={"domains": [guest]}))

    try:
        assert apart("file").probe(HOST) is None
        missing = apart("file", "absent").probe(HOST)
        assert missing is not None and missing.summary == f"missing: {tmp_path}/absent"
        with pytest.raises(BadInput, match=f"it lies on disk {loop}, which is dom0's"):
            apart("file", "alias").probe(HOST)
        (tmp_path / "same").symlink_to("file")
        with pytest.raises(BadInput, match=f"cannot both have {tmp_path}/file: one writes to it"):
            apart("file", "same").probe(HOST)
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)
