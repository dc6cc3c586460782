"""A source with some of its rows: which they are, what they are called, how they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnfeat.data import imagefiles, open_data, open_source
from cnnfeat.divided import (
    Pick,
    PickedSource,
    divide_source,
    leave_out_rare,
    redivide,
    rule_for,
    training_split,
)
from cnnfeat.errors import DataError, ImageError, UsageError
from cnnfeat.options import DataOptions
from cnnfeat.parts import DivisionRule, Part
from cnnfeat.records import ImageTarget

RULE = DivisionRule(0.2, 0.1, seed=3)


def pictures(folder: Path, sizes: dict[str, int], *, shape: tuple[int, int] = (4, 5)) -> Path:
    """Picture number i of all, in the order of the source, is filled with i."""
    number = 0
    for name in sorted(sizes):
        for place in range(sizes[name]):
            path = folder / name / f"{place:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full(shape, number, np.uint8)).save(path)
            number += 1
    return folder


def arrays(folder: Path, n: int, n_classes: int = 2, **more: int) -> Path:
    x = np.arange(n, dtype=np.uint8)[:, None, None] * np.ones((3, 3), np.uint8)
    named = {"images": x, "labels": np.arange(n) % n_classes}
    if more:
        named = {}
        for split, rows in {"train": n, **more}.items():
            named |= {f"x_{split}": x[:rows], f"y_{split}": np.arange(rows) % n_classes}
    np.savez(folder / "x.npz", **named)
    return folder / "x.npz"


def read(source, split: str, **how) -> tuple[list[int], list[str], list[int]]:
    """Pixel values, ids and labels."""
    batches = list(source.batches(split, **{"batch_size": 7, **how}))
    return (
        [int(image[0, 0, 0]) for batch in batches for image in batch.images],
        [name for batch in batches for name in batch.ids],
        [int(label) for batch in batches for label in batch.labels],
    )


@pytest.fixture(params=["folder", "npz"])
def undivided(request, tmp_path: Path) -> str:
    if request.param == "npz":
        return str(arrays(tmp_path, 100))
    return str(pictures(tmp_path / "photos", {"a": 40, "b": 60}))


def test_every_row_is_in_one_split_under_its_own_name(undivided):
    with open_source(undivided) as source, open_source(undivided) as plain:
        divided = divide_source(source, RULE)
        assert list(divided.splits) == ["train", "test"]
        values, names, labels = read(plain, "all")
        found = {split: read(divided, split) for split in divided.splits}
    for pixels, ids, truth in found.values():
        places = [values.index(pixel) for pixel in pixels]
        assert places == sorted(places)
        assert ids == [names[place] for place in places]
        assert truth == [labels[place] for place in places]
    assert sorted(found["train"][0] + found["test"][0]) == values
    counts = {split: np.bincount(truth).tolist() for split, (_, _, truth) in found.items()}
    fifth = [8, 12] if "photos" in undivided else [10, 10]
    assert counts["test"] == fifth  # a fifth of each class
    assert {split: divided.splits[split].n_samples for split in found} == {"train": 80, "test": 20}


def test_parts_say_what_the_network_will_see(undivided):
    with open_source(undivided) as source:
        divided = divide_source(source, RULE)
        train, labels = divided.parts("train"), divided.labels("train")
        assert divided.parts("test").tolist() == [Part.UNSEEN] * 20
        assert set(train) == {Part.FITTED, Part.VALIDATION}
        for label in (0, 1):
            share = np.mean(train[labels == label] == Part.VALIDATION)
            assert 0.05 < share < 0.15
        assert source.parts("all") is None and source.division is None
        assert {**RULE.to_json(), **divided.division} == divided.division


@pytest.mark.parametrize("batch_size", [1, 3, 16, 1000])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (5, 13), (19, None), (20, None)])
def test_any_rows_can_be_read_alone(undivided, batch_size, start, stop):
    with open_source(undivided) as source:
        divided = divide_source(source, RULE)
        whole = read(divided, "test")
        batches = list(divided.batches("test", batch_size=batch_size, start=start, stop=stop))
        some = read(divided, "test", batch_size=batch_size, start=start, stop=stop)
    assert some == tuple(values[start:stop] for values in whole)
    assert all(len(batch) <= batch_size for batch in batches)
    edges = [start, *(batch.stop for batch in batches)]
    assert [batch.start for batch in batches] == edges[:-1]
    assert edges[-1] == (stop or 20)
    # From a batch's beginning on all are whole; pictures' batches end where those of a run over
    # all do, wherever they begin.
    assert start % batch_size or len(batches) == -(-((stop or 20) - start) // batch_size)


def test_the_same_rule_gives_the_same_rows_and_another_seed_others(undivided):
    with open_source(undivided) as source:
        first, again = divide_source(source, RULE), divide_source(source, RULE)
        other = divide_source(source, DivisionRule(0.2, 0.1, seed=4))
        assert first.division == again.division != other.division
        assert read(first, "test") == read(again, "test") != read(other, "test")
        assert first.fingerprint() == source.fingerprint()
        assert first.changed_since(source.state()) is None


def test_no_picture_is_decoded_twice(tmp_path, monkeypatch):
    decoded = []
    plain = imagefiles.decode_stream

    def decode(stream, *, name, **how):
        decoded.append(name)
        return plain(stream, name=name, **how)

    with open_source(str(pictures(tmp_path, {"a": 30, "b": 30}))) as source:
        divided = divide_source(source, RULE)
        monkeypatch.setattr(imagefiles, "decode_stream", decode)
        for split in divided.splits:
            read(divided, split)
    assert len(decoded) == len(set(decoded)) == 60


def test_a_split_is_described_by_its_own_first_picture(tmp_path):
    pictures(tmp_path, {"a": 20, "b": 20})
    with open_source(str(tmp_path)) as source:
        first = read(divide_source(source, RULE), "test")[1][0]
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / first)
    with open_source(str(tmp_path)) as source:
        divided = divide_source(source, RULE)
        assert divided.splits["test"].image_shape == (9, 8, 1)
        assert divided.splits["train"].image_shape == (4, 5, 1)


def test_a_bad_picture_shifts_no_row(tmp_path):
    pictures(tmp_path, {"a": 20, "b": 20})
    with open_source(str(tmp_path)) as source:
        _, ids, _ = read(divide_source(source, RULE), "test")
    (tmp_path / ids[3]).write_bytes(b"\x89PNG broken")
    with open_source(str(tmp_path)) as source:
        divided = divide_source(source, RULE)
        read(divided, "train")
        with pytest.raises(ImageError, match=ids[3]):
            read(divided, "test")
        batches = list(divided.batches("test", batch_size=5, on_error="skip"))
    assert [name for batch in batches for name in batch.ids] == ids[:3] + ids[4:]
    assert [(one.row, one.id) for batch in batches for one in batch.skipped] == [(3, ids[3])]


def test_images_are_brought_to_a_target(undivided):
    with open_source(undivided) as source:
        divided = divide_source(source, RULE)
        batch = next(divided.batches("test", batch_size=6, target=ImageTarget((2, 2), 3)))
    assert batch.images.shape == (6, 2, 2, 3)


def test_own_splits_are_kept(tmp_path):
    with open_source(str(arrays(tmp_path, 50, val=12, test=8))) as source:
        rule = rule_for(source, test_fraction=0.2, validation=0.1, seed=0)
        assert rule == DivisionRule(None, None, seed=0)
        divided = divide_source(source, rule)
        assert list(divided.splits) == ["train", "validation", "test"]
        assert set(divided.parts("train")) == {Part.FITTED}
        assert set(divided.parts("validation")) == {Part.VALIDATION}
        assert set(divided.parts("test")) == {Part.UNSEEN}
        assert read(divided, "train") == read(source, "train")


def test_a_source_with_a_test_split_keeps_all_training_rows_in_order(tmp_path):
    with open_source(str(arrays(tmp_path, 50, test=8))) as source:
        divided = divide_source(source, rule_for(source, test_fraction=0.5, validation=0.2, seed=0))
        assert read(divided, "train") == read(source, "train")
        assert np.bincount(divided.parts("train")).tolist() == [0, 40, 10]


def test_a_source_with_validation_alone_is_divided_for_testing(tmp_path):
    with open_source(str(arrays(tmp_path, 50, val=10))) as source:
        divided = divide_source(source, rule_for(source, test_fraction=0.2, validation=0.1, seed=0))
        assert {name: info.n_samples for name, info in divided.splits.items()} == {
            "train": 40,
            "validation": 10,
            "test": 10,
        }
        assert set(divided.parts("train")) == {Part.FITTED}


def test_nothing_but_a_test_split_can_not_be_trained_on(tmp_path):
    np.savez(tmp_path / "x.npz", x_test=np.zeros((4, 3, 3), np.uint8), y_test=np.arange(4))
    with open_source(str(tmp_path / "x.npz")) as source, pytest.raises(DataError) as caught:
        training_split(source)
    assert "nothing to train on: all it has is test" in str(caught.value)
    assert caught.value.exit_code == 3


def test_classes_too_small_are_named_with_their_sizes_and_the_way_on(tmp_path):
    pictures(tmp_path, {"bus": 1, "cat": 2, "dog": 9, "emu": 9})
    with open_source(str(tmp_path)) as source, pytest.raises(DataError) as caught:
        divide_source(source, RULE)
    assert "each class needs 3 pictures or more" in str(caught.value)
    assert "'bus': 1, 'cat': 2" in str(caught.value)
    assert "--min-per-class 3" in caught.value.hint and caught.value.exit_code == 3
    with open_data(DataOptions(str(tmp_path), min_per_class=3)) as source:
        divided = divide_source(source, RULE)
        assert set(divided.labels("train")) == {2, 3} == set(divided.labels("test"))
        assert divided.classes == ("bus", "cat", "dog", "emu")


def test_rare_classes_are_left_out_of_all_splits_and_said(tmp_path, caplog):
    x = np.arange(12, dtype=np.uint8)[:, None, None] * np.ones((3, 3), np.uint8)
    np.savez(
        tmp_path / "x.npz",
        x_train=x,
        y_train=np.array([0, 1, 1, 0, 2, 1, 0, 1, 0, 1, 1, 2]),
        x_test=x[:4],
        y_test=np.array([2, 0, 3, 1]),
    )
    with caplog.at_level("INFO", "cnnfeat"):
        source = open_data(DataOptions(str(tmp_path / "x.npz"), min_per_class=3))
    with source:
        assert "fewer than 3 pictures in 'train': '2': 2, '3': 0" in caplog.text
        values, ids, labels = read(source, "train")
        assert values == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
        assert ids[4] == "train/00005" and labels[4] == 1
        assert read(source, "test") == ([1, 3], ["test/00001", "test/00003"], [0, 1])
        assert source.options["min_per_class"] == 3
        divided = divide_source(source, rule_for(source, test_fraction=0.2, validation=0.1, seed=0))
        assert read(divided, "train") == (values, ids, labels)
        assert divided.division["min_per_class"] == 3


def test_all_classes_too_rare_is_an_error(tmp_path):
    path = str(arrays(tmp_path, 4))
    with pytest.raises(DataError, match=r"every class of .* has fewer than 3 pictures: '0': 2"):
        open_data(DataOptions(path, min_per_class=3))
    np.save(tmp_path / "bare.npy", np.zeros((4, 3, 3), np.uint8))
    with pytest.raises(UsageError, match=r"--min-per-class 2: .* has no labels"):
        open_data(DataOptions(str(tmp_path / "bare.npy"), min_per_class=2))
    with open_source(path) as source:
        assert leave_out_rare(source, 2) is source


def grouped(folder: Path) -> Path:
    """Ten patients of five pictures, each of one class; a manifest that says so."""
    pictures(folder / "images", {"x": 50})
    lines = [f"images/x/{i:03d}.png,{'ab'[i // 5 % 2]},p{i // 5}" for i in range(50)]
    (folder / "list.csv").write_text("path,label,Patient\n" + "\n".join(lines), "utf-8")
    return folder / "list.csv"


def test_groups_stay_on_one_side(tmp_path):
    with open_data(DataOptions(str(grouped(tmp_path)), group_by="patient")) as source:
        rule = rule_for(source, test_fraction=0.2, validation=0.2, seed=1)
        assert rule.group_by == "patient"
        divided = divide_source(source, rule)
        train, test = divided.groups("train"), divided.groups("test")
        fitted = divided.parts("train") == Part.FITTED
        assert len(np.unique(source.groups("all"))) == 10
        assert not set(train) & set(test)
        assert not set(train[fitted]) & set(train[~fitted])
        assert set(divided.labels("test")) == {0, 1}


def test_a_group_that_is_a_whole_class_is_refused_with_both_numbers(tmp_path):
    path = grouped(tmp_path)
    path.write_text(path.read_text("utf-8").replace(",b,p3", ",b,p1").replace(",b,p5", ",b,p1")
                    .replace(",b,p7", ",b,p1").replace(",b,p9", ",b,p1"), "utf-8")  # fmt: skip
    with open_data(DataOptions(str(path), group_by="Patient")) as source:
        rule = rule_for(source, test_fraction=0.2, validation=0.2, seed=1)
        with pytest.raises(DataError) as caught:
            divide_source(source, rule)
    assert "each class needs 3 groups or more" in str(caught.value)
    assert "all 25 pictures of class 'b'" in str(caught.value)
    assert "are in 1 by --group-by Patient" in str(caught.value)
    assert caught.value.exit_code == 3 and "--group-by" in caught.value.hint


def test_a_division_is_done_again_or_not_at_all(undivided):
    with open_source(undivided) as source:
        divided = divide_source(source, RULE)
        again = redivide(source, dict(divided.division))
        assert again is not None and again.division == divided.division
        assert redivide(source, {**divided.division, "seed": 9}) is None
        assert redivide(source, {**divided.division, "parts_sha256": "0"}) is None
        assert redivide(source, {"seed": 3}) is None


def test_picks_of_picks_are_rows_of_the_first(tmp_path):
    with open_source(str(arrays(tmp_path, 30))) as source:
        odd = PickedSource(source, {"odd": Pick("all", np.arange(1, 30, 2))})
        third = PickedSource(odd, {"third": Pick("odd", np.arange(0, 15, 3))})
        assert read(third, "third")[0] == [1, 7, 13, 19, 25]
        assert third.labels("third").tolist() == [1] * 5
        assert third.parts("third") is None and third.groups("third") is None
        with pytest.raises(UsageError, match="no split 'all'; this source has: third"):
            read(third, "all")


def test_other_rows_to_test_on_are_another_division(tmp_path):
    """Also where all the others are fitted to, and the parts look the same."""
    with open_source(str(arrays(tmp_path, 60, val=6))) as source:
        first, other = (
            divide_source(source, DivisionRule(0.2, None, seed=seed)) for seed in (0, 1)
        )
        assert first.parts("train").tolist() == other.parts("train").tolist()
        assert redivide(source, {**first.division, "seed": 1}) is None
        assert first.division["parts_sha256"] != other.division["parts_sha256"]


def test_a_test_split_without_labels_is_no_test(tmp_path, caplog):
    """As Kaggle hands them out: `test.csv` has no labels."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (50, 4, 4), np.uint8), np.arange(50) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:7] // 2)
    with open_source(str(tmp_path / "a.npz")) as source:
        rule = rule_for(source, test_fraction=0.2, validation=0.1, seed=0)
        assert (rule.test_fraction, rule.validation) == (0.2, 0.1)
        divided = divide_source(source, rule)
        assert {name: info.n_samples for name, info in divided.splits.items()} == {
            "train": 40,
            "test": 10,
            "unlabelled-test": 7,
        }
        assert np.bincount(divided.labels("test")).tolist() == [5, 5]
        assert divided.labels("unlabelled-test") is None
        assert set(divided.parts("unlabelled-test")) == {Part.UNSEEN}
        (batch,) = divided.batches("unlabelled-test", batch_size=10)
        np.testing.assert_array_equal(batch.images[..., 0], x[:7] // 2)
        assert batch.ids[0] == "test/00000"
    assert "its split test has no labels, and is called unlabelled-test here" in caplog.text
