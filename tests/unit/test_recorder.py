"""Every command of a step on record: what it was for, its end, its output and its input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlab.chapter.events import Event, Output, ignore
from xenlab.chapter.recorder import INLINE_BYTES, KEPT_BYTES, CommandLog, Recorder
from xenlab.command import Command
from xenlab.errors import CommandFailed, CommandTimeout, OutsideStep, StepFailed
from xenlab.host import Host
from xenlab.journal import Journal, output_of
from xenlab.masking import MASK, Secret
from xenlab.transport import local
from xenlab.transport.local import Local

PASSWORD = Secret("default-route")


class Watched:
    """A host whose commands one log holds, and what was shown of them."""

    def __init__(self, folder: Path, *secrets: Secret) -> None:
        self.folder = folder
        self.shown: list[Event] = []
        self.recorder = Recorder(secrets)
        self.log = CommandLog("controller", secrets, Journal(folder), self.shown.append)
        self.host = Host(Local(), watcher=self.recorder)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path, PASSWORD)


def test_each_command_has_its_phase_status_and_output(watched: Watched) -> None:
    with watched.recorder.step(watched.log, "mark"):
        watched.host.test("exit 4")
        with watched.recorder.during("change", "domu1"):
            mark = watched.host.run("echo $XENLAB_STEP").stdout
        watched.host.inside("/").run("echo out; echo err >&2")
    first, second, third = watched.log.records("05.1")
    assert (first["phase"], first["command"], first["status"]) == ("look", "exit 4", 4)
    assert (second["phase"], second["label"], second["output"]) == ("change", "domu1", mark)
    assert mark.startswith("mark/")
    assert sorted(third["output"].split()) == ["err", "out"]
    assert Output("command", "[domu1] $ echo $XENLAB_STEP\n", "change") in watched.shown


def test_outside_a_step_nothing_runs(watched: Watched, tmp_path: Path) -> None:
    place = tmp_path / "x"
    with pytest.raises(OutsideStep, match="because no step is under way: touch"):
        watched.host.run(Command.argv("touch", place))
    assert not place.exists()


def test_what_a_timeout_had_printed_is_kept(watched: Watched) -> None:
    with (
        watched.recorder.step(watched.log, "mark"),
        pytest.raises(CommandTimeout, match="last lines of stdout:\n  halfway"),
    ):
        watched.host.run("echo halfway; sleep 60", timeout=1)
    record = watched.log.records("05.1")[0]
    assert (record["status"], record["output"]) == (None, "halfway\n")


def test_of_endless_output_the_beginning_is_kept(watched: Watched) -> None:
    script = f"printf default-; head -c {KEPT_BYTES} /dev/zero | tr '\\0' x; echo end"
    with watched.recorder.step(watched.log, "mark"):
        assert watched.host.run(script).stdout.endswith("xend\n")
    (record,) = watched.log.records("05.1")
    kept = (watched.folder / record["output"]["path"]).read_bytes()
    assert kept[:KEPT_BYTES].startswith(b"default-xx")
    assert kept[KEPT_BYTES:].decode() == "\n… 12 more bytes are not kept\n"
    outputs = [each for each in watched.shown if isinstance(each, Output)]
    shown = "".join(each.text for each in outputs if each.stream != "command")
    assert shown.encode() == kept


@pytest.mark.parametrize("command", ["yes", "yes >&2"])
def test_output_that_would_fill_the_memory_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(local, "MOST_OUTPUT", 1 << 20)
    with pytest.raises(StepFailed, match="because that is more than 1048576 bytes"):
        Host(Local()).run(command, timeout=60)


def test_data_keeps_what_records_hide(watched: Watched, tmp_path: Path) -> None:
    place = tmp_path / "motd"
    text = b"# the default-route of dom0\n"
    with watched.recorder.step(watched.log, "mark"):
        script = Command.script('cat > "$1"; cat "$1"', place)
        assert watched.host.run(script, input=text).out == text
        with pytest.raises(CommandFailed) as error:
            watched.host.run("echo the default-route; false")
    assert place.read_bytes() == text
    wrote, failed = watched.log.records("05.1")
    assert wrote["output"] == f"# the {MASK} of dom0\n"
    kept = (watched.folder / wrote["input"]["path"]).read_text()
    assert kept == f"# the {MASK} of dom0\n"
    assert failed["output"] == f"the {MASK}\n"
    assert "default-route" not in str(error.value) + repr(watched.shown)


def test_of_a_listing_that_only_a_program_reads_complaints_are_kept(watched: Watched) -> None:
    with watched.recorder.step(watched.log, "mark"):
        quiet = replace(watched.host, quiet=True)
        assert quiet.run("echo listing; echo broken >&2; exit 3", check=False).out == b"listing\n"
    (record,) = watched.log.records("06.3")
    assert (record["status"], record["output"]) == (3, "broken\n")


def test_a_command_that_is_repeated_with_the_same_result_is_counted(watched: Watched) -> None:
    with watched.recorder.step(watched.log, "mark"):
        for _ in range(3):
            watched.host.test("false")
        watched.host.test("true")
    records = watched.log.records("05.1")
    assert [(r["command"], r.get("times", 1)) for r in records] == [("false", 3), ("true", 1)]


def test_a_copied_file_is_on_record_as_scp(watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    with watched.recorder.step(watched.log, "mark"):
        watched.host.upload(tmp_path / "one", str(tmp_path / "two"))
    (record,) = watched.log.records("05.1")
    assert record["command"] == f"scp -- {tmp_path}/one controller:{tmp_path}/two"
    assert record["status"] == 0


@given(data=st.binary(max_size=2 * INLINE_BYTES), cut=st.integers(0, 2 * INLINE_BYTES))
def test_any_output_is_kept_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    log = CommandLog("dom0", (), Journal(folder), ignore)
    entry = log.started("dom0", Command("true"), b"", "look", "")
    entry.output("stdout", data[:cut])
    entry.output("stdout", data[cut:])
    entry.ended(0, 0.1)
    (record,) = log.records("05.1")
    output = record.get("output", "")
    kept = output.encode() if isinstance(output, str) else (folder / output["path"]).read_bytes()
    assert kept == data
    assert output_of(folder, record) == data.decode("utf-8", "replace")
