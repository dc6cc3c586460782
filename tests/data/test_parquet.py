from __future__ import annotations

import json
import logging
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cnnfeat.data import open_source
from cnnfeat.errors import DataError, ImageError, UsageError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = ["ant", "bee", "cat"]


@pytest.fixture
def pictures(rng) -> np.ndarray:
    return rng.integers(0, 256, (50, 6, 5, 3), np.uint8)


@pytest.fixture
def labels(rng) -> np.ndarray:
    return rng.integers(0, 3, 50)


def save(path: Path, encoded: list[bytes | None], rows: int = 7, **columns: object) -> None:
    """Write a file as `datasets` does: with what it knows of the columns in the metadata."""
    names = columns.pop("names", None)
    image = pa.array(
        [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(encoded)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({columns.pop("image", "image"): image, **columns})
    if names is not None:
        features = {
            "image": {"_type": "Image"},
            **{name: {"names": found, "_type": "ClassLabel"} for name, found in names.items()},
        }
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, path, row_group_size=rows)


def test_shards_of_splits_are_what_went_in(tmp_path, pictures, labels, png, read_all):
    encoded = [png(picture) for picture in pictures]
    for name, rows in {
        "train-00000-of-00002": slice(0, 20),
        "train-00001-of-00002": slice(20, 33),
        "validation-00000-of-00001": slice(33, 40),
        "test-00000-of-00001": slice(40, 50),
    }.items():
        path = tmp_path / f"{name}.parquet"
        save(path, encoded[rows], label=labels[rows], names={"label": NAMES})
    (tmp_path / "README.md").write_text("pictures")
    with open_source(str(tmp_path)) as source:
        assert (source.kind, source.name) == ("parquet", str(tmp_path))
        assert source.classes == tuple(NAMES)
        assert {name: info.n_samples for name, info in source.splits.items()} == {
            "train": 33,
            "validation": 7,
            "test": 10,
        }
        assert source.splits["train"].image_shape == (6, 5, 3)
        for split, rows in (
            ("train", slice(33)),
            ("validation", slice(33, 40)),
            ("test", slice(40, 50)),
        ):
            found = read_all(source, split)
            np.testing.assert_array_equal(found.images, pictures[rows])
            assert found.labels.tolist() == labels[rows].tolist()
        assert read_all(source, "train").ids[21] == "train/00021"
        for start, stop in ((18, 33), (0, 5), (32, 33), (6, 29)):  # from anywhere, in any order
            some = read_all(source, "train", start=start, stop=stop, batch_size=4)
            np.testing.assert_array_equal(some.images, pictures[start:stop])
            assert some.ids[0] == f"train/{start:05d}"


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_any_rows_are_read_alone(tmp_path, pictures, labels, png, batch_size):
    encoded = [png(picture) for picture in pictures]
    save(tmp_path / "train-0.parquet", encoded[:30], label=labels[:30], rows=30)
    save(tmp_path / "train-1.parquet", encoded[30:], label=labels[30:], rows=3)
    rows = np.array([0, 1, 5, 6, 7, 28, 29, 30, 31, 40, 49])
    with open_source(str(tmp_path)) as source:
        for some in (rows, np.array([3]), np.arange(0, 50, 2), np.arange(50)):
            found = list(source.batches("train", batch_size=batch_size, rows=some))
            np.testing.assert_array_equal(
                np.concatenate([batch.images for batch in found]), pictures[some]
            )
            assert (
                np.concatenate([batch.labels for batch in found]).tolist() == labels[some].tolist()
            )
            assert found[-1].stop == len(some)


def test_two_readers_at_a_time_do_not_mind_each_other(tmp_path, pictures, png):
    save(tmp_path / "a.parquet", [png(picture) for picture in pictures])
    with open_source(str(tmp_path / "a.parquet")) as source:
        both = zip(
            source.batches("all", batch_size=2),
            source.batches("all", batch_size=2, start=20),
            strict=False,
        )
        for first, second in both:
            np.testing.assert_array_equal(first.images, pictures[first.start : first.stop])
            np.testing.assert_array_equal(second.images, pictures[second.start : second.stop])


@pytest.mark.parametrize("kind", ["binary", "large_binary"])
def test_a_column_of_bytes_will_do(tmp_path, pictures, png, read_all, kind):
    encoded = pa.array([png(picture) for picture in pictures], getattr(pa, kind)())
    pq.write_table(pa.table({"id": range(50), "jpg": encoded, "text": ["x"] * 50}), tmp_path / "a")
    with open_source(str(tmp_path / "a")) as source:
        assert list(source.splits) == ["all"]
        rows = read_all(source, "all")
        np.testing.assert_array_equal(rows.images, pictures)
        assert rows.labels is None and source.classes == ()


def test_labels_without_names_are_numbers_and_that_is_said(tmp_path, pictures, png, caplog):
    encoded = [png(picture) for picture in pictures[:3]]
    save(tmp_path / "a.parquet", encoded, image="img", label=[1, 10, 2])
    with caplog.at_level(logging.INFO), open_source(str(tmp_path / "a.parquet")) as source:
        assert source.labels("all").tolist() == [1, 10, 2]
        assert source.classes == tuple(map(str, range(11)))
    assert "no names of classes; they are called by their numbers" in caplog.text
    save(tmp_path / "a.parquet", encoded)
    with caplog.at_level(logging.INFO), open_source(str(tmp_path / "a.parquet")) as source:
        assert source.labels("all") is None
    assert "no labels for all" in caplog.text


@pytest.mark.parametrize("dictionary", [True, False])
def test_labels_may_be_text(tmp_path, pictures, png, dictionary):
    words = pa.array(["dog", "cat", "dog"])
    words = words.dictionary_encode() if dictionary else words
    save(tmp_path / "a.parquet", [png(picture) for picture in pictures[:3]], label=words)
    with open_source(str(tmp_path / "a.parquet")) as source:
        assert source.classes == ("cat", "dog")
        assert source.labels("all").tolist() == [1, 0, 1]


def test_a_test_split_of_minus_one_has_no_labels(tmp_path, pictures, labels, png, caplog):
    encoded = [png(picture) for picture in pictures]
    save(tmp_path / "train.parquet", encoded, label=labels, names={"label": NAMES})
    save(tmp_path / "test.parquet", encoded, label=[-1] * 50, names={"label": NAMES})
    with caplog.at_level(logging.INFO), open_source(str(tmp_path)) as source:
        assert source.labels("test") is None and not source.splits["test"].has_labels
        assert source.labels("train").tolist() == labels.tolist()
    assert "all labels are -1, which stands for none" in caplog.text


def test_which_labels_may_be_named(tmp_path, pictures, labels, png):
    encoded = [png(picture) for picture in pictures]
    names = {"fine_label": list("abcdefghijklmnopqrstuvwxyz"), "coarse_label": NAMES}
    path = tmp_path / "a.parquet"
    save(path, encoded, coarse_label=labels, fine_label=labels + 20, names=names)
    with open_source(str(path)) as source:
        assert source.classes[20:23] == ("u", "v", "w")
        assert source.labels("all").tolist() == (labels + 20).tolist()
    with open_source(str(path), labels=":/coarse_label") as source:
        assert source.classes == tuple(NAMES)
        assert source.labels("all").tolist() == labels.tolist()
        assert source.labels_from == ":/coarse_label"
    with pytest.raises(
        UsageError, match="no column 'colour' for labels; it has: coarse_label, fine"
    ):
        open_source(str(path), labels=":/colour")


def test_a_bad_picture_is_named_with_its_row_or_left_out(tmp_path, pictures, png, read_all):
    encoded = [png(picture) for picture in pictures[:9]]
    encoded[4], encoded[7] = None, b"no picture"
    save(tmp_path / "a.parquet", encoded, label=list(range(9)))
    with open_source(str(tmp_path / "a.parquet")) as source:
        with pytest.raises(ImageError, match=r"a\.parquet, row 4: holds no picture"):
            read_all(source, "all")
        batches = list(source.batches("all", batch_size=3, on_error="skip"))
    skipped = [(one.row, one.id, one.reason[:13]) for batch in batches for one in batch.skipped]
    assert skipped == [(4, "all/00004", "holds no pict"), (7, "all/00007", "not a picture")]
    assert np.concatenate([batch.labels for batch in batches]).tolist() == [0, 1, 2, 3, 5, 6, 8]


def test_the_names_of_classes_must_agree(tmp_path, pictures, labels, png):
    encoded = [png(picture) for picture in pictures]
    save(tmp_path / "train.parquet", encoded, label=labels, names={"label": NAMES})
    save(tmp_path / "test.parquet", encoded, label=labels, names={"label": NAMES[::-1]})
    with pytest.raises(DataError, match=r"test\.parquet and train\.parquet differ"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([[0, 1]] * 50, "labels of type list<.*>; a whole number or a text"),
        ([0.5] * 50, "continuous targets, 1 different numbers from 0.5"),
        ([None, *[1] * 49], "column label: 1 of 50 rows have no label; the first is row 0"),
        ([5] * 50, "labels from 5 to 5; the 3 classes that have names are 0 to 2"),
    ],
)
def test_labels_that_cannot_be_are_refused(tmp_path, pictures, png, label, message):
    encoded = [png(picture) for picture in pictures]
    save(tmp_path / "a.parquet", encoded, label=label, names={"label": NAMES})
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("metadata", ["", "{", "[]", '{"info": 3}', '{"info": {"features": []}}'])
def test_odd_metadata_say_nothing(tmp_path, pictures, png, metadata):
    path = tmp_path / "a.parquet"
    save(path, [png(pictures[0])], label=[2])
    table = pq.read_table(path).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, path)
    with open_source(str(path)) as source:
        assert source.classes == ("0", "1", "2")


def test_a_file_without_pictures_is_refused_with_its_columns(tmp_path, png, pictures):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), path)
    with pytest.raises(DataError, match=r"can't tell .*; its columns: text \(string\), label"):
        open_source(str(path))
    save(path, [])
    with pytest.raises(DataError, match="the split all holds no pictures"):
        open_source(str(path))


def test_without_pyarrow_the_extra_is_named(tmp_path, pictures, png, monkeypatch):
    save(tmp_path / "a.parquet", [png(pictures[0])])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="parquet needs pyarrow, which is not installed") as caught:
        open_source(str(tmp_path / "a.parquet"))
    assert caught.value.hint == "pip install 'cnnfeat[parquet]'"


def test_damage_is_pictures_or_a_data_error(tmp_path, pictures, labels, png, rng):
    path = tmp_path / "a.parquet"
    save(path, [png(picture) for picture in pictures], label=labels)
    whole = path.read_bytes()
    cut = [whole[:length] for length in (5, 100, len(whole) // 2, len(whole) - 1)]
    flipped = []
    for _ in range(100):
        data = bytearray(whole)
        for place in rng.integers(len(whole), size=2):
            data[place] = rng.integers(256)
        flipped.append(bytes(data))
    for data in cut + flipped:
        path.write_bytes(data)
        try:
            with open_source(str(path)) as source:
                list(source.batches("all", batch_size=5))
        except (DataError, UsageError) as error:
            assert "a.parquet" in str(error) or "all" in str(error)
        else:
            assert data not in cut


def test_pictures_are_read_as_they_are_needed(tmp_path, rng, png):
    """Of 400 pictures, 48 MB as PNG and in one group of rows, at most 80 are read ahead."""
    encoded = png(rng.integers(0, 256, (200, 200, 3), np.uint8))
    save(tmp_path / "a.parquet", [encoded] * 400, rows=400)
    tracemalloc.start()
    with open_source(str(tmp_path / "a.parquet")) as source:
        assert sum(len(batch) for batch in source.batches("all", batch_size=2)) == 400
    assert tracemalloc.get_traced_memory()[1] < 32_000_000
    tracemalloc.stop()
