"""What is kept of a run, and what is said of it: audit, drift, and two runs side by side."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.ssh.conftest import keygen, wait_until
from tests.ssh.small import Site, one_line

from xenlab.runs.audit import inspect


def test_a_run_is_as_it_was_recorded_until_somebody_changes_it(site: Site) -> None:
    facts = 'chapter.facts("01.2 A table", pandas.DataFrame({"memory": [1]}))'
    site.chapter("01_first", site.made("01.1"), f"import pandas\n{facts}")
    assert site.xenlab("run", "-f", "site.yaml").returncode == 0
    done = site.xenlab("audit", "verify")
    assert done.returncode == 0, done.stdout
    assert site.journal().head() in done.stdout
    assert "signed by: nobody" in done.stdout
    (run,) = site.run_folders()
    for name in ("01_first.ipynb", "output/01.2-table.csv", "run.json"):
        kept = (run / name).read_bytes()
        (run / name).write_bytes(kept.replace(b"m", b"n", 1))
        done = site.xenlab("audit", "verify", run.name)
        assert done.returncode == 1
        assert f"{name}: it was changed since it was recorded" in done.stdout
        (run / name).write_bytes(kept)
    # looking, showing and reporting change nothing
    assert site.xenlab("report").returncode == 0
    assert site.xenlab("audit", "verify").returncode == 0


def test_a_run_is_signed(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    assert site.xenlab("run", "-f", "site.yaml").returncode == 0
    mine, other = site.folder / "mine", site.folder / "other"
    for key in (mine, other):
        keygen(key)
        public = key.with_suffix(".pub").read_text()
        key.with_suffix(".signers").write_text(f"{key.name}@castle {public}")
    assert site.xenlab("audit", "sign", "--key", str(mine)).returncode == 0
    done = site.xenlab("audit", "verify", "--signers", str(mine.with_suffix(".signers")))
    assert done.returncode == 0, done.stdout
    assert "signed by: mine@castle" in done.stdout
    done = site.xenlab("audit", "verify", "--signers", str(other.with_suffix(".signers")))
    assert done.returncode == 1
    assert "other.signers does not name" in one_line(done.stdout)


def test_a_run_that_was_killed_and_taken_up_again_is_whole(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"), site.made("01.2", "KernelKilled"))
    assert site.xenlab("run", "-f", "site.yaml").returncode == 1
    site.chapter("01_first", site.made("01.1"), site.made("01.2"))
    assert site.xenlab("run", "--resume", "last").returncode == 0
    (run,) = site.run_folders()
    assert inspect(run).problems == ()


def test_a_run_that_was_killed_is_cut_short_and_not_tampered_with(site: Site) -> None:
    slow = site.made("01.2", script='echo $$ > "$1.pid"; sleep 300')
    site.chapter("01_first", site.made("01.1", script='seq 9999; echo made > "$1"'), slow)
    process = site.start("run", "-f", "site.yaml")
    wait_until(Path(f"{site.path('01.2')}.pid").exists, 150)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    (run,) = site.run_folders()
    (run / "output" / "01.2-1.txt").write_bytes(b"this far")
    done = site.xenlab("audit", "verify")
    assert done.returncode == 0, done.stdout
    assert "cut short in 01_first: no record says that it ended" in done.stdout
    assert "01_first.ipynb: no record names it yet" in done.stdout
    assert "output/01.2-1.txt: no record names it yet" in done.stdout
    (run / "run.json").write_text("{}")
    done = site.xenlab("audit", "verify")
    assert done.returncode == 1
    assert "run.json: it was changed since it was recorded" in done.stdout


def test_drift_is_reported_and_nothing_is_changed(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"), site.made("01.2"))
    guest = f'{{"guest": Made({str(site.path("02.1"))!r})}}'
    site.chapter("02_second", f'chapter.each("02.1 Make 02.1", {guest}, on=chapter.host)')
    assert site.xenlab("run", "-f", "site.yaml").returncode == 0
    done = site.xenlab("check", "-f", "site.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no drift" in done.stdout
    for number in ("01.2", "02.1"):
        site.path(number).unlink()
    done = site.xenlab("check", "-f", "site.yaml")
    assert done.returncode == 3
    said = done.stdout.partition("drift in 2 steps:")[2].split("\n")
    assert [one_line(line) for line in said if line] == [
        f"01.2 Make 01.2: make {site.path('01.2')}",
        f"02.1 Make 02.1: guest: make {site.path('02.1')}",
    ]
    assert not site.path("01.2").exists()


def test_two_runs_side_by_side(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"), site.made("01.2"))
    assert site.xenlab("run", "-f", "site.yaml").returncode == 0
    site.path("01.2").unlink()
    site.write(dom0_mem_mib=777)
    assert site.xenlab("run", "-f", "site.yaml").returncode == 0
    first, second = (run.name for run in site.run_folders())
    done = site.xenlab("diff", first, second)
    assert done.returncode == 0, done.stderr
    lines = [one_line(line) for line in done.stdout.splitlines()]
    assert "dom0_mem_mib 1024 777" in lines
    assert any(line.startswith("01.1 Make 01.1 changed") and " ok " in line for line in lines)
    assert not any(line.startswith("01.2") for line in lines)
    assert "1 parameters and 1 of 3 steps differ" in lines[-1]
    everything = site.xenlab("diff", first, second, "--all").stdout
    assert "01.2 Make 01.2" in everything


def test_bad_input(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    assert site.xenlab("run", "-f", "site.yaml").returncode == 0
    for words, said in (
        (["audit", "verify", "2026"], "cannot find the run 2026"),
        (["audit", "verify", "--signers", "nobody"], "there is no such file of signers"),
        (["audit", "sign", "--key", "no-key"], "cannot sign with this key"),
        (["diff", "2026"], "cannot find the run 2026"),
        (["check", "07", "-f", "site.yaml"], "cannot run chapter '07'"),
    ):
        done = site.xenlab(*words)
        assert done.returncode == 2, words
        assert said in done.stderr and "Traceback" not in done.stderr
    assert Path("runs").is_dir()
