"""The real lab, once for all tests: an empty disk that becomes a Xen host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.browser.conftest import browser, jupyter
from tests.whole_lab import Site, fresh

# one browser for all modules: Playwright can be started once in a process
__all__ = ["browser", "jupyter"]

NAME = "test"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A lab of its own beside any other, with an empty disk, in its rescue system."""
    yield from fresh("lab", NAME, tmp_path_factory.mktemp("site"))
