"""What a stranger wrote into a feature file: its arrays, its links, its tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash

from cnnfeat.errors import FeatureFileError
from cnnfeat.features import FeatureFile, safety, verify_file, write_arrays

N, WIDTH = 600, 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of two splits: one layer, labels, two blocks each."""
    rows = {s: np.arange(N * WIDTH, dtype=np.float32).reshape(N, WIDTH) for s in ("train", "test")}
    write_arrays(
        tmp_path / "f.h5",
        {split: {"fc": X} for split, X in rows.items()},
        labels={split: np.arange(N) % 3 for split in rows},
        classes=["a", "b", "c"],
    )
    return tmp_path / "f.h5"


def change(path: Path, edit: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        edit(file)


def refused(path: Path, edit: Callable[[h5py.File], None]) -> str:
    change(path, edit)
    with pytest.raises(FeatureFileError) as raised:
        FeatureFile(path)
    assert str(path) in raised.value.message
    return raised.value.message


def swap(name: str, make: Callable[[h5py.File, str], None]) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]
        make(file, name)

    return edit


def array(values: object, **options: object) -> Callable[[h5py.File, str], None]:
    return lambda file, name: file.create_dataset(name, data=values, **options)


def spoil(path: Path, row: int, value: float, column: int = 2) -> None:
    """Put a number into the test split, and make the block's checksum right again."""
    with h5py.File(path, "r+") as file:
        file["test/fc"][row, column] = value
        start, stop = (0, 512) if row < 512 else (512, N)
        data = file["test/fc"][start:stop].tobytes()
        file["checksums/test/sum"][row // 512, 0] = xxhash.xxh3_64_intdigest(data)


@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-2e15, "1e+15")]
)
def test_rows_that_nothing_can_be_computed_from_are_named(path, value, word):
    spoil(path, 530, value)
    with FeatureFile(path) as file:
        for read in (
            lambda: file.take("test", "fc", [5, 530]),
            lambda: list(file.blocks("test", "fc")),
            lambda: list(file.blocks("test", "fc", rows=7)),
        ):
            with pytest.raises(FeatureFileError) as raised:
                read()
            message = raised.value.message
            assert message.startswith(f"{path}: test/fc, row 530: 1 of 4 numbers are ")
            assert word in message and message.endswith("the first in column 2 (test/00530)")
        np.testing.assert_array_equal(
            file.read("test", "fc", start=530, stop=531)[0, 2], np.float32(value)
        )
        assert len(file.take("test", "fc", [530], any_numbers=True)) == 1
        assert sum(len(b) for _, b in file.blocks("test", "fc", any_numbers=True)) == N
        assert len(list(file.blocks("train", "fc"))) == 2


def test_verify_tells_of_them_and_finds_no_damage(path):
    for row in (3, 530):
        spoil(path, row, np.nan)
    found = verify_file(path)
    assert found.damages == ()
    (rows,) = found.unusable
    assert str(rows) == (
        "test/fc has NaN, infinite or immense numbers in 2 of 600 rows; the first is row 3 "
        "(test/00003): 1 of 4 numbers are NaN"
    )


def test_a_damaged_block_is_not_taken_for_bad_numbers(path):
    change(path, lambda file: file["test/fc"].__setitem__((530, 2), np.nan))
    with FeatureFile(path) as file, pytest.raises(FeatureFileError, match=r"block 1 .* is damaged"):
        file.take("test", "fc", [530])
    found = verify_file(path)
    assert found.unusable == () and len(found.damages) == 1


def test_a_nan_that_signals_is_named_without_a_warning(path):
    bits = np.array([0x7F800001], np.uint32).view(np.float32)
    with h5py.File(path) as file:
        place = file["test/fc"].id.get_offset()
    with path.open("r+b") as raw:
        raw.seek(place + 8)
        raw.write(bits.tobytes())
    spoil(path, 1, 0.0)  # the checksum is right for what lies there
    with FeatureFile(path) as file, pytest.raises(FeatureFileError, match=r"row 0: 1 of 4 .* NaN"):
        file.take("test", "fc", [0])


def test_layers_of_another_shape_in_a_split_are_refused_with_both(path):
    message = refused(path, swap("test/fc", array(np.zeros((N, 2), "f4"))))
    assert "'fc' differ in shape: (4,) in 'train', (2,) in 'test'" in message


def test_layers_without_features_are_refused(path):
    def edit(file: h5py.File) -> None:
        for split in ("train", "test"):
            swap(f"{split}/fc", array(np.zeros((N, 0), "f4")))(file)

    assert "layer 'fc' has no features" in refused(path, edit)


def test_splits_without_rows_are_refused(path):
    def edit(file: h5py.File) -> None:
        for name in ("fc", "label"):
            swap(f"test/{name}", array(file[f"test/{name}"][:0]))(file)
        swap("test/id", array([], dtype=h5py.string_dtype()))(file)
        file["checksums/test/stop"][:] = 0

    assert "split 'test' has no rows" in refused(path, edit)


def test_a_split_that_only_its_checksums_are_left_of_is_told(path):
    def edit(file: h5py.File) -> None:
        del file["test"]

    assert "checksums of a split 'test', and no such split" in refused(path, edit)


def hard_link(source: str) -> Callable[[h5py.File, str], None]:
    return lambda file, name: file.__setitem__(name, file[source])


def soft_group(file: h5py.File, name: str) -> None:
    file["train/elsewhere"] = h5py.SoftLink("/test")
    columns = file["checksums/train/column"]
    columns[0] = "elsewhere/fc"


def wide_number(file: h5py.File, name: str) -> None:
    file.create_dataset(name, data=np.zeros((N, WIDTH), np.longdouble))


REPLACED = {
    "one-array-twice": ("test/fc", hard_link("train/fc"), "share bytes"),
    "one-split-twice": ("test", hard_link("train"), "share bytes"),
    "root-as-a-split": ("test", hard_link("/"), "missing"),
    "parent-as-a-layer": ("test/fc", hard_link("test"), "/test/fc is no data set"),
    "way-through-a-link": ("train/label", soft_group, "'elsewhere/fc' is no name of a part of"),
    "no-length-beyond-bounds": (
        "test/fc",
        lambda file, name: file.create_dataset(name, (0, 2**40, 2**40), "f4"),
        "more than the file's",
    ),
    "complex": ("test/fc", array(np.zeros((N, WIDTH), "c8")), "no numbers of a known kind"),
    "opaque": ("test/fc", array(np.zeros((N, WIDTH), "V4")), "no numbers of a known kind"),
    "enumeration": ("test/fc", array(np.zeros((N, WIDTH), bool)), "no numbers of a known kind"),
    "quadruple": ("test/fc", wide_number, "no numbers of a known kind"),
    "references": (
        "test/fc",
        lambda file, name: file.create_dataset(name, (1, 1), h5py.ref_dtype, data=file.ref),
        "no numbers of a known kind",
    ),
    "one-number": ("test/fc", array(np.float32(1)), "unequal numbers of rows"),
    "nothing": ("test/fc", array(h5py.Empty("f4")), "shape None"),
    "labels-of-floats": ("test/label", array(np.zeros(N)), "no numbers of a known kind"),
    "labels-of-texts": ("test/label", array(["a"] * N), "no numbers of a known kind"),
    "labels-of-rows": ("test/label", array(np.zeros((N, 2), int)), "has shape (600, 2)"),
    "few-labels": ("test/label", array(np.zeros(N - 1, int)), "label 599"),
    "ids-of-numbers": ("test/id", array(np.zeros(N)), "no list of texts"),
    "ids-of-one-length": ("test/id", array(np.array([b"x"] * N)), "no list of texts"),
    "few-ids": ("test/id", array(["x"] * 7), "id 7"),
    "classes-of-numbers": ("classes", array(np.zeros(3)), "no list of texts"),
    "no-blocks": ("checksums/test/stop", array(np.zeros(0, int)), "checksums of split 'test'"),
    "blocks-backwards": ("checksums/test/stop", array(np.array([700, N])), "checksums of split"),
    "blocks-around-zero": (
        "checksums/test/stop",
        array(np.array([-(2**63), N])),
        "checksums of split",
    ),
    "sums-of-texts": ("checksums/test/sum", array(["x"]), "no numbers of a known kind"),
}  # fmt: skip


@pytest.mark.parametrize("case", REPLACED)
def test_arrays_of_another_kind_are_refused(path, case):
    name, make, words = REPLACED[case]
    assert words in refused(path, swap(name, make))


def test_a_long_name_is_shortened_where_it_is_refused(path):
    message = refused(path, lambda file: file.create_group("n" * 50_000))
    assert f"{'n' * 40}'… in / is a name of 50,000 characters" in message and len(message) < 300


def test_a_split_whose_name_is_no_text_is_refused(path):
    assert "the name of a split is no UTF-8" in refused(path, lambda f: f.move("test", b"te\xff"))


def test_no_group_is_opened_after_the_first_that_is_no_split(path, monkeypatch):
    opened = []
    real = safety.child_group
    monkeypatch.setattr(
        safety,
        "child_group",
        lambda group, name, path: opened.append(name) or real(group, name, path),
    )
    message = refused(path, lambda file: [file.create_group(f"x{i}") for i in range(50)])
    assert "/checksums/x0 is missing" in message
    assert len(opened) < 20


def test_blocks_that_overflow_on_the_way_are_refused(path):
    stops = np.array([2**62, 2**63 - 1, -(2**63), -(2**62), 0, N])

    def edit(file: h5py.File) -> None:
        swap("checksums/test/stop", array(stops))(file)
        swap("checksums/test/sum", array(np.zeros((len(stops), 3), "u8")))(file)

    assert "checksums of split 'test' are damaged" in refused(path, edit)


def test_big_endian_and_whole_numbers_are_read(path):
    X = np.arange(N * WIDTH).reshape(N, WIDTH)
    for kind in (">f4", ">i2", "u1", "<f8"):
        change(path, swap("test/fc", array(X.astype(kind))))
        with FeatureFile(path) as file:
            np.testing.assert_array_equal(file.take("test", "fc", [9])[0], X[9].astype(kind))


@pytest.mark.parametrize(
    ("rows", "ids"),
    [([9999], ["x"]), ([-1], ["x"]), ([3, 3], ["x", "y"]), ([5, 3], ["x", "y"]), ([3], ["x", "y"])],
    ids=["beyond", "negative", "twice", "backwards", "fewer"],
)
def test_rows_left_out_that_cannot_be_are_refused(path, rows, ids):
    def edit(file: h5py.File) -> None:
        group = file["test"].create_group("skipped")
        group["row"] = np.array(rows)
        group["id"], group["reason"] = ids, ids

    change(path, edit)
    with FeatureFile(path) as file, pytest.raises(FeatureFileError, match="list rows from 0 to 60"):
        file.skipped("test")


def test_a_zero_byte_in_an_id_is_refused(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(b"test/00007", b"test\x0000007"))
    with FeatureFile(path) as file, pytest.raises(FeatureFileError, match="holds a zero byte"):
        file.ids("test")


def test_many_blocks_of_a_row_are_read_in_time(tmp_path):
    n = 50_000  # what looks through all blocks for each takes minutes
    X = np.ones((n, 1), np.float32)
    write_arrays(tmp_path / "f.h5", {"all": {"fc": X}})
    one = xxhash.xxh3_64_intdigest(X[:1].tobytes())

    def edit(file: h5py.File) -> None:
        swap("checksums/all/stop", array(np.arange(1, n + 1)))(file)
        swap("checksums/all/sum", array(np.full((n, 2), one, "u8")))(file)

    change(tmp_path / "f.h5", edit)
    with FeatureFile(tmp_path / "f.h5") as file:
        assert sum(len(rows) for _, rows in file.blocks("all", "fc")) == n


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("index", "size"),
    [(0, 0), (0, 8), (1, 2**64 - 16), (1, 2**63)],
    ids=["0", "8", "wraps", "large"],
)
def test_a_heap_that_hdf5_would_go_through_without_end_is_refused(path, index, size):
    data = bytearray(path.read_bytes())
    data = data[: int.from_bytes(data[40:48], "little")]  # without its seal
    heap = data.index(b"GCOL")
    place = heap + 16
    while int.from_bytes(data[place : place + 2], "little") != index:
        place += 16 + -(-int.from_bytes(data[place + 8 : place + 16], "little") // 8) * 8
    data[place + 8 : place + 16] = size.to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(FeatureFileError, match=r"attribute 'format' of / is damaged.* heap"):
        FeatureFile(path)


def test_names_that_cannot_be_looked_up_are_damage(path, monkeypatch):
    def broken(group: h5py.Group, name: str) -> bool:
        raise RuntimeError("unable to offset into local heap data block")

    with FeatureFile(path) as file:
        monkeypatch.setattr(h5py.Group, "__contains__", broken)
        with pytest.raises(FeatureFileError, match="/train is damaged: unable to offset"):
            file.skipped("train")
