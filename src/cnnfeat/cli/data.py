"""`cnnfeat data list` and `cnnfeat data fetch`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from cnnfeat.cli import completion, console, flags, manual
from cnnfeat.cli.session import Settings, pass_settings


@click.group(cls=manual.CommandGroup)
def data() -> None:
    """List and fetch the sources known by name."""


@manual.command(
    "What to list",
    "cnnfeat data list",
    "cnnfeat data list --json",
    group=data,
    name="list",
)
@flags.common
@flags.data_dir
@flags.as_json
def list_command(*, data_dir: Path | None, as_json: bool) -> None:
    """List the sources known by name, and where each lies.

    Everything else is given to --data by its path: a folder of IDX files or of pictures, an .npz,
    .npy or HDF5 file (images.h5:/x), a CSV or TSV manifest.
    """
    from cnnfeat.data import list_sources

    sources = list_sources(data_dir=data_dir)
    if as_json:
        console.show_json([dataclasses.asdict(source) for source in sources])
        return
    console.show_table(
        ["name", "what", "where"],
        [
            (source.name, source.description, source.location or "not here: cnnfeat data fetch")
            for source in sources
        ],
        wrapping=("what",),
    )


@manual.command(
    "What to fetch",
    "cnnfeat data fetch mnist",
    "cnnfeat data fetch digits fashion-mnist --data-dir ~/data",
    group=data,
)
@click.argument(
    "names", metavar="NAME...", nargs=-1, required=True, shell_complete=completion.sources
)
@flags.common
@flags.data_dir
@flags.as_json
@pass_settings
def fetch(
    settings: Settings, *, names: tuple[str, ...], data_dir: Path | None, as_json: bool
) -> None:
    """Download sources ahead of time, and check those that are here.

    Prints the folder of each.
    """
    from cnnfeat.data import fetch as fetch_source

    progress = console.progress(settings)
    locations = {
        name: fetch_source(name, data_dir=data_dir, progress=progress).location for name in names
    }
    if as_json:
        console.show_json(locations)
    else:
        console.show_facts(list(locations.items()))
