"""In which order layers of Keras 2 can be called: each takes what others have given before.

Keras 2 tries layers in turn until all are called, without end where one of them never can be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from cnnfeat.errors import NetworkError

_CONSTANT = "_CONSTANT_VALUE"


def check_order(config: object, *, path: Path) -> None:
    """Refuse a configuration with a layer that can never be called.

    Raises
    ------
    NetworkError
        Naming the layer.
    """
    waiting = [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            if "input_layers" in item and isinstance(item.get("layers"), list):
                _check_model(item["layers"], path)
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _check_model(layers: list[object], path: Path) -> None:
    """Call layers as Keras 2 does, each node when what it takes has been given."""
    known = {str(item.get("name")): item for item in layers if isinstance(item, Mapping)}
    left = {name: _nodes(item) for name, item in known.items()}
    given = {name: _Outputs(item) for name, item in known.items()}
    while any(left.values()):
        n_left = sum(map(len, left.values()))
        for name, nodes in left.items():
            while nodes and not _lacks(nodes[0], given):
                nodes.pop(0)
                given[name].add()
        if sum(map(len, left.values())) == n_left:
            name, node = next((name, nodes[0]) for name, nodes in left.items() if nodes)
            source, number = _lacks(node, given)[0]
            raise NetworkError(
                f"{path}: its layer {name!r:.60} takes output {number!r:.20} of {source!r:.60}, "
                "which is never made"
            )


class _Outputs:
    """What a layer has given so far: the first is 0, of a model that was made with its input 1."""

    def __init__(self, layer: Mapping[str, object]) -> None:
        config = layer.get("config")
        self._is_input = layer.get("class_name") == "InputLayer"
        self._low = self._high = int(_says_its_input(_first_inside(layer)))
        built = isinstance(config, Mapping) and config.get("build_input_shape") is not None
        self._spare = int(built and not self._low)  # it may have been made with its input

    def add(self) -> None:
        self._high += 1 + self._spare
        self._spare = 0

    def __contains__(self, number: object) -> bool:
        return self._is_input or number in range(self._low, self._high)


def _first_inside(layer: object) -> object:
    config = layer.get("config") if isinstance(layer, Mapping) else None
    listed = config.get("layers") if isinstance(config, Mapping) else config
    return listed[0] if isinstance(listed, list) and listed else None


def _says_its_input(layer: object) -> bool:
    """Whether a model that begins with this layer is made with its input."""
    config = layer.get("config") if isinstance(layer, Mapping) else None
    if isinstance(config, Mapping) and config.get("batch_input_shape") is not None:
        return True
    of_input = isinstance(layer, Mapping) and layer.get("class_name") == "InputLayer"
    return of_input or (layer is not None and _says_its_input(_first_inside(layer)))


def _nodes(layer: Mapping[str, object]) -> list[object]:
    nodes = layer.get("inbound_nodes")
    return list(nodes) if isinstance(nodes, list) else []


def _lacks(node: object, given: Mapping[str, _Outputs]) -> list[tuple[str, object]]:
    """Which outputs a node takes that have not been made yet."""
    return [one for one in _taken(node) if one[0] not in given or one[1] not in given[one[0]]]


def _taken(node: object) -> Iterator[tuple[str, object]]:
    """Layers and numbers of the outputs that a node takes, as arguments by name too."""
    if isinstance(node, list) and len(node) in (3, 4) and isinstance(node[0], str):
        if node[0] != _CONSTANT:
            yield node[0], node[1]
        for argument in node[3:]:
            yield from _taken(argument)
    elif isinstance(node, list | Mapping):
        for inner in node if isinstance(node, list) else node.values():
            yield from _taken(inner)
