"""`cnnfeat data list` and `cnnfeat data fetch`."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnfeat.cli.console import source_text
from cnnfeat.data import DATASETS, Dataset, DatasetFile, open_data
from cnnfeat.options import DataOptions


@pytest.fixture
def run(cnnfeat):
    return functools.partial(cnnfeat, "data")


@pytest.fixture
def one_file(monkeypatch) -> bytes:
    """A data set of one file, in MNIST's place; its mirror is out of reach."""
    content = b"the only file"
    file = DatasetFile("only.gz", hashlib.sha256(content).hexdigest())
    dataset = Dataset("mnist", "a stand-in", ("0",), ("http://127.0.0.1:9/",), (file,))
    monkeypatch.setitem(DATASETS, "mnist", dataset)
    return content


def put(folder: Path, content: bytes) -> None:
    (folder / "mnist").mkdir()
    (folder / "mnist" / "only.gz").write_bytes(content)


def test_list_says_what_there_is_and_where(run, one_file, tmp_path):
    code, out, err = run("list")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "cnnfeat data fetch" in rows["mnist"]
    assert "28×28" in rows["fashion-mnist"]
    assert "inside scikit-learn" in rows["digits"]
    put(tmp_path, one_file)
    code, out, _ = run("list", "--data-dir", str(tmp_path), "--json")
    assert code == 0
    assert json.loads(out)[0] == {
        "name": "mnist",
        "description": "a stand-in",
        "location": str(tmp_path / "mnist"),
    }


def test_fetch_prints_the_folder_of_what_is_here(run, one_file, tmp_path):
    put(tmp_path, one_file)
    code, out, _ = run("fetch", "mnist", "digits", "--data-dir", str(tmp_path), "--json")
    assert code == 0
    assert json.loads(out) == {"mnist": str(tmp_path / "mnist"), "digits": "inside scikit-learn"}


def test_fetch_out_of_reach_exits_5_with_reason_and_remedy(run, one_file, tmp_path):
    code, out, err = run("fetch", "mnist", "--data-dir", str(tmp_path))
    assert (code, out) == (5, "")
    assert "http://127.0.0.1:9/: Connection refused" in err
    assert str(tmp_path / "mnist") in err
    assert "--data-dir FOLDER" in err
    assert "--data digits" not in err  # an option that this command hasn't
    assert not list(tmp_path.iterdir())


def test_fetch_replaces_a_damaged_file_or_fails(run, one_file, tmp_path):
    put(tmp_path, b"damaged")
    code, _, err = run("fetch", "mnist", "--data-dir", str(tmp_path))
    assert code == 5
    assert "only.gz is damaged and will be downloaded again" in err


def test_fetch_needs_a_known_name(run):
    code, _, err = run("fetch", "minst")
    assert code == 2
    assert "known by name: mnist, fashion-mnist, digits" in err
    assert "did you mean 'mnist'?" in err
    assert run("fetch")[0] == 2


def test_fetch_names_a_folder_that_cannot_be_written(run, one_file, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = run("fetch", "mnist", "--data-dir", str(tmp_path / "file"))
    assert code == 5
    assert "can't be written" in err
    assert "--data-dir" in err


def test_every_data_set_can_be_verified():
    for dataset in DATASETS.values():
        assert dataset.description
        for file in dataset.files:
            assert len(bytes.fromhex(file.sha256)) == 32
        assert all(mirror.endswith("/") for mirror in dataset.mirrors)


def test_a_shape_is_given_for_all_images_only_where_that_was_looked_at(tmp_path):
    for number, shape in enumerate([(20, 30, 3), (9, 9)]):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / f"{number}.png")
    folder = str(tmp_path)
    for options, said in (
        (DataOptions(source=folder), "2 all images, the first 20×30×3, no labels"),
        (DataOptions(source=folder, resize=(8, 8)), "2 all images brought to 8×8, no labels"),
        (
            DataOptions(source=folder, resize=(8, 8), invert=True),
            "2 all images brought to 8×8, inverted, no labels",
        ),
        (DataOptions(source=f"{folder}/0.png"), "1 all images of 20×30×3, no labels"),
        (
            DataOptions(source="digits", resize=(16, 16)),
            "1,438 train and 359 test images of 16×16×1, 10 classes",
        ),
    ):
        with open_data(options) as source:
            assert source_text(source) == f"{source.name}: {said}"


def test_classes_are_counted_without_those_that_are_left_out(tmp_path):
    for name, n in {"ant": 3, "bee": 3, "cow": 1}.items():
        (tmp_path / name).mkdir()
        for i in range(n):
            Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / name / f"{i}.png")
    for least, said in ((1, "7 all images, the first 9×9×1, 3 classes"),
                        (2, "6 all images, the first 9×9×1, 2 classes")):  # fmt: skip
        with open_data(DataOptions(source=str(tmp_path), min_per_class=least)) as source:
            assert source_text(source) == f"{source.name}: {said}"
