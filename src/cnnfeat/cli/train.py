"""`cnnfeat train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cnnfeat.cli import console, flags, manual
from cnnfeat.cli.option import option
from cnnfeat.cli.session import Settings, pass_settings, start_tensorflow, told_to_resume, typed
from cnnfeat.errors import Interrupted
from cnnfeat.options import RunOptions

if TYPE_CHECKING:
    from cnnfeat.card import ModelCard, Training
    from cnnfeat.records import Json, Source


@manual.command(
    "Training",
    "cnnfeat train --data digits --epochs 20",
    "cnnfeat train --data photos/ --resize 64x64 --augment flip=horizontal",
    claims=("--batch-size", "--precision"),
)
@flags.tables("train", "data")
@flags.augment
@flags.output("model.keras", help="The model file; its card gets the same name with .json.")
@flags.overwrite
@option("--resume", is_flag=True, help="Go on with an interrupted training.")
@flags.as_json
@flags.common
@pass_settings
def train(
    settings: Settings,
    *,
    options: RunOptions,
    out: Path,
    overwrite: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Train a small convolutional network.

    Without options: the seed network on MNIST, about a minute on two cores. Another network is
    described by the [network] table of a TOML file: cnnfeat train --config my.toml

    An interrupted training of more than half a minute goes on with --resume, and comes to the same
    weights.
    """
    from cnnfeat.commands import train as train_network
    from cnnfeat.network.starting import calls_of_training

    def opened(images: Source) -> None:
        console.say(f"data: {console.source_text(images)}")
        start_tensorflow(settings, n_calls=calls_of_training(options))

    try:
        card = train_network(
            options.data,
            options.train,
            out=out,
            network=options.network,
            augment=options.augment,
            overwrite=overwrite,
            resume=resume,
            opened=opened,
            progress=console.progress(settings),
        )
    except Interrupted as error:
        raise told_to_resume(error) from error
    if as_json:
        console.show_json(_document(card, out))
    else:
        n_blocks = len(options.network.conv)
        layer = f"conv{n_blocks}" if n_blocks else "fc1"
        console.show_facts([*_facts(card, out), ("next", _next(card, out, layer=layer))])


def _document(card: ModelCard, out: Path) -> dict[str, Json]:
    return {
        "path": str(out),
        "source": card.source_name,
        "epochs": card.epochs,
        "best_epoch": card.best_epoch,
        "members": [
            {
                "seed": one["seed"],
                "epochs": len(one["history"]),
                "best_epoch": one["best_epoch"],
                "validation_accuracy": one["validation_accuracy"],
                "test_accuracy": one["test_accuracy"],
                "elapsed_s": one["elapsed_s"],
            }
            for one in card.members
        ],
        "validation_accuracy": card.validation_accuracy,
        "test_accuracy": card.test_accuracy,
        "n_train": card.n_train,
        "n_validation": card.n_validation,
        "n_test": card.n_test,
        "division": card.division,
        "elapsed_s": card.elapsed_s,
    }


def _facts(card: ModelCard, out: Path) -> list[tuple[str, str]]:
    """Say what a training made, for people."""
    from cnnfeat.extraction.varying import trained_with

    division = card.division or {}
    fraction = division.get("test_fraction")
    facts: list[tuple[str, str]] = []
    if fraction is not None:
        facts.append(
            (
                "divided",
                f"{card.n_test:,} images held out first, to test on "
                f"(--test-fraction {fraction}, --seed {division.get('seed')})",
            )
        )
    facts += [
        ("validation accuracy", _validated(card)),
        (
            "test accuracy",
            f"{card.test_accuracy or 0:.2%} of {card.n_test:,} images that the network never saw",
        ),
        *((f"  seed {one['seed']} alone", _alone(one)) for one in card.members),
    ]
    varied = trained_with(card)
    if varied.varies:
        facts.append(("images varied by", str(varied)))
    facts.append(("trained in", f"{card.elapsed_s:.0f} s"))
    facts.append(("model", str(out)))
    return facts


def _next(card: ModelCard, out: Path, *, layer: str) -> str:
    if card.members:  # whose names have its layers before them
        return typed("layers", str(out))
    return typed("extract", "--layer", layer, model=out)


def _validated(card: ModelCard) -> str:
    if card.validation_accuracy is None:
        return f"none: no images were held back; {card.kept}"
    held = "held back" if (card.division or {}).get("validation") else "of the split validation"
    return f"{card.validation_accuracy:.2%} of {card.n_validation:,} images {held}, {card.kept}"


def _alone(one: Training) -> str:
    """The accuracies of a network of a committee."""
    known = one["validation_accuracy"]
    validated = "" if known is None else f"{known:.2%} of the images held back, "
    return f"{validated}{one['test_accuracy'] or 0:.2%} of the test images"
