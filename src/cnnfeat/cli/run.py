"""`cnnfeat run`."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnnfeat.cli import console, flags
from cnnfeat.cli.session import (
    Settings,
    artifact,
    pass_settings,
    start_tensorflow,
    stop_on_signals,
)
from cnnfeat.errors import SKIPPED_EXIT_CODE
from cnnfeat.options import DataOptions, SvmOptions, TrainOptions, load_config

if TYPE_CHECKING:
    from cnnfeat.pipeline import RunResult


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@flags.record(DataOptions, "data", shown={"source": "the file's, else auto"})
@flags.record(
    TrainOptions,
    "train",
    only=("test_fraction",),
    shown={"test_fraction": "the file's, else 0.2"},
)
@flags.trust
@click.option(
    "-o",
    "--output",
    "folder",
    cls=flags.Heard,
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: artifact(""),
    show_default="artifacts",
    help="The folder for everything that is made.",
)
@flags.overwrite
@flags.as_json
@flags.common
@pass_settings
def run(
    settings: Settings,
    *,
    config: Path | None,
    data: DataOptions,
    train: TrainOptions,
    trust_model: bool,
    folder: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train, extract, fit and report: the whole of CONFIG, a TOML file.

    Stages whose inputs have not changed are not done again. Without CONFIG: the seed network on
    MNIST, its conv2 and fc1, a linear SVM on fc1. See configs/ for whole runs. With [model] path
    in CONFIG, nothing is trained.
    """
    from cnnfeat.extraction import IN_FLIGHT
    from cnnfeat.pipeline import DEFAULT_RUN, run_pipeline

    options = DEFAULT_RUN if config is None else load_config(config)
    n_calls = 1 if options.model.path is None else IN_FLIGHT  # a training has one
    options = dataclasses.replace(
        options,
        data=flags.over(options.data, data, "data"),
        train=flags.over(options.train, train, "train"),
        svm=flags.over(options.svm, SvmOptions(test_fraction=train.test_fraction), "train"),
    )
    result = run_pipeline(
        options,
        folder=folder,
        overwrite=overwrite,
        trust=trust_model,
        stopping=stop_on_signals,
        before_network=partial(start_tensorflow, settings, n_calls=n_calls),
        progress=console.progress(settings),
    )
    if as_json:
        console.show_json(dataclasses.asdict(result))
    else:
        console.show_facts(_facts(result))
    if result.n_skipped:
        click.get_current_context().exit(SKIPPED_EXIT_CODE)


def _facts(result: RunResult) -> list[tuple[str, str]]:
    known = result.network_accuracy
    network = "test accuracy unknown" if known is None else f"{known:.2%} test accuracy"
    return [
        ("data", result.source),
        ("network", network),
        ("SVM", f"on {result.svm_layer}: {result.svm_score}"),
        ("files", ", ".join(result.files)),
    ]
