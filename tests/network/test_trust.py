"""Files that would do more than compute: a sentinel never appears."""

from __future__ import annotations

import json
import logging
import os
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.errors import NetworkError, UntrustedModelError
from cnnfeat.network import load_network
from cnnfeat.network.trust import is_pure

v1 = tf.compat.v1


def probe_all(path: Path, *, trust: bool = False) -> None:
    network = load_network(str(path), trust=trust)
    for layer in network.layers:
        network.probe([layer], image_shape=(4, 4, 1))(np.ones((2, 4, 4, 1), np.uint8))


def writing(x: tf.Tensor, sentinel: Path) -> tf.Tensor:
    with tf.control_dependencies([tf.io.write_file(str(sentinel), "was here")]):
        return tf.identity(x)


def calling(x: tf.Tensor, sentinel: Path) -> tf.Tensor:
    return tf.ensure_shape(
        v1.py_func(lambda value: (sentinel.write_text("was here"), value)[1], [x], tf.float32),
        x.shape,
    )


def printing(x: tf.Tensor, sentinel: Path) -> tf.Tensor:
    with tf.control_dependencies([tf.print("was here", output_stream=f"file://{sentinel}")]):
        return tf.identity(x)


def reading(x: tf.Tensor, sentinel: Path) -> tf.Tensor:
    secret = tf.io.decode_raw(tf.io.read_file("/etc/hostname"), tf.uint8)
    return x + tf.cast(secret[0], tf.float32)


def shaping(x: tf.Tensor, sentinel: Path) -> tf.Tensor:
    """Reading a file to find out a shape happens while a graph is imported."""
    secret = tf.io.decode_raw(tf.io.read_file("/etc/hostname"), tf.uint8)
    return tf.reshape(x, [-1, 4, 4, tf.cast(secret[0], tf.int32) * 0 + 1])


CRAFTED = [
    (writing, "WriteFile"),
    (calling, "PyFunc"),
    (printing, "PrintV2"),
    (reading, "ReadFile"),
    (shaping, "ReadFile"),
]


@pytest.mark.parametrize(("harm", "operation"), CRAFTED)
def test_a_graph_with_side_effects_is_refused_by_name(
    harm: Callable[[tf.Tensor, Path], tf.Tensor], operation: str, tf1, tmp_path: Path
) -> None:
    sentinel = tmp_path / "sentinel"

    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 4, 4, 1], name="images")
        tf.nn.relu(harm(x, sentinel), name="layer/Relu")

    path = tf1(build).freeze(tmp_path / "a.pb", outputs=["layer/Relu"])
    with pytest.raises(UntrustedModelError, match=rf"{operation} \(node ") as caught:
        network = load_network(str(path))
        network.probe(network.find(["layer/Relu"]), image_shape=(4, 4, 1))
    assert caught.value.exit_code == 4
    assert "--trust-model" in caught.value.hint
    assert not sentinel.exists()


def test_a_trusted_graph_runs(tf1, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"

    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 4, 4, 1], name="images")
        tf.nn.relu(writing(x, sentinel), name="layer/Relu")

    path = tf1(build).freeze(tmp_path / "a.pb", outputs=["layer/Relu"])
    probe_all(path, trust=True)
    assert sentinel.read_text() == "was here"


@pytest.mark.parametrize("export", [False, True], ids=["function", "signature"])
def test_a_saved_model_that_writes(tmp_path: Path, export: bool) -> None:
    sentinel = tmp_path / "sentinel"

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 1], tf.float32)])
        def __call__(self, x):
            return tf.nn.relu(writing(x, sentinel), name="out")

    module = Module()
    folder = tmp_path / "saved"
    tf.saved_model.save(module, folder, signatures=module.__call__ if export else None)
    with pytest.raises(UntrustedModelError, match="WriteFile"):
        probe_all(folder)
    assert not sentinel.exists()


def test_an_initialiser_that_writes_never_runs(tf1, tmp_path: Path, agree) -> None:
    sentinel = tmp_path / "sentinel"

    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 4, 4, 1], name="images")
        tf.multiply(x, v1.get_variable("w", [1]), name="out")

    graph = tf1(build)
    with graph.graph.as_default():
        harm = tf.io.write_file(str(sentinel), "was here")
        builder = v1.saved_model.Builder(str(tmp_path / "saved"))
        info = v1.saved_model.build_tensor_info
        tensor = graph.graph.get_tensor_by_name
        signature = v1.saved_model.build_signature_def(
            {"images": info(tensor("images:0"))}, {"out": info(tensor("out:0"))}
        )
        builder.add_meta_graph_and_variables(
            graph.session, ["serve"], {"serving_default": signature}, main_op=harm
        )
        builder.save()
    x = np.random.default_rng(0).random((2, 4, 4, 1), dtype=np.float32)
    (value,) = graph.run(["out"], {"images": x})
    agree(load_network(str(tmp_path / "saved")), x, {"out": value})
    assert not sentinel.exists()


def keras_model(*layers: keras.layers.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((4, 4, 1), name="image"), *layers])


@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore")
def test_a_lambda_is_refused_with_what_to_do(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{ending}"
    keras_model(keras.layers.Lambda(lambda x: x * 2, name="evil")).save(path)
    with pytest.raises(UntrustedModelError, match="the layer Lambda 'evil' is code") as caught:
        load_network(str(path))
    assert "model.export" in caught.value.hint
    with pytest.raises(UntrustedModelError):
        load_network(str(path), trust=True)


class Stranger(keras.layers.Layer):
    def call(self, x):
        return x + 1


@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore")
def test_a_class_of_somebodys_own_is_refused(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{ending}"
    keras_model(Stranger(name="odd")).save(path)
    with pytest.raises(UntrustedModelError, match=r"not Keras's own: .*Stranger"):
        load_network(str(path))


def tampered(path: Path, change: Callable[[dict], None], source: Path) -> Path:
    """Copy a .keras file with another configuration."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            new.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module": "os", "class_name": "system"}, "not Keras's own: os.system"),
        (
            {"module": "builtins", "class_name": "function", "config": "eval"},
            "not Keras's own: builtins.eval",
        ),
        (
            {
                "module": "keras.src.utils.file_utils",
                "class_name": "function",
                "config": "get_file",
            },
            "file_utils.get_file",
        ),
        ({"module": "keras.layers", "class_name": "TFSMLayer", "config": {}}, "TFSMLayer"),
        (
            {
                "module": "keras.layers",
                "class_name": "StringLookup",
                "config": {"vocabulary": "/etc/passwd"},
            },
            "would open the file '/etc/passwd'",
        ),
        ({"class_name": "TFOpLambda", "config": {"function": "io.write_file"}}, "tf.io.write_file"),
    ],
)
def test_a_tampered_configuration_is_refused(
    change: dict, message: str, seed_file: Path, tmp_path: Path
) -> None:
    def put(config: dict) -> None:
        config["config"]["layers"][1]["config"]["extra"] = {"registered_name": None, **change}

    with pytest.raises(UntrustedModelError, match=message):
        load_network(str(tampered(tmp_path / "evil.keras", put, seed_file)))


def test_a_configuration_that_would_fill_the_memory(seed_file: Path, tmp_path: Path) -> None:
    def grow(config: dict) -> None:
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "Dense":
                layer["config"]["units"] = 10**9

    with pytest.raises(UntrustedModelError, match="weights, and the file holds"):
        load_network(str(tampered(tmp_path / "bomb.keras", grow, seed_file)))


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil", "..\\evil.txt"])
def test_an_archive_member_outside_the_archive(name: str, seed_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "evil.keras"
    path.write_bytes(seed_file.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "was here")
    with pytest.raises(UntrustedModelError, match="lies outside the archive"):
        load_network(str(path))
    assert not (tmp_path.parent / "evil.txt").exists()


def test_an_archive_member_that_is_a_link(seed_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "evil.keras"
    path.write_bytes(seed_file.read_bytes())
    info = zipfile.ZipInfo("assets/link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UntrustedModelError, match="lies outside the archive"):
        load_network(str(path))


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ((8, b"\x63\0"), r"compressed in a way \(99\) that can't be read"),
        ((6, b"\1\0"), "is encrypted"),
        ((14, b"\0\0\0\0"), "damaged: Bad CRC-32"),
    ],
    ids=["unknown-compression", "encrypted", "checksum"],
)
@pytest.mark.parametrize("name", ["model.keras", "packed.zip"])
def test_an_archive_that_cannot_be_read(
    name: str, field: tuple[int, bytes], words: str, seed_file: Path, tmp_path: Path
) -> None:
    path, (place, value) = tmp_path / name, field
    with zipfile.ZipFile(path, "w") as archive:
        if name == "packed.zip":
            archive.write(seed_file, "model.keras")
    data = bytearray(path.read_bytes() if name == "packed.zip" else seed_file.read_bytes())
    listed = data.rfind(b"PK\x01\x02")
    header = int.from_bytes(data[listed + 42 : listed + 46], "little")
    data[header + place : header + place + len(value)] = value
    data[listed + place + 2 : listed + place + 2 + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(NetworkError, match=words) as refused:
        load_network(str(path))
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("n_flips", [15, pytest.param(60, marks=pytest.mark.slow)])
def test_every_bit_of_a_network_counts(n_flips: int, seed_file: Path, tmp_path: Path) -> None:
    data, path = seed_file.read_bytes(), tmp_path / "model.keras"
    draw = random.Random(n_flips)
    for number in range(n_flips):
        place = (len(data) - 1) * (2 * number + 1) // (2 * n_flips)
        flipped = data[place] ^ 1 << draw.randrange(8)
        path.write_bytes(data[:place] + bytes([flipped]) + data[place + 1 :])
        with pytest.raises(NetworkError, match=r"model\.keras"):
            load_network(str(path))


def test_a_keras_archive_without_weights(seed_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.keras"
    with zipfile.ZipFile(seed_file) as old, zipfile.ZipFile(path, "w") as new:
        new.writestr("config.json", old.read("config.json"))
        new.writestr("model.weights.npz", b"")
    with pytest.raises(NetworkError, match=r"it has no model\.weights\.h5"):
        load_network(str(path))


def test_a_zip_bomb(seed_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.keras"
    path.write_bytes(seed_file.read_bytes())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/zeros", bytes(200 << 20))
    with pytest.raises(UntrustedModelError, match="would unpack from"):
        load_network(str(path))


@pytest.fixture
def h5_file(seed_model: keras.Model, tmp_path: Path) -> Path:
    path = tmp_path / "model.h5"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras's own, about the format's age
        seed_model.save(path)
    return path


def weights_of(file: h5py.File) -> tuple[h5py.Group, str]:
    found: list[h5py.Dataset] = []
    file.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    return found[0].parent, found[0].name.rsplit("/", 1)[-1]


def test_an_external_link(h5_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones(3)
    with h5py.File(h5_file, "a") as file:
        group, name = weights_of(file)
        del group[name]
        group[name] = h5py.ExternalLink(str(other), "/secret")
    with pytest.raises(UntrustedModelError, match="is an external link to"):
        load_network(str(h5_file))


def test_external_storage(h5_file: Path) -> None:
    with h5py.File(h5_file, "a") as file:
        file.create_dataset("x", (8,), "u1", external=[("/etc/hostname", 0, 8)])
    with pytest.raises(UntrustedModelError, match="keeps its data in other files"):
        load_network(str(h5_file))


def test_a_shape_bomb(h5_file: Path) -> None:
    with h5py.File(h5_file, "a") as file:
        group, name = weights_of(file)
        del group[name]
        group.create_dataset(name, (10**6, 10**6), "f4", chunks=(100, 100))
    with pytest.raises(UntrustedModelError, match="declares"):
        load_network(str(h5_file))


def test_layers_larger_than_the_file_of_an_old_model(h5_file: Path) -> None:
    with h5py.File(h5_file, "a") as file:
        text = file.attrs["model_config"]
        file.attrs["model_config"] = text.replace('"units": 16', '"units": 1000000000')
    with pytest.raises(UntrustedModelError, match="weights, and the file holds"):
        load_network(str(h5_file))


def test_groups_a_thousand_levels_deep(h5_file: Path) -> None:
    with h5py.File(h5_file, "a") as file:
        deepest = file.create_group("a/" * 3000)
        deepest["more"] = h5py.SoftLink("/elsewhere")
    with pytest.raises(UntrustedModelError, match="is a link to '/elsewhere'"):
        load_network(str(h5_file))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_reported(
    bad: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = keras_model(keras.layers.Conv2D(2, 3, name="conv"))
    kernel = model.get_layer("conv").kernel
    kernel.assign(np.full(kernel.shape, bad))
    path = tmp_path / "bad.keras"
    model.save(path)
    logging.getLogger("cnnfeat").propagate = True
    with caplog.at_level(logging.WARNING, "cnnfeat"):
        load_network(str(path))
    assert "hold NaN or infinity" in caplog.text


def test_a_named_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.keras")
    with pytest.raises(NetworkError, match="is a pipe, not a regular file"):
        load_network(str(tmp_path / "model.keras"))


@pytest.mark.parametrize(
    "operation",
    [
        "WriteFile", "ReadFile", "MatchingFiles", "SaveV2", "RestoreV2", "MergeV2Checkpoints",
        "PyFunc", "PyFuncStateless", "EagerPyFunc", "Print", "PrintV2", "ImageSummary",
        "WriteSummary", "TFRecordReaderV2", "WholeFileReaderV2", "ReaderReadV2", "IteratorV2",
        "RpcCall", "Send", "_Recv", "_HostSend", "RemoteCall", "LookupTableImportV2",
        "InitializeTableFromTextFileV2", "HashTableV2", "LoadDataset", "TextLineDataset",
        "SaveDataset", "DebugIdentity", "DebugIdentityV2", "AssignVariableOp", "ScatterUpdate",
        "SparseAccumulatorTakeGradient", "StackPushV2", "Stage", "MapStage", "ShardedFilename",
        "XlaHostCompute", "DatasetToGraph", "GetSessionHandle", "FixedLengthRecordDataset",
        "SummaryWriter", "CreateSummaryFileWriter", "DeleteFile", "FileSystemSetConfiguration",
        "ConfigureDistributedTPU", "TPUExecute", "AudioSummary", "DestroyResourceOp",
    ],
)  # fmt: skip
def test_operations_with_side_effects_are_not_on_the_list(operation: str) -> None:
    assert not is_pure(operation)


@pytest.mark.parametrize(
    "operation",
    [
        "Conv2D", "DepthwiseConv2dNative", "FusedBatchNormV3", "MatMul", "BiasAdd", "Relu6",
        "MaxPool", "AvgPool", "Softmax", "ConcatV2", "Reshape", "Pad", "PadV2", "ResizeBilinear",
        "StatelessWhile", "While", "PartitionedCall", "Switch", "Merge", "ReadVariableOp",
        "TensorListStack", "QuantizedConv2D", "FakeQuantWithMinMaxVars", "LRN", "Erf", "Einsum",
        "SpaceToBatchND", "ResizeNearestNeighbor", "Rsqrt", "SquaredDifference",
        "NonMaxSuppressionV3", "TensorArrayV3",
    ],
)  # fmt: skip
def test_operations_of_networks_are_on_the_list(operation: str) -> None:
    assert is_pure(operation)
