"""`cnnfeat info` and `cnnfeat verify`."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnnfeat.cli import console, flags, manual
from cnnfeat.cli.places import FeaturePath
from cnnfeat.cli.session import Settings, artifact, pass_settings
from cnnfeat.errors import FeatureFileError

if TYPE_CHECKING:
    from cnnfeat.features import StoredLayer

logger = logging.getLogger("cnnfeat")


def _feature_file() -> Path:
    return artifact("features.h5")


@manual.command(
    "What to say",
    "cnnfeat info",
    "cnnfeat info artifacts/model.keras",
)
@click.argument("path", metavar="[FILE]", type=FeaturePath(), default=_feature_file)
@flags.as_json
@flags.common
def info(path: Path, *, as_json: bool) -> None:
    """Say what FILE is and where it came from.

    Feature files, networks (.keras), SVMs (.skops) and the JSON files beside them are told apart
    by what is in them. FILE is artifacts/features.h5 if none is given.
    """
    from cnnfeat.artifact import describe_file, summary
    from cnnfeat.transfer import name_of

    found = dataclasses.replace(describe_file(path), path=name_of(path))
    if as_json:
        console.show_json(dataclasses.asdict(found))
        return
    console.show_facts(summary(found))
    if found.layers:
        _show_layers({split: list(layers) for split, layers in found.layers.items()})


def _show_layers(layers: dict[str, list[StoredLayer]]) -> None:
    columns = ("split", "layer", "shape", "type", "pooling", "size", "tensor")
    rows = [
        (
            split,
            layer.layer,
            " × ".join(f"{length:,}" for length in layer.shape),
            layer.dtype,
            layer.pooling,
            console.size_text(layer.size_bytes),
            layer.tensor,
        )
        for split, items in layers.items()
        for layer in items
    ]
    spare = ("pooling", "type", "tensor", "size")
    console.show_table(columns, rows, numeric=("size",), spare=spare)


@manual.command(
    "What to check",
    "cnnfeat verify",
    "cnnfeat verify features.h5 --json",
)
@click.argument("path", metavar="[FILE]", type=FeaturePath(), default=_feature_file)
@flags.as_json
@flags.common
@pass_settings
def verify(settings: Settings, *, path: Path, as_json: bool) -> None:
    """Check every block of a feature file against its checksum.

    Features, labels, parts, groups and ids are checked; damage is named by split, layer and block,
    and the exit code is then 3. Rows that were written with NaN or infinite numbers are told. FILE
    is artifacts/features.h5 if none is given.
    """
    from cnnfeat.features import verify_file
    from cnnfeat.transfer import name_of

    found, name = verify_file(path, progress=console.progress(settings)), name_of(path)
    if as_json:
        console.show_json(dataclasses.asdict(found))
    else:
        for damage in found.damages:
            console.show(damage.message)
    for rows in found.unusable:
        logger.warning("%s: %s", name, rows)
    if found.damages:
        again = "make the file again with cnnfeat extract --overwrite"
        if path.is_dir():
            again = (
                "make those shards again with cnnfeat extract --shard, then seal the folder with "
                "cnnfeat merge FOLDER --manifest"
            )
        raise FeatureFileError(
            f"{name}: {len(found.damages):,} of {found.n_blocks:,} blocks are damaged", hint=again
        )
    if not as_json:
        console.show(
            f"{name}: all {found.n_blocks:,} blocks hold ({console.size_text(found.size_bytes)})"
        )
