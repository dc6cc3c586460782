"""Feature files of strangers, to the commands that read them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash

from cnnfeat.features import write_arrays
from cnnfeat.options import SvmOptions
from cnnfeat.svm import svm_stage

SPLITS = {"train": 24, "test": 10}
SVM = ["svm", "f.h5", "--layer", "fc", "--C", "1"]
PREDICT = ["predict", "f.h5", "--svm", "svm.skops"]
EMBEDDING = ["plot", "embedding", "--features", "f.h5", "--layer", "fc", "--method", "pca"]
REPORT = ["report", "--features", "f.h5", "--svm", "svm.json", "--embedding", "pca"]
EXPORT = ["export", "f.h5", "--to", "csv", "-o", "f.csv"]
VERIFY, INFO = ["verify", "f.h5"], ["info", "f.h5"]
ALL = [SVM, PREDICT, EMBEDDING, REPORT, EXPORT, VERIFY, INFO]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature file, and the machine and result made of it."""
    folder = tmp_path_factory.mktemp("sound")
    rng = np.random.default_rng(0)
    labels = {split: np.arange(n) % 2 for split, n in SPLITS.items()}
    rows = {s: rng.normal(size=(len(y), 4)) + y[:, None] for s, y in labels.items()}
    write_arrays(
        folder / "f.h5",
        {split: {"fc": X.astype("f4")} for split, X in rows.items()},
        labels=labels,
        classes=["a", "b"],
        attributes={"network": "m.keras", "network_sha256": "ab" * 32},
    )
    svm_stage(folder / "f.h5", folder, options=SvmOptions(C=1.0))
    return folder


@pytest.fixture
def type_all(cnnfeat, sound: Path, tmp_path: Path) -> Callable[..., str]:
    """Change the file, its checksums made right again; type commands; what they say on stderr."""
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)

    def call(change: Callable[[h5py.File], None], commands: list[list[str]], code: int) -> str:
        with h5py.File(tmp_path / "f.h5", "r+") as file:
            change(file)
            sum_up(file)
        said = []
        for words in commands:
            done = cnnfeat(*words, folder=tmp_path, CNNFEAT_DIR=str(tmp_path / "out"))
            assert done.returncode == code, (words, done.stderr)
            assert "Traceback" not in done.stderr and "Warning" not in done.stderr
            said.append(done.stderr)
        return "\n".join(said)

    return call


def sum_up(file: h5py.File) -> None:
    for split in SPLITS:
        sums = file["checksums"][split]
        table = [[digest(file[split][name][...]) for name in sums["column"].asstr()]]
        del sums["sum"]
        sums["sum"] = np.array(table, "u8")


def digest(rows: np.ndarray) -> int:
    data = b"".join(b + b"\0" for b in rows) if rows.dtype.kind == "O" else rows.tobytes()
    return xxhash.xxh3_64_intdigest(data)


def cell(value: float) -> Callable[[h5py.File], None]:
    return lambda file: file["test/fc"].__setitem__((3, 2), value)


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "infinity"])
def test_who_computes_with_a_row_of_no_numbers_refuses_it_by_name(type_all, value):
    said = type_all(cell(value), [PREDICT, EMBEDDING, REPORT], 3)
    what = "NaN" if np.isnan(value) else "infinite"
    words = f"f.h5: test/fc, row 3: 1 of 4 numbers are {what}, the first in column 2 (test/00003)"
    assert said.count(words) == 3
    said = type_all(cell(value), [SVM], 3)
    assert "test/fc has NaN, infinite or immense features" in said
    assert "in 1 of 10 rows; the first is row 3 (test/00003)" in said


def test_who_hands_such_rows_on_says_so(type_all, tmp_path):
    said = type_all(cell(np.nan), [EXPORT, VERIFY], 0)
    assert (
        said.count("test/fc has NaN, infinite or immense numbers in 1 of 10 rows; the first") == 2
    )
    assert "(test/00003)" in said
    lines = (tmp_path / "f.csv").read_text("utf-8").splitlines()
    assert lines[0].startswith("split,id") and lines[1 + 24 + 3].split(",")[6] == "nan"


def half(file: h5py.File) -> None:
    rows = file["test/fc"][:, :2]
    del file["test/fc"]
    file["test/fc"] = rows


def renamed(file: h5py.File) -> None:
    file.move("test/fc", "test/other")
    columns = file["checksums/test/column"]
    columns[...] = [name.replace("fc", "other") for name in columns.asstr()]


def attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (half, "rows of layer 'fc' differ in shape: (4,) in 'train', (2,) in 'test'"),
        (attribute("network_test_accuracy", "</script>"), "network_test_accuracy must be a number"),
        (attribute("network_test_accuracy", 1e300), "at most 1), not 1e+300"),
        (attribute("preprocessing", "{"), "attribute preprocessing holds no JSON record"),
        (attribute("preprocessing", "[1]"), "attribute preprocessing must be a record, not [1]"),
    ],
    ids=["half-the-width", "accuracy-of-text", "accuracy-of-1e300", "broken-json", "list"],
)
def test_every_command_refuses_a_file_that_cannot_be(type_all, change, words):
    assert type_all(change, ALL, 3).count(words) == len(ALL)


def test_a_split_with_another_layer_is_told(type_all):
    words = "f.h5 holds no layer 'fc'; it holds: in 'train' fc; in 'test' other, and none in all"
    assert words in type_all(renamed, [REPORT], 0)
    assert type_all(lambda file: None, [SVM, EMBEDDING], 4).count(words) == 2
    assert "f.h5 has none in all splits" in type_all(lambda file: None, [PREDICT], 4)
