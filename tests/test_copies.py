"""Copies stand behind the rows that they are made of, and have names of their own."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from cnnfeat.copies import CopiedSource
from cnnfeat.divided import divide_source
from cnnfeat.parts import DivisionRule, Part


@pytest.fixture
def copied(work: ModuleType) -> Callable[..., CopiedSource]:
    """10 rows in `train` and 4 in `test`, with two copies; what varies images adds 100 to each."""

    def make(n_copies: int = 2, *, limit: int | None = None, **known: object) -> CopiedSource:
        def vary(images: np.ndarray, *, turn: int, rows: np.ndarray) -> np.ndarray:
            names = [f"train/{number}.png" for number in images[:, 0, 0, 0]]
            assert rows.tolist() == [zlib.crc32(name.encode()) for name in names]
            return images + np.uint8(100 * turn)

        source = work.CountingSource({"train": 10, "test": 4}, **known)
        return CopiedSource(source, n_copies, vary, limit=limit)

    return make


def read(source: CopiedSource, split: str = "train", **how: object) -> tuple[list, list, list]:
    """First pixel and name of all images, and where batches begin and end."""
    batches = list(source.batches(split, **how))
    pixels = [int(pixel) for batch in batches for pixel in batch.images[:, 0, 0, 0]]
    names = [name for batch in batches for name in batch.ids]
    return pixels, names, [(batch.start, batch.stop) for batch in batches]


def test_all_rows_come_first_then_each_copy_of_all(copied):
    source = copied()
    pixels, names, ends = read(source, batch_size=4)
    assert pixels == [*range(10), *range(100, 110), *range(200, 210)]
    assert names[0] == "train/0.png" and names[10] == "train/0.png~1"
    assert names[-1] == "train/9.png~2" and len(set(names)) == 30
    assert {end for _, end in ends} >= {*range(4, 30, 4), 10, 20, 30}
    assert all(stop - start <= 4 for start, stop in ends)
    assert source.splits["train"].n_samples == 30


def test_other_splits_have_no_copies(copied):
    source = copied()
    assert read(source, "test", batch_size=3)[1] == [f"test/{row}.png" for row in range(4)]
    assert source.splits["test"].n_samples == 4
    assert source.labels("test").tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("start", [0, 4, 8, 12, 20, 28])
def test_a_reading_that_begins_at_a_batch_has_the_batches_of_a_whole_one(copied, start: int):
    whole, rest = (read(copied(), batch_size=4, start=begin) for begin in (0, start))
    assert rest[0] == whole[0][start:] and rest[1] == whole[1][start:]
    assert rest[2] == [ends for ends in whole[2] if ends[0] >= start]


def test_some_rows_are_read_alone(work):
    from cnnfeat.data import open_arrays

    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    with open_arrays(images) as plain:
        split = next(iter(plain.splits))
        source = CopiedSource(plain, 2, lambda images, turn, rows: images + np.uint8(10 * turn))
        rows = np.array([1, 4, 6, 10, 14])
        pixels, _, ends = read(source, split, batch_size=2, rows=rows)
    assert pixels == [1, 4, 11, 20, 24]
    assert ends == [(0, 2), (2, 3), (3, 4), (4, 5)]


def test_names_that_are_no_utf8_are_numbered_too(work):
    class Strange(work.CountingSource):
        def _batch(self, *where):
            found = super()._batch(*where)
            return replace(found, ids=tuple(f"\udcff\ud800{name}" for name in found.ids))

    numbers = []

    def vary(images, *, turn, rows):
        numbers.extend(rows.tolist())
        return images

    source = CopiedSource(Strange({"train": 3}), 1, vary)
    assert read(source, batch_size=4)[1][3] == "\udcff\ud800train/0.png~1"
    assert len(set(numbers)) == 3


def test_left_out_samples_are_those_of_each_copy(copied):
    source = copied(bad={"train": {3}})
    batches = list(source.batches("train", batch_size=8, on_error="skip"))
    skipped = [one for batch in batches for one in batch.skipped]
    assert [(one.row, one.id) for one in skipped] == [
        (3, "train/3.png"), (13, "train/3.png~1"), (23, "train/3.png~2"),
    ]  # fmt: skip
    assert sum(map(len, batches)) == 27


def test_copies_have_label_part_and_group_of_their_row(copied):
    known = {
        "part": {"train": np.array([1, 1, 2] * 3 + [1], np.uint8), "test": np.zeros(4, np.uint8)},
        "group": {"train": np.arange(10) // 2, "test": np.arange(4) + 7},
    }
    source = copied(known=known)
    for found, wanted in (
        (source.labels("train"), np.arange(10) % 2),
        (source.parts("train"), known["part"]["train"]),
        (source.groups("train"), known["group"]["train"]),
    ):
        np.testing.assert_array_equal(found, np.tile(wanted, 3))
    np.testing.assert_array_equal(source.groups("test"), known["group"]["test"])


def test_without_groups_each_row_is_one_with_its_copies(copied):
    source = copied()
    train, test = source.groups("train"), source.groups("test")
    np.testing.assert_array_equal(train, np.tile(np.arange(10), 3))
    assert len(np.unique(test)) == 4 and not np.isin(test, train).any()


def test_a_limit_is_one_of_rows_and_not_of_copies(copied):
    source = copied(limit=3)
    assert read(source, batch_size=8)[0] == [0, 1, 2, 100, 101, 102, 200, 201, 202]
    assert source.splits["test"].n_samples == 3
    assert source.labels("train").tolist() == [0, 1, 0] * 3


def test_validation_rows_and_their_copies_are_on_one_side(work):
    source = work.CountingSource({"train": 40, "test": 8})
    divided = divide_source(source, DivisionRule(test_fraction=None, validation=0.25, seed=0))
    copied = CopiedSource(divided, 1, lambda images, **_: images)
    held = copied.groups("train")[copied.parts("train") == Part.VALIDATION]
    rest = copied.groups("train")[copied.parts("train") == Part.FITTED]
    assert len(held) == 20 and not np.isin(held, rest).any()


def test_it_is_the_same_source_to_who_asks(copied, work):
    source, plain = copied(), work.CountingSource({"train": 10})
    assert source.fingerprint() == plain.fingerprint()
    assert source.changed_since(source.state()) is None
    assert (source.name, source.kind, source.classes) == (plain.name, plain.kind, plain.classes)
