"""`keras.applications` at random weights: names, activations, scales."""

from __future__ import annotations

import hashlib

import keras
import numpy as np
import pytest

from cnnfeat.errors import DownloadError, MissingInputError, NetworkError
from cnnfeat.network import Network, applications, load_network

LAYERS = {
    "MobileNetV2": ("block_5_add", "out_relu", "symmetric"),
    "ResNet50": ("conv3_block1_out", "conv5_block3_out", "caffe"),
    "EfficientNetB0": ("block4a_se_excite", "top_activation", "raw"),
    "ConvNeXtTiny": (
        "convnext_tiny_stage_1_block_0_identity",
        "convnext_tiny_stage_3_block_2_identity",
        "raw",
    ),
    "VGG16": ("block3_pool", "block5_pool", "caffe"),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in list(LAYERS)[1:]]


@pytest.fixture(scope="module")
def mobilenet() -> Network:
    return load_network("keras:MobileNetV2", weights="none")


@pytest.mark.parametrize("name", ["MobileNetV2", *SLOW])
def test_a_family_lists_and_extracts(name: str, mobilenet: Network, agree) -> None:
    inner, last, scale = LAYERS[name]
    network = mobilenet if name == "MobileNetV2" else load_network(f"keras:{name}", weights="none")
    assert (network.format, network.default_scale) == ("applications", scale)
    assert len(network.trunk) <= 50
    model = applications._build(name, "none")
    # Keras itself numbers layers without a name through a process.
    numbered = ("global_average_pooling2d", "rescaling", "normalization")
    authored = {item.name for item in model.layers[1:] if not item.name.startswith(numbered)}
    assert authored <= {layer.name for layer in network.layers}
    images = np.random.default_rng(0).random((2, 64, 64, 3), dtype=np.float32)
    make = getattr(keras.applications, name)
    small = make(weights=None, include_top=False, input_shape=(64, 64, 3))
    small.set_weights(model.get_weights()[: len(small.weights)])
    outputs = [small.get_layer(key).output for key in (inner, last)]
    wanted_inner, wanted_last = keras.Model(small.input, outputs)(images, training=False)
    agree(network, images, {inner: wanted_inner, last: wanted_last}, scale="raw")


def test_a_network_is_the_same_each_time(mobilenet: Network) -> None:
    """Layers without a name of their own among it, which Keras numbers through a thread."""
    keras.layers.GlobalAveragePooling2D()
    again = load_network("keras:mobilenetv2", weights="none")
    assert again.sha256 == mobilenet.sha256
    assert "global_average_pooling2d" in {layer.name for layer in again.layers}
    assert again.layers == mobilenet.layers


@pytest.mark.slow
def test_weights_of_numbered_layers_do_not_change_the_digest() -> None:
    """`normalization` has weights, and no name of its own."""
    first, second = (load_network("keras:EfficientNetB0", weights="none") for _ in range(2))
    assert first.sha256 == second.sha256


def test_the_listed_shapes_are_those_of_the_trained_size(mobilenet: Network) -> None:
    (layer,) = mobilenet.find(["out_relu"])
    assert layer.tensor.shape == (None, 7, 7, 1280)
    assert mobilenet.image_shape == (None, None, 3)


def test_the_scales_are_those_of_each_family() -> None:
    """Compared with what each family's own `preprocess_input` makes of one pixel."""
    import tensorflow as tf

    from cnnfeat.network.feeding import image_input
    from cnnfeat.network.graph import GraphInput
    from cnnfeat.network.preprocessing import fit_images
    from cnnfeat.options import ProbeOptions

    pixel = np.array([10, 100, 200], np.uint8).reshape(1, 1, 1, 3)
    modules = {
        "ConvNeXtTiny": "convnext", "DenseNet121": "densenet", "EfficientNetB0": "efficientnet",
        "EfficientNetV2B0": "efficientnet_v2", "InceptionResNetV2": "inception_resnet_v2",
        "InceptionV3": "inception_v3", "MobileNet": "mobilenet", "MobileNetV2": "mobilenet_v2",
        "MobileNetV3Small": "mobilenet_v3", "NASNetMobile": "nasnet", "ResNet50": "resnet",
        "ResNet101V2": "resnet_v2", "VGG16": "vgg16", "Xception": "xception",
    }  # fmt: skip
    to = image_input([GraphInput("x", "x:0", tf.float32, (None, None, None, 3))])
    for name, module in modules.items():
        family = getattr(keras.applications, module)
        plan = fit_images(
            to,
            ProbeOptions(),
            image_shape=(1, 1, 3),
            image_dtype="uint8",
            default_scale=applications.scale_of(name),
        )
        wanted = family.preprocess_input(pixel.astype(np.float32))
        np.testing.assert_allclose(plan(tf.constant(pixel)), wanted, rtol=1e-5, atol=1e-4)


def test_every_network_has_a_scale() -> None:
    assert len(applications.application_names()) > 30
    for name in applications.application_names():
        assert applications.scale_of(name)


@pytest.mark.slow
def test_a_weights_file(tmp_path, rng: np.random.Generator, agree) -> None:
    model = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3))
    path = tmp_path / "own.weights.h5"
    model.save_weights(path)
    network = load_network("keras:MobileNetV2", weights=str(path))
    digest = hashlib.sha256()
    for variable in model.weights:
        digest.update(f"{variable.path} {tuple(variable.shape)}\n".encode())
        digest.update(variable.numpy().tobytes())
    assert network.sha256 == digest.hexdigest()
    apart = load_network(str(path), architecture="keras:MobileNetV2")
    images = rng.random((2, 32, 32, 3), dtype=np.float32)
    wanted = keras.Model(model.input, model.get_layer("out_relu").output)(images, training=False)
    agree(apart, images, {"out_relu": wanted}, scale="raw")


@pytest.mark.filterwarnings("ignore:Skipping")
def test_names_and_weights_that_are_not_there(tmp_path, monkeypatch) -> None:
    with pytest.raises(NetworkError, match="has no 'MobileNetV9'") as caught:
        load_network("keras:MobileNetV9")
    assert "did you mean 'MobileNetV" in caught.value.hint
    with pytest.raises(MissingInputError, match="no weights file nowhere"):
        load_network("keras:MobileNetV2", weights="nowhere.h5")
    other = tmp_path / "other.weights.h5"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save_weights(other)
    with pytest.raises(NetworkError, match="no weights of MobileNetV2"):
        load_network("keras:MobileNetV2", weights=str(other))

    def offline(**options: object) -> None:
        raise OSError("URL fetch failure")

    monkeypatch.setattr(keras.applications, "MobileNetV2", offline)
    with pytest.raises(DownloadError, match="can't be downloaded: URL fetch failure") as caught:
        load_network("keras:MobileNetV2")
    assert "--weights none" in caught.value.hint
    assert caught.value.exit_code == 5


def test_weights_go_with_applications_only(seed_file) -> None:
    with pytest.raises(NetworkError, match="--weights goes with keras:NAME only"):
        load_network(str(seed_file), weights="none")
