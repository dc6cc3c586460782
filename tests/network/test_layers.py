"""Layer names: those of nodes without what tracing added, pure text."""

from __future__ import annotations

from cnnfeat.network.layers import clean_names


def cleaned(names: list[str], weights: list[str] | None = None) -> list[str]:
    return list(clean_names(names, weights or []).values())


def test_calls_and_the_models_own_scope_go() -> None:
    names = [
        "StatefulPartitionedCall/StatefulPartitionedCall/model/conv1/Relu",
        "StatefulPartitionedCall/StatefulPartitionedCall/model/fc1/MatMul",
    ]
    assert cleaned(names) == ["conv1/Relu", "fc1/MatMul"]


def test_a_scope_the_author_gave_stays() -> None:
    names = ["MobilenetV1/Conv2d_0/Relu6", "MobilenetV1/Logits/BiasAdd"]
    assert cleaned(names) == names
    names = ["import/conv1/Relu", "import/fc1/MatMul"]
    assert cleaned(names) == ["conv1/Relu", "fc1/MatMul"]


def test_keras_3_numbers_go_where_the_weights_say_so() -> None:
    names = [
        "StatefulPartitionedCall/net_1/conv_1/BiasAdd",
        "StatefulPartitionedCall/net_1/conv_1_1/BiasAdd",
        "StatefulPartitionedCall/net_1/norm_1/batchnorm/add_1",
    ]
    weights = ["conv/kernel", "conv_1/kernel", "norm/gamma"]
    assert cleaned(names, weights) == ["conv/BiasAdd", "conv_1/BiasAdd", "norm/batchnorm/add_1"]


def test_keras_3_numbers_go_where_scopes_inside_a_layer_have_none() -> None:
    names = [
        "StatefulPartitionedCall/net_1/flip_1/stateless_random_uniform/Mul",
        "StatefulPartitionedCall/net_1/conv_1/BiasAdd",
        "StatefulPartitionedCall/net_1/mlp_1/Gelu/mul",
    ]
    assert cleaned(names, ["conv/kernel", "mlp/kernel"]) == [
        "flip/stateless_random_uniform/Mul",
        "conv/BiasAdd",
        "mlp/Gelu/mul",
    ]


def test_numbers_stay_where_they_are_the_authors() -> None:
    names = [
        "StatefulPartitionedCall/model_2/conv2d_4/BiasAdd",
        "StatefulPartitionedCall/model_2/dense_7/BiasAdd",
    ]
    weights = ["conv2d_4/kernel", "dense_7/kernel"]
    assert cleaned(names, weights) == ["conv2d_4/BiasAdd", "dense_7/BiasAdd"]


def test_a_keras_3_layer_called_twice() -> None:
    names = [f"StatefulPartitionedCall/net_1/{part}/Relu" for part in ("a_1", "a_2", "b_1")]
    assert cleaned(names, ["a/kernel", "b/kernel"]) == ["a/Relu", "a@2/Relu", "b/Relu"]


def test_a_keras_2_layer_called_twice() -> None:
    scope = "StatefulPartitionedCall/model"
    names = [
        f"{scope}/embed/conv/Conv2D",
        f"{scope}/embed/conv/BiasAdd",
        f"{scope}/embed/relu/Relu",
        f"{scope}/embed/conv/Conv2D_1",
        f"{scope}/embed/conv/BiasAdd_1",
        f"{scope}/embed/relu/Relu_1",
        f"{scope}/out/BiasAdd",
        f"{scope}/out/BiasAdd_1_of_mine",
    ]
    assert cleaned(names) == [
        "embed/conv/Conv2D", "embed/conv/BiasAdd", "embed/relu/Relu",
        "embed@2/conv/Conv2D_1", "embed@2/conv/BiasAdd_1", "embed@2/relu/Relu_1",
        "out/BiasAdd", "out/BiasAdd_1_of_mine",
    ]  # fmt: skip
