from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from cnnfeat.data import open_source
from cnnfeat.data.matfile import row_axes
from cnnfeat.errors import DataError, UsageError


@pytest.fixture
def pictures(rng) -> np.ndarray:
    """(n, height, width, channels), no two axes alike."""
    return rng.integers(0, 256, (11, 8, 6, 3), np.uint8)


@pytest.fixture
def labels(rng) -> np.ndarray:
    """SVHN's: 1 to 10, where 10 is the digit 0."""
    return np.array([10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], np.uint8)


def save_5(path: Path, **arrays: np.ndarray) -> None:
    savemat(path, arrays, appendmat=False, do_compression=len(path.name) % 2 == 0)


def save_73(path: Path, **arrays: np.ndarray) -> None:
    """MATLAB's own way: a text of 512 bytes, then HDF5, in which axes lie in reverse."""
    kinds = {"uint8": "uint8", "float64": "double", "bool": "logical"}
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            stored = array.astype(np.uint8) if array.dtype == bool else array
            file[name] = np.atleast_2d(stored).T if stored.ndim > 1 else stored[np.newaxis].T
            file[name].attrs["MATLAB_class"] = np.bytes_(kinds[array.dtype.name])
        cells = file.create_group("#refs#")
        cells["a"] = np.zeros((99, 99, 99), np.uint8)
        cells["a"].attrs["MATLAB_class"] = np.bytes_("uint8")
        text = file.create_dataset("title", data=np.array([[72, 105]], np.uint16))
        text.attrs["MATLAB_class"] = np.bytes_("char")
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\0\2IM"
    with path.open("r+b") as file:
        file.write(header)


@pytest.fixture(params=[save_5, save_73], ids=["5", "7.3"])
def save(request):
    return request.param


def test_svhn_is_what_went_in(tmp_path, save, pictures, labels, read_all):
    for name, rows in (("train", slice(0, 7)), ("test", slice(7, 11))):
        X = np.moveaxis(pictures[rows], 0, 3)  # (height, width, channels, n)
        save(tmp_path / f"{name}_32x32.mat", X=X, y=labels[rows, np.newaxis])
    with open_source(str(tmp_path)) as source:
        assert (source.kind, source.name) == ("mat", str(tmp_path))
        assert list(source.splits) == ["train", "test"]
        assert source.splits["train"].image_shape == (8, 6, 3)
        assert source.classes == tuple(map(str, range(11)))
        train, test = read_all(source, "train"), read_all(source, "test")
        np.testing.assert_array_equal(train.images, pictures[:7])
        assert train.labels.tolist() == [10, 1, 2, 3, 4, 5, 6]  # 10 stays 10
        np.testing.assert_array_equal(test.images, pictures[7:])
        assert test.labels.tolist() == [7, 8, 9, 10]
        np.testing.assert_array_equal(
            read_all(source, "train", start=2, stop=6).images, pictures[2:6]
        )


def test_one_file_is_all(tmp_path, save, pictures, labels, read_all):
    save(tmp_path / "train_32x32.mat", X=np.moveaxis(pictures, 0, 3), y=labels[:, np.newaxis])
    with open_source(str(tmp_path / "train_32x32.mat")) as source:
        assert list(source.splits) == ["all"]
        rows = read_all(source, "all")
        np.testing.assert_array_equal(rows.images, pictures)
        assert rows.labels.tolist() == labels.tolist()
        state = source.state()
    save(tmp_path / "train_32x32.mat", X=np.moveaxis(pictures, 0, 3), y=labels[::-1, np.newaxis])
    with open_source(str(tmp_path / "train_32x32.mat")) as source:
        assert source.changed_since(state) == "train_32x32.mat has changed"


def test_the_axis_as_long_as_the_labels_counts_pictures(tmp_path, save, pictures, labels, read_all):
    column = labels.astype(np.float64)[:, np.newaxis]  # as MATLAB has numbers
    for images in (pictures, pictures[..., 0]):
        for X in (images, np.moveaxis(images, 0, -1)):
            for y in (column, column.T):
                save(tmp_path / "a.mat", images=X, labels=y)
                with open_source(str(tmp_path / "a.mat")) as source:
                    rows = read_all(source, "all")
                    np.testing.assert_array_equal(rows.images.squeeze(), images)
                    assert rows.labels.tolist() == labels.tolist()


def test_without_labels_the_shape_says_where_pictures_are_counted():
    shapes = {
        "matlab": (8, 8, 3, 20),
        "python": (20, 8, 8, 3),
        "grey": (8, 8, 20),
        "grey python": (20, 8, 8),
        "cube": (8, 8, 8),
        "odd": (7, 8, 20),
    }
    assert row_axes(shapes) == {
        "matlab": 3,
        "python": 0,
        "grey": 2,
        "grey python": 0,
        "cube": 2,
        "odd": 2,
    }


def test_logical_pictures_are_black_and_white(tmp_path, save, pictures, labels, read_all):
    bits = pictures > 127
    save(tmp_path / "a.mat", X=np.moveaxis(bits, 0, 3), y=labels)
    with open_source(str(tmp_path / "a.mat")) as source:
        np.testing.assert_array_equal(read_all(source, "all").images, np.where(bits, 255, 0))


def test_splits_of_one_file_and_arrays_by_name(tmp_path, save, pictures, labels, read_all):
    X = np.moveaxis(pictures, 0, 3)
    save(tmp_path / "a.mat", x_train=X, y_train=labels, x_test=X[..., :4], y_test=labels[:4])
    with open_source(str(tmp_path / "a.mat")) as source:
        assert list(source.splits) == ["train", "test"]
        np.testing.assert_array_equal(read_all(source, "test").images, pictures[:4])
    with open_source(f"{tmp_path / 'a.mat'}:/x_train", labels=":/y_train") as source:
        np.testing.assert_array_equal(read_all(source, "all").images, pictures)
        assert source.labels("all").tolist() == labels.tolist()
    (tmp_path / "a.mat").rename(tmp_path / "train.mat")
    with pytest.raises(DataError, match=r"train\.mat: has the splits train, test of its own"):
        open_source(str(tmp_path))


def test_shards_of_a_split_are_one_after_the_other(tmp_path, save, pictures, labels, read_all):
    for part, rows in ((2, slice(0, 5)), (10, slice(5, 11))):
        save(tmp_path / f"train_{part}.mat", X=np.moveaxis(pictures[rows], 0, 3), y=labels[rows])
    with open_source(str(tmp_path)) as source:
        rows = read_all(source, "train", batch_size=4)
        np.testing.assert_array_equal(rows.images, pictures)
        assert rows.labels.tolist() == labels.tolist()
    save(tmp_path / "train_3.mat", X=np.moveaxis(pictures, 0, 3))
    with pytest.raises(DataError, match="some files of the split train have no labels"):
        open_source(str(tmp_path))
    with pytest.raises(UsageError, match="labels can be named for one file"):
        open_source(str(tmp_path), labels=":/y")


def test_what_is_no_array_of_numbers_is_left_alone(tmp_path, pictures, labels, read_all):
    extra = {"meta": {"a": 1}, "names": np.array(["a", "b"], object), "title": "numbers"}
    savemat(tmp_path / "a.mat", {"X": np.moveaxis(pictures, 0, 3), "y": labels, **extra})
    with open_source(str(tmp_path / "a.mat")) as source:
        np.testing.assert_array_equal(read_all(source, "all").images, pictures)
    savemat(tmp_path / "b.mat", extra)
    with pytest.raises(DataError, match=r"it has: meta \(struct\), names \(cell\), title"):
        open_source(str(tmp_path / "b.mat"))


def test_numbers_outside_the_file_are_not_read(tmp_path, pictures):
    save_73(tmp_path / "a.mat", X=np.moveaxis(pictures, 0, 3))
    (tmp_path / "raw").write_bytes(bytes(1000))
    with h5py.File(tmp_path / "a.mat", "r+") as file:
        file.create_dataset("Y", (10, 10, 10), "u1", external=[(str(tmp_path / "raw"), 0, 1000)])
    with pytest.raises(DataError, match="its numbers lie in other files"):
        open_source(str(tmp_path / "a.mat"))


@pytest.mark.parametrize("block", [0, 512])
def test_hdf5_that_ends_in_mat_is_in_the_manner_of_matlab(
    tmp_path, pictures, labels, read_all, block
):
    for name, rows in (("train", slice(0, 7)), ("test", slice(7, 11))):
        with h5py.File(tmp_path / f"{name}_32x32.mat", "w", userblock_size=block) as file:
            file["X"] = np.moveaxis(pictures[rows], 0, 3).T
            file["y"] = labels[rows, np.newaxis].T
    with open_source(str(tmp_path)) as source:
        assert source.kind == "mat"
        np.testing.assert_array_equal(read_all(source, "train").images, pictures[:7])
        assert source.labels("test").tolist() == [7, 8, 9, 10]


@pytest.mark.parametrize("keep", [0.01, 0.1, 0.5, 0.9])
def test_a_cut_file_is_a_data_error(tmp_path, save, pictures, labels, keep):
    path = tmp_path / "a.mat"
    save(path, X=np.moveaxis(pictures, 0, 3), y=labels)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(DataError, match=r"a\.mat"), open_source(str(path)):
        pass


def test_random_damage_is_images_or_a_data_error(tmp_path, save, pictures, rng):
    path = tmp_path / "a.mat"
    save(path, X=np.moveaxis(pictures, 0, 3), y=np.arange(11.0))
    whole = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=2):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            with open_source(str(path)) as source:
                for split, info in source.splits.items():
                    read = list(source.batches(split, batch_size=5))
                    assert sum(map(len, read)) == info.n_samples
        except (DataError, UsageError):
            pass


def test_a_file_that_declares_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "a.mat"
    savemat(path, {"X": np.zeros((4, 4, 7), np.uint8)})
    shape = np.array([4, 4, 7], "<i4").tobytes()
    huge = np.array([2**20, 2**10, 2**10], "<i4").tobytes()
    path.write_bytes(path.read_bytes().replace(shape, huge))
    with pytest.raises(DataError, match="bytes can't hold that"):
        open_source(str(path))


@pytest.mark.parametrize(
    ("kind", "names"), [("char", np.array(["cat", "dog"])), ("cell", np.array(["a", "b"], object))]
)
def test_labels_that_are_no_numbers_are_said_to_be_left(tmp_path, pictures, caplog, kind, names):
    savemat(tmp_path / "a.mat", {"X": np.moveaxis(pictures, 0, 3), "y": names})
    with open_source(str(tmp_path / "a.mat")) as source:
        assert source.labels("all") is None
    assert f"labels in y, a {kind} array, aren't read; numbers are" in caplog.text


@pytest.mark.parametrize("version", [5, 7.3])
def test_a_picture_in_colour_is_one_row(tmp_path, rng, version):
    picture = rng.integers(0, 256, (20, 30, 3), np.uint8)
    path = tmp_path / "x.mat"
    if version == 5:
        savemat(path, {"X": picture})
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("X", data=picture.T).attrs["MATLAB_class"] = np.bytes_("uint8")
    with open_source(str(path)) as source:
        (batch,) = source.batches("all", batch_size=5)
    np.testing.assert_array_equal(batch.images, picture[np.newaxis])
