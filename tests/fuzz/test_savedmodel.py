"""SavedModels and checkpoints whose graphs, signatures, objects or weights were changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

SLOW = [pytest.mark.slow, pytest.mark.timeout(14_400)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Small models: of Keras 3 and 2, a module without signature, a graph of TensorFlow 1."""
    import warnings

    import keras
    import tensorflow as tf
    import tf_keras

    folder = tmp_path_factory.mktemp("models")
    for library in (keras, tf_keras):
        layers = library.layers
        image = library.Input((8, 8, 1), name="image")
        x = layers.BatchNormalization()(layers.Conv2D(2, 3, activation="relu")(image))
        model = library.Model(image, layers.Dense(3)(layers.Flatten()(x)))
        with warnings.catch_warnings(action="ignore"):
            model.export(str(folder / library.__name__))

    class Module(tf.Module):
        def __init__(self) -> None:
            self.kernel = tf.Variable(tf.ones([3, 3, 1, 2]))

        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1])])
        def __call__(self, x: tf.Tensor) -> tf.Tensor:
            x = tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y + 1), [0, x])[1]
            return tf.nn.relu(tf.nn.conv2d(x, self.kernel, 1, "SAME"))

    tf.saved_model.save(Module(), str(folder / "module"), signatures={})
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.float32, [None, 8, 8, 1], "x")
        kernel = v1.get_variable("kernel", [3, 3, 1, 2])
        tf.nn.relu(tf.nn.conv2d(images, kernel, 1, "SAME"), "out")
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(folder / "checkpoint" / "model.ckpt"))
    return {path.name: path for path in folder.iterdir()}


def change_model(random: Random, folder: Path, mutators: ModuleType, messages: ModuleType) -> None:
    """Change one file of a model; its message as such, more often than not."""
    from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

    path = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    graph = [*folder.glob("saved_model.pb"), *folder.glob("*.meta")][0]
    if random.random() < 0.6:
        path = graph
    if path != graph or random.random() < 0.2:
        path.write_bytes(mutators.change_bytes(random, path.read_bytes()))
        return
    if graph.suffix == ".meta":
        whole = meta = meta_graph_pb2.MetaGraphDef.FromString(graph.read_bytes())
    else:
        whole = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
        meta = whole.meta_graphs[0]
    how = random.random()
    if how < 0.6:
        meta.graph_def.CopyFrom(messages.change_graph(random, meta.graph_def))
    elif how < 0.8:
        _change_signature(random, meta, messages)
    else:
        _change_objects(random, meta, messages)
    graph.write_bytes(whole.SerializeToString())


def _change_signature(random: Random, meta: object, messages: ModuleType) -> None:
    if not meta.signature_def:
        meta.signature_def["serving_default"].inputs["x"].name = random.choice(messages.NAMES)
        return
    signature = meta.signature_def[random.choice(sorted(meta.signature_def))]
    for infos in (signature.inputs, signature.outputs):
        if infos and random.random() < 0.6:
            info = infos[random.choice(sorted(infos))]
            how = random.randrange(4)
            if how == 0:
                info.name = random.choice((*messages.NAMES, "x:9", "StatefulPartitionedCall:7"))
            elif how == 1:
                info.dtype = random.choice((0, 1, 3, 7, 20, 21, 99))
            elif how == 2:
                info.tensor_shape.dim.add(size=random.choice(messages.LENGTHS))
            else:
                del infos[random.choice(sorted(infos))]
    meta.saver_def.restore_op_name = random.choice((meta.saver_def.restore_op_name, "", "x"))


def _change_objects(random: Random, meta: object, messages: ModuleType) -> None:
    nodes = meta.object_graph_def.nodes
    if not len(nodes):
        return
    node = random.choice(nodes)
    how = random.randrange(4)
    if how == 0 and len(node.children):
        random.choice(node.children).node_id = random.choice((0, 1, 10**6, 2**31 - 1))
    elif how == 1:
        node.variable.dtype = random.choice((0, 1, 3, 99))
        node.variable.shape.dim.add(size=random.choice(messages.LENGTHS))
    elif how == 2:
        functions = meta.object_graph_def.concrete_functions
        for name in list(functions)[:2]:
            functions[name].bound_inputs.append(random.choice((0, 1, 10**6, 2**31 - 1)))
    else:
        del nodes[random.randrange(len(nodes)) :]


@pytest.mark.parametrize("n_inputs", [25, pytest.param(1_000, marks=SLOW)])
def test_changed_models_end_in_a_named_error(
    fuzz: Callable[..., dict[int, int]],
    mutators: ModuleType,
    load_module: Callable[[str], ModuleType],
    models: Mapping[str, Path],
    n_inputs: int,
) -> None:
    messages = load_module("fuzz/messages")

    def make(random: Random, folder: Path) -> list[list[str]]:
        name = random.choice(sorted(models))
        shutil.copytree(models[name], folder / "m")
        change_model(random, folder / "m", mutators, messages)
        limits = ["--data", "digits", "--limit", "4", "--timeout", "10", "--overwrite"]
        return [
            ["layers", "m", "--timeout", "10"],
            ["extract", "--model", "m", "--layer=-1", "-o", "f.h5", *limits],
        ]

    # What a graph computes may take half of the memory there is, of which a worker has 24 GiB.
    outcomes = fuzz(make, n_inputs, grown_mb=12 << 10)
    assert outcomes[4] and outcomes[0]
