"""How a long task tells how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One thing under way."""

    def advance(self, amount: float = 1, *, note: str = "") -> None:
        """Say that `amount` more is done; `note` is a short state such as "loss 0.13"."""


class Progress(Protocol):
    """Makes tasks. The command line has one that draws bars; `SILENT` draws nothing."""

    def task(
        self, label: str, *, total: float | None, unit: str, done: int = 0
    ) -> AbstractContextManager[Task]:
        """Begin a task of `total` units ("images", "bytes", "epochs"), `done` of them before."""


class _SilentTask:
    def advance(self, amount: float = 1, *, note: str = "") -> None:
        """Ignore it."""


class _Silent:
    @contextmanager
    def task(
        self,
        label: str,  # noqa: ARG002
        *,
        total: float | None,  # noqa: ARG002
        unit: str,  # noqa: ARG002
        done: int = 0,  # noqa: ARG002
    ) -> Iterator[Task]:
        """Begin a task nobody watches."""
        yield _SilentTask()


SILENT: Progress = _Silent()
