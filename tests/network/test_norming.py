"""Batch norms' statistics, against those that NumPy computes of what comes to them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.network.architecture import build_network
from cnnfeat.network.descent import Samples
from cnnfeat.network.epochs import fit
from cnnfeat.network.norming import MEASURED, NormStatistics
from cnnfeat.options import (
    ArchitectureOptions,
    AugmentOptions,
    ConvOptions,
    DenseOptions,
    RunOptions,
    TrainOptions,
)

NORMED = ArchitectureOptions(
    conv=(ConvOptions(3, 3, 2, batch_norm=True, residual=1),),
    dense=(DenseOptions(4, batch_norm=True),),
)
FIRST = "conv1"


def noise(n: int) -> Samples:
    chance = np.random.default_rng(0)
    return Samples(chance.integers(0, 255, (n, 6, 6, 1), np.uint8), chance.integers(0, 3, n))


def built() -> keras.Model:
    return build_network(NORMED, image_shape=(6, 6, 1), n_classes=3, seed=0)


def norms(network: keras.Model) -> list[keras.layers.BatchNormalization]:
    found = []
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            found += norms(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            found.append(layer)
    return found


def first_maps(network: keras.Model, images: np.ndarray) -> np.ndarray:
    """What comes to the first batch norm."""
    block = network.get_layer(FIRST)
    return np.asarray(block.get_layer("conv")(images.astype(np.float32) / 255))


@pytest.mark.parametrize("n_parts", [1, 2])
def test_statistics_are_those_of_the_images_as_they_are(n_parts) -> None:
    network, few = built(), noise(300)
    rows = np.random.default_rng(1).permutation(300)
    (norm, *others) = norms(network)
    norm.moving_mean.assign(np.full(3, 99.0))  # of other images
    NormStatistics(network, n_parts=n_parts).measure(few, rows)
    pieces = [piece for half in (rows[:150], rows[150:]) for piece in np.array_split(half, n_parts)]
    maps = [first_maps(network, few.images[piece]) for piece in pieces]
    shares = 0.02 * 0.98 ** np.arange(len(pieces))[::-1]
    shares /= shares.sum()
    mean = sum(s * one.mean((0, 1, 2)) for s, one in zip(shares, maps, strict=True))
    variance = sum(s * one.var((0, 1, 2)) for s, one in zip(shares, maps, strict=True))
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-4)
    assert len(others) == 3
    assert all(np.ptp(other.moving_mean) > 0 for other in others)


def test_weights_stay_and_many_images_are_not_all_taken() -> None:
    network, many = built(), noise(MEASURED + 10)
    before = [weight.numpy() for weight in network.trainable_variables]
    many.images[MEASURED:] = 255
    rows = np.arange(len(many))
    statistics = NormStatistics(network, n_parts=1)
    statistics.measure(many, rows)
    measured = norms(network)[0].moving_mean.numpy()
    statistics.measure(many, rows[:MEASURED])
    np.testing.assert_array_equal(norms(network)[0].moving_mean, measured)
    for weight, old in zip(network.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_a_training_on_varied_images_ends_with_statistics_of_those_as_they_are(caplog) -> None:
    few = noise(96)
    config = RunOptions(
        network=NORMED,
        train=TrainOptions(epochs=2, batch_size=32),
        augment=AugmentOptions(brightness=0.9),
    )
    network = built()
    fit(network, few, None, config, seed=0)
    again = built()
    again.set_weights(network.get_weights())
    mean = first_maps(again, few.images).mean((0, 1, 2))
    np.testing.assert_allclose(norms(network)[0].moving_mean, mean, rtol=1e-4)
    assert not caplog.records  # nor does TensorFlow say anything


def test_tensorflow_has_nothing_to_warn_of(caplog) -> None:
    logger = tf.get_logger()
    logger.addHandler(caplog.handler)
    try:
        NormStatistics(built(), n_parts=1).measure(noise(10), np.arange(10))
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.messages == []


def test_without_batch_norm_there_is_nothing_to_measure() -> None:
    plain = ArchitectureOptions(conv=(ConvOptions(2, 3),), dense=())
    network = build_network(plain, image_shape=(6, 6, 1), n_classes=3, seed=0)
    before = network.get_weights()
    NormStatistics(network, n_parts=2).measure(noise(10), np.arange(10))
    for old, new in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
