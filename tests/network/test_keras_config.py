"""What a Keras configuration may name: classes and functions that only compute, however spelled."""

from __future__ import annotations

from pathlib import Path

import keras
import pytest

from cnnfeat.errors import NetworkError, UntrustedModelError
from cnnfeat.network.imports import Imported
from cnnfeat.network.keras_config import check_config

PATH = Path("model.keras")
CODE = r"is code, not data"
OFF_LIST = r"not on the list of what only computes"
STRANGE = r"not Keras's own"
CALLS = r"not on the list of functions without side effects"


def named(class_name: object, module: object = "keras.layers", **more: object) -> dict:
    return {"class_name": class_name, "module": module, "config": {}, **more}


def function(name: object, module: str) -> dict:
    return {"class_name": "function", "module": module, "config": name, "registered_name": name}


def calling(layer: str, **config: object) -> dict:
    return {"class_name": layer, "config": config}


REFUSED = {
    "lambda": (named("Lambda"), CODE),
    "lambda-dotted": (named("layers.Lambda", "keras"), CODE),
    "lambda-by-its-module": (named("Lambda", "keras.src.layers.core.lambda_layer"), CODE),
    "lambda-of-keras-2": (calling("Lambda", function=["4wEAAAA", None, None]), CODE),
    "lambda-registered": (named("keras.layers>Lambda", None), CODE),
    "lambda-function": ({"class_name": "__lambda__", "config": {"value": "4wE="}}, CODE),
    "saved-model": (named("layers.TFSMLayer", "keras"), CODE),
    "saved-model-elsewhere": (named("TFSMLayer", "keras.src.export.tfsm_layer"), CODE),
    "torch": (named("TorchModuleWrapper", "keras.src.utils.torch_utils"), CODE),
    "jax": (named("JaxLayer"), CODE),
    "dotted": (named("layers.Dense", "keras"), OFF_LIST),
    "no-layer": (named("Layer"), OFF_LIST),
    "feature-space": (named("FeatureSpace", "keras.utils"), OFF_LIST),
    "data-set": (named("PyDataset", "keras.utils"), OFF_LIST),
    "download": (named("get_file", "keras.utils"), OFF_LIST),
    "download-dotted": (named("utils.get_file", "keras"), OFF_LIST),
    "application": (named("VGG16", "keras.applications"), OFF_LIST),
    "loop": (named("WhileLoop", "keras.src.ops.core"), OFF_LIST),
    "callback": (named("ModelCheckpoint", "keras.callbacks"), OFF_LIST),
    "module-of-another": (named("Dense", "os"), STRANGE),
    "module-like-keras": (named("Dense", "keras_evil.layers"), STRANGE),
    "module-no-module": (named("Dense", "keras.layers; import os"), STRANGE),
    "module-no-text": (named("Dense", ["keras"]), STRANGE),
    "name-no-text": (named(["Dense"]), STRANGE),
    "name-nothing": (named(None), STRANGE),
    "name-unknown": (named("Doubled", None), STRANGE),
    "registered-elsewhere": (named("Dense", registered_name="my>Dense"), STRANGE),
    "registered-in-that-module": (
        named("Dense", "keras.src.utils.data_utils", registered_name="get_file"),
        STRANGE,
    ),
    "registered-no-text": (named("Dense", registered_name=["Dense"]), STRANGE),
    "type-specification": ({"class_name": "__typespec__", "config": [], "module": "tf"}, STRANGE),
    "function-download": (function("get_file", "keras.utils"), OFF_LIST),
    "function-by-its-module": (function("get_file", "keras.src.utils.file_utils"), OFF_LIST),
    "function-dotted": (function("utils.get_file", "keras"), OFF_LIST),
    "function-data": (function("load_data", "keras.datasets.mnist"), OFF_LIST),
    "function-plot": (function("plot_bounding_box_gallery", "keras.visualization"), OFF_LIST),
    "function-load": (function("load_model", "keras.saving"), OFF_LIST),
    "function-config": (function("enable_unsafe_deserialization", "keras.config"), OFF_LIST),
    "function-application": (function("ResNet50", "keras.applications"), OFF_LIST),
    "function-that-builds": (function("deserialize", "keras.activations"), OFF_LIST),
    "function-of-functions": (function("map", "keras.ops"), OFF_LIST),
    "function-built-in": (function("eval", "builtins"), STRANGE),
    "function-no-text": (function(["relu"], "keras.activations"), STRANGE),
    "array-of-objects": (
        {"class_name": "__numpy__", "config": {"value": [1], "dtype": "object"}},
        "an array of 'object'",
    ),
    "array-of-long-texts": (
        {"class_name": "__tensor__", "config": {"value": [1], "dtype": "S2000000000"}},
        "an array of 'S2000000000'",
    ),
    "vocabulary": (
        {"class_name": "IntegerLookup", "config": {"vocabulary": "/etc/passwd"}},
        "would open the file '/etc/passwd'",
    ),
    "tensorflow-writes": (calling("TFOpLambda", function="io.write_file"), CALLS),
    "tensorflow-runs": (calling("TFOpLambda", function="py_function"), CALLS),
    "tensorflow-like-nn": (calling("SlicingOpLambda", function="nnx.write"), CALLS),
    "tensorflow-nothing": (calling("TFOpLambda"), CALLS),
    "tensorflow-no-text": (calling("TFOpLambda", function=["nn.relu"]), CALLS),
    "backend-prints": (calling("TFOpLambda", function="keras.backend.print_tensor"), CALLS),
    "operation-writes": (calling("TensorFlowOpLayer", node_def={"op": "WriteFile"}), CALLS),
    "operation-calls": (
        calling("TensorFlowOpLayer", node_def={"op": "Map", "attr": {"f": {"func": {}}}}),
        CALLS,
    ),
    "operation-packed": (calling("TensorFlowOpLayer", node_def="\n\0x"), CALLS),
    "class-method": (
        calling("ClassMethod", cls_symbol="data.Dataset", method_name="from_generator"),
        CALLS,
    ),
    "method": (calling("InstanceMethod", attr_name="__reduce_ex__"), CALLS),
    "attribute": (calling("InstanceProperty", attr_name="__class__"), CALLS),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("depth", ["alone", "inside"])
def test_what_does_more_than_compute_is_refused(name: str, depth: str) -> None:
    item, words = REFUSED[name]
    inside = {"class_name": "Activation", "module": "keras.layers", "config": {"x": [1, item]}}
    with pytest.raises(UntrustedModelError, match=words) as refused:
        check_config(item if depth == "alone" else {"layers": [inside]}, path=PATH)
    assert str(refused.value).startswith("model.keras: ")


@pytest.mark.parametrize(
    "item",
    [
        named("Dense"),
        named("Dense", registered_name=None),
        named("Dense", None),
        {"class_name": "Dense", "config": {}},
        named("Functional", "keras.src.models.functional", registered_name="Functional"),
        named("Functional", "keras.src.engine.functional", registered_name="Functional"),
        named("Sequential", "keras"),
        named("DTypePolicy", "keras", registered_name=None),
        named("GlorotUniform", "keras.initializers"),
        named("SeedGenerator", "keras.src.random.seed_generator"),
        named("Multiply", "keras.src.ops.numpy"),
        named("LayerScale", "keras.src.applications.convnext"),
        named("CustomScaleLayer", "keras.src.applications.inception_resnet_v2",
              registered_name="Custom>CustomScaleLayer"),
        function("relu", "builtins"),
        function("silu", "keras.activations"),
        function("mean_squared_error", "keras.losses"),
        function("sin", "keras.ops"),
        calling("TFOpLambda", function="math.truediv"),
        calling("TFOpLambda", function="__operators__.add"),
        calling("TFOpLambda", function="keras.backend.mean"),
        calling("TFOpLambda", function="compat.v1.nn.conv2d"),
        calling("SlicingOpLambda", function="__operators__.getitem"),
        calling("TensorFlowOpLayer", node_def={"name": "a", "op": "AddV2", "input": ["x", "y"]}),
        calling("InstanceMethod", attr_name="to_tensor"),
        calling("ClassMethod", cls_symbol="RaggedTensor", method_name="from_tensor"),
        {"class_name": "__tensor__", "config": {"value": [1.0], "dtype": "float32"}},
        {"class_name": "__keras_tensor__", "config": {"shape": [None, 3], "dtype": "float32"}},
        {"class_name": "StringLookup", "config": {"vocabulary": ["a", "b"]}},
        {"class_name": "TensorShape", "items": [None, 3]},
        {"class_name": "__tuple__", "items": [1, 2]},
    ],
    ids=range(30),
)  # fmt: skip
def test_what_networks_are_made_of_passes(item: dict) -> None:
    check_config({"class_name": "Sequential", "config": {"layers": [item]}}, path=PATH)


def test_every_layer_that_is_not_code_passes() -> None:
    """Keras's own, but for those that read what isn't images, or make other layers."""
    left_out = {"Lambda", "TFSMLayer", "JaxLayer", "FlaxLayer", "TorchModuleWrapper", "Layer",
                "MelSpectrogram", "STFTSpectrogram"}  # fmt: skip
    for name, kind in vars(keras.layers).items():
        if isinstance(kind, type) and issubclass(kind, keras.Layer) and name not in left_out:
            check_config(named(kind.__name__), path=PATH)


def test_code_that_the_user_named_passes() -> None:
    own = Imported({"Doubled": object, "double": object}, frozenset({"mine"}))
    check_config(named("Doubled", "elsewhere"), path=PATH, own=own)
    check_config(named("Anything", "mine.layers", registered_name="mine>A"), path=PATH, own=own)
    check_config(function("double", "elsewhere"), path=PATH, own=own)
    with pytest.raises(UntrustedModelError, match=CODE):
        check_config(named("Lambda", "mine.layers"), path=PATH, own=own)


def test_models_that_call_each_other_without_end() -> None:
    model: dict = named("Dense")
    for _ in range(6):
        model = {
            "class_name": "Functional",
            "config": {"layers": [model | {"inbound_nodes": [[]] * 20}]},
        }
    with pytest.raises(NetworkError, match="its layers would be called 67,368,421 times"):
        check_config(model, path=PATH)
