"""Adds to features that are there: layers, or the pictures that their source has got since."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from cnnfeat.extraction.existing import Existing, drop_others, put_back
from cnnfeat.extraction.growing import add_pictures
from cnnfeat.extraction.run import Extraction, never, result_of
from cnnfeat.extraction.widening import add_layers, check_made_so
from cnnfeat.features import FeatureFile
from cnnfeat.features.merging import seal_set
from cnnfeat.files import locked
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import ExtractResult, Source

_log = logging.getLogger("cnnfeat")


def add_to(
    extraction: Extraction,
    source: Source,
    *,
    out: Path,
    should_stop: Callable[[], bool] | None = None,
    progress: Progress = SILENT,
) -> ExtractResult:
    """Add layers to a feature file or a set, or the pictures that its source has got since.

    What stands there is checked and copied, and not computed again; what comes of it is what an
    extraction of all layers, or all pictures, would have made. The file that was there stays until
    the new one is whole, and a set until all new shards are. What an interrupted run has left is
    gone on with. Layers and pictures are added one after the other, pictures first.

    Parameters
    ----------
    extraction : Extraction
        The network, and the layers that are to be there besides those that are.
    source : Source
        The images. Where they aren't those that the features were made of, those that have no row
        yet are added, wherever they stand in the source's order.
    out : Path
        The feature file, or the folder of shards.
    should_stop : callable, optional
        Asked before each batch; if true, the run ends in order and can be taken up again.
    progress : Progress
        Told of every batch.

    Raises
    ------
    UsageError
        If what is there was made with other settings, with the first of them; or of other images,
        where a layer is to be added.
    DataError
        If it is damaged; if of the pictures that have a row one has changed, or is gone.
    CnnfeatError
        As `extract` does.
    """
    began, should_stop = time.monotonic(), should_stop or never
    with locked(out) if out.is_dir() else contextlib.nullcontext():
        put_back(out)
        there = Existing.at(out)
        new = [info for info in extraction.layers if not there.has(info.tensor.name)]
        if not there.is_of(source):
            outputs = add_pictures(
                extraction, source, there, new, should_stop=should_stop, progress=progress
            )
        elif new:
            outputs = add_layers(
                extraction, source, there, new, should_stop=should_stop, progress=progress
            )
        else:
            outputs = check_made_so(extraction, source, there)
            _log.info("%s has these layers already", out)
            if out.is_dir():  # an interrupted run may have come no further
                seal_set(out, progress=progress)
                drop_others(out, len(there.paths))
    with FeatureFile(out) as file:
        return result_of(file, outputs, began)
