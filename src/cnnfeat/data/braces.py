"""Names in braces, as shells write many in one: `train-{0000..0099}.tar`, `{train,test}.tar`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from cnnfeat.errors import UsageError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d{1,9})\.\.(-?\d{1,9})(?:\.\.(-?\d{1,9}))?")
_MOST = 1_000_000


def expand(pattern: str) -> list[str]:
    """Write out a pattern, in its order; a name without braces, or with others, is itself.

    Raises
    ------
    UsageError
        If it stands for more than a million names.
    """
    texts = _BRACES.split(pattern)  # what is within braces stands at odd places
    choices = [_choices(text) if place % 2 else [text] for place, text in enumerate(texts)]
    n_names = 1
    for one in choices:
        n_names *= len(one)
    if n_names > _MOST:
        raise UsageError(f"{pattern}: stands for {n_names:,} files; {_MOST:,} are allowed")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(text: str) -> Sequence[str]:
    """What stands for one pair of braces; numbers are as wide as the wider of the two."""
    if (found := _RANGE.fullmatch(text)) is None:
        return text.split(",") if "," in text else [f"{{{text}}}"]
    first, last = int(found[1]), int(found[2])
    step = max(1, abs(int(found[3] or 1)))
    padded = any(re.match(r"-?0\d", end) for end in (found[1], found[2]))
    width = max(len(found[1]), len(found[2])) if padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    if len(numbers) > _MOST:
        raise UsageError(f"{{{text}}}: stands for {len(numbers):,} numbers; {_MOST:,} are allowed")
    return [f"{number:0{width}d}" for number in numbers]
