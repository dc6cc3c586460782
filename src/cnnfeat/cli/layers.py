"""`cnnfeat layers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from cnnfeat.cli import completion, console, flags, manual
from cnnfeat.cli.option import option
from cnnfeat.cli.session import Settings, own_model, pass_settings, start_tensorflow
from cnnfeat.errors import LayerLookupError
from cnnfeat.options import ReadOptions
from cnnfeat.records import counted

if TYPE_CHECKING:
    from cnnfeat.network import Network
    from cnnfeat.records import Json, LayerInfo, NetworkBlock

SCREEN = 40  # layers shown without being asked for; of more, only the trunk
_BYTES = 4  # of a float32


@manual.command(
    "What to list",
    "cnnfeat layers artifacts/model.keras",
    "cnnfeat layers keras:MobileNetV2 --match 'block_1*'",
)
@click.argument("model", required=False, shell_complete=completion.files)
@option("--all", "every", is_flag=True, help="Every tensor that depends on the images.")
@option("--match", metavar="GLOB", help="Layers whose name matches, such as 'conv2_*'.")
@option("--kind", help="Layers of a kind, such as conv, pool or dense.")
@flags.reading
@flags.as_json
@flags.common
@pass_settings
def layers(
    settings: Settings,
    *,
    model: str | None,
    every: bool,
    match: str | None,
    kind: str | None,
    read: ReadOptions,
    trust_model: bool,
    as_json: bool,
) -> None:
    """List a network's layers: shapes, features for one image, and the tensor behind each name.

    Where nobody named the layers, blocks come first: 'conv2' is the end of the second convolution
    block, 'fc1' that of the first dense one. Of a long network the trunk is shown: layers that
    every path goes through. --match '**' shows all layers, --all every tensor. Any of the names
    goes with cnnfeat extract --layer.
    """
    model = model or own_model("`cnnfeat layers MODEL` lists those of another")
    start_tensorflow(settings)
    from cnnfeat.network import open_network

    network = open_network(model, read, trust=trust_model)
    chosen = _chosen(network, every=every, match=match, kind=kind, whole=as_json)
    n_images = _n_images(network)
    if as_json:
        console.show_json(_document(network, chosen, n_images))
    else:
        narrowed = every or match is not None or kind is not None
        console.show(_title(network))
        if network.blocks and not narrowed:
            console.show("")
            console.show_facts([(block.layer.name, str(block)) for block in network.blocks])
        _show(chosen, n_images)
        hidden = len(network.layers) - len(chosen)
        if hidden > 0 and not narrowed:
            console.say(
                f"between these: {counted(hidden, 'layer')}; --match '**' lists all, "
                "--kind conv one kind, --all every tensor"
            )


def _chosen(
    network: Network, *, every: bool, match: str | None, kind: str | None, whole: bool
) -> tuple[LayerInfo, ...]:
    if every:
        found = network.everything
    elif match is not None:
        found = network.find([match])
    elif kind is not None or whole or len(network.layers) <= SCREEN:
        found = network.layers
    else:
        outer = tuple(layer for layer in network.layers if not layer.path)
        # Ways that part at the images have no trunk: networks side by side.
        found = network.trunk if len(network.trunk) > 1 else outer
    if kind is None:
        return found
    words = {"dense": ("dense", "matmul")}.get(kind.lower(), (kind.lower(),))
    kept = tuple(item for item in found if any(word in item.kind.lower() for word in words))
    if not kept:
        kinds = ", ".join(sorted({layer.kind for layer in found}))
        raise LayerLookupError(f"no layer is of a kind {kind!r}", hint=f"there are: {kinds}")
    return kept


def _block(block: NetworkBlock) -> Json:
    return {
        "name": block.layer.name,
        "kind": block.what,
        "number": block.number,
        "operations": list(block.operations),
        "weights": [item.shape and list(item.shape) for item in block.weights],
        "tensor": block.layer.tensor.name,
        "shape": block.layer.tensor.shape and list(block.layer.tensor.shape),
        "features": block.layer.n_features,
    }


def _n_images(network: Network) -> int | None:
    """How many images the model's own data has, where that is known."""
    card = network.card
    return None if card is None else card.n_train + card.n_validation + card.n_test


def _show(layers: Sequence[LayerInfo], n_images: int | None) -> None:
    columns = ["layer", "kind", "output shape", "features"]
    if n_images is not None:
        columns.append(f"file, {n_images:,} images")
    columns.append("tensor")
    rows = [
        [
            ("  " * len(layer.path)) + layer.name,
            layer.kind,
            layer.tensor.shape_text,
            "?" if layer.n_features is None else f"{layer.n_features:,}",
            *([] if n_images is None else [_size(layer, n_images)]),
            layer.tensor.name,
        ]
        for layer in layers
    ]
    numeric = [name for name in columns if name == "features" or name.startswith("file")]
    console.show_table(columns, rows, numeric=numeric, spare=[*columns[4:-1], "kind", "tensor"])


def _title(network: Network) -> str:
    return (
        f"{network.path} ({network.format}): images go to {network.input.name!r}, {network.input}, "
        f"--scale {network.default_scale} ({network.scale_reason})"
        + (f"; its classes are {', '.join(network.classes)}" if network.classes else "")
    )


def _size(layer: LayerInfo, n_images: int) -> str:
    if layer.n_features is None:
        return "?"
    return console.size_text(layer.n_features * n_images * _BYTES)


def _document(network: Network, layers: Sequence[LayerInfo], n_images: int | None) -> Json:
    return {
        "model": network.path,
        "format": network.format,
        "sha256": network.sha256,
        "classes": list(network.classes),
        "input": {
            "name": network.input.name,
            "tensor": network.input.tensor,
            "dtype": network.input.dtype,
            "layout": network.input.layout,
            "image_shape": list(network.image_shape),
            "scale": network.default_scale,
        },
        "blocks": [_block(block) for block in network.blocks],
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "path": list(layer.path),
                "tensor": layer.tensor.name,
                "op": layer.tensor.op,
                "dtype": layer.tensor.dtype,
                "shape": None if layer.tensor.shape is None else list(layer.tensor.shape),
                "features": layer.n_features,
                "file_bytes": None
                if n_images is None or layer.n_features is None
                else layer.n_features * n_images * _BYTES,
            }
            for layer in layers
        ],
    }
