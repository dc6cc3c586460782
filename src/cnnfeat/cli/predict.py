"""`cnnfeat predict`."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnnfeat.cli import console, flags
from cnnfeat.cli.session import Settings, artifact, pass_settings, start_tensorflow
from cnnfeat.errors import SKIPPED_EXIT_CODE
from cnnfeat.options import ReadOptions

if TYPE_CHECKING:
    from cnnfeat.network import Network
    from cnnfeat.prediction import Prediction
    from cnnfeat.records import OnError, SkippedSample
    from cnnfeat.svm import SavedSVM

_log = logging.getLogger("cnnfeat")


@click.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@flags.common
@click.option(
    "--svm",
    "svm_file",
    type=click.Path(path_type=Path),
    default=lambda: artifact("svm.skops"),
    show_default="artifacts/svm.skops",
    help="The machine.",
)
@click.option(
    "--model",
    show_default="the machine's own",
    help="The network the machine's features came from.",
)
@click.option("--split", multiple=True, help="Only this split; may be repeated.")
@flags.data_dir
@click.option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="Whether one bad picture ends the run or is left out (then exit code 6).",
)
@flags.reading
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@flags.as_json
@pass_settings
def predict(
    settings: Settings,
    *,
    inputs: tuple[str, ...],
    svm_file: Path,
    model: str | None,
    split: tuple[str, ...],
    data_dir: Path | None,
    on_error: OnError,
    read: ReadOptions,
    trust_model: bool,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Label pictures with a trained SVM.

    INPUT is a picture, a source (cnnfeat data list, a folder, an array file), or a feature file.
    """
    from cnnfeat.origin import open_recorded
    from cnnfeat.svm import load_svm

    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other")
    saved = load_svm(svm_file)
    skipped: list[SkippedSample] = []

    @functools.cache
    def network() -> Network:
        """Load it once, when the first picture needs it."""
        start_tensorflow(settings)
        return open_recorded(
            saved.metadata, beside=saved.path, model=model, read=read, trust=trust_model
        )

    predictions = _predictions(
        saved, inputs, network,
        splits=split, data_dir=data_dir, on_error=on_error, skipped=skipped,
    )  # fmt: skip
    write = _write_csv if as_csv else _write_json if as_json else _write_table
    write(_counted(predictions))
    if skipped:
        for sample in skipped[:20]:
            _log.warning("left out: %s: %s", sample.id, sample.reason)
        _log.warning("%d pictures were left out", len(skipped))
        click.get_current_context().exit(SKIPPED_EXIT_CODE)


def _predictions(
    saved: SavedSVM,
    inputs: Sequence[str],
    network: Callable[[], Network],
    *,
    splits: Sequence[str],
    data_dir: Path | None,
    on_error: OnError,
    skipped: list[SkippedSample],
) -> Iterator[Prediction]:
    from cnnfeat.data import open_source
    from cnnfeat.prediction import is_feature_file, predict_features, predict_images

    for spec in inputs:
        if is_feature_file(spec):
            yield from predict_features(saved, Path(spec), splits=splits)
            continue
        with open_source(spec, data_dir=data_dir) as source:
            yield from predict_images(
                saved, network(), source, splits=splits, on_error=on_error, skipped=skipped
            )


def _counted(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """Say at the end how many were right, where that is known."""
    known = right = 0
    for item in predictions:
        if item.label is not None:
            known += 1
            right += item.label == item.predicted
        yield item
    if known:
        _log.info("%s of %s right (%.2f%%)", f"{right:,}", f"{known:,}", 100 * right / known)


def _write_table(predictions: Iterable[Prediction]) -> None:
    """Write aligned lines as they come: there may be more than fit in memory."""
    for place, item in enumerate(predictions):
        if not place:
            console.show(f"{'predicted':<16} {'margin':>8}  {'label':<16} id")
        label = "" if item.label is None else item.label
        console.show(f"{item.predicted:<16} {item.margin:>8.3f}  {label:<16} {item.id}")


def _write_csv(predictions: Iterable[Prediction]) -> None:
    from cnnfeat.files import csv_lines

    sys.stdout.writelines(csv_lines([("id", "split", "label", "predicted", "margin")]))
    sys.stdout.writelines(
        csv_lines(
            (item.id, item.split, item.label, item.predicted, f"{item.margin:.6g}")
            for item in predictions
        )
    )


def _write_json(predictions: Iterable[Prediction]) -> None:
    """Write a JSON array, an item a line."""
    before = "["
    for item in predictions:
        console.show(before + json.dumps(dataclasses.asdict(item), ensure_ascii=False))
        before = ","
    console.show("]" if before == "," else "[]")
