from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from cnnfeat.data import open_source
from cnnfeat.errors import DataError, UsageError


@pytest.fixture
def pictures(rng) -> np.ndarray:
    return rng.integers(0, 256, (3, 4, 4), np.uint8)


def table(path: Path, picture: np.ndarray) -> None:
    cells = ",".join(map(str, picture.ravel().tolist()))
    path.write_text(f"label,{','.join(f'pixel{i}' for i in range(16))}\n1,{cells}\n")


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train.csv", "val.csv", "test.csv"), ["train", "validation", "test"]),
        (("Training_a.csv", "dev-1.csv", "testing.csv"), ["train", "validation", "test"]),
        (("x-train.csv", "x-valid.csv", "x-test.csv"), ["train", "validation", "test"]),
        (("train-1.csv", "train-2.csv", "train-10.csv"), ["train"]),
        (("1.csv", "2.csv", "10.csv"), ["all"]),
        (("trainer.csv", "tester.csv", "valley.csv"), ["all"]),
    ],
)
def test_names_begin_with_the_split(tmp_path, pictures, read_all, names, splits):
    for name, picture in zip(names, pictures, strict=True):
        table(tmp_path / name, picture)
    with open_source(str(tmp_path)) as source:
        assert list(source.splits) == splits
        found = np.concatenate([read_all(source, split).images[..., 0] for split in splits])
        order = sorted(range(3), key=lambda i: names[i]) if "trainer.csv" in names else [0, 1, 2]
        np.testing.assert_array_equal(found, pictures[order])


def test_files_beside_the_splits_are_left_out_and_named(tmp_path, pictures, caplog):
    for name, picture in zip(("train.csv", "extra.csv", "test.csv"), pictures, strict=True):
        table(tmp_path / name, picture)
    (tmp_path / "notes.txt").write_text("train")
    (tmp_path / ".hidden.csv").write_text("x")
    with open_source(str(tmp_path)) as source:
        assert list(source.splits) == ["train", "test"]
    assert "left out, as their names begin with no split: extra.csv" in caplog.text


def test_two_forms_in_a_folder_are_refused(tmp_path, pictures):
    table(tmp_path / "train.csv", pictures[0])
    savemat(tmp_path / "test.mat", {"X": pictures, "y": [1, 2, 3]})
    with pytest.raises(DataError, match=r"holds \.mat files and CSV files of pixels") as caught:
        open_source(str(tmp_path))
    assert caught.value.hint == "give one of them alone"


def test_folders_of_pictures_stay_what_they_were(tmp_path, pictures):
    """A file in one of the forms beside pictures or folders makes them no other source."""
    for name in ("train", "cat"):
        (tmp_path / name).mkdir()
        Image.fromarray(pictures[0]).save(tmp_path / name / "1.png")
    table(tmp_path / "train.csv", pictures[0])
    (tmp_path / "flat").mkdir()
    Image.fromarray(pictures[0]).save(tmp_path / "flat" / "1.png")
    table(tmp_path / "flat" / "train.csv", pictures[0])
    with open_source(str(tmp_path)) as source:
        assert source.kind == "folder"
    with open_source(str(tmp_path / "flat")) as source:
        assert source.kind == "folder"


def test_labels_of_a_form_are_named_inside_it(tmp_path, pictures):
    table(tmp_path / "train.csv", pictures[0])
    with pytest.raises(UsageError, match="labels can be named where there are several"):
        open_source(str(tmp_path), labels=":/label")


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1), (3, 1, 1, 1)])
def test_labels_of_every_shape_are_one_for_each_picture(tmp_path, pictures, shape):
    labels = np.array([10, 3, 0]).reshape(shape)
    np.savez(tmp_path / "a.npz", x_train=pictures, y_train=labels)
    with open_source(str(tmp_path / "a.npz")) as source:
        assert source.labels("train").tolist() == [10, 3, 0]
        assert source.classes[10] == "10"


def test_labels_of_one_picture_may_have_axes_too(tmp_path, pictures):
    np.savez(tmp_path / "a.npz", x_train=pictures[:1], y_train=np.array([[[[7]]]]))
    with open_source(str(tmp_path / "a.npz")) as source:
        assert source.labels("train").tolist() == [7]


def test_shards_that_are_missing_are_named(tmp_path, pictures, caplog):
    for number, picture in zip((0, 2, 4), pictures, strict=True):
        table(tmp_path / f"train-{number:05d}-of-00005.csv", picture)
    with open_source(str(tmp_path)) as source:
        assert source.splits["train"].n_samples == 3
    named = "files of a split are missing: train-00001-of-00005, train-00003-of-00005"
    assert named in caplog.text
