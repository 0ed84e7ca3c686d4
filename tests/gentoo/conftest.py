"""The roots with Portage and OpenRC, once for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.gentoo.roots import Roots


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roots]:
    it = Roots(tmp_path_factory.mktemp("roots"))
    try:
        yield it
    finally:
        it.end()
