"""Asking a source for some of its rows."""

from __future__ import annotations

from collections.abc import Mapping

from cnnfeat.errors import UsageError, near_names
from cnnfeat.records import SplitInfo


def find_split(splits: Mapping[str, SplitInfo], name: str) -> SplitInfo:
    """Find a split by its name.

    Raises
    ------
    UsageError
        With the splits there are.
    """
    if name not in splits:
        raise UsageError(
            f"no split {name!r}; this source has: {', '.join(splits)}",
            hint=near_names(name, splits),
        )
    return splits[name]


def check_range(info: SplitInfo, *, start: int, stop: int | None, batch_size: int) -> int:
    """Check which rows are asked for, and return where to stop.

    Raises
    ------
    UsageError
        If they aren't rows of the split, or `batch_size` is less than 1.
    """
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1, not {batch_size}")
    end = info.n_samples if stop is None else min(stop, info.n_samples)
    if start < 0 or end < 0:
        raise UsageError(f"rows {start} to {end}: {info.name} has rows 0 to {info.n_samples - 1}")
    return end
