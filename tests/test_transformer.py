"""`LayerFeatures` in scikit-learn's hands, against plain Keras."""

from __future__ import annotations

import pickle
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cnnfeat import LayerFeatures, LinearSVM
from cnnfeat.errors import DataError, LayerLookupError, MissingInputError, NetworkError, UsageError


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, keras.Model]:
    keras.utils.set_random_state(4) if hasattr(keras.utils, "set_random_state") else None
    inputs = keras.Input((8, 8, 1), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv1")(x)
    x = keras.layers.MaxPooling2D(name="pool")(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(12, activation="relu", name="fc1")(x)
    model = keras.Model(inputs, x)
    path = tmp_path_factory.mktemp("network") / "tiny.keras"
    model.save(path)
    return str(path), model


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return (X * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8)[:200], y[:200]


def test_features_equal_plain_keras(network, images):
    path, model = network
    X, _ = images
    found = LayerFeatures(path, layer="pool", batch_size=64).fit_transform(X)
    part = keras.Model(model.input, model.get_layer("pool").output)
    expected = np.asarray(part(X[..., None])).reshape(200, -1)
    assert found.shape == (200, 64)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())


def test_four_axes_are_the_same_as_three(network, images):
    X = images[0][:10]
    features = LayerFeatures(network[0], layer="fc1")
    np.testing.assert_array_equal(features.fit_transform(X), features.fit_transform(X[..., None]))


def test_a_pipeline_learns(network, images):
    X, y = images
    machine = make_pipeline(
        LayerFeatures(network[0], layer="conv1"), StandardScaler(), LinearSVM(C=0.01)
    ).fit(X[:150], y[:150])
    assert machine.score(X[150:], y[150:]) > 0.7


def test_a_grid_search_runs_over_layers(network, images):
    X, y = images
    machine = make_pipeline(LayerFeatures(network[0]), LinearSVM(C=0.01))
    search = GridSearchCV(
        machine, {"layerfeatures__layer": ["pool", "fc1"]}, cv=2, error_score="raise"
    ).fit(X, y)
    assert search.best_params_["layerfeatures__layer"] in ("pool", "fc1")
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_clones_and_parameters(network, images):
    fitted = LayerFeatures(network[0], layer="fc1", pool="none").fit(images[0])
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        copy.transform(images[0])
    copy.set_params(layer="pool", pool="avg").fit(images[0])
    assert copy.n_features_out_ == 4


def test_names_say_row_column_and_channel(network, images):
    features = LayerFeatures(network[0], layer="pool").fit(images[0])
    names = features.get_feature_names_out()
    assert len(names) == features.n_features_out_ == 64
    assert list(names[:5]) == ["pool[0,0,0]", "pool[0,0,1]", "pool[0,0,2]", "pool[0,0,3]",
                               "pool[0,1,0]"]  # fmt: skip


def test_set_output_makes_a_table(network, images):
    pandas = pytest.importorskip("pandas")
    features = LayerFeatures(network[0], layer="fc1").set_output(transform="pandas")
    table = features.fit_transform(images[0])
    assert isinstance(table, pandas.DataFrame)
    assert table.columns[3] == "fc1[3]"


def test_pickles_hold_the_path_and_not_the_network(network, images):
    X = images[0]
    fitted = LayerFeatures(network[0], layer="fc1").fit(X)
    expected = fitted.transform(X)
    data = pickle.dumps(fitted)
    assert len(data) < 2_000
    np.testing.assert_array_equal(pickle.loads(data).transform(X), expected)


def test_a_changed_network_is_refused_after_unpickling(network, images, tmp_path):
    path = tmp_path / "other.keras"
    path.write_bytes(Path(network[0]).read_bytes())
    data = pickle.dumps(LayerFeatures(str(path), layer="fc1").fit(images[0]))
    model = keras.models.load_model(path)
    model.set_weights([weight + 1 for weight in model.get_weights()])
    model.save(path)
    with pytest.raises(NetworkError, match="has changed since this LayerFeatures was fitted"):
        pickle.loads(data).transform(images[0])
    refitted = pickle.loads(data).fit(images[0])
    assert refitted.transform(images[0]).shape == (200, 12)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"layer": "fc9"}, LayerLookupError, "fc9"),
        ({"layer": "*"}, UsageError, r"'\*' means [0-9]+ layers"),
        ({"model": "no.keras"}, MissingInputError, "no.keras"),
        ({"batch_size": 0}, UsageError, "batch_size must be at least 1, not 0"),
    ],
)
def test_bad_parameters_are_refused(network, images, change, error, words):
    features = LayerFeatures(network[0], layer="fc1").set_params(**change)
    with pytest.raises(error, match=words):
        features.fit(images[0])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros((3, 8)), "images must have shape"),
        (np.zeros((0, 8, 8), np.uint8), "at least one sample"),
        (np.zeros((3, 8, 8), np.int64), "not int64"),
        (np.zeros((3, 9, 8), np.uint8), r"these are of shape \(9, 8, 1\)"),
        (np.zeros((3, 8, 8), np.float32), "type float32"),
    ],
)
def test_other_images_are_refused(network, images, bad, words):
    features = LayerFeatures(network[0], layer="fc1").fit(images[0])
    with pytest.raises(DataError, match=words):
        features.transform(bad)
