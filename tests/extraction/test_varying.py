"""Copies and averages in an extraction: computed once, recorded, and held against on a resume."""

from __future__ import annotations

import zlib
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from cnnfeat.errors import Interrupted, NetworkError, UsageError
from cnnfeat.extraction import Extraction, extract
from cnnfeat.extraction.varying import A_LITTLE, choose_augment
from cnnfeat.features import FeatureFile
from cnnfeat.options import AugmentOptions, ExtractOptions
from cnnfeat.shards import ShardNumber
from cnnfeat.svm.originals import find_copies

SIZES = {"train": 50, "test": 20}
COPIES = ExtractOptions(batch_size=16, augment_copies=2, augment=(("rotation", 5.0),))


def run(work, path, options=COPIES, **how):
    network = work.CountingNetwork()
    extract(network, work.CountingSource(SIZES), options, out=path, **how)
    return network


def test_a_file_has_rows_and_copies_and_says_how(work, tmp_path):
    network = run(work, tmp_path / "f.h5")
    with FeatureFile(tmp_path / "f.h5") as file:
        assert (file.n_rows("train"), file.n_rows("test")) == (150, 20)
        ids = file.ids("train")
        assert ids[:1] + ids[50:51] + ids[149:] == [
            "train/0.png",
            "train/0.png~1",
            "train/49.png~2",
        ]
        np.testing.assert_array_equal(file.groups("train"), np.tile(np.arange(50), 3))
        said = file.provenance.options["extract"]
        assert said["augment_copies"] == 2 and said["augment"] == {"rotation": 5.0}
    assert {options for options, _, _ in network.varied} == {AugmentOptions(rotation=5)}
    rows = {
        turn: [row for _, t, some in network.varied if t == turn for row in some] for turn in (1, 2)
    }
    numbers = [zlib.crc32(f"train/{row}.png".encode()) for row in range(50)]
    assert rows == {1: numbers, 2: numbers}


def arrays(path):
    with h5py.File(path) as file:
        return {
            f"{split}/{name}": file[split][name][...].tobytes()
            for split in SIZES for name in ("fc1", "conv.a", "label", "group")
        }  # fmt: skip


def test_an_interrupted_run_goes_on_to_the_same_numbers(work, tmp_path):
    run(work, tmp_path / "whole.h5")
    asked = iter([False] * 5)
    with pytest.raises(Interrupted):
        run(work, tmp_path / "f.h5", should_stop=lambda: next(asked, True))
    run(work, tmp_path / "f.h5", resume=True)
    assert arrays(tmp_path / "f.h5") == arrays(tmp_path / "whole.h5")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(COPIES, augment_copies=3), "augment copies"),
        (replace(COPIES, augment=(("rotation", 6.0),)), "augment"),
        (replace(COPIES, augment_copies=None, augment=()), "augment copies"),
        (replace(COPIES, average=4), "average"),
    ],
    ids=["copies", "augment", "none", "average"],
)
def test_a_resumed_run_has_the_same_copies(work, tmp_path, other, said):
    asked = iter([False] * 2)
    with pytest.raises(Interrupted):
        run(work, tmp_path / "f.h5", should_stop=lambda: next(asked, True))
    with pytest.raises(UsageError, match=f"another {said}"):
        run(work, tmp_path / "f.h5", other, resume=True)


def test_shards_are_those_of_a_single_file(work, tmp_path):
    from cnnfeat.features.merging import merge_shards

    run(work, tmp_path / "whole.h5")
    for number in (1, 2, 3):
        run(work, tmp_path / "set", shard=ShardNumber(number, 3))
    merge_shards(tmp_path / "set", tmp_path / "f.h5")
    assert arrays(tmp_path / "f.h5") == arrays(tmp_path / "whole.h5")


def test_what_is_left_out_is_so_of_each_copy(work, tmp_path):
    source = work.CountingSource(SIZES, bad={"train": {3, 40}})
    options = replace(COPIES, on_error="skip")
    extract(work.CountingNetwork(), source, options, out=tmp_path / "f.h5")
    with FeatureFile(tmp_path / "f.h5") as file:
        assert [one.row for one in file.skipped("train")] == [3, 40, 53, 90, 103, 140]
        copies = find_copies(file, "train")
        marked = ["~" in name for name in file.ids("train")]
    np.testing.assert_array_equal(copies, marked)


def test_a_limit_counts_rows_and_not_copies(work, tmp_path):
    run(work, tmp_path / "f.h5", replace(COPIES, limit=7))
    with FeatureFile(tmp_path / "f.h5") as file:
        assert (file.n_rows("train"), file.n_rows("test")) == (21, 7)


def test_augment_alone_asks_for_nothing(work, tmp_path):
    with pytest.raises(UsageError, match="none are asked for") as caught:
        run(work, tmp_path / "f.h5", ExtractOptions(augment=(("rotation", 5.0),)))
    assert "--augment-copies" in caught.value.hint


def test_copies_need_a_split_that_is_trained_on(work, tmp_path):
    with pytest.raises(UsageError, match="'train', which isn't extracted"):
        run(work, tmp_path / "f.h5", replace(COPIES, split=("test",)))


def test_how_images_are_varied_is_asked_for_or_trained_or_a_little():
    trained = SimpleNamespace(config={"augment": {"shift": 0.1, "elastic_grid": 8, "flip": "none"}})
    plain = SimpleNamespace(config={"train": {}})
    chosen, why = choose_augment((("rotation", 5.0),), trained)
    assert chosen == AugmentOptions(rotation=5) and why == "as asked for"
    chosen, why = choose_augment((), trained)
    assert chosen == AugmentOptions(shift=0.1) and "training" in why
    for card in (None, plain):
        assert choose_augment((), card)[0] == A_LITTLE
    damaged = SimpleNamespace(config={"augment": {"shift": "far"}})
    with pytest.raises(NetworkError, match=r"card is damaged.* shift must be a number"):
        choose_augment((), damaged)


def test_an_average_is_the_mean_over_an_image_and_its_variations(work):
    """The probe of tests tells row numbers; here each variation of an image is that plus a turn."""
    network = work.CountingNetwork()
    images = next(work.CountingSource(SIZES).batches("train", batch_size=3)).images

    def vary(images, *, turn, rows):
        assert rows.tolist() == [0, 0, 0]
        images = images.copy()
        images[:, 0, 0] += 10 * turn
        return images

    network.augmentation = lambda options: vary
    options = ExtractOptions(batch_size=16, average=3, augment=(("rotation", 5.0),))
    job = Extraction.of(network, options).settle(work.CountingSource(SIZES))
    wanted = [
        work.expected(np.arange(3) + 10, shape=shape, times=0.5 + number)
        for number, shape in enumerate(network.made.layers.values())
    ]
    for found, mean in zip(job.probe(images), wanted, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, mean)
    assert job.plan().settings["average"] == "3"


def test_what_has_no_mean_is_refused(work):
    network = work.CountingNetwork()
    first = network.made.outputs[0]
    network.made.outputs = (replace(first, dtype="int64"),)
    with pytest.raises(UsageError, match="conv/a holds int64 numbers, which have no average"):
        Extraction.of(network, ExtractOptions(average=2)).settle(work.CountingSource(SIZES))
