"""The probe: what it returns, what it refuses, threads, memory."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network import Network, load_network, runtime
from cnnfeat.network.probe import GraphProbe
from cnnfeat.options import ProbeOptions

v1 = tf.compat.v1


def probe_of(network: Network, *names: str, **options) -> GraphProbe:
    images = {"image_shape": (28, 28, 1)}
    images |= {key: options.pop(key) for key in ("image_shape", "image_dtype") if key in options}
    return network.probe(network.find(names), ProbeOptions(**options), **images)


def test_it_states_its_outputs(seed_network: Network) -> None:
    conv2, fc1, image = probe_of(seed_network, "conv2", "fc1", "image").outputs
    assert (conv2.layer, conv2.tensor, conv2.op) == ("conv2", "conv2/relu/Relu:0", "Relu")
    assert (conv2.row_shape, conv2.dtype, conv2.axes) == (
        (7, 7, 6), "float32", ("height", "width", "channel"),
    )  # fmt: skip
    assert (fc1.row_shape, fc1.axes, fc1.pooling) == ((16,), ("feature",), "none")
    assert (image.dtype, image.original_dtype) == ("uint8", "uint8")


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_any_number_of_images(n: int, seed_network: Network) -> None:
    (value,) = probe_of(seed_network, "conv2")(np.zeros((n, 28, 28, 1), np.uint8))
    assert value.shape == (n, 7, 7, 6)


def test_pooling(seed_network: Network, pixels) -> None:
    (whole,) = probe_of(seed_network, "conv2")(pixels)
    expected = {
        "avg": whole.mean((1, 2)),
        "max": whole.max((1, 2)),
        "flatten": whole.reshape(len(whole), -1),
    }
    for pooling, wanted in expected.items():
        probe = probe_of(seed_network, "conv2", pool=pooling)
        (value,) = probe(pixels)
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)
        assert (probe.outputs[0].pooling, probe.outputs[0].original_shape) == (pooling, (7, 7, 6))
    (fc1,) = probe_of(seed_network, "fc1")(pixels)
    np.testing.assert_array_equal(probe_of(seed_network, "fc1", pool="avg")(pixels)[0], fc1)
    with pytest.raises(NetworkError, match="--pool must be one of none, avg, max, flatten"):
        probe_of(seed_network, "conv2", pool="median")


def test_two_runs_are_equal_bit_by_bit(seed_file: Path, pixels) -> None:
    runs = [probe_of(load_network(str(seed_file)), "conv2", "fc1")(pixels) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("engine", ["tensorflow", "openvino"])
def test_threads_share_a_probe(engine: str, seed_network: Network) -> None:
    probe = probe_of(seed_network, "fc1", engine=engine)
    batches = np.random.default_rng(0).integers(0, 256, (16, 32, 28, 28, 1), dtype=np.uint8)
    alone = [probe(batch)[0] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: probe(batch)[0], batches))
    np.testing.assert_array_equal(alone, together)


def test_only_what_is_needed_is_computed(seed_network: Network) -> None:
    probe = probe_of(seed_network, "conv1/conv")
    assert {node.op for node in probe._wanted.part.node} & {"MaxPool", "Relu", "MatMul"} == set()


def test_one_function_is_compiled_once(seed_network: Network, pixels) -> None:
    probe = probe_of(seed_network, "fc1")
    for n in (1, 3, 5):
        probe(pixels[:n])
    assert len(probe._functions) == 1


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
        tf.errors.InternalError(None, None, "Failed call to cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY"),
        tf.errors.UnknownError(None, None, "CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=["TensorFlow", "CUDA", "cuDNN"],
)
def test_a_batch_too_large_for_the_memory_is_halved(
    seed_network: Network, caplog: pytest.LogCaptureFixture, monkeypatch, error
) -> None:
    probe = probe_of(seed_network, "fc1")
    monkeypatch.setattr(probe, "_limit", 512)  # it is kept for others
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28, 1), dtype=np.uint8)
    wanted = probe(images)[0]
    run = GraphProbe._run

    def tight(self: GraphProbe, batch: np.ndarray):
        if len(batch) > 3:
            raise error
        return run(self, batch)

    monkeypatch.setattr(GraphProbe, "_run", tight)
    logging.getLogger("cnnfeat").propagate = True
    with caplog.at_level(logging.WARNING, "cnnfeat"):
        np.testing.assert_allclose(probe(images)[0], wanted, rtol=1e-5, atol=1e-6)
    assert "memory ran out with 10 images at a time; going on with 5" in caplog.text
    monkeypatch.setattr(GraphProbe, "_run", lambda *_: tight(probe, np.zeros(9)))
    with pytest.raises(NetworkError, match="not enough memory for a single image"):
        probe(images[:1])


def test_a_call_that_finds_less_memory_later_raises_no_limit(
    seed_network: Network, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    """Two calls are under way at a time: the slower one comes to more than is left by then."""
    probe = probe_of(seed_network, "fc1")
    monkeypatch.setattr(probe, "_limit", 512)  # it is kept for others
    logging.getLogger("cnnfeat").propagate = True
    with caplog.at_level(logging.WARNING, "cnnfeat"):
        for n_images in (10, 5, 10):
            probe._halve(n_images)
    assert [record.args for record in caplog.records] == [(10, 5), (5, 2)]
    assert probe._limit == 2


def test_an_internal_error_that_is_none_of_memory_stays_one(
    seed_network: Network, monkeypatch, pixels
) -> None:
    def broken(self: GraphProbe, batch: np.ndarray):
        raise tf.errors.InternalError(None, None, "Blas GEMM launch failed")

    probe = probe_of(seed_network, "fc1")
    monkeypatch.setattr(GraphProbe, "_run", broken)
    with pytest.raises(NetworkError, match="Blas GEMM launch failed"):
        probe(pixels[:4])


def test_no_layer(seed_network: Network) -> None:
    with pytest.raises(NetworkError, match="no layer was asked for"):
        seed_network.probe((), image_shape=(28, 28, 1))


def test_images_of_another_size(seed_network: Network) -> None:
    with pytest.raises(NetworkError, match=r"\(32, 32, 1\) don't fit .* takes \(28, 28, 1\)"):
        probe_of(seed_network, "conv2", image_shape=(32, 32, 1))
    with pytest.raises(NetworkError, match=r"images of shape \(32, 32, 1\) came"):
        probe_of(seed_network, "conv2")(np.zeros((1, 32, 32, 1), np.uint8))


def graph_network(tf1, tmp_path: Path, output: str, build) -> Network:
    return load_network(str(tf1(build).freeze(tmp_path / "a.pb", outputs=[output])))


def test_rows_that_are_no_images(tf1, tmp_path: Path) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 4, 4, 1], name="images")
        tf.reshape(x, [-1, 4], name="patches")
        tf.transpose(x, [1, 0, 2, 3], name="turned")
        tf.reduce_mean(x, name="mean")

    graph = tf1(build)
    path = tmp_path / "a.pb"
    path.write_bytes(graph.graph.as_graph_def().SerializeToString())
    network = load_network(str(path))
    for name, shape in [("patches", r"\(8, 4\)"), ("turned", r"\(4, 2, 4, 1\)"), ("mean", r"\(\)")]:
        with pytest.raises(NetworkError, match=rf"isn't the images: .* give {shape}"):
            probe_of(network, name, image_shape=(4, 4, 1))


def test_rows_that_change_their_shape(tf1, tmp_path: Path) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 4, 4, 1], name="images")
        longest = tf.cast(tf.reduce_max(x), tf.int32)
        tf.tile(x[:, :, :, 0], [1, 1, tf.maximum(longest, 1)], name="tiled")

    network = graph_network(tf1, tmp_path, "tiled", build)
    probe = probe_of(network, "tiled", image_shape=(4, 4, 1), image_dtype="float32", scale="raw")
    rows = probe.outputs[0].row_shape[1]
    with pytest.raises(
        NetworkError, match=rf"changes its shape .* \(4, {rows}\) at first, \(4, 4\)"
    ):
        probe(np.ones((2, 4, 4, 1), np.float32))


def test_a_free_network_on_images_of_several_sizes(tmp_path: Path) -> None:
    image = keras.Input((None, None, 3), name="image")
    model = keras.Model(image, keras.layers.Conv2D(4, 3, name="conv")(image))
    model.save(tmp_path / "model.keras")
    network = load_network(str(tmp_path / "model.keras"))
    pooled = probe_of(network, "conv", image_shape=(9, 9, 3), pool="avg")
    for side in (9, 14):
        assert pooled(np.zeros((2, side, side, 3), np.uint8))[0].shape == (2, 4)
    whole = probe_of(network, "conv", image_shape=(9, 9, 3))
    with pytest.raises(NetworkError, match=r"\(7, 7, 4\) at first, \(12, 12, 4\)") as caught:
        whole(np.zeros((2, 14, 14, 3), np.uint8))
    assert "--pool avg" in caught.value.hint


@pytest.mark.parametrize("pool", ["avg", "max", "flatten"])
def test_images_of_many_sizes_take_one_function(rng, monkeypatch, pool: str) -> None:
    """As a folder of photographs has them; a function for each size would take a second each."""
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(image)
    if pool == "flatten":  # rows have one length
        x = keras.layers.GlobalMaxPooling2D(keepdims=True)(x)
    model = keras.Model(image, keras.layers.Identity(name="end")(x))
    network = load_network(model)
    compiled = []
    compile_one = GraphProbe._compile
    monkeypatch.setattr(
        GraphProbe,
        "_compile",
        lambda probe, shape: compiled.append(shape) or compile_one(probe, shape),
    )
    probe = probe_of(network, "end", image_shape=(9, 8, 3), pool=pool, scale="raw")
    for height, width in zip(range(9, 29), rng.permutation(20) + 8, strict=True):
        images = rng.integers(0, 256, (2, height, width, 3), np.uint8)
        plain = np.asarray(model(images.astype(np.float32)))
        expected = {
            "avg": plain.mean((1, 2)),
            "max": plain.max((1, 2)),
            "flatten": plain.reshape(2, -1),
        }[pool]
        np.testing.assert_allclose(probe(images)[0], expected, rtol=1e-4, atol=1e-4)
    assert compiled[-1] == (None, None, 3)
    assert len(compiled) <= 5


@pytest.mark.parametrize(
    ("dtype", "returned"),
    [
        (tf.float16, "float16"),
        (tf.bfloat16, "float32"),
        (tf.float64, "float32"),
        (tf.int32, "int32"),
        (tf.int64, "int64"),
        (tf.uint8, "uint8"),
        (tf.bool, "uint8"),
    ],
)
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_types_and_ranks(dtype, returned: str, rank: int, tf1, tmp_path: Path) -> None:
    shape = {1: [-1], 2: [-1, 4], 3: [-1, 2, 2], 4: [-1, 2, 2, 1], 5: [-1, 2, 1, 2, 1]}[rank]

    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 2, 2, 1], name="images")
        values = tf.cast(x, dtype)
        tf.reshape(values[:, 0, 0, 0] if rank == 1 else values, shape, name="out")

    network = graph_network(tf1, tmp_path, "out", build)
    images = np.array([0, 1, 2, 3], np.float32).reshape(1, 2, 2, 1)
    for pooling in ("none", "avg", "max", "flatten"):
        probe = probe_of(
            network,
            "out:0",
            image_shape=(2, 2, 1),
            image_dtype="float32",
            scale="raw",
            pool=pooling,
        )
        (value,) = probe(images)
        assert probe.outputs[0].original_dtype == dtype.name
        if pooling == "none":
            assert (value.dtype.name, probe.outputs[0].dtype) == (returned, returned)
            wanted = images.astype(bool) if dtype == tf.bool else images
            wanted = wanted[:, 0, 0, 0] if rank == 1 else wanted
            np.testing.assert_array_equal(value, wanted.reshape(shape))


def test_bfloat16_is_near_and_leaves_float32_alone(seed_network: Network, pixels) -> None:
    try:
        runtime.check_precision("bfloat16")
    except NetworkError:
        pytest.skip("this processor has no bfloat16")
    wanted = probe_of(seed_network, "conv2")(pixels)[0]
    value = probe_of(seed_network, "conv2", precision="bfloat16")(pixels)[0]
    assert value.dtype == np.float32
    difference = np.abs(value - wanted).max() / wanted.max()
    assert 0 < difference < 0.05
    np.testing.assert_array_equal(probe_of(seed_network, "conv2")(pixels)[0], wanted)


def test_bfloat16_is_refused_where_it_is_slow(seed_network: Network, monkeypatch) -> None:
    monkeypatch.setattr(runtime, "has_bfloat16", lambda: False)
    with pytest.raises(NetworkError, match="AVX512-BF16 or AMX"):
        probe_of(seed_network, "conv2", precision="bfloat16")
    with pytest.raises(NetworkError, match="must be one of float32, bfloat16"):
        probe_of(seed_network, "conv2", precision="float8")
