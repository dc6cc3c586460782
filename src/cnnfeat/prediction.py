"""Labels for pictures, or for rows of a feature file, by a saved SVM."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cnnfeat.brightness import opposites_warning, some_images
from cnnfeat.data import open_data
from cnnfeat.divided import redivide
from cnnfeat.errors import (
    DataError,
    FeatureFileError,
    LayerLookupError,
    MisfitError,
    NetworkError,
    UsageError,
)
from cnnfeat.extraction import default_batch_size
from cnnfeat.features import FeatureFile, is_set
from cnnfeat.options import DataOptions, FitOptions, ProbeOptions, Size, check_fit
from cnnfeat.origin import recorded_data, recorded_fitting, recorded_pixels, recorded_probe
from cnnfeat.parts import Part, unpack_parts
from cnnfeat.pixels import unusable
from cnnfeat.records import (
    Array,
    Batch,
    Fit,
    ImageTarget,
    Labels,
    OnError,
    Probe,
    SkippedSample,
    Source,
    SplitInfo,
    class_name,
)
from cnnfeat.regular import open_regular
from cnnfeat.svm.evaluation import margins
from cnnfeat.svm.machine import decision_values
from cnnfeat.svm.matrix import Floats
from cnnfeat.svm.persistence import SavedSVM

if TYPE_CHECKING:
    from cnnfeat.network import Network

BATCH_ROWS = 512
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_AS_RECORDED = FitOptions()
_MAKE_AGAIN = "make it again with cnnfeat svm --overwrite"
_log = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a machine about some images; see `predict_images`."""

    splits: Sequence[str] = ()
    on_error: OnError = "raise"
    batch_size: int | None = None
    scores: bool = False
    fitting: FitOptions = _AS_RECORDED
    any_size: bool = True


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the machine says of one sample."""

    id: str
    split: str
    predicted: str  # class name
    margin: float  # how far its decision value lies above the second
    label: str | None  # the true class, where it is known
    probability: float | None = None  # of what is predicted, where the machine is calibrated
    scores: tuple[float, ...] = ()  # the decision value of each of the machine's classes, if asked
    probabilities: tuple[float, ...] = ()  # of each class, likewise
    machine_part: str | None = None  # "fitted", "validation" or "unseen"; None: not known
    network_part: str | None = None  # the same of the network


def is_feature_file(spec: str) -> bool:
    """Whether a path leads to an HDF5 file (a data set inside one, `file.h5:/x`, is a source).

    Or to a folder of shards.
    """
    if is_set(Path(spec)):
        return True
    try:
        with open_regular(Path(spec)) as file:
            return file.read(len(HDF5_MAGIC)) == HDF5_MAGIC
    except OSError:  # whoever reads it says so
        return False


def predict_features(
    saved: SavedSVM, path: Path, *, splits: Sequence[str] = (), scores: bool = False
) -> Iterator[Prediction]:
    """Predict every row of a feature file, a block at a time.

    Parameters
    ----------
    saved : SavedSVM
        From `cnnfeat.svm.load_svm`.
    path : Path
        The feature file.
    splits : sequence of str
        Only these; by default all of them.
    scores : bool
        Whether the values of all classes are wanted.

    Raises
    ------
    FeatureFileError
        If the file is damaged, or was made by another network than the machine's.
    LayerLookupError
        If it does not have the machine's layer in the machine's width.
    """
    with FeatureFile(path) as file:
        _check_features(saved, file)
        said = file.provenance
        unknown = _unknown(saved, said.source, said.source_fingerprint)
        _say(None, unknown, level=logging.WARNING)
        for split in _asked(splits, file.splits):
            labels = file.labels(split)
            n_rows = file.n_rows(split)
            machine = machine_parts(saved, said.source_fingerprint, split, n_samples=n_rows)
            network = file.parts(split)
            for start, rows in file.blocks(split, saved.layer, rows=BATCH_ROWS):
                stop = start + len(rows)
                known = _Known(
                    split,
                    file.ids(split, start=start, stop=stop),
                    None if labels is None else labels[start:stop],
                    file.classes,
                    machine=None if machine is None else machine[start:stop],
                    network=None if network is None else network[start:stop],
                )
                yield from _predict(saved, rows, known, scores=scores)


def open_to_predict(saved: SavedSVM, options: DataOptions) -> Source:
    """Open pictures; those that the machine's features came from are divided as they were then.

    Parameters
    ----------
    saved : SavedSVM
        The machine.
    options : DataOptions
        Where the pictures are.
    """
    source = open_data(options)
    if source.fingerprint().digest != saved.provenance.source_fingerprint:
        return source
    then = recorded_data(saved.provenance)
    again = dataclasses.replace(options, group_by=then.group_by, min_per_class=then.min_per_class)
    if again != options:
        source.__exit__(None, None, None)
        source = open_data(again)
    division = saved.provenance.division
    return (redivide(source, division) if division else None) or source


def _unknown(saved: SavedSVM, source: str, fingerprint: str) -> str:
    """Say why it isn't known what the machine saw of its own source; "" where it is, or another."""
    if fingerprint != saved.provenance.source_fingerprint:
        if source != saved.provenance.source:
            return ""
        why = "it has changed since"
    elif saved.facts.parts:
        return ""
    else:
        why = "the machine is of an older cnnfeat, which didn't say"
    return f"which rows of {source} the machine has seen isn't known: {why}"


def predict_images(
    saved: SavedSVM,
    network: Network,
    source: Source,
    *,
    splits: Sequence[str] = (),
    batch_size: int | None = None,
    on_error: OnError = "raise",
    skipped: list[SkippedSample] | None = None,
    scores: bool = False,
    fitting: FitOptions = _AS_RECORDED,
    any_size: bool = True,
    said: set[str] | None = None,
) -> Iterator[Prediction]:
    """Predict every picture of a source, a batch at a time.

    Parameters
    ----------
    saved : SavedSVM
        From `cnnfeat.svm.load_svm`.
    network : Network
        The one the machine's features came from.
    source : Source
        From `cnnfeat.data.open_source`.
    splits : sequence of str
        Only these; by default all of them.
    batch_size : int, optional
        Pictures at a time; by default 512, fewer if they are large.
    on_error : {"raise", "skip"}
        Whether a picture that can't be read ends it or is left out.
    skipped : list, optional
        Gets the samples left out.
    scores : bool
        Whether the values of all classes are wanted.
    fitting : FitOptions
        What pictures are brought to, where that is not what was done for the machine's features,
        and then whatever size the network takes.
    any_size : bool
        Whether pictures of another size may be brought to that; else they are refused.
    said : set of str, optional
        Remarks that were made before and are not made again; those made now are added.

    Raises
    ------
    NetworkError
        If the network is not the one the machine was trained on, or the pictures don't fit it.
    UsageError
        If `fitting` has no size to fit to.
    """
    check_network(saved, network)
    facts = saved.facts
    layers = network.find([facts.tensor or facts.layer_name or facts.layer])
    asked = _Fitting.of(saved, fitting, any_size=any_size)
    fingerprint = source.fingerprint().digest
    _say(said, _unknown(saved, source.name, fingerprint), level=logging.WARNING)
    for split in _asked(splits, tuple(source.splits)):
        info = source.splits[split]
        machine = machine_parts(saved, fingerprint, split, n_samples=info.n_samples)
        seen = source.parts(split)
        how = asked.how(network, info)
        size = asked.size(network, info)
        shape = ImageTarget(size).shape_of(info.image_shape)
        rows_at_once = batch_size or default_batch_size(shape)
        probe = network.probe(
            layers,
            how,
            image_shape=shape,  # of all sizes that become one, one function is compiled
            image_dtype=info.dtype,
            batch_size=rows_at_once,
        )
        target = dataclasses.replace(probe.target, invert=asked.invert)
        _say(said, _becomes(info, target))
        _say(said, _other_pixels(saved, info, how), level=logging.WARNING)
        if network.card is not None and network.card.pixels is not None:
            images = some_images(source, split, target)
            warning = opposites_warning(images, network.card.pixels, inverted=asked.invert)
            _say(said, warning, level=logging.WARNING)
        for read in source.batches(
            split, batch_size=rows_at_once, target=target, on_error=on_error
        ):
            batch, rows = _computed(read, probe, size=None if any_size else size, on_error=on_error)
            if skipped is not None:
                skipped.extend(batch.skipped)
            if len(batch):
                left_out = [sample.row for sample in batch.skipped]
                here = np.setdiff1d(np.arange(batch.start, batch.stop), left_out)
                known = _Known(
                    split,
                    batch.ids,
                    batch.labels,
                    source.classes,
                    machine=None if machine is None else machine[here],
                    network=None if seen is None else seen[here],
                )
                yield from _predict(saved, rows, known, scores=scores)


def _computed(
    batch: Batch, probe: Probe, *, size: Size | None, on_error: OnError
) -> tuple[Batch, Array]:
    """Compute features; pictures whose shape doesn't go through are left out, if they may be."""
    if not len(batch):
        return batch, np.empty(0)
    try:
        _check_size(batch, size)
        (rows,) = probe(batch.images)
    except MisfitError as error:  # all pictures of a batch have one shape
        if on_error == "raise":
            raise MisfitError(f"{batch.ids[0]}: {error.message}", hint=error.hint) from error
        return batch.without(dict.fromkeys(range(len(batch)), error.message)), np.empty(0)
    return batch, rows


@dataclass(frozen=True, slots=True)
class _Fitting:
    """What pictures are brought to: as asked, as for the machine, or as the network takes."""

    recorded: ProbeOptions
    resize: Size | None
    fit: Fit | None
    invert: bool
    any_size: bool

    @classmethod
    def of(cls, saved: SavedSVM, given: FitOptions, *, any_size: bool) -> _Fitting:
        known = recorded_fitting(saved.provenance)
        return cls(
            recorded=recorded_probe(saved.provenance, pool=saved.facts.pooling),
            resize=given.resize or known.resize,
            fit=given.fit or known.fit,
            invert=given.invert or known.invert,
            any_size=any_size,
        )

    def size(self, network: Network, info: SplitInfo) -> Size | None:
        """What size pictures have when they come to the network; None: their own."""
        return self.resize or network.size_for(info.image_shape)

    def how(self, network: Network, info: SplitInfo) -> ProbeOptions:
        """How activations of a split's pictures are computed."""
        size = self.size(network, info)
        if not self.any_size:
            return dataclasses.replace(self.recorded, resize=None, fit=None)
        check_fit(self.fit, size)
        if info.uniform and info.image_shape[:2] == size:
            size = None
        return dataclasses.replace(self.recorded, resize=size, fit=self.fit if size else None)


def _check_size(batch: Batch, size: Size | None) -> None:
    """Refuse pictures of another size than one, where there is one."""
    height, width = batch.images.shape[1:3]
    if size not in (None, (height, width)):
        raise MisfitError(
            f"it is {height}×{width}, and the machine was trained on pictures of "
            f"{size[0]}×{size[1]}",
            hint="without --no-resize it is brought to that size",
        )


def _becomes(info: SplitInfo, target: ImageTarget) -> str:
    """Say what pictures become; "" where they are that already."""
    shape = target.shape_of(info.image_shape)
    if shape == info.image_shape and (info.uniform or target.size is None):
        return ""
    by = "" if target.size is None else f" (--fit {target.fit or 'stretch'})"
    return f"pictures are brought to {'×'.join(map(str, shape))}, as the network takes them{by}"


def _other_pixels(saved: SavedSVM, info: SplitInfo, how: ProbeOptions) -> str:
    """Say that white is another number than it was for the machine; "" where it isn't."""
    known = recorded_pixels(saved.provenance)
    if how.scale != "raw" or known in (None, info.dtype):
        return ""
    return (
        f"pixels are {info.dtype}, and were {known} for the machine's features; the network takes "
        "them as they are, so white may be another number to it: the same dtype is needed"
    )


def _say(said: set[str] | None, remark: str, *, level: int = logging.INFO) -> None:
    """Make a remark, if there is one and it was not made before."""
    if remark and (said is None or remark not in said):
        _log.log(level, "%s", remark)
    if said is not None:
        said.add(remark)


def check_network(saved: SavedSVM, network: Network) -> None:
    """Refuse any network but the one whose features the machine was trained on.

    Raises
    ------
    NetworkError
        With both digests.
    """
    expected = saved.provenance.network_sha256
    if network.sha256 != expected:
        raise NetworkError(
            f"{network.path} is not the network that {saved.path} was trained on: its SHA-256 "
            f"begins {network.sha256[:12]}, expected {expected[:12]} ({saved.provenance.network})",
            hint="--model names the right one; or train again: cnnfeat extract, cnnfeat svm",
        )


def _check_features(saved: SavedSVM, file: FeatureFile) -> None:
    expected, found = saved.provenance.network_sha256, file.provenance.network_sha256
    if found != expected:
        raise FeatureFileError(
            f"{file.path} was made by another network than {saved.path} was trained on: its "
            f"SHA-256 begins {found[:12]}, expected {expected[:12]}",
            hint="extract again with the right model, or train again with cnnfeat svm",
        )
    if saved.layer not in file.layers:
        raise LayerLookupError(
            f"{saved.path} was trained on layer {saved.layer!r}; {file.path} has "
            + (", ".join(repr(name) for name in file.layers) or "none in all splits"),
            hint=f"cnnfeat extract --layer {saved.facts.layer_name or saved.layer}",
        )
    stored = file.layer(file.splits[0], saved.layer)
    width = int(np.prod(stored.shape[1:], dtype=np.int64))
    if width != saved.facts.n_features:
        raise LayerLookupError(
            f"{file.path}: {saved.layer!r} has {width:,} features; {saved.path} was trained on "
            f"{saved.facts.n_features:,}",
            hint="extract with the same pooling and image size as for training",
        )


def _asked(splits: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    for split in splits:
        if split not in known:
            raise UsageError(f"no split {split!r}; there are {', '.join(known)}")
    return splits or known


def machine_parts(
    saved: SavedSVM, fingerprint: str, split: str, *, n_samples: int
) -> NDArray[np.uint8] | None:
    """What a machine saw of each row of a split: `Part`s, or None where that isn't known.

    Parameters
    ----------
    saved : SavedSVM
        The machine.
    fingerprint : str
        Of the source of the rows: they are the machine's own where its features came from the same.
    split : str
        The split.
    n_samples : int
        Its rows.
    """
    own, recorded = saved.provenance.source_fingerprint, saved.facts.parts or {}
    if not own or own != fingerprint or split not in recorded:
        return None
    return unpack_parts(recorded[split], n_samples=n_samples)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of some rows besides their features."""

    split: str
    ids: Sequence[str]
    truth: Labels | None
    names: Sequence[str]  # of the labels
    machine: NDArray[np.uint8] | None = None  # parts
    network: NDArray[np.uint8] | None = None

    def label(self, place: int) -> str | None:
        """The true class of a row."""
        if self.truth is None:
            return None
        return class_name(int(self.truth[place]), self.names)


def _predict(saved: SavedSVM, rows: Array, known: _Known, *, scores: bool) -> Iterator[Prediction]:
    flat = rows.reshape(len(rows), -1).astype(np.float32, copy=False)
    if flat.shape[1] != saved.facts.n_features:
        raise LayerLookupError(
            f"{saved.layer!r} gives {flat.shape[1]:,} features for these pictures; {saved.path} "
            f"was trained on {saved.facts.n_features:,}",
            hint="use pictures of the size it was trained on",
        )
    for row, reason in unusable(flat).items():
        raise DataError(
            f"{known.ids[row]}: {reason} in its features of {saved.layer!r}",
            hint="look at the network and its weights",
        )
    values = _decisions(saved, flat, known.ids)
    codes, distances = margins(values)
    chances = None if saved.calibration is None else saved.calibration.probabilities(values)
    columns = np.column_stack([-values, values]) if values.ndim == 1 else values
    for place, (name, code, margin) in enumerate(zip(known.ids, codes, distances, strict=True)):
        yield Prediction(
            id=name,
            split=known.split,
            predicted=saved.classes[int(code)],
            margin=float(margin),
            label=known.label(place),
            probability=None if chances is None else float(chances[place, code]),
            scores=tuple(columns[place].tolist()) if scores else (),
            probabilities=() if chances is None or not scores else tuple(chances[place].tolist()),
            machine_part=_part_name(known.machine, place),
            network_part=_part_name(known.network, place),
        )


def _decisions(saved: SavedSVM, rows: Floats, ids: Sequence[str]) -> Floats:
    """Compute decision values, which a machine of immense numbers has none of."""
    try:
        with np.errstate(all="ignore"):
            values = decision_values(saved.pipeline, rows)
    except ValueError as error:  # of scikit-learn, between two steps
        raise FeatureFileError(
            f"{saved.path}: nothing can be computed with its numbers: {error}", hint=_MAKE_AGAIN
        ) from error
    for row in unusable(values.reshape(len(values), -1)):
        raise FeatureFileError(
            f"{saved.path}: its decision values for {ids[row]} are no numbers", hint=_MAKE_AGAIN
        )
    return values


def _part_name(parts: NDArray[np.uint8] | None, place: int) -> str | None:
    return None if parts is None else Part(parts[place]).name.lower()
