"""The confusion matrix on paper says what the numbers say."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cnnfeat.errors import DataError, UsageError
from cnnfeat.report import figure
from cnnfeat.report.charts import plot_confusion, plot_training

CONFUSION = [[50, 0, 3], [1, 40, 0], [0, 7, 61]]


def png_size(path: Path) -> tuple[int, int]:
    """Read a picture's width and height."""
    with Image.open(path) as image:
        return image.size


def svg_texts(path: Path) -> list[str]:
    """Read the texts of an SVG: matplotlib writes each as a comment before its outlines."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", path.read_text("utf-8"))]


def test_cells_show_the_counts_and_title_the_accuracy(tmp_path):
    out = tmp_path / "confusion.svg"
    plot_confusion(CONFUSION, ["ape", "bee", "cat"], out, title="SVM on conv2")
    texts = svg_texts(out)
    assert sorted(int(text) for text in texts if text.isdigit() and text != "0") == sorted(
        count for row in CONFUSION for count in row if count
    )
    assert {"ape", "bee", "cat"} <= set(texts)
    assert "SVM on conv2" in " ".join(texts)
    assert "151 of 162 right (93.21%)" in " ".join(texts)


def test_what_must_stand_beside_a_share_does(tmp_path):
    plot_confusion(CONFUSION, ["a", "b", "c"], tmp_path / "c.svg", title="t", caveat="seen before")
    assert "seen before" in svg_texts(tmp_path / "c.svg")


def test_names_are_drawn_literally(tmp_path):
    out = tmp_path / "confusion.svg"
    plot_confusion([[1, 0], [0, 1]], [r"$\frac$", "a\nb"], out, title="$x$ & <script>")
    texts = " ".join(svg_texts(out))
    assert r"$\frac$" in texts
    assert "a\N{REPLACEMENT CHARACTER}b" in texts


def test_glyphs_no_font_has_are_said(tmp_path, caplog):
    plot_confusion([[1, 0], [0, 1]], ["𓀀", "𓀁"], tmp_path / "c.png", title="t")
    assert (tmp_path / "c.png").exists()
    (said,) = [one.getMessage() for one in caplog.records]
    assert "c.png: no font here has 𓀀, 𓀁: drawn as boxes" in said


def test_an_installed_font_that_has_a_letter_is_used(tmp_path, monkeypatch, caplog):
    letter = "\u210a"  # in STIXGeneral, which comes with matplotlib, and not in DejaVu Sans
    plot_confusion([[1, 0], [0, 1]], [letter, "b"], tmp_path / "c.png", title="t")
    assert "no font here has" in caplog.text
    caplog.clear()
    monkeypatch.setattr(figure, "_other_fonts", lambda: ("STIXGeneral",))
    plot_confusion([[1, 0], [0, 1]], [letter, "b"], tmp_path / "c.png", title="t")
    assert not caplog.records


def test_png_has_the_asked_resolution_and_replaces_the_old_one(tmp_path):
    out = tmp_path / "confusion.png"
    out.write_bytes(b"old")
    plot_confusion(CONFUSION, ["a", "b", "c"], out, title="t", dpi=50)
    small = png_size(out)
    plot_confusion(CONFUSION, ["a", "b", "c"], out, title="t", dpi=100)
    # Where the small picture ends within a pixel, half a pixel is cut off; the large one has it.
    large = png_size(out)
    assert {now - 2 * before for before, now in zip(small, large, strict=True)} <= {0, 1}
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("n_classes", [1, 2, 30, 1000])
def test_any_number_of_classes_is_drawn(tmp_path, n_classes):
    counts = np.eye(n_classes, dtype=int) * 9
    out = tmp_path / "c.png"
    plot_confusion(counts, [f"class {k}" for k in range(n_classes)], out, title="t", dpi=60)
    assert max(png_size(out)) < 60 * 13


def test_a_matrix_that_does_not_fit_the_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"for 2 classes has shape \(2, 2\), not \(3, 3\)"):
        plot_confusion(CONFUSION, ["a", "b"], tmp_path / "c.png", title="t")
    with pytest.raises(DataError, match="counts: whole numbers, none negative"):
        plot_confusion([[-1]], ["a"], tmp_path / "c.png", title="t")
    assert not list(tmp_path.iterdir())


def test_only_png_and_svg_are_written(tmp_path):
    with pytest.raises(UsageError, match=r"written as \.png or \.svg, not as '.*c\.gif'"):
        plot_confusion(CONFUSION, ["a", "b", "c"], tmp_path / "c.gif", title="t")


def training(history: list[dict], *, best_epoch: int | None, seed: int = 0) -> dict:
    return {"seed": seed, "history": history, "best_epoch": best_epoch}


@pytest.mark.parametrize(("n_epochs", "marked"), [(6, True), (1_500, False)])
def test_epochs_are_marked_where_there_is_room(tmp_path, n_epochs, marked):
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    history = [{"epoch": i + 1, **dict.fromkeys(names, 1 / (i + 1))} for i in range(n_epochs)]
    out = tmp_path / "training.svg"
    plot_training([training(history, best_epoch=3)], out)
    # A mark is defined once and used at each epoch, in four lines; in the legend and at ticks too.
    assert (out.read_text("utf-8").count("<use ") > 4 * n_epochs) == marked


@pytest.mark.parametrize(
    ("best_epoch", "names", "n_lines"),
    [(2, ["training", "validation", "kept"], 6), (None, ["training"], 2)],
    ids=["picked", "the last"],
)
def test_networks_of_a_committee_are_drawn_together(
    tmp_path, monkeypatch, best_epoch, names, n_lines
):
    keys = ("loss", "accuracy", *(("val_loss", "val_accuracy") if best_epoch else ()))
    history = [{"epoch": i, **dict.fromkeys(keys, 1 / i)} for i in (1, 2)]
    drawn = Figure()
    monkeypatch.setattr(
        "cnnfeat.report.charts.drawing", lambda *_, **__: contextlib.nullcontext(drawn)
    )
    trainings = [training(history, best_epoch=best_epoch, seed=seed) for seed in (0, 1)]
    plot_training(trainings, tmp_path / "training.png")
    for axes in drawn.axes:
        assert len(axes.lines) == n_lines
    assert [text.get_text() for text in drawn.axes[1].get_legend().get_texts()] == names
    np.testing.assert_array_equal(drawn.axes[1].lines[0].get_ydata(), [100, 50])
