from __future__ import annotations

import gzip

import numpy as np
import pytest

from cnnfeat.data import open_source
from cnnfeat.errors import DataError


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


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
