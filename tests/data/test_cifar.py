from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from cnnfeat.data import open_source
from cnnfeat.errors import DataError, UsageError

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def dump(path: Path, value: object, protocol: int = 2) -> None:
    path.write_bytes(pickle.dumps(value, protocol))


def flat(pictures: np.ndarray) -> np.ndarray:
    """(n, 32, 32, 3) as a batch has them: all red, then all green, then all blue."""
    return np.concatenate(
        [pictures[..., channel].reshape(-1, 1024) for channel in range(3)], axis=1
    )


@pytest.fixture
def pictures(rng) -> np.ndarray:
    return rng.integers(0, 256, (24, 32, 32, 3), np.uint8)


@pytest.fixture
def labels(rng) -> list[int]:
    return rng.integers(0, 10, 24).tolist()


@pytest.fixture
def ten(tmp_path, pictures, labels) -> Path:
    """Five batches of four pictures, and one of the last four to test."""
    for number in range(6):
        rows = slice(4 * number, 4 * number + 4)
        name = f"data_batch_{number + 1}" if number < 5 else "test_batch"
        batch = {
            b"batch_label": b"one of six",
            b"labels": labels[rows],
            b"data": flat(pictures[rows]),
            b"filenames": [b"a.png"] * 4,
        }
        dump(tmp_path / name, batch)
    meta = {"num_cases_per_batch": 4, "label_names": TEN, "num_vis": 3072}
    dump(tmp_path / "batches.meta", meta)
    (tmp_path / "readme.html").write_text("<html>")
    return tmp_path


def test_cifar_10_is_what_went_in(ten, pictures, labels, read_all):
    with open_source(str(ten)) as source:
        assert (source.kind, source.name) == ("cifar", str(ten))
        assert source.classes == tuple(TEN)
        assert {name: info.n_samples for name, info in source.splits.items()} == {
            "train": 20,
            "test": 4,
        }
        assert source.splits["train"].image_shape == (32, 32, 3)
        train, test = read_all(source, "train"), read_all(source, "test")
        np.testing.assert_array_equal(train.images, pictures[:20])
        assert train.labels.tolist() == labels[:20]
        assert train.ids[7] == "train/00007"
        np.testing.assert_array_equal(test.images, pictures[20:])
        assert test.labels.tolist() == labels[20:]
        some = read_all(source, "train", start=3, stop=13, batch_size=9)  # over three batches
        np.testing.assert_array_equal(some.images, pictures[3:13])


def test_many_batches_are_in_natural_order(tmp_path, pictures, labels, read_all):
    for number in range(1, 13):
        rows = slice(number - 1, number)
        dump(
            tmp_path / f"data_batch_{number}",
            {"data": flat(pictures[rows]), "labels": [number % 10]},
        )
    with open_source(str(tmp_path)) as source:
        assert list(source.splits) == ["train"]
        np.testing.assert_array_equal(read_all(source, "train").images, pictures[:12])


@pytest.mark.parametrize("protocol", range(6))
def test_cifar_100_has_fine_labels_and_coarse_ones(tmp_path, pictures, read_all, caplog, protocol):
    fine, coarse = [i * 4 for i in range(24)], [i % 20 for i in range(24)]
    for name, rows in (("train", slice(20)), ("test", slice(20, 24))):
        batch = {
            "data": flat(pictures[rows]),
            "fine_labels": fine[rows],
            "coarse_labels": coarse[rows],
        }
        dump(tmp_path / name, batch, protocol)
    meta = {
        "fine_label_names": [f"fine {i}" for i in range(100)],
        "coarse_label_names": [f"coarse {i}" for i in range(20)],
    }
    dump(tmp_path / "meta", meta, protocol)
    with caplog.at_level(logging.INFO), open_source(str(tmp_path)) as source:
        assert source.classes[16] == "fine 16" and len(source.classes) == 100
        train = read_all(source, "train")
        np.testing.assert_array_equal(train.images, pictures[:20])
        assert train.labels.tolist() == fine[:20]
    assert "labels are fine_labels; --labels :/coarse_labels takes others" in caplog.text
    with open_source(str(tmp_path), labels=":/coarse_labels") as source:
        assert source.classes == tuple(f"coarse {i}" for i in range(20))
        assert source.labels("test").tolist() == coarse[20:]
        assert source.labels_from == ":/coarse_labels"
    with pytest.raises(UsageError, match="no labels ':/course_labels'; its batches have") as caught:
        open_source(str(tmp_path), labels=":/course_labels")
    assert "'coarse_labels'" in caught.value.hint


def test_one_batch_alone_is_all(ten, pictures, labels, read_all, caplog):
    with caplog.at_level(logging.INFO), open_source(str(ten / "data_batch_2")) as source:
        assert list(source.splits) == ["all"]
        np.testing.assert_array_equal(read_all(source, "all").images, pictures[4:8])
        assert source.labels("all").tolist() == labels[4:8]
    assert "no names of classes; they are called by their numbers" in caplog.text


def test_without_names_or_labels_that_is_said(ten, caplog):
    (ten / "batches.meta").unlink()
    with caplog.at_level(logging.INFO), open_source(str(ten)) as source:
        assert source.classes == tuple(map(str, range(len(source.classes))))
    assert "no names of classes" in caplog.text
    for path in ten.glob("*batch*"):
        batch = pickle.loads(path.read_bytes())
        del batch[b"labels"]
        dump(path, batch)
    with caplog.at_level(logging.INFO), open_source(str(ten)) as source:
        assert source.labels("train") is None and source.classes == ()
    assert "no labels for train, test" in caplog.text


class _Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_batch_with_code_in_it_is_refused_and_the_code_does_not_run(ten, name):
    dump(ten / name, {"data": _Code(ten / "made"), "labels": []})
    with pytest.raises(DataError, match=rf"{name}: a pickle with more than data in it: (posix|nt)"):
        open_source(str(ten))
    assert not (ten / "made").exists()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"labels": [1]}, r"no batch of CIFAR: it has no array 'data'; its keys: labels"),
        ({"data": [1], "labels": [1]}, "no batch of CIFAR"),
        (
            {"data": np.zeros((1, 3071), np.uint8), "labels": [1]},
            r"data is uint8 of shape \(1, 3071\)",
        ),
        ({"data": np.zeros((1, 3072)), "labels": [1]}, "data is float64"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "2 images but 1 labels"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [b"cat"]}, "isn't a list of whole"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, "labels from .* to 10; the 10"),
        ({"data": np.zeros((1, 12), np.uint8), "labels": [1]}, "only the first number may differ"),
    ],
)
def test_batches_that_are_none_are_refused(ten, batch, message):
    dump(ten / "data_batch_3", batch)
    with pytest.raises(DataError, match=message):
        open_source(str(ten))


def test_a_changed_batch_is_seen(ten, pictures):
    with open_source(str(ten)) as source:
        before, state = source.fingerprint(), source.state()
    dump(ten / "data_batch_4", {"data": flat(pictures[:4]), "labels": [1, 2, 3, 4]})
    with open_source(str(ten)) as source:
        assert source.fingerprint() != before
        assert source.changed_since(state) == "data_batch_4 has changed"


def test_batches_that_are_missing_are_named(ten, caplog):
    (ten / "data_batch_2").unlink()
    with open_source(str(ten)):
        pass
    missing = caplog.text.partition("batches are missing: ")[2]
    assert "data_batch_2" in missing and "data_batch_1" not in missing
