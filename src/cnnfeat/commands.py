"""The commands as functions: what `cnnfeat train` and `extract` do, for any program.

Each takes paths where the command line does, and what a program has at hand besides: an open source
or network, a live model, arrays. `cnnfeat svm` is `pipeline.fit_svm`, `cnnfeat predict`
`predictor.load_machine`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cnnfeat.address import Address, place_of
from cnnfeat.errors import UsageError
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
from cnnfeat.pipeline import Stopping, as_trained, not_stopping, open_images
from cnnfeat.predictor import no_images
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import Source
from cnnfeat.shards import ShardNumber
from cnnfeat.transfer import check_address, outgoing

if TYPE_CHECKING:
    from cnnfeat.card import ModelCard
    from cnnfeat.records import ExtractResult

# A name, a path, how one is opened, or one that is open; None: what the network was trained on.
Images: TypeAlias = str | os.PathLike[str] | DataOptions | Source | None

_EXTRACT, _TRAIN, _SEED_NETWORK = ExtractOptions(), TrainOptions(), ArchitectureOptions()
_AS_THEY_ARE = AugmentOptions()


def _nothing(_source: Source) -> None:
    """Say nothing of a source."""


def train(
    source: Images = None,
    options: TrainOptions = _TRAIN,
    *,
    out: Path | str,
    network: ArchitectureOptions = _SEED_NETWORK,
    augment: AugmentOptions = _AS_THEY_ARE,
    overwrite: bool = False,
    resume: bool = False,
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
    resume : bool
        Whether to go on with an interrupted training; one that has ended is left as it is.
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
    from cnnfeat.network.standing import check_training_output

    check_training_output(Path(out), overwrite=overwrite, resume=resume)
    options = checked(options)
    with _open_source(source, None, progress=progress) as (images, data):
        opened(images)
        from cnnfeat.network.starting import load_tensorflow

        load_tensorflow()
        from cnnfeat.network.training import train as train_network

        config = RunOptions(data=data, network=network, train=options, augment=checked(augment))
        return train_network(
            config, images, out=Path(out), overwrite=overwrite, resume=resume, progress=progress
        )


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
    stopping: Stopping = not_stopping,
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
        Whether to add to the feature file, or the set, that is there: the layers that it hasn't
        or, where the source has got more images, their rows. What is there isn't computed again.
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
    from cnnfeat.extraction.adding import add_to

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
                    return add_to(
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
        raise no_images(given)
