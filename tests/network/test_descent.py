"""Compiled steps against plain Keras's own, and against gradients written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import keras
import numpy as np
import pytest

from cnnfeat.network.architecture import build_network
from cnnfeat.network.augmentation import Augmentation
from cnnfeat.network.descent import Samples, Steps, fit
from cnnfeat.network.starting import HALVES, calls_of_training
from cnnfeat.options import (
    ArchitectureOptions,
    AugmentOptions,
    ConvOptions,
    DenseOptions,
    RunOptions,
    TrainOptions,
)
from cnnfeat.progress import SILENT

PLAIN = ArchitectureOptions(conv=(ConvOptions(4, 3),), dense=(DenseOptions(6),))
NORMED = ArchitectureOptions(
    conv=(ConvOptions(3, 2, 1, batch_norm=True), ConvOptions(5, 5)),
    dense=(DenseOptions(6, batch_norm=True),),
)
LOST = ArchitectureOptions(conv=(ConvOptions(4, 3, dropout=0.5),), dense=())


def samples(n: int, shape: tuple[int, ...], dtype: str, *, seed: int = 0) -> Samples:
    """Noise with labels of three classes."""
    chance = np.random.default_rng(seed)
    if dtype == "float32":
        images = chance.random((n, *shape), np.float32)
    else:
        images = chance.integers(0, np.iinfo(dtype).max, (n, *shape), dtype, endpoint=True)
    return Samples(images, chance.integers(0, 3, n))


def falling(rule: Callable) -> keras.optimizers.Optimizer:
    return rule(keras.optimizers.schedules.CosineDecay(1e-2, 20))


def linear(*, seed: int, dtype: str = "uint8") -> keras.Model:
    """Build the smallest network: four pixels, three logits."""
    nothing = ArchitectureOptions(conv=(), dense=())
    return build_network(nothing, image_shape=(2, 2, 1), n_classes=3, seed=seed, dtype=dtype)


def cross_entropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize(
    ("config", "rule", "images"),
    [
        (PLAIN, keras.optimizers.Adam, (25, (6, 6, 1), "uint8")),  # the last batch is of one
        (PLAIN, keras.optimizers.Adam, (24, (6, 5, 3), "float32")),
        # Adam would follow the rounding of biases before a norm, whose gradients are 0.
        (NORMED, keras.optimizers.SGD, (27, (7, 6, 2), "uint16")),
    ],
    ids=["one left over", "colour", "batch norm"],
)
def test_weights_become_those_of_keras(config, rule, images):
    n, shape, dtype = images
    given = samples(n, shape, dtype)
    ours, theirs = (
        build_network(config, image_shape=shape, n_classes=3, seed=3, dtype=dtype) for _ in "ab"
    )
    theirs.compile(optimizer=falling(rule), loss=cross_entropy())
    steps = Steps(ours, falling(rule), n_parts=calls_of_training(config))
    told: list[int] = []
    for seed in (1, 2):
        order = np.random.default_rng(seed).permutation(n)
        steps.epoch(given, order, batch_size=8, told=told.append)
        for start in range(0, n, 8):
            rows = order[start : start + 8]
            theirs.train_on_batch(given.images[rows], given.labels[rows])
    assert sum(told) == 2 * n
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=a.path)


@pytest.mark.parametrize("n_parts", [1, 2, 3])
def test_a_step_follows_the_gradient_of_the_whole_batch(n_parts: int):
    given, rate = samples(7, (2, 2, 1), "float32"), 0.5
    network = linear(seed=1, dtype="float32")
    weights, bias = (w.numpy().astype(float) for w in network.weights)
    steps = Steps(network, keras.optimizers.SGD(rate), n_parts=n_parts)
    score = steps.epoch(given, np.arange(7), batch_size=7, told=lambda _: None)
    X, truth = given.images.reshape(7, 4).astype(float), np.eye(3)[given.labels]
    logits = X @ weights + bias
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    error = (chances - truth) / 7
    np.testing.assert_allclose(network.weights[0], weights - rate * X.T @ error, atol=1e-6)
    np.testing.assert_allclose(network.weights[1], bias - rate * error.sum(axis=0), atol=1e-6)
    assert score.loss == pytest.approx(-np.log((chances * truth).sum(axis=1)).mean())
    assert score.accuracy == pytest.approx(np.mean(logits.argmax(axis=1) == given.labels))


def test_a_score_is_the_mean_over_all_images(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cnnfeat.network.descent.EVALUATION_BATCH", 8)
    given = samples(21, (6, 6, 1), "uint8")
    network = build_network(PLAIN, image_shape=(6, 6, 1), n_classes=3, seed=3)
    found = Steps(network, falling(keras.optimizers.Adam), n_parts=2).evaluate(given)
    logits = network.predict(given.images, verbose=0)
    assert found.loss == pytest.approx(float(cross_entropy()(given.labels, logits)), rel=1e-5)
    assert found.accuracy == pytest.approx(np.mean(logits.argmax(axis=1) == given.labels))


@pytest.mark.parametrize(
    ("seconds", "room", "sizes"),
    [
        (1e9, 1 << 20, [2, 4, 8, 16, 20, 20, 2, 1]),
        (1e9, 16, [2, *17 * [4], 2, 1]),
        (1e9, 1, [*36 * [2], 1]),
        (0, 1 << 20, [*36 * [2], 1]),
    ],
    ids=["small", "large", "immense", "slow"],
)
def test_a_call_makes_as_many_steps_as_there_is_room_and_time_for(
    monkeypatch, seconds: float, room: int, sizes: list[int]
):
    """73 images of 4 bytes in batches of 2: room for 16 bytes is room for two steps."""
    monkeypatch.setattr("cnnfeat.network.descent.STEPS_A_CALL", 10)
    monkeypatch.setattr("cnnfeat.network.descent.BYTES_A_CALL", room)
    monkeypatch.setattr("cnnfeat.network.descent.SECONDS_A_CALL", seconds)
    told: list[int] = []
    rows = np.arange(sum(sizes))
    given, network = samples(len(rows), (2, 2, 1), "uint8"), linear(seed=0)
    Steps(network, falling(keras.optimizers.Adam), n_parts=2).epoch(
        given, rows, batch_size=2, told=told.append
    )
    assert told == sizes


def test_weights_dont_depend_on_how_many_steps_a_call_makes(monkeypatch):
    given, weights = samples(41, (2, 2, 1), "uint8"), []
    for seconds in (0, 1e9):
        monkeypatch.setattr("cnnfeat.network.descent.SECONDS_A_CALL", seconds)
        network = linear(seed=1)
        steps = Steps(network, falling(keras.optimizers.Adam), n_parts=2)
        steps.epoch(given, np.arange(41), batch_size=4, told=lambda _: None)
        weights.append(network.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("n_parts", [1, 2])
def test_steps_take_images_as_they_are_varied_in_their_epoch(n_parts: int):
    """The same as steps on images that were varied before."""
    given, weights = samples(19, (6, 6, 1), "uint8"), []
    varied = Augmentation(AugmentOptions(rotation=40, elastic=1, elastic_grid=3), seed=3)
    for before in (True, False):
        network = build_network(PLAIN, image_shape=(6, 6, 1), n_classes=3, seed=1)
        rule = keras.optimizers.SGD(0.1)
        steps = Steps(
            network, rule, n_parts=n_parts, **({} if before else {"augmentation": varied})
        )
        for turn, order in enumerate([np.arange(19), np.arange(19)[::-1]]):
            images = varied(given.images, turn=turn, rows=np.arange(19)) if before else given.images
            steps.epoch(
                replace(given, images=images), order, batch_size=4, turn=turn, told=lambda _: None
            )
        weights.append(network.get_weights())
        assert not np.array_equal(varied(given.images, turn=0, rows=np.arange(19)), given.images)
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_training_varies_the_images_that_it_fits_to(monkeypatch):
    """By its own seed, anew in each epoch, and no image that validates."""
    given, turns = samples(16, (6, 6, 1), "uint8"), []
    draws = Augmentation.draws

    def told(self, turn, rows):
        turns.append((self._seed, turn, sorted(rows.ravel().tolist())))
        return draws(self, turn, rows)

    monkeypatch.setattr(Augmentation, "draws", told)
    train = TrainOptions(epochs=2, batch_size=16, seed=5)
    config = RunOptions(network=PLAIN, train=train, augment=AugmentOptions(shift=0.2))
    fit(
        build_network(PLAIN, image_shape=(6, 6, 1), n_classes=3, seed=5),
        given,
        given,
        config,
        SILENT,
    )
    assert turns == [(5, turn, list(range(16))) for turn in (0, 1)]


def test_a_seed_fixes_dropout_too():
    given, weights = samples(16, (6, 6, 1), "uint8"), []
    config = RunOptions(network=LOST, train=TrainOptions(epochs=2, batch_size=8, seed=5))
    for _ in "ab":
        network = build_network(LOST, image_shape=(6, 6, 1), n_classes=3, seed=5)
        fit(network, given, given, config, SILENT)
        weights.append(network.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_is_whole_where_its_images_act_on_each_other():
    assert calls_of_training(ArchitectureOptions()) == HALVES
    assert calls_of_training(LOST) == HALVES
    assert calls_of_training(NORMED) == 1
    dense = ArchitectureOptions(dense=(DenseOptions(6, batch_norm=True),))
    assert calls_of_training(dense) == 1
