"""`cnnfeat predict`."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnnfeat.cli import completion, flags, manual
from cnnfeat.cli.option import Number, option
from cnnfeat.cli.places import LocalPath
from cnnfeat.cli.predictions import Tally, Wanted, write_csv, write_json, write_table
from cnnfeat.cli.session import artifact
from cnnfeat.errors import SKIPPED_EXIT_CODE
from cnnfeat.options import AverageOptions, DataOptions, FitOptions, ReadOptions
from cnnfeat.records import counted

if TYPE_CHECKING:
    from cnnfeat.records import OnError, SkippedSample

_log = logging.getLogger("cnnfeat")


@manual.command(
    "What to predict",
    "cnnfeat predict photo.png",
    "cnnfeat predict photos/ --top 3 --csv",
)
@click.argument(
    "inputs",
    metavar="INPUT...",
    nargs=-1,
    required=True,
    shell_complete=completion.sources,
)
@flags.common
@option(
    "--svm",
    "svm_file",
    type=LocalPath(),
    default=lambda: artifact("svm.skops"),
    show_default="artifacts/svm.skops",
    help="The machine.",
)
@option(
    "--model",
    "models",
    multiple=True,
    shell_complete=completion.files,
    show_default="the machine's own",
    help="The network the machine's features came from; of several, each in turn.",
)
@option("--split", multiple=True, help="Only this split; may be repeated.")
@flags.data_dir
@option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="Whether one bad picture ends the run or is left out (then exit code 6).",
)
@option("--top", type=Number(1), help="Show so many of the best classes.")
@option("--scores", is_flag=True, help="Show the decision values of all classes.")
@flags.record(
    FitOptions,
    "fitting",
    shown={"resize": "what the network takes", "fit": "as for the machine, else stretch"},
)
@flags.record(AverageOptions, "averaging")
@option("--no-resize", is_flag=True, help="Refuse pictures of another size.")
@flags.reading
@option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@flags.as_json
def predict(
    *,
    inputs: tuple[str, ...],
    svm_file: Path,
    models: tuple[str, ...],
    split: tuple[str, ...],
    data_dir: Path | None,
    on_error: OnError,
    top: int | None,
    scores: bool,
    fitting: FitOptions,
    averaging: AverageOptions,
    no_resize: bool,
    read: ReadOptions,
    trust_model: bool,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Label pictures with a trained SVM.

    INPUT is a picture, a source (cnnfeat data list, a folder, an array file), or a feature file. Of
    a machine on several feature files all are given, in the order that it was trained on.
    """
    from cnnfeat.prediction import Asked
    from cnnfeat.predictor import load_machine

    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other")
    if no_resize and (fitting.resize or fitting.fit):
        raise click.UsageError("--no-resize excludes --resize and --fit")
    machine = load_machine(svm_file, network=models, read=read, trust=trust_model)
    skipped: list[SkippedSample] = []
    wanted = Wanted(machine.classes, machine.saved.calibration is not None, top or 0, scores)
    tally = Tally()
    asked = Asked(
        splits=split,
        on_error=on_error,
        scores=scores or bool(top),
        fitting=fitting,
        any_size=not no_resize,
        averaging=averaging,
    )
    folder = None if data_dir is None else str(data_dir)
    predictions = itertools.chain.from_iterable(
        tally.counting(
            machine.each(
                DataOptions(group[0], folder) if len(group) == 1 else group, asked, skipped=skipped
            ),
            source=", ".join(group),
        )
        for group in machine.grouped(inputs)
    )
    write = write_csv if as_csv else write_json if as_json else write_table
    write(predictions, wanted)
    tally.say()
    if skipped:
        for sample in skipped[:20]:
            _log.warning("left out: %s: %s", sample.id, sample.reason)
        _log.warning("left out: %s", counted(len(skipped), "picture"))
        click.get_current_context().exit(SKIPPED_EXIT_CODE)
