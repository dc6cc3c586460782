from __future__ import annotations

import h5py
import numpy as np
import pytest

from cnnfeat.errors import FeatureFileError
from cnnfeat.features import FeatureFile, verify_file, write_arrays


def _place(path, name):
    with h5py.File(path) as file:
        array = file[name]
        return array.id.get_offset(), array.id.get_storage_size()


def _flip(path, byte, bit):
    with path.open("r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ 1 << bit]))


def test_intact_file_verifies(sample):
    found = verify_file(sample.path)
    assert found.damages == ()
    assert found.n_blocks == (3 + 1) * 4  # blocks of 512 rows, four columns


@pytest.mark.parametrize("n_flips", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_no_bit_flip_in_features_is_missed(sample, rng, n_flips):
    for _ in range(n_flips):
        split = ("train", "test")[rng.integers(2)]
        stored = ("conv2", "block.fc1")[rng.integers(2)]
        begin, size = _place(sample.path, f"{split}/{stored}")
        at, bit = int(rng.integers(size)), int(rng.integers(8))
        row = at // (180 if stored == "conv2" else 32)
        _flip(sample.path, begin + at, bit)
        (damage,) = verify_file(sample.path).damages
        assert (damage.split, damage.layer, damage.block) == (split, stored, row // 512)
        for word in (repr(split), repr(stored), f"block {row // 512} "):
            assert word in damage.message
        with FeatureFile(sample.path) as file, pytest.raises(FeatureFileError, match="damaged"):
            list(file.blocks(split, stored, rows=100))
        _flip(sample.path, begin + at, bit)
    assert verify_file(sample.path).damages == ()


def test_no_bit_flip_in_labels_is_missed(sample, rng):
    begin, size = _place(sample.path, "train/label")
    for at in rng.integers(size, size=40).tolist():
        _flip(sample.path, begin + at, 3)
        (damage,) = verify_file(sample.path).damages
        assert (damage.split, damage.layer, damage.block) == ("train", "label", at // 8 // 512)
        with FeatureFile(sample.path) as file, pytest.raises(FeatureFileError, match="'label'"):
            file.labels("train")
        _flip(sample.path, begin + at, 3)


def test_no_bit_flip_in_ids_is_missed(sample, rng):
    data = sample.path.read_bytes()
    for row in rng.integers(1300, size=40).tolist():
        name = sample.ids["train"][row].encode()
        at = data.index(name)
        _flip(sample.path, at + int(rng.integers(len(name))), int(rng.integers(8)))
        damages = verify_file(sample.path).damages
        assert [(d.split, d.layer, d.block) for d in damages] == [("train", "id", row // 512)]
        sample.path.write_bytes(data)


def test_no_bit_flip_anywhere_in_the_ids_references_goes_unnoticed(sample, rng):
    begin, size = _place(sample.path, "test/id")
    data = sample.path.read_bytes()
    for at in rng.integers(size, size=10).tolist():
        _flip(sample.path, begin + at, int(rng.integers(8)))
        damages = verify_file(sample.path).damages
        assert [(d.split, d.layer) for d in damages] == [("test", "id")]
        sample.path.write_bytes(data)


def test_blocks_name_the_damaged_block(sample):
    begin, _ = _place(sample.path, "train/conv2")
    _flip(sample.path, begin + 600 * 180, 0)
    with FeatureFile(sample.path) as file:
        blocks = file.blocks("train", "conv2")
        start, array = next(blocks)
        assert start == 0
        np.testing.assert_array_equal(array, sample.splits["train"]["conv2"][:512])
        with pytest.raises(FeatureFileError, match=r"'conv2', block 1 \(rows 512 to 1023\)"):
            next(blocks)


@pytest.mark.parametrize("n_files", [80, pytest.param(300, marks=pytest.mark.slow)])
def test_files_with_random_damage_end_in_a_named_error(sample, rng, n_files):
    data = sample.path.read_bytes()
    outcomes = {"refused": 0, "named": 0, "harmless": 0}
    for _ in range(n_files):
        changed = bytearray(data)
        for byte in rng.integers(len(data), size=rng.choice([1, 2, 20])).tolist():
            changed[byte] = int(rng.choice([0, 255, rng.integers(256)]))
        sample.path.write_bytes(changed)
        try:
            damages = verify_file(sample.path).damages
        except FeatureFileError:
            outcomes["refused"] += 1
            continue
        outcomes["named" if damages else "harmless"] += 1
    assert outcomes["refused"] and outcomes["named"] > n_files / 3


@pytest.mark.parametrize("column", ["part", "group"])
def test_no_bit_flip_in_parts_and_groups_is_missed(tmp_path, rng, column):
    path = tmp_path / "f.h5"
    write_arrays(
        path,
        {"all": {"fc": np.zeros((1000, 1), "float32")}},
        parts={"all": np.ones(1000, np.uint8)},
        groups={"all": np.arange(1000)},
    )
    begin, size = _place(path, f"all/{column}")
    for at in rng.integers(size, size=20).tolist():
        _flip(path, begin + at, 0)
        (damage,) = verify_file(path).damages
        assert (damage.layer, damage.block) == (column, at * 1000 // size // 512)
        with FeatureFile(path) as file, pytest.raises(FeatureFileError, match=f"'{column}'"):
            (file.parts if column == "part" else file.groups)("all")
        _flip(path, begin + at, 0)
    assert verify_file(path).damages == ()
