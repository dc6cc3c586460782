"""Activations of pictures as a machine takes them: its layers side by side, of all its networks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cnnfeat.copies import Vary
from cnnfeat.errors import LayerLookupError, MisfitError
from cnnfeat.knobs import fields_of
from cnnfeat.options import (
    AverageOptions,
    ExtractOptions,
    FitOptions,
    ProbeOptions,
    Size,
    check_fit,
)
from cnnfeat.origin import recorded_fitting, recorded_probe
from cnnfeat.records import (
    Array,
    Batch,
    Fit,
    ImageTarget,
    Labels,
    LayerInfo,
    OnError,
    Probe,
    SkippedSample,
    Source,
    SplitInfo,
)

if TYPE_CHECKING:
    from cnnfeat.network import Network
    from cnnfeat.provenance import Provenance
    from cnnfeat.svm import SavedSVM
    from cnnfeat.svm.matrix import Floats


@dataclass(frozen=True, slots=True)
class Fitting:
    """What pictures are brought to: as asked, as for the machine, or as the network takes."""

    recorded: ExtractOptions
    resize: Size | None
    fit: Fit | None
    invert: bool
    any_size: bool

    @classmethod
    def of(cls, said: Provenance, given: FitOptions, *, pooling: str, any_size: bool) -> Fitting:
        """Read what was done for features, where nothing else is asked for."""
        known, recorded = recorded_fitting(said), recorded_probe(said, pool=pooling)
        alike = (*fields_of(ProbeOptions), "average", "augment")  # what matters to a single picture
        return cls(
            recorded=ExtractOptions(**{name: getattr(recorded, name) for name in alike}),
            resize=given.resize or known.resize,
            fit=given.fit or known.fit,
            invert=given.invert or known.invert,
            any_size=any_size,
        )

    def size(self, network: Network, info: SplitInfo) -> Size | None:
        """What size pictures have when they come to the network; None: their own."""
        return self.resize or network.size_for(info.image_shape)

    def how(self, network: Network, info: SplitInfo) -> ExtractOptions:
        """How activations of a split's pictures are computed."""
        size = self.size(network, info)
        if not self.any_size:
            return dataclasses.replace(self.recorded, resize=None, fit=None)
        check_fit(self.fit, size)
        if info.uniform and info.image_shape[:2] == size:
            size = None
        return dataclasses.replace(self.recorded, resize=size, fit=self.fit if size else None)


@dataclass(frozen=True, slots=True)
class PlannedProbe:
    """What one network is asked about the pictures of a split."""

    network: Network
    made: Provenance  # of the features that it made for the machine
    how: ExtractOptions
    probe: Probe
    vary: Vary
    outputs: Mapping[int, int]  # by place among the machine's layers, that among the probe's
    target: ImageTarget  # what pictures are brought to
    size: Size | None  # that pictures must have; None: they are brought to one
    turn: int = 0  # which variation is looked at; 0: the picture itself

    def __call__(self, images: Array) -> dict[int, Array]:
        """Compute activations, by place among the machine's layers.

        Raises
        ------
        MisfitError
            If pictures of this shape don't go through the network.
        """
        if self.size not in (None, images.shape[1:3]):
            height, width = images.shape[1:3]
            raise MisfitError(
                f"it is {height}×{width}, and the machine was trained on pictures of "
                f"{self.size[0]}×{self.size[1]}",
                hint="without --no-resize it is brought to that size",
            )
        if self.turn:
            images = self.vary(images, turn=self.turn, rows=np.zeros(len(images), np.intp))
        found = self.probe(images)
        return {place: found[number] for place, number in self.outputs.items()}


def plan_probes(
    saved: SavedSVM,
    networks: Sequence[Network],
    info: SplitInfo,
    *,
    given: FitOptions,
    any_size: bool,
    averaging: AverageOptions,
    batch_size: int | None,
) -> tuple[list[PlannedProbe], int]:
    """Ask each network once for all of its layers; also say how many pictures at a time.

    Parameters
    ----------
    saved : SavedSVM
        The machine.
    networks : sequence of Network
        That of each of the machine's files.
    info : SplitInfo
        Of the pictures.
    given : FitOptions
        What pictures are brought to, where that is not what was done for the machine.
    any_size : bool
        Whether pictures of another size may be brought to that.
    averaging : AverageOptions
        Over which variations of pictures features, or decision values, are averaged.
    batch_size : int, optional
        Pictures at a time; by default 512, fewer if they are large.
    """
    from cnnfeat.extraction import default_batch_size

    places: dict[tuple[int, ExtractOptions, Size | None, bool], list[int]] = {}
    for place, layer in enumerate(saved.layers):
        network, said = networks[layer.file], saved.files[layer.file]
        fitting = Fitting.of(said, given, pooling=layer.pooling, any_size=any_size)
        size, how = fitting.size(network, info), fitting.how(network, info)
        places.setdefault((id(network), how, size, fitting.invert), []).append(place)
    by_id = {id(network): network for network in networks}
    shapes = [ImageTarget(size).shape_of(info.image_shape) for _, _, size, _ in places]
    rows = batch_size or min(map(default_batch_size, shapes))
    planned = []
    for shape, ((key, how, size, invert), own) in zip(shapes, places.items(), strict=True):
        network = by_id[key]
        layers = {place: _find(network, saved, place) for place in own}
        unique = list(dict.fromkeys(layers.values()))
        probe = network.probe(
            unique,
            how,
            image_shape=shape,  # of all sizes that become one, one function is compiled
            image_dtype=info.dtype,
            batch_size=rows,
        )
        planned.append(
            PlannedProbe(
                network,
                saved.files[saved.layers[own[0]].file],
                how,
                *_averaged(probe, network, how, averaging),
                {place: unique.index(layer) for place, layer in layers.items()},
                dataclasses.replace(probe.target, invert=invert),
                None if any_size else size,
            )
        )
    return planned, rows


def _averaged(
    probe: Probe, network: Network, how: ExtractOptions, asked: AverageOptions
) -> tuple[Probe, Vary]:
    """Average features as is asked for, else as for the machine; also say how pictures vary."""
    from cnnfeat.extraction.varying import AveragedProbe, choose_augment

    augment, _ = choose_augment(asked.augment or how.augment, network.card)
    vary: Vary = network.augmentation(augment)
    n = how.average if asked.average is None or asked.average_scores else asked.average
    return (AveragedProbe(probe, vary, n) if n and n > 1 else probe), vary


def _find(network: Network, saved: SavedSVM, place: int) -> LayerInfo:
    facts = saved.layers[place]
    name = facts.tensor or facts.layer_name or facts.layer
    found = network.find([name])
    if len(found) > 1:
        raise LayerLookupError(f"{saved.path} is of {name!r}, which means {len(found)} layers")
    return found[0]


@dataclass(frozen=True, slots=True)
class Activated:
    """Some pictures of a split, and their activations by place among the machine's layers."""

    rows: NDArray[np.int64]  # (n_samples,) places in the split, ascending
    ids: Sequence[str]
    labels: Labels | None
    layers: Mapping[int, Array]  # (n_samples, ...) each
    skipped: tuple[SkippedSample, ...]

    @classmethod
    def of(cls, batch: Batch, layers: Mapping[int, Array]) -> Activated:
        """Say which rows of the split a batch's are."""
        left_out = [sample.row for sample in batch.skipped]
        rows = np.setdiff1d(np.arange(batch.start, batch.stop), left_out)
        return cls(rows, batch.ids, batch.labels, layers, batch.skipped)

    def features(self, saved: SavedSVM) -> Floats:
        """Put layers side by side, as the machine takes them: (n_samples, n_features).

        Raises
        ------
        LayerLookupError
            If a layer gives others for these pictures than for the machine's.
        """
        flat = []
        for place, layer in enumerate(saved.layers):
            rows = self.layers[place].reshape(len(self.rows), -1)
            if rows.shape[1] != layer.n_features:
                raise LayerLookupError(
                    f"{layer.layer!r} gives {rows.shape[1]:,} features for these pictures; "
                    f"{saved.path} was trained on {layer.n_features:,}",
                    hint="use pictures of the size it was trained on",
                )
            flat.append(rows.astype(np.float32, copy=False))
        return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)


def activate(
    probes: Sequence[PlannedProbe],
    source: Source,
    split: str,
    *,
    batch_size: int,
    on_error: OnError,
) -> Iterator[Activated]:
    """Compute activations of all pictures of a split, a batch at a time.

    Networks that take pictures alike share a reading of them; others read each batch in turn.

    Parameters
    ----------
    probes : sequence of PlannedProbe
        From `plan_probes`.
    source : Source
        The pictures.
    split : str
        Which of them.
    batch_size : int
        Pictures at a time.
    on_error : {"raise", "skip"}
        Whether a picture that can't be used, by any network, ends it or is left out.
    """
    readings: dict[ImageTarget, list[PlannedProbe]] = {}
    for probe in probes:
        readings.setdefault(probe.target, []).append(probe)
    n_samples = source.splits[split].n_samples
    step = batch_size if len(readings) > 1 else max(1, n_samples)
    for start in range(0, max(1, n_samples), step):
        read = [
            _read(
                own,
                source.batches(
                    split,
                    batch_size=batch_size,
                    start=start,
                    stop=min(start + step, n_samples),
                    target=target,
                    on_error=on_error,
                ),
                on_error=on_error,
            )
            for target, own in readings.items()
        ]
        if len(read) == 1:
            yield from read[0]
        else:
            yield _side_by_side([_whole(list(one)) for one in read])


def _read(
    probes: Sequence[PlannedProbe], batches: Iterator[Batch], *, on_error: OnError
) -> Iterator[Activated]:
    """Compute; pictures whose shape doesn't go through are left out, if they may be."""
    for batch in batches:
        computed: dict[int, Array] = {}
        kept = batch
        try:
            for probe in probes if len(batch) else ():
                computed |= probe(batch.images)
        except MisfitError as error:  # all pictures of a batch have one shape
            if on_error == "raise":
                raise MisfitError(f"{batch.ids[0]}: {error.message}", hint=error.hint) from error
            kept = batch.without(dict.fromkeys(range(len(batch)), error.message))
        yield Activated.of(kept, computed)


def _whole(pieces: Sequence[Activated]) -> Activated:
    """Put consecutive pictures into one."""
    full = [one for one in pieces if len(one.rows)]
    if not full:
        none = np.empty(0, np.int64)
        return Activated(none, (), None, {}, tuple(s for one in pieces for s in one.skipped))
    labels = [one.labels for one in full if one.labels is not None]
    return Activated(
        np.concatenate([one.rows for one in full]),
        [name for one in full for name in one.ids],
        np.concatenate(labels) if labels else None,
        {place: np.concatenate([one.layers[place] for one in full]) for place in full[0].layers},
        tuple(sample for one in pieces for sample in one.skipped),
    )


def _side_by_side(read: Sequence[Activated]) -> Activated:
    """Keep the pictures that all networks took."""
    rows = functools.reduce(np.intersect1d, [one.rows for one in read])
    layers: dict[int, Array] = {}
    for one in read:
        places = np.searchsorted(one.rows, rows)
        layers |= {place: found[places] for place, found in one.layers.items()}
    first = read[0]
    places = np.searchsorted(first.rows, rows)
    skipped = {sample.row: sample for one in read for sample in one.skipped}
    return Activated(
        rows,
        [first.ids[place] for place in places.tolist()],
        None if first.labels is None else first.labels[places],
        layers,
        tuple(skipped[row] for row in sorted(skipped)),
    )
