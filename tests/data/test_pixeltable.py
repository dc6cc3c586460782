from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from cnnfeat.data import open_source
from cnnfeat.errors import DataError, UsageError


@pytest.fixture
def pictures(rng) -> np.ndarray:
    return rng.integers(0, 256, (12, 5, 5), np.uint8)


@pytest.fixture
def labels(rng) -> list[int]:
    return rng.integers(0, 7, 12).tolist()


def write(path: Path, header: str, lines: list[str], end: str = "\n") -> str:
    path.write_text(end.join([header, *lines, ""]), "utf-8")
    return str(path)


def names(number: int, pattern: str = "pixel{}") -> str:
    return ",".join(pattern.format(i) for i in range(number))


def wide(pictures: np.ndarray, labels: list[object] | None = None) -> list[str]:
    """A column a pixel, as in the digits of Kaggle."""
    lines = [",".join(map(str, picture.ravel().tolist())) for picture in pictures]
    if labels is None:
        return lines
    return [f"{label},{line}" for label, line in zip(labels, lines, strict=True)]


@pytest.mark.parametrize("pattern", ["pixel{}", "pixel {}", "Pixel_{}", "{}x1"])
def test_a_column_a_pixel(tmp_path, pictures, labels, read_all, pattern):
    header = f"\ufefflabel,{names(25, pattern)}"
    spec = write(tmp_path / "a.data", header, wide(pictures, labels), "\r\n")
    with open_source(spec) as source:
        assert (source.kind, source.name) == ("pixels", spec)
        assert list(source.splits) == ["all"]
        rows = read_all(source, "all")
        np.testing.assert_array_equal(rows.images[..., 0], pictures)
        assert rows.images.dtype == np.uint8
        assert rows.labels.tolist() == labels
        assert rows.ids[3] == "all/00003"


def test_train_and_a_test_without_labels(tmp_path, pictures, labels, read_all, caplog):
    """Kaggle's digit-recognizer: train.csv, test.csv, sample_submission.csv."""
    write(tmp_path / "train.csv", f"label,{names(25)}", wide(pictures[:8], labels[:8]))
    write(tmp_path / "test.csv", names(25), wide(pictures[8:]))
    write(tmp_path / "sample_submission.csv", "ImageId,Label", ["1,0", "2,0"])
    with caplog.at_level(logging.INFO), open_source(str(tmp_path)) as source:
        assert list(source.splits) == ["train", "test"]
        train, test = read_all(source, "train"), read_all(source, "test")
        np.testing.assert_array_equal(train.images[..., 0], pictures[:8])
        assert train.labels.tolist() == labels[:8]
        np.testing.assert_array_equal(test.images[..., 0], pictures[8:])
        assert test.labels is None and not source.splits["test"].has_labels
        state = source.state()
    assert "no labels for test" in caplog.text
    write(tmp_path / "test.csv", names(25), wide(pictures[7:]))
    with open_source(str(tmp_path)) as source:
        assert source.changed_since(state) == "test.csv has changed"


@pytest.mark.parametrize(
    "header", ["emotion,pixels,Usage", "emotion, Usage, pixels", "pixels,Usage,emotion"]
)
def test_usage_is_the_division(tmp_path, pictures, labels, read_all, header):
    """FER2013 as Kaggle has it, in both of its orders."""
    usages = ["Training", "PublicTest", "Training", "PrivateTest"] * 3
    lines = []
    for picture, label, usage in zip(pictures, labels, usages, strict=True):
        text = " ".join(map(str, picture.ravel().tolist()))
        cells = {"emotion": str(label), "pixels": text, "Usage": usage}
        lines.append(",".join(cells[name.strip()] for name in header.split(",")))
    with open_source(write(tmp_path / "fer2013.csv", header, lines)) as source:
        assert list(source.splits) == ["train", "validation", "test"]
        for split, first, step in (("train", 0, 2), ("validation", 1, 4), ("test", 3, 4)):
            rows = read_all(source, split)
            np.testing.assert_array_equal(rows.images[..., 0], pictures[first::step])
            assert rows.labels.tolist() == labels[first::step]


def test_whole_numbers_may_be_written_as_floats(tmp_path, read_all):
    spec = write(tmp_path / "a.csv", "label,pixels", ["1,0.0 7.0 255 1e2"])
    with open_source(spec) as source:
        assert read_all(source, "all").images.ravel().tolist() == [0, 7, 255, 100]


def test_labels_may_be_words(tmp_path, pictures):
    words = ["b", "a"] * 6
    spec = write(tmp_path / "a.csv", f"label,{names(25)}", wide(pictures, words))
    with open_source(spec) as source:
        assert source.classes == ("a", "b")
        assert source.labels("all").tolist() == [1, 0] * 6


def test_other_columns_are_left_alone(tmp_path, pictures, labels, read_all):
    lines = [f"{i},{line},x" for i, line in enumerate(wide(pictures, labels))]
    spec = write(tmp_path / "a.csv", f"id,label,{names(25)},note", lines)
    with open_source(spec) as source:
        rows = read_all(source, "all")
        np.testing.assert_array_equal(rows.images[..., 0], pictures)
        assert rows.labels.tolist() == labels


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        (f"label,{names(10)}", "1" + ",0" * 10, "10 pixels a picture; only squares, .* 3×3 or 4×4"),
        (
            f"label,{names(12)}",
            "1" + ",0" * 12,
            r"12 numbers .* 2×2 in three colours; it doesn't say",
        ),
        ("emotion,pixels,Usage", "1,0 0 0,Training", "3 pixels a picture"),
        ("emotion,pixels,Usage", "1,,Training", "0 pixels a picture"),
        ("emotion,pixels,Usage", "1,0 0 0 0,Other", "line 2: Usage 'Other'; Training, PublicTest"),
        ("emotion,Usage,pixels", f"1,{'0 ' * 99},x", r"line 2: Usage '(0 ){20}…'; Training"),
        ("emotion,pixels,Usage", "1,0 0 0 x,Training", "line 2: pixels that aren't numbers"),
        ("emotion,pixels,Usage", "1,0 0 0 256,Training", "whole numbers from 0 to 255"),
        ("emotion,pixels,Usage", "1,0 0 0 nan,Training", "whole numbers from 0 to 255"),
        (f"label,{names(4)}", "1,0,0,0,-1", "line 2: pixels must be whole numbers from 0 to 255"),
        (f"label,{names(4)}", "1,0,0,0,0.5", "line 2: pixels must be whole numbers from 0 to 255"),
        (f"label,{names(4)}", "1,0,0,0", "line 2: 4 columns; the first line has 5"),
        (f"label,{names(4)}", "1,0,0,,0", "line 2: 3 pixels; 4 are needed"),
        (f"label,{names(4)}", ",0,0,0,0", "line 2: no label"),
        (f"label,{names(4)}", "", "holds no pictures"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, header, line, message):
    with pytest.raises(DataError, match=message) as caught:
        open_source(write(tmp_path / "a.csv", header, [line]))
    assert caught.value.exit_code == 3


def test_lines_of_other_lengths_are_told(tmp_path):
    lines = ["1,0 0 0 0", "2,0 0 0 0", "3,0 0 0 0 0 0 0 0 0"]
    with pytest.raises(DataError, match="line 4: 9 pixels; 4 are needed"):
        open_source(write(tmp_path / "a.csv", "label,pixels", lines))


def test_text_must_be_utf_8(tmp_path):
    (tmp_path / "a.csv").write_bytes(f"label,{names(4)}\ncaf".encode() + b"\xe9,1,2,3,4\n")
    with pytest.raises(DataError, match="not UTF-8 text"):
        open_source(str(tmp_path / "a.csv"))


def test_labels_cannot_be_named_besides(tmp_path, pictures, labels):
    spec = write(tmp_path / "a.csv", f"label,{names(25)}", wide(pictures, labels))
    with pytest.raises(UsageError, match="labels can be named where there are several"):
        open_source(spec, labels=":/label")


@pytest.mark.parametrize("mark", [";", "\t"])
def test_cells_may_stand_between_semicolons_or_tabs(tmp_path, pictures, labels, read_all, mark):
    lines = [line.replace(",", mark) for line in wide(pictures, labels)]
    with open_source(
        write(tmp_path / "a", f"label,{names(25)}".replace(",", mark), lines)
    ) as source:
        rows = read_all(source, "all")
    np.testing.assert_array_equal(rows.images[..., 0], pictures)
    assert rows.labels.tolist() == labels


def test_pixels_stand_in_the_order_of_their_names(tmp_path, pictures, read_all):
    """As pandas sorts columns: pixel0, pixel1, pixel10, pixel11, pixel12, ..., pixel2."""
    order = sorted(range(25), key=lambda place: f"pixel{place}")
    header = ",".join(f"pixel{place}" for place in order)
    with open_source(
        write(tmp_path / "a", header, wide(pictures.reshape(12, 25)[:, order]))
    ) as source:
        rows = read_all(source, "all")
    np.testing.assert_array_equal(rows.images[..., 0], pictures)


def test_a_column_split_is_the_division_too(tmp_path, read_all):
    lines = ["3,0 0 0 0,train", "4,1 1 1 1,val", "5,2 2 2 2,test", "6,3 3 3 3,Train"]
    with open_source(write(tmp_path / "a", "label,pixels,split", lines)) as source:
        assert list(source.splits) == ["train", "validation", "test"]
        assert source.labels("train").tolist() == [3, 6]
