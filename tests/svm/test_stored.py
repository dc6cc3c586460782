"""Pipelines are made anew from what a file holds: the same as scikit-learn's, or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import skops.io
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from cnnfeat.errors import FeatureFileError
from cnnfeat.features import write_arrays
from cnnfeat.options import SvmOptions
from cnnfeat.prediction import predict_features
from cnnfeat.svm import load_svm, svm_stage

Change = Callable[[Pipeline], object]

OPTIONS = {
    "linear": SvmOptions(C=1.0),
    "weighted": SvmOptions(C=1.0, class_weight=(("1", 2.0),)),
    "pca": SvmOptions(C=1.0, normalize="l2", pca=5),
    "rbf": SvmOptions(C=1.0, kernel="rbf"),
    "poly": SvmOptions(C=1.0, kernel="poly", normalize="none"),
    "nystroem": SvmOptions(C=1.0, kernel="nystroem"),
}


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, int], Path]:
    """A saved machine of each kind, for two classes and for three, and its features beside it."""
    X, y = load_digits(return_X_y=True)
    made = {}
    for n_classes in (2, 3):
        folder = tmp_path_factory.mktemp(f"of{n_classes}")
        rows = np.flatnonzero(y < n_classes)[:90]
        write_arrays(
            folder / "features.h5",
            {"train": {"x": X[rows].astype(np.float32)}},
            labels={"train": y[rows].astype(np.int64)},
            classes=tuple("012"[:n_classes]),
            attributes={},
        )
        for kind, options in OPTIONS.items():
            svm_stage(folder / "features.h5", folder / kind, options=options)
            made[kind, n_classes] = folder / kind / "svm.skops"
    return made


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_machine_read_is_the_one_that_skops_reads(machines, kind, n_classes):
    ours = load_svm(machines[kind, n_classes]).pipeline
    theirs = skops.io.load(machines[kind, n_classes])
    X = load_digits(return_X_y=True)[0][300:400]
    np.testing.assert_array_equal(ours.decision_function(X), theirs.decision_function(X))
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    assert [name for name, _ in ours.steps] == [name for name, _ in theirs.steps]
    for (_, step), (_, wanted) in zip(ours.steps, theirs.steps, strict=True):
        assert type(step) is type(wanted)
        assert step.get_params() == wanted.get_params()


def setting(place: int, **attributes: object) -> Change:
    """Set attributes of a step; a function is called with what there was."""

    def change(pipeline: Pipeline) -> None:
        step = pipeline.steps[place][1]
        for name, value in attributes.items():
            setattr(step, name, value(getattr(step, name)) if callable(value) else value)

    return change


def with_nan(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.flat[-1] = np.nan
    return changed


def without_last(array: np.ndarray) -> np.ndarray:
    return array[:-1].copy()


def renamed(place: int, name: str) -> Change:
    return lambda pipeline: pipeline.steps.__setitem__(place, (name, pipeline.steps[place][1]))


def replaced(place: int, step: object) -> Change:
    return lambda pipeline: pipeline.steps.__setitem__(place, (pipeline.steps[place][0], step))


def unfitted(place: int) -> Change:
    def change(pipeline: Pipeline) -> None:
        kind = type(pipeline.steps[place][1])
        pipeline.steps[place] = (pipeline.steps[place][0], kind())

    return change


CASES: list[tuple[str, Change, str]] = [
    # which steps there are
    ("linear", lambda p: p.steps.clear(), "its steps are ''"),
    ("linear", lambda p: p.steps.pop(), "its steps are 'scale'"),
    ("linear", lambda p: p.steps.reverse(), "its steps are 'svm, scale'"),
    ("linear", lambda p: p.steps.insert(0, p.steps[0]), "its steps are 'scale, scale, svm'"),
    ("linear", renamed(0, "other"), "its steps are 'other, svm'"),
    ("linear", renamed(0, "pca"), "its step 'pca' is a sklearn.preprocessing._data.StandardScaler"),
    ("linear", replaced(0, "passthrough"), "one of its steps is no step: ('scale', 'passthrough')"),
    ("linear", replaced(1, KMeans()), "types that are not trusted, and was not loaded: sklearn."),
    ("linear", setting(1, coef_=StandardScaler()), "svm.coef_ must be an array, not Stored("),
    ("linear", setting(1, C=np.ones(3)), "svm.C must be a number (more than 0), not array("),
    ("linear", setting(1, tol=[[1]]), "svm.tol must be a plain value, not [[1]]"),
    (
        "nystroem",
        lambda p: p.steps.__setitem__(2, ("svm", SVC().fit(np.eye(3), [0, 1, 2]))),
        "its step 'svm' is a sklearn.svm._classes.SVC, which cnnfeat svm doesn't write",
    ),
    # fitted, of the widths that they state
    ("linear", unfitted(0), "scale lacks n_features_in_, n_samples_seen_"),
    ("linear", unfitted(1), "svm lacks n_features_in_"),
    ("linear", setting(0, n_features_in_=63), "scale is of 63 features, and 64 come to it"),
    ("linear", setting(0, n_features_in_=64.0), "scale.n_features_in_ must be a whole number"),
    ("linear", setting(0, n_features_in_=2**40), "scale is of 1,099,511,627,776 features"),
    ("linear", setting(1, n_features_in_=5), "svm is of 5 features, and 64 come to it"),
    ("pca", setting(2, n_features_in_=64), "svm is of 64 features, and 5 come to it"),
    # scaling
    ("linear", setting(0, with_mean=False), "scale.with_mean must be True, not False"),
    ("linear", setting(0, with_std=1), "scale.with_std must be True, not 1"),
    ("linear", setting(0, mean_=None), "scale.mean_ must be an array, not None"),
    ("linear", setting(0, mean_=without_last), "scale.mean_ has the shape (63,), and should"),
    ("linear", setting(0, mean_=with_nan), "scale.mean_ holds NaN or infinity"),
    ("linear", setting(0, mean_=np.arange(64)), "scale.mean_ is of int64, and should be of float"),
    ("linear", setting(0, scale_=lambda x: 0 * x), "scale.scale_ should be more than 0"),
    ("linear", setting(0, scale_=lambda x: -x), "scale.scale_ should be more than 0"),
    ("pca", setting(0, norm="max"), "normalize.norm must be 'l2', not 'max'"),
    # components
    ("pca", setting(1, whiten=True), "pca.whiten must be False, not True"),
    ("pca", setting(1, n_components_=4), "pca.components_ has the shape (5, 64), and should have"),
    ("pca", setting(1, components_=lambda x: x.T.copy()), "pca.components_ has the shape (64, 5)"),
    ("pca", setting(1, mean_=lambda x: x[:, None]), "pca.mean_ has the shape (64, 1)"),
    ("pca", setting(1, components_=with_nan), "pca.components_ holds NaN or infinity"),
    ("pca", setting(1, noise_variance_=-1.0), "pca.noise_variance_ must be a number (at least 0)"),
    # Nyström
    ("nystroem", setting(1, kernel="poly"), "nystroem.kernel must be 'rbf', not 'poly'"),
    ("nystroem", setting(1, gamma=None), "nystroem.gamma must be a number (more than 0), not None"),
    ("nystroem", setting(1, kernel_params={"x": 1}), "nystroem.kernel_params must be null"),
    ("nystroem", setting(1, components_=lambda x: x[:, :9].copy()), "should have (n, 64)"),
    ("nystroem", setting(1, normalization_=without_last), "nystroem.normalization_ has the shape"),
    # linear machines
    ("linear", setting(1, coef_=without_last), "svm.coef_ has the shape (2, 64), and should have"),
    ("linear", setting(1, coef_=with_nan), "svm.coef_ holds NaN or infinity"),
    ("linear", setting(1, coef_=lambda x: x.astype(np.float16)), "svm.coef_ is of float16"),
    ("linear", setting(1, intercept_=0.0), "svm.intercept_ must be an array, not 0.0"),
    ("linear", setting(1, classes_=np.array([0, 2, 1])), "svm.classes_ should be 0 to 2, in order"),
    ("linear", setting(1, classes_=np.array([0, 1, 1])), "svm.classes_ should be 0 to 2, in order"),
    ("linear", setting(1, classes_=np.array([[0], [1], [2]])), "svm.classes_ should be 0 to 2"),
    ("linear", setting(1, C=-1.0), "svm.C must be a number (more than 0), not -1.0"),
    # kernel machines, whose numbers libsvm follows
    ("rbf", setting(1, kernel="sigmoid"), "svm.kernel must be 'rbf' or 'poly', not 'sigmoid'"),
    ("rbf", setting(1, _gamma=0.0), "svm._gamma must be a number (more than 0), not 0.0"),
    ("poly", setting(0, degree=10**6), "svm.degree must be a whole number (at least 1 and at most"),
    ("rbf", setting(1, support_vectors_=without_last), "svm._n_support is ["),
    ("rbf", setting(1, support_vectors_=lambda x: x[:0].copy()), "of 0 support vectors"),
    ("rbf", setting(1, support_vectors_=lambda x: x[:, :9].copy()), "should have (n, 64)"),
    ("rbf", setting(1, support_vectors_=with_nan), "svm.support_vectors_ holds NaN or infinity"),
    ("rbf", setting(1, _n_support=lambda x: x * 2), "svm._n_support is ["),
    ("rbf", setting(1, _n_support=lambda x: x + np.int32([-99, 99, 0])), "svm._n_support is [-"),
    ("rbf", setting(1, _n_support=lambda x: x.astype(np.int64)), "svm._n_support is of int64"),
    ("rbf", setting(1, _n_support=without_last), "svm._n_support has the shape (2,)"),
    ("rbf", setting(1, dual_coef_=without_last), "svm.dual_coef_ has the shape (1, "),
    ("rbf", setting(1, dual_coef_=lambda x: x[:, :-1].copy()), "svm.dual_coef_ has the shape (2, "),
    ("rbf", setting(1, dual_coef_=with_nan), "svm.dual_coef_ holds NaN or infinity"),
    ("rbf", setting(1, intercept_=without_last), "svm.intercept_ has the shape (2,), and should"),
    ("rbf", setting(1, support_=without_last), "svm.support_ has the shape"),
    ("rbf", setting(1, class_weight_=without_last), "svm.class_weight_ has the shape (2,)"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "words"), CASES, ids=range(len(CASES)))
def test_a_step_that_is_not_as_it_was_written_is_refused(machines, tmp_path, kind, change, words):
    pipeline = skops.io.load(machines[kind, 3])
    change(pipeline)
    path = tmp_path / "svm.skops"
    skops.io.dump(pipeline, path)
    with pytest.raises(FeatureFileError) as caught:
        load_svm(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_a_step_keeps_for_itself_is_not_taken_from_the_file(machines, tmp_path):
    """libsvm's own copies are made again, and nothing in the file stands in for a method."""
    pipeline, X = skops.io.load(machines["rbf", 3]), np.eye(64)[:9] * 16
    expected = pipeline.decision_function(X)
    setting(1, _dual_coef_=lambda x: x[:, :1], _intercept_=np.empty(0), shape_fit_=(1, 10**9))(
        pipeline
    )
    pipeline.steps[1][1].decision_function = 7
    path = tmp_path / "svm.skops"
    skops.io.dump(pipeline, path)
    np.testing.assert_array_equal(load_svm(path).pipeline.decision_function(X), expected)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("linear", setting(0, scale_=lambda x: 0 * x + 1e-300), "nothing can be computed"),
        (
            "linear",
            setting(1, coef_=lambda x: 0 * x + 1e300),
            "its decision values for train/00000",
        ),
        ("poly", setting(0, coef0=1e300), "its decision values for train/00000 are no numbers"),
    ],
    ids=["scale", "coef", "poly"],
)
def test_immense_numbers_end_in_words(machines, tmp_path, kind, change, words):
    pipeline, path = skops.io.load(machines[kind, 3]), tmp_path / "svm.skops"
    change(pipeline)
    skops.io.dump(pipeline, path)
    features = machines[kind, 3].parents[1] / "features.h5"
    with pytest.raises(FeatureFileError) as caught:
        list(predict_features(load_svm(path), features))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
