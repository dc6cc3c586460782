from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
import pytest

from cnnfeat.data import open_source, tfrecord
from cnnfeat.data.tfrecord import crc32c, is_tfrecord
from cnnfeat.errors import DataError, ImageError, UsageError


def slow_crc(data: bytes) -> int:
    """CRC-32C bit by bit, by its definition."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = slow_crc(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(number: int) -> bytes:
    number &= 2**64 - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(**features: object) -> bytes:
    """A `tf.train.Example`, by hand; `__` in a name stands for a slash."""
    entries = b""
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        if all(isinstance(one, bytes) for one in values):
            feature = field(1, b"".join(field(1, one) for one in values))
        elif all(isinstance(one, int) for one in values):
            feature = field(3, field(1, b"".join(varint(one) for one in values)))
        else:
            feature = field(2, field(1, struct.pack(f"<{len(values)}f", *values)))
        key = field(1, name.replace("__", "/").encode())
        entries += field(1, key + field(2, feature))
    return field(1, entries)


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def save(path: Path, *examples: bytes) -> None:
    path.write_bytes(b"".join(map(record, examples)))


@pytest.fixture
def pictures(rng) -> np.ndarray:
    return rng.integers(0, 256, (30, 6, 5, 3), np.uint8)


@pytest.fixture
def encoded(pictures, png) -> list[bytes]:
    return [png(picture) for picture in pictures]


def test_the_checksum_is_that_of_the_standard(rng, monkeypatch):
    """RFC 3720, appendix B.4, and the definition itself."""
    monkeypatch.setattr(tfrecord, "CRC_GROUP", 2)
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283
    for length in (0, 1, 2, 3, 4, 5, 1023, 1024, 1025, 1027, 1028, 2048, 5000):
        data = rng.bytes(length)
        assert crc32c(data) == slow_crc(data)


def test_shards_of_splits_are_what_went_in(tmp_path, pictures, encoded, read_all):
    labels = [(7 * i) % 10 + 1 for i in range(30)]
    examples = [
        example(
            image__format=b"png",
            image__encoded=data,
            image__class__label=label,
            image__class__text=f"class {label}".encode(),
        )
        for data, label in zip(encoded, labels, strict=True)
    ]
    save(tmp_path / "train-00000-of-00002", *examples[:11])
    save(tmp_path / "train-00001-of-00002", *examples[11:17])
    save(tmp_path / "validation-00000-of-00001", *examples[17:20])
    save(tmp_path / "test-00000-of-00001", *examples[20:])
    (tmp_path / "labels.txt").write_text("0: class 0")
    with open_source(str(tmp_path)) as source:
        assert (source.kind, source.name) == ("tfrecord", str(tmp_path))
        assert source.classes == ("0", *(f"class {i}" for i in range(1, 11)))
        splits = {"train": slice(17), "validation": slice(17, 20), "test": slice(20, 30)}
        assert list(source.splits) == list(splits)
        for split, rows in splits.items():
            found = read_all(source, split)
            np.testing.assert_array_equal(found.images, pictures[rows])
            assert found.labels.tolist() == labels[rows]
        some = read_all(source, "train", start=9, stop=14)
        np.testing.assert_array_equal(some.images, pictures[9:14])
        assert some.ids == [f"train/{row:05d}" for row in range(9, 14)]
        state = source.state()
    save(tmp_path / "test-00000-of-00001", *examples[19:])
    with open_source(str(tmp_path)) as source:
        assert source.changed_since(state) == "test-00000-of-00001 has changed"


def test_names_of_tensorflow_datasets_are_splits(tmp_path, encoded, pictures, read_all):
    for name, row in (("train.tfrecord-00000-of-00001", 0), ("test.tfrecord-00000-of-00001", 1)):
        save(tmp_path / f"mnist-{name}", example(image=encoded[row], label=5))
    (tmp_path / "features.json").write_text("{}")
    with open_source(str(tmp_path)) as source:
        assert list(source.splits) == ["train", "test"]
        np.testing.assert_array_equal(read_all(source, "test").images, pictures[1:2])
        assert source.labels("test").tolist() == [5]


def test_one_file_and_no_labels(tmp_path, encoded, pictures, read_all, caplog):
    save(tmp_path / "train.tfrecord", *(example(image=data) for data in encoded))
    with caplog.at_level(logging.INFO), open_source(str(tmp_path / "train.tfrecord")) as source:
        assert list(source.splits) == ["all"]
        assert source.classes == ()
        rows = read_all(source, "all")
        np.testing.assert_array_equal(rows.images, pictures)
        assert rows.labels is None
    assert "no labels for all" in caplog.text


@pytest.mark.parametrize(
    ("features", "classes", "found"),
    [
        ([{"label": -1}, {"label": 3}], ("-1", "3"), [0, 1]),
        ([{"label": 2}, {"label": 0}], ("0", "1", "2"), [2, 0]),
        ([{"label": b"dog"}, {"label": b"cat"}], ("cat", "dog"), [1, 0]),
        ([{"label": 1.0}, {"label": 0.0}], ("0", "1"), [1, 0]),
        ([{"image__class__text": b"dog"}, {"image__class__text": b"cat"}], ("cat", "dog"), [1, 0]),
        ([{"label": 1, "image__class__text": b""}, {"label": 0}], ("0", "1"), [1, 0]),
        (
            [{"label": 1, "image__class__text": b"a"}, {"label": 1, "image__class__text": b"b"}],
            ("0", "1"),
            [1, 1],
        ),
    ],
)
def test_labels_of_every_kind(tmp_path, encoded, features, classes, found):
    save(tmp_path / "a", *(example(image=encoded[0], **one) for one in features))
    with open_source(str(tmp_path / "a")) as source:
        assert source.classes == classes
        assert source.labels("all").tolist() == found


def test_lists_of_integers_need_not_be_packed(tmp_path, encoded):
    feature = field(3, varint(1 << 3) + varint(6))  # as proto2 writes them
    entry = field(1, field(1, b"label") + field(2, feature))
    whole = field(
        1, entry + field(1, field(1, b"image") + field(2, field(1, field(1, encoded[0]))))
    )
    save(tmp_path / "a", whole)
    with open_source(str(tmp_path / "a")) as source:
        assert source.labels("all").tolist() == [6]


def test_which_labels_may_be_named(tmp_path, encoded):
    save(tmp_path / "a", example(image=encoded[0], label=3, colour=b"red"))
    with open_source(str(tmp_path / "a"), labels=":/colour") as source:
        assert source.classes == ("red",)
        assert source.labels_from == ":/colour"
    with pytest.raises(UsageError, match="no feature 'color' for labels; its features: image, lab"):
        open_source(str(tmp_path / "a"), labels=":/color")


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([{"text": b"a"}], "record 0: no picture in image/encoded or image; its features: text"),
        ([{}], "record 0: no picture in image/encoded or image; its features: none"),
        ([{"image": b"x"}, {"label": 1}], "record 1: one picture is needed in image; its features"),
        ([{"image": [b"x", b"y"]}], "record 0: one picture is needed in image"),
        ([{"image": [1, 2]}], "record 0: one picture is needed in image"),
        ([{"image": b"x", "label": [1, 2]}], "record 0: 2 values of label; one for each picture"),
        ([{"image": b"x", "label": 1}, {"image": b"x"}], "record 1: 0 values of label"),
        ([{"image": b"x", "label": 0.5}], "record 0: label is 0.5; a whole number or a text"),
    ],
)
def test_records_that_lack_something_are_named(tmp_path, examples, message):
    save(tmp_path / "a", *(example(**features) for features in examples))
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path / "a"))


def test_what_is_no_example_is_named(tmp_path):
    for data in (b"hello", b"\x0a\xff\x01", b"\x0a\x02\x08\x01", b"\x0b", b"\x0a" + b"\xff" * 11):
        save(tmp_path / "a", data)
        with pytest.raises(DataError, match=r"record 0: no tf\.train\.Example"):
            open_source(str(tmp_path / "a"))


def test_a_bad_picture_is_named_with_its_record_or_left_out(tmp_path, encoded, read_all):
    data = [encoded[0], b"no picture", encoded[2]]
    save(tmp_path / "a", *(example(image=one, label=i) for i, one in enumerate(data)))
    with open_source(str(tmp_path / "a")) as source:
        with pytest.raises(ImageError, match="a, record 1: not a picture"):
            read_all(source, "all")
        (batch,) = source.batches("all", batch_size=5, on_error="skip")
    assert batch.labels.tolist() == [0, 2]
    assert [(one.row, one.id) for one in batch.skipped] == [(1, "all/00001")]


def test_a_cut_file_is_named_with_its_record(tmp_path, encoded):
    records = [record(example(image=data, label=1)) for data in encoded[:3]]
    for keep, message in {
        len(records[0]) + 5: "record 1: the file ends within its length",
        len(records[0])
        + 12: "record 1: has .* bytes, of which the file, which is cut short, holds 0",
        len(records[0]) + len(records[1]) - 1: "record 1: has",
        len(b"".join(records)) - 3: "record 2: has",
    }.items():
        (tmp_path / "a").write_bytes(b"".join(records)[:keep])
        with pytest.raises(DataError, match=message) as caught:
            open_source(str(tmp_path / "a"))
        assert caught.value.exit_code == 3


def test_every_flipped_byte_is_found_and_named(tmp_path, encoded, rng):
    whole = b"".join(record(example(image=data, label=1)) for data in encoded[:3])
    second, third = whole.index(whole[:4], 1), len(whole) * 2 // 3
    assert second < third
    for place in rng.integers(12, len(whole), size=60).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(DataError, match=r"a, record [012]: .*(checksum|cut short)"):
            open_source(str(tmp_path / "a"))


def test_no_memory_is_taken_for_what_a_length_declares(tmp_path, encoded):
    length = struct.pack("<Q", 2**50)
    good = record(example(image=encoded[0]))
    (tmp_path / "a").write_bytes(good + length + masked(length) + b"few")
    with pytest.raises(DataError, match="record 1: has 1,125,899,906,842,624 bytes, of which"):
        open_source(str(tmp_path / "a"))


def test_other_files_are_not_taken_for_records(tmp_path):
    for data in (b"", b"short", bytes(12), b"x" * 100):
        (tmp_path / "a").write_bytes(data)
        assert not is_tfrecord(tmp_path / "a")


def test_what_tensorflow_writes_is_read(tmp_path, pictures, encoded, read_all):
    tf = pytest.importorskip("tensorflow")
    with tf.io.TFRecordWriter(str(tmp_path / "train.tfrecord")) as writer:
        for label, data in enumerate(encoded):
            features = {
                "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data])),
                "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                "image/height": tf.train.Feature(float_list=tf.train.FloatList(value=[6.0])),
            }
            one = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(one.SerializeToString())
    with open_source(str(tmp_path / "train.tfrecord")) as source:
        rows = read_all(source, "all")
        np.testing.assert_array_equal(rows.images, pictures)
        assert rows.labels.tolist() == list(range(30))
