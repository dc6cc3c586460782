"""Temporary files and folders go with their makers, or when the next of their kind is made."""

from __future__ import annotations

import errno
import fcntl
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cnnfeat.files import check_output, replacing
from cnnfeat.temporary import temporary_file, temporary_folder

HOLD = """
import sys
from pathlib import Path
from cnnfeat.temporary import temporary_file, temporary_folder
with temporary_file(Path(sys.argv[1])) as file, temporary_folder() as folder:
    print(file, flush=True)
    print(folder, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another process that makes a temporary file of out.npz and a folder; and their names."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out.npz")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    names = [Path(process.stdout.readline().strip()) for _ in range(2)]
    yield process, names
    process.kill()
    process.communicate()


def test_what_a_killed_maker_left_is_removed_and_said(maker, tmp_path, caplog):
    process, (file, folder) = maker
    (folder / "inside").touch()
    process.kill()
    process.communicate()
    assert file.exists()
    with caplog.at_level(logging.INFO, "cnnfeat"):
        with temporary_file(tmp_path / "out.npz"):
            assert not file.exists()
        with temporary_folder():
            assert not folder.exists()
    assert caplog.messages == [
        f"{path} was left by a run that was killed; removed" for path in (file, folder)
    ]
    assert list(tmp_path.iterdir()) == []


def test_it_makes_room_before_room_is_asked_for(maker, tmp_path):
    process, (file, _) = maker
    process.kill()
    process.communicate()
    check_output(tmp_path / "out.npz", overwrite=False)
    assert not file.exists()


def test_what_a_living_maker_holds_stays(maker, tmp_path):
    _, (file, folder) = maker
    with temporary_file(tmp_path / "out.npz"), temporary_folder():
        assert file.exists()
        assert folder.exists()


def test_files_of_other_names_stay(maker, tmp_path):
    process, (file, _) = maker
    process.kill()
    process.communicate()
    own = tmp_path / ".out.settings.npz"
    own.touch()
    for name in ("other.npz", "out.csv", "ou[t].npz"):
        with replacing(tmp_path / name):
            pass
    assert file.exists()
    assert own.exists()


def test_a_name_is_no_pattern(tmp_path):
    (tmp_path / ".at.cnnfeat-12345678.npz").touch()
    with replacing(tmp_path / "[a]t.npz"):
        assert (tmp_path / ".at.cnnfeat-12345678.npz").exists()


def test_one_that_was_taken_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    taken, lock = [], fcntl.flock

    def take_first(handle, operation):
        if not taken:
            taken.extend(tmp_path.glob(".out.*"))
            taken[0].unlink()
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", take_first)
    with temporary_file(tmp_path / "out.npz") as file:
        assert file.exists()
        assert taken != [file]


def test_a_folder_that_was_taken_before_it_was_opened_is_made_anew(tmp_path, monkeypatch):
    make, made = tempfile.mkdtemp, []

    def make_for_another(**how: object) -> str:
        made.append(Path(make(**how)))
        if len(made) == 1:  # as another process does, that found nobody holding it
            made[0].rmdir()
        return str(made[-1])

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "mkdtemp", make_for_another)
    with temporary_folder() as folder:
        assert folder == made[1]
        assert folder.is_dir()
    assert not folder.exists()


def test_where_there_are_no_locks_nothing_is_taken_for_abandoned(tmp_path, monkeypatch):
    def fail(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    with temporary_file(tmp_path / "out.npz") as first:
        monkeypatch.setattr(fcntl, "flock", fail)
        with temporary_file(tmp_path / "out.npz") as second:
            assert first.exists()
            assert second.exists()
    assert list(tmp_path.iterdir()) == []
