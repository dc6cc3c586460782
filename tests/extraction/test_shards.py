"""Shards: which rows each has, and what becomes of one that several write."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess

import h5py
import numpy as np
import pytest

from cnnfeat.address import Address
from cnnfeat.errors import (
    DataError,
    FeatureFileError,
    ImageError,
    OutputExistsError,
    UsageError,
)
from cnnfeat.extraction import Extraction, publishing
from cnnfeat.extraction.publishing import put_shard, write_shard
from cnnfeat.features import FeatureFile, ShardFile
from cnnfeat.options import ExtractOptions
from cnnfeat.shards import ShardNumber
from cnnfeat.temporary import remove_abandoned_folders

SIZES = {"train": 130, "test": 40}


@pytest.fixture
def settled(work):
    """A job over 130 and 40 images in batches of 16, whose shards can be written."""

    def call(source=None, **options):
        options = {"batch_size": 16, **options}
        extraction = Extraction.of(work.CountingNetwork(), ExtractOptions(**options))
        return extraction.settle(source or work.CountingSource(SIZES))

    return call


@pytest.mark.parametrize("text", ["0/4", "5/4", "x", "3", "3/0", "-1/4", "1/4/7", "1.5/4", ""])
def test_what_is_no_shard_is_said_with_what_is(text):
    with pytest.raises(UsageError, match="no shard") as told:
        ShardNumber.parse(text)
    assert told.value.hint == "--shard 3/20 is the third of twenty"
    assert told.value.exit_code == 2


@pytest.mark.parametrize("n_shards", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("batch_size", [1, 16, 15])
def test_shards_have_every_sample_once_in_whole_batches(n_shards, batch_size):
    found = [
        ShardNumber(number, n_shards).rows(SIZES, batch_size=batch_size).samples
        for number in range(1, n_shards + 1)
    ]
    for split, n in SIZES.items():
        rows = [row for shard in found for row in range(*shard[split])]
        assert rows == list(range(n))
        assert all(shard[split][0] % batch_size == 0 or shard[split][0] == n for shard in found)
    assert all(stop > start for start, stop in (shard["train"] for shard in found))


def test_more_shards_than_batches_are_refused_with_both_numbers():
    with pytest.raises(UsageError, match=r"10 shards .* has 9, of 16 images each") as told:
        ShardNumber(1, 10).rows(SIZES, batch_size=16)
    assert "at most 9 shards" in told.value.hint


def test_a_shard_is_a_feature_file_of_its_rows(run, tmp_path):
    result = run(tmp_path / "set", shard=ShardNumber(2, 3))
    path = tmp_path / "set" / "features.0002-of-0003.h5"
    assert result.path == str(path)
    assert result.rows == {"train": 48, "test": 16}  # batches 4 to 6 of 9, the 2nd of 3
    with FeatureFile(path) as file:
        assert file.ids("train") == [f"train/{row}.png" for row in range(48, 96)]
        assert file.ids("test") == [f"test/{row}.png" for row in range(16, 32)]
        np.testing.assert_array_equal(file.labels("train"), np.arange(48, 96) % 2)
    with h5py.File(path) as file:
        assert json.loads(file.attrs["shard"]) == {
            "number": 2,
            "of": 3,
            "samples": {"train": [48, 96], "test": [16, 32]},
        }
        assert list(file["classes"].asstr()) == ["even", "odd"]


def test_shards_and_the_whole_have_the_same_settings(run, tmp_path):
    run(tmp_path / "whole.h5")
    run(tmp_path, shard=ShardNumber(1, 2))
    found = []
    for name in ("whole.h5", "features.0001-of-0002.h5"):
        with h5py.File(tmp_path / name) as file:
            found.append({key: file.attrs[key] for key in file.attrs if key != "created"})
    assert found[1].pop("shard")
    assert found[0] == found[1]


def test_parts_and_groups_are_those_of_the_shards_rows(run, work, tmp_path):
    known = {
        "part": {"train": (np.arange(130) % 3).astype("uint8")},
        "group": {"train": np.arange(130) * 7},
    }
    source = work.CountingSource(SIZES, known=known)
    run(tmp_path, source=source, shard=ShardNumber(3, 3))
    with FeatureFile(tmp_path / "features.0003-of-0003.h5") as file:
        np.testing.assert_array_equal(file.parts("train"), np.arange(96, 130) % 3)
        np.testing.assert_array_equal(file.groups("train"), np.arange(96, 130) * 7)


def test_a_short_split_is_in_some_shards_only(run, work, tmp_path):
    source = work.CountingSource({"train": 130, "test": 5})
    for number in (1, 2):
        run(tmp_path, source=source, shard=ShardNumber(number, 2))
    splits = []
    for number in (1, 2):
        with FeatureFile(tmp_path / f"features.000{number}-of-0002.h5") as file:
            splits.append(file.splits)
    assert splits == [("train",), ("train", "test")]


def test_a_split_whose_samples_of_a_shard_are_all_left_out_has_no_rows_there(run, work, tmp_path):
    source = work.CountingSource(SIZES, bad={"test": set(range(16)), "train": {50}})
    result = run(tmp_path, source=source, on_error="skip", shard=ShardNumber(1, 3))
    assert result.rows == {"train": 48}
    assert len(result.skipped["test"]) == 16
    with ShardFile(tmp_path / "features.0001-of-0003.h5") as file:
        assert file.held == ("train", "test") and file.splits == ("train",)
        assert [one.row for one in file.skipped("test")] == list(range(16))
    run(tmp_path, source=source, on_error="skip", shard=ShardNumber(2, 3))
    with FeatureFile(tmp_path / "features.0002-of-0003.h5") as file:
        assert [one.row for one in file.skipped("train")] == [50]  # of the source, not the shard


def test_a_shard_without_any_row_is_one_of_its_set_but_no_feature_file(run, work, tmp_path):
    source = work.CountingSource({"train": 48}, bad={"train": set(range(16))})
    run(tmp_path, source=source, on_error="skip", shard=ShardNumber(1, 3))
    path = tmp_path / "features.0001-of-0003.h5"
    with pytest.raises(
        DataError, match=r"0001-of-0003\.h5 has no rows: all samples of this"
    ) as told:
        FeatureFile(path)
    assert told.value.hint == "name the set's folder, which cnnfeat merge FOLDER --manifest seals"
    with ShardFile(path) as file:
        assert file.read("train", "fc1").shape == (0, 8)
        assert file.labels("train").shape == (0,)


def test_an_interrupted_shard_goes_on_and_a_whole_one_is_kept(run, work, tmp_path):
    broken = work.CountingSource(SIZES, bad={"train": {85}})
    with pytest.raises(ImageError, match=r"train/85\.png"):
        run(tmp_path, source=broken, shard=ShardNumber(2, 3))
    source = work.CountingSource(SIZES)
    run(tmp_path, source=source, shard=ShardNumber(2, 3), resume=True)
    assert source.read_rows[0] == ("train", 80, 96)
    again = work.CountingSource(SIZES)
    run(tmp_path, source=again, shard=ShardNumber(2, 3), resume=True)
    assert again.read_rows == []
    with pytest.raises(OutputExistsError, match=r"features\.0002-of-0003\.h5 exists"):
        run(tmp_path, shard=ShardNumber(2, 3))


def test_a_file_renamed_to_another_shard_is_not_taken_for_it(run, tmp_path):
    run(tmp_path, shard=ShardNumber(2, 3))
    (tmp_path / "features.0002-of-0003.h5").rename(tmp_path / "features.0003-of-0003.h5")
    with pytest.raises(OutputExistsError, match="is complete and holds other features"):
        run(tmp_path, shard=ShardNumber(3, 3), resume=True)


def test_timed_batch_sizes_are_refused_for_shards(run, tmp_path):
    with pytest.raises(UsageError, match="--batch-size auto times a few sizes") as told:
        run(tmp_path, shard=ShardNumber(1, 2), batch_size="auto")
    assert "--batch-size" in told.value.hint


def test_a_file_where_the_folder_should_be_is_refused(run, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputExistsError, match="is a file, and shards go into a folder"):
        run(tmp_path / "file", shard=ShardNumber(1, 2))


def test_one_job_writes_all_shards(settled, tmp_path):
    job = settled()
    entries = [write_shard(job, ShardNumber(n, 3), tmp_path / "set").entry for n in (2, 1, 3)]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        f"features.000{number}-of-0003.h5" for number in (1, 2, 3)
    ]
    assert entries[0].samples == {"train": (48, 96), "test": (16, 32)}
    assert entries[0].rows == {"train": 48, "test": 16}
    assert entries[0].blocks == {"train": 3, "test": 1}


def test_a_shard_that_is_there_is_not_computed_again(settled, work, tmp_path):
    first = write_shard(settled(), ShardNumber(1, 2), tmp_path)
    source = work.CountingSource(SIZES)
    assert write_shard(settled(source), ShardNumber(1, 2), tmp_path) == first
    assert source.read_rows == []


def test_a_shard_that_is_there_with_other_settings_is_refused(settled, tmp_path):
    write_shard(settled(), ShardNumber(1, 2), tmp_path)
    with pytest.raises(OutputExistsError, match="made with another dtype: float32, not float16"):
        write_shard(settled(dtype="float16"), ShardNumber(1, 2), tmp_path)


def test_a_shard_that_an_older_version_made_is_refused(settled, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("cnnfeat.extraction.plan.DIGEST", "nothing")
        write_shard(settled(), ShardNumber(1, 2), tmp_path)
    with pytest.raises(FeatureFileError, match="another version of cnnfeat than other shards"):
        write_shard(settled(), ShardNumber(1, 2), tmp_path)


def test_a_shard_from_which_nothing_was_left_out_is_kept_whatever_would_have_been(
    settled, work, tmp_path
):
    first = write_shard(settled(), ShardNumber(1, 2), tmp_path)
    source = work.CountingSource(SIZES)
    assert write_shard(settled(source, on_error="skip"), ShardNumber(1, 2), tmp_path) == first
    bad = work.CountingSource(SIZES, bad={"train": {100}})
    write_shard(settled(bad, on_error="skip"), ShardNumber(2, 2), tmp_path)
    assert source.read_rows == []
    with pytest.raises(OutputExistsError, match="made with another on error: skip, not raise"):
        write_shard(settled(), ShardNumber(2, 2), tmp_path)


def test_a_whole_shard_is_complete_to_a_run_that_leaves_samples_out(run, work, tmp_path):
    run(tmp_path, shard=ShardNumber(2, 3))
    again = work.CountingSource(SIZES)
    run(tmp_path, source=again, shard=ShardNumber(2, 3), resume=True, on_error="skip")
    assert again.read_rows == []


def test_a_shard_that_is_there_under_anothers_name_is_refused(settled, tmp_path):
    write_shard(settled(), ShardNumber(1, 2), tmp_path)
    (tmp_path / "features.0001-of-0002.h5").rename(tmp_path / "features.0002-of-0002.h5")
    with pytest.raises(
        OutputExistsError, match=r"0002-of-0002\.h5 is complete, and holds shard 1/2"
    ):
        write_shard(settled(), ShardNumber(2, 2), tmp_path)


class _Scaled:
    """A probe whose features are some times too large."""

    def __init__(self, probe, factor):
        self._probe, self._factor = probe, factor

    def __getattr__(self, name):
        return getattr(self._probe, name)

    def __call__(self, images):
        return tuple(values * self._factor for values in self._probe(images))


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("factor", [1.0, 2.0], ids=["same", "other"])
def test_of_two_that_write_a_shard_the_first_stays(settled, work, tmp_path, monkeypatch, caplog, links, factor):  # fmt: skip  # noqa: E501, PLR0917
    """The second begins while there is no shard, and is done when there is one."""
    if not links:

        def refuse(*_args):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    caplog.set_level("INFO")
    shard = ShardNumber(1, 2)
    other = settled()

    def meanwhile(n_read):
        if n_read == 0:
            write_shard(other, shard, tmp_path)

    slow = settled(work.CountingSource(SIZES, before=meanwhile))
    slow = dataclasses.replace(slow, probe=_Scaled(slow.probe, factor))
    if factor == 1.0:
        write_shard(slow, shard, tmp_path)
        assert "was written twice, with the same rows; the first is kept" in caplog.text
    else:
        with pytest.raises(DataError, match=r"features\.0001-of-0002\.h5 was written twice, with"):
            write_shard(slow, shard, tmp_path)
    with ShardFile(tmp_path / shard.file_name) as file:
        wanted = work.expected(np.arange(64), shape=(8,), times=1.5)
        np.testing.assert_array_equal(file.read("train", "fc1"), wanted)
    assert [path.name for path in tmp_path.iterdir()] == [shard.file_name]


STORED = Address("memory", "bucket/set")


@pytest.fixture
def objects(memory, monkeypatch, tmp_path):
    """By key, the objects of a store in memory; scratch files belong to this test."""
    import fsspec

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return fsspec.filesystem("memory").store


def test_a_shard_is_put_into_a_store_once(settled, work, objects, tmp_path):
    first = put_shard(settled(), ShardNumber(1, 2), STORED)
    (made,) = objects
    assert made == "/bucket/set/features.0001-of-0002.h5"
    beside = write_shard(settled(), ShardNumber(1, 2), tmp_path / "set")
    assert (first.entry.rows, first.entry.checksum) == (beside.entry.rows, beside.entry.checksum)
    assert first.entry.size_bytes == len(objects[made].getvalue())
    source = work.CountingSource(SIZES)
    assert put_shard(settled(source), ShardNumber(1, 2), STORED) == first
    assert source.read_rows == []
    with pytest.raises(OutputExistsError) as told:
        put_shard(settled(dtype="float16"), ShardNumber(1, 2), STORED)
    assert told.value.message == (
        "memory://bucket/set/features.0001-of-0002.h5 is complete, and was made with another "
        "dtype: float32, not float16"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("factor", [1.0, 2.0], ids=["same", "other"])
def test_of_two_that_put_a_shard_into_a_store_the_first_stays(settled, work, objects, factor):
    other, shard = settled(), ShardNumber(1, 2)
    first = []

    def meanwhile(n_read):
        if n_read == 0:
            first.append(put_shard(other, shard, STORED))

    slow = settled(work.CountingSource(SIZES, before=meanwhile))
    slow = dataclasses.replace(slow, probe=_Scaled(slow.probe, factor))
    if factor == 1.0:
        assert put_shard(slow, shard, STORED) == first[0]
    else:
        with pytest.raises(DataError, match=r"^memory://bucket/set/\S+ was written twice, with o"):
            put_shard(slow, shard, STORED)
    (stored,) = objects.values()
    assert len(stored.getvalue()) == first[0].entry.size_bytes


def test_a_disk_that_refuses_the_name_is_told(settled, tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing.os, "link", refuse)
    with pytest.raises(OSError, match=r"features\.0001-of-0002\.h5: can't write: the disk is full"):
        write_shard(settled(), ShardNumber(1, 2), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def start(worker_command, tmp_path):
    """Run worker.py on the second of three shards of 300 and 75 images; it says "ready"."""
    begun = []

    def call(*options):
        process = subprocess.Popen(
            [*worker_command, str(tmp_path / "set"), "--rows", "300", "--shard", "2/3", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield call
    for process in begun:
        process.kill()
        process.communicate()


def _holds(path, work):
    with ShardFile(path) as file:
        assert file.place.samples == {"train": (100, 200), "test": (0, 50)}
        rows = np.arange(100, 200)
        np.testing.assert_array_equal(
            file.read("train", "fc1"), work.expected(rows, shape=(8,), times=1.5)
        )
        assert file.ids("test") == [f"test/{row}.png" for row in range(50)]
        return file.content_checksum()


@pytest.mark.parametrize("how", [["--publish"], ["--resume"]], ids=["published", "resumed"])
def test_a_shard_whose_process_is_killed_is_made_by_the_next(start, work, tmp_path, how):
    killed = start("--hold", "2", *how)
    assert killed.stdout.readline() == "holding\n"
    killed.kill()
    killed.wait()
    folder = tmp_path / "set"
    assert not (folder / "features.0002-of-0003.h5").exists()
    again = start(*how)
    assert again.communicate()[0] == "done\n" and again.returncode == 0
    _holds(folder / "features.0002-of-0003.h5", work)
    remove_abandoned_folders(folder)
    assert [path.name for path in folder.iterdir()] == ["features.0002-of-0003.h5"]


def test_two_processes_write_a_shard_at_once_and_one_is_kept(start, work, tmp_path):
    slow = start("--publish", "--hold", "2")
    assert slow.stdout.readline() == "holding\n"
    quick = start("--publish")
    assert quick.communicate()[0] == "done\n"
    path = tmp_path / "set" / "features.0002-of-0003.h5"
    first = path.stat().st_ino
    assert slow.communicate("\n")[0] == "done\n" and slow.returncode == 0
    assert path.stat().st_ino == first
    _holds(path, work)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_of_two_that_write_a_shard_in_place_the_second_is_refused(start, tmp_path):
    first = start("--hold", "2")
    assert first.stdout.readline() == "holding\n"
    second = start()
    said = second.communicate()[0]
    assert second.returncode == 5
    assert f"features.0002-of-0003.h5 is being written by process {first.pid}" in said
    assert first.communicate("\n")[0] == "done\n"


def test_what_a_dead_maker_left_is_removed_but_not_a_living_ones(start, tmp_path):
    folder = tmp_path / "set"
    dead = start("--publish", "--hold", "2")
    assert dead.stdout.readline() == "holding\n"
    dead.kill()
    dead.wait()
    living = start("--publish", "--hold", "2")
    assert living.stdout.readline() == "holding\n"
    assert len(list(folder.iterdir())) == 2
    remove_abandoned_folders(folder)
    assert len(list(folder.iterdir())) == 1
    assert living.communicate("\n")[0] == "done\n"
