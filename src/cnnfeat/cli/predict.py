"""`cnnfeat predict`."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnnfeat.cli import flags
from cnnfeat.cli.predictions import Tally, Wanted, write_csv, write_json, write_table
from cnnfeat.cli.session import Settings, artifact, pass_settings, start_tensorflow
from cnnfeat.errors import SKIPPED_EXIT_CODE
from cnnfeat.options import DataOptions, FitOptions, ReadOptions

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
@click.option(
    "--top", cls=flags.Heard, type=flags.Number(1), help="Show so many of the best classes."
)
@click.option("--scores", is_flag=True, help="Show the decision values of all classes.")
@flags.record(
    FitOptions,
    "fitting",
    shown={"resize": "what the network takes", "fit": "as for the machine, else stretch"},
)
@click.option("--no-resize", is_flag=True, help="Refuse pictures of another size.")
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
    top: int | None,
    scores: bool,
    fitting: FitOptions,
    no_resize: bool,
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
    if no_resize and (fitting.resize or fitting.fit):
        raise click.UsageError("--no-resize excludes --resize and --fit")
    saved = load_svm(svm_file)
    skipped: list[SkippedSample] = []

    @functools.cache
    def network() -> Network:
        """Load it once, when the first picture needs it."""
        start_tensorflow(settings)
        return open_recorded(
            saved.metadata, beside=saved.path, model=model, read=read, trust=trust_model
        )

    wanted = Wanted(saved.classes, saved.calibration is not None, top or 0, scores)
    tally = Tally()
    predictions = _predictions(
        saved, inputs, network, tally,
        splits=split, data_dir=data_dir, on_error=on_error, skipped=skipped,
        scores=scores or bool(top),
        fitting=fitting, any_size=not no_resize,
    )  # fmt: skip
    write = write_csv if as_csv else write_json if as_json else write_table
    write(predictions, wanted)
    tally.say()
    if skipped:
        for sample in skipped[:20]:
            _log.warning("left out: %s: %s", sample.id, sample.reason)
        _log.warning("%d pictures were left out", len(skipped))
        click.get_current_context().exit(SKIPPED_EXIT_CODE)


def _predictions(
    saved: SavedSVM,
    inputs: Sequence[str],
    network: Callable[[], Network],
    tally: Tally,
    *,
    splits: Sequence[str],
    data_dir: Path | None,
    on_error: OnError,
    skipped: list[SkippedSample],
    scores: bool,
    fitting: FitOptions,
    any_size: bool,
) -> Iterator[Prediction]:
    from cnnfeat.prediction import (
        is_feature_file,
        open_to_predict,
        predict_features,
        predict_images,
    )

    said: set[str] = set()
    for spec in inputs:
        if is_feature_file(spec):
            found = predict_features(saved, Path(spec), splits=splits, scores=scores)
            yield from tally.counting(found, source=spec)
            continue
        folder = None if data_dir is None else str(data_dir)
        with open_to_predict(saved, DataOptions(spec, folder)) as source:
            found = predict_images(
                saved,
                network(),
                source,
                splits=splits,
                on_error=on_error,
                skipped=skipped,
                scores=scores,
                fitting=fitting,
                any_size=any_size,
                said=said,
            )
            if source.kind == "image":  # several may have one name
                found = (dataclasses.replace(item, id=spec) for item in found)
            yield from tally.counting(found, source=spec)
