"""The cache of built things: built once, keyed by its inputs, never half-made."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.smalldisk import disk_that_loses_its_power

from xenlab import durable
from xenlab.cache import cache_root, cached, locked
from xenlab.errors import BadInput


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XENLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_root_follows_the_environment(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_root() == root
    monkeypatch.delenv("XENLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "xenlab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "xenlab"
    monkeypatch.setenv("XENLAB_CACHE", "cache")
    with pytest.raises(BadInput, match="cannot use the cache folder cache: because its path is"):
        cache_root()


def test_built_once_for_the_same_inputs_and_again_for_others() -> None:
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "thing").write_text("x")

    first = cached("kind", {"a": 1, "b": [2]}, build)
    assert cached("kind", {"b": [2], "a": 1}, build) == first
    assert (first / "thing").read_text() == "x"
    assert cached("kind", {"a": 2}, build) != first
    assert len(built) == 2


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failed_build_leaves_nothing(root: Path, failure: type[BaseException]) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise failure("stop")

    with pytest.raises(failure):
        cached("kind", {}, build)
    assert [path for path in (root / "kind").iterdir() if path.is_dir()] == []


def test_what_was_built_is_whole_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(folder: Path) -> None:
        (folder / "boot").mkdir()
        (folder / "boot/vmlinuz").write_text("a kernel")

    with disk_that_loses_its_power(tmp_path / "disk") as cut:
        monkeypatch.setenv("XENLAB_CACHE", f"{tmp_path}/disk")
        folder = cached("kind", {}, build)
        after = cut() / "kind" / folder.name
        assert (after / "boot/vmlinuz").read_text() == "a kernel"
        assert (after / "inputs.json").read_text() == "{}\n"


def test_what_a_killed_build_left_is_not_mixed_in(root: Path) -> None:
    code = (
        "import os, signal\n"
        "from xenlab.cache import cached\n"
        "def build(folder):\n"
        "    (folder / 'half').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "cached('kind', {}, build)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert any(path.is_dir() for path in (root / "kind").iterdir())
    folder = cached("kind", {}, lambda there: None)
    assert sorted(path.name for path in folder.iterdir()) == ["inputs.json"]


def test_many_at_once_build_once() -> None:
    built = []

    def build(folder: Path) -> None:
        built.append(folder)

    with ThreadPoolExecutor(8) as pool:
        folders = {f.result() for f in [pool.submit(cached, "kind", {}, build) for _ in range(8)]}
    assert len(built) == 1
    assert len(folders) == 1


def test_what_went_in_is_private_and_holds_no_credentials(root: Path) -> None:
    folder = cached("thing", {"proxy": "http://me:pass@proxy:3128"}, lambda _: None)
    inputs = folder / "inputs.json"
    assert inputs.stat().st_mode & 0o777 == 0o600
    assert json.loads(inputs.read_text()) == {"proxy": "http://me:•••@proxy:3128"}


def test_a_lock_can_be_asked_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path), pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    with locked(path, wait=False):
        pass


def test_a_file_is_replaced_whole_with_the_mode_that_it_shall_have(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.replace(path, b"one", mode=0o666)
    assert path.stat().st_mode & 0o777 == 0o666
    durable.replace(path, b"two")
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_built_is_its_owner_s_alone(root: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "inside").mkdir()
        for file in (folder / "image", folder / "inside" / "tool"):
            file.write_text("built")
            file.chmod(0o755)
        (folder / "link").symlink_to("image")

    folder = cached("stage", {}, build)
    paths = [folder.parent, folder, *folder.rglob("*")]
    assert [path for path in paths if not path.is_symlink() and path.stat().st_mode & 0o077] == []
    folder.parent.chmod(0o755)
    assert cached("stage", {}, build) == folder
    assert folder.parent.stat().st_mode & 0o077 == 0
