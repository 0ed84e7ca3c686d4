"""A run as a chart: all that its journal tells stands on one time axis, and can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench import chart, processor, timeline
from bench.processor import Sample
from hypothesis import given
from hypothesis import strategies as st

from xenlab.errors import BadInput

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
START = 1_800_000_000.0
KERNEL = "dom0's kernel"


def journal(folder: Path, *records: dict[str, Any]) -> Path:
    """A run of these records, each with its ``time`` in seconds after the start."""
    folder.mkdir(parents=True)
    lines = []
    for record in records:
        time = datetime.fromtimestamp(START + record["time"], UTC).isoformat()
        lines.append(json.dumps({**record, "time": time}) + "\n")
    (folder / "journal.jsonl").write_text("".join(lines))
    return folder


def step(time: float, title: str, seconds: float, **more: Any) -> dict[str, Any]:
    number = title.partition(" ")[0]
    return {
        "phase": "final", "time": time, "chapter": f"{number[:2]}_x", "step": number,
        "title": title, "seconds": seconds, "status": "changed", "host": "dom0", **more,
    }  # fmt: skip


def opened(time: float, chapter: str) -> dict[str, Any]:
    return {"phase": "open", "time": time, "chapter": chapter}


def closed(time: float, chapter: str) -> dict[str, Any]:
    return {"phase": "close", "time": time, "chapter": chapter}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two chapters; the second boots the machine, then two guests."""
    follows = "set -eu\nset -- /etc/xen/{0}.cfg /var/log/x.log /run/xenlab/{0}.console\nxl create"
    guests = [{"phase": "change", "command": follows.format(name)} for name in ("domu1", "domu2")]
    looked = [{"phase": "look", "command": follows.format("domu3")}]
    return journal(
        tmp_path / "runs" / "20270115T080000-lab",
        {"phase": "begin", "time": 0},
        opened(2, "01_x"),
        step(12, "01.1 Compile & <install>", 9, boot_id="one"),
        closed(13, "01_x"),
        opened(14, "02_x"),
        step(34, "02.1 Boot the disk", 18, boot_id="two"),
        step(35, "02.2 Look", 0.5, status="ok", boot_id="two", commands=looked),
        step(60, "02.3 Start the guests", 20, status="failed", boot_id="two", commands=guests),
        {"phase": "end", "time": 64},
    )


def beside(run: Path, *phases: tuple[str, float, float]) -> None:
    lines = [
        json.dumps({"what": what, "began": START + began, "ended": START + ended}) + "\n"
        for what, began, ended in phases
    ]
    (run.parent / "phases.jsonl").write_text("".join(lines))


def spans(run: timeline.Run) -> dict[str, list[tuple[str, float, float]]]:
    return {
        lane.name: [(s.name, s.begin - START, s.end - START) for s in (lane.parts or lane.whole)]
        for lane in run.lanes
    }


def test_chapters_steps_and_boots_have_their_times(run: Path) -> None:
    found = timeline.load(run)
    assert (found.begin - START, found.seconds, found.steps) == (0, 64, 4)
    assert spans(found) == {
        "01 x": [("01.1 Compile & <install>", 3, 12)],
        "02 x": [
            ("02.1 Boot the disk", 16, 34),
            ("02.2 Look", 34.5, 35),
            ("02.3 Start the guests", 40, 60),
        ],
        "boots of dom0": [("02.1 Boot the disk", 16, 34)],
        "boots of guests": [("02.3 Start the guests: domu1, domu2", 40, 60)],
    }
    (first,), (second,) = (lane.whole for lane in found.lanes[:2])
    assert (first.begin - START, first.end - START) == (2, 13)
    # it never closed: its last record is its end
    assert (second.begin - START, second.end - START) == (14, 60)


def test_what_led_up_to_a_run_and_the_kernels_beside_it_are_in_it(run: Path) -> None:
    beside(
        run,
        ("stage", -3000, -2900),
        (KERNEL, -2000, -1500),
        ("Debian packages", -100, -40),
        ("boot from rescue", -39, -1),
        (KERNEL, -90, 50),
        ("boot from disk", 20, 30),
    )
    found = timeline.load(run)
    names = [lane.name for lane in found.lanes]
    assert names[:2] == ["Debian packages", "boot from rescue"]
    assert "stage" not in names and "boot from disk" not in names
    assert spans(found)[KERNEL] == [(KERNEL, -90, 50)]
    assert found.seconds == 164


def test_a_chapter_that_was_opened_again_has_two_spans(tmp_path: Path) -> None:
    again = (opened(0, "01_x"), opened(50, "01_x"), closed(60, "01_x"))
    run = journal(tmp_path / "run", *again)
    (lane,) = timeline.load(run).lanes
    assert [(s.begin - START, s.end - START) for s in lane.whole] == [(0, 0), (50, 60)]


def test_a_run_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no record"):
        timeline.load(tmp_path)


def test_the_picture_is_whole_and_says_in_words_what_it_shows(run: Path) -> None:
    beside(run, (KERNEL, 1, 50))
    samples = [Sample(START + second, 0.5, 0.25, 0.1) for second in range(0, 64, 2)]
    lines = [json.dumps(vars(sample)) + "\n" for sample in samples]
    (run.parent / processor.BESIDE).write_text("".join(lines) + '{"time": 1')
    picture = ElementTree.fromstring(chart.draw([timeline.load(run), timeline.load(run)]))
    assert picture.get("role") == "img"
    said = picture.find(f"{SVG}desc")
    assert said is not None and "02.3 Start the guests (20 s)" in str(said.text)
    texts = [str(text.text) for text in picture.iter(f"{SVG}text")]
    assert texts.count("01.1 Compile & <install> 0:09") == 2
    assert texts.count("processors") == 2 and KERNEL in texts and "1:00" in texts
    assert len(list(picture.iter(f"{SVG}polygon"))) == 4
    bars = [bar for bar in picture.iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None]
    assert sum(bar.get("class") == "bad" for bar in bars) == 2
    # nothing stands beside the picture, and no row on another one
    width, height = (float(word) for word in picture.attrib["viewBox"].split()[2:])
    for bar in bars:
        assert 0 < float(bar.attrib["x"]) + float(bar.attrib["width"]) < width
        assert 0 < float(bar.attrib["y"]) < height
    assert len({bar.attrib["y"] for bar in bars}) == 2 * len(timeline.load(run).lanes)


def test_words_beside_a_bar_stay_inside_the_picture(run: Path) -> None:
    for lane in timeline.load(run).lanes:
        row = chart._row(lane, timeline.load(run), 14.0, 0)
        width = len(row.words) * chart.LETTER
        left = row.words_x - (width if row.anchor == "end" else 0)
        assert left > 200 and left + width < chart.WIDTH, row


def test_without_samples_the_lower_part_is_left_out(run: Path) -> None:
    assert "processors" not in chart.draw([timeline.load(run)])


def test_the_command_prints_the_picture_or_one_sentence(run: Path, tmp_path: Path) -> None:
    def ask(folder: Path) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(ROOT / "bench/lab.py"), "--chart", str(folder)]
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)

    done = ask(run)
    assert done.returncode == 0 and ElementTree.fromstring(done.stdout).tag == f"{SVG}svg"
    refused = ask(tmp_path)
    assert refused.returncode == 2 and "cannot find the run" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_samples_are_written_while_work_goes_on(tmp_path: Path) -> None:
    place = tmp_path / "runs" / processor.BESIDE
    with processor.Sampler(place, every=0.05):
        while len(processor.load(place)) < 3:
            sum(range(100_000))
    samples = processor.load(place)
    assert samples == sorted(samples, key=lambda sample: sample.time)
    assert all(0 <= share <= 1 for s in samples for share in (s.busy, s.nice, s.waiting))
    assert any(sample.busy + sample.nice > 0 for sample in samples)


@given(st.lists(st.integers(0, 2**40), min_size=8, max_size=8), st.data())
def test_shares_of_the_processors_time(first: list[int], data: st.DataObject) -> None:
    more = data.draw(st.lists(st.integers(0, 10**6), min_size=8, max_size=8))
    texts = [
        f"cpu  {' '.join(map(str, numbers))} 0 0\ncpu0 1 2 3\n"
        for numbers in (first, [old + new for old, new in zip(first, more, strict=True)])
    ]
    found = processor.shares(texts[0], texts[1], 7.0)
    idle = more[3] / max(1, sum(more))
    if sum(more):
        assert found.busy + found.nice + found.waiting + idle == pytest.approx(1, abs=0.01)
    assert processor.shares(texts[0], texts[0], 7.0) == Sample(7.0, 0, 0, 0)
