"""`cnnfeat merge`."""

from __future__ import annotations

from pathlib import Path

import click

from cnnfeat.cli import console, flags
from cnnfeat.cli.places import LocalPath
from cnnfeat.cli.session import Settings, pass_settings, stop_on_signals
from cnnfeat.errors import Interrupted


@click.command()
@click.argument("folder", type=LocalPath())
@flags.output("features.h5", help="The feature file.")
@click.option(
    "--manifest",
    "seals",
    is_flag=True,
    help="Write no file: only manifest.json into FOLDER, which is then read as one.",
)
@flags.overwrite
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@flags.as_json
@flags.common
@pass_settings
def merge(
    settings: Settings,
    *,
    folder: Path,
    out: Path,
    seals: bool,
    overwrite: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Make one feature file of the shards in FOLDER, or seal them as a set.

    All shards must be there and made with the same settings. The file is the one that a single run
    would have made. A sealed folder is taken by every command that takes a feature file.
    """
    from cnnfeat.features import FeatureFile
    from cnnfeat.features.merging import merge_shards, seal_set

    progress = console.progress(settings)
    if seals:
        seal_set(folder, progress=progress)
        out = folder
    else:
        with stop_on_signals() as stop:
            try:
                merge_shards(
                    folder,
                    out,
                    overwrite=overwrite,
                    resume=resume,
                    should_stop=stop,
                    progress=progress,
                )
            except Interrupted as error:
                raise Interrupted(
                    error.message, signal_number=stop.signal_number or 2, hint=error.hint
                ) from error
    with FeatureFile(out) as file:
        rows = {split: file.n_rows(split) for split in file.splits}
        if as_json:
            console.show_json({"path": str(out), "rows": rows, "size_bytes": file.size_bytes})
            return
        console.show_facts(
            [
                *((split, f"{n:,} rows") for split, n in rows.items()),
                ("features", f"{out}, {console.size_text(file.size_bytes)}"),
            ]
        )
