"""A machine far away: a step costs at most two round trips beyond its own commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench.far import Folder
from tests.sites import lab_site
from tests.ssh.conftest import Sshd
from tests.ssh.far import delayed

from xenlab.chapter.chapter import Chapter
from xenlab.chapter.machine_lock import Hold
from xenlab.errors import ConnectionRefused
from xenlab.journal import Journal
from xenlab.site.schema import Ssh

ROUND_TRIP = 1.0
"""Seconds; so much more than a command takes that the clock counts them."""

BEYOND = 2
"""How many round trips a step may cost beyond its commands."""

TURNS = 8
"""Steps of which one must be quick enough: a busy machine only adds."""


@pytest.fixture
def far(sshd: Sshd) -> Iterator[Sshd]:
    """A server at the end of a long line."""
    with delayed(sshd.port, ROUND_TRIP) as port:
        sshd.known_hosts.write_text(f"[127.0.0.1]:{port} {sshd.public_key}\n")
        sshd.write_config(f"Port {port}")
        lines = sshd.config.read_text().splitlines(keepends=True)
        sshd.config.write_text("".join(line for line in lines if f"Port {sshd.port}" not in line))
        yield sshd


def round_trips(act: Callable[[int], object], enough: float) -> float:
    """How many the quickest of several takes; none follows one that takes less than ``enough``."""
    least = float("inf")
    for turn in range(TURNS):
        start = time.monotonic()
        act(turn)
        least = min(least, (time.monotonic() - start) / ROUND_TRIP)
        if least < enough:
            break
    return least


@pytest.mark.parametrize("hold", [Hold.STEP, Hold.CHAPTER])
def test_a_step_costs_two_round_trips_beyond_its_commands(
    hold: Hold, far: Sshd, tmp_path: Path
) -> None:
    site = lab_site(ssh=Ssh(host=far.alias, config=str(far.config)))
    chapter = Chapter("05_base", site, Journal(tmp_path / "run"), hold=hold)

    def step(turn: int) -> None:
        chapter.ensure("05.1 Make it", Folder(tmp_path / f"made{turn}"), on=chapter.host)

    look, change, look_again = 1, 1, 1
    # the clock counts whole ones, and what the commands take themselves comes on top
    enough = look + change + look_again + BEYOND + 1
    assert look + change + look_again <= round_trips(step, enough) < enough
    assert 1 <= round_trips(lambda _: step(0), 2) < 2
    chapter.close()


@pytest.mark.parametrize("hold", [Hold.STEP, Hold.CHAPTER])
def test_a_server_of_two_sessions_is_enough_for_a_chapter(
    hold: Hold, make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    sshd = make_sshd("MaxSessions 2")
    site = lab_site(ssh=Ssh(host=sshd.alias, config=str(sshd.config)))
    chapter = Chapter("05_base", site, Journal(tmp_path / "run"), hold=hold)
    for turn in range(3):
        made = Folder(tmp_path / f"made{turn}")
        chapter.ensure(f"05.{turn + 1} Make it", made, on=chapter.host)
        chapter.ensure(f"05.{turn + 1} Make it", made, on=chapter.host)
        assert made.path.is_dir()
    assert chapter._ssh.connections == 1
    chapter.close()


def test_a_server_of_one_session_is_refused_in_one_sentence(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    sshd = make_sshd("MaxSessions 1")
    site = lab_site(ssh=Ssh(host=sshd.alias, config=str(sshd.config)))
    chapter = Chapter("05_base", site, Journal(tmp_path / "run"))
    with pytest.raises(ConnectionRefused) as refused:
        chapter.ensure("05.1 Make it", Folder(tmp_path / "made"), on=chapter.host)
    assert "cannot open a session: because the server refuses it" in str(refused.value)
    assert "Try: look at MaxSessions" in str(refused.value)
    assert not (tmp_path / "made").exists()
