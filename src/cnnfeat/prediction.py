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

from cnnfeat.activations import PlannedProbe, activate, plan_probes
from cnnfeat.brightness import opposites_warning, some_images
from cnnfeat.data import open_data
from cnnfeat.divided import redivide
from cnnfeat.errors import (
    DataError,
    FeatureFileError,
    LayerLookupError,
    NetworkError,
    UsageError,
)
from cnnfeat.features import FeatureFile, FeatureTable, LayerPart, is_set, open_table
from cnnfeat.options import MOST_COPIES, AverageOptions, DataOptions, FitOptions
from cnnfeat.origin import recorded_data, recorded_pixels
from cnnfeat.parts import Part, unpack_parts
from cnnfeat.pixels import unusable
from cnnfeat.provenance import Provenance
from cnnfeat.records import (
    Array,
    ImageTarget,
    Labels,
    OnError,
    Parts,
    SkippedSample,
    Source,
    SplitInfo,
    class_name,
)
from cnnfeat.regular import open_regular
from cnnfeat.svm.evaluation import margins
from cnnfeat.svm.machine import decision_values
from cnnfeat.svm.matrix import Floats
from cnnfeat.svm.persistence import LayerFacts, SavedSVM

if TYPE_CHECKING:
    from cnnfeat.network import Network

BATCH_ROWS = 512
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_AS_RECORDED, _AS_FOR_THE_MACHINE = FitOptions(), AverageOptions()
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
    averaging: AverageOptions = _AS_FOR_THE_MACHINE


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
    saved: SavedSVM,
    paths: Path | str | Sequence[Path | str],
    *,
    splits: Sequence[str] = (),
    scores: bool = False,
) -> Iterator[Prediction]:
    """Predict every row of a feature file, or of several that are joined, a block at a time.

    Parameters
    ----------
    saved : SavedSVM
        From `cnnfeat.svm.load_svm`.
    paths : Path or str, or a sequence of them
        The feature file, or its address; of a machine on several, all in their order, or one that
        has all of their layers.
    splits : sequence of str
        Only these; by default all of them.
    scores : bool
        Whether the values of all classes are wanted.

    Raises
    ------
    UsageError
        If there are more files, or fewer.
    FeatureFileError
        If the file is damaged, or was made by another network than the machine's.
    LayerLookupError
        If it does not have the machine's layer in the machine's width.
    """
    with open_table(paths) as file:
        layer = _joined_as(saved, file)
        said = file.provenance
        unknown = _unknown(saved, said.source, said.source_fingerprint)
        _say(None, unknown, level=logging.WARNING)
        for split in _asked(splits, file.splits):
            labels = file.labels(split)
            n_rows = file.n_rows(split)
            machine = machine_parts(saved, said.source_fingerprint, split, n_samples=n_rows)
            network = None if file.unknown(split) else file.parts(split)
            for start, rows in file.blocks(split, layer, rows=BATCH_ROWS):
                stop = start + len(rows)
                known = _Known(
                    split,
                    file.ids(split, start=start, stop=stop),
                    None if labels is None else labels[start:stop],
                    file.classes,
                    machine=None if machine is None else machine[start:stop],
                    network=None if network is None else network[start:stop],
                )
                yield from _predict(saved, [rows], known, scores=scores)


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
    network: Network | Sequence[Network],
    source: Source,
    *,
    splits: Sequence[str] = (),
    batch_size: int | None = None,
    on_error: OnError = "raise",
    skipped: list[SkippedSample] | None = None,
    scores: bool = False,
    fitting: FitOptions = _AS_RECORDED,
    any_size: bool = True,
    averaging: AverageOptions = _AS_FOR_THE_MACHINE,
    said: set[str] | None = None,
) -> Iterator[Prediction]:
    """Predict every picture of a source, a batch at a time.

    Parameters
    ----------
    saved : SavedSVM
        From `cnnfeat.svm.load_svm`.
    network : Network, or a sequence of them
        The one the machine's features came from; of features of several files, that of each.
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
    averaging : AverageOptions
        Whether features, or decision values, are means over variations of each picture, where that
        is not what was done for the machine's features.
    said : set of str, optional
        Remarks that were made before and are not made again; those made now are added.

    Raises
    ------
    NetworkError
        If the network is not the one the machine was trained on, or the pictures don't fit it.
    UsageError
        If `fitting` has no size to fit to, or `averaging` says how to vary and not how often.
    """
    _check_averaging(averaging)
    networks = _of_each_file(saved, network)
    fingerprint = source.fingerprint().digest
    _say(said, _unknown(saved, source.name, fingerprint), level=logging.WARNING)
    for split in _asked(splits, tuple(source.splits)):
        info = source.splits[split]
        machine = machine_parts(saved, fingerprint, split, n_samples=info.n_samples)
        seen = _network_parts(saved, source, split)
        probes, rows_at_once = plan_probes(
            saved,
            networks,
            info,
            given=fitting,
            any_size=any_size,
            averaging=averaging,
            batch_size=batch_size,
        )
        for probe in probes:
            _say_of(probe, source, info, said)
        turns = range(averaging.average or 1) if averaging.average_scores else range(1)
        readings = [
            activate(
                [dataclasses.replace(probe, turn=turn) for probe in probes],
                source,
                split,
                batch_size=rows_at_once,
                on_error=on_error,
            )
            for turn in turns
        ]
        for variations in zip(*readings, strict=True):
            found = variations[0]
            if skipped is not None:
                skipped.extend(found.skipped)
            if len(found.rows):
                known = _Known(
                    split,
                    found.ids,
                    found.labels,
                    source.classes,
                    machine=None if machine is None else machine[found.rows],
                    network=None if seen is None else seen[found.rows],
                )
                features = [one.features(saved) for one in variations]
                yield from _predict(saved, features, known, scores=scores)


def _check_averaging(asked: AverageOptions) -> None:
    for given, flag in ((asked.average_scores, "--average-scores"), (asked.augment, "--augment")):
        if given and asked.average is None:
            raise UsageError(
                f"{flag} says how means over variations of a picture are taken, and not over how "
                "many",
                hint=f"--average 8 {flag}",
            )


def _of_each_file(saved: SavedSVM, network: Network | Sequence[Network]) -> Sequence[Network]:
    """Take the network of each of the machine's files, held against what they were made with."""
    files = range(len(saved.files))
    networks = network if isinstance(network, Sequence) else [network for _ in files]
    for number in files:
        check_network(saved, networks[number], saved.files[number])
    return networks


def _network_parts(saved: SavedSVM, source: Source, split: str) -> Parts | None:
    """What the networks saw of each row, where all of them divided the source alike."""
    alike = all(said.division == saved.provenance.division for said in saved.files)
    return source.parts(split) if alike else None


def _say_of(probe: PlannedProbe, source: Source, info: SplitInfo, said: set[str] | None) -> None:
    """Say what becomes of pictures, and what may be wrong with them."""
    _say(said, _becomes(info, probe.target))
    _say(said, _other_pixels(info, probe), level=logging.WARNING)
    card = probe.network.card
    if card is not None and card.pixels is not None:
        images = some_images(source, info.name, probe.target)
        warning = opposites_warning(images, card.pixels, inverted=probe.target.invert)
        _say(said, warning, level=logging.WARNING)


def _becomes(info: SplitInfo, target: ImageTarget) -> str:
    """Say what pictures become; "" where they are that already."""
    shape = target.shape_of(info.image_shape)
    if shape == info.image_shape and (info.uniform or target.size is None):
        return ""
    by = "" if target.size is None else f" (--fit {target.fit or 'stretch'})"
    return f"pictures are brought to {'×'.join(map(str, shape))}, as the network takes them{by}"


def _other_pixels(info: SplitInfo, probe: PlannedProbe) -> str:
    """Say that white is another number than it was for the machine; "" where it isn't."""
    known = recorded_pixels(probe.made)
    if probe.how.scale != "raw" or known in (None, info.dtype):
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


def check_network(saved: SavedSVM, network: Network, made: Provenance) -> None:
    """Refuse any network but the one whose features the machine was trained on.

    Parameters
    ----------
    saved : SavedSVM
        The machine.
    network : Network
        What was found.
    made : Provenance
        Of the machine's file that it is to have made.

    Raises
    ------
    NetworkError
        With both digests.
    """
    expected = made.network_sha256
    if network.sha256 != expected:
        raise NetworkError(
            f"{network.path} is not the network that {saved.path} was trained on: its SHA-256 "
            f"begins {network.sha256[:12]}, expected {expected[:12]} ({made.network})",
            hint="--model names the right one; or train again: cnnfeat extract, cnnfeat svm",
        )


def _joined_as(saved: SavedSVM, table: FeatureTable) -> str:
    """Find the machine's layers in feature files; give back what they are called there."""
    n_files = len(table.files)
    if n_files not in (1, len(saved.files)):
        raise UsageError(
            f"{saved.path} was trained on the features of {_count(len(saved.files), 'file')}, and "
            f"{n_files:,} are given",
            hint="name all of them, in their order, or one that has all of its layers",
        )
    parts = [LayerPart(layer.file if n_files > 1 else 0, layer.layer) for layer in saved.layers]
    for part, layer in zip(parts, saved.layers, strict=True):
        file, expected = table.files[part.file], saved.files[layer.file].network_sha256
        _check_made_by(saved, file, expected)
        _check_layer(saved, file, layer)
        _warn_of_averages(saved, file, saved.files[layer.file])
    return table.join(saved.layer, parts)


def _warn_of_averages(saved: SavedSVM, file: FeatureFile, made: Provenance) -> None:
    """Say that features are means over other variations than the machine's."""
    found, wanted = (
        {name: said.options.get("extract", {}).get(name) for name in ("average", "augment")}
        for said in (file.provenance, made)
    )
    if found["average"] != wanted["average"] or (found["average"] and found != wanted):
        _log.warning(
            "%s holds means over other variations of pictures than %s was trained on: %s, not %s",
            file.path,
            saved.path,
            found["average"] or "none",
            wanted["average"] or "none",
        )


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _check_made_by(saved: SavedSVM, file: FeatureFile, expected: str) -> None:
    found = file.provenance.network_sha256
    if found != expected:
        order = "name files in the order of the training; " if len(saved.files) > 1 else ""
        raise FeatureFileError(
            f"{file.path} was made by another network than {saved.path} was trained on: its "
            f"SHA-256 begins {found[:12]}, expected {expected[:12]}",
            hint=f"{order}extract again with the right model, or train again with cnnfeat svm",
        )


def _check_layer(saved: SavedSVM, file: FeatureFile, layer: LayerFacts) -> None:
    if layer.layer not in file.layers:
        raise LayerLookupError(
            f"{saved.path} was trained on layer {layer.layer!r}; {file.path} has "
            + (", ".join(repr(name) for name in file.layers) or "none in all splits"),
            hint=f"cnnfeat extract --layer {layer.layer_name or layer.layer}",
        )
    stored = file.layer(file.splits[0], layer.layer)
    width = int(np.prod(stored.shape[1:], dtype=np.int64))
    if width != layer.n_features:
        raise LayerLookupError(
            f"{file.path}: {layer.layer!r} has {width:,} features; {saved.path} was trained on "
            f"{layer.n_features:,}",
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
    found = unpack_parts(recorded[split], n_samples=n_samples)
    n_copies = saved.provenance.options.get("extract", {}).get("augment_copies")
    if found is None and isinstance(n_copies, int) and 0 < n_copies <= MOST_COPIES:  # behind them
        found = unpack_parts(recorded[split], n_samples=n_samples * (n_copies + 1))
        found = None if found is None else found[:n_samples]
    return found


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


def _predict(
    saved: SavedSVM, variations: Sequence[Array], known: _Known, *, scores: bool
) -> Iterator[Prediction]:
    """Say what rows are, by the mean of the decision values of their variations."""
    found = [_decisions(saved, rows, known.ids) for rows in variations]
    values = found[0] if len(found) == 1 else np.mean(found, axis=0)
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


def _decisions(saved: SavedSVM, rows: Array, ids: Sequence[str]) -> Floats:
    """Compute decision values, which a machine of immense numbers has none of."""
    flat = rows.reshape(len(rows), -1).astype(np.float32, copy=False)
    for row, reason in unusable(flat).items():
        raise DataError(
            f"{ids[row]}: {reason} in its features of {saved.layer!r}",
            hint="look at the network and its weights",
        )
    try:
        with np.errstate(all="ignore"):
            values = decision_values(saved.pipeline, flat)
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
