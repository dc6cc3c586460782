"""The extract stage: a network, a source and layer names in, a feature file out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cnnfeat.extraction import LARGEST_BATCH, choose_splits, default_batch_size, extract
from cnnfeat.options import ProbeOptions
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import ExtractResult, OnError, Probe, Provenance, Source

if TYPE_CHECKING:
    from cnnfeat.network import Network

_AS_THEY_ARE = ProbeOptions()


def extract_features(
    network: Network,
    source: Source,
    *,
    layers: Sequence[str],
    out: Path,
    options: ProbeOptions = _AS_THEY_ARE,
    splits: Sequence[str] = (),
    limit: int | None = None,
    batch_size: int | Literal["auto"] | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
    resume: bool = False,
    on_error: OnError = "raise",
    should_stop: Callable[[], bool] | None = None,
    progress: Progress = SILENT,
) -> ExtractResult:
    """Write the activations of named layers for every image of a source.

    Parameters
    ----------
    network : Network
        From `cnnfeat.network.load_network`.
    source : Source
        From `cnnfeat.data.open_source`.
    layers : sequence of str
        Names, tensor names, patterns; see `Network.find`.
    batch_size : int or "auto", optional
        Images at a time; "auto" tries a few sizes; by default 512, fewer if they are large.
    out, splits, limit, dtype, overwrite, resume, on_error, should_stop, progress
        As in `cnnfeat.extraction.extract`.
    options : ProbeOptions
        How activations are computed.

    Raises
    ------
    LayerLookupError
        If a name means no layer, or several.
    CnnfeatError
        What `cnnfeat.extraction.extract` raises.
    """
    found = network.find(layers)
    first = source.splits[choose_splits(source, splits)[0]]
    if batch_size is None:
        height, width = options.resize or first.image_shape[:2]
        batch_size = default_batch_size((height, width, first.image_shape[2]))
    probe = network.probe(
        found,
        options,
        image_shape=first.image_shape,
        image_dtype=first.dtype,
        batch_size=LARGEST_BATCH if batch_size == "auto" else batch_size,
    )
    return extract(
        source,
        probe,
        out=out,
        provenance=provenance_of(network, source, probe=probe, precision=options.precision),
        splits=splits,
        limit=limit,
        batch_size=batch_size,
        dtype=dtype,
        overwrite=overwrite,
        resume=resume,
        on_error=on_error,
        should_stop=should_stop,
        progress=progress,
    )


def provenance_of(network: Network, source: Source, *, probe: Probe, precision: str) -> Provenance:
    """Say where features of `source` through `network` come from."""
    fingerprint = source.fingerprint()
    card = network.card
    return Provenance(
        network=network.path,
        network_sha256=network.sha256,
        network_format=network.format,
        source=source.name,
        source_kind=source.kind,
        source_labels=source.labels_from,
        source_fingerprint=fingerprint.digest,
        source_fingerprint_method=fingerprint.method,
        preprocessing=probe.preprocessing,
        precision=precision,
        tensorflow=version("tensorflow"),
        network_test_accuracy=None if card is None else card.test_accuracy,
        network_source="" if card is None else str(card.source.get("name", "")),
    )
