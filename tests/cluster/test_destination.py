"""Where a cluster's shards go, and what is written of them at the end."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import BinaryIO

import fsspec
import pytest

from cnnfeat.address import Address
from cnnfeat.cluster import written
from cnnfeat.cluster.destination import _Folder, _Stored
from cnnfeat.cluster.written import WrittenShards
from cnnfeat.errors import LockedError, OutputExistsError, StorageError
from cnnfeat.extraction.publishing import WrittenShard
from cnnfeat.features import ShardEntry
from cnnfeat.records import SkippedSample

N_SHARDS = 3
STORED = Address("memory", "bucket/set")
NAMES = [f"features.000{number}-of-0003.h5" for number in (1, 2, 3)]


def entry(number: int) -> ShardEntry:
    return ShardEntry(
        name=NAMES[number - 1],
        samples={"all": (number * 10 - 10, number * 10)},
        rows={"all": 10 - (number != 2)},
        blocks={"all": 1},
        size_bytes=400 + number,
        checksum="0" * 16,
    )


def skipped(number: int) -> SkippedSample:
    return SkippedSample(number * 10 - 5, f"{number}.png", "can't be read")


@pytest.fixture
def shards():
    """Three, which came in another order; something was left out of two of them."""
    with WrittenShards.kept(N_SHARDS) as made:
        for number in (3, 1, 2):
            left_out = () if number == 2 else (skipped(number),)
            made.add(number, WrittenShard(entry(number), {"all": left_out}))
        yield made


@pytest.fixture(params=["folder", "stored"])
def place(request, tmp_path, memory, monkeypatch):
    """A destination, and what puts a file there or takes one away."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder, files = tmp_path / "set", fsspec.filesystem("memory")
    folder.mkdir()

    class Place:
        stored = request.param == "stored"
        made = _Stored(STORED) if stored else _Folder(folder)

        def put(self, name: str, data: bytes) -> None:
            if self.stored:
                memory(f"bucket/set/{name}", data)
            else:
                (folder / name).write_bytes(data)

        def get(self, name: str) -> bytes:
            return files.cat(f"bucket/set/{name}") if self.stored else (folder / name).read_bytes()

        def names(self) -> list[str]:
            found = files.ls("bucket/set", detail=False) if self.stored else folder.iterdir()
            return sorted(str(name).rpartition("/")[2] for name in found)

    return Place()


def test_entries_come_back_in_the_order_of_their_numbers(shards):
    assert list(shards) == [entry(1), entry(2), entry(3)]
    assert list(shards) == [entry(1), entry(2), entry(3)]
    assert shards.rows == {"all": 28}
    assert shards.size_bytes == 401 + 402 + 403
    assert shards.skipped() == {"all": (skipped(1), skipped(3))}


def _full() -> BinaryIO:
    return Path("/dev/full").open("r+b")


def test_a_disk_that_is_full_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(written, "TemporaryFile", _full)
    with (
        pytest.raises(StorageError, match=rf"{tmp_path}: can't write: ") as told,
        WrittenShards.kept(1) as shards,
    ):
        shards.add(1, WrittenShard(entry(1), {}))
    assert told.value.__cause__.errno == errno.ENOSPC


def test_of_two_drivers_the_second_is_refused(place):
    words = rf"{place.made} is being written by process {os.getpid()}\b"
    with place.made.held(), pytest.raises(LockedError, match=words), place.made.held():
        pytest.fail("held twice")
    with place.made.held():
        pass


def test_nothing_is_left_of_a_folder_that_nothing_came_into(tmp_path):
    new, own, filled = tmp_path / "new" / "set", tmp_path / "own", tmp_path / "filled"
    own.mkdir()
    for folder in (new, own, filled):
        with _Folder(folder).held():
            _Folder(folder).check(N_SHARDS)
            assert folder.is_dir()
            if folder == filled:
                (folder / NAMES[0]).touch()
    assert not new.exists()
    assert own.is_dir()
    assert [path.name for path in filled.iterdir()] == NAMES[:1]


def test_the_manifest_lists_them_when_all_are_there(place, shards):
    place.made.check(N_SHARDS)
    for number, name in enumerate(NAMES, 1):
        place.put(name, bytes(400 + number))
    place.made.check(N_SHARDS)
    place.made.seal({"layer": "fc1"}, shards)
    assert place.names() == [*NAMES, "manifest.json"]
    said = json.loads(place.get("manifest.json"))
    assert said["settings"] == {"layer": "fc1"}
    assert [shard["name"] for shard in said["shards"]] == NAMES
    place.made.check(N_SHARDS)


@pytest.mark.parametrize("size_bytes", [None, 400], ids=["gone", "shorter"])
def test_a_shard_that_is_not_as_it_was_written_is_told(place, shards, size_bytes):
    place.put(NAMES[0], bytes(401))
    if size_bytes:
        place.put(NAMES[1], bytes(size_bytes))
    with pytest.raises(StorageError, match=r"set: features\.0002-of-0003\.h5 was written, and is") as told:  # fmt: skip  # noqa: E501
        place.made.seal({}, shards)
    assert told.value.hint == "the same command makes what is missing"
    assert "manifest.json" not in place.names()


def test_shards_of_another_division_are_refused(place):
    place.put(NAMES[1], b"")
    with pytest.raises(OutputExistsError, match=r"set/features.0002-of-0003.h5 is one of 3 shards, and 4"):  # fmt: skip  # noqa: E501
        place.made.check(4)


def test_another_program_s_manifest_is_refused(place):
    place.put("manifest.json", b"{}")
    with pytest.raises(OutputExistsError, match=r"set/manifest\.json is no manifest of shards"):
        place.made.check(N_SHARDS)


def test_what_stands_where_the_folder_would_be_is_refused(memory, tmp_path):
    memory("bucket/set", b"something")
    with pytest.raises(OutputExistsError, match="memory://bucket/set is an object, and shards go"):
        _Stored(STORED).check(N_SHARDS)
    (tmp_path / "set").write_bytes(b"something")
    with pytest.raises(OutputExistsError, match=r"set is a file, and shards go into a folder"):
        _Folder(tmp_path / "set").check(N_SHARDS)
