"""`cnnfeat train`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from cnnfeat.cli import console, options
from cnnfeat.cli.settings import Settings, pass_settings
from cnnfeat.cli.startup import start_tensorflow
from cnnfeat.options import DataOptions, RunOptions, TrainOptions

if TYPE_CHECKING:
    from cnnfeat.card import ModelCard
    from cnnfeat.records import Json


@click.command()
@options.config_file("network", "train")
@options.data
@options.setting(
    TrainOptions,
    "epochs",
    help="Passes over the training images; auto: 6, or as many as make 1,500 steps.",
)
@options.setting(TrainOptions, "batch_size", help="Images a step.")
@options.setting(TrainOptions, "learning_rate", help="Adam's first; falls to 0 along a cosine.")
@options.setting(TrainOptions, "seed", help="Fixes weights, division and order.")
@options.setting(TrainOptions, "validation", help="Fraction held back to pick the best epoch.")
@options.setting(TrainOptions, "patience", help="Epochs without gain before a stop; 0: never.")
@options.output("model.keras", help="The model file; its card gets the same name with .json.")
@options.overwrite
@options.as_json
@options.common
@pass_settings
def train(
    settings: Settings,
    *,
    source: str,
    data_dir: Path | None,
    epochs: int | Literal["auto"],
    batch_size: int,
    learning_rate: float,
    seed: int,
    validation: float,
    patience: int,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train a small convolutional network.

    Without options: the seed network on MNIST, about a minute on two cores. Another network is
    described by the [network] table of a TOML file: cnnfeat train --config my.toml
    """
    from cnnfeat.data import open_source
    from cnnfeat.files import check_output

    check_output(out, overwrite=overwrite)
    config = dataclasses.replace(
        settings.config or RunOptions(),
        data=DataOptions(source, None if data_dir is None else str(data_dir)),
        train=TrainOptions(epochs, batch_size, learning_rate, seed, validation, patience),
    )
    progress = console.progress(settings)
    with open_source(source, data_dir=data_dir, progress=progress) as images:
        console.say(f"data: {console.source_text(images)}")
        start_tensorflow(settings)
        from cnnfeat.network.training import train as train_network

        card = train_network(config, images, out=out, overwrite=overwrite, progress=progress)
    if as_json:
        console.show_json(_document(card, out))
    else:
        console.show_facts(_facts(card, out))


def _document(card: ModelCard, out: Path) -> dict[str, Json]:
    return {
        "path": str(out),
        "source": card.source_name,
        "epochs": card.epochs,
        "best_epoch": card.best_epoch,
        "validation_accuracy": card.validation_accuracy,
        "test_accuracy": card.test_accuracy,
        "n_train": card.n_train,
        "n_validation": card.n_validation,
        "n_test": card.n_test,
        "elapsed_s": card.elapsed_s,
    }


def _facts(card: ModelCard, out: Path) -> list[tuple[str, str]]:
    """Say what a training made, for people."""
    facts = [
        (
            "validation accuracy",
            f"{card.validation_accuracy:.2%} of {card.n_validation:,} images held back, "
            f"after epoch {card.best_epoch} of {card.epochs}",
        )
    ]
    if card.test_accuracy is None:
        facts.append(("test accuracy", "none: the source has no test split"))
    else:
        facts.append(("test accuracy", f"{card.test_accuracy:.2%} of {card.n_test:,} images"))
    facts.append(("trained in", f"{card.elapsed_s:.0f} s"))
    facts.append(("model", str(out)))
    return facts
