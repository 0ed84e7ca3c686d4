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
def own_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """``python3`` is this one: a version manager's, a shell script, takes ten times as long.

    The data directory is not the user's: a run that no setting places elsewhere is kept there.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        yield
