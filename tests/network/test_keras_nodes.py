"""Layers of Keras 2 that can never be called, which Keras 2 itself would try without end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tf_keras

from cnnfeat.errors import NetworkError
from cnnfeat.network.keras_nodes import check_order

L = tf_keras.layers
PATH = Path("model.h5")


def config() -> dict:
    """A model with models inside, each called twice, and tensors among arguments by name."""
    image = tf_keras.Input((8, 8, 1), name="image")
    inner = tf_keras.Input((8, 8, 1))
    parts = [
        tf_keras.Sequential([L.Conv2D(2, 1)], name="deferred"),
        tf_keras.Sequential([L.Conv2D(2, 1, input_shape=(8, 8, 1))], name="shaped"),
        tf_keras.Model(inner, L.Conv2D(2, 1)(inner), name="model"),
        L.Conv2D(2, 1, name="plain"),
    ]
    first = [part(image) for part in parts]
    second = [part(image + 1.0) for part in parts]
    mixed = L.Concatenate(name="mixed")([*first, *second])
    attended = L.MultiHeadAttention(1, 2, name="attended")(mixed, value=first[3])
    return json.loads(tf_keras.Model(image, attended).to_json())


def layer(document: dict, name: str) -> dict:
    return next(one for one in document["config"]["layers"] if one["name"] == name)


def test_what_keras_2_writes_can_be_called() -> None:
    document = config()
    check_order(document, path=PATH)
    inside = layer(document, "shaped")["config"]["layers"]
    del inside[0]  # as Keras 2.2 wrote it: the first layer says what goes into it
    inside[0]["config"]["batch_input_shape"] = [None, 8, 8, 1]
    check_order(document, path=PATH)
    assert tf_keras.models.model_from_json(json.dumps(document)).count_params()
    del layer(document, "deferred")["config"]["layers"][0]  # nothing says it: numbers begin at 0
    with pytest.raises(NetworkError, match=r"takes output \d of 'deferred'"):
        check_order(document, path=PATH)


@pytest.mark.parametrize(
    ("name", "source", "number"),
    [
        ("mixed", "plain", 2),
        ("mixed", "plain", -1),
        ("mixed", "plain", 0.5),
        ("mixed", "plain", "softmax"),
        ("mixed", "plain", None),
        ("mixed", "model", 0),
        ("mixed", "model", 3),
        ("mixed", "shaped", 0),
        ("mixed", "mixed", 0),
        ("mixed", "attended", 0),
        ("mixed", "nowhere", 0),
        ("plain", "mixed", 0),
    ],
)  # fmt: skip
def test_a_layer_that_takes_what_is_never_made(name: str, source: str, number: object) -> None:
    document = config()
    layer(document, name)["inbound_nodes"][0][0][:2] = [source, number]
    with pytest.raises(
        NetworkError, match=r"model\.h5: its layer '\w+' takes output .* is never made"
    ):
        check_order({"config": [document]}, path=PATH)


def test_an_argument_by_name_that_is_never_made() -> None:
    document = config()
    layer(document, "attended")["inbound_nodes"][0][0][3]["value"][1] = 7
    with pytest.raises(NetworkError, match="layer 'attended' takes output 7 of 'plain'"):
        check_order(document, path=PATH)


def test_other_forms_are_left_to_keras() -> None:
    check_order({"input_layers": [], "layers": [{"name": "a"}, 1, {"inbound_nodes": 3}]}, path=PATH)
    check_order({"input_layers": [], "layers": [{"inbound_nodes": [{"args": []}]}]}, path=PATH)
