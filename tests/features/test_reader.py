from __future__ import annotations

import struct

import h5py
import numpy as np
import pytest

from cnnfeat.errors import FeatureFileError, LayerLookupError, MissingInputError, UsageError
from cnnfeat.features import FeatureFile, format, verify_file, write_arrays


def test_plain_h5py_reads_everything(sample):
    with h5py.File(sample.path) as file:
        assert file.attrs["format"] == "cnnfeat-features"
        assert file.attrs["format_version"] == 1
        assert file.attrs["complete"] == 1
        assert list(file["classes"].asstr()) == ["a", "b", "ç"]
        for split, layers in sample.splits.items():
            np.testing.assert_array_equal(file[split]["conv2"], layers["conv2"])
            np.testing.assert_array_equal(file[split]["block.fc1"], layers["block/fc1"])
            np.testing.assert_array_equal(file[split]["label"], sample.labels[split])
            assert file[split]["label"].dtype == np.int64
            assert list(file[split]["id"].asstr()) == sample.ids[split]
            assert file[split]["block.fc1"].attrs["layer"] == "block/fc1"
            assert file[split]["conv2"].chunks is None


def test_xarray_reads_it_as_netcdf(sample):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    with xarray.open_dataset(sample.path, group="train", engine="h5netcdf") as found:
        assert found["conv2"].dims[0] == "sample"
        assert found["conv2"].sizes == dict(
            zip(found["conv2"].dims, sample.splits["train"]["conv2"].shape, strict=True)
        )
        assert set(found.coords) == {"id", "label"}
        np.testing.assert_array_equal(found["conv2"], sample.splits["train"]["conv2"])
        assert list(found["id"].values) == sample.ids["train"]
        np.testing.assert_array_equal(found["label"], sample.labels["train"])


def test_reader_gives_what_was_written(sample):
    with FeatureFile(sample.path) as file:
        assert file.splits == ("train", "test")
        assert file.layers == ("conv2", "block.fc1")
        assert file.classes == ("a", "b", "ç")
        assert file.attributes["network"] == "m"
        for split, layers in sample.splits.items():
            assert file.n_rows(split) == len(layers["conv2"])
            np.testing.assert_array_equal(file.read(split, "conv2"), layers["conv2"])
            np.testing.assert_array_equal(file.labels(split), sample.labels[split])
            assert file.ids(split) == sample.ids[split]
        np.testing.assert_array_equal(
            file.read("train", "conv2", start=7, stop=9), sample.splits["train"]["conv2"][7:9]
        )
        assert file.ids("test", start=298, stop=999) == sample.ids["test"][298:]
        assert file.skipped("train") == ()
        layer = file.layer("train", "block.fc1")
        assert (layer.layer, layer.tensor) == ("block/fc1", "block/fc1:0")
        assert (layer.shape, layer.dtype, layer.size_bytes) == ((1300, 8), "float32", 41600)
        assert layer.original_shape == (8,)


@pytest.mark.parametrize("rows", [None, 1, 7, 512, 1000, 5000])
def test_blocks_cover_all_rows_once(sample, rows):
    with FeatureFile(sample.path) as file:
        blocks = list(file.blocks("train", "conv2", rows=rows))
    starts = [start for start, _ in blocks]
    lengths = [len(array) for _, array in blocks]
    assert starts == np.cumsum([0, *lengths[:-1]]).tolist()
    assert rows is None or set(lengths[:-1]) <= {rows}
    np.testing.assert_array_equal(
        np.concatenate([array for _, array in blocks]), sample.splits["train"]["conv2"]
    )


def test_take_gives_rows_in_the_order_asked(sample, rng):
    rows = [*rng.permutation(1300)[:200].tolist(), 5, 5, 6, 7]
    with FeatureFile(sample.path) as file:
        taken = file.take("train", "conv2", rows)
        np.testing.assert_array_equal(taken, sample.splits["train"]["conv2"][rows])
        assert file.take("train", "conv2", []).shape == (0, 3, 3, 5)
        with pytest.raises(UsageError, match="between 0 and 1299"):
            file.take("train", "conv2", [1300])


@pytest.mark.parametrize(
    "name", ["block.fc1", "block/fc1", "BLOCK.FC1", "Block/Fc1", "block/fc1:0"]
)
def test_find_layer_forgives_spelling(sample, name):
    with FeatureFile(sample.path) as file:
        assert file.find_layer(name) == "block.fc1"


def test_find_layer_names_what_there_is(sample):
    with FeatureFile(sample.path) as file:
        with pytest.raises(UsageError, match=r"2 layers: conv2, block\.fc1"):
            file.find_layer(None)
        with pytest.raises(LayerLookupError, match="no layer 'conv1'") as raised:
            file.find_layer("conv1")
        assert "'conv2'" in raised.value.hint
        with pytest.raises(UsageError, match="no split 'tset'") as raised:
            file.n_rows("tset")
        assert "'test'" in raised.value.hint


@pytest.mark.parametrize("name", [None, "a"])
def test_layers_of_one_split_alone_are_told_with_it(tmp_path, name):
    X = np.zeros((4, 2), np.float32)
    write_arrays(tmp_path / "f.h5", {"train": {"a": X}, "test": {"b": X}})
    with (
        FeatureFile(tmp_path / "f.h5") as file,
        pytest.raises(
            LayerLookupError,
            match="it holds: in 'train' a; in 'test' b, and none in all splits",
        ),
    ):
        file.find_layer(name)


def test_find_layer_without_a_name_takes_the_only_one(tmp_path):
    write_arrays(tmp_path / "one.h5", {"all": {"fc": np.ones((4, 2), "float32")}})
    with FeatureFile(tmp_path / "one.h5") as file:
        assert file.find_layer(None) == "fc"
        assert file.labels("all") is None
        assert file.ids("all")[3] == "all/00003"


def test_layer_names_that_are_taken_get_another(tmp_path):
    arrays = {
        name: np.full((3, 2), number, "float32")
        for number, name in enumerate(["label", "id", "a/b", "a.b", ".."])
    }
    write_arrays(tmp_path / "names.h5", {"all": arrays}, labels={"all": np.arange(3)})
    with FeatureFile(tmp_path / "names.h5") as file:
        assert file.layers == ("label_", "id_", "a.b", "a.b_", ".._")
        for number, stored in enumerate(file.layers):
            assert np.all(file.read("all", stored) == number)
        np.testing.assert_array_equal(file.labels("all"), [0, 1, 2])


def test_missing_file_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(MissingInputError, match="no feature file") as raised:
        FeatureFile(tmp_path / "none.h5")
    assert "cnnfeat extract" in raised.value.hint


def _refused(path) -> str:
    with pytest.raises(FeatureFileError) as raised:
        FeatureFile(path)
    return str(raised.value)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "f.h5"
    path.write_bytes(b"")
    assert "is empty" in _refused(path)
    path.write_bytes(b"PK\x03\x04 and so on")
    assert "no HDF5 file: it begins with b'PK" in _refused(path)
    with h5py.File(path, "w") as file:
        file["x"] = [1]
    assert "no format, 'cnnfeat-features' expected" in _refused(path)
    assert "not a regular file" in _refused(tmp_path)


def test_truncated_file_is_refused_at_every_length(sample):
    data = sample.path.read_bytes()
    (end,) = struct.unpack_from("<Q", data, 40)  # what HDF5 takes for the file's end
    assert len(data) - 300 < end < len(data)  # behind it lies the seal
    for length in np.linspace(0, end - 1, 60).astype(int):
        sample.path.write_bytes(data[:length])
        assert str(sample.path) in _refused(sample.path)
    assert "truncated" in _refused(sample.path)
    for length in range(end, len(data)):
        sample.path.write_bytes(data[:length])
        assert verify_file(sample.path).damages == ()


def test_no_flip_between_the_arrays_reaches_hdf5(sample, rng):
    data = sample.path.read_bytes()
    with h5py.File(sample.path) as file:
        arrays = [file[s][n].id for s in ("train", "test") for n in file[s] if "_" not in n]
        places = [(a.get_offset(), a.get_storage_size()) for a in arrays if a.get_offset()]
    inside = {byte for begin, size in places for byte in range(begin, begin + size)}
    # The ids' texts come last; they have checksums of their own.
    heaps = data.rindex(b"GCOL", 0, data.index(sample.ids["train"][0].encode()))
    between = [byte for byte in range(8, heaps) if byte not in inside]
    assert len(between) > 5000
    for byte in rng.choice(between, 300).tolist():
        changed = bytearray(data)
        changed[byte] ^= 1 << int(rng.integers(8))
        sample.path.write_bytes(changed)
        assert "damaged between its arrays" in _refused(sample.path)


def _edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    return _refused(path)


def _replace(name, make):
    def change(file):
        del file[name]
        make(file, name)

    return change


def test_unfinished_and_unknown_versions_are_refused(sample):
    message = _edit(sample.path, lambda file: file.attrs.modify("complete", 0))
    assert "incomplete" in message and "'train'" in message
    message = _edit(sample.path, lambda file: file.attrs.modify("format_version", 2))
    assert "format version 2" in message and "version 1" in message


def test_what_points_to_other_files_is_refused(sample, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones((1300, 3, 3, 5), "float32")
    (tmp_path / "raw").write_bytes(bytes(1300 * 45 * 4))
    intact = sample.path.read_bytes()

    def external_link(file, name):
        file[name] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")

    def soft_link(file, name):
        file[name] = h5py.SoftLink("/test/conv2")

    def external_storage(file, name):
        file.create_dataset(
            name, (1300, 3, 3, 5), "f4", external=[(str(tmp_path / "raw"), 0, 1300 * 45 * 4)]
        )

    def virtual(file, name):
        layout = h5py.VirtualLayout((1300, 3, 3, 5), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (1300, 3, 3, 5))
        file.create_virtual_dataset(name, layout)

    for make, said in (
        (external_link, "link to elsewhere (ExternalLink)"),
        (soft_link, "link to elsewhere (SoftLink)"),
        (external_storage, "values in another file"),
        (virtual, "virtual data set"),
    ):
        sample.path.write_bytes(intact)
        message = _edit(sample.path, _replace("train/conv2", make))
        assert said in message and "/train/conv2" in message
    sample.path.write_bytes(intact)
    external = _replace("train", external_link)
    assert "link to elsewhere" in _edit(sample.path, external)


def test_absurd_arrays_are_refused(sample):
    intact = sample.path.read_bytes()

    def huge(file, name):
        file.create_dataset(name, (1300, 10**6, 10**6), "f4")

    def packed(file, name):
        file.create_dataset(name, (1300, 8), "f4", chunks=(1300, 8), compression="gzip")

    def compound(file, name):
        file.create_dataset(name, data=np.zeros(1300, [("a", "f4"), ("b", "i4")]))

    def texts(file, name):
        file.create_dataset(name, data=["x"] * 1300)

    def short(file, name):
        file.create_dataset(name, data=np.zeros((1299, 3, 3, 5), "f4"))

    def group(file, name):
        file.create_group(name)

    for make, said in (
        (huge, "more than the file's"),
        (packed, "chunked or compressed"),
        (compound, "no numbers of a known kind"),
        (texts, "no numbers of a known kind"),
        (short, "unequal numbers of rows"),
        (group, "is no data set"),
        (lambda file, name: None, "is missing"),
    ):
        sample.path.write_bytes(intact)
        message = _edit(sample.path, _replace("train/conv2", make))
        assert said in message, message
    for name in ("train/id", "classes", "checksums/train/stop", "checksums/test"):
        sample.path.write_bytes(intact)
        assert name.split("/")[-1] in _edit(sample.path, _replace(name, lambda file, name: None))


@pytest.fixture
def divided(tmp_path, rng):
    """A file whose rows have parts and groups in one of its splits, and those."""
    parts = rng.integers(0, 3, 700).astype(np.uint8)
    groups = rng.integers(0, 90, 700)
    write_arrays(
        tmp_path / "divided.h5",
        {split: {"fc": rng.normal(size=(700, 2)).astype("float32")} for split in ("train", "test")},
        labels={"train": np.zeros(700, np.int64)},
        parts={"train": parts},
        groups={"train": groups},
    )
    return tmp_path / "divided.h5", parts, groups


def test_parts_and_groups_stand_beside_the_labels(divided):
    path, parts, groups = divided
    with FeatureFile(path) as file:
        assert file.layers == ("fc",)
        np.testing.assert_array_equal(file.parts("train"), parts)
        np.testing.assert_array_equal(file.groups("train"), groups)
        assert file.parts("test") is None and file.groups("test") is None
        with pytest.raises(UsageError, match="no split 'all'"):
            file.parts("all")
    with h5py.File(path) as file:  # CF conventions 1.11, section 3.5
        assert file["train/part"].dtype == np.uint8 and file["train/group"].dtype == np.int64
        assert file["train/part"].attrs["flag_values"].tolist() == [0, 1, 2]
        assert file["train/part"].attrs["flag_values"].dtype == np.uint8
        assert file["train/part"].attrs["flag_meanings"] == "unseen fitted validation"
        assert file["train/fc"].attrs["coordinates"] == "label part group id"


def test_parts_and_groups_are_coordinates_of_xarray(divided):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    path, parts, groups = divided
    with xarray.open_dataset(path, group="train", engine="h5netcdf") as found:
        assert set(found.coords) == {"id", "label", "part", "group"}
        np.testing.assert_array_equal(found["part"], parts)
        np.testing.assert_array_equal(found["group"], groups)


def test_a_layer_called_part_is_a_layer(tmp_path, monkeypatch):
    rows = np.arange(6, dtype="float32").reshape(3, 2)
    write_arrays(tmp_path / "new.h5", {"all": {"part": rows}})
    with FeatureFile(tmp_path / "new.h5") as file:
        assert file.layers == ("part_",) and file.find_layer("part") == "part_"
    monkeypatch.setattr(format, "RESERVED", frozenset({"label", "id", "skipped", "sample"}))
    write_arrays(tmp_path / "old.h5", {"all": {"part": rows}})  # as before parts were kept
    with FeatureFile(tmp_path / "old.h5") as file:
        assert file.layers == ("part",)
        assert file.parts("all") is None
        np.testing.assert_array_equal(file.read("all", "part"), rows)


def test_parts_that_are_none_are_refused(tmp_path):
    rows = {"all": {"fc": np.ones((2, 1), "float32")}}
    write_arrays(tmp_path / "f.h5", rows, parts={"all": np.array([0, 7], np.uint8)})
    with FeatureFile(tmp_path / "f.h5") as file, pytest.raises(FeatureFileError) as raised:
        file.parts("all")
    assert "all/part holds 7; 0 to 2 are known" in str(raised.value)
