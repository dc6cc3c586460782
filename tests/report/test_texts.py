"""No text of a figure touches another or runs off the paper, however long names are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from cnnfeat.data import open_arrays
from cnnfeat.options import AugmentOptions
from cnnfeat.report import figure
from cnnfeat.report.charts import plot_confusion, plot_layers, plot_training
from cnnfeat.report.embedding import Embedding, plot_embedding, spread_names
from cnnfeat.report.gallery import _draw_panels, _Panel
from cnnfeat.report.tiles import plot_activations, plot_filters
from cnnfeat.report.variations import draw_variations
from cnnfeat.result import LayerScore

LONG = "block_13_expand_relu/FusedBatchNormV3_of_the_second_branch"
SENTENCE = "the mean of what five networks answered to rows that no machine had seen before, " * 2
CLASSES = [f"spotted salamander of kind {k}" for k in range(10)]


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were written, as they were."""
    figures: list[Figure] = []

    class Kept(Figure):
        def savefig(self, *args, **options) -> None:
            super().savefig(*args, **options)
            figures.append(self)

    monkeypatch.setattr(figure, "Figure", Kept)
    return figures


def shown_texts(axes: Axes) -> Iterator[Text]:
    yield from (axes.title, *axes.texts)
    if axes.axison:
        yield from (axes.xaxis.label, axes.yaxis.label)
        (left, right), (low, high) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
        yield from (t for t in axes.get_xticklabels() if left <= t.get_position()[0] <= right)
        yield from (t for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high)
    if axes.get_legend():
        yield from axes.get_legend().get_texts()


def check(found: Figure) -> list[str]:
    """Return all texts, having compared the place of each with all others'."""
    FigureCanvasAgg(found).draw()
    of_axes = [text for axes in found.axes for text in shown_texts(axes)]
    legends = [text for legend in found.legends for text in legend.get_texts()]
    texts = [text for text in (*found.texts, *of_axes, *legends) if text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    for said, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0, said
        assert box.x1 <= found.bbox.width and box.y1 <= found.bbox.height, said
    for (one, box), (other, beside) in itertools.combinations(boxes, 2):
        across = min(box.x1, beside.x1) - max(box.x0, beside.x0)
        down = min(box.y1, beside.y1) - max(box.y0, beside.y0)
        assert min(across, down) <= 0.5, (one, other)
    return [said for said, _ in boxes]


@pytest.mark.parametrize("n_images", [1, 2, 6, 8])
def test_captions_of_images_stay_apart(drawn, tmp_path: Path, n_images: int):
    caption = f"{'0123456789' * 2}\n{CLASSES[1]} taken for {CLASSES[2]}\nmargin 1.25"
    image = np.zeros((6, 9), np.uint8)
    panels = [_Panel(image, caption), *[_Panel(None, "short")] * (n_images - 1)]
    _draw_panels(panels, tmp_path / "a.png", title=f"SVM on {LONG}\n{SENTENCE}", dpi=60)
    said = check(drawn[0])
    assert any(text.endswith("margin 1.25") for text in said)
    assert [axes.axison for axes in drawn[0].axes].count(True) == 0


@pytest.mark.parametrize("n_classes", [1, 2, 10, 20, 40])
def test_names_beside_a_confusion_matrix_stay_apart(drawn, tmp_path: Path, n_classes: int):
    counts = np.full((n_classes, n_classes), 1_234)
    names = [f"{CLASSES[0]}{k}" if k == 3 else str(k) for k in range(n_classes)]
    plot_confusion(counts, names, tmp_path / "c.png", title=f"On {LONG}", caveat=SENTENCE, dpi=60)
    assert {"true class", "predicted class", "share of the true class"} <= set(check(drawn[0]))


def test_a_layer_s_texts_stay_apart(drawn, tmp_path: Path, rng):
    image, kernel = np.zeros((9, 5, 3), np.uint8), rng.standard_normal((3, 3, 64, 30))
    activation = rng.random((4, 4, 30))
    names = {"layer": LONG, "caption": f"{'file' * 20}.png (class {CLASSES[0]})"}
    out = tmp_path / "a.png"
    plot_activations(image, activation, out, **names, kernel=kernel, dpi=60)
    plot_activations(None, activation, out, **names, dpi=60)
    plot_filters(kernel, out, layer=LONG, dpi=60)
    plot_filters(kernel[:, :, :1, :1], out, layer=LONG, dpi=60)
    both, alone, *_ = [check(one) for one in drawn]
    assert {"weight", "activation"} <= set(both)
    assert "weight" not in alone
    assert len(drawn) == 4


def test_filters_in_colours_have_no_scale(drawn, tmp_path: Path, rng):
    kernel, activation = rng.standard_normal((3, 3, 3, 4)), rng.random((4, 4, 4))
    plot_activations(
        None, activation, tmp_path / "a.png", layer="c", caption="i", kernel=kernel, dpi=60
    )
    said = check(drawn[0])
    assert "weight" not in said and "activation" in said


def test_names_are_moved_no_farther_than_they_must():
    wide, narrow = (4.0, 1.0), (1.0, 1.0)
    centres = np.array([(0.0, 5.0), (2.0, 5.2), (0.0, 5.0), (9.0, 5.0), (0.0, 0.1)])
    sizes = np.array([wide, narrow, narrow, narrow, narrow])
    places = spread_names(centres, sizes, low=0, high=10)
    assert places == [(0, 5), (2, 6), (0, 6), (9, 5), (0, 0.5)]
    assert spread_names(centres[:3], sizes[:3], low=4.2, high=6.5) == [(0, 5), (2, 6), (0, 6)]
    assert spread_names(centres[:3], sizes[:3], low=4.2, high=6.4) == [(0, 5), None, None]


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_names_of_clusters_stay_apart(drawn, tmp_path: Path, rng, method: str):
    points, labels = rng.standard_normal((200, 2)), np.arange(200) % 10
    axes = ("principal component 1 (26.20% of the variance)", "second")
    plot_embedding(
        Embedding("test", LONG, np.arange(200), points, method, axes, 5_000),
        tmp_path / "e.png", labels=labels, classes=CLASSES, title=f"t-SNE of {LONG}, test", dpi=60,
    )  # fmt: skip
    assert set(axes) <= set(check(drawn[0]))


def test_scores_by_layer_stay_apart(drawn, tmp_path: Path):
    scores = [
        LayerScore(layer=f"{LONG}{k}", accuracy=0.5, accuracy_interval=(0.4, 0.6)) for k in range(2)
    ]
    plot_layers(scores, tmp_path / "l.png", network_accuracy=0.505, on=SENTENCE, title=SENTENCE)
    said = check(drawn[0])
    assert said.count("50.00%") == 2 and "layer" in said


def test_a_training_s_texts_stay_apart(drawn, tmp_path: Path):
    history = [{"epoch": k, "loss": 1e-5 / k, "accuracy": 0.9} for k in range(1, 4)]
    training = {"seed": 0, "history": history, "best_epoch": 2}
    plot_training([training], tmp_path / "t.png", title=f"Training on {'a' * 200}: 10 images")
    assert {"epoch", "loss", "accuracy, %"} <= set(check(drawn[0]))


@pytest.mark.parametrize("n_variations", [1, 4])
def test_variations_texts_stay_apart(drawn, tmp_path: Path, n_variations: int):
    images = np.zeros((3, 4, 4, 1), np.uint8)
    options = AugmentOptions(rotation=10, shift=1, zoom=0.1, flip="both", brightness=0.1)
    draw_variations(
        open_arrays(images, np.zeros(3, int), classes=(CLASSES[0],)),
        options, tmp_path / "v.png", n_images=3, n_variations=n_variations, seed=0,
    )  # fmt: skip
    said = check(drawn[0])
    assert {"original", *(f"epoch {k + 1}" for k in range(n_variations))} <= set(said)


def test_a_text_is_broken_at_words_and_cut_where_it_must_be():
    wide = figure.text_width("mmmm mmmm", size=10)
    assert figure.fitted("mmmm mmmm mmmm", inches=wide, size=10) == "mmmm mmmm\nmmmm"
    assert figure.fitted("a\nmmmm mmmm", inches=wide / 1.5, size=10) == "a\nmmmm\nmmmm"
    assert figure.fitted("m" * 40, inches=wide, size=10) == "m" * 7 + "…"
    assert figure.fitted("mmmm " * 9, inches=wide, size=10, lines=2) == "mmmm mmmm\nmmmm mm…"
