"""Labels for pictures, or for rows of a feature file, by a saved SVM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from cnnfeat.errors import FeatureFileError, LayerLookupError, NetworkError, UsageError
from cnnfeat.extraction import default_batch_size
from cnnfeat.features import FeatureFile
from cnnfeat.origin import recorded_probe
from cnnfeat.records import OnError, SkippedSample, Source
from cnnfeat.svm.machine import decide_block
from cnnfeat.svm.persistence import SavedSVM

if TYPE_CHECKING:
    from cnnfeat.network import Network

BATCH_ROWS = 512
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the machine says of one sample."""

    id: str
    split: str
    predicted: str  # class name
    margin: float  # how far its decision value lies above the second
    label: str | None  # the true class, where it is known


def is_feature_file(spec: str) -> bool:
    """Whether a path leads to an HDF5 file (a data set inside one, `file.h5:/x`, is a source)."""
    path = Path(spec)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(HDF5_MAGIC)) == HDF5_MAGIC


def predict_features(
    saved: SavedSVM, path: Path, *, splits: Sequence[str] = ()
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

    Raises
    ------
    FeatureFileError
        If the file is damaged, or was made by another network than the machine's.
    LayerLookupError
        If it does not have the machine's layer in the machine's width.
    """
    with FeatureFile(path) as file:
        _check_features(saved, file)
        for split in _asked(splits, file.splits):
            labels = file.labels(split)
            for start, rows in file.blocks(split, saved.layer, rows=BATCH_ROWS):
                truth = None if labels is None else labels[start : start + len(rows)]
                ids = file.ids(split, start=start, stop=start + len(rows))
                yield from _predict(
                    saved, rows, ids=ids, split=split, truth=truth, names=file.classes
                )


def predict_images(
    saved: SavedSVM,
    network: Network,
    source: Source,
    *,
    splits: Sequence[str] = (),
    batch_size: int | None = None,
    on_error: OnError = "raise",
    skipped: list[SkippedSample] | None = None,
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

    Raises
    ------
    NetworkError
        If the network is not the one the machine was trained on, or the pictures don't fit it.
    """
    check_network(saved, network)
    layers = network.find([str(saved.metadata["tensor"])])
    how = recorded_probe(saved.metadata, pool=str(saved.metadata.get("pooling") or "none"))
    for split in _asked(splits, tuple(source.splits)):
        info = source.splits[split]
        size = batch_size or default_batch_size(info.image_shape)
        probe = network.probe(
            layers, how, image_shape=info.image_shape, image_dtype=info.dtype, batch_size=size
        )
        batches = source.batches(split, batch_size=size, target=probe.target, on_error=on_error)
        for batch in batches:
            if skipped is not None:
                skipped.extend(batch.skipped)
            if len(batch):
                (rows,) = probe(batch.images)
                yield from _predict(
                    saved,
                    rows,
                    ids=batch.ids,
                    split=split,
                    truth=batch.labels,
                    names=source.classes,
                )


def check_network(saved: SavedSVM, network: Network) -> None:
    """Refuse any network but the one whose features the machine was trained on.

    Raises
    ------
    NetworkError
        With both digests.
    """
    expected = str(saved.metadata.get("network_sha256"))
    if network.sha256 != expected:
        raise NetworkError(
            f"{network.path} is not the network that {saved.path} was trained on: its SHA-256 "
            f"begins {network.sha256[:12]}, expected {expected[:12]} ({saved.metadata['network']})",
            hint="--model names the right one; or train again: cnnfeat extract, cnnfeat svm",
        )


def _check_features(saved: SavedSVM, file: FeatureFile) -> None:
    expected, found = saved.metadata.get("network_sha256"), file.attributes.get("network_sha256")
    if found != expected:
        raise FeatureFileError(
            f"{file.path} was made by another network than {saved.path} was trained on: its "
            f"SHA-256 begins {str(found)[:12]}, expected {str(expected)[:12]}",
            hint="extract again with the right model, or train again with cnnfeat svm",
        )
    if saved.layer not in file.layers:
        raise LayerLookupError(
            f"{saved.path} was trained on layer {saved.layer!r}; {file.path} has "
            + ", ".join(repr(name) for name in file.layers),
            hint=f"cnnfeat extract --layer {saved.metadata.get('layer_name', saved.layer)}",
        )
    stored = file.layer(file.splits[0], saved.layer)
    width = int(np.prod(stored.shape[1:], dtype=np.int64))
    if width != saved.metadata["n_features"]:
        raise LayerLookupError(
            f"{file.path}: {saved.layer!r} has {width:,} features; {saved.path} was trained on "
            f"{saved.metadata['n_features']:,}",
            hint="extract with the same pooling and image size as for training",
        )


def _asked(splits: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    for split in splits:
        if split not in known:
            raise UsageError(f"no split {split!r}; there are {', '.join(known)}")
    return splits or known


def _predict(
    saved: SavedSVM,
    rows: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
    *,
    ids: Sequence[str],
    split: str,
    truth: Sequence[int] | np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None,
    names: Sequence[str],
) -> Iterator[Prediction]:
    flat = rows.reshape(len(rows), -1).astype(np.float32, copy=False)
    if flat.shape[1] != saved.metadata["n_features"]:
        raise LayerLookupError(
            f"{saved.layer!r} gives {flat.shape[1]:,} features for these pictures; {saved.path} "
            f"was trained on {cast('int', saved.metadata['n_features']):,}",
            hint="use pictures of the size it was trained on",
        )
    codes, margins = decide_block(saved.pipeline, flat)
    for place, (name, code, margin) in enumerate(zip(ids, codes, margins, strict=True)):
        label = None
        if truth is not None:
            number = int(truth[place])
            label = names[number] if 0 <= number < len(names) else str(number)
        yield Prediction(name, split, saved.classes[int(code)], float(margin), label)
