"""Rows of several feature files as one, held against what h5py reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from cnnfeat.errors import FeatureFileError, LayerLookupError, UsageError
from cnnfeat.features import FeatureFile, FeatureTable, open_table, write_arrays
from cnnfeat.parts import Part

N = 700  # rows: more than one block
IDS = [f"cat/{row}.png" for row in range(N)]
CLASSES = ("cat", "dog")
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a file of N rows: conv (2, 2, 3), fc 5, half-precision."""

    def made(name: str, *, order: Sequence[int] | None = None, seed: int = 0, **more) -> Path:
        rng = np.random.default_rng(seed)
        layers = {
            "conv": rng.normal(size=(N, 2, 2, 3)).astype("f4"),
            "half": rng.normal(size=(N, 4)).astype("f2"),
            "fc": rng.normal(size=(N, 5)).astype("f4"),
            "mask": rng.integers(0, 2, (N, 2)).astype("u1"),
        }
        rows = np.arange(N) if order is None else np.asarray(order)
        columns = {"labels": np.arange(N) % 2, "ids": np.array(IDS)} | {
            key: np.asarray(value) for key, value in more.items() if key not in ("classes", "extra")
        }
        by_row = {key: value[rows] for key, value in columns.items() if value.ndim}
        write_arrays(
            tmp_path / name,
            {"train": {key: value[rows] for key, value in layers.items()}, **more.get("extra", {})},
            labels={"train": by_row["labels"]} if "labels" in by_row else None,
            ids={"train": by_row["ids"].tolist()},
            parts={"train": by_row["parts"].astype("u1")} if "parts" in by_row else None,
            groups={"train": by_row["groups"]} if "groups" in by_row else None,
            classes=more.get("classes", CLASSES),
        )
        return tmp_path / name

    return made


def stored(path: Path, layer: str) -> np.ndarray:
    with h5py.File(path) as file:
        return file[f"train/{layer}"][:].reshape(N, -1)


@pytest.fixture
def shuffle() -> np.ndarray:
    return np.random.default_rng(9).permutation(N)


def read(table: FeatureTable, layer: str, **options) -> np.ndarray:
    blocks = list(table.blocks("train", layer, **options))
    starts = np.cumsum([0, *(len(block) for _, block in blocks)])[:-1]
    assert [start for start, _ in blocks] == starts.tolist()
    return np.concatenate([block for _, block in blocks])


@pytest.mark.parametrize("rows", [None, 1, 13, 512, N, 5_000])
def test_layers_of_one_file_stand_side_by_side(make, rows):
    path = make("a.h5")
    expected = np.hstack([stored(path, name) for name in ("conv", "half", "mask")]).astype("f4")
    with open_table(path) as table:
        layer = table.find_layer("conv+half+mask")
        found = read(table, layer, rows=rows)
        assert (found.dtype, table.layer("train", layer).shape) == (np.float32, (N, 18))
        np.testing.assert_array_equal(found, expected)
        some = [5, 3, N - 1, 0]
        np.testing.assert_array_equal(table.take("train", layer, some), expected[some])


def test_a_single_layer_is_read_as_it_stands(make):
    path = make("a.h5")
    with open_table(path) as table, FeatureFile(path) as file:
        assert table.layer("train", "conv") == file.layer("train", "conv")
        for name in ("conv", "half", "mask"):
            pairs = zip(table.blocks("train", name), file.blocks("train", name), strict=True)
            for (start, block), (expected, rows) in pairs:
                assert (start, block.dtype) == (expected, rows.dtype)
                np.testing.assert_array_equal(block, rows)


@pytest.mark.parametrize("rows", [None, 17])
def test_rows_are_joined_by_id(make, shuffle, rows):
    first, second = make("a.h5"), make("b.h5", seed=1, order=shuffle)
    back = np.argsort(shuffle)
    expected = np.hstack([stored(first, "fc"), stored(second, "conv")[back]])
    with open_table([first, second]) as table:
        layer = table.find_layer("fc+conv")
        np.testing.assert_array_equal(read(table, layer, rows=rows), expected)
        some = np.array([4, 600, 8])
        np.testing.assert_array_equal(table.take("train", layer, some), expected[some])
        assert table.ids("train") == IDS
        np.testing.assert_array_equal(table.labels("train"), np.arange(N) % 2)
    with open_table([second, first]) as table:  # the first file's order
        layer = table.find_layer("conv+fc")
        other = np.hstack([stored(second, "conv"), stored(first, "fc")[shuffle]])
        np.testing.assert_array_equal(read(table, layer), other)
        assert table.ids("train") == [IDS[row] for row in shuffle]


def test_one_layer_is_meant_in_every_file(make):
    first, second = make("a.h5"), make("b.h5", seed=1)
    with open_table([first, second]) as table:
        assert table.find_layer("fc") == "fc+fc"
        expected = np.hstack([stored(first, "fc"), stored(second, "fc")])
        np.testing.assert_array_equal(read(table, "fc+fc"), expected)
        assert table.layers == ("conv+conv", "half+half", "fc+fc", "mask+mask")
        with pytest.raises(UsageError, match="holds 4 layers: conv, half, fc, mask"):
            table.find_layer(None)


def test_a_layer_that_no_other_file_has_is_none_of_all(make, tmp_path):
    first = make("a.h5")
    write_arrays(
        tmp_path / "b.h5",
        {"train": {"other": np.zeros((N, 2), "f4")}},
        labels={"train": np.arange(N) % 2},
        ids={"train": IDS},
        classes=CLASSES,
    )
    with open_table([first, tmp_path / "b.h5"]) as table:
        with pytest.raises(
            LayerLookupError, match="no layer that all of these files have"
        ) as found:
            table.layers  # noqa: B018 - it is what raises
        assert "b.h5 holds other" in str(found.value)
        with pytest.raises(LayerLookupError, match=r"b\.h5 holds no layer 'fc'"):
            table.find_layer("fc")


def refused(paths: Sequence[Path], words: str) -> None:
    with pytest.raises(FeatureFileError, match=words) as caught, open_table(paths):
        pass
    assert caught.value.exit_code == 3
    assert "cnnfeat extract" in caught.value.hint


def test_ids_that_one_file_lacks_are_named_and_counted(make):
    ids = np.array(IDS)
    ids[[3, 5, 7, 9]] = ["new/3", "new/5", "new/7", "new/9"]
    first, second = make("a.h5"), make("b.h5", ids=ids)
    words = r"4 ids of split 'train' of .*a\.h5 are not in .*b\.h5: cat/3\.png, .* and 1 more"
    refused([first, second], words)
    refused([second, first], r"4 ids of split 'train' of .*b\.h5 are not in .*a\.h5: new/3")


def test_more_rows_in_one_file_are_refused(make, tmp_path):
    first = make("a.h5")
    ids = [*IDS, "cat/more.png"]
    write_arrays(
        tmp_path / "b.h5", {"train": {"fc": np.zeros((N + 1, 5), "f4")}}, ids={"train": ids}
    )
    words = r"1 ids of split 'train' of .*b\.h5 are not in .*a\.h5: cat/more\.png"
    refused([first, tmp_path / "b.h5"], words)


def test_other_splits_are_refused(make):
    first = make("a.h5")
    second = make("b.h5", extra={"test": {"fc": np.zeros((2, 5), "f4")}})
    refused([first, second], r"a\.h5 has the splits train, and .*b\.h5 has train, test")


def test_equal_ids_are_told_apart_by_an_equal_order_alone(make, shuffle):
    ids = np.array(IDS)
    ids[10] = IDS[11]
    first, same = make("a.h5", ids=ids), make("b.h5", ids=ids, seed=1)
    with open_table([first, same]) as table:
        expected = np.hstack([stored(first, "fc"), stored(same, "fc")])
        np.testing.assert_array_equal(read(table, table.find_layer("fc")), expected)
    other = make("c.h5", ids=ids, order=shuffle)
    words = r"a\.h5: 1 ids of split 'train' stand there more than once \(cat/11\.png\)"
    refused([first, other], words)


def test_labels_have_to_agree(make, shuffle):
    labels = np.arange(N) % 2
    other = labels.copy()
    other[[41, 90]] = 1 - other[[41, 90]]
    first, second = make("a.h5"), make("b.h5", labels=other, order=shuffle)
    words = (
        r"train, row 41 \(cat/41\.png\) is of class 'dog' in .*a\.h5, and of 'cat' in .*b\.h5; 2"
    )
    with open_table([first, second]) as table, pytest.raises(FeatureFileError, match=words):
        table.labels("train")
    without = make("c.h5", labels=0)
    with open_table([without, second]) as table:
        np.testing.assert_array_equal(table.labels("train"), other)


def test_classes_have_to_agree(make):
    first = make("a.h5")
    refused([first, make("b.h5", classes=("cat", "cow"))], r"class 1 is 'dog' and 'cow'")
    refused([first, make("c.h5", classes=("cat", "dog", "elk"))], "2 and 3 of them")
    with open_table([make("d.h5", classes=(), labels=0), first]) as table:
        assert table.classes == CLASSES


def test_the_strictest_of_what_networks_saw_counts(make, shuffle):
    first = np.resize([Part.UNSEEN, Part.FITTED, Part.VALIDATION], N)
    second = np.resize([Part.UNSEEN] * 3 + [Part.VALIDATION] * 3 + [Part.FITTED] * 3, N)
    paths = [make("a.h5", parts=first), make("b.h5", parts=second, order=shuffle), make("c.h5")]
    strictest = {0: 0, 1: 1, 2: 2}
    expected = [
        Part.FITTED
        if Part.FITTED in pair
        else max(strictest[part] for part in pair)  # without one that was fitted to, the larger
        for pair in zip(first.tolist(), second.tolist(), strict=True)
    ]
    with open_table(paths) as table:
        np.testing.assert_array_equal(table.parts("train"), expected)
        assert [file.path for file in table.unknown("train")] == [paths[2]]
    with open_table(paths[2]) as table:
        assert table.parts("train") is None


def test_groups_have_to_agree_by_whatever_number(make, shuffle):
    groups = np.arange(N) // 10
    names = np.random.default_rng(2).permutation(N)[groups]
    first = make("a.h5", groups=groups)
    with open_table([make("b.h5"), first]) as table:  # of the file that has them
        np.testing.assert_array_equal(table.groups("train"), groups)
    with open_table([first, make("c.h5", groups=names, order=shuffle)]) as table:
        np.testing.assert_array_equal(table.groups("train"), groups)
    for name, change in (("d.h5", 9_999), ("e.h5", names[50])):
        other = names.copy()
        other[43] = change  # a group of its own, or of others
        with (
            open_table([first, make(name, groups=other)]) as table,
            pytest.raises(FeatureFileError, match=r"cat/\d+\.png and cat/43\.png are of one"),
        ):
            table.groups("train")


def test_damage_in_rows_of_another_order_is_noticed(make, shuffle):
    first, second = make("a.h5"), make("b.h5", order=shuffle)
    with h5py.File(second) as file:
        place = file["train/fc"].id.get_offset() + 20 * 123 + 3
    data = bytearray(second.read_bytes())
    data[place] ^= 0x10
    second.write_bytes(data)
    with (
        open_table([first, second]) as table,
        pytest.raises(FeatureFileError, match=r"b\.h5: split 'train', layer 'fc', block"),
    ):
        read(table, table.find_layer("fc"))


@pytest.mark.parametrize("name", ["fc", "conv"])
def test_numbers_that_nothing_can_be_computed_from_are_found_where_they_are(
    make, tmp_path, shuffle, name
):
    first = make("a.h5")
    rows = {layer: stored(first, layer)[shuffle].copy() for layer in ("fc", "conv")}
    rows[name][17, 2] = np.nan
    write_arrays(tmp_path / "b.h5", {"train": rows}, ids={"train": [IDS[row] for row in shuffle]})
    with open_table([first, tmp_path / "b.h5"]) as table:
        layer = table.join("all", [*table.parts_of("fc+conv"), *table.parts_of("conv+fc")[1:]])
        bad = int(shuffle[17])
        assert table.unusable_part("train", layer, bad) == (tmp_path / "b.h5", name, 17)
        with pytest.raises(FeatureFileError, match=rf"b\.h5: train/{name}, row 17"):
            read(table, layer)


def test_different_sources_are_told(make, tmp_path, caplog):
    for name, fingerprint in (("a.h5", "0" * 64), ("b.h5", "1" * 64), ("c.h5", "0" * 64)):
        write_arrays(
            tmp_path / name,
            {"train": {"fc": np.zeros((4, 2), "f4")}},
            attributes={"source": f"of {name}", "source_fingerprint": fingerprint},
        )
    with open_table([tmp_path / "a.h5", tmp_path / "c.h5"]):
        assert not caplog.messages
    with open_table([tmp_path / "a.h5", tmp_path / "b.h5"]):
        (said,) = caplog.messages
    assert said.startswith("features are of different sources, joined by id: ")
    assert "a.h5 of of a.h5" in said and "b.h5 of of b.h5" in said


def test_a_set_is_joined_as_the_file_of_its_rows(made, tmp_path, work):
    from cnnfeat.features.merging import seal_set

    folder, single = made()
    seal_set(folder)
    with FeatureFile(single) as file:
        names, ids = file.layers, {split: file.ids(split) for split in file.splits}
        arrays = {split: file.read(split, names[0]) for split in file.splits}
    turned = {split: np.random.default_rng(1).permutation(len(ids[split])) for split in ids}
    write_arrays(
        tmp_path / "other.h5",
        {split: {"mine": arrays[split][order]} for split, order in turned.items()},
        ids={split: [ids[split][row] for row in order] for split, order in turned.items()},
    )
    for paths in ([folder, tmp_path / "other.h5"], [single, tmp_path / "other.h5"]):
        with open_table(paths) as table:
            layer = table.find_layer(f"{names[1]}+mine")
            for split, expected in arrays.items():
                found = np.concatenate([block for _, block in table.blocks(split, layer, rows=37)])
                width = expected.reshape(len(expected), -1).shape[1]
                np.testing.assert_array_equal(
                    found[:, -width:], expected.reshape(len(expected), -1)
                )
