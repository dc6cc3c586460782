"""`cnnfeat export`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnnfeat.cli import completion, console, flags, manual
from cnnfeat.cli.option import Number, option
from cnnfeat.cli.places import FeaturePath, LocalPath
from cnnfeat.cli.session import Settings, artifact, pass_settings
from cnnfeat.errors import DataError

if TYPE_CHECKING:
    from cnnfeat.progress import Progress
    from cnnfeat.records import Source

_NAMES = {
    "npz": "features.npz",
    "npy": "features-npy",
    "csv": "features.csv",
    "parquet": "features.parquet",
    "mat": "features.mat",
    "h5ad": "features.h5ad",
    "projector": "projector",
}


@manual.command(
    "What to export",
    "cnnfeat export --to npz",
    "cnnfeat export features.h5 --to csv --layer fc1 --split test",
)
@click.argument(
    "features",
    metavar="[FEATURES]",
    type=FeaturePath(),
    default=lambda: artifact("features.h5"),
)
@option("--to", type=click.Choice(list(_NAMES)), required=True, help="The format.")
@option(
    "--layer",
    "layers",
    multiple=True,
    shell_complete=completion.layers_of_features,
    help="Only this layer; may be repeated.",
    metavar="NAME",
)
@option(
    "--split", "splits", multiple=True, help="Only this split; may be repeated.", metavar="NAME"
)
@option(
    "--limit",
    type=Number(1),
    help="Only the first rows of each split.",
)
@option("--images/--no-images", default=True, show_default=True, help="Pictures for the projector.")
@flags.data_dir
@option(
    "-o",
    "--output",
    "out",
    type=LocalPath(),
    show_default="artifacts/features.FORMAT",
    help="A file; for npy and projector a folder.",
)
@flags.overwrite
@flags.as_json
@flags.common
@pass_settings
def export(
    settings: Settings,
    *,
    features: Path,
    to: str,
    layers: tuple[str, ...],
    splits: tuple[str, ...],
    limit: int | None,
    images: bool,
    data_dir: Path | None,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write features in another program's format.

    \b
    npz        NumPy archive of arrays such as train/conv2, train/label, train/id
    npy        a folder of .npy files, for memory mapping
    csv        a line a row: split, id, label, class, then every feature
    parquet    a column a layer; needs pip install 'cnnfeat[parquet]'
    mat        MATLAB's version 5, arrays such as train_conv2, each below 2 GiB
    h5ad       AnnData: the first layer as X, others in obsm, labels in obs
    projector  files for TensorBoard's embedding projector, with pictures
    """
    from cnnfeat.export import export_features

    progress = console.progress(settings)
    with ExitStack() as stack:
        source = None
        if to == "projector" and images:
            source = stack.enter_context(_open_origin(features, data_dir, progress))
        result = export_features(
            features,
            to,
            out=out or artifact(_NAMES[to]),
            layers=layers,
            splits=splits,
            limit=limit,
            source=source,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        console.show_json(
            {
                "paths": [str(path) for path in result.paths],
                "rows": dict(result.rows),
                "layers": list(result.layers),
                "size_bytes": result.size_bytes,
            }
        )
        return
    for path in result.paths:
        console.show(f"{path} ({console.size_text(path.stat().st_size)})")


def _open_origin(features: Path, data_dir: Path | None, progress: Progress) -> Source:
    """Open the source of a feature file, or say how to go without."""
    from cnnfeat.features import FeatureFile
    from cnnfeat.report.evidence import open_origin

    with FeatureFile(features) as file:
        try:
            return open_origin(file, data_dir=data_dir, progress=progress)
        except DataError as error:
            raise DataError(str(error), hint="--no-images goes without pictures") from error
