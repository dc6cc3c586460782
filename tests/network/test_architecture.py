"""The seed network and its family, held against what the table says."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from cnnfeat.errors import NetworkError
from cnnfeat.network import load_network
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


def residual(*, batch_norm: bool = True, **options: object) -> ArchitectureOptions:
    block = ConvOptions(filters=3, kernel_size=5, batch_norm=batch_norm, residual=2)
    return ArchitectureOptions(conv=(block,), **options)


def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ((1, 1), (1, 1), (0, 0))), (3, 3), (0, 1)
    )
    return np.einsum("hwcij,ijcf->hwf", windows, kernel)


def test_a_residual_unit_adds_to_what_it_takes(rng: np.random.Generator):
    """By NumPy alone, with norms that have seen something."""
    unit = build(residual()).get_layer("conv1").get_layer("unit1")
    for weight in unit.weights:
        weight.assign(weight + rng.uniform(0.1, 0.5, weight.shape))
    x = rng.normal(size=(14, 14, 3)).astype(np.float32)
    y = x.astype(float)
    for half in ("_a", "_b"):
        (kernel,) = unit.get_layer(f"conv{half}").get_weights()
        gamma, beta, mean, variance = unit.get_layer(f"norm{half}").get_weights()
        y = (convolved(y, kernel) - mean) / np.sqrt(variance + 1e-5) * gamma + beta
        y = np.maximum(y, 0)
    np.testing.assert_allclose(unit(x[None]).numpy()[0], x + y, rtol=1e-4, atol=1e-4)


def test_residual_units_stand_behind_their_block():
    network = build(residual(batch_norm=False))
    block = network.get_layer("conv1")
    assert [layer.name for layer in block.layers[1:]] == ["conv", "pool", "relu", "unit1", "unit2"]
    unit = [layer.name for layer in block.get_layer("unit2").layers[1:]]
    assert unit == ["conv_a", "relu_a", "conv_b", "relu_b", "add"]
    assert network.get_layer("conv1").output.shape == (None, 14, 14, 3)
    assert block.get_layer("unit1").get_layer("conv_a").kernel.shape == (3, 3, 3, 3)


def test_layers_of_residual_units_can_be_asked_for(rng: np.random.Generator, agree):
    network = build(residual(dense=(), pooling="average"), image_shape=(8, 8, 1))
    images = rng.integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    block, named = network.get_layer("conv1"), {}
    x = network.get_layer("scale")(images)
    for layer in block.layers[1:]:
        named[layer.name] = x = layer(x)
    agree(
        load_network(network),
        images,
        {
            "conv1": named["unit2"],
            "conv1/unit1": named["unit1"],
            "conv1/relu": named["relu"],
            "conv1/unit1/conv_a": block.get_layer("unit1").get_layer("conv_a")(named["relu"]),
            "pool": np.mean(named["unit2"], axis=(1, 2)),
        },
    )


def test_a_norm_takes_the_place_of_biases():
    network = build(
        ArchitectureOptions(
            conv=(ConvOptions(4, batch_norm=True),), dense=(DenseOptions(5, batch_norm=True),)
        )
    )
    names = [weight.path.removeprefix("cnnfeat/") for weight in network.weights]
    assert [name for name in names if name.endswith("bias")] == ["fc2/bias"]
    norm = network.get_layer("conv1").get_layer("norm")
    assert (norm.momentum, norm.epsilon) == (0.98, 1e-5)


@pytest.mark.parametrize(("pooling", "reduce"), [("average", np.mean), ("max", np.max)])
def test_channels_are_pooled_before_the_dense_layers(rng: np.random.Generator, pooling, reduce):
    config = ArchitectureOptions(conv=(ConvOptions(3, 3, 1),), dense=(), pooling=pooling)
    network = build(config, image_shape=(6, 5, 1), n_classes=4)
    kernel, bias = network.get_layer("fc1").get_weights()
    assert kernel.shape == (3, 4)
    image = rng.integers(0, 256, (1, 6, 5, 1), dtype=np.uint8)
    block = network.get_layer("conv1")(network.get_layer("scale")(image)).numpy()
    np.testing.assert_allclose(
        network(image), reduce(block, axis=(1, 2)) @ kernel + bias, rtol=1e-5
    )


@pytest.mark.parametrize(("pooling", "name"), [("flatten", "flatten"), ("max", "pool")])
def test_without_dense_layers_features_have_a_name(pooling, name: str):
    config = ArchitectureOptions(conv=(ConvOptions(3),), dense=(), pooling=pooling)
    (layer,) = load_network(build(config)).find([name])
    assert layer.n_features == {"flatten": 14 * 14 * 3, "pool": 3}[name]


@pytest.mark.parametrize(
    ("width", "sizes"), [(0.25, (4, 9, 32)), (1.5, (24, 54, 192)), (1e-3, (1, 1, 1))]
)
def test_the_width_is_a_factor_of_all_filters_and_units(width: float, sizes: tuple[int, ...]):
    network = build(ArchitectureOptions(width=width))
    assert (
        tuple(network.get_layer(name).output.shape[-1] for name in ("conv1", "conv2", "fc1"))
        == sizes
    )
    assert network.output_shape == (None, 10)


def test_he_normal_follows_the_number_of_inputs():
    network = build(ArchitectureOptions(weight_stddev="he"))
    for block, layer, n_inputs in (("conv2", "conv", 5 * 5 * 16), ("fc1", "dense", 1_764)):
        kernel = network.get_layer(block).get_layer(layer).get_weights()[0]
        assert kernel.std() == pytest.approx(np.sqrt(2 / n_inputs), rel=0.02)


@pytest.mark.parametrize(
    ("config", "kernel"),
    [
        (ArchitectureOptions(conv=(ConvOptions(65_536, 1_024),)), "1024×1024×1×65536"),
        (ArchitectureOptions(dense=(DenseOptions(1_048_576),)), "1764×1048576"),
        (ArchitectureOptions(width=64, conv=(ConvOptions(65_536, 1),)), "822083584×8192"),
    ],
    ids=["kernel", "units", "width"],
)
def test_networks_that_no_memory_holds_are_refused_before_they_are_made(config, kernel: str):
    message = f"more than 1,073,741,824 weights: .* a kernel of {kernel}"
    with pytest.raises(NetworkError, match=message) as caught:
        build(config)
    assert 'pooling = "average"' in caught.value.hint
