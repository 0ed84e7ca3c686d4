"""Where runs and site are, from any folder; what is refused, each with its sentence."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from xenlab import durable
from xenlab.cli.terminal import find_site
from xenlab.errors import BadInput

Toml = Callable[..., Path]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a folder of work in it, where nothing counts as temporary."""
    home = tmp_path / "home"
    (home / "work/deep").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for name in ("XENLAB_RUNS", "XENLAB_SITE", "XENLAB_RUN", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(home / "work/deep")
    return home


def write(folder: Path, text: str) -> Path:
    file = folder / durable.SETTINGS
    file.write_text(text)
    return file


def clone(folder: Path) -> Path:
    (folder / ".git").mkdir()
    return folder


def test_without_a_setting_runs_are_in_the_user_s_data_directory(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "work/notebooks").mkdir()
    assert durable.runs_folder() == home / ".local/share/xenlab/runs"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert durable.runs_folder() == home / ".local/share/xenlab/runs"
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    assert durable.runs_folder() == home / "data/xenlab/runs"


def test_the_nearest_file_says_where_and_the_environment_before_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone(home / "work")
    write(home, 'runs = "all"\nsite = "castle.yaml"\n')
    write(home / "work", 'runs = "runs"\n')
    assert durable.runs_folder() == home / "work/runs"
    # the nearest one alone
    assert durable.site_file() is None
    write(home / "work", 'runs = "~/kept"\nsite = "sites/castle.yaml"\n')
    assert durable.runs_folder() == home / "kept"
    assert durable.site_file() == find_site(None) == home / "work/sites/castle.yaml"
    monkeypatch.setenv("XENLAB_RUNS", "here")
    monkeypatch.setenv("XENLAB_SITE", "~/other.yaml")
    assert durable.runs_folder() == home / "work/deep/here"
    assert durable.site_file() == find_site(None) == home / "other.yaml"
    assert find_site(Path("given.yaml")) == Path("given.yaml")


def test_a_clone_keeps_its_runs_beside_its_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XENLAB_RUNS", raising=False)
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root / "notebooks")
    assert durable.runs_folder() == root / "runs"
    assert durable.site_file() is None


@pytest.mark.parametrize("by", ["file", "environment"])
def test_runs_are_not_kept_in_a_temporary_folder_unless_it_was_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(home / "work"))

    def named(folder: str) -> None:
        if by == "file":
            write(home / "work", f'runs = "{folder}"\n')
        else:
            monkeypatch.setenv("XENLAB_RUNS", folder)

    named("runs")
    with pytest.raises(BadInput) as caught:
        durable.runs_folder()
    assert "is thrown away with all in it" in str(caught.value)
    assert f"a temporary folder ({home / 'work'})" in str(caught.value)
    assert "Try: give a whole path" in str(caught.value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "CLONE", home / "work")
        assert durable.runs_folder().name == "runs"
    named(str(home / "work/runs"))
    assert durable.runs_folder() == home / "work/runs"


def test_runs_are_not_kept_where_jupyter_scheduler_copies_notebooks(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = home / durable.STAGING / "1d0"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert durable.runs_folder() == home / ".local/share/xenlab/runs"
    # a folder that was copied with all that is in it
    write(copy, 'runs = "runs"\n')
    with pytest.raises(BadInput, match=r"cannot keep runs in .* because jupyter-scheduler's copy"):
        durable.runs_folder()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("runs =", "cannot read the settings: because Invalid value"),
        ('run = "runs"', "there is no setting run\nTry: call it runs"),
        ('colour = "red"', "there is no setting colour\nTry: use runs and site"),
        ("runs = 3", "runs must be a path in quotes"),
        ('site = ""', "site must be a path in quotes"),
        ('runs = "~nobody-of-this-name/x"', "cannot use ~nobody-of-this-name/x: because there is"),
    ],
)
def test_what_is_wrong_in_the_file_is_said(home: Path, text: str, sentence: str) -> None:
    file = write(home / "work", text)
    with pytest.raises(BadInput) as caught:
        durable.runs_folder()
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ") or "home folder" in sentence or "~" in text


def test_somebody_else_s_file_is_refused_where_anybody_may_put_one(home: Path) -> None:
    """Only root can make a file somebody else's: the rule is asked for a stranger's file."""
    folder = home / "work"
    folder.chmod(0o1777)
    file = write(folder, 'runs = "/elsewhere"\n')
    assert durable.runs_folder() == Path("/elsewhere")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    if os.getuid() == 0:
        os.chown(file, 1234, -1)
        with pytest.raises(BadInput, match="because somebody else put it there"):
            durable.runs_folder()


def test_a_page_says_where_a_run_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = home / ".local/share/xenlab/runs/one"
    assert durable.shown(run) == "~/.local/share/xenlab/runs/one"
    assert durable.shown(Path("/srv/runs/one")) == "/srv/runs/one"
    write(home / "work", 'runs = "runs"\n')
    assert durable.shown(home / "work/runs/one") == "runs/one"
    monkeypatch.setenv("XENLAB_RUN", str(run))
    assert durable.shown(run) == "runs/one"
