"""The commands as functions: what `cnnfeat train`, `extract` and `predict` do, for any program.

Each takes paths where the command line does, and what a program has at hand besides: an open source
or network, a live model, arrays. `cnnfeat svm` is `pipeline.fit_svm`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from cnnfeat.address import Address, is_stored, place_of, store_address
from cnnfeat.errors import DataError, UsageError
from cnnfeat.knobs import checked, from_record
from cnnfeat.options import (
    ArchitectureOptions,
    AugmentOptions,
    DataOptions,
    ExtractOptions,
    ReadOptions,
    RunOptions,
    TrainOptions,
)
from cnnfeat.pipeline import Stopping, as_trained, open_images
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import Array, OnError, SkippedSample, Source, some_of
from cnnfeat.shards import ShardNumber
from cnnfeat.store import stat_object
from cnnfeat.transfer import check_address, incoming, outgoing

if TYPE_CHECKING:
    from cnnfeat.card import ModelCard
    from cnnfeat.network import Network
    from cnnfeat.prediction import Asked, Prediction
    from cnnfeat.records import ExtractResult
    from cnnfeat.svm import SavedSVM

# A name, a path, how one is opened, or one that is open; None: what the network was trained on.
Images: TypeAlias = str | os.PathLike[str] | DataOptions | Source | None
Pictures: TypeAlias = Array | str | os.PathLike[str] | DataOptions | Source  # what is predicted

_FEATURES, _MANIFEST = ".h5", "manifest.json"
_EXTRACT, _TRAIN, _SEED_NETWORK = ExtractOptions(), TrainOptions(), ArchitectureOptions()
_AS_THEY_ARE = AugmentOptions()


def _nothing(_source: Source) -> None:
    """Say nothing of a source."""


def _not_stopping() -> AbstractContextManager[Callable[[], bool]]:
    return contextlib.nullcontext(lambda: False)


def train(
    source: Images = None,
    options: TrainOptions = _TRAIN,
    *,
    out: Path | str,
    network: ArchitectureOptions = _SEED_NETWORK,
    augment: AugmentOptions = _AS_THEY_ARE,
    overwrite: bool = False,
    opened: Callable[[Source], None] = _nothing,
    progress: Progress = SILENT,
) -> ModelCard:
    """Train a small convolutional network on a source, as `cnnfeat train` does.

    Parameters
    ----------
    source : str, Path, DataOptions or Source
        Labelled images; by default "auto": MNIST, else the digits of scikit-learn. One that is
        open stays so.
    options : TrainOptions
        How it is trained.
    out : Path or str
        The model file, ending in `.keras`; its card gets the same name with `.json`.
    network : ArchitectureOptions
        What is trained; by default two blocks of convolutions and a dense layer.
    augment : AugmentOptions
        How images are varied at random, anew in each epoch; by default they aren't.
    overwrite : bool
        Whether files of these names may be replaced.
    opened : callable
        Called with the source before TensorFlow is needed.
    progress : Progress
        Told each batch and epoch.

    Returns
    -------
    ModelCard
        How it went: accuracies, history, what it was trained on.

    Raises
    ------
    CnnfeatError
        See `cnnfeat.network.training.train`.

    Examples
    --------
    >>> cnnfeat.train("photos/", TrainOptions(epochs=20), out="photos.keras")
    """
    from cnnfeat.card import card_path
    from cnnfeat.files import check_output

    for path in (Path(out), card_path(Path(out))):
        check_output(path, overwrite=overwrite)
    options = checked(options)
    with _open_source(source, None, progress=progress) as (images, data):
        opened(images)
        from cnnfeat.network.starting import load_tensorflow

        load_tensorflow()
        from cnnfeat.network.training import train as train_network

        config = RunOptions(data=data, network=network, train=options, augment=checked(augment))
        return train_network(config, images, out=Path(out), overwrite=overwrite, progress=progress)


def extract(
    network: object,
    source: Images,
    options: ExtractOptions = _EXTRACT,
    *,
    out: Path | str | Address,
    read: ReadOptions | None = None,
    trust: bool = False,
    shard: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    add: bool = False,
    opened: Callable[[Source], None] = _nothing,
    stopping: Stopping = _not_stopping,
    progress: Progress = SILENT,
) -> ExtractResult:
    """Write activations of named layers into a feature file, as `cnnfeat extract` does.

    Parameters
    ----------
    network : str, Path, keras.Model, tf.Graph or Network
        As `cnnfeat.load_network` takes it.
    source : str, Path, DataOptions, Source or None
        The images; None: those that the network was trained on, else "auto". One that is open
        stays so.
    options : ExtractOptions
        Which layers of which images, how they are computed and stored.
    out : Path, str or Address
        The feature file. Its name appears when it is complete. One in a store
        ("s3://bucket/features.h5") is written on this machine first.
    read : ReadOptions, optional
        How the network is read: signature, input, feeds, weights.
    trust : bool
        Run a network that does more than compute.
    shard : str, optional
        Only the rows of one of several shards: "3/20" is the third of twenty. `out` is then a
        folder, in which each gets a file of its own.
    overwrite : bool
        Whether an existing file may be replaced; it stays until the new one is complete.
    resume : bool
        Whether to go on with an interrupted run.
    add : bool
        Whether to add the layers to the feature file, or the set, that is there: for the rows that
        it has; layers that it has aren't computed again.
    opened : callable
        Called with the source before its images are read.
    stopping : callable
        Makes a context manager that is entered around the run and gives what is asked before each
        batch: whether to stop, in order, so that the run can be resumed.
    progress : Progress
        Told of every batch.

    Returns
    -------
    ExtractResult

    Raises
    ------
    CnnfeatError
        See `cnnfeat.load_network`, `cnnfeat.open_source` and `cnnfeat.extraction.extract`.

    Examples
    --------
    >>> cnnfeat.extract("model.keras", "photos/", ExtractOptions(layers="conv2"), out="features.h5")
    """
    from cnnfeat.extraction import Extraction
    from cnnfeat.extraction.adding import add_layers

    check_extract(out, shard, overwrite=overwrite, resume=resume, add=add)
    part = None if shard is None else ShardNumber.parse(shard)
    with _written(out, part, overwrite=overwrite, resume=resume) as (written, name):
        check_extract(written, shard, overwrite=overwrite, resume=resume, add=add)
        from cnnfeat.network.starting import load_tensorflow

        load_tensorflow(device=checked(options).device)
        from cnnfeat.network import open_network

        found = open_network(network, read or ReadOptions(), trust=trust)
        extraction = Extraction.of(found, options)  # names are known before images are read
        with _open_source(source, found.card, progress=progress) as (images, _):
            opened(images)
            with stopping() as should_stop:
                if add:
                    return add_layers(
                        extraction,
                        images,
                        out=written,
                        should_stop=should_stop,
                        progress=progress,
                    )
                result = extraction.run(
                    images,
                    out=written,
                    shard=part,
                    overwrite=overwrite,
                    resume=resume,
                    should_stop=should_stop,
                    progress=progress,
                )
    return dataclasses.replace(result, path=name or result.path)


def check_extract(
    out: Path | str | Address,
    shard: str | None,
    *,
    overwrite: bool,
    resume: bool,
    add: bool = False,
) -> None:
    """Make sure that `extract` can write where it is to; parameters are its own.

    Raises
    ------
    UsageError, OutputExistsError, StorageError
        As `extract` does.
    """
    from cnnfeat.features import FeatureWriter

    part = None if shard is None else ShardNumber.parse(shard)
    place = place_of(out) if isinstance(out, str) else out
    if add:
        _check_adding(place, other=overwrite or shard is not None)
        return
    if isinstance(place, Address):
        check_address(_file_at(place, part), overwrite=overwrite, resume=resume)
        return
    path = place if part is None else part.path_in(place)
    FeatureWriter.check(path, overwrite=overwrite, resume=resume)


def _check_adding(place: Path | Address, *, other: bool) -> None:
    """See that there is a feature file, or a set, to add to."""
    from cnnfeat.features import FeatureFile, FeatureWriter

    if other:
        raise UsageError(
            "--add keeps the rows and layers that are there: it goes with neither --overwrite nor "
            "--shard"
        )
    if isinstance(place, Address):
        raise UsageError(
            f"{place} lies in a store; layers are added to a file of this machine",
            hint="copy it here, and name it with -o",
        )
    if not place.is_dir():  # what is in a folder is looked at when it is added to
        FeatureFile(place).close()
        FeatureWriter.check(place, overwrite=True)


@contextlib.contextmanager
def _written(
    out: Path | str | Address, part: ShardNumber | None, *, overwrite: bool, resume: bool
) -> Iterator[tuple[Path, str]]:
    """Yield where the feature file, or the folder of shards, is written; and its name in a store.

    For a store both are on this machine until the file is complete.
    """
    place = place_of(out) if isinstance(out, str) else out
    if isinstance(place, Path):
        yield place, ""
        return
    target = _file_at(place, part)
    with outgoing(target, overwrite=overwrite, resume=resume) as local:
        yield (local if part is None else local.parent), str(target)


def _file_at(out: Address, part: ShardNumber | None) -> Address:
    return out if part is None else out / part.file_name


@contextlib.contextmanager
def _open_source(
    given: Images, card: ModelCard | None, *, progress: Progress
) -> Iterator[tuple[Source, DataOptions]]:
    """Open images unless they are open, and say how."""
    if given is None or isinstance(given, str | os.PathLike):
        given = DataOptions(source=None if given is None else os.fspath(given))
    if isinstance(given, DataOptions):
        given = checked(given)
        with open_images(given, card, progress=progress) as source:
            yield source, given
    elif hasattr(given, "batches"):
        how = dataclasses.replace(from_record(DataOptions, given.options), source=given.name)
        yield given if card is None or given.division else as_trained(given, card), how
    else:
        raise UsageError(
            f"images come from a name, a path, DataOptions or an open source, not a "
            f"{type(given).__name__}",
            hint="cnnfeat.open_arrays(images, labels) makes a source of arrays",
        )


class Predicted(Sequence["Prediction"]):
    """What a machine says of several images, in their order.

    It is a sequence of `Prediction`: `id`, `predicted`, `margin` and, where it is known, the true
    `label` of each. The same stands here by column.

    Attributes
    ----------
    skipped : tuple of SkippedSample
        Pictures that were left out, and why.
    """

    def __init__(
        self, items: Sequence[Prediction], *, skipped: Sequence[SkippedSample] = ()
    ) -> None:
        self._items = tuple(items)
        self.skipped = tuple(skipped)

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the images: (n_samples,)."""
        return tuple(item.id for item in self._items)

    @property
    def predicted(self) -> NDArray[np.str_]:
        """The class that the machine gives each: (n_samples,) of names."""
        return np.array([item.predicted for item in self._items], dtype=np.str_)

    @property
    def margins(self) -> NDArray[np.float64]:
        """How far each one's decision value lies above the second: (n_samples,)."""
        return np.array([item.margin for item in self._items], dtype=np.float64)

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The true class of each, where it is known: (n_samples,)."""
        return tuple(item.label for item in self._items)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, place: int) -> Prediction: ...

    @overload
    def __getitem__(self, place: slice) -> Predicted: ...

    def __getitem__(self, place: int | slice) -> Prediction | Predicted:
        if isinstance(place, slice):
            return Predicted(self._items[place], skipped=self.skipped)
        return self._items[place]

    def __repr__(self) -> str:
        shown = self._items[:10]
        rows = [(one.predicted, f"{one.margin:.3f}", one.label or "", one.id) for one in shown]
        table = [("predicted", "margin", "label", "id"), *rows]
        widths = [max(len(row[column]) for row in table) for column in range(4)]
        lines = [
            "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        more = len(self) - len(shown)
        return "\n".join([*lines, f"... and {more:,} more"] if more else lines)


class Machine:
    """A saved machine with its network, to predict with as often as there are images.

    The network is opened when images come first, and kept.

    Attributes
    ----------
    classes : tuple of str
        What it tells apart.
    layer : str
        The layer whose features it takes.
    """

    def __init__(
        self,
        saved: SavedSVM,
        *,
        network: object = None,
        read: ReadOptions | None = None,
        trust: bool = False,
    ) -> None:
        self.saved = saved
        self.classes = saved.classes
        self.layer = saved.layer
        self._given = network
        self._read = read
        self._trust = trust
        self._said: set[str] = set()  # remarks that are made once

    @functools.cached_property
    def network(self) -> Network:
        """The network, read as it was for the features that the machine was trained on."""
        from cnnfeat.origin import open_recorded
        from cnnfeat.prediction import check_network

        network = open_recorded(
            self.saved.provenance,
            beside=self.saved.path,
            model=self._given,
            read=self._read,
            trust=self._trust,
        )
        check_network(self.saved, network)
        return network

    def predict(
        self,
        images: Pictures,
        *,
        splits: Sequence[str] = (),
        on_error: OnError = "raise",
        batch_size: int | None = None,
        scores: bool = False,
    ) -> Predicted:
        """Say what class each image is of.

        Parameters
        ----------
        images : array, str, Path, DataOptions or Source
            An array of shape (n_samples, height, width[, channels]); a picture, a folder or
            another source; or a feature file, for which no network is opened.
        splits : sequence of str
            Only these; by default all of them.
        on_error : {"raise", "skip"}
            Whether a picture that can't be read ends it or is left out.
        batch_size : int, optional
            Pictures at a time; by default 512, fewer if they are large.
        scores : bool
            Whether the decision values of all classes are wanted.

        Returns
        -------
        Predicted
            A sequence of `Prediction`, and the same by column: `ids`, `predicted`, `margins`,
            `labels`.

        Raises
        ------
        CnnfeatError
            See `cnnfeat.prediction.predict_images` and `predict_features`.
        """
        from cnnfeat.prediction import Asked

        asked = Asked(splits, on_error, batch_size, scores)
        skipped: list[SkippedSample] = []
        return Predicted(list(self.each(images, asked, skipped=skipped)), skipped=skipped)

    def each(
        self, images: Pictures, asked: Asked, *, skipped: list[SkippedSample]
    ) -> Iterator[Prediction]:
        """Say it of one image after the other, of more than fit in memory too.

        Parameters
        ----------
        images : array, str, Path, DataOptions or Source
            As `predict` takes them.
        asked : Asked
            Of which splits, and how.
        skipped : list
            Gets the samples left out.
        """
        from cnnfeat.prediction import is_feature_file, predict_features, predict_images

        if isinstance(images, str | os.PathLike):
            images = DataOptions(source=os.fspath(images))
        named = images.source if isinstance(images, DataOptions) else None
        if named is not None and is_stored(named) and _are_features(named):
            with incoming(named) as path:
                yield from predict_features(
                    self.saved, path, splits=asked.splits, scores=asked.scores
                )
            return
        if named is not None and is_feature_file(named):
            yield from predict_features(
                self.saved, Path(named), splits=asked.splits, scores=asked.scores
            )
            return
        with contextlib.ExitStack() as opened:
            try:
                source = opened.enter_context(self._opened(images))
            except DataError as error:  # of a single file
                if asked.on_error == "raise" or named is None or _is_many(named):
                    raise
                reason = error.message.removeprefix(f"{Path(named).absolute()}: ")
                skipped.append(SkippedSample(0, named, reason))
                return
            before = len(skipped)
            found = predict_images(
                self.saved,
                self.network,
                source,
                splits=asked.splits,
                batch_size=asked.batch_size,
                on_error=asked.on_error,
                skipped=skipped,
                scores=asked.scores,
                fitting=asked.fitting,
                any_size=asked.any_size,
                said=self._said,
            )
            if source.kind == "image" and named is not None:  # several may have one name
                found = (dataclasses.replace(item, id=named) for item in found)
            yield from found
            if source.kind == "image" and named is not None:
                skipped[before:] = [dataclasses.replace(one, id=named) for one in skipped[before:]]

    @contextlib.contextmanager
    def _opened(self, given: Array | DataOptions | Source) -> Iterator[Source]:
        from cnnfeat.data import open_arrays
        from cnnfeat.prediction import open_to_predict

        if isinstance(given, DataOptions):
            with open_to_predict(self.saved, checked(given)) as source:
                yield source
            return
        if isinstance(given, np.ndarray | list | tuple):
            given = open_arrays(np.asarray(given))
        with _open_source(given, None, progress=SILENT) as (source, _):
            yield source

    def __repr__(self) -> str:
        network = self.saved.provenance.network or "?"
        return (
            f"Machine {self.saved.path}\n"
            f"  layer    {self.layer} of {network}\n"
            f"  classes  {some_of(self.classes)}"
        )


def _are_features(named: str) -> bool:
    """Whether a feature file lies at an address, by its name; or a sealed set."""
    address = store_address(named)
    return named.endswith(_FEATURES) or stat_object(address / _MANIFEST) is not None


def _is_many(named: str) -> bool:
    """Whether a source that can't be opened may be more than one picture."""
    return is_stored(named) or Path(named).is_dir()


def load_machine(
    path: Path | str,
    *,
    network: object = None,
    read: ReadOptions | None = None,
    trust: bool = False,
) -> Machine:
    """Load a machine that `cnnfeat svm` saved, to predict with, as `cnnfeat predict` does.

    Parameters
    ----------
    path : Path or str
        The machine: `svm.skops`.
    network : str, Path, keras.Model, tf.Graph or Network, optional
        The network that its features came from, instead of the one it names.
    read : ReadOptions, optional
        What goes before how the network was read for the features.
    trust : bool
        Run a network that does more than compute; never taken from the file.

    Raises
    ------
    MissingInputError
        If there is no such file.
    FeatureFileError
        If it is a pickle, damaged, foreign, or holds a type that is not trusted.

    Examples
    --------
    >>> machine = cnnfeat.load_machine("artifacts/svm.skops")
    >>> machine.predict("more-photos/").predicted
    """
    from cnnfeat.svm import load_svm

    return Machine(load_svm(Path(path)), network=network, read=read, trust=trust)
