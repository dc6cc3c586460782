"""What a person sees: data on stdout, words and progress on stderr."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from cnnfeat.progress import SILENT, Progress, Task

if TYPE_CHECKING:
    from rich.console import Console

    from cnnfeat.cli.session import Settings
    from cnnfeat.records import Source

PLAIN_INTERVAL_S = 5.0  # between two lines of progress where there is no terminal
NOTE_INTERVAL_S = 3.0  # the same, where the second has news

# Control characters, ends of lines, marks that turn the direction of a text, and half characters.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size_text(size_bytes: float) -> str:
    """Write a number of bytes as people read it: "471.1 MiB"."""
    for unit in _UNITS:
        if size_bytes < 1024 or unit == _UNITS[-1]:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    raise AssertionError("the last unit has no limit")


def time_text(seconds: float) -> str:
    """Write how long something takes, as people say it: "40 s", "4 min", "2 h 10 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def visible(text: str, *, lines: bool = False) -> str:
    """Escape what steers a terminal instead of being shown; with `lines`, not their ends."""
    return _STEERING.sub(
        lambda found: found[0] if lines and found[0] in "\n\t" else ascii(found[0])[1:-1], text
    )


def fit_streams() -> None:
    """Let characters that stdout or stderr has no bytes for be escaped, whatever they are."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(message: str) -> None:
    """Write one line to stderr, above the progress bar if one is drawn."""
    message = visible(message, lines=True)
    if _live:
        _live[-1].print(message, markup=False, highlight=False, soft_wrap=True)
    else:
        click.echo(message, err=True)


def show(message: str) -> None:
    """Write one line of the result to stdout."""
    click.echo(visible(message))


def show_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Write names and what they are to stdout, in two columns."""
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        click.echo(f"{name:<{width}}  {visible(text)}")


def source_text(source: Source) -> str:
    """Describe a source in one line: "mnist: 60,000 train and 10,000 test images of 28×28×1"."""
    counts = " and ".join(f"{info.n_samples:,} {name}" for name, info in source.splits.items())
    first = next(iter(source.splits.values()))
    size, shape = ("×".join(map(str, first.image_shape[:n])) for n in (2, 3))
    if all(info.uniform for info in source.splits.values()):
        shapes = f" of {shape}"
    elif source.options.get("resize"):
        shapes = f" brought to {size}"
    else:
        shapes = f", the first {shape}"
    if source.options.get("invert"):
        shapes += ", inverted"
    labels = [found for split in source.splits if (found := source.labels(split)) is not None]
    n_classes = len({label for found in labels for label in set(found.tolist())})
    classes = f", {n_classes:,} class{'es' * (n_classes > 1)}" if n_classes else ", no labels"
    return f"{source.name}: {counts} images{shapes}{classes}"


def show_json(document: object) -> None:
    """Write a JSON document to stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def show_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[str] = (),
    title: str = "",
) -> None:
    """Write a table to stdout; columns in `numeric` are set flush right.

    Off a terminal nothing is cut or wrapped: rows are as wide as they are.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in numeric else "left",
            overflow="fold",
            no_wrap=not terminal,
        )
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console = _console(stderr=False)
    if not terminal:
        console.width = 10_000
    console.print(table)


def progress(settings: Settings) -> Progress:
    """Pick how progress is shown: a bar on a terminal, lines elsewhere, or not at all."""
    if not settings.progress or settings.verbosity < 0:
        return SILENT
    return _Bars() if sys.stderr.isatty() else _Lines()


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            """Leave it to `main`; rich would exit 1."""
            raise  # noqa: PLE0704 - rich calls this while it handles BrokenPipeError

    return PipedConsole(stderr=stderr, highlight=False)


_live: list[Console] = []


class _Bars:
    """Progress bars on a terminal."""

    @contextmanager
    def task(self, label: str, *, total: float | None, unit: str) -> Iterator[Task]:
        """Draw one bar until the task ends."""
        from rich import progress as rich_progress
        from rich.text import Text

        class TimeLeft(rich_progress.ProgressColumn):
            max_refresh = 0.5  # seconds: a number that jumps can't be read

            def render(self, task: rich_progress.Task) -> Text:
                """Say how long it takes yet, or, at the end, how long it took."""
                if task.finished:
                    return Text(f"in {time_text(task.finished_time or 0)}")
                left_s = task.time_remaining
                return Text("" if left_s is None else f"· {time_text(left_s)} left")

        console = _console(stderr=True)
        columns: tuple[rich_progress.ProgressColumn, ...] = (
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.DownloadColumn()
            if unit == "bytes"
            else rich_progress.TextColumn(
                "{task.completed:,.0f}/{task.fields[of]} {task.fields[unit]}"
            ),
            rich_progress.TextColumn("{task.fields[note]}"),
            TimeLeft(),
        )
        with rich_progress.Progress(*columns, console=console) as bars:
            handle = bars.add_task(
                label, total=total, unit=unit, note="", of="?" if total is None else f"{total:,.0f}"
            )
            _live.append(console)
            try:
                yield _BarTask(bars, handle)
            finally:
                _live.pop()


class _BarTask:
    def __init__(self, bars: object, handle: object) -> None:
        self._bars, self._handle = bars, handle

    def advance(self, amount: float = 1, *, note: str = "") -> None:
        """Move the bar."""
        changes: Mapping[str, object] = {"note": note} if note else {}
        self._bars.update(self._handle, advance=amount, **changes)  # type: ignore[attr-defined]


class _Lines:
    """A line now and then, for logs."""

    @contextmanager
    def task(self, label: str, *, total: float | None, unit: str) -> Iterator[Task]:
        """Write a line every few seconds, and one at the end."""
        task = _LineTask(label, total, unit)
        yield task
        task.finish()


class _LineTask:
    def __init__(self, label: str, total: float | None, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done, self._note = 0.0, ""
        self._started = self._said = time.monotonic()
        self._first: tuple[float, float] | None = None  # when, and how much was done

    def advance(self, amount: float = 1, *, note: str = "") -> None:
        """Count, and write a line when it is time or the task says something new."""
        self._done += amount
        now = time.monotonic()
        if self._first is None and self._done:  # what came before it is compiling, or was done
            self._first = now, self._done
        news = bool(note) and note != self._note
        self._note = note or self._note
        if now - self._said >= (NOTE_INTERVAL_S if news else PLAIN_INTERVAL_S):
            self._said = now
            self._say(now)

    def finish(self) -> None:
        """Write how long it took, if it was long enough to be followed."""
        elapsed_s = time.monotonic() - self._started
        if elapsed_s >= NOTE_INTERVAL_S:
            note = f", {self._note}" if self._note else ""
            say(f"{self._label}: {self._amount()} in {elapsed_s:.1f} s{note}")

    def _say(self, now: float) -> None:
        remaining = ""
        began, before = self._first or (now, self._done)
        if self._total and before < self._done < self._total:
            left_s = (now - began) * (self._total - self._done) / (self._done - before)
            remaining = f" · {time_text(left_s)} left"
        note = f", {self._note}" if self._note else ""
        say(f"{self._label}: {self._amount()}{note}{remaining}")

    def _amount(self) -> str:
        if self._unit == "bytes":
            whole = f" of {size_text(self._total)}" if self._total else ""
            return size_text(self._done) + whole
        whole = f" of {self._total:,.0f}" if self._total else ""
        return f"{self._done:,.0f}{whole} {self._unit}"
