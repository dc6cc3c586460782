"""Pictures that a source has got since its features were made: added, where the others are proved.

A picture is a number, its row a known function of it: what is computed, and what is copied, shows.
"""

from __future__ import annotations

import shutil
import zlib
from dataclasses import replace

import h5py
import numpy as np
import pytest
import xxhash

from cnnfeat.errors import DataError, Interrupted, StorageError, UsageError
from cnnfeat.extraction import Extraction, existing, growing
from cnnfeat.extraction import extract as run
from cnnfeat.extraction.adding import add_to
from cnnfeat.features import FeatureFile, verify_file
from cnnfeat.features.merging import merge_shards, seal_set
from cnnfeat.features.seal import row_checksums
from cnnfeat.options import ExtractOptions
from cnnfeat.shards import ShardNumber

HAD = {"train": list(range(0, 200, 4)), "test": list(range(1000, 1020))}
KINDS = {
    "at the end": {"train": [*HAD["train"], *range(201, 230)], "test": HAD["test"]},
    "at the start": {"train": [*range(201, 230), *HAD["train"]], "test": HAD["test"]},
    "in the middle": {"train": list(range(200)), "test": HAD["test"]},
    "here and there": {
        "train": sorted([*HAD["train"], 1, 49, 50, 51, 195]),
        "test": [*range(990, 1000), *HAD["test"], 1020],
    },
    "in one split": {"train": HAD["train"], "test": [999, *HAD["test"]]},
    "nowhere": HAD,
}


@pytest.fixture(autouse=True)
def noon(monkeypatch):
    """Files are made at one time, so that they can be compared to the byte."""
    monkeypatch.setattr("cnnfeat.features.writer._now", lambda: "2026-11-30T12:00:00+00:00")


@pytest.fixture
def pictures(work):
    """Make a source of some numbers a split: the picture, its name and its label come of each."""

    class Pictures(work.CountingSource):
        def __init__(self, numbers, **how):
            super().__init__({split: len(found) for split, found in numbers.items()}, **how)
            self.numbers = {split: np.array(found) for split, found in numbers.items()}
            self.content = repr(numbers)
            self.changed: set[int] = set()

        def labels(self, split):
            return self.numbers[split] % 2

        def _batch(self, split, start, stop, on_error):
            found = super()._batch(split, start, stop, on_error)
            rows = [int(one.split("/")[1][:-4]) for one in found.ids]
            numbers = self.numbers[split][rows]
            for place in range(4):
                found.images[:, 0, place, 0] = numbers >> (8 * place) & 255
            found.images[np.isin(numbers, list(self.changed)), 3, 3, 0] = 1
            skipped = [
                work.SkippedSample(one.row, f"{self.numbers[split][one.row]}.png", one.reason)
                for one in found.skipped
            ]
            ids = tuple(f"{number}.png" for number in numbers)
            return replace(found, ids=ids, labels=numbers % 2, skipped=tuple(skipped))

    return Pictures


class Probe:
    """Counts the pictures that are computed."""

    def __init__(self, probe):
        self._probe = probe
        self.numbers: list[int] = []

    def __getattr__(self, name):
        return getattr(self._probe, name)

    def __call__(self, images):
        places = images[:, 0, :4, 0].astype(np.int64)
        self.numbers += (places << np.arange(0, 32, 8)).sum(axis=1).tolist()
        return self._probe(images)


@pytest.fixture
def probe(work):
    return Probe(work.CountingProbe())


@pytest.fixture
def extract(work, pictures):
    """Extract numbers, or shards of them."""

    def call(numbers, out, *, n_shards=None, bad=None, **options):
        how = ExtractOptions(**{"batch_size": 16, **options})
        for shard in [ShardNumber(k + 1, n_shards) for k in range(n_shards or 0)] or [None]:
            run(work.CountingNetwork(), pictures(numbers, bad=bad), how, out=out, shard=shard)
        if n_shards:
            seal_set(out)
        return out

    return call


@pytest.fixture
def add(work, pictures, probe):
    """Add the pictures of a source, which is made of numbers unless it is one."""

    def call(source, out, *, stop=None, **options):
        source = pictures(source) if isinstance(source, dict) else source
        how = ExtractOptions(**{"batch_size": 16, **options})
        extraction = Extraction.of(work.CountingNetwork(probe), how)
        return add_to(extraction, source, out=out, should_stop=stop)

    call.computed = probe.numbers
    return call


def refused(add, source, out, *, words, **options):
    """Add, and see that nothing is done."""
    before = out.read_bytes()
    with pytest.raises(DataError, match=words) as told:
        add(source, out, **options)
    assert told.value.exit_code == 3
    assert "extract all anew" in told.value.hint
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("now", KINDS.values(), ids=KINDS)
def test_a_grown_file_is_that_of_a_fresh_run_and_what_is_there_is_not_computed(
    extract, add, tmp_path, now
):
    path = extract(HAD, tmp_path / "f.h5")
    result = add(now, path)
    assert path.read_bytes() == extract(now, tmp_path / "fresh.h5").read_bytes()
    assert result.rows == {split: len(found) for split, found in now.items()}
    had = {number for found in HAD.values() for number in found}
    assert sorted(add.computed) == sorted({n for found in now.values() for n in found} - had)
    assert verify_file(path).damages == ()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["f.h5", "fresh.h5"]


@pytest.mark.parametrize("kind", ["at the end", "in the middle"])
def test_pictures_that_are_added_get_copies_too(extract, add, tmp_path, kind):
    now = KINDS[kind]
    how = {"augment_copies": 2, "augment": (("rotation", 5.0),)}
    path = extract(HAD, tmp_path / "f.h5", **how)
    add(now, path, **how)
    assert path.read_bytes() == extract(now, tmp_path / "fresh.h5", **how).read_bytes()
    new = set(now["train"]) - set(HAD["train"])
    assert sorted(add.computed) == sorted([*new] * 3)


@pytest.mark.parametrize(
    ("kind", "n_shards"),
    [*((kind, 2) for kind in KINDS), ("in the middle", 1), ("in one split", 4)],
)
def test_a_grown_set_merges_to_the_file_of_a_fresh_run(extract, add, tmp_path, kind, n_shards):
    now = KINDS[kind]
    folder = extract(HAD, tmp_path / "set", n_shards=n_shards)
    add(now, folder)
    merge_shards(folder, tmp_path / "merged.h5")
    fresh = extract(now, tmp_path / "fresh.h5")
    assert (tmp_path / "merged.h5").read_bytes() == fresh.read_bytes()
    had = {number for found in HAD.values() for number in found}
    assert sorted(add.computed) == sorted({n for found in now.values() for n in found} - had)
    with FeatureFile(folder) as file:
        of = file.n_pieces
    names = [f"features.{number:04d}-of-{of:04d}.h5" for number in range(1, of + 1)]
    assert sorted(one.name for one in folder.iterdir()) == [*names, "manifest.json"]


def test_shards_of_a_grown_set_are_those_that_a_fresh_run_would_make(extract, add, tmp_path):
    now = KINDS["here and there"]
    add(now, extract(HAD, tmp_path / "set", n_shards=2))
    extract(now, tmp_path / "fresh", n_shards=3)
    for number in (1, 2, 3):
        name = f"features.000{number}-of-0003.h5"
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_only_batches_with_new_pictures_are_read_again(extract, add, pictures, tmp_path):
    path = extract(HAD, tmp_path / "f.h5")
    source = pictures({"train": [*HAD["train"], 777], "test": HAD["test"]})
    add(source, path)
    assert source.read_rows == [
        *(("train", start, min(start + 16, 51)) for start in (0, 16, 32, 48)),
        ("test", 0, 16),
        ("test", 16, 20),
        ("train", 48, 51),
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_picture_that_has_changed_is_named(extract, add, pictures, tmp_path, split):
    path = extract(HAD, tmp_path / "f.h5")
    source = pictures(KINDS["here and there"])
    source.changed = {HAD[split][-1]}
    words = f"split '{split}', {HAD[split][-1]}.png has other pixels than it had"
    refused(add, source, path, words=words)
    assert add.computed == []


@pytest.mark.parametrize(
    ("now", "named"),
    [
        ({**HAD, "train": [n for n in HAD["train"] if n != 96]}, "96.png, or one after it,"),
        ({**HAD, "train": HAD["train"][:-1]}, "196.png"),
        ({**HAD, "train": [*range(201, 300), *HAD["train"][1:]]}, "0.png, or one after it,"),
        ({**HAD, "train": [*range(201, 300), *HAD["train"][:-40]]}, "0.png, or one after it,"),
        ({**HAD, "test": [*HAD["test"][1:], HAD["test"][0], 3000]}, "1000.png, or one after it,"),
    ],
    ids=["in the middle", "the last", "among new ones", "behind new ones", "moved"],
)
def test_a_picture_that_is_gone_or_moved_is_named(extract, add, tmp_path, now, named):
    path = extract(HAD, tmp_path / "f.h5")
    refused(add, now, path, words=f"{named} isn't there any more, or not where it was in the order")
    assert add.computed == []


def test_pictures_that_a_limit_leaves_out_now_are_told_as_that(extract, add, tmp_path):
    path = extract(HAD, tmp_path / "f.h5", limit=20)
    now = {**HAD, "train": [*range(201, 206), *HAD["train"]]}
    words = r"isn't among the first 20 any more, which are all that --limit takes: it is gone, or "
    with pytest.raises(DataError, match=rf"'train', \d+\.png, or one after it, {words}others"):
        add(now, path, limit=20)
    assert add.computed == []


def test_that_a_picture_is_gone_is_found_once_there_are_too_many_new_ones(
    extract, add, pictures, tmp_path
):
    path = extract(HAD, tmp_path / "f.h5")
    source = pictures({**HAD, "train": [*HAD["train"][1:], 5000, 5001, 5002]})
    with pytest.raises(DataError, match=r"0\.png, or one after it, isn't there any more"):
        add(source, path)
    assert source.read_rows == [("train", 0, 16)]


def test_a_picture_that_cant_be_read_any_more_is_named_with_the_reason(
    extract, add, pictures, tmp_path
):
    path = extract(HAD, tmp_path / "f.h5", on_error="skip")
    source = pictures(KINDS["at the end"], bad={"train": {20}})
    words = r"80\.png can't be read any more: can't be read"
    refused(add, source, path, words=words, on_error="skip")


def test_a_picture_that_was_left_out_and_can_be_read_now_gets_a_row(
    extract, add, pictures, tmp_path
):
    bad = {"train": {3, 20}}
    path = extract(HAD, tmp_path / "f.h5", on_error="skip", bad=bad)
    now = {"train": [*HAD["train"], 201], "test": HAD["test"]}
    add(pictures(now, bad={"train": {3}}), path, on_error="skip")
    fresh = extract(now, tmp_path / "fresh.h5", on_error="skip", bad={"train": {3}})
    assert path.read_bytes() == fresh.read_bytes()
    assert sorted(add.computed) == [80, 201]


def test_pictures_that_cant_be_read_may_be_left_out_of_what_had_none(
    extract, add, pictures, tmp_path
):
    path = extract(HAD, tmp_path / "f.h5")
    now, bad = KINDS["at the end"], {"train": {60}}
    add(pictures(now, bad=bad), path, on_error="skip")
    fresh = extract(now, tmp_path / "fresh.h5", on_error="skip", bad=bad)
    assert path.read_bytes() == fresh.read_bytes()
    with pytest.raises(UsageError, match="another on error: skip, and now it is raise"):
        add(KINDS["in the middle"], path)


def test_what_is_divided_as_for_a_training_gets_no_others(extract, add, pictures, work, tmp_path):
    class Divided(pictures):
        def __init__(self, *args, **how):
            super().__init__(*args, **how)
            self.division = {"test_fraction": None, "validation": 0.1, "seed": 0}

    how = ExtractOptions(batch_size=16)
    run(work.CountingNetwork(), Divided(HAD), how, out=tmp_path / "f.h5")
    before = (tmp_path / "f.h5").read_bytes()
    with pytest.raises(UsageError, match="counting has other images now: what the network") as told:
        add(KINDS["at the end"], tmp_path / "f.h5")
    assert told.value.hint.startswith("train the network anew, or extract all anew")
    assert (tmp_path / "f.h5").read_bytes() == before


def test_what_another_process_has_made_meanwhile_is_not_replaced(
    extract, add, monkeypatch, tmp_path
):
    path = extract(HAD, tmp_path / "f.h5")
    other = extract({"train": [1, 2], "test": [3]}, tmp_path / "other.h5").read_bytes()
    check = growing.check_sound

    def meanwhile(*args):
        (tmp_path / "other.h5").replace(path)
        check(*args)

    monkeypatch.setattr(growing, "check_sound", meanwhile)
    with pytest.raises(UsageError, match=r"f\.h5 was made anew by another process meanwhile"):
        add(KINDS["at the end"], path)
    assert path.read_bytes() == other
    assert [one.name for one in tmp_path.iterdir()] == ["f.h5"]


def test_what_has_no_digests_is_refused_with_what_to_do(extract, add, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        patched.setattr("cnnfeat.extraction.plan.DIGEST", "nothing")
        path = extract(HAD, tmp_path / "f.h5")
    with h5py.File(path) as file:
        assert "digest" not in file["train"]
    before = path.read_bytes()
    with pytest.raises(UsageError, match="made with another data fingerprint: ") as told:
        add(KINDS["at the end"], path)
    assert "nothing in it proves that its images are as they were" in told.value.hint
    assert "--overwrite or into another file with -o" in told.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float16"}, "another dtype: float32, and now it is float16"),
        ({"batch_size": 8}, "another batch size: 16, and now it is 8"),
        ({"split": ("train",)}, "another split: train, test, and now it is train"),
    ],
    ids=["dtype", "batch size", "split"],
)
def test_pictures_are_added_with_the_same_settings(extract, add, tmp_path, options, words):
    path = extract(HAD, tmp_path / "f.h5")
    with pytest.raises(UsageError, match=words):
        add(KINDS["at the end"], path, **options)


def test_pictures_are_not_added_to_rows_of_other_shapes(extract, add, work, probe, tmp_path):
    path = extract(HAD, tmp_path / "f.h5")
    probe._probe = work.CountingProbe({"conv/a": (2, 3, 4), "fc1": (9,)})
    words = r"holds fc1 \(8,\) float32 in split 'train', and .* would be fc1 \(9,\) float32"
    with pytest.raises(UsageError, match=words):
        add(KINDS["at the end"], path)


def test_a_batch_size_that_was_timed_is_kept(extract, add, tmp_path):
    path = extract(HAD, tmp_path / "f.h5")
    add(KINDS["at the end"], path, batch_size="auto")
    fresh = extract(KINDS["at the end"], tmp_path / "fresh.h5")
    with FeatureFile(path) as one, FeatureFile(fresh) as other:
        np.testing.assert_array_equal(one.sums("train").values, other.sums("train").values)


def test_values_beyond_float16_are_counted_once(work, extract, add, monkeypatch, tmp_path):
    computed = work.CountingProbe.__call__
    large = lambda probe, images: tuple(300 * rows for rows in computed(probe, images))  # noqa: E731
    monkeypatch.setattr(work.CountingProbe, "__call__", large)
    now = KINDS["in the middle"]
    path = extract(HAD, tmp_path / "f.h5", dtype="float16")
    add(now, path, dtype="float16")
    rows = work.expected(np.array(now["train"]), shape=(8,), times=1.5) * 300
    with h5py.File(path) as file:
        assert file["train/fc1"].attrs["overflowed_to_inf"] == np.sum(rows > 65519)
    assert path.read_bytes() == extract(now, tmp_path / "g.h5", dtype="float16").read_bytes()
    folder = extract(HAD, tmp_path / "set", n_shards=3, dtype="float16")
    add(now, folder, dtype="float16")
    merge_shards(folder, tmp_path / "merged.h5")
    assert (tmp_path / "merged.h5").read_bytes() == path.read_bytes()


def stop_after(n):
    asked = iter(range(10_000))
    return lambda: next(asked) >= n


def test_an_interrupted_growth_goes_on(extract, add, tmp_path):
    now = KINDS["in the middle"]
    path = extract(HAD, tmp_path / "f.h5")
    before = path.read_bytes()
    n_batches = 13 + 2
    with pytest.raises(Interrupted, match="stopped before anything was written"):
        add(now, path, stop=stop_after(3))
    assert [one.name for one in tmp_path.iterdir()] == ["f.h5"]
    with pytest.raises(Interrupted, match="stopped after"):
        add(now, path, stop=stop_after(n_batches + 9))
    assert path.read_bytes() == before and (tmp_path / "f.h5.partial").exists()
    n_computed = len(add.computed)
    add(now, path)
    assert path.read_bytes() == extract(now, tmp_path / "fresh.h5").read_bytes()
    assert n_computed and len(add.computed) < 150 + 2 * 16 * 3  # few batches twice
    assert sorted(one.name for one in tmp_path.iterdir()) == ["f.h5", "fresh.h5"]


def test_a_growth_that_was_interrupted_begins_anew_when_there_are_more_pictures(
    extract, add, tmp_path
):
    path = extract(HAD, tmp_path / "f.h5")
    with pytest.raises(Interrupted, match="stopped after"):
        add(KINDS["in the middle"], path, stop=stop_after(20))
    now = {"train": list(range(205)), "test": HAD["test"]}
    add(now, path)
    assert path.read_bytes() == extract(now, tmp_path / "fresh.h5").read_bytes()


def test_an_interrupted_growth_of_a_set_goes_on(extract, add, tmp_path):
    now = KINDS["in the middle"]
    folder = extract(HAD, tmp_path / "set", n_shards=2)
    with pytest.raises(Interrupted):
        add(now, folder, stop=stop_after(15 + 8))
    with FeatureFile(folder) as file:
        assert file.n_rows("train") == 50
    assert verify_file(folder).damages == ()
    add(now, folder)
    assert len(add.computed) < 150 + 2 * 16 * 3
    merge_shards(folder, tmp_path / "merged.h5")
    fresh = extract(now, tmp_path / "fresh.h5")
    assert (tmp_path / "merged.h5").read_bytes() == fresh.read_bytes()


@pytest.mark.parametrize("moment", ["moving", "sealing", "withdrawing", "deleting"])
def test_a_set_is_whole_at_every_moment_of_its_growth(extract, add, monkeypatch, tmp_path, moment):
    now = KINDS["here and there"]
    folder = extract(HAD, tmp_path / "set", n_shards=2)

    class KilledError(Exception):
        pass

    def die(*_args, **_given):
        raise KilledError

    name = {"moving": "sync", "sealing": "seal_set", "withdrawing": "withdraw"}.get(moment)
    with monkeypatch.context() as patched:
        patched.setattr(existing if name else shutil, name or "rmtree", die)
        with pytest.raises(KilledError):
            add(now, folder)
    n_rows = 50 if moment in ("moving", "sealing") else 55
    with FeatureFile(folder) as file:
        assert file.n_rows("train") == n_rows
    assert verify_file(folder).damages == ()
    n_computed = len(add.computed)
    add(now, folder)
    assert len(add.computed) == n_computed  # all shards were there
    merge_shards(folder, tmp_path / "merged.h5")
    fresh = extract(now, tmp_path / "fresh.h5")
    assert (tmp_path / "merged.h5").read_bytes() == fresh.read_bytes()
    names = [f"features.000{number}-of-0003.h5" for number in (1, 2, 3)]
    assert sorted(one.name for one in folder.iterdir()) == [*names, "manifest.json"]


def test_the_room_of_a_whole_set_is_foreseen(extract, add, monkeypatch, tmp_path):
    folder = extract(HAD, tmp_path / "set", n_shards=2)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1_100_000))
    with pytest.raises(StorageError, match=r"\.adding needs [0-9,]+ bytes, and .* 1,100,000 free"):
        add({"train": list(range(4000)), "test": HAD["test"]}, folder)
    assert add.computed == [] and not (folder / ".adding").exists()


def test_one_shard_of_one_batch_stays_one(extract, add, tmp_path):
    folder = extract({"all": [1, 2, 3]}, tmp_path / "set", n_shards=1)
    with pytest.raises(UsageError, match=r"is one shard, and .* they fit one batch") as told:
        add({"all": [1, 2, 3, 4]}, folder)
    assert told.value.hint.startswith("cnnfeat merge FOLDER -o FILE")
    assert sorted(one.name for one in folder.iterdir() if one.is_file()) == [
        "features.0001-of-0001.h5",
        "manifest.json",
    ]


def test_where_there_is_no_batch_for_another_shard_a_set_has_one_fewer(extract, add, tmp_path):
    folder = extract({"all": list(range(20))}, tmp_path / "set", n_shards=2)
    add({"all": list(range(22))}, folder)
    with FeatureFile(folder) as file:
        assert file.n_pieces == 1 and file.n_rows("all") == 22


def test_a_shard_alone_doesnt_grow(extract, add, tmp_path):
    folder = extract(HAD, tmp_path / "set", n_shards=2)
    with pytest.raises(UsageError, match=r"0001-of-0002\.h5 is a shard, and was made of") as told:
        add(KINDS["at the end"], folder / "features.0001-of-0002.h5")
    assert "name the folder of its set with -o" in told.value.hint


def test_pictures_that_change_between_the_two_readings_are_noticed(
    extract, add, pictures, monkeypatch, tmp_path
):
    path = extract(HAD, tmp_path / "f.h5")
    source, compare = pictures(KINDS["here and there"]), growing.compare

    def compared(*args, **given):
        found = compare(*args, **given)
        source.changed = {0}
        return found

    monkeypatch.setattr(growing, "compare", compared)
    with pytest.raises(DataError, match="pictures of split 'train' change while they are read"):
        add(source, path)


def test_damaged_rows_are_not_copied(extract, add, tmp_path):
    path = extract(HAD, tmp_path / "f.h5")
    with h5py.File(path) as file:
        offset = file["train/fc1"].id.get_offset()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff")
    with pytest.raises(DataError, match="layer 'fc1', block 0"):
        add(KINDS["at the end"], path)


def test_digests_are_of_each_pictures_pixels(extract, pictures, tmp_path):
    path = extract(HAD, tmp_path / "f.h5")
    with h5py.File(path) as file:
        found = file["train/digest"][:]
        assert found.dtype == np.uint64 and len(set(found.tolist())) == 50
    (batch, *_) = pictures(HAD).batches("train", batch_size=50)
    kind = zlib.crc32(b"|u1 (4, 4, 1)")
    wanted = [xxhash.xxh3_64_intdigest(image.tobytes(), kind) for image in batch.images]
    assert found.tolist() == wanted


def test_digests_tell_shapes_and_types_apart(rng):
    flat = rng.integers(0, 256, (3, 64), np.uint8)
    kinds = [flat.reshape(3, 8, 8, 1), flat.reshape(3, 4, 16, 1), flat.view(np.uint16)]
    found = [row_checksums(images) for images in kinds]
    assert len({tuple(sums.tolist()) for sums in found}) == 3
    assert row_checksums(np.empty((0, 8, 8, 3), np.float32)).shape == (0,)
    strided = np.asfortranarray(kinds[0])
    np.testing.assert_array_equal(row_checksums(strided), found[0])


def test_another_run_that_was_interrupted_is_named(extract, add, work, pictures, tmp_path):
    path = extract(HAD, tmp_path / "f.h5")
    how = ExtractOptions(batch_size=16, dtype="float16")
    with pytest.raises(Interrupted):
        run(
            work.CountingNetwork(),
            pictures(HAD),
            how,
            out=path,
            overwrite=True,
            should_stop=stop_after(4),
        )
    with pytest.raises(UsageError, match="was begun with another dtype: float16") as told:
        add(KINDS["at the end"], path)
    assert told.value.hint.endswith(f"or delete {path}.journal")
