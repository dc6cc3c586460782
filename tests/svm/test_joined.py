"""Machines on layers side by side: what scikit-learn makes of the joined matrix."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from cnnfeat.errors import DataError, FeatureFileError, LayerLookupError, UsageError
from cnnfeat.features import open_table, write_arrays
from cnnfeat.options import SvmOptions
from cnnfeat.parts import Part
from cnnfeat.prediction import predict_features
from cnnfeat.result import FITTED, UNKNOWN, read_result
from cnnfeat.svm import load_svm, svm_stage
from cnnfeat.svm.linear import LinearSVM
from cnnfeat.svm.originals import find_copies

N_TRAIN, N_TEST = 300, 100
SPLITS = {"train": slice(0, N_TRAIN), "test": slice(N_TRAIN, N_TRAIN + N_TEST)}
JOINED = SvmOptions(layer=("upper+lower",), C=0.01)
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, pixels) -> Make:
    """Write digits by halves; rows of each split in an order of its own."""
    X, y = pixels
    layers = {"upper": X[:, :4], "lower": X[:, 4:], "half": X.astype(np.float16)}

    def made(
        name: str,
        *,
        only: tuple[str, ...] = ("upper", "lower"),
        seed: int | None = None,
        splits: Mapping[str, slice] = SPLITS,
        columns: Mapping[str, Mapping[str, np.ndarray]] | None = None,
        **attributes: str,
    ) -> Path:
        rng = np.random.default_rng(seed)
        n_rows = {split: rows.stop - rows.start for split, rows in splits.items()}
        order = {s: np.arange(n) if seed is None else rng.permutation(n) for s, n in n_rows.items()}

        def by_split(column: np.ndarray) -> dict[str, np.ndarray]:
            return {split: column[rows][order[split]] for split, rows in splits.items()}

        write_arrays(
            tmp_path / name,
            {s: {layer: by_split(layers[layer])[s] for layer in only} for s in splits},
            labels=by_split(y),
            ids={s: [f"{s}/{row}" for row in order[s]] for s in splits},
            classes=tuple("0123456789"),
            attributes={"network": f"{name}.keras", "network_sha256": name, **attributes},
            **{
                key: {s: column[s][order[s]] for s in splits}
                for key, column in (columns or {}).items()
            },
        )
        return tmp_path / name

    return made


def answers(folder: Path) -> dict[str, str]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as lines:
        return {record["id"]: record["predicted"] for record in csv.DictReader(lines)}


def joined_pixels(pixels) -> tuple[np.ndarray, np.ndarray]:
    X, y = pixels[0][: N_TRAIN + N_TEST], pixels[1][: N_TRAIN + N_TEST]
    return np.hstack([X[:, :4].reshape(len(X), -1), X[:, 4:].reshape(len(X), -1)]), y


def expected_answers(pixels, C: float = 0.01) -> dict[str, str]:
    X, y = joined_pixels(pixels)
    theirs = make_pipeline(
        StandardScaler(), LinearSVC(C=C, dual=False, tol=1e-8, max_iter=10_000)
    ).fit(X[:N_TRAIN], y[:N_TRAIN])
    said = theirs.predict(X[N_TRAIN:])
    return {f"test/{row}": str(label) for row, label in enumerate(said)}


def test_layers_of_one_file_make_the_machine_of_the_joined_matrix(make, pixels, tmp_path):
    result = svm_stage(make("a.h5"), tmp_path / "out", options=JOINED)
    assert answers(tmp_path / "out") == expected_answers(pixels)
    X, y = joined_pixels(pixels)
    plain = LinearSVM(C=0.01).fit(StandardScaler().fit_transform(X[:N_TRAIN]), y[:N_TRAIN])
    pipeline = load_svm(tmp_path / "out" / "svm.skops").pipeline
    np.testing.assert_allclose(pipeline[-1].coef_, plain.coef_, atol=1e-3)
    assert (result.best.layer, result.best.n_features) == ("upper+lower", 64)


@pytest.mark.parametrize("memory", [2 * 2**30, 64 * 2**20], ids=["roomy", "tight"])
def test_files_in_different_orders_make_the_same_machine(make, pixels, tmp_path, memory):
    paths = [make("a.h5", only=("upper",), seed=1), make("b.h5", only=("lower",), seed=2)]
    options = dataclasses.replace(JOINED, memory=memory)
    result = svm_stage(paths, tmp_path / "out", options=options)
    assert answers(tmp_path / "out") == expected_answers(pixels)
    order = h5_ids(paths[0], "test")  # the first file's
    assert list(answers(tmp_path / "out")) == order
    assert result.best.layer == "upper+lower"


def h5_ids(path: Path, split: str) -> list[str]:
    with h5py.File(path) as file:
        return [name.decode() for name in file[f"{split}/id"][:]]


def test_what_is_joined_is_said_in_the_result_and_in_the_machine(make, tmp_path):
    paths = [make("a.h5", only=("upper",)), make("b.h5", only=("lower", "half"), seed=3)]
    svm_stage(paths, tmp_path / "out", options=SvmOptions(layer=("upper+half",), C=0.01))
    document = json.loads((tmp_path / "out" / "svm.json").read_text("utf-8"))
    assert document["layer"] == "upper+half"
    assert document["tensor"] is None
    assert document["joined"] == [
        {"layer": "upper", "tensor": "upper:0", "n_features": 32, "file": 0},
        {"layer": "half", "tensor": "half:0", "n_features": 64, "file": 1},
    ]
    assert [one["path"] for one in document["files"]] == [str(path) for path in paths]
    assert [one["network"] for one in document["files"]] == ["a.h5.keras", "b.h5.keras"]
    assert document["network_test_accuracy"] is None
    read = read_result(tmp_path / "out" / "svm.json")
    assert read.joined_words == (
        f"upper (32 features) of {paths[0]}, through a.h5.keras; "
        f"half (64 features) of {paths[1]}, through b.h5.keras"
    )
    saved = load_svm(tmp_path / "out" / "svm.skops")
    assert [(one.layer, one.shape, one.n_features, one.file) for one in saved.layers] == [
        ("upper", (4, 8), 32, 0),
        ("half", (8, 8), 64, 1),
    ]
    assert [said.network_sha256 for said in saved.files] == ["a.h5", "b.h5"]
    assert (saved.layer, saved.facts.n_features) == ("upper+half", 96)


def test_a_machine_of_one_layer_is_written_as_it_was(make, tmp_path):
    result = svm_stage(make("a.h5"), tmp_path, options=SvmOptions(layer=("upper",), C=0.01))
    assert (result.files, result.best.joined) == ((), ())
    saved = load_svm(tmp_path / "svm.skops")
    assert "joined" not in saved.metadata and "files" not in saved.metadata
    assert saved.metadata["tensor"] == "upper:0"
    assert [one.layer for one in saved.layers] == ["upper"]


@pytest.mark.parametrize("kernel", ["linear", "rbf", "poly", "nystroem"])
def test_all_machines_and_preparations_take_joined_layers(make, pixels, tmp_path, kernel):
    paths = [make("a.h5"), make("b.h5", only=("half", "lower"), seed=5)]
    options = SvmOptions(layer=("upper+half",), kernel=kernel, C=10.0, normalize="l2", pca=20)
    one = svm_stage(paths, tmp_path / "joined", options=options)
    X = np.hstack([pixels[0][:, :4].reshape(-1, 32), pixels[0].reshape(-1, 64)])
    write_arrays(
        tmp_path / "whole.h5",
        {split: {"whole": X[rows]} for split, rows in SPLITS.items()},
        labels={split: pixels[1][rows] for split, rows in SPLITS.items()},
        ids={s: [f"{s}/{k}" for k in range(r.stop - r.start)] for s, r in SPLITS.items()},
        classes=tuple("0123456789"),
    )
    whole = dataclasses.replace(options, layer=("whole",))
    other = svm_stage(tmp_path / "whole.h5", tmp_path / "whole", options=whole)
    assert answers(tmp_path / "joined") == answers(tmp_path / "whole")
    assert one.accuracy == other.accuracy > 0.8


def test_joined_and_single_layers_are_compared(make, tmp_path):
    options = SvmOptions(
        layer=("upper", "upper+lower", "lower", "upper+lower", "u*+lower"), folds=3, grid=(0.01, 1)
    )
    result = svm_stage(make("a.h5"), tmp_path, options=options)
    assert [one.layer for one in result.layers] == ["upper", "upper+lower", "lower"]
    assert [one.n_features for one in result.layers] == [32, 64, 32]
    assert result.best.layer == "upper+lower"
    assert [len(one.joined) for one in read_result(tmp_path / "svm.json").layers] == [0, 2, 0]


def test_all_of_several_files_are_the_layers_that_they_share(make, tmp_path):
    paths = [make("a.h5", only=("half", "upper")), make("b.h5", only=("upper", "half", "lower"))]
    result = svm_stage(paths, tmp_path, options=SvmOptions(layer=("all",), C=0.01, folds=3))
    assert {one.layer for one in result.layers} == {"half+half", "upper+upper"}


def test_scores_in_turn_and_probabilities_are_of_joined_rows(make, pixels, tmp_path):
    paths = [make("a.h5", only=("upper",)), make("b.h5", only=("lower",), seed=6)]
    options = dataclasses.replace(JOINED, cv=True, folds=3, probability=True)
    result = svm_stage(paths, tmp_path / "out", options=options)
    whole = svm_stage(make("c.h5"), tmp_path / "whole", options=options)
    assert answers(tmp_path / "out") == answers(tmp_path / "whole")
    assert result.n_test == N_TRAIN
    assert result.calibration == whole.calibration


def test_rows_that_any_network_was_fitted_to_count_as_fitted(make, tmp_path):
    """Rows 0 to 149 were seen by the first network, 100 to 199 by the second."""
    one, other = np.zeros(N_TRAIN, np.uint8), np.zeros(N_TRAIN, np.uint8)
    one[:150], other[100:200], other[:40] = Part.FITTED, Part.FITTED, Part.VALIDATION
    rows = {"all": SPLITS["train"]}
    paths = [
        make("a.h5", only=("upper",), splits=rows, columns={"parts": {"all": one}}),
        make("b.h5", only=("lower",), seed=7, splits=rows, columns={"parts": {"all": other}}),
    ]
    result = svm_stage(paths, tmp_path / "out", options=JOINED)
    assert (result.evaluation, result.n_train, result.n_test) == ("validation rows", 200, 100)
    assert set(answers(tmp_path / "out")) == {f"all/{row}" for row in range(200, 300)}
    assert (result.caveat, result.note) == ("", "")


def test_a_file_that_tells_no_parts_makes_the_score_one_of_unknown_rows(make, tmp_path):
    known = np.where(np.arange(N_TRAIN) < 200, Part.FITTED, Part.UNSEEN).astype(np.uint8)
    rows = {"all": SPLITS["train"]}
    first = make("a.h5", only=("upper",), splits=rows, columns={"parts": {"all": known}})
    second = make("b.h5", only=("lower",), splits=rows)
    result = svm_stage([first, second], tmp_path / "out", options=JOINED)
    assert (result.n_train, result.n_test, result.note) == (200, 100, UNKNOWN)
    turns = dataclasses.replace(JOINED, cv=True, folds=2)
    result = svm_stage([first, second], tmp_path / "cv", options=turns)
    assert (result.n_test, result.caveat) == (100, UNKNOWN)
    trained = make("c.h5", only=("lower",), splits=rows, source="x", network_source="x")
    result = svm_stage([first, trained], tmp_path / "trained", options=JOINED)
    assert (result.caveat, result.note) == (UNKNOWN, "")
    everything = np.full(N_TRAIN, Part.FITTED, np.uint8)
    seen = make("d.h5", only=("upper",), splits=rows, columns={"parts": {"all": everything}})
    result = svm_stage([seen, trained], tmp_path / "seen", options=JOINED)
    assert result.caveat == FITTED


def test_no_group_crosses_a_fold(make, tmp_path, pixels, monkeypatch):
    """The second file alone has groups, in another order."""
    from cnnfeat.svm import division as module

    groups = np.random.default_rng(0).integers(0, 60, N_TRAIN)
    rows = {"all": SPLITS["train"]}
    paths = [
        make("a.h5", only=("upper",), splits=rows),
        make("b.h5", only=("lower",), seed=8, splits=rows, columns={"groups": {"all": groups}}),
    ]
    plans = []
    plain = module.in_turn
    monkeypatch.setattr(
        module, "in_turn", lambda *a, **k: plans.append(plain(*a, **k)) or plans[-1]
    )
    options = dataclasses.replace(JOINED, cv=True, folds=3)
    svm_stage(paths, tmp_path / "cv", options=options)
    assert plans
    for plan in plans:
        assert all(len(set(plan.fold[groups == group])) == 1 for group in np.unique(groups))
    svm_stage(paths, tmp_path / "out", options=JOINED)
    held = [int(name.removeprefix("all/")) for name in answers(tmp_path / "out")]
    assert held and not set(groups[held]) & set(np.delete(groups, held))


def test_features_of_joined_files_are_predicted(make, pixels, tmp_path):
    paths = [make("a.h5", only=("upper",), seed=1), make("b.h5", only=("lower",), seed=2)]
    svm_stage(paths, tmp_path / "out", options=JOINED)
    saved = load_svm(tmp_path / "out" / "svm.skops")
    found = {one.id: one for one in predict_features(saved, paths, splits=["test"])}
    assert {name: one.predicted for name, one in found.items()} == expected_answers(pixels)
    train = list(predict_features(saved, paths, splits=["train"], scores=True))
    X, _ = joined_pixels(pixels)
    order = [int(one.id.removeprefix("train/")) for one in train]
    values = saved.pipeline.decision_function(X[order])
    np.testing.assert_allclose([one.scores for one in train], values, atol=1e-5)


def test_one_file_that_has_all_of_a_machine_s_layers_will_do(make, pixels, tmp_path):
    both = [make("a.h5", only=("upper",)), make("b.h5", only=("lower",), network_sha256="a.h5")]
    svm_stage(both, tmp_path / "out", options=JOINED)
    saved = load_svm(tmp_path / "out" / "svm.skops")
    whole = make("c.h5", network_sha256="a.h5")
    found = {one.id: one.predicted for one in predict_features(saved, whole, splits=["test"])}
    assert found == expected_answers(pixels)


@pytest.mark.parametrize("layer", ["upper", "all", "lower+lower"])
def test_columns_of_one_file_do_not_count_twice(make, tmp_path, layer):
    path = make("a.h5")
    shutil.copy(path, tmp_path / "copy.h5")
    said = r"a\.h5 and of \S+(a|copy)\.h5 are the same numbers: its columns would count twice"
    for other in (path, tmp_path / "copy.h5"):
        with pytest.raises(UsageError, match=said):
            svm_stage([path, other], tmp_path / "out", options=SvmOptions(layer=(layer,)))
    both = SvmOptions(layer=("upper+lower",), C=0.01)
    joined = svm_stage([path, path], tmp_path / "two", options=both)
    single = svm_stage(path, tmp_path / "one", options=both)
    assert joined.accuracy == single.accuracy


def test_features_of_others_than_the_machine_s_files_are_refused(make, tmp_path):
    paths = [make("a.h5", only=("upper",)), make("b.h5", only=("lower",))]
    svm_stage(paths, tmp_path / "out", options=JOINED)
    saved = load_svm(tmp_path / "out" / "svm.skops")
    cases = [
        (paths[::-1], FeatureFileError, r"b\.h5 was made by another network than"),
        (paths[:1], FeatureFileError, r"a\.h5 was made by another network than"),
        ([*paths, paths[0]], UsageError, "trained on the features of 2 files, and 3 are given"),
        (
            [paths[0], make("c.h5", only=("half",), network_sha256="b.h5")],
            LayerLookupError,
            r"was trained on layer 'lower'; .*c\.h5 has 'half'",
        ),
    ]
    for given, error, words in cases:
        with pytest.raises(error, match=words):
            next(predict_features(saved, given))
    one = svm_stage(make("d.h5"), tmp_path / "one", options=JOINED)
    assert one.files == ()
    with pytest.raises(UsageError, match="trained on the features of 1 file, and 2 are given"):
        next(predict_features(load_svm(tmp_path / "one" / "svm.skops"), paths))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_features": 65}, "n_features is 65, and its layers have others"),
        ({"joined": [{"layer": "upper", "n_features": 64, "file": 2}]}, "is of file 2, and there"),
        ({"joined": [{"layer": "x", "n_features": 64, "shape": [3]}]}, "n_features is 64, and sha"),
        ({"joined": [{"layer": "x"}]}, "lacks n_features"),
        ({"joined": "upper"}, "joined must be a list"),
        ({"files": [{"network": 3}, {}]}, "network"),
    ],
    ids=["width", "file", "shape", "lacking", "kind", "provenance"],
)
def test_a_damaged_record_of_joined_layers_is_refused(make, tmp_path, change, words):
    from cnnfeat.svm.persistence import save_svm

    paths = [make("a.h5", only=("upper",)), make("b.h5", only=("lower",))]
    svm_stage(paths, tmp_path, options=JOINED)
    saved = load_svm(tmp_path / "svm.skops")
    save_svm(saved.pipeline, tmp_path / "bad.skops", metadata={**saved.metadata, **change})
    with pytest.raises(FeatureFileError, match=words):
        load_svm(tmp_path / "bad.skops")


def test_a_result_whose_layers_are_of_no_file_is_refused(make, tmp_path):
    svm_stage(make("a.h5"), tmp_path, options=JOINED)
    document = json.loads((tmp_path / "svm.json").read_text("utf-8"))
    document["joined"][1]["file"] = 1
    (tmp_path / "svm.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(FeatureFileError, match="'lower' is of file 1, and there are 1 files"):
        read_result(tmp_path / "svm.json")


def test_numbers_that_are_none_are_named_by_their_file(make, tmp_path, pixels):
    first, second = make("a.h5", only=("upper",)), make("b.h5", only=("lower",), seed=4)
    order = [int(name.removeprefix("train/")) for name in h5_ids(second, "train")]
    X = pixels[0][:N_TRAIN, 4:][order].copy()
    X[11, 0, 0] = np.inf
    write_arrays(
        tmp_path / "bad.h5",
        {"train": {"lower": X}, "test": {"lower": pixels[0][SPLITS["test"], 4:]}},
        labels={"train": pixels[1][:N_TRAIN][order], "test": pixels[1][SPLITS["test"]]},
        ids={"train": h5_ids(second, "train"), "test": h5_ids(first, "test")},
        classes=tuple("0123456789"),
    )
    words = rf"bad\.h5: train/lower has NaN, .* in 1 of 300 rows; .* row 11 \(train/{order[11]}\)"
    with pytest.raises(FeatureFileError, match=words):
        svm_stage([first, tmp_path / "bad.h5"], tmp_path / "out", options=JOINED)
    assert not (tmp_path / "out" / "svm.json").exists()


def test_labels_that_differ_leave_nothing(make, tmp_path, pixels):
    first = make("a.h5", only=("upper",))
    wrong = pixels[1].copy()
    wrong[7] = (wrong[7] + 1) % 10
    write_arrays(
        tmp_path / "b.h5",
        {split: {"lower": pixels[0][rows, 4:]} for split, rows in SPLITS.items()},
        labels={split: wrong[rows] for split, rows in SPLITS.items()},
        ids={split: h5_ids(first, split) for split in SPLITS},
        classes=tuple("0123456789"),
    )
    with pytest.raises(DataError, match=r"train, row 7 \(train/7\) is of class"):
        svm_stage([first, tmp_path / "b.h5"], tmp_path / "out", options=JOINED)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_what_is_read_by_blocks_is_said_by_its_joined_name(make, tmp_path, caplog):
    caplog.set_level(logging.INFO, "cnnfeat")
    svm_stage(make("a.h5"), tmp_path, options=JOINED)
    assert "upper+lower: 300 rows of 64 features" in caplog.text


def test_rows_beyond_memory_are_joined_by_blocks(tmp_path):
    random = np.random.default_rng(0)
    y = np.arange(4000) % 4
    X = (random.standard_normal((4, 200))[y] + random.standard_normal((4000, 200)) * 3).astype("f4")
    rows = {"train": np.arange(3000), "test": np.arange(3000, 4000)}
    turned = {split: random.permutation(own) for split, own in rows.items()}
    for name, order, columns in (
        ("whole.h5", rows, {"x": slice(None)}),
        ("a.h5", rows, {"x": slice(0, 70), "y": slice(70, 120)}),
        ("b.h5", turned, {"x": slice(120, None)}),
    ):
        write_arrays(
            tmp_path / name,
            {s: {key: X[own, part] for key, part in columns.items()} for s, own in order.items()},
            labels={split: y[own] for split, own in order.items()},
            ids={split: [str(row) for row in own] for split, own in order.items()},
            classes=tuple("abcd"),
        )
    whole = svm_stage(tmp_path / "whole.h5", tmp_path / "whole", options=SvmOptions(C=0.01))
    options = SvmOptions(layer=("*+x",), C=0.01, memory=2 * 2**20)
    joined = svm_stage([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "out", options=options)
    assert (joined.best.layer, joined.best.n_features) == ("*+x", 200)
    assert joined.best.objective == pytest.approx(whole.best.objective, rel=1e-4)
    assert abs(joined.accuracy - whole.accuracy) < 0.005


def test_copies_of_any_file_are_copies_in_the_first_one_s_order(tmp_path):
    ids = ["a", "b", "a~1", "b~1"]
    said = {"options": '{"extract": {"augment_copies": 1}}'}
    for name, order, attributes in (("plain.h5", [2, 0, 3, 1], {}), ("own.h5", [0, 1, 2, 3], said)):
        write_arrays(
            tmp_path / name,
            {"train": {"fc": np.zeros((4, 2), "f4")}},
            ids={"train": [ids[row] for row in order]},
            attributes=attributes,
        )
    with open_table([tmp_path / "plain.h5", tmp_path / "own.h5"]) as table:
        assert find_copies(table, "train").tolist() == ["~" in name for name in table.ids("train")]


def test_files_in_a_store_are_joined_as_those_here(make, bucket, tmp_path):
    addresses = []
    for name, layer, seed in (("a.h5", "upper", None), ("b.h5", "lower", 3)):
        path = make(name, only=(layer,), seed=seed)
        bucket.put(name, path.read_bytes())
        addresses.append(f"s3://{bucket.name}/{name}")
    here = svm_stage([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "here", options=JOINED)
    there = svm_stage(addresses, tmp_path / "there", options=JOINED)
    assert answers(tmp_path / "there") == answers(tmp_path / "here")
    assert [one["path"] for one in there.files] == addresses
    assert there.best.objective == here.best.objective
    saved = load_svm(tmp_path / "there" / "svm.skops")
    found = {one.id: one.predicted for one in predict_features(saved, addresses, splits=["test"])}
    assert found == answers(tmp_path / "here")
