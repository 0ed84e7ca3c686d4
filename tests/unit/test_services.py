"""Services, asked of a real systemctl: in a root directory that is not booted."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xenlab.errors import BadInput
from xenlab.host import Host
from xenlab.platform.base import parse_failed, parse_service_states
from xenlab.platform.choice import services
from xenlab.platform.openrc import OpenRc
from xenlab.platform.systemd import ServerUnordered, Systemd, UnitFile
from xenlab.platform.xl import Xl
from xenlab.resources.base import Difference
from xenlab.resources.files import Symlink, with_word
from xenlab.transport.local import Local

UNIT = "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
SYSV = """#!/bin/sh
### BEGIN INIT INFO
# Provides: oldone
# Required-Start: $remote_fs
# Required-Stop: $remote_fs
# Default-Start: 2 3 4 5
# Default-Stop: 0 1 6
# Short-Description: a script of the former kind
### END INIT INFO
"""


def silent(what: str, done: float | None = None) -> None:
    """A report nobody reads."""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Host]:
    """A root with this machine's programs, and an /etc of its own."""
    for name in ("usr", "dev", "proc", "tmp"):
        (tmp_path / name).mkdir()
    os.mknod(tmp_path / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    for name in ("bin", "sbin", "lib", "lib64"):
        (tmp_path / name).symlink_to(f"usr/{name}")
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    for name in ("one", "two"):
        (units / f"{name}.service").write_text(UNIT)
    for name in ("passwd", "group"):
        shutil.copy(f"/etc/{name}", tmp_path / "etc")
    script = tmp_path / "etc/init.d/oldone"
    script.parent.mkdir()
    script.write_text(SYSV)
    script.chmod(0o755)
    for level in "0123456S":
        (tmp_path / f"etc/rc{level}.d").mkdir()
    subprocess.run(["mount", "--bind", "/usr", tmp_path / "usr"], check=True)
    try:
        yield Host(Local("testroot")).inside(str(tmp_path))
    finally:
        subprocess.run(["umount", tmp_path / "usr"], check=True)


def test_enabling_and_disabling(root: Host) -> None:
    wanted = Systemd().enabled("one", "two")
    difference = wanted.probe(root)
    assert difference is not None and difference.summary == "enable one, two"
    wanted.apply(root, silent)
    wanted.verify(root)
    off = Systemd().disabled("two")
    assert off.probe(root) is not None
    off.apply(root, silent)
    off.verify(root)
    left = wanted.probe(root)
    assert left is not None and [row["service"] for row in left.rows] == ["two"]


def test_a_script_of_the_former_kind_among_units(root: Host) -> None:
    wanted = Systemd().enabled("one", "oldone")
    assert wanted.probe(root) is not None
    wanted.apply(root, silent)
    wanted.verify(root)
    off = Systemd().disabled("oldone")
    off.apply(root, silent)
    off.verify(root)
    left = wanted.probe(root)
    assert left is not None and [row["service"] for row in left.rows] == ["oldone"]


def test_a_service_that_does_not_exist(root: Host) -> None:
    missing = Systemd().enabled("one", "nothing-like-it").probe(root)
    assert missing is not None
    assert {row["service"] for row in missing.rows} == {"one", "nothing-like-it"}
    assert Systemd().disabled("nothing-like-it").probe(root) is None


def test_a_root_that_is_not_there_yet(tmp_path: Path) -> None:
    empty = Host(Local()).inside(str(tmp_path / "nothing"))
    difference = Systemd().running("ssh").probe(empty)
    assert difference is not None and difference.summary == "enable and start ssh"
    assert Systemd().carrying("xen", "xenconsoled", "--log=all").probe(empty) is not None


# -- what systemd has read


@pytest.fixture
def pid1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What systemd says of a unit; the file NAME.after, once it has read all of them again."""
    said = tmp_path / "said"
    program = f"""#!/bin/sh
    case $1 in
        show) cat {said} ;;
        is-enabled) echo masked ;;
        -q) exit 3 ;;
        daemon-reload | mask)
            echo reloaded >> {tmp_path}/told
            cat {said}.after > {said}
            ;;
    esac
    """
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/systemctl").write_text(program)
    (tmp_path / "bin/systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return said


def shown(load: str, stale: str, fragment: str, *added: str) -> str:
    """The properties of a unit as systemctl(1) shows them."""
    return (
        f"LoadState={load}\nFragmentPath={fragment}\nDropInPaths={' '.join(added)}\n"
        f"NeedDaemonReload={stale}\n"
    )


@pytest.mark.parametrize("added", [False, True])
def test_a_unit_that_systemd_has_not_read_is_a_difference(
    tmp_path: Path, pid1: Path, added: bool
) -> None:
    """A run that was cut off between the file and daemon-reload."""
    here, theirs = Host(Local()), "/lib/systemd/system/one.service"
    path = f"{tmp_path}/one.service.d/xenlab.conf" if added else f"{tmp_path}/one.service"
    unit = UnitFile(path, "[Service]\nExecStart=/bin/true\n")
    read = (
        shown("loaded", "no", theirs, "/etc/x.conf", path) if added else shown("loaded", "no", path)
    )
    Path(f"{pid1}.after").write_text(read)
    stale = [
        shown("loaded", "yes", theirs if added else path, *([path] if added else [])),
        # systemd#31752
        shown("loaded", "no", theirs, f"{path}.d"),
        "" if added else shown("not-found", "no", ""),
    ]
    here.write(path, unit.text())
    for text in stale:
        pid1.write_text(text)
        difference = unit.probe(here)
        assert difference == Difference(f"have systemd read {path}"), text
        unit.apply(here, silent)
        unit.verify(here)
    assert (tmp_path / "told").read_text().splitlines() == ["reloaded"] * 3
    unit.apply(here, silent)
    assert len((tmp_path / "told").read_text().splitlines()) == 3


def test_a_unit_that_systemd_does_not_take_for_masked_yet(pid1: Path) -> None:
    masked, loaded = Systemd().masked("one"), "loaded\n"
    pid1.write_text(loaded)
    Path(f"{pid1}.after").write_text("masked\n")
    difference = masked.probe(Host(Local()))
    assert difference is not None and difference.summary == "stop and mask one"
    masked.apply(Host(Local()), silent)
    masked.verify(Host(Local()))


def test_units_that_are_masked_are_asked_for_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f"""#!/bin/sh
    echo asked >> {tmp_path}/asked
    verb=$1
    until [ "$1" = -- ]; do shift; done
    shift
    case $verb in
        is-enabled | show) for name do cat "{tmp_path}/$name"; done ;;
        -q)
            for name do [ ! -e "{tmp_path}/$name.runs" ] || exit 0; done
            exit 3
            ;;
    esac
    """)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    names = ("one", "two", "three")
    for name in names:
        (tmp_path / name).write_text("masked\n")
    masked = Systemd().masked(*names)
    assert masked.probe(Host(Local())) is None
    assert len((tmp_path / "asked").read_text().splitlines()) == 3
    (tmp_path / "two.runs").touch()
    assert masked.probe(Host(Local())) == Difference("stop and mask two")
    (tmp_path / "two.runs").unlink()
    (tmp_path / "three").write_text("static\n")
    assert masked.probe(Host(Local())) == Difference("stop and mask three")


def test_what_a_boot_has_yet_to_start_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f"""#!/bin/sh
    case $1 in
        is-enabled) echo enabled ;;
        is-active) [ -e {tmp_path}/booted ] && echo active || echo activating ;;
        is-system-running) [ "$2" = --wait ] && touch {tmp_path}/booted ;;
    esac
    """)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert Systemd().disabled("one").probe(Host(Local())) is not None
    assert not (tmp_path / "booted").exists()
    assert Systemd().running("one").probe(Host(Local())) is None


def test_what_is_added_to_a_masked_unit_need_not_be_read(tmp_path: Path, pid1: Path) -> None:
    unit = UnitFile(f"{tmp_path}/one.service.d/xenlab.conf", "[Unit]\n")
    Host(Local()).write(unit.path, unit.text())
    for load in ("masked", "not-found"):
        pid1.write_text(shown(load, "no", ""))
        assert unit.probe(Host(Local())) is None


def test_an_order_that_systemd_still_goes_by_is_a_difference(tmp_path: Path, pid1: Path) -> None:
    here = Host(Local())
    unordered = ServerUnordered(f"{tmp_path}/generators/nfs-server-generator")
    old = "DropInPaths=/run/systemd/generator/nfs-server.service.d/order-with-mounts.conf\n"
    pid1.write_text(old.removeprefix("DropInPaths="))
    Path(f"{pid1}.after").write_text("")
    Symlink(unordered.path, "/dev/null").apply(here, silent)
    assert unordered.probe(here) is not None
    unordered.apply(here, silent)
    unordered.verify(here)


def test_no_service_at_all_is_no_difference() -> None:
    assert Systemd().running().probe(Host(Local())) is None


def test_the_argument_of_a_process_that_runs() -> None:
    process = subprocess.Popen(["/bin/sleep", "61.25"])
    try:
        here = Host(Local())
        assert Systemd().carrying("x", "sleep", "61.25").probe(here) is None
        assert Systemd().carrying("x", "sleep", "61.26").probe(here) is not None
    finally:
        process.kill()
        process.wait()


# -- what OpenRC's scripts need


WORD = st.from_regex(r"[a-z][a-z0-9.-]{0,8}", fullmatch=True)
NEEDS = st.lists(WORD, max_size=3).map(" ".join)
LINES_OF_CONF = st.one_of(
    st.sampled_from(["# a comment", "", 'SYSLOG_OPTS="-n"', "# rc_need=old", "x='rc_need=no'"]),
    NEEDS.map(lambda words: f'rc_need="{words}"'),
    NEEDS.map(lambda words: f"  export rc_need='{words}' # by hand"),
    NEEDS.map(lambda words: f'rc_need="$rc_need {words}"'),
)


def needs(text: str) -> list[str]:
    """What the shell that reads a file of conf.d(5) takes for rc_need."""
    script = f'unset rc_need\n{text}\nprintf %s "$rc_need"'
    return subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()


@settings(max_examples=60)
@given(st.lists(LINES_OF_CONF, max_size=5), st.booleans())
@example(['rc_need="net"'], True)
@example([""], False)
@example(['rc_need="mynetmount # netmount"'], True)
@example(['rc_need="netmount # of old"', 'rc_need=""'], True)
def test_a_need_is_added_and_nothing_is_lost(lines: list[str], ended: bool) -> None:
    text = "\n".join(lines) + ("\n" if lines and ended else "")
    new = with_word(text, "rc_need", "netmount")
    assert "netmount" in needs(new)
    kept = [line for line in text.splitlines() if "rc_need=" not in line]
    assert [line for line in new.splitlines() if "rc_need=" not in line] == kept
    assert [word for word in needs(new) if word != "netmount"] == [
        word for word in needs(text) if word != "netmount"
    ]
    assert with_word(new, "rc_need", "netmount") == new


def test_what_an_admin_wrote_in_conf_d_stays(root: Host) -> None:
    path = "/etc/conf.d/rsyslog"
    admins = '# mine\nRSYSLOG_OPTS="-n"\nrc_need="net"\n'
    root.write(path, admins, mode=0o640)
    wanted = OpenRc().after_mount("rsyslog", "/mnt/share")
    wanted.apply(root, silent)
    wanted.verify(root)
    text = root.read(path) or ""
    assert text == admins.replace('"net"', '"net netmount"')
    assert needs(text) == ["net", "netmount"]
    assert Path(root.path(path)).stat().st_mode & 0o777 == 0o640
    assert OpenRc().after_mount("cron", "/mnt/share").probe(root) is not None


def test_what_an_admin_told_xenconsoled_stays(tmp_path: Path) -> None:
    path = tmp_path / "xen"
    path.write_text("# mine\nXENCONSOLED_ARGS='--timestamp=all' # by hand\nXENSTORED=x\n")
    kept = Xl(str(tmp_path)).consoles_kept()
    kept.apply(Host(Local()), silent)
    kept.verify(Host(Local()))
    assert path.read_text() == (
        '# mine\nXENCONSOLED_ARGS="--timestamp=all --log=all" # by hand\nXENSTORED=x\n'
    )
    path.write_text("XENCONSOLED_ARGS=$OTHER")
    kept.apply(Host(Local()), silent)
    text = 'XENCONSOLED_ARGS=$OTHER\nXENCONSOLED_ARGS="$XENCONSOLED_ARGS --log=all"\n'
    assert path.read_text() == text


def test_a_file_of_an_earlier_version_serves_as_it_is() -> None:
    text = '# written by xenlab, chapter 15: what lies on /mnt/share\nrc_need="netmount"\n'
    assert with_word(text, "rc_need", "netmount") == text


def test_another_platform_is_refused_in_one_sentence() -> None:
    with pytest.raises(BadInput, match="gentoo-2006"):
        services("gentoo-2006")


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9@.-]{0,20}", fullmatch=True), st.booleans()))
def test_states_are_read_back(units: dict[str, bool]) -> None:
    text = "".join(f"{name} {'enabled' if on else 'missing'} -\n" for name, on in units.items())
    states = parse_service_states(text)
    assert {name: at_boot == "enabled" for name, (at_boot, _) in states.items()} == units


LINES = st.lists(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1))


@given(st.dictionaries(st.from_regex(r"[a-z@.-]+", fullmatch=True), LINES))
def test_what_failed_is_read_back_with_its_last_lines(failed: dict[str, list[str]]) -> None:
    text = "".join(f"{name}\n" + "".join(f"\t{x}\n" for x in said) for name, said in failed.items())
    assert parse_failed(text) == failed


def test_where_nothing_runs_nobody_can_say_what_failed(root: Host) -> None:
    for name in ("debian", "gentoo"):
        difference = services(name).none_failed().probe(root)
        assert difference is not None and difference.summary.startswith("nobody can say yet")
