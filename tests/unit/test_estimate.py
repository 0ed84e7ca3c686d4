"""How long all of it still takes, from earlier runs here or from figures; and how it is shown."""

from __future__ import annotations

import json
import re
import subprocess
import time
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from xenlab import cache
from xenlab.cache import cache_root
from xenlab.journal import Journal
from xenlab.runs import expected
from xenlab.runs import folder as runs
from xenlab.runs.expected import PRIOR_SECONDS, WAIT, Estimate, about, clock
from xenlab.runs.progress import Follower, Live
from xenlab.site import schema as parameters
from xenlab.site.schema import Parameters

ROOT = Path(__file__).parents[2]
CONTROL = r"\r|\x1b\[[?0-9;]*[A-Za-z]"
"""How a terminal is told where to write, and what to make empty."""

CHAPTERS = [path.stem for path in sorted((ROOT / "notebooks").glob("[0-8]*.ipynb"))]
DOM0, DOMU = cache.KERNELS["dom0"], cache.KERNELS["domU"]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XENLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("XENLAB_BEGAN", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def site() -> Parameters:
    return parameters.load(ROOT / "parameters/lab.yaml")


def test_the_parts_that_are_left_are_what_it_takes() -> None:
    estimate = Estimate({"one": 10, "two": 20, "three": 30}, start=1000)
    assert estimate.remaining(1000) == 60 and estimate.place() == "1/3"
    estimate.begin("one", 1000)
    assert estimate.remaining(1004) == 56
    # longer than expected: nothing is left of it, and the others stay
    assert estimate.remaining(1015) == 50
    estimate.end("one", 1010)
    assert estimate.remaining(1010) == 50 and estimate.place() == "2/3"
    assert estimate.done(1010) == pytest.approx(10 / 60)
    for part in ("two", "three"):
        estimate.begin(part, 1010)
        estimate.end(part, 1040)
    assert estimate.remaining(1060) == 0 and estimate.done(1060) == 1 and estimate.place() == "3/3"


def test_where_nobody_knows_a_part_nothing_is_promised() -> None:
    estimate = Estimate({"one": 10, "two": None}, start=1000)
    assert estimate.remaining(1000) is None and estimate.done(1000) is None
    assert estimate.words(1007) == "0:07 since the start"
    assert (
        Estimate({"one": 300}, start=1000).words(1007) == "0:07 since the start, about 5 min left"
    )


def test_a_slow_machine_is_expected_to_stay_slow() -> None:
    estimate = Estimate({"one": PRIOR_SECONDS, "two": 100}, start=0)
    estimate.begin("one", 0)
    estimate.end("one", 3 * PRIOR_SECONDS)
    assert estimate.remaining(3 * PRIOR_SECONDS) == 200


def test_a_chapter_waits_for_its_kernel_and_no_longer() -> None:
    third, eighth = WAIT
    parts = {"01_partitions": 10.0, third: 4.0, "04_grub": 50.0, eighth: 5.0, "09_domu_root": 7.0}
    kernels = {DOM0: 300.0, DOMU: 200.0}
    assert Estimate(parts, kernels, start=0).remaining(0) == 507
    assert Estimate(parts, kernels, {DOM0}, start=0).remaining(0) == 207
    assert Estimate(parts, kernels, {DOM0, DOMU}, start=0).remaining(0) == 76
    estimate = Estimate(parts, kernels, start=0)
    estimate.begin(DOM0, 0)
    assert estimate.remaining(100) == 407
    assert estimate.compiling(100) == (DOM0, 100, 300)
    estimate.end(DOM0, 290)
    estimate.begin(DOMU, 290)
    assert estimate.remaining(290) == 207


def test_a_lab_is_slower_beside_a_compiler() -> None:
    parts = {"stage": 30.0, "01_partitions": 10.0, "04_grub": 100.0}
    estimate = Estimate(parts, {DOM0: 90.0}, slower=3.0, start=0)
    # 30 seconds of no chapter, 60 beside the compiler for 20 seconds of work, and 90 after it
    assert estimate.remaining(0) == 180
    for part, begin, end in ((DOM0, 0, None), ("stage", 0, 30), ("01_partitions", 30, 60)):
        estimate.begin(part, begin)
        if end:
            estimate.end(part, end)
    estimate.begin("04_grub", 60)
    # as fast as expected: three seconds of these are one of work
    assert estimate.remaining(60) == 120
    assert estimate.remaining(75) == 105
    estimate.end(DOM0, 90)
    assert estimate.remaining(90) == 90


@given(
    st.sampled_from([1.0, 3.0]),
    st.lists(st.floats(0, 1000), min_size=1, max_size=8),
    st.integers(0, 8),
    st.floats(0, 5000),
    st.floats(0, 5000),
)
def test_what_is_left_is_never_negative_and_never_grows_by_waiting(
    slower: float, seconds: list[float], ended: int, first: float, more: float
) -> None:
    parts = {f"{number}": each for number, each in enumerate(seconds)}
    estimate = Estimate(parts, {DOM0: 50}, slower=slower, start=0)
    for part in list(parts)[:ended]:
        estimate.begin(part, 0)
        estimate.end(part, first)
    before, after = estimate.remaining(first), estimate.remaining(first + more)
    assert before is not None and after is not None and before >= 0
    assert after <= before + 0.001
    share = estimate.done(first + more)
    assert share is not None and 0 <= share <= 1


def test_the_phases_file_tells_what_began(root: Path) -> None:
    estimate = Estimate({"stage": 100, "01_partitions": 10}, {DOM0: 300}, {DOM0}, start=time.time())
    with cache.phase_recorded(DOM0):
        with cache.phase_recorded("stage"):
            estimate.look()
            assert estimate.place() == "1/2"
        estimate.look()
        now = time.time()
        assert estimate.place() == "2/2" and estimate.remaining(now) == pytest.approx(10, abs=5)
        assert estimate.compiling(now)
    estimate.look()
    assert not estimate.compiling(time.time())
    assert Estimate({"stage": 100}, start=time.time() + 60).place() == "1/1"


def test_durations_as_people_say_them() -> None:
    said = [about(seconds) for seconds in (0, 12, 54, 58, 89, 91, 3540, 3700)]
    assert said == ["5 s", "10 s", "55 s", "1 min", "1 min", "2 min", "59 min", "1 h 02 min"]
    assert [clock(seconds) for seconds in (0, 75.9, 3725)] == ["0:00", "1:15", "1:02:05"]


def test_every_chapter_of_the_lab_has_a_figure(site: Parameters, tmp_path: Path) -> None:
    known = expected.figures(site)
    assert list(known.first) == list(known.again) == CHAPTERS
    names = [
        cache.PACKAGES,
        "Python requirements",
        *cache.phases_of_start("rescue", site.stage, site.kernel_source),
    ]
    estimate = expected.estimate(site, CHAPTERS, tmp_path, names)
    assert set(names) <= known.phases.keys()
    text = (ROOT / "lib/xenlab/data/expected-seconds.json").read_text()
    # the parts, and the waiting for the kernels, add up to what was measured in all
    assert estimate.remaining(estimate.start) == pytest.approx(json.loads(text)["whole"], rel=0.1)


def test_another_machine_than_the_lab_has_no_figures(site: Parameters, tmp_path: Path) -> None:
    other = site.model_copy(update={"power": "manual"})
    assert expected.estimate(other, CHAPTERS, tmp_path).remaining(0) is None
    assert expected.estimate(other, [], tmp_path).remaining(0) == 0


def ran(
    folder: Path, name: str, site: Parameters, *chapters: tuple[str, str, float, float]
) -> None:
    """A run of an earlier day: chapters with the status of their step, its and their seconds."""
    place = folder / name
    journal = Journal(place)
    own = {"site": site.site, "lab": site.lab}
    record = {"mode": "apply", "parameters": own, "chapters": [chapter for chapter, *_ in chapters]}
    (place / "run.json").write_text(json.dumps(record))
    lines = []
    at = 0.0
    for chapter, status, step, whole in chapters:
        for phase, seconds, more in (
            ("open", 0.0, {}),
            ("final", step, {"step": "1", "title": "1 Compile", "status": status, "seconds": step}),
            ("close", whole - step, {}),
        ):
            at += seconds
            stamp = f"2026-01-01T{int(at) // 3600:02}:{int(at) // 60 % 60:02}:{at % 60:06.3f}+00:00"
            lines.append({"phase": phase, "chapter": chapter, "time": stamp, **more})
    journal.path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_took_how_long_here_counts_more(site: Parameters, tmp_path: Path) -> None:
    ran(
        tmp_path,
        "20260101T000000-lab",
        site,
        ("01_partitions", "changed", 20, 21),
        ("03_dom0_kernel", "changed", 400, 407),
        ("04_grub", "changed", 30, 33),
    )
    known = expected.figures(site)

    def parts() -> dict[str, float | None]:
        return dict(expected.estimate(site, CHAPTERS, tmp_path).parts)

    # the disk is empty: nothing has been done on it, whatever was done before
    assert parts() == {
        **known.first, "01_partitions": 21, "03_dom0_kernel": 7, "04_grub": 33,
    }  # fmt: skip
    lab = cache_root() / "labs" / site.lab
    lab.mkdir(parents=True)
    (lab / "state.json").write_text('{"boot": "disk"}')
    assert parts()["04_grub"] == known.again["04_grub"]
    assert parts()["05_base_configuration"] == known.first["05_base_configuration"]
    ran(tmp_path, "20260102T000000-lab", site, ("04_grub", "ok", 1, 2))
    assert parts()["04_grub"] == 2
    # partitioned anew by a run that got no further
    ran(tmp_path, "20260103T000000-lab", site, ("01_partitions", "changed", 9, 10))
    assert (parts()["01_partitions"], parts()["04_grub"]) == (known.again["01_partitions"], 33)
    (tmp_path / "20260102T000000-lab" / "journal.jsonl").write_text("damaged\n")
    assert parts()["04_grub"] == 33
    # a kernel was compiled meanwhile: without it the chapter takes less
    first = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    line = {"what": DOM0, "began": first, "ended": first + 461}
    (cache_root() / cache.PHASES).write_text(json.dumps(line) + "\n")
    assert parts()["04_grub"] == pytest.approx(11)


def test_phases_take_what_they_took(site: Parameters, root: Path, tmp_path: Path) -> None:
    root.mkdir()
    lines = ('{"what": "stage", "began": 10, "ended": 17}', '{"what": "stage", "began": 20}')
    (root / cache.PHASES).write_text("\n".join(lines) + "\n")
    estimate = expected.estimate(site, [], tmp_path, ["stage", "rescue system"])
    assert estimate.parts == {
        "stage": 7,
        "rescue system": expected.figures(site).phases["rescue system"],
    }


def test_what_is_in_the_cache_is_not_waited_for(site: Parameters, root: Path) -> None:
    assert {cache.SOURCES, "rescue system", "boot from rescue", f"{site.release}-stage"} <= set(
        cache.phases_of_start("rescue", site.stage, site.kernel_source)
    )
    for place in (site.stage, site.kernel_source, "rescue/1/rescue.img", "kvm/1/verdict"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).touch()
    for source in ("rescue", "disk"):
        found = cache.phases_of_start(source, site.stage, site.kernel_source)
        assert found == [f"boot from {source}"]
    # a person's own sources are fetched by nobody here
    assert cache.phases_of_start("disk", site.stage, "/srv/linux.tar") == ["boot from disk"]


def test_a_kernel_that_is_compiled_is_not_waited_for(site: Parameters, root: Path) -> None:
    (root / "kernel/dom0-1234").mkdir(parents=True)
    (root / "kernel/dom0-1234/manifest").touch()
    estimate = expected.estimate(site, CHAPTERS, root)
    assert estimate.made == {DOM0} and list(estimate.kernels) == [DOM0, DOMU]
    target = site.model_copy(update={"build_on": "target"})
    assert not expected.estimate(target, CHAPTERS, root).kernels


def shown(tmp_path: Path, *, terminal: bool) -> str:
    console = Console(record=True, width=100, force_terminal=terminal, color_system=None)
    journal = Journal(tmp_path / "run")
    estimate = Estimate({"01_x": 60, "02_y": 120}, {DOM0: 300}, start=time.time() - 65)
    with Follower(console, journal.folder, {"01_x": ["01.1 Title"]}, estimate) as follower:
        with cache.phase_recorded(DOM0):
            follower.begin("01_x")
            journal.append(chapter="01_x", phase="open")
            record = {"chapter": "01_x", "step": "01.1", "title": "01.1 Title"}
            journal.append(phase="running", **record)
            follower._look()
            follower._live.show()
            journal.append(phase="final", status="changed", seconds=1, **record)
            journal.append(chapter="01_x", phase="close")
        follower.end(runs.Chapters(journal.folder).state("01_x"))
        follower._live.show()
    return console.export_text()


def test_without_a_terminal_each_event_is_a_line(tmp_path: Path) -> None:
    lines = [" ".join(line.split()) for line in shown(tmp_path, terminal=False).splitlines()]
    assert lines[0] == "01_x: 1 steps (1:05 since the start, about 3 min left)"
    # it took as long as this machine took to write it
    assert sorted(re.sub(r"(?<=01_x: done )[\d.]+ s$", "…", line) for line in lines[1:]) == [
        "01_x: done …",
        "changed 01.1 Title 1.0 s",
        "dom0's kernel: compiled",
        "dom0's kernel: in the background, about 5 min",
    ]


def test_a_terminal_has_one_region_and_a_line_of_what_has_ended(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=True)
    assert "01_x                       done" in text and "1 of 1 changed" in text
    for words in ("0/1", "01.1 Title", "in all", "1/2", "1:05", "2/2", "about 1 min left", DOM0):
        assert words in text


def test_a_region_ends_with_its_block_and_stays_small() -> None:
    screen = StringIO()
    console = Console(file=screen, width=80, height=10, force_terminal=True, color_system=None)
    with Live(console, Estimate({str(number): 60 for number in range(40)})) as live:
        for number in range(40):
            live.begin(str(number), f"part [x] {number}", None, "")
            live.update(now="now " * 30, completed=0.5, total=1)
            live.show()
            live.end(str(number), f"part {number} ended")
    lines = re.sub(CONTROL, "\n", screen.getvalue()).splitlines()
    ended = [line for line in lines if line.endswith("ended")]
    assert ended == [f"part {number} ended" for number in range(40)]
    assert any(line.startswith("part [x] 39") for line in lines)
    assert max(len(line) for line in lines) <= 80
    # what has ended is not in the region any more, and in the end nothing is
    after = lines[lines.index("part 38 ended") :]
    assert not any(line.startswith("part [x] 38") for line in after)
    assert lines[-1] == ""


def say(script: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script that has scripts/phases.sh, as scripts/bootstrap does."""
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; . scripts/phases.sh; {script}"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder), **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_before_there_is_a_python_the_shell_says_the_same(root: Path, tmp_path: Path) -> None:
    tmp_path.joinpath("home").mkdir()
    began = str(int(time.time()) - 125)
    shell = {"XENLAB_CACHE": str(root), "XENLAB_BEGAN": began}
    done = say(f"phase '{cache.PACKAGES}' echo much", tmp_path / "home", **shell)
    figure = json.loads((ROOT / "lib/xenlab/data/expected-seconds.json").read_text())["phases"]
    assert done.returncode == 0 and "much" not in done.stdout
    first, last = done.stdout.splitlines()
    assert first.startswith("2:0") and first.endswith(
        f"{cache.PACKAGES}: about {figure[cache.PACKAGES]} s"
    )
    assert last.endswith(f"{cache.PACKAGES}: done")
    (found,) = cache.load_phases()
    assert found.what == cache.PACKAGES and found.ended >= found.began > 0
    again = '{"what": "Debian packages", "began": 10.5, "ended": 517.25}\n'
    with (root / cache.PHASES).open("a") as file:
        file.write(again)
    assert say(f"expected '{cache.PACKAGES}'", tmp_path / "home", **shell).stdout == "507\n"
    assert not list(tmp_path.joinpath("home").iterdir())


def test_what_fails_in_the_shell_says_its_last_words(root: Path, tmp_path: Path) -> None:
    script = f"phase '{cache.PACKAGES}' sh -c 'seq 30; echo no space >&2; exit 7'; echo went on"
    done = say(script, tmp_path, XENLAB_CACHE=str(root))
    assert done.returncode == 7 and "went on" not in done.stdout
    assert "no space" in done.stderr and "30" in done.stderr and "\n5\n" not in done.stderr
    assert done.stderr.endswith(f"{cache.PACKAGES}: failed\n")
    assert [phase.ended for phase in cache.load_phases()] == [0]


def test_a_cache_that_cannot_be_written_stops_no_shell(root: Path, tmp_path: Path) -> None:
    root.write_text("no folder")
    assert say("phase stage true", tmp_path, XENLAB_CACHE=str(root)).returncode == 0
