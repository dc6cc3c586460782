from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnnfeat.data import npy, open_source
from cnnfeat.data.idx import read_idx
from cnnfeat.errors import DataError, StorageError

CODES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}
quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def idx(code: int, shape: tuple[int, ...], values: list[float]) -> bytes:
    """Write IDX with struct, number by number."""
    letters = {0x08: "B", 0x09: "b", 0x0B: "h", 0x0C: "i", 0x0D: "f", 0x0E: "d"}
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape)
    return header + struct.pack(f">{len(values)}{letters[code]}", *values)


def idx_bytes(array: np.ndarray) -> bytes:
    return idx(0x08, array.shape, array.ravel().tolist())


def packed_bytes(declared: int, *, n: int) -> bytes:
    """Pack `n` bytes under a header of its own; without the time, so that test names hold."""
    return gzip.compress(idx(0x08, (declared,), list(range(n))), mtime=0)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("code", CODES)
def test_every_type_is_read(tmp_path, code, pack):
    values = [0, 1, 2, 100, 7, 9]
    data = idx(code, (3, 2), values)
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(data) if pack else data)
    header, array = read_idx(path)
    assert header.shape == (3, 2)
    assert array[:].tolist() == [[0, 1], [2, 100], [7, 9]]
    assert array[1:2].tolist() == [[2, 100]]
    assert array[:].dtype.kind + str(array.dtype.itemsize) == CODES[code]


@quick
@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
    start=st.integers(0, 6),
    length=st.integers(0, 6),
    pack=st.booleans(),
)
def test_any_rows_of_any_shape_are_those_written(tmp_path, shape, start, length, pack):
    expected = (np.arange(int(np.prod(shape))) % 256).astype(np.uint8).reshape(shape)
    data = idx(0x08, shape, expected.ravel().tolist())
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(data) if pack else data)
    np.testing.assert_array_equal(
        read_idx(path)[1][start : start + length], expected[start : start + length]
    )


@quick
@given(data=st.binary(max_size=60), pack=st.booleans())
def test_arbitrary_bytes_are_an_array_or_a_data_error(tmp_path, data, pack):
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(data) if pack else data)
    try:
        header, array = read_idx(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert array[:].shape == header.shape


@quick
@given(
    position=st.integers(0, 10**6),
    change=st.integers(1, 255),
    cut=st.integers(0, 10**6),
    pack=st.booleans(),
)
def test_a_damaged_file_is_an_array_or_a_data_error(tmp_path, position, change, cut, pack):
    data = idx(0x08, (5, 4, 3), list(range(60)))
    data = bytearray(gzip.compress(data, mtime=0) if pack else data)
    data[position % len(data)] ^= change
    path = tmp_path / "x"
    path.write_bytes(data[: cut % (len(data) + 1)])
    try:
        header, array = read_idx(path)
    except DataError:
        return
    assert array[:].shape == header.shape


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file: begins with nothing"),
        (b"\x89PNG", "not an IDX file: begins with 89 50 4e 47"),
        (b"\0\0\x07\x01", "not an IDX file: begins with 00 00 07 01"),
        (b"\0\0\x08\x09", "9 dimensions; 1 to 4 are allowed"),
        (b"\0\0\x08\x00", "0 dimensions; 1 to 4 are allowed"),
        (b"\0\0\x08\x02\0\0\0\x01\0", "ends within its header, after 9 of 12 bytes"),
        (
            idx(0x08, (2, 3), [1, 2, 3, 4, 5]),
            r"has 17 bytes; its header declares \(2, 3\), which takes 18",
        ),
        (idx(0x08, (2,), [1, 2, 3]), r"has 11 bytes; its header declares \(2,\), which takes 10"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, data, message):
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (packed_bytes(50, n=49), "ends after 49 of the 50 bytes"),
        (packed_bytes(3, n=4), "goes on after the 3 bytes"),
        (packed_bytes(9, n=9)[:-9], "not a complete gzip file"),
        (packed_bytes(9, n=9)[:-1], "not a complete gzip file"),
        (packed_bytes(9, n=9)[:-8] + bytes(8), "CRC check failed"),
        (b"\x1f\x8b", "not a complete gzip file"),
    ],
)
def test_a_packed_file_that_is_not_what_it_declares_is_refused(tmp_path, packed, message):
    path = tmp_path / "x.gz"
    path.write_bytes(packed)
    with pytest.raises(DataError, match=message):
        read_idx(path)


@pytest.mark.parametrize("pack", [False, True])
def test_absurd_dimensions_are_refused_before_memory_is_taken(tmp_path, pack):
    data = struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(data) if pack else data)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"4294967295.*takes|can't hold them"):
        read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_bomb_is_unpacked_no_further_than_it_declares(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx(0x08, (3,), [1, 2, 3]) + bytes(100_000_000)))
    tracemalloc.start()
    with pytest.raises(DataError, match="goes on after the 3 bytes"):
        read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_file_cut_short_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(idx(0x08, (4, 2), list(range(8))))
    _, array = read_idx(path)
    with path.open("r+b") as file:
        file.truncate(17)
    assert array[:2].tolist() == [[0, 1], [2, 3]]
    with pytest.raises(DataError, match="ends within row 2 of 4"):
        array[0:4]


def test_large_packed_arrays_are_unpacked_to_a_nameless_file(tmp_path, monkeypatch):
    monkeypatch.setattr(npy, "IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr(npy.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    monkeypatch.setattr(npy.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    expected = np.arange(3000, dtype=np.uint8).reshape(30, 10, 10)
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx(0x08, (30, 10, 10), expected.ravel().tolist())))
    _, array = read_idx(path)
    assert isinstance(array, npy.StoredRows)
    np.testing.assert_array_equal(array[3:29], expected[3:29])
    assert not list((tmp_path / "temporary").iterdir())


def test_unpacking_needs_room_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(npy, "IN_MEMORY_BYTES", 10)
    monkeypatch.setattr(
        npy.shutil, "disk_usage", lambda folder: npy.shutil._ntuple_diskusage(100, 80, 20)
    )
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx(0x08, (30,), list(range(30)))))
    with pytest.raises(StorageError, match=r"needs 30 bytes in .*, which has 20 left") as caught:
        read_idx(path)
    assert "TMPDIR" in caught.value.hint


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in (
        (tmp_path / "pipe", "a pipe"),
        (tmp_path, "a folder"),
        (Path("/dev/zero"), "a device"),
    ):
        with pytest.raises(DataError, match=f"is {kind}, not a regular file"):
            read_idx(path)
    with pytest.raises(DataError, match="No such file"):
        read_idx(tmp_path / "missing")


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (6, 4, 3), np.uint8)


@pytest.fixture
def labels():
    return np.array([2, 0, 1, 1, 0, 4], np.uint8)


def test_names_divide_into_splits(tmp_path, images, labels):
    for stem in ("emnist-letters-train", "emnist-letters-test"):
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    with open_source(str(tmp_path)) as source:
        assert source.kind == "idx"
        assert source.name == str(tmp_path)
        assert list(source.splits) == ["train", "test"]
        assert source.splits["test"].image_shape == (4, 3, 1)
        assert source.classes == ("0", "1", "2", "3", "4")
        (batch,) = source.batches("test", batch_size=10)
        np.testing.assert_array_equal(batch.images[..., 0], images)
        np.testing.assert_array_equal(batch.labels, labels)
        assert batch.ids[5] == "test/00005"


def test_files_are_told_by_content_not_by_name(tmp_path, images, labels):
    (tmp_path / "pictures.dat").write_bytes(idx_bytes(images))
    (tmp_path / "answers.dat").write_bytes(idx_bytes(labels))
    (tmp_path / "README").write_text("about this")
    with open_source(str(tmp_path)) as source:
        assert list(source.splits) == ["all"]
        np.testing.assert_array_equal(source.labels("all"), labels)


def test_labels_may_be_missing(tmp_path, images):
    (tmp_path / "pictures").write_bytes(idx_bytes(images))
    with open_source(str(tmp_path)) as source:
        assert source.classes == ()
        assert source.labels("all") is None
        assert next(source.batches("all", batch_size=6)).labels is None


def test_the_unpacked_file_is_taken_where_both_are_there(tmp_path, images, labels):
    data = idx_bytes(images)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(data)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(data))
    with open_source(str(tmp_path)) as source:
        assert source.splits["train"].n_samples == 6


def test_counts_that_disagree_are_told(tmp_path, images, labels):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels[:5]))
    with pytest.raises(DataError, match="6 images but 5 labels"):
        open_source(str(tmp_path))


def test_labels_without_images_are_refused(tmp_path, labels):
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with pytest.raises(DataError, match=r"the split train has labels .* but no images"):
        open_source(str(tmp_path))


def test_a_file_named_like_idx_but_damaged_is_named(tmp_path, images, labels):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\x1f\x8b garbage")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with pytest.raises(DataError, match="train-images-idx3-ubyte: not a complete gzip file"):
        open_source(str(tmp_path))


def test_two_data_sets_in_one_folder_are_refused(tmp_path, images):
    (tmp_path / "a-train-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (tmp_path / "b-train-images-idx3-ubyte").write_bytes(idx_bytes(images))
    with pytest.raises(DataError, match="both look like the images of the split train"):
        open_source(str(tmp_path))


def test_no_images_at_all_are_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.empty((0, 4, 3), np.uint8)))
    with pytest.raises(DataError, match=r"shape \(0, 4, 3\) holds no images"):
        open_source(str(tmp_path))


def test_the_file_that_changed_is_named(tmp_path, images, labels):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with open_source(str(tmp_path)) as source:
        before, state = source.fingerprint(), source.state()
        assert source.changed_since(state) is None
    labels[0] = 3
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with open_source(str(tmp_path)) as source:
        assert source.fingerprint() != before
        assert source.changed_since(state) == "train-labels-idx1-ubyte has changed"


@pytest.mark.parametrize("name", ["val", "my-valid", "validation", "dev"])
def test_validation_is_a_split_of_its_own(tmp_path, images, labels, name):
    for stem in ("train", "t10k", name):
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with open_source(str(tmp_path)) as source:
        assert list(source.splits) == ["train", "validation", "test"]


def test_a_word_that_only_begins_like_validation_is_none(tmp_path, images, labels):
    (tmp_path / "values-images-idx3-ubyte").write_bytes(idx_bytes(images))
    with open_source(str(tmp_path)) as source:
        assert list(source.splits) == ["all"]
