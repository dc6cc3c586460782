"""Values of options as people spell them: sizes, devices, feeds, bytes, lists, names and numbers.

Each parser takes what a command line or TOML has; its `ValueError` says what is allowed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import TypeAlias

FeedValue: TypeAlias = bool | int | float | str


def parse_device(value: object) -> object:
    """`auto`, `cpu`, or `gpu:0`, which `gpu` is too."""
    found = re.fullmatch(r"auto|cpu|gpu(?::([0-9]{1,4}))?", str(value).lower())
    if not found:
        raise ValueError(f"{value!r} is no device; auto, cpu and gpu:0 are")
    return f"gpu:{int(found[1] or 0)}" if found[0].startswith("gpu") else found[0]


_MOST_PIXELS = 10_000 * 10_000  # that images can be brought to


def parse_size(value: object) -> object:
    """`224x160`: height and width; `224`: both."""
    parts = (
        value
        if isinstance(value, list | tuple)
        else str(value).lower().replace("×", "x").split("x")
    )
    sides = [int(str(part)) for part in parts if str(part).isdecimal()]
    if not 1 <= len(sides) == len(parts) <= 2 or not all(sides):
        raise ValueError(f"{value!r} is no size; 224x160 is 224 high and 160 wide")
    if sides[0] * sides[-1] > _MOST_PIXELS:
        raise ValueError(f"{value!r} is too large; {_MOST_PIXELS:,} pixels are the most")
    return sides[0], sides[-1]


def parse_feeds(value: object) -> object:
    """`keep_prob=1.0`, several of them, or a table of names and values."""
    if isinstance(value, Mapping):
        items: list[object] = list(value.items())
    else:
        items = list(value) if isinstance(value, list | tuple) else [value]
    feeds: dict[str, FeedValue] = {}
    for item in items:
        name, given = item if isinstance(item, tuple) else _split_feed(item)
        if not isinstance(given, bool | int | float | str):
            raise ValueError(f"{name!r} takes a number, a text, true or false, not {given!r}")
        feeds[str(name)] = given
    return tuple(sorted(feeds.items()))


def _split_feed(item: object) -> tuple[str, FeedValue]:
    """Split at the first `=`, and read the value as the simplest type it fits."""
    name, sign, text = str(item).partition("=")
    if not name or not sign:
        raise ValueError(f"{item!r} is no NAME=VALUE; try keep_prob=1.0")
    if text.lower() in ("true", "false"):
        return name, text.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return name, kind(text)
    return name, text


_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_LEAST_MEMORY = 64 * 2**20


def parse_bytes(value: object) -> object:
    """`2GiB`, `512MiB`, or a number of bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", str(value).lower())
    if not found or isinstance(value, bool):
        raise ValueError(f"{value!r} is no size; 2GiB and 512MiB are")
    size_bytes = int(float(found[1]) * _UNITS[found[2]])
    if size_bytes < _LEAST_MEMORY:
        raise ValueError(f"must be at least 64MiB, not {value}")
    return size_bytes


def parse_grid(value: object) -> object:
    """`0.01,0.1,1`, or a list of numbers."""
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    try:
        grid = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is no list of numbers; 0.01,0.1,1 is") from None
    if len(set(grid)) < 2 or not all(0 < C < float("inf") for C in grid):
        raise ValueError(f"needs at least 2 different values above 0, not {value}")
    return grid


def parse_class_weight(value: object) -> object:
    """`balanced`; `cat=2.0`, several of them; or a table of names and numbers."""
    if isinstance(value, Mapping):
        items: list[object] = list(value.items())
    else:
        items = list(value) if isinstance(value, list | tuple) else [value]
    if items == ["balanced"]:
        return "balanced"
    weights: dict[str, float] = {}
    for item in items:
        name, given = item if isinstance(item, tuple) else str(item).rpartition("=")[::2]
        if not name:
            raise ValueError(f"{item!r} is no NAME=VALUE; cat=2.0 is, and balanced stands alone")
        try:
            weight = float(str(given))
        except ValueError:
            weight = 0.0
        if not 0 < weight <= 1e9:
            raise ValueError(f"{name!r} takes a number above 0 and at most 1e9, not {given!r}")
        weights[str(name)] = weight
    return tuple(sorted(weights.items()))


_MOST_SEEDS = 100
LARGEST_SEED = 2**32 - 1


def parse_seeds(value: object) -> object:
    """`0,1,2`, or a list of whole numbers."""
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    words = [str(part).strip() for part in parts]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise ValueError(f"{value!r} is no list of whole numbers; 0,1,2 is")
    seeds = tuple(int(word[:20]) for word in words)
    if not 1 <= len(set(seeds)) == len(seeds) <= _MOST_SEEDS or max(seeds) > LARGEST_SEED:
        raise ValueError(
            f"takes 1 to {_MOST_SEEDS} different numbers of at most {LARGEST_SEED}, not {value}"
        )
    return seeds
