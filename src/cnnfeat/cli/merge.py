"""`cnnfeat merge`."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from cnnfeat.address import Address
from cnnfeat.cli import console, flags, manual
from cnnfeat.cli.option import option
from cnnfeat.cli.places import FeaturePath
from cnnfeat.cli.session import Settings, pass_settings, stop_on_signals, typed
from cnnfeat.errors import Interrupted, UsageError
from cnnfeat.records import counted


@manual.command(
    "What to merge",
    "cnnfeat merge artifacts/features -o artifacts/features.h5",
    "cnnfeat merge artifacts/features --manifest",
)
@click.argument("folder", type=FeaturePath())
@flags.output("features.h5", help="The feature file, or its address in a store.", stored=True)
@option(
    "--manifest",
    "seals",
    is_flag=True,
    help="Write no file: only manifest.json into FOLDER, which is then read as one.",
)
@flags.overwrite
@option("--resume", is_flag=True, help="Go on with an interrupted run.")
@flags.as_json
@flags.common
@pass_settings
def merge(
    settings: Settings,
    *,
    folder: Path,
    out: Path | Address,
    seals: bool,
    overwrite: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Make one feature file of the shards in FOLDER, or seal them as a set.

    All shards must be there and made with the same settings. The file is the one that a single run
    would have made. A sealed folder is taken by every command that takes a feature file.
    """
    from cnnfeat.features.inventory import MANIFEST
    from cnnfeat.features.merging import merge_shards, seal_set
    from cnnfeat.transfer import name_of, outgoing, send_back

    progress = console.progress(settings)
    if seals:
        if overwrite or resume or flags.is_said(click.get_current_context(), "out"):
            raise UsageError(
                "--manifest writes no file but FOLDER/manifest.json: it goes with none of -o, "
                "--overwrite and --resume"
            )
        seal_set(folder, progress=progress)
        send_back(folder, MANIFEST)
        _show(folder, name_of(folder), as_json=as_json)
        return
    with contextlib.ExitStack() as stack:
        written = (
            stack.enter_context(outgoing(out, overwrite=overwrite, resume=resume))
            if isinstance(out, Address)
            else out
        )
        stop = stack.enter_context(stop_on_signals())
        try:
            merge_shards(
                folder,
                written,
                overwrite=overwrite,
                resume=resume,
                should_stop=stop,
                progress=progress,
            )
        except Interrupted as error:
            raise Interrupted(
                error.message, signal_number=stop.signal_number or 2, hint=error.hint
            ) from error
        _show(written, str(out), as_json=as_json)


def _show(path: Path, name: str, *, as_json: bool) -> None:
    from cnnfeat.features import FeatureFile

    with FeatureFile(path) as file:
        rows = {split: file.n_rows(split) for split in file.splits}
        if as_json:
            console.show_json({"path": name, "rows": rows, "size_bytes": file.size_bytes})
            return
        console.show_facts(
            [
                *((split, counted(n, "row")) for split, n in rows.items()),
                ("features", f"{name}, {console.size_text(file.size_bytes)}"),
                ("next", typed("svm", argument=name)),
            ]
        )
