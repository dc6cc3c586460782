"""`cnnfeat run`."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnnfeat.cli import console, options
from cnnfeat.cli.settings import Settings, artifact, pass_settings
from cnnfeat.cli.signals import stop_on_signals
from cnnfeat.cli.startup import start_tensorflow
from cnnfeat.options import DataOptions, RunOptions, load_config

if TYPE_CHECKING:
    from cnnfeat.pipeline import RunResult


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option(
    "--data",
    "source",
    metavar="SOURCE",
    show_default="the file's, else auto",
    help="A name (cnnfeat data list), a folder, or a file of images.",
)
@options.data_dir
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: artifact(""),
    show_default="artifacts",
    help="The folder for everything that is made.",
)
@options.overwrite
@options.as_json
@options.common
@pass_settings
def run(
    settings: Settings,
    *,
    config: Path | None,
    source: str | None,
    data_dir: Path | None,
    folder: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train, extract, fit and report: the whole of CONFIG, a TOML file.

    Stages whose inputs have not changed are not done again. Without CONFIG: the seed network on
    MNIST, its conv2 and fc1, a linear SVM on fc1. See configs/ for whole runs.
    """
    from cnnfeat.pipeline import DEFAULT_RUN, run_pipeline

    plan = _with_data(DEFAULT_RUN if config is None else load_config(config), source, data_dir)
    result = run_pipeline(
        plan,
        folder=folder,
        overwrite=overwrite,
        stopping=stop_on_signals,
        before_network=partial(start_tensorflow, settings),
        progress=console.progress(settings),
    )
    if as_json:
        console.show_json(dataclasses.asdict(result))
    else:
        console.show_facts(_facts(result))


def _with_data(plan: RunOptions, source: str | None, data_dir: Path | None) -> RunOptions:
    """Let the command line's data go before the file's."""
    data = DataOptions(
        source=source or plan.data.source or "auto",
        dir=plan.data.dir if data_dir is None else str(data_dir),
    )
    return dataclasses.replace(plan, data=data)


def _facts(result: RunResult) -> list[tuple[str, str]]:
    low, high = result.svm_accuracy_interval
    network = "none" if result.network_accuracy is None else f"{result.network_accuracy:.2%}"
    return [
        ("data", result.source),
        ("network", f"{network} test accuracy"),
        (
            "SVM",
            f"{result.svm_accuracy:.2%} test accuracy on {result.svm_layer} "
            f"(95 % interval {low:.2%} to {high:.2%})",
        ),
        ("files", ", ".join(result.files)),
    ]
