"""The whole pipeline: a network, its features, a machine on them, a report.

A stage whose inputs have not changed since its outputs were written is not done again.
"""

from __future__ import annotations

import dataclasses
import glob
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cnnfeat.card import ModelCard, file_sha256, read_card
from cnnfeat.divided import redivide
from cnnfeat.errors import (
    CnnfeatError,
    ConfigError,
    DataError,
    ImageError,
    NetworkError,
    UsageError,
)
from cnnfeat.files import check_output
from cnnfeat.knobs import checked, from_record, result_options
from cnnfeat.options import DataOptions, ExtractOptions, ModelOptions, RunOptions, SvmOptions
from cnnfeat.parts import DivisionRule
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import Json, Source
from cnnfeat.result import SvmResult, read_result
from cnnfeat.stages import StageBook, stamp

if TYPE_CHECKING:
    from cnnfeat.extraction import Extraction, Prober

logger = logging.getLogger("cnnfeat")

Stopping: TypeAlias = Callable[[], AbstractContextManager[Callable[[], bool]]]

MODEL, CARD, FEATURES = "model.keras", "model.json", "features.h5"
SVM, SVM_RESULT, PREDICTIONS = "svm.skops", "svm.json", "predictions.csv"
CONFUSION, LAYERS = "confusion.png", "layers.png"
REPORT = "report.html"

# What runs where no configuration says otherwise.
DEFAULT_RUN = RunOptions(extract=ExtractOptions(layer=("conv2", "fc1")))


_DEFAULT_SVM = SvmOptions()


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
    svm_accuracy: float  # an accuracy on new pictures where there is no caveat
    svm_accuracy_interval: tuple[float, float]  # 95 %
    svm_caveat: str  # what must stand beside it; "": nothing
    svm_score: str  # it in words: its name, the rows, the interval, the caveat
    svm_layer: str
    stages: tuple[StageOutcome, ...]
    files: tuple[str, ...]
    n_skipped: int = 0  # images that were left out

    def __repr__(self) -> str:
        accuracy = self.network_accuracy
        network = "accuracy unknown" if accuracy is None else f"accuracy {accuracy:.2%}"
        stages = [f"{one.name} {'kept' if one.reused else 'done'}" for one in self.stages]
        return (
            f"RunResult in {self.folder}, of {self.source}\n"
            f"  network  {network}\n"
            f"  SVM      on {self.svm_layer}: {self.svm_score}\n"
            f"  stages   {', '.join(stages)}"
        )


@dataclass(frozen=True, slots=True)
class _Run:
    """What all stages of one run share."""

    options: RunOptions
    folder: Path
    source: Source
    book: StageBook
    overwrite: bool
    trust: bool
    stopping: Stopping
    before_network: Callable[[], None]
    progress: Progress

    @property
    def data(self) -> dict[str, Json]:
        return {"source": self.source.name, "fingerprint": self.source.fingerprint().digest}

    @property
    def outputs(self) -> dict[str, tuple[Path, ...]]:
        """What each stage writes; of a network that exists, none is trained."""
        names: dict[str, tuple[str, ...]] = {
            "train": (MODEL, CARD),
            "extract": (FEATURES,),
            "svm": svm_files(self.options.svm),
            "report": (REPORT,),
        }
        if self.options.model.path:
            del names["train"]
        return {stage: tuple(self.folder / name for name in names[stage]) for stage in names}

    @property
    def model(self) -> str:
        """The network, as `load_network` takes it."""
        return self.options.model.path or str(self.folder / MODEL)


def _nothing() -> None:
    """Prepare nothing."""


@contextmanager
def not_stopping() -> Iterator[Callable[[], bool]]:
    """Never ask to stop."""
    yield lambda: False


def open_images(
    options: DataOptions, card: ModelCard | None, *, progress: Progress = SILENT
) -> Source:
    """Open the images that are asked for, else those that a network was trained on, else "auto".

    Images that the network was trained on are divided, and brought to a size, as they were then.
    """
    from cnnfeat.data import open_data

    if card is None:
        return open_data(options, progress=progress)
    known = _data_options(card)
    if options.source is None:
        options = _trained_on(card, options, known)
    source = open_data(options, progress=progress)
    again = _fitted_as(known, _grouped_as(card, options))
    if again != options and _is_same(source, card):
        source.__exit__(None, None, None)
        source = open_data(again, progress=progress)
    return as_trained(source, card)


def _data_options(card: ModelCard) -> DataOptions:
    """How the images that a network was trained on were opened."""
    try:
        return from_record(DataOptions, card.config.get("data"))
    except ConfigError as error:
        raise NetworkError(
            f"the network's card (trained on {card.source_name}) is damaged, or of another version "
            f"of cnnfeat: config.data: {error}",
            hint="delete the card, the .json file beside the network, to go on",
        ) from error


def _trained_on(card: ModelCard, options: DataOptions, known: DataOptions) -> DataOptions:
    return dataclasses.replace(
        _fitted_as(known, options),
        source=card.source_name,
        dir=options.dir or known.dir,
        labels=options.labels or known.labels,
        id_column=options.id_column or known.id_column,
        label_column=options.label_column or known.label_column,
        max_pixels=options.max_pixels or known.max_pixels,
    )


def _fitted_as(known: DataOptions, options: DataOptions) -> DataOptions:
    """Bring images to what they were brought to for the training, if no size is asked for."""
    if options.resize:
        return dataclasses.replace(options, invert=options.invert or known.invert)
    return dataclasses.replace(
        options,
        resize=known.resize,
        fit=options.fit or known.fit,
        invert=options.invert or known.invert,
    )


def _grouped_as(card: ModelCard, options: DataOptions) -> DataOptions:
    """Group rows and leave classes out as for the training, where options don't say how."""
    try:
        rule = DivisionRule.from_json(card.division or {})
    except ValueError:
        return options
    return dataclasses.replace(
        options,
        group_by=options.group_by or rule.group_by,
        min_per_class=max(options.min_per_class, rule.min_per_class),
    )


def as_trained(source: Source, card: ModelCard) -> Source:
    """Divide a source as for the training of a network; stay with it as it is where that can't be.

    Parameters
    ----------
    source : Source
        Undivided.
    card : ModelCard
        How the network was made.
    """
    if not _is_same(source, card):
        why = (
            "it has changed since the network was trained on it"
            if source.name == card.source_name
            else f"the network was trained on {card.source_name}"
        )
    elif card.division is None:
        why = "the network's card is of an older cnnfeat, which didn't say"
    else:
        divided = redivide(source, card.division)
        if divided is not None:
            return divided
        why = "it can't be divided as it was for the training"
    logger.warning("which rows of %s the network has seen isn't known: %s", source.name, why)
    return source


def _is_same(source: Source, card: ModelCard) -> bool:
    return card.source.get("fingerprint") == source.fingerprint().digest


def run_pipeline(
    options: RunOptions,
    *,
    folder: Path,
    overwrite: bool = False,
    trust: bool = False,
    stopping: Stopping = not_stopping,
    before_network: Callable[[], None] = _nothing,
    progress: Progress = SILENT,
) -> RunResult:
    """Train, extract, fit and report, as far as that has not been done.

    Parameters
    ----------
    options : RunOptions
        One table a stage. Where `[svm]` names no layer, the last one extracted is taken; with
        `[model] path` nothing is trained.
    folder : Path
        Gets all artifacts, and `run.json`, which remembers what they were made from.
    overwrite : bool
        Whether files that no earlier run wrote may be replaced.
    trust : bool
        Whether a network may run operations with side effects.
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
    _check(options)
    check_output(folder / "run.json", overwrite=True)
    with open_images(options.data, _card(options), progress=progress) as source:
        run = _Run(
            options=options,
            folder=folder,
            source=source,
            book=StageBook(folder / "run.json"),
            overwrite=overwrite,
            trust=trust,
            stopping=stopping,
            before_network=before_network,
            progress=progress,
        )
        for name, outputs in run.outputs.items():
            run.book.check_owned(name, outputs, overwrite=overwrite)
        makers = {"train": _train, "extract": _extract, "svm": _svm, "report": _report}
        return _result(run, tuple(makers[name](run) for name in run.outputs))


def _card(options: RunOptions) -> ModelCard | None:
    """How a network that exists was made, where that is known: the file's alone."""
    path = Path(options.model.path or "")
    return read_card(path, sha256=file_sha256(path)) if path.is_file() else None


def _check(options: RunOptions) -> None:
    """Refuse a reading of no network; say which tables are not used."""
    plain = RunOptions()
    # How much is held out to test on holds for the machine too.
    untrained = dataclasses.replace(plain.train, test_fraction=options.train.test_fraction)
    if not options.model.path and options.model != plain.model:
        raise UsageError(
            "[model] says how a network that exists is read, and names none: path is missing",
            hint="--model or [model] path names one; a network that is trained here needs no more",
        )
    tables = [
        f"[{name}] is"
        for name, plainly in (
            ("network", options.network == plain.network),
            ("train", options.train == untrained),
            ("augment", options.augment == plain.augment or bool(options.extraction.augment)),
        )
        if not plainly
    ]
    if options.model.path and tables:
        logger.warning(
            "%s is given, so nothing is trained: %s not used",
            options.model.path,
            " and ".join(tables),
        )


def _stage(
    run: _Run,
    name: str,
    *,
    inputs: Mapping[str, Json],
    make: Callable[[], object],
) -> StageOutcome:
    """Make the stage's outputs unless they are current."""
    outputs = run.outputs[name]
    if run.book.is_current(name, inputs):
        logger.info("%s: nothing has changed, %s is kept", name, outputs[0])
        return StageOutcome(name, reused=True, elapsed_s=0.0)
    run.book.check_owned(name, outputs, overwrite=run.overwrite)
    run.book.begin(name, outputs)
    logger.info("%s ...", name)
    started = time.perf_counter()
    try:
        make()
    except (CnnfeatError, KeyboardInterrupt):
        run.book.leave(name, outputs)
        raise
    run.book.record(name, inputs, outputs)
    return StageOutcome(name, reused=False, elapsed_s=time.perf_counter() - started)


def _train(run: _Run) -> StageOutcome:
    def make() -> None:
        run.before_network()
        from cnnfeat.extraction import Extraction
        from cnnfeat.network.standing import standing_path
        from cnnfeat.network.training import train

        def foresee(network: Prober, source: Source) -> None:
            _foresee(run, Extraction.of(network, run.options.extraction), source)

        again = partial(
            train, run.options, run.source, out=model, foresee=foresee, progress=run.progress
        )
        _go_on(again, begun=standing_path(model).exists(), own=own)

    model = run.folder / MODEL
    own = run.overwrite or run.book.knows("train")  # what an interrupted training left
    tables = ("network", "train", "augment")
    settings = {name: result_options(getattr(run.options, name)) for name in tables}
    return _stage(
        run,
        "train",
        inputs={**run.data, "data": run.source.options, **settings},
        make=make,
    )


def _extract(run: _Run) -> StageOutcome:
    def make() -> None:
        run.before_network()
        from cnnfeat.network import open_network

        network = open_network(run.model, run.options.model, trust=run.trust)
        source = run.source if path is not None else _divided(run)
        extraction = Extraction.of(network, run.options.extraction)
        _foresee(run, extraction, source)
        with run.stopping() as should_stop:
            again = partial(
                extraction.run,
                source,
                out=out,
                should_stop=should_stop,
                progress=run.progress,
            )
            _go_on(again, begun=FeatureWriter.unfinished(out) is not None, own=own)

    from cnnfeat.extraction import Extraction
    from cnnfeat.features import FeatureWriter

    out = run.folder / FEATURES
    own = run.overwrite or run.book.knows("extract")  # what an interrupted extraction left
    path = run.options.model.path
    inputs = {
        **run.data,
        "data": run.source.options,
        "division": run.source.division,
        "train": run.book.state("train") if path is None else _model_state(run.options.model),
        "model": result_options(run.options.model),
        "extract": result_options(run.options.extraction),
    }
    return _stage(run, "extract", inputs=inputs, make=make)


def _go_on(again: Callable[..., object], *, begun: bool, own: bool) -> None:
    """Go on with what was interrupted; start over if that is a run's own, of other settings."""
    try:
        again(overwrite=not begun, resume=begun)
    except ImageError:
        raise
    except (UsageError, DataError) as error:
        if not (begun and own):
            raise
        logger.warning("starting over: %s", error)  # the settings have changed
        again(overwrite=True)


def _foresee(run: _Run, extraction: Extraction, source: Source) -> None:
    """Refuse now what could only be refused once networks are trained and features written."""
    plan = extraction.foresee(source)
    plan.check_layers(run.options.svm.layer)
    weights = run.options.svm.class_weight
    if weights != "balanced" and source.classes:
        from cnnfeat.svm.classweight import check_named

        check_named(dict(weights), source.classes)


def _divided(run: _Run) -> Source:
    """The source as the network that this run has trained knows it."""
    card = read_card(run.folder / MODEL)
    return run.source if card is None else as_trained(run.source, card)


def _model_state(options: ModelOptions) -> Json:
    """Tell a network from itself once changed, by names, sizes and times: nothing is loaded."""
    path = Path(options.path or "")
    if path.is_dir():
        files = [item for item in path.rglob("*") if item.is_file()]
    else:  # a file, or what the names of a checkpoint's files begin with
        stem = path.with_suffix("") if path.suffix in (".meta", ".index") else path
        files = [path] if path.is_file() and stem == path else []
        files = files or list(path.parent.glob(f"{glob.escape(stem.name)}.*"))
    if options.weights is not None and Path(options.weights).is_file():
        files.append(Path(options.weights))
    return {"path": options.path, "files": {str(file): stamp(file) for file in sorted(files)}}


def _svm(run: _Run) -> StageOutcome:
    def make() -> None:
        fit_svm(
            run.folder / FEATURES,
            run.folder,
            options=options,
            overwrite=True,
            progress=run.progress,
        )

    options = _of_last_layer(run.options.svm, run.folder / FEATURES)
    inputs = {"extract": run.book.state("extract"), "svm": result_options(options)}
    return _stage(run, "svm", inputs=inputs, make=make)


def _of_last_layer(options: SvmOptions, features: Path) -> SvmOptions:
    """Where no layer is named for the machine, it is for the last one extracted."""
    from cnnfeat.features import FeatureFile

    if options.layer:
        return options
    with FeatureFile(features) as file:
        return dataclasses.replace(options, layer=file.layers[-1:])


def _report(run: _Run) -> StageOutcome:
    def make() -> None:
        run.before_network()
        from cnnfeat.report.evidence import Artifacts
        from cnnfeat.report.page import write_report

        data_dir = None if run.options.data.dir is None else Path(run.options.data.dir)
        artifacts = dataclasses.replace(
            Artifacts.in_folder(run.folder, trust=run.trust),
            model=run.model,
            read=run.options.model,
        )
        write_report(artifacts, out, data_dir=data_dir, overwrite=True, progress=run.progress)

    out = run.folder / REPORT
    inputs = {name: run.book.state(name) for name in run.outputs if name != "report"}
    return _stage(run, "report", inputs=inputs, make=make)


def svm_files(options: SvmOptions) -> tuple[str, ...]:
    """Name all that `fit_svm` writes."""
    several = len(options.layer) > 1 or "all" in options.layer
    pictures = (CONFUSION, LAYERS) if several else (CONFUSION,)
    return (SVM, SVM_RESULT, PREDICTIONS, *pictures)


def fit_svm(
    features: Path | str | Sequence[Path | str],
    folder: Path | str,
    options: SvmOptions = _DEFAULT_SVM,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> SvmResult:
    """Train and score machines on a feature file, and draw how they did, as `cnnfeat svm` does.

    Parameters
    ----------
    features : Path or str, or a sequence of them
        The feature file, or its address in a store; rows of several are joined by id.
    folder : Path or str
        Gets `svm.skops`, `svm.json`, `predictions.csv` and pictures.
    options : SvmOptions
        Which layers, which machine, how it is chosen.
    overwrite : bool
        Whether files of these names may be replaced.
    progress : Progress
        Told of each machine.

    Raises
    ------
    CnnfeatError
        See `cnnfeat.svm.svm_stage`.

    Examples
    --------
    >>> cnnfeat.fit_svm("features.h5", "artifacts", SvmOptions(layer="fc1"))
    """
    from cnnfeat.report.charts import plot_confusion, plot_layers
    from cnnfeat.svm import svm_stage

    folder, options = Path(folder), checked(options)
    result = svm_stage(
        features,
        folder,
        options=options,
        overwrite=overwrite,
        extra_outputs=[name for name in svm_files(options) if name.endswith(".png")],
        progress=progress,
    )
    plot_confusion(
        result.confusion,
        result.classes,
        folder / CONFUSION,
        title=f"SVM on {result.best.layer}: {result.scored_rows}",
        caveat=result.caveat,
    )
    if LAYERS in svm_files(options):
        plot_layers(
            result.layers,
            folder / LAYERS,
            network_accuracy=result.network_test_accuracy,
            on=result.compared_on,
            title="SVMs by layer",
        )
    return result


def _result(run: _Run, stages: tuple[StageOutcome, ...]) -> RunResult:
    from cnnfeat.features import FeatureFile

    svm = read_result(run.folder / SVM_RESULT)
    if svm.note and any(one.name == "svm" and one.reused for one in stages):
        logger.info("%s", svm.note)  # a stage that is done says it itself
    with FeatureFile(run.folder / FEATURES) as file:
        n_skipped = sum(len(file.skipped(split)) for split in file.splits)
    names = (FEATURES, *svm_files(run.options.svm), REPORT)
    return RunResult(
        folder=str(run.folder),
        source=run.source.name,
        network_accuracy=svm.network_test_accuracy,
        svm_accuracy=svm.accuracy,
        svm_accuracy_interval=svm.best.accuracy_interval,
        svm_caveat=svm.caveat,
        svm_score=f"{svm.score_name} {svm.score_words}",
        svm_layer=svm.best.layer,
        stages=stages,
        files=(run.model, *(str(run.folder / name) for name in names)),
        n_skipped=n_skipped,
    )
