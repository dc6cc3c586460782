"""Steps that may have no end, such as computing a stranger's network, told to whoever watches.

In a program nobody does, and nothing happens: it is the program's own to wait or to be stopped. The
command line sets a watcher that ends the process once a step takes longer than its user waits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeAlias

# Entered around a step: what it does ("opening a.pb"), and seconds it may take besides.
Watcher: TypeAlias = Callable[[str, float], AbstractContextManager[None]]


def _nobody(_step: str, _extra_s: float) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


_watchers: list[Watcher] = [_nobody]


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Tell a watcher of every step meanwhile, in whatever thread."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def watched(step: str, *, extra_s: float = 0.0) -> AbstractContextManager[None]:
    """Tell who watches of a step, which lasts as long as the context does.

    Parameters
    ----------
    step : str
        What is done: "opening model.pb".
    extra_s : float
        Seconds that it is known to need besides.
    """
    return _watchers[-1](step, extra_s)
