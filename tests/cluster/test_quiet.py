"""Which cores the processes of a cluster of one machine keep to."""

from __future__ import annotations

import pytest

from cnnfeat.cluster.quiet import share


@pytest.mark.parametrize(
    ("cores", "n_processes", "shares"),
    [
        ([0, 1], 2, [[0], [1]]),
        ([4, 5, 6, 7, 9], 2, [[4, 5], [6, 7, 9]]),
        ([3], 2, [[3], [3]]),
        ([0, 1, 2, 3], 1, [[0, 1, 2, 3]]),
    ],
)
def test_each_process_has_cores_of_its_own(cores, n_processes, shares):
    assert [share(cores, number, n_processes) for number in range(n_processes)] == shares
