"""Varied images in an extraction: how they are varied, and features that are means over them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cnnfeat.card import ModelCard
from cnnfeat.copies import CopiedSource, Vary
from cnnfeat.divided import training_split
from cnnfeat.errors import ConfigError, NetworkError, UsageError
from cnnfeat.knobs import from_record
from cnnfeat.options import AugmentOptions, ExtractOptions
from cnnfeat.records import Array, ImageTarget, Probe, ProbeOutput, Source

A_LITTLE = AugmentOptions(rotation=10.0, shift=0.05)  # where neither user nor network says how

_log = logging.getLogger("cnnfeat")


def settle_augment(options: ExtractOptions, card: ModelCard | None) -> ExtractOptions:
    """Say how images are varied: as asked for, else as in the network's training, else a little.

    Raises
    ------
    UsageError
        If it is asked for, and no varied images are.
    NetworkError
        If the card's record can't be read.
    """
    if not (options.augment_copies or options.average):
        if options.augment:
            raise UsageError(
                "--augment says how images are varied, and none are asked for",
                hint="--augment-copies 3 adds copies of what a machine trains on; --average 8 "
                "averages features",
            )
        return options
    chosen, why = choose_augment(options.augment, card)
    _log.info("images are varied by %s, %s", chosen, why)
    return dataclasses.replace(options, augment=chosen.given)


def choose_augment(
    given: Sequence[tuple[str, float | str]], card: ModelCard | None
) -> tuple[AugmentOptions, str]:
    """Pick how images are varied; also in words, why so."""
    if given:
        return AugmentOptions(**dict(given)), "as asked for"  # type: ignore[arg-type]
    trained = trained_with(card)
    if trained.varies:
        return trained, "as in the network's training"
    return A_LITTLE, "as neither --augment nor the network's training says how"


def trained_with(card: ModelCard | None) -> AugmentOptions:
    """How images were varied in a network's training.

    Raises
    ------
    NetworkError
        If the card's record can't be read.
    """
    record = None if card is None else card.config.get("augment")
    try:
        return from_record(AugmentOptions, record)
    except ConfigError as error:
        raise NetworkError(
            f"the network's card is damaged, or of another version of cnnfeat: config.augment: "
            f"{error}",
            hint="delete the card, the .json file beside the network, to go on",
        ) from error


def with_copies(source: Source, options: ExtractOptions, vary: Vary) -> Source:
    """Put copies behind the rows of the training split, where they are asked for.

    Raises
    ------
    UsageError
        If that split isn't.
    """
    if not options.augment_copies:
        return source
    split = training_split(source)
    if options.split and split not in options.split:
        raise UsageError(
            f"--augment-copies makes copies of {split!r}, which isn't extracted",
            hint=f"--split {split}, or leave --augment-copies out",
        )
    return CopiedSource(source, options.augment_copies, vary, limit=options.limit)


class AveragedProbe:
    """A probe whose activations are means over each image and ways to vary it.

    The ways are the same for all images, whatever rows they are.

    Parameters
    ----------
    probe : Probe
        Of one image.
    vary : Vary
        How images are varied.
    n : int
        Over how many, the image itself among them.

    Raises
    ------
    UsageError
        If what is computed has no mean.
    """

    def __init__(self, probe: Probe, vary: Vary, n: int) -> None:
        for output in probe.outputs:
            if np.dtype(output.dtype).kind != "f":
                raise UsageError(
                    f"{output.layer} holds {output.dtype} numbers, which have no average",
                    hint="leave --average out, or name a layer before it",
                )
        self._probe, self._vary, self._n = probe, vary, n
        self.outputs: tuple[ProbeOutput, ...] = probe.outputs
        self.preprocessing: Mapping[str, str | int | Sequence[int] | None] = probe.preprocessing
        self.target: ImageTarget = probe.target
        self.unsteady: Mapping[str, Sequence[str]] = probe.unsteady
        self.device: str = probe.device

    @property
    def engine(self) -> str:
        """See `records.Probe`."""
        return self._probe.engine

    def __call__(self, images: Array) -> tuple[Array, ...]:
        """See `records.Probe`."""
        first = self._probe(images)
        sums: list[NDArray[np.float32]] = [array.astype(np.float32) for array in first]
        for turn in range(1, self._n):
            varied = self._vary(images, turn=turn, rows=np.zeros(len(images), np.intp))
            arrays = [array.astype(np.float32) for array in self._probe(varied)]
            sums = [total + array for total, array in zip(sums, arrays, strict=True)]
        return tuple(
            (total / np.float32(self._n)).astype(array.dtype)
            for total, array in zip(sums, first, strict=True)
        )
