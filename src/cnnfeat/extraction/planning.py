"""What an extraction will make: checked, and written down before the first batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields

from cnnfeat import __version__
from cnnfeat.errors import DataError, UsageError, near_names
from cnnfeat.features import RESERVED_SPLITS, FilePlan, SplitPlan, plan_columns
from cnnfeat.records import OnError, Probe, Provenance, Source

DTYPES = ("float32", "float16")


def check_options(*, limit: int | None, batch_size: int | str, dtype: str, on_error: str) -> None:
    """Refuse what can't be.

    Raises
    ------
    UsageError
        With what was given and what is allowed.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, not {limit}")
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise UsageError(f"batch_size must be 'auto' or at least 1, not {batch_size!r}")
    if dtype not in DTYPES:
        raise UsageError(f"dtype must be 'float32' or 'float16', not {dtype!r}")
    if on_error not in ("raise", "skip"):
        raise UsageError(f"on_error must be 'raise' or 'skip', not {on_error!r}")


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


def make_plan(
    source: Source,
    probe: Probe,
    *,
    provenance: Provenance,
    splits: Sequence[str],
    limit: int | None,
    batch_size: int,
    dtype: str,
    on_error: OnError,
) -> FilePlan:
    """Lay down what will be in the file, and what a resumed run must have in common with this."""
    plans = []
    for name in splits:
        info = source.splits[name]
        columns = plan_columns(probe.outputs, dtype=dtype, has_labels=info.has_labels)
        n_rows = info.n_samples if limit is None else min(limit, info.n_samples)
        plans.append(SplitPlan(name, n_rows, columns))
    settings = {
        "model": provenance.network_sha256,
        "data": provenance.source,
        "data fingerprint": provenance.source_fingerprint,
        "layers": ", ".join(f"{o.layer} ({o.tensor})" for o in probe.outputs),
        "pooling": ", ".join(dict.fromkeys(o.pooling for o in probe.outputs)),
        "preprocessing": json.dumps(provenance.preprocessing, sort_keys=True),
        "precision": provenance.precision,
        "dtype": dtype,
        "splits": ", ".join(splits),
        "limit": "none" if limit is None else str(limit),
        "batch size": str(batch_size),
        "on-error": on_error,
        "TensorFlow version": provenance.tensorflow,
    }
    return FilePlan(
        splits=tuple(plans),
        classes=source.classes,
        attributes={**_attributes(provenance), "settings": json.dumps(settings)},
        settings=settings,
        source_state=source.state(),
    )


def _attributes(provenance: Provenance) -> dict[str, str | int | float]:
    values = {item.name: getattr(provenance, item.name) for item in fields(Provenance)}
    values["preprocessing"] = json.dumps(provenance.preprocessing)
    values["cnnfeat"] = __version__
    return {key: value for key, value in values.items() if value is not None}
