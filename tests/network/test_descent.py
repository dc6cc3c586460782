"""Compiled steps against plain Keras's own, and against gradients written out by hand."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.network.architecture import build_network
from cnnfeat.network.augmentation import Augmentation
from cnnfeat.network.descent import Samples, Steps
from cnnfeat.network.epochs import fit
from cnnfeat.network.starting import HALVES, calls_of_training, least_halved
from cnnfeat.options import (
    ArchitectureOptions,
    AugmentOptions,
    ConvOptions,
    DenseOptions,
    RunOptions,
    TrainOptions,
)

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
    steps = Steps(ours, falling(rule), n_parts=HALVES, least=least_halved(config))
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
                dataclasses.replace(given, images=images),
                order,
                batch_size=4,
                turn=turn,
                told=lambda _: None,
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
        seed=5,
    )
    assert turns == [(5, turn, list(range(16))) for turn in (0, 1)]


def test_a_seed_fixes_dropout_too():
    given, weights = samples(16, (6, 6, 1), "uint8"), []
    config = RunOptions(network=LOST, train=TrainOptions(epochs=2, batch_size=8, seed=5))
    for _ in "ab":
        network = build_network(LOST, image_shape=(6, 6, 1), n_classes=3, seed=5)
        fit(network, given, given, config, seed=5)
        weights.append(network.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("network", "batch_size", "n_calls"),
    [
        (ArchitectureOptions(), 2, HALVES),
        (LOST, 2, HALVES),
        (NORMED, 63, 1),
        (NORMED, 64, HALVES),
        (ArchitectureOptions(dense=(DenseOptions(6, batch_norm=True),)), 63, 1),
    ],
    ids=["plain", "dropout", "small and normed", "normed", "dense and normed"],
)
def test_halves_of_a_batch_are_computed_at_a_time(network, batch_size: int, n_calls: int):
    config = RunOptions(network=network, train=TrainOptions(batch_size=batch_size))
    assert calls_of_training(config) == n_calls


def test_halves_are_normed_each_by_itself():
    """By plain Keras: a call for each half, one after the other, and a step down their sum."""
    given, rate = samples(64, (5, 5, 1), "uint8"), 0.1
    ours, theirs = (build_network(NORMED, image_shape=(5, 5, 1), n_classes=3, seed=3) for _ in "ab")
    steps = Steps(ours, keras.optimizers.SGD(rate), n_parts=2, least=64)
    steps.epoch(given, np.arange(64), batch_size=64, told=lambda _: None)
    sums = [np.zeros(weight.shape, np.float32) for weight in theirs.trainable_weights]
    for half in (slice(0, 32), slice(32, 64)):
        with tf.GradientTape() as tape:
            logits = theirs(given.images[half], training=True)
            loss = cross_entropy()(given.labels[half], logits) / 2
        gradients = tape.gradient(loss, theirs.trainable_weights)
        sums = [total + one for total, one in zip(sums, gradients, strict=True)]
    for weight, gradient in zip(theirs.trainable_weights, sums, strict=True):
        weight.assign_sub(rate * gradient)
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=a.path)


def test_normed_halves_and_dropout_come_to_the_same_again():
    network = ArchitectureOptions(
        conv=(ConvOptions(4, 3, batch_norm=True, dropout=0.3),), dense=(), pooling="average"
    )
    config = RunOptions(network=network, train=TrainOptions(epochs=2, batch_size=64, seed=5))
    given, weights = samples(200, (6, 6, 1), "uint8"), []
    for _ in "ab":
        made = build_network(network, image_shape=(6, 6, 1), n_classes=3, seed=5)
        fit(made, given, given, config, seed=5)
        weights.append(made.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def gradients(
    given: Samples, weights: np.ndarray, bias: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of `linear`'s mean cross-entropy against a distribution of each image, written out."""
    X = given.images.reshape(len(given), -1).astype(float)
    logits = X @ weights + bias
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    error = (chances - truth) / len(given)
    return X.T @ error, error.sum(axis=0)


def one_step(options: TrainOptions, *, rate: float = 0.5) -> tuple[Samples, list, list]:
    """Take all of seven images in one step of `fit`; weights before and after."""
    given, network = samples(7, (2, 2, 1), "float32"), linear(seed=1, dtype="float32")
    before = [weight.numpy().astype(float) for weight in network.weights]
    nothing = ArchitectureOptions(conv=(), dense=())
    how = dataclasses.replace(options, epochs=1, batch_size=7, learning_rate=rate, validation=0.0)
    fit(network, given, None, RunOptions(network=nothing, train=how), seed=1)
    return given, before, network.get_weights()


def adam(gradient: np.ndarray, rate: float) -> np.ndarray:
    """The first step of Adam, as its authors compute it: the bias of both moments in the rate."""
    corrected = rate * np.sqrt(1 - 0.999) / (1 - 0.9)
    return corrected * 0.1 * gradient / (np.sqrt(0.001 * gradient**2) + 1e-7)


def test_kernels_alone_decay_and_not_by_their_gradients():
    rate, decay = 0.5, 0.25
    given, (kernel, bias), after = one_step(TrainOptions(weight_decay=decay), rate=rate)
    down, shift = gradients(given, kernel, bias, np.eye(3)[given.labels])
    decayed = kernel * (1 - decay * rate)
    np.testing.assert_allclose(after[0], decayed - adam(down, rate), atol=1e-5)
    np.testing.assert_allclose(after[1], bias - adam(shift, rate), atol=1e-5)


def test_smoothed_labels_are_aimed_at_and_the_loss_is_told_without():
    given, rate = samples(7, (2, 2, 1), "float32"), 0.5
    network, plain = (linear(seed=1, dtype="float32") for _ in "ab")
    kernel, bias = (weight.numpy().astype(float) for weight in network.weights)
    steps = Steps(network, keras.optimizers.SGD(rate), n_parts=2, label_smoothing=0.3)
    score = steps.epoch(given, np.arange(7), batch_size=7, told=lambda _: None)
    down, shift = gradients(given, kernel, bias, 0.7 * np.eye(3)[given.labels] + 0.1)
    np.testing.assert_allclose(network.weights[0], kernel - rate * down, atol=1e-6)
    np.testing.assert_allclose(network.weights[1], bias - rate * shift, atol=1e-6)
    loss = cross_entropy()(given.labels, plain(given.images))
    assert score.loss == pytest.approx(float(loss), rel=1e-5)


def test_the_network_is_the_mean_of_what_makes_the_steps():
    given, rate, decay = samples(8, (2, 2, 1), "float32"), 0.5, 0.25
    network, learner = (linear(seed=1, dtype="float32") for _ in "ab")
    kernel, bias = (weight.numpy().astype(float) for weight in network.weights)
    means = [kernel, bias]
    steps = Steps(network, keras.optimizers.SGD(rate), n_parts=1, ema=decay, learner=learner)
    steps.epoch(given, np.arange(8), batch_size=2, told=lambda _: None)
    for number in range(1, 5):
        rows = given.take(np.arange(2 * number - 2, 2 * number))
        down, shift = gradients(rows, kernel, bias, np.eye(3)[rows.labels])
        kernel, bias = kernel - rate * down, bias - rate * shift
        kept = min(decay, (1 + number) / (10 + number))
        means = [kept * a + (1 - kept) * b for a, b in zip(means, (kernel, bias), strict=True)]
    assert kept == decay != 2 / 11  # it has grown to what was asked for
    for weight, mean in zip(network.weights, means, strict=True):
        np.testing.assert_allclose(weight, mean, atol=1e-5)
    np.testing.assert_allclose(learner.weights[0], kernel, atol=1e-5)
    found = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = float(found(given.labels, network(given.images)))
    assert steps.evaluate(given).loss == pytest.approx(loss, rel=1e-5)


def test_the_rate_rises_before_it_falls():
    config = RunOptions(
        network=ArchitectureOptions(conv=(), dense=()),
        train=TrainOptions(epochs=10, batch_size=4, learning_rate=0.5, warmup=0.4),
    )
    given = samples(8, (2, 2, 1), "float32")
    course = fit(linear(seed=0, dtype="float32"), given, given, config, seed=0)
    falling = 0.25 * (1 + np.cos(np.pi * np.arange(6) / 6))
    expected = [0, 0.125, 0.25, 0.375, *falling]
    np.testing.assert_allclose(
        [one["learning_rate"] for one in course.history], expected, atol=1e-6
    )


def test_weights_stay_float32_where_steps_compute_in_bfloat16():
    given = samples(16, (6, 6, 1), "uint8")
    shape = {"image_shape": (6, 6, 1), "n_classes": 3, "seed": 3}
    network = build_network(NORMED, **shape)
    learner = build_network(NORMED, **shape, precision="bfloat16")
    assert learner.get_layer("conv1").output.dtype == "bfloat16"
    assert learner.output.dtype == "float32"
    steps = Steps(network, keras.optimizers.SGD(0.1), n_parts=2, learner=learner)
    before = network.get_weights()
    steps.epoch(given, np.arange(16), batch_size=8, told=lambda _: None)
    for weight, same, first in zip(network.weights, learner.weights, before, strict=True):
        assert weight.dtype == same.dtype == "float32"
        np.testing.assert_array_equal(weight, same)
        assert not np.array_equal(weight, first), weight.path
    logits = network(given.images)
    assert logits.dtype == "float32"
    assert steps.evaluate(given).loss == pytest.approx(
        float(cross_entropy()(given.labels, logits)), rel=1e-5
    )


def test_without_validation_the_last_weights_are_kept():
    given, network = samples(8, (2, 2, 1), "float32"), linear(seed=0, dtype="float32")
    config = RunOptions(
        network=ArchitectureOptions(conv=(), dense=()),
        train=TrainOptions(epochs=3, batch_size=4, validation=0.0),
    )
    course = fit(network, given, None, config, seed=0)
    assert [set(one) for one in course.history] == 3 * [
        {"epoch", "loss", "accuracy", "learning_rate"}
    ]
    assert course.best is None


def test_the_progress_counts_epochs():
    told: list[tuple[object, ...]] = []

    class Watcher:
        done = 0.0

        def task(self, label: str, *, total: float | None, unit: str, done: int):
            told.append((label, total, unit, done))
            return contextlib.nullcontext(self)

        def advance(self, amount: float = 1, *, note: str = ""):
            self.done += amount
            if note:
                told.append((note, self.done))

    config = RunOptions(
        network=ArchitectureOptions(conv=(), dense=()), train=TrainOptions(epochs=2, batch_size=4)
    )
    given = samples(8, (2, 2, 1), "float32")
    network = linear(seed=0, dtype="float32")
    course = fit(network, given, given, config, seed=0, label="x", progress=Watcher())
    last = [
        f"validation {one['val_accuracy']:.2%}, loss {one['loss']:.4f}" for one in course.history
    ]
    assert told == [
        ("x", 2, "epochs", 0),
        (last[0], 1.0),
        (last[1], 2.0),
    ]
