"""The whole stage: what it writes, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skops.io
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from cnnfeat.errors import (
    DataError,
    FeatureFileError,
    Interrupted,
    LayerLookupError,
    MissingInputError,
    OutputExistsError,
    UsageError,
)
from cnnfeat.features import write_arrays
from cnnfeat.options import SvmOptions
from cnnfeat.svm import load_svm, svm_stage
from cnnfeat.svm import stage as stage_module

FIXED = SvmOptions(layer=("whole",), C=0.01)


def test_result_equals_scikit_learn(digits_file, pixels, tmp_path):
    X, y = pixels[0].reshape(-1, 64), pixels[1]
    result = svm_stage(digits_file, tmp_path / "out", options=FIXED)
    theirs = make_pipeline(
        StandardScaler(), LinearSVC(C=0.01, dual=False, tol=1e-8, max_iter=10_000)
    ).fit(X[:700], y[:700])
    expected = theirs.predict(X[700:1000])
    truth = y[700:1000]
    document = json.loads((tmp_path / "out" / "svm.json").read_text("utf-8"))
    assert document["format"] == "cnnfeat-svm"
    assert document["format_version"] == 1
    assert document["accuracy"] == result.accuracy == accuracy_score(truth, expected)
    assert document["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, expected))
    assert document["confusion"] == confusion_matrix(truth, expected).tolist()
    table = precision_recall_fscore_support(truth, expected, zero_division=0)
    for k, item in enumerate(document["per_class"]):
        found = (item["precision"], item["recall"], item["f1"], item["support"])
        assert found == pytest.approx(tuple(column[k] for column in table))
        assert item["class"] == str(k)
    assert document["n_train"], document["n_test"] == (700, 300)
    assert document["network_test_accuracy"] == 0.97
    assert document["features"]["network_sha256"] == "5f" * 32
    assert document["features"]["source_fingerprint"] == "a1" * 32
    assert document["tensor"] == "whole:0"
    assert document["selection"] is None
    low, high = document["accuracy_interval"]
    assert low < document["accuracy"] < high


def test_saved_pipeline_is_plain_scikit_learn(digits_file, pixels, tmp_path):
    result = svm_stage(digits_file, tmp_path, options=FIXED)
    path = tmp_path / "svm.skops"
    assert skops.io.get_untrusted_types(file=path) == []
    code = (
        "import sys, skops.io, numpy as np\n"
        "p = skops.io.load(sys.argv[1])\n"
        "print(sorted({type(s).__module__.split('.')[0] for _, s in p.steps}))\n"
        "print('cnnfeat' in sys.modules, p.cnnfeat_['layer'], p.cnnfeat_['classes'][3])\n"
        "print(np.mean(p.predict(np.load(sys.argv[2])) == np.load(sys.argv[3])))\n"
    )
    np.save(tmp_path / "X.npy", pixels[0][700:1000].reshape(300, 64))
    np.save(tmp_path / "y.npy", pixels[1][700:1000])
    out = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path / "X.npy", tmp_path / "y.npy"],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    assert out[0] == "['sklearn']"
    assert out[1] == "False whole 3"
    assert float(out[2]) == result.accuracy


def test_predictions_name_every_test_row(digits_file, pixels, tmp_path):
    svm_stage(digits_file, tmp_path, options=FIXED)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as lines:
        records = list(csv.DictReader(lines))
    assert [record["id"] for record in records] == [f"test/{row:05d}" for row in range(300)]
    assert [int(record["label"]) for record in records] == pixels[1][700:1000].tolist()
    pipeline = load_svm(tmp_path / "svm.skops").pipeline
    values = np.sort(pipeline.decision_function(pixels[0][700:1000].reshape(300, 64)), axis=1)
    margins = [float(record["margin"]) for record in records]
    assert margins == pytest.approx(list(values[:, -1] - values[:, -2]), rel=1e-4, abs=1e-4)


def test_predictions_of_odd_ids_and_classes_are_read_back(pixels, tmp_path):
    X, y = pixels
    kept = np.flatnonzero(y < 2)[:120]
    ids = [f'odd\r{row}, "\n' for row in range(120)]
    classes = ("no\rught", "one")
    write_arrays(
        tmp_path / "odd.h5",
        {"train": {"whole": X[kept]}, "test": {"whole": X[kept]}},
        labels={"train": y[kept], "test": y[kept]},
        ids={"train": ids, "test": ids},
        classes=classes,
        attributes={"source": "odd"},
    )
    svm_stage(tmp_path / "odd.h5", tmp_path, options=FIXED)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as lines:
        records = list(csv.DictReader(lines))
    assert [record["id"] for record in records] == ids
    assert [record["label"] for record in records] == [classes[k] for k in y[kept]]


@pytest.mark.parametrize("kernel", ["linear", "rbf", "poly", "nystroem"])
@pytest.mark.parametrize("normalize", ["standard", "l2", "none"])
def test_every_machine_learns_and_loads(digits_file, tmp_path, kernel, normalize):
    C = {"standard": 0.1, "l2": 10.0, "none": 0.001}[normalize]
    C = {"linear": C, "nystroem": 10.0}.get(kernel, 10.0)
    config = SvmOptions(layer=("whole",), kernel=kernel, C=C, normalize=normalize)
    result = svm_stage(digits_file, tmp_path / "out", options=config)
    assert result.accuracy > 0.85
    saved = load_svm(tmp_path / "out" / "svm.skops")
    assert saved.layer == "whole"
    assert saved.classes == tuple("0123456789")


def test_layers_are_compared_by_cross_validation(digits_file, tmp_path, caplog):
    caplog.set_level(logging.INFO, "cnnfeat")
    config = SvmOptions(layer=("all",), folds=3, grid=(0.001, 0.01))
    result = svm_stage(digits_file, tmp_path, options=config)
    assert [run.layer for run in result.layers] == ["whole", "half"]
    assert result.best.layer == "whole"
    assert result.to_json()["layer"] == "whole"
    records = {record["layer"]: record for record in result.to_json()["layers"]}
    assert records["half"]["n_features"] == 32
    assert records["whole"]["cv_accuracy"] > records["half"]["cv_accuracy"]
    assert result.mcnemar is not None
    assert result.mcnemar.p_value < 0.01
    assert "smallest within one standard error" in caplog.text


def test_choice_of_C_never_sees_test_rows(digits_file, make_file, pixels, tmp_path):
    """Nonsense in the test split changes the scores and nothing else."""
    X, y = pixels
    broken = make_file(
        {"train": {"whole": X[:700]}, "test": {"whole": -X[700:1000]}},
        {"train": y[:700], "test": (y[700:1000] + 1) % 10},
        name="broken.h5",
    )
    config = SvmOptions(layer=("whole",), folds=3, grid=(1e-4, 1e-3, 1e-2))
    first = svm_stage(digits_file, tmp_path / "a", options=config)
    second = svm_stage(broken, tmp_path / "b", options=config)
    assert first.to_json()["selection"] == second.to_json()["selection"]
    assert first.best.objective == second.best.objective
    assert first.accuracy > 0.85
    assert second.accuracy < 0.3


def test_without_a_test_split_rows_are_held_out(make_file, pixels, tmp_path, caplog):
    caplog.set_level(logging.INFO, "cnnfeat")
    X, y = pixels
    path = make_file({"all": {"whole": X[:500]}}, {"all": y[:500]})
    result = svm_stage(path, tmp_path / "out", options=FIXED)
    assert result.evaluation == "hold-out"
    assert result.n_train + result.n_test == 500
    assert 95 <= result.n_test <= 105
    assert "no test split: trained on" in caplog.text
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8") as lines:
        ids = [record["id"] for record in csv.DictReader(lines)]
    assert len(set(ids)) == result.n_test
    counts = np.bincount(y[[int(name.removeprefix("all/")) for name in ids]])
    assert abs(counts - np.bincount(y[:500]) / 5).max() <= 1


def test_cross_validation_scores_every_row(make_file, pixels, tmp_path):
    X, y = pixels
    path = make_file({"all": {"whole": X[:500]}}, {"all": y[:500]})
    result = svm_stage(path, tmp_path / "out", options=dataclasses.replace(FIXED, cv=True))
    assert result.evaluation == "cross-validation"
    assert result.n_train == result.n_test == 500
    assert 0.8 < result.accuracy < 1


def test_principal_components_stand_in_the_pipeline(digits_file, tmp_path):
    config = SvmOptions(layer=("whole",), C=0.01, pca=20)
    result = svm_stage(digits_file, tmp_path, options=config)
    pipeline = load_svm(tmp_path / "svm.skops").pipeline
    assert [name for name, _ in pipeline.steps] == ["scale", "pca", "svm"]
    assert pipeline[-1].coef_.shape == (10, 20)
    assert result.accuracy > 0.8


def test_little_memory_gives_the_same_machine(make_file, tmp_path):
    random = np.random.default_rng(0)
    y = np.arange(4000) % 4
    X = (random.standard_normal((4, 200))[y] + random.standard_normal((4000, 200)) * 3).astype("f4")
    path = make_file(
        {"train": {"wide": X[:3000]}, "test": {"wide": X[3000:]}},
        {"train": y[:3000], "test": y[3000:]},
        classes=tuple("abcd"),
    )
    config = SvmOptions(C=0.01)
    roomy = svm_stage(path, tmp_path / "a", options=config)
    tight = svm_stage(path, tmp_path / "b", options=dataclasses.replace(config, memory=2 * 2**20))
    assert tight.best.objective == pytest.approx(roomy.best.objective, rel=1e-4)
    assert abs(tight.accuracy - roomy.accuracy) < 0.005


def test_half_floats_are_read(make_file, pixels, tmp_path):
    X, y = pixels[0].astype(np.float16), pixels[1]
    path = make_file(
        {"train": {"whole": X[:700]}, "test": {"whole": X[700:1000]}},
        {"train": y[:700], "test": y[700:1000]},
    )
    assert svm_stage(path, tmp_path / "out", options=FIXED).accuracy > 0.85


def test_labels_need_not_be_consecutive(make_file, pixels, tmp_path):
    X, y = pixels
    odd = np.flatnonzero(y[:1000] % 2)
    train, test = odd[:350], odd[350:]
    path = make_file(
        {"train": {"whole": X[train]}, "test": {"whole": X[test]}},
        {"train": y[train], "test": y[test]},
    )
    result = svm_stage(path, tmp_path / "out", options=FIXED)
    assert result.classes == ("1", "3", "5", "7", "9")
    assert np.shape(result.confusion) == (5, 5)
    assert result.accuracy > 0.9


def _refused(path: Path, out: Path, error: type[Exception], words: str, **options: object) -> None:
    """The stage fails with `words` in message or hint, and leaves nothing."""
    options.setdefault("options", FIXED)
    with pytest.raises(error) as caught:
        svm_stage(path, out, **options)
    assert words in f"{caught.value} {getattr(caught.value, 'hint', '')}"
    assert not out.exists() or not list(out.iterdir())


def test_one_class_is_refused(make_file, pixels, tmp_path):
    X = pixels[0][:50]
    path = make_file(
        {"train": {"whole": X}, "test": {"whole": X}},
        {"train": np.full(50, 3), "test": np.full(50, 3)},
    )
    _refused(path, tmp_path / "out", DataError, "one class: '3' (50 rows)")


def test_no_labels_are_refused(make_file, pixels, tmp_path):
    path = make_file({"train": {"whole": pixels[0][:50]}, "test": {"whole": pixels[0][:9]}})
    _refused(path, tmp_path / "out", DataError, "split 'train' has no labels")
    for kind, way in {
        "folder": "a list.csv of pictures",
        "npy": "extract with --labels FILE",
    }.items():
        path = make_file({"train": {"whole": pixels[0][:50]}}, source_kind=kind)
        with pytest.raises(DataError) as caught:
            svm_stage(path, tmp_path / "out", options=FIXED)
        assert way in caught.value.hint


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e18])
@pytest.mark.parametrize("split", ["train", "test"])
def test_nan_and_infinite_features_are_refused(make_file, pixels, tmp_path, bad, split):
    X, y = pixels[0][:200].copy(), pixels[1][:200]
    parts = {"train": X[:100].copy(), "test": X[100:].copy()}
    parts[split][[41, 77], 2, 3] = bad
    path = make_file(
        {name: {"whole": part} for name, part in parts.items()},
        {"train": y[:100], "test": y[100:]},
    )
    words = (
        f"{split}/whole has NaN, infinite or immense features (beyond 1e+15) in 2 of 100 rows; "
        f"the first is row 41 ({split}/00041)"
    )
    _refused(path, tmp_path / "out", FeatureFileError, words)


def test_classes_of_one_split_alone_are_refused(make_file, pixels, tmp_path):
    X, y = pixels
    few = np.flatnonzero(y[:500] < 8)
    names = {"train": few, "test": np.arange(500, 700)}
    path = make_file({s: {"whole": X[r]} for s, r in names.items()},
                     {s: y[r] for s, r in names.items()}, name="a.h5")  # fmt: skip
    count = int(np.sum(y[500:700] >= 8))
    words = f"2 of 10 classes have no training row, but {count} test rows: '8', '9'"
    _refused(path, tmp_path / "out", DataError, words)


def test_a_test_split_may_lack_classes(make_file, pixels, tmp_path, caplog):
    X, y = pixels
    few = 700 + np.flatnonzero(y[700:1000] < 8)
    names = {"train": np.arange(700), "test": few}
    path = make_file({s: {"whole": X[r]} for s, r in names.items()},
                     {s: y[r] for s, r in names.items()})  # fmt: skip
    result = svm_stage(path, tmp_path / "out", options=FIXED)
    flat = X.reshape(len(X), -1)
    machine = make_pipeline(StandardScaler(), LinearSVC(C=0.01, dual=False))
    machine.fit(flat[names["train"]], y[names["train"]])
    assert result.accuracy == machine.score(flat[few], y[few])
    assert (len(result.classes), result.confusion.shape) == (10, (10, 10))
    assert "2 of 10 classes have no row to be scored on, and count in no score: '8', '9'" in (
        caplog.text
    )
    calibrated = dataclasses.replace(FIXED, probability=True)
    found = svm_stage(path, tmp_path / "calibrated", options=calibrated)
    assert 0 < found.calibration["log_loss"] < 1


def test_a_class_that_is_never_predicted_is_named(make_file, tmp_path, caplog):
    rng = np.random.default_rng(1)
    y = np.r_[np.zeros(190, int), np.ones(10, int)]
    X = {s: {"whole": rng.normal(size=(200, 16)).astype(np.float32)} for s in ("train", "test")}
    path = make_file(X, {"train": y, "test": y}, classes=("common", "rare"))
    options = SvmOptions(layer=("whole",), C=1e-6)
    result = svm_stage(path, tmp_path / "a", options=options)
    assert result.confusion.tolist() == [[190, 0], [10, 0]]
    assert "never predicted, though rows are of it: 'rare' (10 rows); class weights" in caplog.text
    caplog.clear()
    balanced = dataclasses.replace(options, class_weight="balanced")
    assert svm_stage(path, tmp_path / "b", options=balanced).confusion[:, 1].any()
    assert "never predicted" not in caplog.text


def test_a_layer_is_chosen_without_test_rows_where_C_is_fixed(make_file, tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"train": 120, "test": 40}
    X = {
        split: {f"p{k}": rng.normal(size=(n, 6)).astype(np.float32) for k in range(5)}
        for split, n in sizes.items()
    }
    chosen = set()
    for test in (np.arange(40) % 2, np.arange(1, 41) % 2):
        path = make_file(X, {"train": np.arange(120) % 2, "test": test}, classes=("a", "b"))
        options = SvmOptions(layer=("all",), C=0.01, folds=3)
        chosen.add(svm_stage(path, tmp_path / "out", options=options, overwrite=True).best.layer)
    assert len(chosen) == 1


def test_fewer_rows_than_folds_are_refused(make_file, pixels, tmp_path):
    X, y = pixels[0][:30], pixels[1][:30]
    path = make_file({"train": {"whole": X}, "test": {"whole": X}}, {"train": y, "test": y})
    config = SvmOptions(layer=("whole",), folds=5)
    _refused(
        path, tmp_path / "out", DataError, "5 folds need 5 training rows of each", options=config
    )


def test_constant_features_are_refused(make_file, pixels, tmp_path):
    X, y = np.full((100, 8, 8), 3.5, np.float32), pixels[1][:100]
    path = make_file({"train": {"whole": X}, "test": {"whole": X}}, {"train": y, "test": y})
    _refused(path, tmp_path / "out", DataError, "all 64 features are constant")


@pytest.mark.parametrize(
    ("grid", "warned"), [(None, False), ((0.1, 3.16), False), ((0.1, 1.0), True)]
)
def test_the_largest_value_is_warned_of_where_one_beyond_may_be_better(
    make_file, tmp_path, caplog, grid, warned
):
    """A small feature tells classes exactly, a large one in four rows of five; only a large C
    gives the small one weight enough."""
    rows = np.arange(100)
    signs = 2.0 * (rows % 2) - 1
    X = np.stack([np.where(rows % 10 < 2, -signs, signs), 0.08 * signs], axis=1).astype(np.float32)
    path = make_file(
        {"train": {"a": X}, "test": {"a": X}},
        {"train": rows % 2, "test": rows % 2},
        classes=("even", "odd"),
    )
    options = SvmOptions(normalize="none", grid=grid)
    with caplog.at_level("INFO", "cnnfeat"):
        selection = svm_stage(path, tmp_path / "out", options=options).selection
    assert selection.best == selection.trials[-1]
    assert (selection.best.mean < 1) == warned
    assert ("the best C is the grid's largest: a wider --grid may" in caplog.text) == warned


def test_a_grid_of_one_is_refused(digits_file, tmp_path):
    _refused(
        digits_file, tmp_path / "out", UsageError, "a grid needs at least 2 different values",
        options=SvmOptions(layer=("whole",), grid=(1.0,)),
    )  # fmt: skip


def test_too_many_components_are_refused(digits_file, tmp_path):
    config = SvmOptions(layer=("whole",), C=1.0, pca=65)
    _refused(digits_file, tmp_path / "out", UsageError, "--pca must be at most 64", options=config)


def test_several_layers_and_none_named_lists_them(digits_file, tmp_path):
    _refused(digits_file, tmp_path / "out", UsageError, "whole, half", options=SvmOptions())


def test_an_unknown_layer_offers_near_names(digits_file, tmp_path):
    _refused(
        digits_file, tmp_path / "out", LayerLookupError, "hal",
        options=SvmOptions(layer=("hal",)),
    )  # fmt: skip


def test_no_file_is_refused(tmp_path):
    _refused(tmp_path / "no.h5", tmp_path / "out", MissingInputError, "no.h5")


def test_an_unfinished_file_is_refused(digits_file, tmp_path):
    partial = tmp_path / "features.h5.partial"
    partial.write_bytes(digits_file.read_bytes()[:5000])
    _refused(partial, tmp_path / "out", FeatureFileError, "features.h5.partial")


@pytest.mark.parametrize("name", ["svm.skops", "svm.json", "predictions.csv", "confusion.png"])
def test_an_output_that_exists_is_refused_before_any_work(digits_file, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("old")
    with pytest.raises(OutputExistsError, match=name) as caught:
        svm_stage(digits_file, out, options=FIXED, extra_outputs=("confusion.png",))
    assert "--overwrite" in caught.value.hint
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).read_text() == "old"


def test_old_outputs_are_untouched_when_a_run_fails(digits_file, make_file, pixels, tmp_path):
    out = tmp_path / "out"
    svm_stage(digits_file, out, options=FIXED)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    X = np.full_like(pixels[0][:100], np.nan)
    bad = make_file({"train": {"whole": X}}, {"train": pixels[1][:100]}, name="bad.h5")
    with pytest.raises(FeatureFileError):
        svm_stage(bad, out, options=FIXED, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    svm_stage(digits_file, out, options=FIXED, overwrite=True)
    assert {path.name for path in out.iterdir()} == set(before)


def test_ctrl_c_says_that_nothing_was_written(digits_file, tmp_path, monkeypatch):
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage_module, "fit_machine", interrupted)
    with pytest.raises(Interrupted, match="nothing was written, and an SVM can't be resumed"):
        svm_stage(digits_file, tmp_path / "out", options=FIXED)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # the command, with the stage in it, is asked the same in the quick run
def test_the_stage_never_loads_tensorflow(digits_file, tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from cnnfeat.options import SvmOptions\n"
        "from cnnfeat.svm import svm_stage\n"
        "config = SvmOptions(layer=('half',), C=0.1)\n"
        "svm_stage(Path(sys.argv[1]), Path(sys.argv[2]), options=config)\n"
        "print([name for name in ('tensorflow', 'keras', 'matplotlib') if name in sys.modules])\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, digits_file, tmp_path / "out"],
        check=True, capture_output=True, text=True, env=os.environ,
    ).stdout  # fmt: skip
    assert out.strip() == "[]"
