"""The seed network and its family, held against what the table says."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from cnnfeat.errors import NetworkError
from cnnfeat.network.architecture import build_network
from cnnfeat.options import ArchitectureOptions, ConvOptions, DenseOptions


def build(config: ArchitectureOptions | None = None, **options: object) -> keras.Model:
    arguments = {"image_shape": (28, 28, 1), "n_classes": 10, "seed": 0} | options
    return build_network(config or ArchitectureOptions(), **arguments)


def test_the_seed_network_has_the_shapes_of_its_table():
    network = build()
    assert network.input_shape == (None, 28, 28, 1)
    assert network.inputs[0].dtype == "uint8"
    assert network.get_layer("conv1").output.shape == (None, 14, 14, 16)
    assert network.get_layer("conv2").output.shape == (None, 7, 7, 36)
    assert network.get_layer("conv2").get_layer("conv").output.shape == (None, 14, 14, 36)
    assert network.get_layer("fc1").output.shape == (None, 128)
    assert network.output_shape == (None, 10)
    weights = 5 * 5 * 16 + 16 + 5 * 5 * 16 * 36 + 36 + 1_764 * 128 + 128 + 128 * 10 + 10
    assert network.count_params() == weights


def test_first_weights_are_truncated_normal_and_biases_constant():
    kernel, bias = build().get_layer("fc1").get_layer("dense").get_weights()
    # a normal cut at two standard deviations has 0.88 of its deviation left
    assert kernel.std() == pytest.approx(0.05 * 0.8796, rel=0.02)
    assert np.abs(kernel).max() <= 0.1
    assert np.all(bias == np.float32(0.05))


def test_a_block_convolves_pools_and_rectifies(rng: np.random.Generator):
    """One block on one image, by NumPy alone."""
    network = build(ArchitectureOptions(conv=(ConvOptions(filters=3, kernel_size=3),), dense=()))
    image = rng.integers(0, 256, (28, 28), dtype=np.uint8)
    kernel, bias = network.get_layer("conv1").get_layer("conv").get_weights()
    padded = np.pad(image / 255.0, 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    convolved = np.einsum("hwij,ijf->hwf", windows, kernel[:, :, 0]) + bias
    pooled = convolved.reshape(14, 2, 14, 2, 3).max(axis=(1, 3))
    scaled = network.get_layer("scale")(image[None, :, :, None])
    result = network.get_layer("conv1")(scaled).numpy()[0]
    np.testing.assert_allclose(result, np.maximum(pooled, 0), atol=1e-6)


def test_a_block_has_the_layers_its_table_names():
    config = ArchitectureOptions(
        conv=(ConvOptions(filters=4, kernel_size=3, pool_size=1, batch_norm=True, dropout=0.5),),
        dense=(DenseOptions(units=7, batch_norm=True, dropout=0.5),),
    )
    network = build(config, image_shape=(9, 5, 3), n_classes=4)
    block = [layer.name for layer in network.get_layer("conv1").layers[1:]]
    assert block == ["conv", "norm", "relu", "dropout"]
    dense = [layer.name for layer in network.get_layer("fc1").layers[1:]]
    assert dense == ["dense", "norm", "relu", "dropout"]
    assert network.get_layer("conv1").output.shape == (None, 9, 5, 4)
    assert network.output_shape == (None, 4)


@pytest.mark.parametrize(
    ("dtype", "largest"), [("uint8", 255), ("uint16", 65_535), ("float32", 1.0)]
)
def test_the_first_layer_scales_to_one(dtype: str, largest: float):
    scale = build(dtype=dtype).get_layer("scale")
    assert scale(np.full((1, 1), largest, dtype)).numpy() == pytest.approx(1.0)


def test_a_seed_fixes_the_first_weights():
    first, second, other = (build(seed=seed).get_weights() for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_images_too_small_to_pool_are_refused():
    with pytest.raises(
        NetworkError, match=r"\(2, 2, 1\) are too small .* conv2 gets 1×1"
    ) as caught:
        build(image_shape=(2, 2, 1))
    assert "pool_size = 1" in caught.value.hint
