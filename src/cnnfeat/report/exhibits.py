"""Filters and activation maps of a layer, ready to be shown side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.errors import CnnfeatError, DataError, NetworkError
from cnnfeat.features import FeatureFile
from cnnfeat.options import ProbeOptions
from cnnfeat.origin import recorded_probe
from cnnfeat.pictures import Pictures
from cnnfeat.records import LayerInfo

if TYPE_CHECKING:
    from cnnfeat.network import Network
    from cnnfeat.records import Array


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One layer: its filters, and what it answers to some images."""

    layer: str
    kernel: Array | None  # (height, width, input channels, filters)
    maps: dict[int, Array]  # by row: (height, width, channels)


def filters_of(network: Network, name: str, *, own: bool = False) -> tuple[LayerInfo, Array]:
    """Look a layer up and read its filters, or the nearest behind it unless they must be its own.

    Returns
    -------
    layer : LayerInfo
    kernel : ndarray
        (height, width, input channels, filters).

    Raises
    ------
    LayerLookupError
        If the name means no layer, or several.
    NetworkError
        If the layer has no filters; the hint names layers that have.
    """
    found = network.find([name])
    if len(found) != 1:
        raise NetworkError(
            f"{name!r} means {len(found)} layers: {', '.join(item.name for item in found)}",
            hint="name one",
        )
    layer = found[0]
    kernel = network.kernel(layer)
    if kernel is None or not kernel.is_filters:
        have = "none" if kernel is None else f"a matrix of {_times(kernel.weights.shape)} weights"
        raise NetworkError(
            f"layer {layer.name!r} has no filters over an image, but {have}",
            hint=f"layers with filters: {', '.join(_with_filters(network)) or 'none'}",
        )
    owner = network.kernel_owner(layer) if own else layer
    if owner.name != layer.name:
        raise NetworkError(
            f"layer {layer.name!r} has no filters of its own; those before it are of "
            f"{owner.name!r}",
            hint=f"--layer {owner.name}",
        )
    return layer, kernel.weights


def filters_or_none(network: Network | None, name: str) -> Array | None:
    """Read a layer's filters, where there is a network and the layer has some."""
    if network is None:
        return None
    try:
        return filters_of(network, name)[1]
    except CnnfeatError:
        return None


def _times(shape: Sequence[int]) -> str:
    return "×".join(f"{length:,}" for length in shape)


def _with_filters(network: Network, limit: int = 8) -> list[str]:
    return [layer.name for layer in network.layers if "Conv" in layer.kind][:limit]


def stored_maps(
    file: FeatureFile, name: str, *, split: str, rows: Sequence[int]
) -> dict[int, Array]:
    """Read activation maps of some rows from a feature file.

    Returns
    -------
    dict
        {row: (height, width, channels)}.

    Raises
    ------
    LayerLookupError
        If the file has no such layer.
    DataError
        If the layer has no maps: its rows have another rank than 3, or were pooled.
    """
    layer = file.find_layer(name)
    shape = file.layer(split, layer).shape[1:]
    if len(shape) != 3:
        raise DataError(
            f"{layer} has no activation maps: an image's features have shape "
            f"{tuple(shape)}, maps need (height, width, channels)",
            hint="layers with maps: " + (", ".join(layers_with_maps(file, split)) or "none"),
        )
    return dict(zip(rows, file.take(split, layer, rows), strict=True))


def layers_with_maps(file: FeatureFile, split: str) -> list[str]:
    """Name the layers of a feature file whose rows are (height, width, channels)."""
    return [layer for layer in file.layers if len(file.layer(split, layer).shape) == 4]


def computed_maps(
    network: Network,
    layer: LayerInfo,
    *,
    file: FeatureFile,
    pictures: Pictures,
    split: str,
    rows: Sequence[int],
) -> dict[int, Array]:
    """Run the network on some images, prepared as those of the feature file were.

    Raises
    ------
    NetworkError
        If the layer has no maps, or the images don't fit.
    """
    how = recorded_probe(file.provenance)
    first = pictures.one(split, rows[0])
    probe = network.probe(
        [layer],
        ProbeOptions(scale=how.scale, resize=how.resize, fit=how.fit),
        image_shape=first.shape,
        image_dtype=first.dtype.name,
        batch_size=1,
    )
    if len(probe.outputs[0].row_shape) != 3:
        raise NetworkError(
            f"{layer.name} has no activation maps: an image's features have shape "
            f"{probe.outputs[0].row_shape}, maps need (height, width, channels)"
        )
    maps: dict[int, Array] = {}
    for row, image in pictures.read(split, rows, target=probe.target):
        answer = probe(image[None])[0][0]
        first_axis = probe.outputs[0].axes[:1]
        maps[row] = np.moveaxis(answer, 0, 2) if first_axis == ("channel",) else answer
    return {row: maps[row] for row in rows if row in maps}


def make_exhibits(
    file: FeatureFile,
    *,
    network: Network | None,
    pictures: Pictures | None,
    split: str,
    rows: Sequence[int],
    limit: int = 3,
) -> list[Exhibit]:
    """Choose layers worth showing: the network's first convolution, then those in the file."""
    names = layers_with_maps(file, split)[:limit]
    exhibits = []
    first = _first_convolution(network) if network else None
    if network and first and first.name.replace("/", ".") not in names:
        maps = {}
        if pictures and rows:
            maps = computed_maps(
                network, first, file=file, pictures=pictures, split=split, rows=rows
            )
        exhibits.append(Exhibit(first.name, filters_or_none(network, first.name), maps))
    for name in names:
        stored = file.layer(split, name)
        kernel = filters_or_none(network, stored.layer)
        maps = {
            row: _channels_last(activation, kernel)
            for row, activation in stored_maps(file, name, split=split, rows=rows).items()
        }
        exhibits.append(Exhibit(name, kernel, maps))
    return exhibits


def _channels_last(activation: Array, kernel: Array | None) -> Array:
    """Turn (channels, height, width) round; the number of filters tells which it is."""
    if kernel is None or activation.shape[2] == kernel.shape[3] != activation.shape[0]:
        return activation
    return np.moveaxis(activation, 0, 2) if activation.shape[0] == kernel.shape[3] else activation


def _first_convolution(network: Network) -> LayerInfo | None:
    """Find the outermost layer that the first convolution belongs to."""
    for layer in network.layers:
        if layer.tensor.shape is None or len(layer.tensor.shape) != 4:
            continue
        kernel = network.kernel(layer)
        if kernel is not None and kernel.is_filters:
            return layer
    return None
