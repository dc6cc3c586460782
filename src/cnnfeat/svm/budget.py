"""What fits in the memory allowed: classes side by side, their Hessians, columns at a time."""

from __future__ import annotations

from collections.abc import Mapping

from cnnfeat.svm.design import Design
from cnnfeat.svm.factors import DENSE_LIMIT, Curvature
from cnnfeat.svm.groups import Group, union_of
from cnnfeat.svm.subproblem import starts_far

USABLE = 0.75  # of the memory allowed: the rest is lost between arrays that come and go
WORKING_SQUARES = 2  # a Hessian, and the copy that is factorised


def n_side_by_side(
    design: Design,
    groups: list[Group],
    curvatures: Mapping[int, Curvature],
    *,
    keep: bool,
    common: bool,
    max_steps: int,
    memory_bytes: int,
) -> int:
    """Return how many classes can be worked on at once; perhaps 0.

    Rows taken in the round before are let go of where both do not fit.

    Parameters
    ----------
    design : Design
        The rows.
    groups : list of Group
        The rows each class looks at.
    curvatures : mapping of int to Curvature
        By class.
    keep : bool
        Whether Hessians and factors stay for the next round.
    common : bool
        Whether there is a factor for all columns.
    max_steps : int
        Steps that each class takes.
    memory_bytes : int
        Memory allowed.
    """
    square = square_bytes(design)
    row_bytes = design.n_weights * design.dtype.itemsize
    owners = {k for k, curvature in curvatures.items() if curvature.factor}
    owners |= {
        group.positive
        for group in groups
        if max_steps > 1 or not common or not starts_far(curvatures.get(group.positive))
    }
    kept = (2 if design.held else 1) * len(owners) if keep else 0  # or the factor alone
    room = int(USABLE * memory_bytes) - square * (1 + kept)
    # The rows looked at, the active ones among them, and a Hessian about to be factorised.
    most = max(len(group.rows) for group in groups)
    each = max(1, 2 * most * row_bytes + WORKING_SQUARES * square)
    if not design.held:
        room -= len(union_of(groups, design.n_samples)) * row_bytes
        if room - design.taken_bytes >= each:
            room -= design.taken_bytes
        else:
            design.release()
    return max(0, min(len(groups), room // each))


def n_at_once(design: Design, n_columns: int, *, memory_bytes: int) -> int:
    """Return of how many columns the Hessians can be summed in one pass over the rows.

    Parameters
    ----------
    design : Design
        The rows.
    n_columns : int
        How many there are.
    memory_bytes : int
        Memory allowed.
    """
    square = square_bytes(design)
    if not square:
        return n_columns
    room = int(USABLE * memory_bytes) // square
    return min(n_columns, max(1, room - 1 - WORKING_SQUARES))  # one: the common factor


def square_bytes(design: Design) -> int:
    """Return the size of a Hessian; 0 where features are too many for one."""
    d = design.n_weights
    return d * d * design.dtype.itemsize if d <= DENSE_LIMIT else 0
