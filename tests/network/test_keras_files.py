"""`.keras` files: names as the author gave them, activations as Keras has them."""

from __future__ import annotations

import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

from cnnfeat.errors import LayerLookupError, MissingInputError, NetworkError
from cnnfeat.network import Network, load_network


def saved(model: keras.Model, tmp_path: Path, name: str = "model.keras") -> Network:
    path = tmp_path / name
    model.save(path)
    return load_network(str(path))


def names(network: Network) -> list[str]:
    return [layer.name for layer in network.layers]


def test_the_seed_network_lists_blocks_before_what_is_in_them(seed_network: Network) -> None:
    assert names(seed_network) == [
        "image", "scale", "conv1", "conv1/conv", "conv1/pool", "conv1/relu",
        "conv2", "conv2/conv", "conv2/pool", "conv2/relu", "flatten", "fc1", "fc2",
    ]  # fmt: skip


def test_the_seed_network_says_shapes_kinds_and_tensors(seed_network: Network) -> None:
    (conv2,) = seed_network.find(["conv2"])
    assert conv2.tensor.name == "conv2/relu/Relu:0"
    assert conv2.tensor.shape == (None, 7, 7, 6)
    assert conv2.n_features == 294
    (inner,) = seed_network.find(["conv2/conv"])
    assert (inner.kind, inner.tensor.shape, inner.path) == ("Conv2D", (None, 14, 14, 6), ("conv2",))
    assert [layer.n_features for layer in seed_network.find(["fc1", "fc2"])] == [16, 10]


def test_the_seed_network_gives_what_keras_gives(
    seed_network: Network, seed_model: keras.Model, pixels, agree
) -> None:
    scaled = seed_model.get_layer("scale")(pixels)
    conv1 = seed_model.get_layer("conv1")(scaled)
    block = seed_model.get_layer("conv2")
    conv2 = block(conv1)
    fc1 = seed_model.get_layer("fc1")(seed_model.get_layer("flatten")(conv2))
    agree(
        seed_network,
        pixels,
        {
            "conv2/conv": block.get_layer("conv")(conv1),
            "conv2": conv2,
            "fc1": fc1,
            "-1": seed_model(pixels),
            "image": pixels,
        },
    )


def test_traced_names_work_but_are_not_shown(seed_network: Network) -> None:
    assert all("_1" not in info.name for info in seed_network.tensors if "Relu" in info.name)
    (found,) = seed_network.find(["seed_1/conv2_1/relu_1/Relu:0"])
    assert found.tensor.name == "conv2/relu/Relu:0"


def test_a_weight_is_no_feature(seed_network: Network) -> None:
    weight = next(iter(seed_network._graph.weights))
    with pytest.raises(LayerLookupError, match="doesn't depend on the images"):
        seed_network.find([weight])


def test_a_model_nested_twice_and_in_itself(tmp_path: Path, agree) -> None:
    inner_in = keras.Input((8, 8, 2))
    inner = keras.Model(
        inner_in,
        keras.layers.Conv2D(2, 3, padding="same", name="conv")(inner_in),
        name="inner",
    )
    middle_in = keras.Input((8, 8, 2))
    middle = keras.Model(middle_in, keras.layers.ReLU(name="relu")(inner(middle_in)), name="middle")
    image = keras.Input((8, 8, 2), name="picture")
    model = keras.Model(image, middle(middle(image)), name="outer")
    network = saved(model, tmp_path)
    assert names(network) == [
        "picture", "middle", "middle/inner", "middle/inner/conv", "middle/relu",
        "middle@2", "middle@2/inner", "middle@2/inner/conv", "middle@2/relu",
    ]  # fmt: skip
    x = np.random.default_rng(0).random((3, 8, 8, 2), dtype=np.float32)
    # two channels are no picture of a source, so the graph is probed with what it takes
    agree(network, x, {"middle/inner": inner(x), "middle@2": middle(middle(x))})


def test_a_layer_used_twice_is_listed_twice(tmp_path: Path, agree) -> None:
    image = keras.Input((6, 6, 1), name="image")
    embed = keras.layers.Conv2D(1, 3, padding="same", name="embed")
    first = embed(image)
    model = keras.Model(image, keras.layers.Add(name="sum")([embed(first), first]))
    network = saved(model, tmp_path)
    assert names(network) == ["image", "embed", "embed@2", "sum"]
    x = np.random.default_rng(0).random((3, 6, 6, 1), dtype=np.float32)
    agree(network, x, {"embed": embed(x), "embed@2": embed(embed(x))})


def test_two_inputs_and_two_outputs(tmp_path: Path, agree) -> None:
    image = keras.Input((6, 6, 3), name="image")
    extra = keras.Input((4,), name="extra")
    body = keras.layers.Flatten(name="body")(image)
    joined = keras.layers.Concatenate(name="joined")([body, extra])
    left = keras.layers.Dense(3, name="left")(joined)
    right = keras.layers.Dense(2, name="right")(body)
    model = keras.Model({"image": image, "extra": extra}, [left, right])
    network = saved(model, tmp_path)
    assert network.input.name == "image"
    assert set(names(network)) == {"image", "body", "joined", "left", "right"}
    x = np.random.default_rng(0).random((3, 6, 6, 3), dtype=np.float32)
    zeros = np.zeros((3, 4), np.float32)
    wanted_left, wanted_right = model({"image": x, "extra": zeros})
    agree(network, x, {"right": wanted_right})
    with pytest.raises(NetworkError, match="the input 'extra' needs a value") as caught:
        agree(network, x, {"left": wanted_left})
    assert "--feed extra=1.0" in caught.value.hint
    fed = load_network(network.path, feeds={"extra": "0"})
    agree(fed, x, {"left": wanted_left})


def test_several_outputs_of_one_layer(tmp_path: Path, agree) -> None:
    image = keras.Input((4, 4, 1), name="image")
    steps = keras.layers.Reshape((4, 4), name="steps")(image)
    attention = keras.layers.MultiHeadAttention(2, 3, name="attention")
    mixed, scores = attention(steps, steps, return_attention_scores=True)
    model = keras.Model(image, [mixed, scores])
    network = saved(model, tmp_path)
    assert {"attention", "attention:1"} <= set(names(network))
    x = np.random.default_rng(0).random((3, 4, 4, 1), dtype=np.float32)
    wanted = model(x)
    agree(network, x, {"attention": wanted[0], "attention:1": wanted[1]})


def test_batch_norm_and_dropout_are_as_in_use(tmp_path: Path, agree) -> None:
    random = np.random.default_rng(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1), name="image"),
            keras.layers.Conv2D(3, 3, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.5, name="drop"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(2, name="out"),
        ]
    )
    model.compile("adam", "mse")
    model.fit(random.random((32, 6, 6, 1)) * 9, random.random((32, 2)), epochs=2, verbose=0)
    network = saved(model, tmp_path)
    assert names(network) == ["image", "conv", "norm", "drop", "flat", "out"]
    x = random.random((3, 6, 6, 1), dtype=np.float32)
    norm = model.get_layer("norm")(model.get_layer("conv")(x), training=False)
    agree(network, x, {"norm": norm, "drop": norm, "out": model(x, training=False)})


def test_a_recurrent_model(tmp_path: Path, agree) -> None:
    image = keras.Input((5, 4, 1), name="image")
    rows = keras.layers.Reshape((5, 4), name="rows")(image)
    states = keras.layers.LSTM(3, return_sequences=True, name="lstm")(rows)
    model = keras.Model(image, keras.layers.GRU(2, name="gru")(states))
    network = saved(model, tmp_path)
    x = np.random.default_rng(0).random((3, 5, 4, 1), dtype=np.float32)
    lstm = model.get_layer("lstm")(x[..., 0])
    agree(network, x, {"lstm": lstm, "gru": model(x)})


@keras.saving.register_keras_serializable("cnnfeat_tests")
class Own(keras.Model):
    def __init__(self, units: int = 3, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.conv = keras.layers.Conv2D(4, 3, name="conv")
        self.head = keras.layers.Dense(units, name="head")

    def call(self, x, training=False):
        x = keras.ops.relu(self.conv(x))
        return self.head(keras.ops.mean(x, axis=(1, 2)))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_a_subclassed_model_of_a_known_class(tmp_path: Path, agree) -> None:
    model = Own(name="own")
    x = np.random.default_rng(0).random((3, 6, 6, 1), dtype=np.float32)
    wanted = model(x)
    network = saved(model, tmp_path)
    assert names(network) == ["input", "conv", "head"]
    agree(network, x, {"conv": model.conv(x), "head": wanted})


def test_a_free_input_takes_images_of_any_size(tmp_path: Path, agree) -> None:
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.Conv2D(4, 3, strides=2, name="conv")(image)
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="mean")(x))
    network = saved(model, tmp_path)
    for side in (9, 12):
        x = np.random.default_rng(0).random((2, side, side + 1, 3), dtype=np.float32)
        agree(network, x, {"conv": model.get_layer("conv")(x), "mean": model(x)})


def test_mixed_precision_is_returned_as_float32(tmp_path: Path) -> None:
    image = keras.Input((6, 6, 1), name="image")
    conv = keras.layers.Conv2D(4, 3, name="conv", dtype="mixed_bfloat16")
    model = keras.Model(image, conv(image))
    network = saved(model, tmp_path)
    x = np.random.default_rng(0).random((2, 6, 6, 1), dtype=np.float32)
    probe = network.probe(network.find(["conv"]), image_shape=(6, 6, 1), image_dtype="float32")
    assert (probe.outputs[0].dtype, probe.outputs[0].original_dtype) == ("float32", "bfloat16")
    np.testing.assert_array_equal(probe(x)[0], np.asarray(model(x)).astype(np.float32))


def test_operations_in_hdf5(tmp_path: Path, agree) -> None:
    """Keras 3 itself can't read what it wrote here; one of them is called as a layer is."""
    image = keras.Input((8, 8, 3))
    scaled = image / 0.5 - 1.0
    x = keras.layers.Conv2D(3, 3, padding="same", name="conv")(scaled)
    model = keras.Model(image, keras.layers.Add(name="sum")([x, image]))
    model.save(tmp_path / "model.h5")
    images = np.random.default_rng(0).random((3, 8, 8, 3), dtype=np.float32)
    network = load_network(str(tmp_path / "model.h5"))
    conv = model.get_layer("conv")(images / 0.5 - 1.0)
    # Keras counts the operations of a process: "subtract", "subtract_1" ...
    name = next(item.name for item in model.operations if item.name.startswith("subtract"))
    agree(network, images, {name: images / 0.5 - 1.0, "conv": conv, "sum": model(images)})


def _sum_and_layer(image: keras.KerasTensor) -> keras.KerasTensor:
    x = keras.layers.Conv2D(3, 3, padding="same")(image)
    return keras.layers.Add(name="last")([x + 3.0, image])


def _mean_of_axes(image: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.Dense(2, name="last")(keras.ops.mean(image * 2.0, axis=(1, 2)))


def _norm_of_axes(image: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.UnitNormalization(axis=[1, 2], name="last")(image)


def _difference(wanted: keras.KerasTensor, given: keras.KerasTensor) -> keras.KerasTensor:
    return wanted - given


def _models_inside(image: keras.KerasTensor) -> keras.KerasTensor:
    layers = keras.layers
    inner = keras.Sequential([keras.Input((8, 3)), layers.UnitNormalization(axis=[1, 2])])
    inner.compile(loss=_difference)
    inside = keras.Input((8, 8, 3))
    body = keras.Model(inside, layers.TimeDistributed(inner)(inside / 2.0))
    return layers.Flatten(name="last")(body(image))


def _scaled(image: keras.KerasTensor) -> keras.KerasTensor:
    from keras.src.applications.convnext import LayerScale

    return LayerScale(0.5, 3, name="last")(image)


@pytest.mark.parametrize(
    "build", [_sum_and_layer, _mean_of_axes, _norm_of_axes, _models_inside, _scaled]
)
def test_what_keras_3_misreads_in_hdf5(build, tmp_path: Path, agree) -> None:
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, build(image))
    model.save(tmp_path / "model.h5")
    images = np.random.default_rng(0).random((3, 8, 8, 3), dtype=np.float32)
    agree(load_network(str(tmp_path / "model.h5")), images, {"last": model(images)})


def test_functions_of_keras(tmp_path: Path, agree) -> None:
    """Convolutions in groups are one of Keras's own, which TensorFlow knows by name by then."""
    image = keras.Input((8, 8, 4))
    model = keras.Model(image, keras.layers.Conv2D(6, 3, groups=2, name="groups")(image))
    images = np.random.default_rng(0).random((3, 8, 8, 4), dtype=np.float32)
    agree(saved(model, tmp_path), images, {"groups": model(images)})


def test_the_ending_doesnt_matter(seed_file: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.bin"
    odd.write_bytes(seed_file.read_bytes())
    assert load_network(str(odd)).format == "keras"


def test_the_same_file_has_the_same_digest(seed_network: Network, seed_file: Path) -> None:
    import hashlib

    assert seed_network.sha256 == hashlib.sha256(seed_file.read_bytes()).hexdigest()


def test_no_file_names_what_models_are(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="there is no model") as caught:
        load_network(str(tmp_path / "model.keras"))
    assert "cnnfeat train" not in caught.value.hint  # any file, not the one that it makes
    assert "models are a .keras file" in caught.value.hint


def test_a_truncated_file_is_refused(seed_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.keras"
    broken.write_bytes(seed_file.read_bytes()[:-400])
    with pytest.raises(NetworkError, match=r"broken\.keras"):
        load_network(str(broken))


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_what_keras_warns_of_is_not_the_users_to_mend(ending: str, tmp_path: Path) -> None:
    """A mask that a layer drops is warned of each time the model is built."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        image = keras.Input((8, 8, 1), name="image")
        x = keras.layers.Masking(name="mask")(image)
        model = keras.Model(image, keras.layers.Conv2D(2, 3, name="c")(x))
        model.save(tmp_path / f"model{ending}")
    assert any("mask" in str(one.message) for one in heard)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        network = load_network(str(tmp_path / f"model{ending}"))
    assert [str(one.message) for one in heard] == []
    assert names(network) == ["image", "mask", "c"]
