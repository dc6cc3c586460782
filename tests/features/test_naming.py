"""What a text means among the layers of feature files."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from cnnfeat.errors import LayerLookupError, UsageError
from cnnfeat.features.naming import JoinedLayer, LayerPart, find_joined, find_stored


@dataclass
class Holder:
    """Layers by their stored names; each one's own name has slashes for dots."""

    stored: tuple[str, ...]
    asked: dict[str, str] = field(default_factory=dict)  # what was typed for a layer
    spelled: dict[str, tuple[str, str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.spelled = {
            name: (own := name.replace(".", "/"), f"{own}/Relu:0", self.asked.get(name, ""))
            for name in self.stored
        }

    def find_layer(self, name: str) -> str:
        found = find_stored(name, self.spelled)
        if found is None:
            raise LayerLookupError(f"no {name}")
        return found


FILE = Holder(("conv1", "conv2", "fc1", "seed0.fc1", "seed1.fc1", "seed1.conv1", "x+y"))
OTHER = Holder(("fc1", "fc2"))


ASKED = Holder(("a", "fc1", "x.relu"), {"a": "fc1", "fc1": "-2", "x.relu": "block/relu"})


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("-2", "fc1"),
        ("block/relu", "x.relu"),
        ("block.relu", "x.relu"),
        ("fc1", "fc1"),  # its own name goes before what another one was asked for by
        ("", None),
        ("-3", None),
    ],
)
def test_what_was_typed_for_a_layer_means_it(text, stored):
    assert find_stored(text, ASKED.spelled) == stored


def parts(found: JoinedLayer) -> list[tuple[int, str]]:
    return [(part.file, part.layer) for part in found.parts]


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("fc1", "fc1", ["fc1"]),
        ("fc1/Relu", "fc1", ["fc1"]),
        ("conv2+fc1", "conv2+fc1", ["conv2", "fc1"]),
        ("fc1+CONV2", "fc1+conv2", ["fc1", "conv2"]),
        ("seed1/fc1+conv1", "seed1.fc1+conv1", ["seed1.fc1", "conv1"]),
        ("seed*/fc1", "seed*/fc1", ["seed0.fc1", "seed1.fc1"]),
        ("seed1/*", "seed1/*", ["seed1.fc1", "seed1.conv1"]),
        ("conv*+fc1", "conv*+fc1", ["conv1", "conv2", "fc1"]),
        ("seed0/f*", "seed0.fc1", ["seed0.fc1"]),
        ("x+y", "x+y", ["x+y"]),
        ("x+y+fc1", "x+y+fc1", ["x+y", "fc1"]),
    ],
)
def test_parts_of_one_file(text, name, expected):
    found = find_joined(text, [FILE])
    assert parts(found) == [(0, layer) for layer in expected]
    assert found.name == name
    assert parts(find_joined(found.name, [FILE])) == parts(found)  # it is found again by its name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fc1", [(0, "fc1"), (1, "fc1")]),
        ("conv2+fc2", [(0, "conv2"), (1, "fc2")]),
        ("conv*+fc1", [(0, "conv1"), (0, "conv2"), (1, "fc1")]),
        ("fc*", [(0, "fc1"), (1, "fc1"), (1, "fc2")]),
    ],
)
def test_parts_of_two_files(text, expected):
    found = find_joined(text, [FILE, OTHER])
    assert parts(found) == expected
    assert parts(find_joined(found.name, [FILE, OTHER])) == expected


def test_each_file_has_its_part():
    with pytest.raises(UsageError, match="names 3 layers, and there are 2 feature files") as caught:
        find_joined("conv2+fc1+fc2", [FILE, OTHER])
    assert "one layer that all of them have" in caught.value.hint


@pytest.mark.parametrize("text", ["conv2+fc9", "fc9", "no*+fc1"])
def test_a_part_that_means_nothing_is_refused(text):
    with pytest.raises(LayerLookupError, match=r"no (fc9|no\*)"):
        find_joined(text, [FILE])


@pytest.mark.parametrize("text", ["conv2+", "+conv2", "conv2++fc1"])
def test_a_plus_stands_between_names(text):
    with pytest.raises(UsageError, match=r"a layer's name is missing beside a \+"):
        find_joined(text, [FILE])


@pytest.mark.parametrize("text", ["fc1+fc1", "seed*/fc1+seed0/fc1"])
def test_a_layer_stands_once(text):
    with pytest.raises(UsageError, match=r"has '(seed0\.)?fc1' twice, of one file"):
        find_joined(text, [FILE])


def test_a_name_longer_than_a_record_holds_is_told_by_its_number():
    long = Holder(tuple(f"{letter * 2500}" for letter in "ab"))
    found = find_joined("+".join(long.stored), [long])
    assert found == JoinedLayer("2 layers", tuple(LayerPart(0, name) for name in long.stored))
