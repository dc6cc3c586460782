"""A saved machine with its networks, for any program: what `cnnfeat predict` does."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast, overload

import numpy as np
from numpy.typing import NDArray

from cnnfeat.address import is_stored, store_address
from cnnfeat.documents import json_text
from cnnfeat.errors import DataError, UsageError
from cnnfeat.knobs import checked
from cnnfeat.options import AverageOptions, DataOptions, ReadOptions
from cnnfeat.records import Array, OnError, SkippedSample, Source, counted, some_of
from cnnfeat.store import stat_object

if TYPE_CHECKING:
    from cnnfeat.network import Network
    from cnnfeat.prediction import Asked, Prediction
    from cnnfeat.svm import SavedSVM

# What is predicted; a list of paths: feature files that are joined.
Pictures: TypeAlias = (
    Array | str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | DataOptions | Source
)

_FEATURES, _MANIFEST = ".h5", "manifest.json"


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
        The layer whose features it takes, or layers: "conv2+fc1".
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
        given = network if isinstance(network, list | tuple) else [network]
        self._given = [one for one in given if one is not None]
        self._read = read
        self._trust = trust
        self._said: set[str] = set()  # remarks that are made once

    @functools.cached_property
    def networks(self) -> tuple[Network, ...]:
        """The network of each feature file, read as it was for the features of the machine."""
        from cnnfeat.origin import open_recorded
        from cnnfeat.prediction import check_network

        saved, given = self.saved, self._given_by_digest()
        read_as = [
            (said.network_sha256, json_text(said.options.get("model", {}))) for said in saved.files
        ]
        found: dict[tuple[str, str], Network] = {}
        for key, said in zip(read_as, saved.files, strict=True):
            if key not in found:
                found[key] = open_recorded(
                    said,
                    beside=saved.path,
                    model=given.get(said.network_sha256),
                    read=self._read,
                    trust=self._trust,
                )
                check_network(saved, found[key], said)
        return tuple(found[key] for key in read_as)

    def _given_by_digest(self) -> dict[str, object]:
        """Say which of the networks given is to be which of the machine's."""
        digests = list(dict.fromkeys(said.network_sha256 for said in self.saved.files))
        if self._given and len(self._given) != len(digests):
            names = {said.network_sha256: said.network for said in self.saved.files}
            listed = ", ".join(names[digest] for digest in digests)
            raise UsageError(
                f"{self.saved.path} was trained on features of {listed}, and "
                f"is given {counted(len(self._given), 'network')}",
                hint="--model, once for each of them, in this order",
            )
        return dict(zip(digests, self._given, strict=False))

    def predict(
        self,
        images: Pictures,
        *,
        splits: Sequence[str] = (),
        on_error: OnError = "raise",
        batch_size: int | None = None,
        scores: bool = False,
        averaging: AverageOptions | None = None,
    ) -> Predicted:
        """Say what class each image is of.

        Parameters
        ----------
        images : array, str, Path, DataOptions or Source, or a list of paths
            An array of shape (n_samples, height, width[, channels]); a picture, a folder or
            another source; or a feature file, for which no network is opened: of a machine on
            several, a list of them.
        splits : sequence of str
            Only these; by default all of them.
        on_error : {"raise", "skip"}
            Whether a picture that can't be read ends it or is left out.
        batch_size : int, optional
            Pictures at a time; by default 512, fewer if they are large.
        scores : bool
            Whether the decision values of all classes are wanted.
        averaging : AverageOptions, optional
            Means over variations of each picture; by default as for the machine's features.

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

        asked = Asked(
            splits, on_error, batch_size, scores, averaging=checked(averaging or AverageOptions())
        )
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
        from cnnfeat.prediction import predict_features, predict_images

        files = _feature_files(images)
        if files:
            if asked.averaging.average is not None:
                raise UsageError(
                    "--average is for pictures, and features are what they are",
                    hint="leave it out; cnnfeat extract --average stores means",
                )
            yield from predict_features(self.saved, files, splits=asked.splits, scores=asked.scores)
            return
        if isinstance(images, str | os.PathLike):
            images = DataOptions(source=os.fspath(images))
        named = images.source if isinstance(images, DataOptions) else None
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
                self.networks,
                source,
                splits=asked.splits,
                batch_size=asked.batch_size,
                on_error=asked.on_error,
                skipped=skipped,
                scores=asked.scores,
                fitting=asked.fitting,
                any_size=asked.any_size,
                averaging=asked.averaging,
                said=self._said,
            )
            if source.kind == "image" and named is not None:  # several may have one name
                found = (dataclasses.replace(item, id=named) for item in found)
            yield from found
            if source.kind == "image" and named is not None:
                skipped[before:] = [dataclasses.replace(one, id=named) for one in skipped[before:]]

    def grouped(self, inputs: Sequence[str]) -> list[list[str]]:
        """Put feature files together where the machine takes several; others stand alone."""
        if len(self.saved.files) == 1:
            return [[one] for one in inputs]
        files = [one for one in inputs if holds_features(one)]
        return [group for group in (files, *([one] for one in inputs if one not in files)) if group]

    @contextlib.contextmanager
    def _opened(self, given: Pictures) -> Iterator[Source]:
        from cnnfeat.data import open_arrays
        from cnnfeat.prediction import open_to_predict

        if isinstance(given, DataOptions):
            with open_to_predict(self.saved, checked(given)) as source:
                yield source
            return
        if isinstance(given, np.ndarray | list | tuple):
            _check_no_paths(given)
            given = open_arrays(np.asarray(given))
        if not hasattr(given, "batches"):
            raise no_images(given)
        yield cast("Source", given)

    def __repr__(self) -> str:
        named = dict.fromkeys(said.network or "?" for said in self.saved.files)
        return (
            f"Machine {self.saved.path}\n"
            f"  layer    {self.layer} of {', '.join(named)}\n"
            f"  classes  {some_of(self.classes)}"
        )


def _feature_files(images: Pictures) -> list[str]:
    """Name the feature files that are given; none where it is anything else."""
    if isinstance(images, DataOptions):
        given: Sequence[object] = [] if images.source is None else [images.source]
    elif isinstance(images, list | tuple):
        given = images
    else:
        given = [images]
    names = [os.fspath(one) for one in given if isinstance(one, str | os.PathLike)]
    if len(names) < len(given) or not all(map(holds_features, names)):
        return []
    return [os.fsdecode(name) for name in names]


def holds_features(named: str) -> bool:
    """Whether a path, or an address, leads to a feature file or to a set."""
    from cnnfeat.prediction import is_feature_file

    if is_stored(named):  # by its name; or a set is sealed there
        address = store_address(named)
        return named.endswith(_FEATURES) or stat_object(address / _MANIFEST) is not None
    return is_feature_file(named)


def _check_no_paths(given: Array | Sequence[object]) -> None:
    """Refuse a list of paths that aren't all of feature files."""
    for one in given if isinstance(given, list | tuple) else ():
        name = os.fsdecode(one) if isinstance(one, str | os.PathLike) else ""
        if name and not holds_features(name):
            raise UsageError(
                f"a list of paths is of feature files that are joined, and {name} is none",
                hint="pictures are predicted one by one, or as a folder or an array of them",
            )


def no_images(given: object) -> UsageError:
    """Make the error for what images can't come from."""
    return UsageError(
        f"images come from a name, a path, DataOptions or an open source, not a "
        f"{type(given).__name__}",
        hint="cnnfeat.open_arrays(images, labels) makes a source of arrays",
    )


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
    network : str, Path, keras.Model, tf.Graph or Network, or a list of them, optional
        The network that its features came from, instead of the one it names; of several, all, in
        the order of their layers.
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
