"""What the tests of the lab's own stage stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.lab.roots import Roots


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roots]:
    it = Roots(tmp_path_factory.mktemp("roots"))
    try:
        yield it
    finally:
        it.end()
