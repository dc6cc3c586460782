"""`cnnfeat plot`, `report` and `export`, as typed."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnfeat.data import open_source
from cnnfeat.features import write_arrays


@pytest.fixture
def cnnfeat(cnnfeat, folder):
    """Type a command in the folder that `folder` made."""
    return functools.partial(cnnfeat, folder=folder, CNNFEAT_DIR=str(folder))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Features of the digits' test split, an SVM's result, no network."""
    with open_source("digits") as source:
        fingerprint = source.fingerprint()
        labels = source.labels("test")
        batches = list(source.batches("test", batch_size=100))
        classes = source.classes
    images = np.concatenate([batch.images for batch in batches])
    ids = [name for batch in batches for name in batch.ids]
    n_rows = len(ids)
    write_arrays(
        tmp_path / "features.h5",
        {"test": {"pixels": images.astype(np.float32), "flat": images.reshape(n_rows, -1)}},
        labels={"test": labels},
        ids={"test": ids},
        classes=classes,
        attributes={"source": "digits", "source_fingerprint": fingerprint.digest},
    )
    predicted = labels.copy()
    predicted[:3] = (predicted[:3] + 1) % 10
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, predicted), 1)
    document = {
        **{"format": "cnnfeat-svm", "format_version": 1, "layer": "flat", "kernel": "linear"},
        **{"accuracy": 1 - 3 / n_rows, "accuracy_interval": [0.97, 0.999]},
        **{"n_train": 100, "n_test": n_rows, "classes": list(classes)},
        "confusion": confusion.tolist(),
    }
    (tmp_path / "svm.json").write_text(json.dumps(document), "utf-8")
    lines = [f"{i},{t},{p},1.5" for i, t, p in zip(ids, labels, predicted, strict=True)]
    (tmp_path / "predictions.csv").write_text(
        "\n".join(["id,label,predicted,margin", *lines]) + "\n", "utf-8"
    )
    return tmp_path


def test_plot_prints_the_path_and_refuses_to_replace(cnnfeat, folder):
    first = cnnfeat("plot", "confusion")
    assert (first.returncode, first.stdout, first.stderr) == (0, f"{folder}/confusion.png\n", "")
    again = cnnfeat("plot", "confusion")
    assert again.returncode == 2
    assert f"error: {folder}/confusion.png exists" in again.stderr
    assert "--overwrite" in again.stderr
    assert cnnfeat("plot", "confusion", "--overwrite").returncode == 0


@pytest.mark.parametrize("kind", ["confusion", "layers"])
def test_plots_of_a_result_need_nothing_but_the_result(cnnfeat, folder, kind):
    (folder / "moved").mkdir()
    (folder / "svm.json").rename(folder / "moved" / "result.json")
    (folder / "features.h5").unlink()
    done = cnnfeat("plot", kind, "--svm", "moved/result.json")
    assert (done.returncode, done.stderr) == (0, "")
    done = cnnfeat("plot", kind, "--overwrite")
    assert done.returncode == 2
    assert "no SVM result" in done.stderr and "hint: cnnfeat svm makes it" in done.stderr


def test_dpi_and_ending_are_obeyed(cnnfeat, folder):
    def drawn(*args: str) -> Path:
        done = cnnfeat("plot", "errors", "--count", "3", *args)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    sizes = []
    for dpi in ("50", "100"):
        with Image.open(drawn("--dpi", dpi, "-o", f"{folder}/e{dpi}.png")) as image:
            sizes.append(image.size)
    assert np.allclose(sizes[1], np.multiply(sizes[0], 2), atol=1)
    assert drawn("-o", f"{folder}/e.svg").read_text("utf-8").startswith("<?xml")
    wrong = cnnfeat("plot", "errors", "-o", f"{folder}/e.gif")
    assert wrong.returncode == 2
    assert "is written as .png or .svg" in wrong.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("plot", "filters", "--layer", "conv1"), 4, "model.keras"),
        (("plot", "training"), 2, "cnnfeat train writes it"),
        (("plot", "training", "--features", "none.h5"), 2, "no feature file none.h5"),
        (("plot", "filters", "--layer", "c", "--features", "none.h5"), 2, "no feature file none"),
        (("plot", "activations", "--layer", "flat"), 3, "flat has no activation maps"),
        (("plot", "activations", "--layer", "pixles"), 4, "did you mean 'pixels'?"),
        (("plot", "activations", "--layer", "pixels", "--image", "x"), 2, "no image 'x' in test"),
        (("plot", "top", "--layer", "flat", "--unit", "64"), 2, "--unit must be 0 to 63"),
        (("plot", "embedding", "--layer", "flat", "--points", "2"), 2, "at least 5"),
        (("plot", "embedding"), 2, "2 layers: pixels, flat"),
        (("plot", "erors"), 2, "there is no command erors"),
        (("report", "--layer", "flt", "--embedding", "pca"), 4, "did you mean 'flat'?"),
        (("report", "--features", "none.h5"), 2, "none.h5"),
        (("export", "--to", "excel"), 2, "'parquet', 'mat', 'h5ad', 'projector'"),
        (("export", "--to", "projector"), 2, "shows one layer"),
        (("export", "--to", "csv", "--split", "tset"), 2, "did you mean 'test'?"),
    ],
)
def test_mistakes_exit_with_their_code_and_say_what_to_do(cnnfeat, folder, args, code, message):
    before = sorted(folder.iterdir())
    done = cnnfeat(*args)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "args",
    [
        ("report",),
        pytest.param(("plot", "activations", "--layer", "conv2"), marks=pytest.mark.slow),
    ],
    ids=["report", "activations"],
)
def test_missing_features_are_said_before_tensorflow_starts(folder, args):
    (folder / "model.keras").touch()
    code = (
        "import atexit, sys; from cnnfeat.cli import main; "
        "atexit.register(lambda: print('tensorflow' in sys.modules)); main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args, "--features", "none.h5"],
        check=False, capture_output=True, text=True, cwd=folder,
        env={**os.environ, "CNNFEAT_DIR": str(folder)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert "no feature file none.h5" in done.stderr


def test_moved_images_are_said_and_how_to_go_without(cnnfeat, folder):
    write_arrays(
        folder / "moved.h5",
        {"all": {"flat": np.ones((3, 2), np.float32)}},
        attributes={"source": "/nowhere/pictures", "source_fingerprint": "0"},
    )
    args = ("export", "moved.h5", "--to", "projector")
    done = cnnfeat(*args)
    assert done.returncode == 3
    assert "moved.h5 are not where they were: there is no /nowhere/pictures" in done.stderr
    assert "--no-images" in done.stderr
    assert cnnfeat(*args, "--no-images").returncode == 0
    assert cnnfeat("plot", "top", "--unit", "0", "--features", "moved.h5").returncode == 3


def test_report_says_what_it_leaves_out(cnnfeat, folder):
    done = cnnfeat("report", "--embedding", "pca", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["path"] == f"{folder}/report.html"
    assert result["size_bytes"] == (folder / "report.html").stat().st_size
    assert "there is no model" in result["missing"][0]
    assert result["missing"][0] in done.stderr


def test_export_writes_what_was_asked_for(cnnfeat, folder):
    done = cnnfeat("export", "--to", "npz", "--layer", "flat", "--limit", "5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{folder}/features.npz (")
    with np.load(folder / "features.npz") as archive:
        assert archive["test/flat"].shape == (5, 64)


def test_projector_pictures_come_from_the_source(cnnfeat, folder):
    done = cnnfeat("export", "--to", "projector", "--layer", "flat", "--json")
    assert done.returncode == 0, done.stderr
    names = [Path(path).name for path in json.loads(done.stdout)["paths"]]
    assert names == ["vectors.tsv", "metadata.tsv", "sprite.png", "projector_config.pbtxt"]
    vectors = np.loadtxt(folder / "projector" / "vectors.tsv", delimiter="\t")
    with Image.open(folder / "projector" / "sprite.png") as sheet:
        pixels = np.asarray(sheet)
    columns = pixels.shape[1] // 8
    top, left = 7 // columns * 8, 7 % columns * 8
    np.testing.assert_array_equal(
        pixels[top : top + 8, left : left + 8].ravel(), vectors[7].astype(int)
    )
