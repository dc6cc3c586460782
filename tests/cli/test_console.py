"""What is said of a task under way."""

from __future__ import annotations

import io
import itertools
import sys

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


def test_lines_say_what_is_done_and_how_long_it_takes_yet(monkeypatch, capfd):
    """A call takes 10 s, the first one 100 s: it is compiled."""
    times = itertools.chain([0], itertools.count(100, 10))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(times))
    with console.progress(Settings()).task("training", total=100, unit="images") as task:
        for done in range(10, 40, 10):
            task.advance(10, note=f"epoch {done}/100")
    assert capfd.readouterr().err.splitlines() == [
        "training: 10 of 100 images, epoch 10/100",
        "training: 20 of 100 images, epoch 20/100 · 80 s left",
        "training: 30 of 100 images, epoch 30/100 · 70 s left",
        "training: 30 of 100 images in 130.0 s, epoch 30/100",
    ]


def test_the_bar_says_the_epoch_and_the_minutes_left(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("rich.progress.Task.time_remaining", property(lambda _task: 240.0))
    with console.progress(Settings()).task("training", total=90, unit="images") as task:
        task.advance(30, note="epoch 3/10")
    assert "30/90 images epoch 3/10 · 4 min left" in screen.getvalue()
