"""Outputs appear whole or not at all."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import lock_descriptor, unlock_descriptor

from cnnfeat import files
from cnnfeat.errors import LockedError, OutputExistsError, StorageError
from cnnfeat.files import check_output, csv_lines, locked, replacing, write_json


def test_a_finished_block_gives_the_final_name(tmp_path: Path):
    with replacing(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("whole", "utf-8")
        assert temporary.suffix == ".txt"
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_text("utf-8") == "whole"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_file(tmp_path: Path, error: type[BaseException]):
    out = tmp_path / "a.txt"
    out.write_text("old", "utf-8")
    with pytest.raises(error), replacing(out) as temporary:
        temporary.write_text("ne", "utf-8")
        raise error
    assert out.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_the_file_gets_the_permissions_of_any_new_file(tmp_path: Path):
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "ours") as temporary:
        temporary.write_bytes(b"")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")]
    assert modes[0] == modes[1]


def test_an_existing_output_is_refused(tmp_path: Path):
    out = tmp_path / "a"
    out.write_text("old", "utf-8")
    with pytest.raises(OutputExistsError, match="a exists") as caught:
        check_output(out, overwrite=False)
    assert "--overwrite" in caught.value.hint
    check_output(out, overwrite=True)
    assert out.read_text("utf-8") == "old"


def test_a_folder_is_no_output(tmp_path: Path):
    with pytest.raises(OutputExistsError, match="is a folder"):
        check_output(tmp_path, overwrite=True)


def test_too_little_room_is_found_before_the_work(tmp_path: Path):
    with pytest.raises(StorageError, match=r"needs 1,000,000,000,000,000,000 bytes, and .* free"):
        check_output(tmp_path / "a", overwrite=False, needed_bytes=10**18)


def test_a_folder_that_cannot_be_made_is_found_before_the_work(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="can't write"):
        check_output(tmp_path / "file" / "a", overwrite=False)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_a_folder_that_cannot_be_written_is_found_before_the_work():
    with pytest.raises(StorageError, match="can't write /proc/self/a"):  # not even by root
        check_output(Path("/proc/self/a"), overwrite=False)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(StorageError, match=r"can't write .*a: No space left") as caught,
        replacing(tmp_path / "a"),
    ):
        raise full
    assert caught.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []


def test_json_is_written_whole_and_refuses_nan(tmp_path: Path):
    write_json(tmp_path / "a.json", {"b": [1, "é"]})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"b": [1, "é"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"c": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_csv_brings_every_text_back(tmp_path: Path):
    rows = [["a\rb", "c\nd", 'e"f', "g,h"], ["", "plain", "\r\n", "é"]]
    (tmp_path / "a.csv").write_text("".join(csv_lines(rows)), "utf-8", newline="")
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as lines:
        assert list(csv.reader(lines)) == rows
    assert list(csv_lines([("x", 1, None)])) == ["x,1,\n"]


def test_lock_is_one_even_while_it_is_removed(tmp_path: Path):
    def is_refused():
        with (
            pytest.raises(LockedError, match=rf"written by process {os.getpid()}\b"),
            locked(tmp_path / "f"),
        ):
            pass
        return True

    with locked(tmp_path / "f"):
        assert is_refused()
        assert (tmp_path / "f.lock").read_text() == str(os.getpid())
    with locked(tmp_path / "f"):
        assert is_refused()
    assert list(tmp_path.iterdir()) == []


def test_lock_that_is_let_go_meanwhile_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lock = tmp_path / "f.lock"
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    assert lock_descriptor(handle, blocking=False)

    def let_go(path: Path) -> None:
        assert path == lock
        lock.unlink()
        unlock_descriptor(handle)

    monkeypatch.setattr(files, "_process_in", let_go)
    with locked(tmp_path / "f"):
        assert lock.read_text() == str(os.getpid())
    os.close(handle)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_file_systems_without_locks_are_named(tmp_path, monkeypatch, number):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match="its file system has no locks") as caught:
        locked(tmp_path / "f").__enter__()
    assert not isinstance(caught.value, LockedError)
    assert "free" not in caught.value.hint


def test_lock_whose_holder_gives_no_number_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "_HOLDER_WAIT_S", 0.0)
    handle = os.open(tmp_path / "f.lock", os.O_RDWR | os.O_CREAT)
    assert lock_descriptor(handle, blocking=False)
    with pytest.raises(LockedError, match="f is being written by process unknown"):
        locked(tmp_path / "f").__enter__()
    os.close(handle)
    with locked(tmp_path / "f"):
        pass


def test_output_that_another_process_writes_is_refused(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from cnnfeat.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "f")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=rf"is being written by process {process.pid}\b"):
            check_output(tmp_path / "f", overwrite=True)
    check_output(tmp_path / "f", overwrite=False)


def test_a_check_leaves_no_folder(tmp_path):
    check_output(tmp_path / "a" / "b" / "x.h5", overwrite=False, needed_bytes=10)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"can't write .*x\.h5: Not a directory"):
        check_output(tmp_path / "file" / "b" / "x.h5", overwrite=False)


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path):
    def failing() -> None:
        with locked(tmp_path / "a" / "x.h5"), replacing(tmp_path / "a" / "b" / "y.txt") as path:
            path.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), locked(tmp_path / "c" / "x.h5"):
        (tmp_path / "c" / "kept").write_text("")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["kept"]
