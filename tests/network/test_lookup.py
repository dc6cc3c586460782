"""From what a person types to a layer, without TensorFlow."""

from __future__ import annotations

import pytest

from cnnfeat.errors import LayerLookupError
from cnnfeat.network.lookup import Found, Names, find
from cnnfeat.patterns import match_names

NAMES = Names(
    layers=[
        "image",
        "conv1",
        "conv1/conv",
        "conv1/relu",
        "conv2",
        "conv2/conv",
        "conv2/relu",
        "fc1",
    ],
    tensors=[
        "conv1/conv/BiasAdd:0",
        "conv1/relu/Relu:0",
        "conv2/conv/Conv2D:0",
        "conv2/conv/BiasAdd:0",
        "conv2/relu/Relu:0",
        "fc1/split:0",
        "fc1/split:1",
    ],
    aliases={"seed_1/conv2_1/relu_1/Relu:0": "conv2/relu/Relu:0"},
    top=["image", "conv1", "conv2", "fc1"],
)


def found(query: str) -> list[str]:
    return [item.name for item in find(NAMES, query)]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("conv2", "conv2"),
        ("conv2/relu", "conv2/relu"),
        ("conv2/relu/Relu:0", "conv2/relu/Relu:0"),
        ("conv2/relu/Relu", "conv2/relu/Relu:0"),
        ("fc1/split:1", "fc1/split:1"),
        ("seed_1/conv2_1/relu_1/Relu:0", "conv2/relu/Relu:0"),
        ("seed_1/conv2_1/relu_1/Relu", "conv2/relu/Relu:0"),
        ("Conv2D", "conv2/conv/Conv2D:0"),
        ("Conv2", "conv2"),
        ("CONV2/RELU", "conv2/relu"),
        ("FC1", "fc1"),
        ("-1", "fc1"),
        ("-2", "conv2"),
        ("0", "image"),
    ],
)
def test_a_name_means_one_thing(query: str, name: str) -> None:
    assert found(query) == [name]


def test_a_tensor_is_told_from_a_layer() -> None:
    assert find(NAMES, "conv2") == (Found("conv2", True),)
    assert find(NAMES, "conv2/relu/Relu") == (Found("conv2/relu/Relu:0", False),)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("conv*", ["conv1", "conv2"]),
        ("conv?/relu", ["conv1/relu", "conv2/relu"]),
        ("conv[!1]", ["conv2"]),
        ("*/relu", ["conv1/relu", "conv2/relu"]),
        ("conv2/**", ["conv2/conv", "conv2/relu"]),
        ("CONV*", ["conv1", "conv2"]),
        ("fc1/spl*", ["fc1/split:0", "fc1/split:1"]),
    ],
)
def test_a_pattern_means_all_it_matches(pattern: str, names: list[str]) -> None:
    assert found(pattern) == names


def test_a_pattern_without_slashes_finds_what_lies_deeper() -> None:
    names = ["InceptionV1/Mixed_3b", "InceptionV1/Mixed_3b/concat", "InceptionV1/Conv2d_1a"]
    assert match_names(names, "Mixed_*") == ["InceptionV1/Mixed_3b"]


def test_an_ambiguous_name_lists_the_candidates() -> None:
    with pytest.raises(LayerLookupError, match=r"'relu' could be 'conv1/relu' or 'conv2/relu'"):
        find(NAMES, "relu")


def test_a_miss_offers_near_names_and_the_command() -> None:
    with pytest.raises(LayerLookupError, match="no layer or tensor is called 'covn2'") as caught:
        find(NAMES, "covn2")
    assert "did you mean 'conv2'" in caught.value.hint
    assert "`cnnfeat layers`" in caught.value.hint
    assert caught.value.exit_code == 4


def test_a_miss_with_nothing_near_says_what_there_is() -> None:
    with pytest.raises(LayerLookupError, match="it has 'image', 'conv1', 'conv2' and 'fc1'"):
        find(NAMES, "xyz")


def test_a_pattern_that_matches_nothing_is_a_miss() -> None:
    with pytest.raises(LayerLookupError, match=r"no layer matches the pattern 'pool\*'"):
        find(NAMES, "pool*")


@pytest.mark.parametrize("index", ["4", "-5"])
def test_an_index_out_of_range_says_the_range(index: str) -> None:
    with pytest.raises(LayerLookupError, match="the network has 4"):
        find(NAMES, index)


def test_a_layer_called_like_an_index_is_itself() -> None:
    names = Names(layers=["5", "1"])
    assert find(names, "1") == (Found("1", True),)


UNNAMED = Names(
    layers=["x", "Conv2D", "Relu", "Conv2D_1", "Relu_1", "MatMul"],
    tensors=["Conv2D:0", "Relu:0", "Conv2D_1:0", "Relu_1:0", "MatMul:0"],
    blocks={"conv1": "Conv2D → Relu", "conv2": "Conv2D_1 → Relu_1", "fc1": "MatMul"},
)


@pytest.mark.parametrize("query", ["conv2", "CONV2", "conv[2-9]"])
def test_a_block_that_nobody_named(query: str) -> None:
    assert find(UNNAMED, query) == (Found("conv2", is_layer=False, is_block=True),)


def test_a_layer_goes_before_a_block_of_its_name() -> None:
    names = Names(layers=["net/conv2"], blocks={"conv2": "Conv2D_1"})
    assert find(names, "conv2") == (Found("net/conv2", True),)


def test_a_miss_never_offers_another_number() -> None:
    with pytest.raises(LayerLookupError) as caught:
        find(UNNAMED, "conv3")
    assert "the blocks of the network are conv1 (Conv2D → Relu), conv2 (" in str(caught.value)
    assert "did you mean" not in caught.value.hint
    with pytest.raises(LayerLookupError, match="it has 'image', 'conv1', 'conv2' and 'fc1'"):
        find(NAMES, "conv3")
    keras = Names(layers=["conv2d", "conv2d_1", "pool"], places={"conv2": "it is 'conv2d_1'"})
    with pytest.raises(LayerLookupError) as caught:
        find(keras, "conv2")
    assert caught.value.hint.startswith("it is 'conv2d_1'; ")
    with pytest.raises(LayerLookupError) as caught:
        find(keras, "pool1")
    assert "did you mean 'pool'?" in caught.value.hint
