from __future__ import annotations

import fcntl
import io
import os
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from cnnfeat.data import npy, open_data, open_source
from cnnfeat.errors import DataError, UsageError
from cnnfeat.options import DataOptions
from cnnfeat.records import ImageTarget


@pytest.fixture
def x(rng) -> np.ndarray:
    return rng.integers(0, 256, (23, 6, 5), np.uint8)


@pytest.fixture
def y(rng) -> np.ndarray:
    return rng.integers(0, 4, 23)


def saved(folder: Path, array: np.ndarray | None = None, **arrays: np.ndarray) -> str:
    """Write one array as `.npy`, named ones as `.npz`."""
    path = folder / ("d.npz" if array is None else "x.npy")
    if array is None:
        np.savez(path, **arrays)
    else:
        np.save(path, array)
    return str(path)


def read(source, split: str, **options) -> np.ndarray:
    options = {"batch_size": 5} | options
    return np.concatenate([batch.images for batch in source.batches(split, **options)])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_kerass_names_has_two_splits(tmp_path, x, y, save):
    path = tmp_path / "data.bin"  # told by content
    with path.open("wb") as file:
        save(file, x_train=x, y_train=y, x_test=x[:4], y_test=y[:4])
    with open_source(str(path)) as source:
        assert source.kind == "npz"
        assert source.name == str(path)
        assert {name: info.n_samples for name, info in source.splits.items()} == {
            "train": 23,
            "test": 4,
        }
        np.testing.assert_array_equal(read(source, "train")[..., 0], x)
        np.testing.assert_array_equal(read(source, "train", start=7, stop=21)[..., 0], x[7:21])
        np.testing.assert_array_equal(source.labels("train"), y)
        assert source.labels("train").dtype == np.int64
        assert source.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("x", "y"), ("train_images", "train_labels")]
)
def test_npz_under_other_names(tmp_path, x, y, names):
    with open_source(saved(tmp_path, **{names[0]: x, names[1]: y.reshape(-1, 1)})) as source:
        (split,) = source.splits
        np.testing.assert_array_equal(read(source, split)[..., 0], x)
        np.testing.assert_array_equal(source.labels(split), y)


@pytest.mark.parametrize(
    ("image", "label"), [("arr_0", "arr_1"), ("images", "species"), ("x", "z")]
)
def test_arrays_that_could_be_labels_are_named(tmp_path, rng, image, label, caplog):
    x, y = rng.integers(0, 256, (23, 6, 5), np.uint8), rng.integers(0, 4, 23)
    path = saved(tmp_path, **{image: x, label: y, "other": y[:5]})
    with open_source(path) as source:
        assert source.labels("all") is None
    assert f"labels of {image}: {label} (23,); --labels :/NAME takes it" in caplog.text
    caplog.clear()
    with open_source(path, labels=f":/{label}") as source:
        np.testing.assert_array_equal(source.labels("all"), y)
    assert not caplog.records


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_is_one_row(tmp_path, rng, channels):
    picture = rng.integers(0, 256, (20, 30, channels), np.uint8)
    with open_source(saved(tmp_path, picture)) as source:
        assert source.splits["all"].n_samples == 1
        np.testing.assert_array_equal(read(source, "all"), picture[np.newaxis])


def test_pictures_three_pixels_wide_have_labels(tmp_path, rng):
    x, y = rng.integers(0, 256, (20, 30, 3), np.uint8), np.arange(20)
    with open_source(saved(tmp_path, images=x, labels=y)) as source:
        np.testing.assert_array_equal(read(source, "all")[..., 0], x)


def test_three_grey_pictures_may_be_a_coloured_one(tmp_path, rng, caplog):
    x = rng.integers(0, 256, (3, 20, 30), np.uint8)
    with open_source(saved(tmp_path, x)) as source:
        np.testing.assert_array_equal(read(source, "all")[..., 0], x)
    assert "is taken as 3 grey pictures; one in colour is (height, width, 3)" in caplog.text


def test_hdf5_is_read_without_a_lock(tmp_path, x):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["images"] = x
    with path.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # a lock of HDF5's own is refused now, as without locks
        with pytest.raises(OSError, match="unable to lock"):
            h5py.File(path, "r", locking=True)
        with open_source(str(path)) as source:
            np.testing.assert_array_equal(read(source, "all")[..., 0], x)


@pytest.mark.parametrize("block", [512, 4096])
def test_hdf5_may_lie_behind_a_block_of_another(tmp_path, x, y, block):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", userblock_size=block) as file:
        file["images"], file["labels"] = x, y
    with path.open("r+b") as file:
        file.write(b"another program's own words")
    with open_source(str(path)) as source:
        np.testing.assert_array_equal(read(source, "all")[..., 0], x)
    with open_source(f"{path}:/images") as source:
        assert source.splits["all"].n_samples == 23


@pytest.mark.parametrize("block", [0, 512])
@pytest.mark.parametrize("channels", [None, 3])
def test_hdf5_of_matlab_stands_upright_whatever_it_is_called(tmp_path, rng, block, channels):
    shape = (10, 28, 20) if channels is None else (10, 28, 20, channels)
    x = rng.integers(0, 256, shape, np.uint8)
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", userblock_size=block) as file:
        # X(28, 20[, 3], 10) of MATLAB's, whose axes lie the other way round in the file
        data = np.moveaxis(x, 0, -1).T
        file.create_dataset("images", data=data).attrs["MATLAB_class"] = np.bytes_("uint8")
        file.create_dataset("labels", data=np.arange(10.0)[np.newaxis]).attrs["MATLAB_class"] = (
            np.bytes_("double")
        )
    with open_source(str(path)) as source:
        np.testing.assert_array_equal(read(source, "all"), x.reshape(10, 28, 20, -1))
        assert source.labels("all").tolist() == list(range(10))


def test_a_split_s_name_alone_is_that_of_its_pictures(tmp_path, x, y):
    path = saved(tmp_path, train=x, test=x[:4], validation=y)
    with open_source(path) as source:
        assert list(source.splits) == ["train", "test"]


def test_two_arrays_of_like_names_are_not_taken_for_each_other(tmp_path, x):
    with pytest.raises(DataError, match="can't tell which array holds the images"):
        open_source(saved(tmp_path, x1=x, x2=x))


def test_the_only_array_that_can_be_images_is_taken(tmp_path, x):
    with open_source(saved(tmp_path, stuff=x, numbers=np.arange(3))) as source:
        np.testing.assert_array_equal(read(source, "all")[..., 0], x)
        assert source.classes == ()


def test_npy_is_read_in_slices(tmp_path, x):
    with open_source(saved(tmp_path, x)) as source:
        batches = list(source.batches("all", batch_size=10, start=2))
        assert [(batch.start, batch.stop) for batch in batches] == [(2, 12), (12, 22), (22, 23)]
        assert batches[0].ids[0] == "all/00002"
        assert batches[0].labels is None
        np.testing.assert_array_equal(batches[1].images[..., 0], x[12:22])


def test_npy_in_fortran_order(tmp_path, x):
    with open_source(saved(tmp_path, np.asfortranarray(x))) as source:
        np.testing.assert_array_equal(read(source, "all")[..., 0], x)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_hdf5_with_named_images_and_labels(tmp_path, x, y, compression):
    path = tmp_path / "pictures"
    with h5py.File(path, "w") as file:
        file.create_dataset("group/x", data=x, compression=compression)
        file["y"] = y
    with open_source(f"{path}:/group/x", labels=":/y") as source:
        assert source.kind == "hdf5"
        assert source.name == f"{path}:/group/x"
        np.testing.assert_array_equal(read(source, "all", start=3)[..., 0], x[3:])
        np.testing.assert_array_equal(source.labels("all"), y)
    with open_source(str(path)) as source:  # the only one of three axes
        np.testing.assert_array_equal(read(source, "all")[..., 0], x)


def test_hdf5_with_text_labels(tmp_path, x):
    names = ["dog", "cat", "ant"]
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["images"] = x[:3]
        file["labels"] = names
    with open_source(str(tmp_path / "d.h5")) as source:
        assert source.classes == ("ant", "cat", "dog")
        assert source.labels("all").tolist() == [2, 1, 0]


def test_labels_in_a_file_of_their_own(tmp_path, x, y):
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    with open_source(str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy")) as source:
        np.testing.assert_array_equal(source.labels("all"), y)
        state = source.state()
    np.save(tmp_path / "y.npy", y[::-1])
    with open_source(str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy")) as source:
        assert "y.npy has changed" in source.changed_since(state)


@pytest.mark.parametrize(
    ("dtype", "scale", "expected"),
    [
        ("float64", 1 / 255, "float32"),
        ("float16", 1 / 255, "float32"),
        (">f4", 1, "float32"),
        ("uint16", 200, "uint16"),
        (">u2", 200, "uint16"),
        ("int64", 1, "uint8"),
        ("uint32", 1, "uint8"),
    ],
)
def test_dtypes_are_brought_to_three(tmp_path, x, dtype, scale, expected):
    values = (x * np.float64(scale)).astype(dtype)
    with open_source(saved(tmp_path, values)) as source:
        assert source.splits["all"].dtype == expected
        images = read(source, "all")
        assert images.dtype == np.dtype(expected)
        np.testing.assert_array_equal(images[..., 0], values.astype(expected))


def test_bools_are_black_and_white(tmp_path, x):
    with open_source(saved(tmp_path, x > 100)) as source:
        np.testing.assert_array_equal(read(source, "all")[..., 0], np.where(x > 100, 255, 0))


def test_channels_first_arrays_are_turned(tmp_path, rng):
    x = rng.integers(0, 256, (4, 3, 8, 9), np.uint8)
    with open_source(saved(tmp_path, x)) as source:
        assert source.splits["all"].image_shape == (8, 9, 3)
        np.testing.assert_array_equal(read(source, "all"), np.moveaxis(x, 1, 3))


def test_a_target_changes_size_and_channels_while_reading(tmp_path, x):
    with open_source(saved(tmp_path, x)) as source:
        assert read(source, "all", target=ImageTarget((12, 10), 3)).shape == (23, 12, 10, 3)


def test_memory_is_not_taken_for_what_is_not_read(tmp_path):
    import tracemalloc

    shape = (40_000, 28, 28)
    for save in ("npy", "npz"):
        path = tmp_path / f"x.{save}"
        with path.open("wb") as file:
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                header, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            if save == "npy":
                file.write(header.getvalue())
                file.truncate(len(header.getvalue()) + 40_000 * 784)
            else:
                np.savez(file, images=np.zeros(shape, np.uint8))
        tracemalloc.start()
        with open_source(str(path)) as source:
            n_samples = sum(len(batch) for batch in source.batches("all", batch_size=500))
        assert n_samples == 40_000
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
        tracemalloc.stop()
        path.unlink()


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("save", ["npy", "npz"])
def test_object_arrays_are_refused_and_nothing_is_unpickled(tmp_path, x, save):
    sentinel = tmp_path / "unpickled"
    objects = np.empty(1, object)
    objects[0] = _Bomb(sentinel)
    if save == "npy":
        np.save(tmp_path / "d", objects, allow_pickle=True)
    else:
        np.savez(tmp_path / "d", x=x, y=objects)
    with pytest.raises(DataError, match="Python objects, which only unpickling could read"):
        open_source(str(tmp_path / f"d.{save}"))
    (tmp_path / "p").write_bytes(pickle.dumps(_Bomb(sentinel)))
    with pytest.raises(DataError, match=r"more than data in it: (posix|nt)\.mkdir"):
        open_source(str(tmp_path / "p"))
    assert not sentinel.exists()


def test_counts_that_disagree_are_told(tmp_path, x, y):
    with pytest.raises(DataError, match="23 images but 20 labels") as caught:
        open_source(saved(tmp_path, images=x, labels=y[:20]))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(23, np.nan), "23 of 23 labels are NaN"),
        (np.full(23, 0.5), "continuous targets"),
        (np.full((23, 3), 2), r"labels of shape \(23, 3\); \(n,\) is needed"),
        (np.full(23, 1j), "labels of dtype complex128"),
    ],
)
def test_labels_that_cannot_be_are_refused(tmp_path, x, labels, message):
    with pytest.raises(DataError, match=message):
        open_source(saved(tmp_path, images=x, labels=labels))


def test_labels_that_are_not_small_numbers_become_places(tmp_path, x):
    for labels, classes in (
        (np.array([-1, 1, -1]), ("-1", "1")),
        (np.array([10**9, 5, 5]), ("5", "1000000000")),
        (np.array(["b", "a", "b"]), ("a", "b")),
    ):
        with open_source(saved(tmp_path, images=x[:3], labels=labels)) as source:
            assert source.classes == classes
            assert [classes[label] for label in source.labels("all")] == [str(v) for v in labels]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 784), np.uint8), r"shape \(5, 784\) isn't images"),
        (np.zeros((0, 4, 4), np.uint8), r"shape \(0, 4, 4\) holds no images"),
        (np.zeros((2, 4, 4), complex), "dtype complex128 isn't pixels"),
        (np.full((2, 4, 4), "a"), "dtype <U1 isn't pixels"),
        (np.zeros((2, 4, 4), [("a", "u1")]), "isn't pixels"),
    ],
)
def test_arrays_that_are_not_images_are_refused(tmp_path, array, message):
    with pytest.raises(DataError, match=message):
        open_source(saved(tmp_path, array))


@pytest.mark.parametrize("value", [256, -1])
def test_integers_beyond_a_byte_are_refused_with_their_row(tmp_path, x, value):
    x = x.astype(np.int32)
    x[17, 0, 0] = value
    np.save(tmp_path / "x.npy", x)
    with (
        open_source(str(tmp_path / "x.npy")) as source,
        pytest.raises(DataError, match="row 17: int32 pixels outside 0 to 255"),
    ):
        read(source, "all")
    with open_source(str(tmp_path / "x.npy")) as source:
        batches = list(source.batches("all", batch_size=5, on_error="skip"))
    found = np.concatenate([batch.images for batch in batches])[..., 0]
    np.testing.assert_array_equal(found, np.delete(x, 17, axis=0))
    assert [one.row for batch in batches for one in batch.skipped] == [17]


def test_a_missing_array_is_a_usage_error_with_those_there(tmp_path, x):
    np.savez(tmp_path / "d.npz", pictures=x, more=x)
    with pytest.raises(UsageError, match="no array 'picture'; it holds: pictures, more") as caught:
        open_source(f"{tmp_path / 'd.npz'}:/picture")
    assert caught.value.hint == "did you mean 'pictures'?"
    with pytest.raises(DataError, match="can't tell which array holds the images") as refused:
        open_source(str(tmp_path / "d.npz"))
    assert ":/NAME" in refused.value.hint


def test_labels_without_images_are_refused(tmp_path, x, y):
    with pytest.raises(DataError, match="has y_test but no images of the split test"):
        open_source(saved(tmp_path, x_train=x, y_train=y, y_test=y))


def test_one_array_of_labels_cannot_serve_two_splits(tmp_path, x, y):
    np.savez(tmp_path / "d.npz", x_train=x, x_test=x, labels=y)
    with pytest.raises(UsageError, match="labels can be named for one array only"):
        open_source(str(tmp_path / "d.npz"), labels=":/labels")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("keep", [0.02, 0.3, 0.9, 0.999])
def test_a_truncated_npz_is_a_data_error(tmp_path, x, y, save, keep):
    path = tmp_path / "d.npz"
    save(path, images=x, labels=y)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DataError, match=r"d\.npz"):
        open_source(str(path))


def test_a_damaged_npz_is_images_or_a_data_error(tmp_path, x, y, rng):
    path = tmp_path / "d.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, images=x, labels=y)
        data = bytearray(path.read_bytes())
        for _ in range(150):
            damaged = data.copy()
            damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
            path.write_bytes(damaged)
            try:
                with open_source(str(path)) as source:
                    for split in source.splits:
                        read(source, split)
            except (DataError, UsageError):
                pass


def test_an_npz_that_declares_more_than_it_holds_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 1000, 1000)}
    )
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "d.npz", "w", compression) as archive:
            archive.writestr("images.npy", header.getvalue())
        with pytest.raises(DataError, match="which takes 1,000,000,000,000,"):
            open_source(str(tmp_path / "d.npz"))


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.95])
def test_a_truncated_npy_or_hdf5_file_is_a_data_error(tmp_path, x, keep):
    np.save(tmp_path / "x.npy", x)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = x
    for name in ("x.npy", "x.h5"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: int(keep * len(data))])
        with pytest.raises(DataError, match=name):
            open_source(str(tmp_path / name))


def test_hdf5_reads_nothing_outside_the_file(tmp_path, x):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["images"] = x
    (tmp_path / "raw.bin").write_bytes(x.tobytes())
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["images"] = h5py.ExternalLink("secret.h5", "/images")
    with pytest.raises(DataError, match="can't tell which array holds the images; it has: none"):
        open_source(str(tmp_path / "link.h5"))
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset(
            "images", x.shape, "u1", external=[(str(tmp_path / "raw.bin"), 0, x.size)]
        )
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout(x.shape, "u1")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "images", x.shape)
        file.create_virtual_dataset("images", layout)
    for name in ("external", "virtual"):
        with pytest.raises(DataError, match="its numbers lie in other files"):
            open_source(str(tmp_path / f"{name}.h5"))


def test_large_compressed_members_go_to_a_nameless_file(tmp_path, x, monkeypatch):
    monkeypatch.setattr(npy, "IN_MEMORY_BYTES", 100)
    np.savez_compressed(tmp_path / "d.npz", images=x)
    with open_source(str(tmp_path / "d.npz")) as source:
        np.testing.assert_array_equal(read(source, "all", start=4)[..., 0], x[4:])


def test_bad_rows_and_splits_are_refused(tmp_path, x):
    with open_source(saved(tmp_path, x)) as source:
        with pytest.raises(UsageError, match="no split 'train'; this source has: all"):
            next(source.batches("train", batch_size=2))
        with pytest.raises(UsageError, match="batch size must be at least 1, not 0"):
            next(source.batches("all", batch_size=0))
        with pytest.raises(UsageError, match="all has rows 0 to 22"):
            next(source.batches("all", batch_size=2, start=-1))
        assert not list(source.batches("all", batch_size=2, start=23))


def test_where_labels_lie_is_known_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 4), np.uint8))
    np.save(tmp_path / "y.npy", np.array([0, 1, 0]))
    with open_source(str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy")) as source:
        assert source.labels_from == str(tmp_path / "y.npy")
        digest = source.fingerprint().digest
    monkeypatch.chdir(tmp_path)
    with open_source("x.npy", labels="y.npy") as source:
        assert source.labels_from == str(tmp_path / "y.npy")
        assert source.fingerprint().digest == digest
    with open_source("x.npy") as source:
        assert source.labels_from == ""
        assert source.fingerprint().digest != digest


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted on Linux")
@pytest.mark.parametrize("kind", ["npy", "npz", "hdf5"])
def test_leaving_the_context_closes_the_file(tmp_path, x, kind):
    path = tmp_path / "pictures"
    with path.open("wb") as file:
        if kind == "npy":
            np.save(file, x)
        elif kind == "npz":
            np.savez(file, images=x)
        else:
            h5py.File(file, "w").create_dataset("images", data=x).file.close()

    def n_open() -> int:
        return sum(os.path.realpath(link) == str(path) for link in Path("/proc/self/fd").iterdir())

    with open_source(str(path)) as source:
        read(source, "all")
        assert n_open()
    assert not n_open()


@pytest.mark.parametrize(
    "names",
    [
        ("x_val", "y_val"),
        ("x_valid", "y_valid"),
        ("val_images", "val_labels"),  # MedMNIST's
        ("X_validation", "Y_validation"),
        ("dev_x", "dev_y"),
        ("valid/images", "valid/labels"),
        ("valX", "valY"),
        ("validation_data", "validation_targets"),
        ("dev_set_x_orig", "dev_set_y"),
        ("xval", "yval"),
        ("XVal", "YVal"),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "hdf5"])
def test_validation_is_a_split_of_its_own(tmp_path, x, y, names, kind):
    images, labels = names
    arrays = {"x_test": x[:3], "y_test": y[:3], images: x[:5], labels: y[:5]}
    arrays |= {"x_train": x, "y_train": y}
    path = tmp_path / "data"
    if kind == "npz":
        with path.open("wb") as file:
            np.savez(file, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    with open_source(str(path)) as source:
        assert list(source.splits) == ["train", "validation", "test"]
        np.testing.assert_array_equal(read(source, "validation")[..., 0], x[:5])
        np.testing.assert_array_equal(source.labels("validation"), y[:5])


def test_arrays_do_not_say_what_belongs_together(tmp_path, x, y):
    path = saved(tmp_path, images=x, labels=y)
    with pytest.raises(UsageError, match=r"--group-by folder: .* \(npz\) doesn't say") as caught:
        open_data(DataOptions(path, group_by="folder"))
    assert caught.value.exit_code == 2 and "leave it out" in caught.value.hint
