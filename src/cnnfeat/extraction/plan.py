"""What an extraction will make: checked, and written down before the first batch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Protocol

from cnnfeat import __version__
from cnnfeat.card import ModelCard
from cnnfeat.copies import Vary
from cnnfeat.errors import DataError, UsageError, near_names
from cnnfeat.features import (
    DIGEST,
    RESERVED_SPLITS,
    FilePlan,
    SplitPlan,
    beside_rows,
    plan_columns,
    row_checksums,
)
from cnnfeat.knobs import result_options, resume_settings
from cnnfeat.options import AugmentOptions, ExtractOptions, ProbeOptions, ReadOptions
from cnnfeat.provenance import Provenance
from cnnfeat.records import Batch, Json, LayerInfo, Probe, Source
from cnnfeat.shards import ShardNumber


class Prober(Protocol):
    """A network, as far as an extraction needs one: `cnnfeat.network.Network` is."""

    @property
    def path(self) -> str:
        """The file, as given."""

    @property
    def sha256(self) -> str:
        """Its digest."""

    @property
    def format(self) -> str:
        """The kind of file."""

    @property
    def card(self) -> ModelCard | None:
        """How it was made, where that is known."""

    @property
    def read_options(self) -> ReadOptions:
        """How it was read, as asked for."""

    @property
    def read_as(self) -> ReadOptions:
        """The same, with what was left open as it came to be."""

    def find(self, names: Sequence[str]) -> tuple[LayerInfo, ...]:
        """Look layers up by name."""

    def probe(
        self,
        layers: Sequence[LayerInfo],
        options: ProbeOptions,
        *,
        image_shape: tuple[int, int, int],
        image_dtype: str,
        batch_size: int,
    ) -> Probe:
        """Compile one function from images to activations."""

    def augmentation(self, options: AugmentOptions) -> Vary:
        """Make what varies images."""


@dataclass(frozen=True, slots=True)
class Job:
    """An extraction whose network, layers, images and batch size are settled."""

    network: Prober
    source: Source
    probe: Probe
    options: ExtractOptions
    splits: tuple[str, ...]
    batch_size: int
    shard: ShardNumber | None = None  # None: all rows

    def plan(self) -> FilePlan:
        """Lay down what will be in the file, and what a resumed run must have in common.

        Raises
        ------
        UsageError
            If there are too many shards.
        """
        n_samples = {name: self._n_samples(name) for name in self.splits}
        shard = None
        if self.shard is not None:
            shard = self.shard.rows(n_samples, batch_size=self.batch_size)
        plans = []
        for name in self.splits:
            start, stop = shard.samples[name] if shard else (0, n_samples[name])
            if start == stop:
                continue  # a short split, of which other shards have rows
            info = self.source.splits[name]
            beside = beside_rows(parts=self.source.parts(name), groups=self.source.groups(name))
            columns = plan_columns(
                self.probe.outputs,
                dtype=self.options.dtype,
                has_labels=info.has_labels,
                beside=(*beside, DIGEST),
            )
            plans.append(SplitPlan(name, stop - start, columns, start, beside))
        settings = self._settings()
        return FilePlan(
            splits=tuple(plans),
            classes=self.source.classes,
            attributes=replace(self.provenance(), settings=settings, shard=shard).to_attributes(),
            settings=settings,
            # Of each of many shards it would be as long as the source, and the fingerprint tells.
            source_state=b"" if shard else self.source.state(),
            is_shard=shard is not None,
        )

    def _n_samples(self, split: str) -> int:
        n_samples, limit = self.source.splits[split].n_samples, self.options.limit
        if limit is None or self.options.augment_copies:  # then the source is cut off already
            return n_samples
        return min(limit, n_samples)

    def batches(self, split: str, *, start: int, stop: int) -> Iterator[Batch]:
        """Read samples of a split as the network is given them, each with its digest.

        By these a picture that is read again, once the source has others besides, is known to be as
        it was; see `cnnfeat.extraction.comparing`.
        """
        if start == stop:
            return
        for batch in self.source.batches(
            split,
            batch_size=self.batch_size,
            start=start,
            stop=stop,
            target=self.probe.target,
            on_error=self.options.on_error,
        ):
            yield replace(batch, digests=row_checksums(batch.images))

    def provenance(self) -> Provenance:
        """Say where the features come from."""
        network, source, card = self.network, self.source, self.network.card
        fingerprint = source.fingerprint()
        return Provenance(
            network=network.path,
            network_sha256=network.sha256,
            network_format=network.format,
            source=source.name,
            source_kind=source.kind,
            source_labels=source.labels_from,
            source_fingerprint=fingerprint.digest,
            source_fingerprint_method=fingerprint.method,
            preprocessing=self.probe.preprocessing,
            precision=self.options.precision,
            device=self.probe.device,
            tensorflow=version("tensorflow"),
            engine=self.probe.engine,
            network_test_accuracy=None if card is None else card.test_accuracy,
            network_source="" if card is None else str(card.source.get("name", "")),
            network_source_fingerprint=""
            if card is None
            else str(card.source.get("fingerprint", "")),
            division=source.division,
            network_unsteady={name: tuple(ops) for name, ops in self.probe.unsteady.items()}
            or None,
            options={
                "data": source.options,
                "model": result_options(network.read_options),
                "extract": result_options(self.options),
            },
            cnnfeat=__version__,
        )

    def _settings(self) -> dict[str, str]:
        """What an option came to counts, not how it was spelled."""
        done, read = self.probe.preprocessing, self.source.options
        fingerprint = self.source.fingerprint()
        layers = ", ".join(f"{o.layer} ({o.tensor})" for o in self.probe.outputs)
        came_to: dict[str, Json] = {
            "layer": layers,
            "split": ", ".join(self.splits),
            "batch_size": self.batch_size,
            "scale": done.get("scale"),
            "resize": done.get("resize") or read.get("resize"),
            "fit": done.get("fit") or read.get("fit"),
            # Devices round differently; two GPUs of one machine may be of different make.
            "device": self.probe.device,
            "engine": self.probe.engine,
        }
        return {
            "model": self.network.sha256,
            "data": self.source.name,
            "data fingerprint": fingerprint.digest,
            **resume_settings(read),
            **resume_settings(result_options(self.network.read_as)),
            **resume_settings(result_options(self.options), **came_to),
            **resume_settings({}, division=self.source.division),
            "preprocessing": json.dumps(done, sort_keys=True),
            "TensorFlow version": version("tensorflow"),
        }


def choose_splits(source: Source, names: Sequence[str]) -> tuple[str, ...]:
    """Pick splits by name, in the source's order; all of them if none is named.

    Raises
    ------
    UsageError
        If the source has none of such a name.
    DataError
        If a split is empty, or named as a part of the feature file is.
    """
    for name in names:
        if name not in source.splits:
            raise UsageError(
                f"{source.name} has no split {name!r}; it has: {', '.join(source.splits)}",
                hint=near_names(name, source.splits),
            )
    chosen = tuple(name for name in source.splits if not names or name in names)
    for name in chosen:
        if not source.splits[name].n_samples:
            raise DataError(f"split {name!r} of {source.name} is empty")
        if name in RESERVED_SPLITS or "/" in name:
            raise DataError(f"a split of a feature file can't be called {name!r}")
    return chosen
