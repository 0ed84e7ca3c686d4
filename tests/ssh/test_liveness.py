"""The wire: when a silent peer counts as dead."""

from __future__ import annotations

import pytest

from xenlab.transport.liveness import LivenessSocket


class Line:
    """A peer whose silence, answers and full buffers are told what to be."""

    def __init__(self) -> None:
        self.answer: bytes | None = None
        self.room = True
        self.closed = 0

    def recv(self, size: int) -> bytes:
        if self.answer is None:
            raise TimeoutError
        return self.answer

    def send(self, data: bytes) -> int:
        if not self.room:
            raise TimeoutError
        return len(data)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("xenlab.transport.liveness.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def tested(clock: list[float], line: Line) -> LivenessSocket:
    return LivenessSocket(line, 30.0, lambda: None)


def receive(tested: LivenessSocket) -> bytes | None:
    try:
        return tested.recv(10)
    except TimeoutError:
        return None


def test_silence_without_a_question_is_fine(tested: LivenessSocket, clock: list[float]) -> None:
    clock[0] += 299
    assert receive(tested) is None


def test_a_question_without_an_answer(tested: LivenessSocket, clock: list[float]) -> None:
    tested.asked()
    clock[0] += 20
    tested.asked()
    assert receive(tested) is None
    clock[0] += 11
    with pytest.raises(EOFError):
        receive(tested)
    assert tested.silent
    with pytest.raises(EOFError):
        receive(tested)


def test_an_answer_settles_the_question(
    tested: LivenessSocket, clock: list[float], line: Line
) -> None:
    tested.asked()
    clock[0] += 29
    line.answer = b"here"
    assert receive(tested) == b"here"
    line.answer = None
    clock[0] += 100
    assert receive(tested) is None


def test_an_endless_key_exchange(tested: LivenessSocket, clock: list[float]) -> None:
    clock[0] += 331
    with pytest.raises(EOFError):
        receive(tested)


def test_a_peer_that_takes_nothing(tested: LivenessSocket, clock: list[float], line: Line) -> None:
    line.room = False
    for wait in (0, 29):
        clock[0] += wait
        with pytest.raises(TimeoutError):
            tested.send(b"x")
    line.room = True
    assert tested.send(b"x") == 1
    line.room = False
    with pytest.raises(TimeoutError):
        tested.send(b"x")
    clock[0] += 31
    with pytest.raises(EOFError):
        tested.send(b"x")


def test_closing_twice_closes_once(tested: LivenessSocket, line: Line) -> None:
    tested.close()
    tested.close()
    assert line.closed == 1
