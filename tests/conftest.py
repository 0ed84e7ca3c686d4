"""What holds for all tests."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# How long one example takes says something about the machine's load, nothing about the code.
settings.register_profile("xenlab", deadline=None)
settings.load_profile("xenlab")


@pytest.fixture(scope="session", autouse=True)
def own_python() -> Iterator[None]:
    """``python3`` is this one: a version manager's, a shell script, takes ten times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        yield
