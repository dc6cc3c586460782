"""What is said of a task under way."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable

import pytest

from cnnfeat.cli import console
from cnnfeat.cli.session import Settings


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (240, "4 min"),
        (3_580, "1 h 0 min"),
        (7_800, "2 h 10 min"),
    ],
    ids=lambda value: str(value).replace(" ", "_"),
)
def test_times_are_said_as_people_say_them(seconds: float, text: str):
    assert console.time_text(seconds) == text


@pytest.mark.parametrize(
    ("done", "total", "unit", "text"),
    [
        (2.46, 10, "epochs", "2.4 of 10 epochs"),
        (sum([0.1] * 30), 3, "epochs", "3 of 3 epochs"),
        (sum([1 / 3] * 9), 3, "epochs", "3 of 3 epochs"),
        (60_000, 70_000, "images", "60,000 of 70,000 images"),
        (7, None, "rows", "7 rows"),
        (2**20, 3 * 2**20, "bytes", "1.0 MiB of 3.0 MiB"),
        (2**20, None, "bytes", "1.0 MiB"),
    ],
    ids=lambda value: str(value).replace(" ", "_"),
)
def test_amounts_are_said_as_people_count(done: float, total: float | None, unit: str, text: str):
    assert console.amount_text(done, total, unit) == text


def clock(monkeypatch: pytest.MonkeyPatch, *times: float) -> None:
    rest = iter(times)
    monkeypatch.setattr(console.time, "monotonic", lambda: next(rest))


def test_lines_say_what_is_done_and_how_long_it_takes_yet(monkeypatch, capfd):
    """A call takes 10 s, the first one 100 s: it is compiled."""
    clock(monkeypatch, 0, 100, 110, 120, 130)
    with console.progress(Settings()).task("extracting", total=100, unit="images") as task:
        for done in range(10, 40, 10):
            task.advance(10, note=f"shard {done}")
    assert capfd.readouterr().err.splitlines() == [
        "extracting: 10 of 100 images, shard 10",
        "extracting: 20 of 100 images, shard 20 · 80 s left",
        "extracting: 30 of 100 images, shard 30 · 70 s left",
        "extracting: 30 of 100 images, shard 30 in 2 min",
    ]


def test_what_was_done_before_makes_nothing_faster(monkeypatch, capfd):
    """600 of 1,000 are there; of the others 100 take 10 s, the first ones 20 s."""
    clock(monkeypatch, 0, 20, 30, 40, 50)
    watched = console.progress(Settings()).task("x", total=1_000, unit="images", done=600)
    with watched as task:
        for _ in range(3):
            task.advance(100)
    assert capfd.readouterr().err.splitlines() == [
        "x: 700 of 1,000 images",
        "x: 800 of 1,000 images · 20 s left",
        "x: 900 of 1,000 images · 10 s left",
        "x: 900 of 1,000 images in 50 s",
    ]


LONG = "validation 97.21%, loss 0.1234"


def test_a_line_of_a_training_fits_80_columns(monkeypatch, capfd):
    clock(monkeypatch, 0, 1_000, 2_000, 3_000)
    watched = console.progress(Settings()).task("training 2 of 5", total=1_000, unit="epochs")
    with watched as task:
        task.advance(100, note=LONG)
        task.advance(0.25)
    lines = capfd.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("training 2 of 5: 100.2 of 1,000 epochs, validation 97.21% · ")
    assert lines[1].endswith(" min left")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (120, f" 30 of 90 epochs, {LONG} · 2 h 10 min left"),
        (80, " 30 of 90 epochs, validation 97.21% · 2 h 10 min left"),
        (40, "training 30 of 90 epochs"),
    ],
)
def test_the_bar_fits_the_terminal(monkeypatch, columns: int, said: str):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("rich.progress.Task.time_remaining", property(lambda _task: 7_800.0))
    with console.progress(Settings()).task("training", total=90, unit="epochs") as task:
        task.advance(30, note=LONG)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).split("\n")
    assert any(said in line for line in lines), lines
    assert max(len(line.rpartition("\r")[2]) for line in lines) <= columns


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Callable[[], list[str]]]:
    """Make stdout a terminal of some columns; what is returned reads its lines."""

    def terminal(columns: int) -> Callable[[], list[str]]:
        screen = Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        plain = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
        return lambda: [line.rstrip() for line in plain.sub("", screen.getvalue()).splitlines()]

    return terminal


LAYERS = ["layer", "kind", "output shape", "features", "tensor"]
ROWS = [
    ["block_13_expand_relu", "Conv2D", "(None, 14, 14, 576)", "112,896", "block_13/Relu6:0"],
    ["out", "Dense", "(None, 10)", "10", "out/BiasAdd:0"],
]


@pytest.mark.parametrize(
    ("columns", "left"),
    [
        (100, ["layer", "kind", "output", "shape", "features", "tensor"]),
        (80, ["layer", "output", "shape", "features", "tensor"]),
        (61, ["layer", "output", "shape", "features"]),
    ],
)
def test_a_table_leaves_columns_out_before_a_name_breaks(printed, columns: int, left: list[str]):
    lines = printed(columns)
    console.show_table(LAYERS, ROWS, numeric=["features"], spare=["kind", "tensor"])
    head, _, *rows = [line for line in lines() if line]
    assert head.split() == left
    assert max(map(len, lines())) <= columns
    assert len(rows) == len(ROWS)  # nothing wraps
    for row, shown in zip(ROWS, rows, strict=True):
        kept = [row[0], *([row[1]] if "kind" in left else []), *row[2:4]]
        assert shown.split() == [
            word for cell in [*kept, *row[4:][: "tensor" in left]] for word in cell.split()
        ]


def test_a_table_wraps_text_at_words(printed):
    lines = printed(40)
    console.show_table(
        ["name", "what"],
        [["fashion-mnist", "clothes, as MNIST has digits: 28×28 pixels"]],
        wrapping=["what"],
    )
    _, _, first, second, *_ = [line for line in lines() if line]
    assert first.split() == ["fashion-mnist", "clothes,", "as", "MNIST", "has"]
    assert second.split() == ["digits:", "28×28", "pixels"]


def test_what_steers_rich_is_no_style(printed):
    lines = printed(80)
    console.show_table(["[red]"], [["[bold]x"]])
    assert [line.strip() for line in lines() if line][::2] == ["[red]", "[bold]x"]


def test_facts_wrap_at_words_and_never_within_a_path(printed):
    lines = printed(40)
    path = "/" + "/".join(["folder"] * 8)
    console.show_facts([("a", "one two three four five six seven"), ("files", path), ("no", "")])
    assert lines() == [
        "a      one two three four five six seven",
        f"files  {path}",
        "no",
    ]
    lines = printed(30)
    console.show_facts([("files", "one two three four five six")])
    assert lines() == ["files  one two three four five", "       six"]


def test_off_a_terminal_a_table_is_as_wide_as_it_is(capsys):
    console.show_table(LAYERS, ROWS, spare=["kind"])
    assert "block_13/Relu6:0" in capsys.readouterr().out
    assert console.fits_table(["a"], [["x" * 200]])


def test_a_table_fits_or_not(printed):
    printed(40)
    assert console.fits_table(["a", "b"], [["x" * 10, "y" * 10]])
    assert not console.fits_table(["a", "b"], [["x" * 20, "y" * 20]])
