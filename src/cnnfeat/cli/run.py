"""`cnnfeat run`."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnnfeat.cli import console, flags, manual
from cnnfeat.cli.option import option
from cnnfeat.cli.places import LocalPath
from cnnfeat.cli.session import (
    Settings,
    artifact,
    pass_settings,
    start_tensorflow,
    stop_on_signals,
    typed,
)
from cnnfeat.errors import SKIPPED_EXIT_CODE
from cnnfeat.options import RunOptions

if TYPE_CHECKING:
    from cnnfeat.pipeline import RunResult


def _default_run() -> RunOptions:
    from cnnfeat.pipeline import DEFAULT_RUN

    return DEFAULT_RUN


@manual.command(
    "What to extract",
    "cnnfeat run configs/digits.toml --set train.epochs=3 -o runs/three",
    "cnnfeat run --model keras:MobileNetV2 --data photos/ --layer out_relu",
)
@flags.tables(
    "data",
    "model",
    "extract",
    "train",
    "svm",
    only={
        "extract": ("layer", "scale"),
        "train": ("test_fraction",),
        "svm": ("test_fraction",),
    },
    shown={
        "source": "the file's, else auto",
        "path": "one that is trained here",
        "layer": "the file's, else conv2 and fc1",
        "test_fraction": "the file's, else 0.2",
    },
    whole=_default_run,
)
@flags.trust
@option(
    "-o",
    "--output",
    "folder",
    type=LocalPath(file_okay=False),
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
    options: RunOptions,
    trust_model: bool,
    folder: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train, extract, fit and report: the whole of CONFIG, a TOML file.

    Stages whose inputs have not changed are not done again. Without CONFIG: the seed network on
    MNIST, its conv2 and fc1, a linear SVM on fc1. See configs/ for whole runs; flags go before what
    CONFIG says. With --model, or [model] path in CONFIG, nothing is trained.

    Of several layers asked for by --layer, the machine is for the last one.
    """
    from cnnfeat.extraction import IN_FLIGHT
    from cnnfeat.network.starting import calls_of_training
    from cnnfeat.pipeline import REPORT, SVM, run_pipeline

    trains = options.model.path is None
    n_calls = calls_of_training(options) if trains else IN_FLIGHT
    whole = _for_layers(options, settings.config or RunOptions())
    result = run_pipeline(
        whole,
        folder=folder,
        overwrite=overwrite,
        trust=trust_model,
        stopping=stop_on_signals,
        before_network=partial(
            start_tensorflow, settings, n_calls=n_calls, device=whole.extract.device
        ),
        progress=console.progress(settings),
    )
    if as_json:
        console.show_json(dataclasses.asdict(result))
    else:
        following = typed("predict", "PICTURE", svm=folder / SVM)
        console.show_facts([*_facts(result), ("open", str(folder / REPORT)), ("next", following)])
    if result.n_skipped:
        click.get_current_context().exit(SKIPPED_EXIT_CODE)


def _for_layers(options: RunOptions, config: RunOptions) -> RunOptions:
    """Forget the layer that the file's machine is for, where other layers are extracted."""
    asked = options.extract.layer
    parts = {part for layer in options.svm.layer if layer not in asked for part in layer.split("+")}
    if asked == config.extract.layer or parts <= {"all", *asked}:
        return options
    return dataclasses.replace(options, svm=dataclasses.replace(options.svm, layer=()))


def _facts(result: RunResult) -> list[tuple[str, str]]:
    known = result.network_accuracy
    network = "test accuracy unknown" if known is None else f"{known:.2%} test accuracy"
    return [
        ("data", result.source),
        ("network", network),
        ("SVM", f"on {result.svm_layer}: {result.svm_score}"),
        ("files", ", ".join(result.files)),
    ]
