"""What a person sees: data on stdout, words and progress on stderr."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
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
LINE_WIDTH = 80  # characters of a line of progress
_LEAST_WORDS = 20  # characters of a line of facts, however narrow the terminal is
MOST_OF_BAR = 40  # characters

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


def amount_text(done: float, total: float | None, unit: str) -> str:
    """Write how much is done: "1.2 MiB of 9.0 MiB", "4 of 9 values", "2.5 of 10 epochs"."""
    if unit == "bytes":
        return size_text(done) + (f" of {size_text(total)}" if total else "")
    tenths = math.floor(done * 10 + 1e-6)  # a sum of shares comes short of a whole
    number = f"{tenths // 10:,}" if tenths % 10 == 0 else f"{tenths / 10:,.1f}"
    return f"{number} of {total:,.0f} {unit}" if total else f"{number} {unit}"


def _fitting(amount: str, note: str, ending: str, *, width: int) -> str:
    """A line of progress, with as much of the note as there is room for."""
    parts = note.split(", ") if note else []
    while parts and len(", ".join([amount, *parts]) + ending) > width:
        parts.pop()
    return ", ".join([amount, *parts]) + ending


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
    """Write names and what they are to stdout, in two columns; on a terminal, words wrap there."""
    width = max(len(name) for name, _ in facts)
    room = max(_LEAST_WORDS, shutil.get_terminal_size().columns - width - 2)
    for name, text in facts:
        lines = [visible(text)]
        if sys.stdout.isatty():
            lines = textwrap.wrap(
                lines[0], room, break_long_words=False, break_on_hyphens=False
            ) or [""]
        for number, line in enumerate(lines):
            click.echo(f"{'' if number else name:<{width}}  {line}")


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
    wrapping: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Write a table to stdout; columns in `numeric` are set flush right.

    On a terminal those in `wrapping` wrap at words. Where a name or a number would break, the
    columns in `spare` are left out in turn, and then the rest stand closer together. Elsewhere rows
    are as wide as they are.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    console = _console(stderr=False)
    if not terminal:
        console.width = 10_000
    cells = {name: [visible(row[k]) for row in rows] for k, name in enumerate(columns)}
    least = {name: _least_width(name, cells[name], name in wrapping) for name in columns}
    for name in spare:
        if _table_width(least.values()) > console.width:
            del cells[name], least[name]
    padding = 1 if _table_width(least.values()) <= console.width else 0
    fits = _table_width(least.values(), padding=padding) <= console.width
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, padding))
    for name in cells:
        table.add_column(
            Text(visible(name)),
            justify="right" if name in numeric else "left",
            overflow="fold",
            no_wrap=not terminal,
            min_width=least[name] if fits else None,
        )
    for row in zip(*cells.values(), strict=True):
        table.add_row(*map(Text, row))
    console.print(table)


def fits_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a table needs no break on the terminal, if stdout is one."""
    cells = zip(*rows, strict=True)
    least = [_least_width(name, of, False) for name, of in zip(columns, cells, strict=True)]
    width = _table_width(least, padding=0)
    return not sys.stdout.isatty() or width <= _console(stderr=False).width


def _least_width(name: str, cells: Sequence[str], wraps: bool) -> int:
    """How narrow a column can be before a word breaks, or what doesn't wrap."""
    from rich.cells import cell_len

    parts = [part for cell in cells for part in cell.split()] if wraps else cells
    return max(map(cell_len, [*name.split(), *parts]), default=0)


def _table_width(widths: Collection[int], *, padding: int = 1) -> int:
    """How wide a table is, with its padding and the blanks that the box has for lines."""
    return sum(widths) + (1 + 2 * padding) * len(widths) + 1


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
    def task(self, label: str, *, total: float | None, unit: str, done: int = 0) -> Iterator[Task]:
        """Draw one bar until the task ends."""
        from rich import progress as rich_progress
        from rich.text import Text

        console = _console(stderr=True)
        bar_width = max(0, min(MOST_OF_BAR, console.width // 4 - 10))
        room = console.width - len(label) - bar_width - 3

        class Words(rich_progress.ProgressColumn):
            def render(self, task: rich_progress.Task) -> Text:
                """Say what is done, how it goes, and how long it takes yet or took at the end."""
                left_s = task.time_remaining
                ending = "" if left_s is None else f" · {time_text(left_s)} left"
                if task.finished:
                    ending = f" in {time_text(task.finished_time or 0)}"
                amount = amount_text(task.completed, total, unit)
                return Text(_fitting(amount, task.fields["note"], ending, width=room))

        columns = [rich_progress.TextColumn("{task.description}"), Words()]
        if bar_width:
            columns.insert(1, rich_progress.BarColumn(bar_width))
        with rich_progress.Progress(*columns, console=console, refresh_per_second=4) as bars:
            handle = bars.add_task(label, total=total, completed=done, note="")
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
    def task(self, label: str, *, total: float | None, unit: str, done: int = 0) -> Iterator[Task]:
        """Write a line every few seconds, and one at the end."""
        task = _LineTask(label, total, unit, done)
        yield task
        task.finish()


class _LineTask:
    def __init__(self, label: str, total: float | None, unit: str, done: int) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._before, self._note = done, ""
        self._done: float = done
        self._started = self._said = time.monotonic()
        self._first: tuple[float, float] | None = None  # when, and how much was done

    def advance(self, amount: float = 1, *, note: str = "") -> None:
        """Count, and write a line when it is time or the task says something new."""
        self._done += amount
        now = time.monotonic()
        if self._first is None and self._done > self._before:  # until then it is compiled
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
            self._line(f" in {time_text(elapsed_s)}")

    def _say(self, now: float) -> None:
        remaining = ""
        began, before = self._first or (now, self._done)
        if self._total and before < self._done < self._total:
            left_s = (now - began) * (self._total - self._done) / (self._done - before)
            remaining = f" · {time_text(left_s)} left"
        self._line(remaining)

    def _line(self, ending: str) -> None:
        amount = f"{self._label}: {amount_text(self._done, self._total, self._unit)}"
        say(_fitting(amount, self._note, ending, width=LINE_WIDTH))
