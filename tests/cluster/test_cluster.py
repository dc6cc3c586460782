"""A set that the workers of a Dask cluster compute, and what can happen meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from cnnfeat.cluster import ClusterOptions, driver, worker
from cnnfeat.cluster.checking import check_workers
from cnnfeat.cluster.connection import connected, workers_of
from cnnfeat.errors import (
    DataError,
    ImageError,
    Interrupted,
    LockedError,
    OutputExistsError,
    StorageError,
    UsageError,
)
from cnnfeat.files import locked
from cnnfeat.options import DataOptions, ExtractOptions


def rows(folder: Path, split: str, name: str) -> np.ndarray:
    """A column of all shards, read by h5py alone."""
    parts = []
    for path in sorted(folder.glob("features.*.h5")):
        with h5py.File(path) as file:
            if split in file:
                parts.append(file[split][name][:])
    return np.concatenate(parts)


def check(folder: Path, single: Path) -> None:
    """Compare a set with one run's file, byte for byte."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    names = sorted(path.name for path in folder.glob("features.*.h5"))
    assert [shard["name"] for shard in manifest["shards"]] == names
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "manifest.json"])
    with h5py.File(single) as file:
        for split, name in itertools.product(("train", "test"), ("conv1", "label", "id")):
            np.testing.assert_array_equal(rows(folder, split, name), file[split][name][:])


@pytest.fixture
def single(model, pictures, tmp_path) -> Path:
    """What one process makes of it."""
    import cnnfeat

    options = ExtractOptions(layer=("conv1",), batch_size=16)
    cnnfeat.extract(model, pictures, options, out=tmp_path / "single.h5")
    return tmp_path / "single.h5"


def test_a_set_has_the_bytes_of_one_run(extract, single, tmp_path):
    result = extract()
    assert result.rows == {"train": 150, "test": 30}
    assert result.skipped == {}
    check(tmp_path / "set", single)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("*.h5")}
    assert extract().rows == result.rows
    assert before == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "set").glob("*.h5")}


@pytest.mark.slow
def test_asked_to_stop_it_keeps_what_is_done_and_goes_on_later(extract, single, tmp_path):
    def stop_soon() -> bool:
        return any((tmp_path / "set").glob("features.*.h5"))

    with pytest.raises(Interrupted, match=r"stopped after [1-9] of 10 shards, kept in") as stopped:
        extract(stopping=lambda: contextlib.nullcontext(stop_soon))
    assert stopped.value.hint == "the same command goes on from there"
    assert not (tmp_path / "set" / "manifest.json").exists()
    n_kept = len(list((tmp_path / "set").glob("features.*.h5")))
    assert 1 <= n_kept < 10
    extract()
    check(tmp_path / "set", single)


@pytest.mark.slow
def test_a_picture_that_cant_be_read_fails_the_run_with_its_shard(extract, cluster, tmp_path, rng):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(40):
        image = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8))
        image.save(folder / f"{number:02d}.png")
    (folder / "21.png").write_bytes(b"nothing")
    given = {
        "data": DataOptions(source=str(folder)),
        "cluster": ClusterOptions(cluster.scheduler_address, shards=5),
    }
    options = ExtractOptions(layer=("conv1",), batch_size=8)
    with pytest.raises(ImageError, match=r"^shard 3/5: .*21\.png: ") as caught:
        extract(**given, options=options)
    assert caught.value.exit_code == 3
    kept = {path.name: path.stat().st_ino for path in (tmp_path / "set").glob("*.h5")}
    left = ExtractOptions(layer=("conv1",), batch_size=8, on_error="skip")
    result = extract(**given, options=left)
    assert result.rows == {"all": 39}
    assert kept.items() <= {p.name: p.stat().st_ino for p in (tmp_path / "set").iterdir()}.items()
    assert [one.id for one in result.skipped["all"]] == ["21.png"]


def test_of_two_drivers_the_second_is_refused(extract, tmp_path):
    with (
        locked(tmp_path / "set"),
        pytest.raises(LockedError, match=rf"is being written by process {os.getpid()}"),
    ):
        extract()


def test_another_programs_manifest_is_seen_before_anything_is_computed(extract, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "manifest.json").write_text("{}", "utf-8")
    with pytest.raises(OutputExistsError, match=r"manifest\.json is no manifest of shards"):
        extract()
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["manifest.json"]


@pytest.mark.slow
def test_shards_of_something_else_are_refused(extract, cluster, tmp_path):
    extract()
    options = ClusterOptions(cluster.scheduler_address, shards=7)
    with pytest.raises(OutputExistsError, match="is one of 10 shards, and 7 are asked") as caught:
        extract(cluster=options)
    assert "--shards 10" in caught.value.hint
    layers = ExtractOptions(layer=("fc1",), batch_size=16)
    with pytest.raises(OutputExistsError, match=r"shard \d+/10: .*made with another layer: conv1"):
        extract(options=layers)


def test_a_worker_that_sees_other_images_is_named(extract, monkeypatch, pictures, tmp_path):
    """The images change between what this process finds and what a worker finds."""
    placed = driver._placed

    def moved(data, images):
        images.fingerprint()
        changed = dict(np.load(pictures))
        np.savez(pictures, **{**changed, "y_test": changed["y_test"][::-1]})
        return placed(data, images)

    monkeypatch.setattr(driver, "_placed", moved)
    with pytest.raises(DataError, match=r"worker tcp://.*: data fingerprint is .* there, and"):
        extract()
    monkeypatch.setattr(driver, "_placed", lambda data, images: DataOptions(source="/gone.npz"))
    with pytest.raises(DataError, match=r"worker tcp://.*: no data source '/gone.npz'") as caught:
        extract()
    assert "the same files under the same names" in caught.value.hint
    assert caught.value.exit_code == 3
    assert not list((tmp_path / "set").glob("*"))


def test_a_worker_that_does_not_see_the_folder_is_named(cluster, task_in, tmp_path):
    work = task_in(tmp_path / "set")
    words = rf"^worker tcp://\S+: there is no folder {tmp_path}/set here, which the driver has"
    with (
        connected(cluster.scheduler_address) as client,
        pytest.raises(StorageError, match=words) as told,
    ):
        check_workers(client, work, {})
    assert told.value.hint.startswith("name one with -o that all workers see")
    assert not (tmp_path / "set").exists()


def test_a_shard_computed_several_times_at_once_is_there_once(
    extract, monkeypatch, single, tmp_path
):
    compute = driver._compute

    def several(client, work, settings, division, **given):
        futures = [
            client.submit(worker.compute, work, 3, settings, pure=False, workers=[one.address])
            for one in workers_of(client) * 3
        ]
        assert {future.result().failure for future in futures} == {None}
        compute(client, work, settings, division, **given)

    monkeypatch.setattr(driver, "_compute", several)
    extract()
    check(tmp_path / "set", single)


def test_more_shards_than_batches_are_refused(extract, cluster):
    options = ClusterOptions(cluster.scheduler_address, shards=11)
    with pytest.raises(UsageError, match="11 shards are more than there are batches"):
        extract(cluster=options)


def test_a_killed_worker_costs_its_shard_and_no_row(extract, cluster, single, tmp_path):
    killed = []

    def stop_never() -> bool:
        if not killed and any((tmp_path / "set").glob("features.*.h5")):
            killed.append(next(iter(cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)
        return False

    extract(stopping=lambda: contextlib.nullcontext(stop_never))
    assert killed
    check(tmp_path / "set", single)
