"""The whole pipeline: a network, its features, a machine on them, a report.

A stage whose inputs have not changed since its outputs were written is not done again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cnnfeat.card import read_card
from cnnfeat.errors import DataError, UsageError
from cnnfeat.files import check_output
from cnnfeat.knobs import to_dict
from cnnfeat.options import ExtractOptions, RunOptions, SvmOptions
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import Json, Source
from cnnfeat.result import read_result
from cnnfeat.stages import StageBook

if TYPE_CHECKING:
    from cnnfeat.network import Network

logger = logging.getLogger("cnnfeat")

Stopping: TypeAlias = Callable[[], AbstractContextManager[Callable[[], bool]]]

MODEL, CARD, FEATURES = "model.keras", "model.json", "features.h5"
SVM, SVM_RESULT, PREDICTIONS, CONFUSION = (
    "svm.skops",
    "svm.json",
    "predictions.csv",
    "confusion.png",
)
REPORT = "report.html"

# What runs where no configuration says otherwise.
DEFAULT_RUN = RunOptions(
    extract=ExtractOptions(layer=("conv2", "fc1")), svm=SvmOptions(layer=("fc1",))
)


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """How one stage went."""

    name: str
    reused: bool  # its inputs had not changed
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run made, or found made. Accuracies are fractions, 0 to 1."""

    folder: str
    source: str
    network_accuracy: float | None  # on the test split
    svm_accuracy: float
    svm_accuracy_interval: tuple[float, float]  # 95 %
    svm_layer: str
    stages: tuple[StageOutcome, ...]
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """What all stages of one run share."""

    config: RunOptions
    folder: Path
    source: Source
    book: StageBook
    overwrite: bool
    stopping: Stopping
    before_network: Callable[[], None]
    progress: Progress

    @property
    def data(self) -> dict[str, Json]:
        return {"source": self.source.name, "fingerprint": self.source.fingerprint().digest}


def _nothing() -> None:
    """Prepare nothing."""


@contextmanager
def _not_stopping() -> Iterator[Callable[[], bool]]:
    yield lambda: False


def run_pipeline(
    config: RunOptions,
    *,
    folder: Path,
    overwrite: bool = False,
    stopping: Stopping = _not_stopping,
    before_network: Callable[[], None] = _nothing,
    progress: Progress = SILENT,
) -> RunResult:
    """Train, extract, fit and report, as far as that has not been done.

    Parameters
    ----------
    config : RunOptions
        One table a stage. Where `[svm]` names no layer, the last one extracted is taken.
    folder : Path
        Gets all artifacts, and `run.json`, which remembers what they were made from.
    overwrite : bool
        Whether files that no earlier run wrote may be replaced.
    stopping : callable
        Makes a context manager that is entered around the extraction and gives what is asked
        between its batches: whether to stop. Run again, the extraction goes on from there.
    before_network : callable
        Called before each stage that needs TensorFlow.
    progress : Progress
        Told of everything.

    Raises
    ------
    CnnfeatError
        What the stages raise.
    """
    from cnnfeat.data import open_source

    config = _complete(config)
    data_dir = None if config.data.dir is None else Path(config.data.dir)
    check_output(folder / "run.json", overwrite=True)
    with open_source(config.data.source or "auto", data_dir=data_dir, progress=progress) as source:
        run = _Run(
            config=config,
            folder=folder,
            source=source,
            book=StageBook(folder / "run.json"),
            overwrite=overwrite,
            stopping=stopping,
            before_network=before_network,
            progress=progress,
        )
        stages = tuple(stage(run) for stage in (_train, _extract, _svm, _report))
    return _result(run, stages)


def _complete(config: RunOptions) -> RunOptions:
    """Say which layer the machine is for, where the file doesn't."""
    if config.svm.layer:
        return config
    svm = dataclasses.replace(config.svm, layer=config.extract.layer[-1:])
    return dataclasses.replace(config, svm=svm)


def _stage(
    run: _Run,
    name: str,
    *,
    inputs: Mapping[str, Json],
    outputs: Sequence[Path],
    make: Callable[[], object],
) -> StageOutcome:
    """Make the outputs unless they are current."""
    if run.book.is_current(name, inputs):
        logger.info("%s: nothing has changed, %s is kept", name, outputs[0])
        return StageOutcome(name, reused=True, elapsed_s=0.0)
    run.book.check_owned(name, outputs, overwrite=run.overwrite)
    logger.info("%s ...", name)
    started = time.perf_counter()
    make()
    run.book.record(name, inputs, outputs)
    return StageOutcome(name, reused=False, elapsed_s=time.perf_counter() - started)


def _train(run: _Run) -> StageOutcome:
    def make() -> None:
        run.before_network()
        from cnnfeat.network.training import train

        train(run.config, run.source, out=model, overwrite=True, progress=run.progress)

    model = run.folder / MODEL
    settings = {"network": to_dict(run.config.network), "train": to_dict(run.config.train)}
    return _stage(
        run,
        "train",
        inputs={**run.data, **settings},
        outputs=(model, run.folder / CARD),
        make=make,
    )


def _extract(run: _Run) -> StageOutcome:
    def make() -> None:
        run.before_network()
        from cnnfeat.network import load_network

        network = load_network(str(run.folder / MODEL))
        if FeatureWriter.unfinished(out) is not None:
            with contextlib.suppress(UsageError, DataError):  # of other settings: start over
                _extract_features(run, network, out, resume=True)
                return
        _extract_features(run, network, out, resume=False)

    from cnnfeat.features import FeatureWriter

    out = run.folder / FEATURES
    inputs = {
        **run.data,
        "train": run.book.state("train"),
        "extract": to_dict(run.config.extract),
    }
    return _stage(run, "extract", inputs=inputs, outputs=(out,), make=make)


def _extract_features(run: _Run, network: Network, out: Path, *, resume: bool) -> None:
    from cnnfeat.extractor import extract_features

    config = run.config.extract
    with run.stopping() as should_stop:
        extract_features(
            network,
            run.source,
            layers=config.layer,
            out=out,
            options=config,
            splits=config.split,
            batch_size=config.batch_size,
            dtype=config.dtype,
            overwrite=not resume,
            resume=resume,
            should_stop=should_stop,
            progress=run.progress,
        )


def _svm(run: _Run) -> StageOutcome:
    def make() -> None:
        from cnnfeat.report.charts import plot_confusion
        from cnnfeat.svm import svm_stage

        result = svm_stage(
            run.folder / FEATURES,
            run.folder,
            config=run.config.svm,
            overwrite=True,
            progress=run.progress,
        )
        plot_confusion(
            result.confusion,
            result.classes,
            run.folder / CONFUSION,
            title=f"SVM on {result.best.layer}: {result.accuracy:.2%} right",
        )

    inputs = {"extract": run.book.state("extract"), "svm": to_dict(run.config.svm)}
    outputs = tuple(run.folder / name for name in (SVM, SVM_RESULT, PREDICTIONS, CONFUSION))
    return _stage(run, "svm", inputs=inputs, outputs=outputs, make=make)


def _report(run: _Run) -> StageOutcome:
    def make() -> None:
        run.before_network()
        from cnnfeat.report.page import write_report

        data_dir = None if run.config.data.dir is None else Path(run.config.data.dir)
        write_report(run.folder, out, data_dir=data_dir, overwrite=True, progress=run.progress)

    out = run.folder / REPORT
    inputs = {name: run.book.state(name) for name in ("train", "extract", "svm")}
    return _stage(run, "report", inputs=inputs, outputs=(out,), make=make)


def _result(run: _Run, stages: tuple[StageOutcome, ...]) -> RunResult:
    card = read_card(run.folder / MODEL)
    svm = read_result(run.folder / SVM_RESULT)
    names = (MODEL, FEATURES, SVM, SVM_RESULT, PREDICTIONS, CONFUSION, REPORT)
    return RunResult(
        folder=str(run.folder),
        source=run.source.name,
        network_accuracy=None if card is None else card.test_accuracy,
        svm_accuracy=svm.accuracy,
        svm_accuracy_interval=svm.best.accuracy_interval,
        svm_layer=svm.best.layer,
        stages=stages,
        files=tuple(str(run.folder / name) for name in names),
    )
