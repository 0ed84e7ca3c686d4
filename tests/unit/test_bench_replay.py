"""A recording becomes a plain script, and the script does what was recorded: on a real sshd."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import pytest
from bench import events, replay
from bench.events import CONTROLLER, Event
from bench.lab import TURNS, Bench, Measured, mean, show
from bench.measure import Stopped
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ssh.conftest import Sshd, keygen

from xenlab.journal import Journal

ROOT = Path(__file__).parents[2]


class Recording:
    """A small recording made by hand, and the script of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "trace"
        self.blobs = self.folder / "blobs"
        self.blobs.mkdir(parents=True)
        self.events: list[Event] = []
        self.now = 1000.0

    def blob(self, data: bytes) -> str:
        if not data:
            return ""
        name = sha256(data).hexdigest()
        (self.blobs / name).write_bytes(data)
        return name

    def add(
        self,
        text: str,
        *,
        on: str = CONTROLLER,
        input: bytes = b"",
        output: bytes = b"",
        status: int = 0,
        error: str = "",
        thread: str = "main",
        start: float | None = None,
        seconds: float = 1.0,
        kind: str = "run",
    ) -> Event:
        """One event, after all others unless it says when."""
        begin = self.now if start is None else start
        event = Event(
            kind, on, thread, begin, begin + seconds, text, self.blob(input), self.blob(output),
            status, error,
        )  # fmt: skip
        self.now = max(self.now, event.end + 0.1)
        self.events.append(event)
        return event

    def script(self) -> Path:
        chapters = events.by_chapter(self.events, [("00_all", self.now)])
        return replay.write(chapters, self.folder, self.folder.parent)

    def run(self, config: Path | None = None) -> subprocess.CompletedProcess[str]:
        return play(self.script(), config)


def play(script: Path, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(script), str(config or "/dev/null")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return Recording(tmp_path / "recording")


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path / "sshd")
    yield server
    server.stop()


PROGRAM = """
import sys, threading
from pathlib import Path
from xenlab.host import Host
from xenlab.transport.local import Local
from xenlab.transport.ssh import SSH
from xenlab.transport.ssh_config import Target

config, work = sys.argv[2:]
box, here = Host(SSH(Target("box", config=config))), Host(Local())
box.write(f"{work}/a file", "one\\ntwo\\n")
box.run("exit 3", check=False)
here.write(f"{work}/local", "here\\n")
Path(work, "payload").write_bytes(bytes(range(256)))
box.upload(Path(work, "payload"), f"{work}/copy")
box.transport.close()

# each waits for the other, so they must run side by side in the script as well
def meet(own, other):
    box.run(f"touch {work}/{own}; until [ -e {work}/{other} ]; do sleep 0.05; done")

threads = [threading.Thread(target=meet, args=pair) for pair in (("x", "y"), ("y", "x"))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
box.run(f"cat {work}/x {work}/y > {work}/met")
box.transport.close()
"""


def test_what_a_kernel_does_is_recorded_and_done_again(tmp_path: Path, sshd: Sshd) -> None:
    work, trace = tmp_path / "work", tmp_path / "trace"
    work.mkdir()
    # the word makes the recorder take this process for a notebook's kernel
    subprocess.run(
        [sys.executable, "-c", PROGRAM, "ipykernel_launcher", str(sshd.config), str(work)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "bench/trace"), str(ROOT / "lib")]),
            "XENLAB_TRACE": str(trace),
        },
        check=True,
    )
    payload = (work / "payload").read_bytes()
    (work / "payload").rename(tmp_path / "payload")
    for path in work.iterdir():
        path.unlink()
    (tmp_path / "payload").rename(work / "payload")

    found = events.load(trace)
    kinds = [event.kind for event in found]
    assert kinds == ["run", "run", "run", "upload", "close", "run", "run", "run"]
    assert {event.transport for event in found} == {"box", CONTROLLER}
    script = replay.write([("00_all", found)], trace, tmp_path / "plain")
    done = play(script, sshd.config)

    assert done.returncode == 0, done.stderr
    assert (work / "a file").read_text() == "one\ntwo\n"
    assert (work / "local").read_text() == "here\n"
    assert (work / "copy").read_bytes() == payload
    assert (work / "met").exists()
    assert "XENLAB_STEP" not in script.read_text()
    times = (script.parent / "times").read_text().split()
    assert times[0::2] == ["00_all", "end"]
    assert float(times[1]) < float(times[3])


def test_only_a_kernel_is_recorded(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    command = (
        "from xenlab.host import Host; from xenlab.transport.local import Local;"
        "Host(Local()).run('')"
    )
    subprocess.run(
        [sys.executable, "-c", command],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "bench/trace"), str(ROOT / "lib")]),
            "XENLAB_TRACE": str(trace),
        },
        check=True,
    )
    assert not trace.exists()


def test_another_status_stops_the_script_and_names_the_command(
    recording: Recording, tmp_path: Path
) -> None:
    recording.add("echo why >&2; test -e /proc/self", status=1)
    recording.add(f"touch {tmp_path}/later")
    done = recording.run()
    assert done.returncode == 1
    assert "exit status 0, recorded was 1, of this command on controller:" in done.stderr
    assert "test -e /proc/self" in done.stderr
    assert done.stderr.endswith("why\n")
    assert not (tmp_path / "later").exists()


def test_a_status_is_waited_for_where_the_recording_waited(
    recording: Recording, tmp_path: Path
) -> None:
    recording.add(f"(sleep 2; touch {tmp_path}/there) > /dev/null 2>&1 &")
    for status in (1, 1, 1, 0):
        recording.add(f"test -e {tmp_path}/there", status=status)
    recording.add(f"touch {tmp_path}/later")
    assert recording.script().read_text().count("test -e") == 1
    done = recording.run()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there").exists() and (tmp_path / "later").exists()


def test_an_output_is_waited_for_but_for_its_numbers(recording: Recording, tmp_path: Path) -> None:
    file = tmp_path / "state"
    recording.add(f"echo switching > {file}; (sleep 1; echo kept 17 > {file}) > /dev/null 2>&1 &")
    for output in (b"switching\n", b"switching\n", b"kept 4\n", b"kept 4\n"):
        recording.add(f"cat {file}", output=output)
    script = recording.script().read_text()
    assert script.count(f"\ncat {file}\n") == 2, "what repeats the final answer is no waiting"
    done = recording.run()
    assert done.returncode == 0, done.stderr
    assert file.read_text() == "kept 17\n"


def test_the_same_command_with_other_numbers_is_no_waiting(recording: Recording) -> None:
    recording.add("cut -d ' ' -f 1 /proc/uptime", output=b"12.5\n")
    recording.add("cut -d ' ' -f 1 /proc/uptime", output=b"13.5\n")
    assert recording.script().read_text().count("/proc/uptime") == 2


def test_lost_and_refused_connections_are_waited_for(
    recording: Recording, sshd: Sshd, tmp_path: Path
) -> None:
    recording.add(f"echo >> {tmp_path}/first", on="box")
    recording.add(f"echo >> {tmp_path}/lost; kill -9 $PPID", on="box", error="ConnectionLost")
    recording.add("true", on="box", error="ConnectionRefused")
    recording.add("", kind="close", on="box")
    recording.add("true", on="box", error="ConnectionRefused")
    recording.add("", kind="close", on="box")
    recording.add("true", on="box")
    script = recording.script()
    assert script.read_text().count("\ntrue\n") == 1
    done = play(script, sshd.config)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "first").read_text() == (tmp_path / "lost").read_text() == "\n"


def test_a_server_that_is_down_for_a_while_is_waited_for(recording: Recording, sshd: Sshd) -> None:
    recording.add("true", on="box")
    recording.add("", kind="close", on="box")
    recording.add("true", on="box")
    script = recording.script()
    sshd.stop()
    with subprocess.Popen(
        ["/bin/sh", script, sshd.config], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        time.sleep(1.5)
        assert process.poll() is None
        sshd.start()
        assert process.wait(200) == 0


def test_no_connection_and_no_socket_is_left(recording: Recording, sshd: Sshd) -> None:
    before = set(Path("/tmp").glob("xl.*"))
    recording.add("exit 5", on="box")
    done = recording.run(sshd.config)
    assert done.returncode == 1
    assert set(Path("/tmp").glob("xl.*")) <= before
    deadline = time.monotonic() + 10
    while sshd.sessions() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not sshd.sessions()


def test_values_of_the_old_disk_give_way_to_those_of_the_new(
    recording: Recording, sshd: Sshd, tmp_path: Path
) -> None:
    old, digest = "0f5e2b1c-9a3d-4e7f-8b6a-1c2d3e4f5a6b", "ab" * 32
    constant = "cd" * 32
    file = tmp_path / "disk"
    recording.add("echo kernel", output=f"{constant}\n".encode())
    make = (
        f"cat /proc/sys/kernel/random/uuid > {file}; sha256sum < {file} | cut -c 1-64; cat {file}"
    )
    recording.add(make, on="box", output=f"{digest}\n{old}\n".encode())
    recording.add(f"echo {old} {constant} > {tmp_path}/text", on="box")
    recording.add(f"cat > {tmp_path}/input", on="box", input=f"proof {digest}\n".encode())
    recording.add(f"cat > {tmp_path}/plain", on="box", input=b"nothing of it\n")
    lines = recording.script().read_text().splitlines()
    assert sum(line.startswith("run ") and " -s " in line for line in lines) == 2
    assert sum(line.startswith("learn ") for line in lines) == 2
    done = recording.run(sshd.config)
    assert done.returncode == 0, done.stderr
    new = file.read_text().strip()
    assert new != old
    assert (tmp_path / "text").read_text() == f"{new} {constant}\n"
    shown = sha256(file.read_bytes()).hexdigest()
    assert (tmp_path / "input").read_text() == f"proof {shown}\n"


def test_what_a_command_says_of_its_own_input_is_said_of_the_new_one(
    recording: Recording, sshd: Sshd, tmp_path: Path
) -> None:
    old, place = "0f5e2b1c-9a3d-4e7f-8b6a-1c2d3e4f5a6b", tmp_path / "fstab"
    text = f"UUID={old} /\n".encode()
    recording.add("cat /proc/sys/kernel/random/uuid", on="box", output=f"{old}\n".encode())
    whole = f'cat > {place}; [ "$(sha256sum < {place})" = "{sha256(text).hexdigest()}  -" ]'
    recording.add(whole, on="box", input=text)
    done = recording.run(sshd.config)
    assert done.returncode == 0, done.stderr
    assert old not in place.read_text()


def test_a_new_systems_host_key_is_pinned_for_the_lab(
    recording: Recording, sshd: Sshd, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "etc/ssh").mkdir(parents=True)
    keygen(root / "etc/ssh/ssh_host_ed25519_key")
    public = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    for _ in range(2):
        recording.add(
            f"cat {root}/etc/ssh/ssh_host_ed25519_key.pub",
            on="box",
            output=b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK root@old\n",
        )
    done = recording.run(sshd.config)
    assert done.returncode == 0, done.stderr
    pinned = sshd.known_hosts.read_text().splitlines()
    assert pinned[1:] == [f"[127.0.0.1]:{sshd.port} {public.strip()}"]


def test_lanes_end_where_nothing_runs(recording: Recording) -> None:
    for thread, start, seconds in (
        ("main", 0, 1), ("a", 2, 3), ("b", 3, 1), ("b", 4.5, 2), ("a", 8, 1), ("main", 10, 1),
    ):  # fmt: skip
        recording.add("true", thread=thread, start=start, seconds=seconds)
    shape = [
        [[event.start for event in lane] for lane in block]
        for block in events.blocks(recording.events)
    ]
    assert shape == [[[0]], [[2], [3, 4.5]], [[8, 10]]]


def test_one_lane_that_fails_fails_the_script(recording: Recording, tmp_path: Path) -> None:
    recording.add("exit 4", thread="a", start=1, seconds=5)
    recording.add("true", thread="b", start=2, seconds=5)
    recording.add(f"touch {tmp_path}/later")
    done = recording.run()
    assert done.returncode == 1
    assert "exit status 4, recorded was 0" in done.stderr
    assert not (tmp_path / "later").exists()


def test_lanes_follow_each_other_in_a_script_that_is_in_order(
    recording: Recording, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    for thread, start in (("a", 1), ("b", 2)):
        text = f"sleep 0.2; echo {thread} >> {done}; cat {done}"
        recording.add(text, thread=thread, start=start, seconds=5)
    chapters = [("00_all", recording.events)]
    script = replay.write(chapters, recording.folder, tmp_path / "plain", in_order=True)
    assert "together" not in script.read_text().replace(replay.PRELUDE.read_text(), "")
    assert play(script).returncode == 0
    assert done.read_text() == "a\nb\n"


def test_events_belong_to_the_chapter_that_had_not_ended(recording: Recording) -> None:
    found = [replace(recording.add("true"), start=start) for start in (1.0, 2.0, 3.0, 9.0)]
    chapters = events.by_chapter(found, [("00", 2.0), ("01", 4.0)])
    assert [(name, [e.start for e in own]) for name, own in chapters] == [
        ("00", [1.0, 2.0]),
        ("01", [3.0, 9.0]),
    ]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A measurement whose xenlab run is over: two chapters of two seconds each or so."""
    made = Bench("none", tmp_path / "site.yaml", tmp_path)
    place = tmp_path / TURNS[0]
    recording = Recording(place)
    journal = Journal(place / "runs" / "20260101T000000-lab")
    begin = time.time()
    lines = []
    for name in ("00_one", "01_two"):
        journal.append(chapter=name, phase="open", status="apply")
        event = recording.add(f"sleep 0.2; echo {name} >> {tmp_path}/done", start=time.time())
        lines.append({**asdict(event), "end": event.start + 0.01, "thread": 1})
        time.sleep(0.1)
        record = {"chapter": name, "step": "03.7", "title": "03.7 Compile", "phase": "final"}
        journal.append(**record, status="ok")
        journal.append(chapter=name, phase="close", status="ok")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (recording.folder / "1-1.jsonl").write_text(text)
    (place / "span").write_text(f"{begin - 3} {time.time() + 5}\n")
    return made


def test_each_chapter_lasts_until_its_end(bench: Bench) -> None:
    ours = bench.ours(TURNS[0])
    assert list(ours.chapters) == ["00_one", "01_two"]
    assert ours.chapters["00_one"] > 3 > ours.chapters["01_two"] >= 0.1
    assert ours.rest >= 5
    plain = bench.plain_run(bench.plain_script(), Path("/dev/null"))
    assert (bench.folder / "done").read_text() == "00_one\n01_two\n"
    assert list(plain.chapters) == ["00_one", "01_two"]
    assert all(seconds >= 0.2 for seconds in plain.chapters.values())
    assert plain.seconds == sum(plain.chapters.values())


def test_a_run_that_compiled_is_no_measurement(bench: Bench) -> None:
    record = {"chapter": "01_two", "step": "03.7", "title": "03.7 Compile", "phase": "final"}
    Journal(bench.folder / TURNS[0] / "runs" / "20260101T000000-lab").append(
        **record, status="changed"
    )
    with pytest.raises(Stopped, match="01_two compiled a kernel"):
        bench.ours(TURNS[0])


def test_xenlab_s_time_is_the_mean_of_its_turns() -> None:
    turns = [
        Measured({"00_one": 60.0, "01_two": 4.0}, 1.0),
        Measured({"00_one": 70.0, "01_two": 6.0}),
    ]
    both = mean(turns)
    assert both.chapters == {"00_one": 65.0, "01_two": 5.0} and both.rest == 0.5


def test_the_promise(capsys: pytest.CaptureFixture[str]) -> None:
    plain = Measured({"00_one": 60.0, "01_two": 40.0})
    assert show(Measured({"00_one": 70.0, "01_two": 40.0}, rest=5.0), plain)
    assert "promise kept: 1.15 x, at most 1.15 x" in capsys.readouterr().out
    assert not show(Measured({"00_one": 70.0, "01_two": 40.0}, rest=6.0), plain)
    assert "promise BROKEN: 1.16 x" in capsys.readouterr().out


LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
TEXTS = st.lists(st.one_of(LINES, st.sampled_from(["END", "E\x80", "$(id)", "\\", "'"])))


@given(st.lists(st.tuples(TEXTS, LINES), min_size=1))
@settings(max_examples=15)
def test_text_and_input_come_through_as_they_were(given_pairs: list[tuple[list[str], str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        recording = Recording(Path(folder, "recording"))
        wanted = []
        for number, (lines, given_input) in enumerate(given_pairs):
            value = "\n".join([*lines, "."])
            text = f"printf %s {shlex.quote(value)} > {folder}/{number}\ncat >> {folder}/{number}"
            recording.add(text, input=given_input.encode())
            wanted.append(value + given_input)
        done = recording.run()
        assert done.returncode == 0, done.stderr
        for number, content in enumerate(wanted):
            assert Path(folder, str(number)).read_bytes() == content.encode()


@given(st.lists(st.tuples(st.binary(max_size=80), st.uuids(), st.integers(0)), min_size=1))
@settings(max_examples=15)
def test_both_masks_agree(parts: list[tuple[bytes, object, int]]) -> None:
    output = b"".join(
        noise.replace(b"\0", b"") + f" {identifier} {number} {'0a' * 40}".encode()
        for noise, identifier, number in parts
    )
    text = replay.PRELUDE.read_text()
    body = text[text.index("mask() {") : text.index("\nstop() {")]
    done = subprocess.run(
        ["/bin/sh", "-c", f"{body}\nmask"], input=output, capture_output=True, check=True
    )
    assert done.stdout == replay.mask(output)


def test_bytes_that_are_no_text_come_through(recording: Recording, tmp_path: Path) -> None:
    value = b"\xff\xfe g\xe4nse".decode("utf-8", "surrogateescape")
    recording.add(f"printf %s '{value}' > {tmp_path}/value")
    done = recording.run()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "value").read_bytes() == b"\xff\xfe g\xe4nse"
