"""`LayerFeatures` in scikit-learn's hands, against plain Keras."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cnnfeat import LayerFeatures, LinearSVM, ReadOptions, load_network
from cnnfeat.errors import DataError, LayerLookupError, MissingInputError, NetworkError, UsageError
from cnnfeat.options import ProbeOptions

v1 = tf.compat.v1


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


def test_one_picture_is_not_taken_for_many(network):
    with pytest.raises(DataError, match="are one picture") as caught:
        LayerFeatures(network[0], layer="fc1").fit(np.zeros((8, 8, 3), np.uint8))
    assert "X[np.newaxis]" in caught.value.hint


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


def live() -> keras.Model:
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(3, 3, activation="relu", name="conv1")(x)
    return keras.Model(inputs, keras.layers.Flatten(name="flat")(x), name="live")


def test_a_live_model_is_frozen_by_fit(images):
    X, model = images[0], live()
    features = LayerFeatures(model, layer="flat")
    expected = np.asarray(model(X[..., None]))
    np.testing.assert_allclose(features.fit_transform(X), expected, atol=1e-5 * expected.max())
    model.set_weights([weight * 2 + 1 for weight in model.get_weights()])
    np.testing.assert_allclose(features.transform(X), expected, atol=1e-5 * expected.max())
    anew = np.asarray(model(X[..., None]))
    np.testing.assert_allclose(features.fit_transform(X), anew, atol=1e-5 * anew.max())


def test_clones_share_a_live_model(images):
    X, y = images
    model = live()
    features = LayerFeatures(model, layer="flat").set_output(transform="default").fit(X)
    copy = clone(features)
    assert copy.model is model
    assert copy.get_params() == features.get_params()
    with pytest.raises(NotFittedError):
        copy.transform(X)
    machine = make_pipeline(LayerFeatures(model, layer="flat"), LinearSVM(C=0.01))
    search = GridSearchCV(
        machine, {"layerfeatures__layer": ["conv1", "flat"]}, cv=2, error_score="raise"
    ).fit(X, y)
    assert search.best_estimator_.score(X, y) > 0.8


def test_pickling_a_live_model_is_refused_with_words(images):
    for features in (LayerFeatures(live(), layer="flat"), LayerFeatures(load_network(live()))):
        with pytest.raises(UsageError, match=r"holds a live .* which can't be pickled") as caught:
            pickle.dumps(features)
        assert "give LayerFeatures the path" in caught.value.hint
        assert any("path" in note for note in caught.value.__notes__)


def test_an_open_network_and_a_path_object(network, images):
    path, _ = network
    X = images[0][:20]
    expected = LayerFeatures(path, layer="pool").fit_transform(X)
    for given in (Path(path), load_network(path)):
        np.testing.assert_array_equal(LayerFeatures(given, layer="pool").fit_transform(X), expected)


def test_a_graph_with_its_session(images):
    X = images[0][:20].astype(np.float32)
    with tf.Graph().as_default() as graph, v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 8, 8, 1), name="x")
        gain = v1.placeholder(tf.float32, (), name="gain")
        w = v1.get_variable("w", initializer=3.0)
        tf.multiply(x * w, gain, name="out")
        session.run(v1.global_variables_initializer())
        features = LayerFeatures(
            graph, layer="out", session=session, feed={"gain": 2.0}, scale="raw"
        ).fit(X)
        session.run(w.assign(0.0))
    np.testing.assert_allclose(features.transform(X), 6 * X.reshape(20, -1))
    by_value = LayerFeatures(
        graph, layer="out", variables={"w": 5.0}, read=ReadOptions(feed={"gain": 2.0}), scale="raw"
    )
    np.testing.assert_allclose(clone(by_value).fit_transform(X), 10 * X.reshape(20, -1))
    first = by_value.set_params(feed={"gain": 1.0})  # goes before what `read` says
    np.testing.assert_allclose(first.fit_transform(X), 5 * X.reshape(20, -1))


def test_every_option_of_reading_and_computing_is_a_parameter():
    known = set(LayerFeatures().get_params())
    options = [*dataclasses.fields(ReadOptions), *dataclasses.fields(ProbeOptions)]
    called = {"fit": "proportions"}  # `fit` is what an estimator does
    assert {called.get(option.name, option.name) for option in options} <= known


def test_features_of_a_live_network_are_made_again_with_it(images, tmp_path):
    from cnnfeat import ExtractOptions, extract, open_arrays

    model = live()
    extract(model, open_arrays(images[0]), ExtractOptions(layer="conv1"), out=tmp_path / "f.h5")
    expected = np.asarray(keras.Model(model.input, model.get_layer("conv1").output)(
        images[0][..., None]
    )).reshape(200, -1)  # fmt: skip
    for given in (model, load_network(model)):
        again = LayerFeatures.from_features(tmp_path / "f.h5", model=given)
        found = again.fit_transform(images[0])
        np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())
    with pytest.raises(NetworkError, match="lived in a program, 'live'"):
        LayerFeatures.from_features(tmp_path / "f.h5")
