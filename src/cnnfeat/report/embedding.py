"""Features as points on paper: which images a layer finds alike."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patheffects import withStroke
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from cnnfeat.errors import DataError, UsageError, near_names
from cnnfeat.features import FeatureFile, FeatureTable
from cnnfeat.records import class_name
from cnnfeat.report.figure import CLASS_COLOURS, CLASS_MARKERS, drawing, fitted, short, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

METHODS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
DEFAULT_POINTS = 2_000
FEWEST_POINTS = 5
_MATRIX_BYTES = 2**29  # of features held at most; wider layers get fewer points
_INNER_DIMENSIONS = 50  # t-SNE and UMAP start from so many principal components
_IN_LEGEND = 30  # classes
_NAME_SIZE = 11  # points
_LARGER = {"*": 2.5, "P": 1.5, "X": 1.5}  # markers that have little ink


@dataclass(frozen=True, slots=True)
class Embedding:
    """Some rows of a layer as points of the plane."""

    split: str
    layer: str
    rows: NDArray[np.int64]  # (n_points,) in rising order
    points: NDArray[np.float64]  # (n_points, 2)
    method: str  # "pca", "tsne" or "umap"
    axes: tuple[str, str]  # what the axes say
    n_rows: int  # of the whole split


def embed_layer(
    file: FeatureFile | FeatureTable,
    layer: str,
    *,
    split: str,
    method: str = "tsne",
    n_points: int = DEFAULT_POINTS,
    always: Sequence[int] = (),
    seed: int = 0,
) -> Embedding:
    """Place rows of a layer in the plane, near each other where their features are alike.

    Parameters
    ----------
    file : FeatureFile or FeatureTable
        Where the features are.
    layer, split : str
        Which of them.
    method : {"pca", "tsne", "umap"}
        Principal components, or t-SNE (van der Maaten & Hinton, JMLR 9, 2008) or UMAP (McInnes et
        al., 2018) of the first 50 of them.
    n_points : int
        At most so many rows: `always`, and a random choice of the others.
    always : sequence of int
        Rows that are in it before any other.
    seed : int
        Of the choice and of the method.

    Raises
    ------
    UsageError
        If the method is unknown or not installed.
    DataError
        If there are fewer than 5 rows, or all are equal.
    FeatureFileError
        If a feature is NaN, infinite or immense.
    """
    check_method(method)
    n_rows = file.n_rows(split)
    if n_rows < FEWEST_POINTS:
        raise DataError(f"an embedding needs at least {FEWEST_POINTS} rows; {split} has {n_rows}")
    stored = file.layer(split, layer)
    row_bytes = 4 * math.prod(stored.shape[1:])
    n_points = max(min(n_points, _MATRIX_BYTES // max(row_bytes, 1)), FEWEST_POINTS)
    rows = choose_rows(n_rows, n_points, always=always, seed=seed)
    X = file.take(split, layer, rows).reshape(len(rows), -1).astype(np.float32, copy=False)
    if not np.ptp(X, axis=0).any():
        raise DataError(f"all {len(X):,} rows of {split}/{layer} are equal: nothing lies apart")
    points, axes = _project(X, method=method, seed=seed)
    return Embedding(split, layer, rows, points, method, axes, n_rows)


def check_method(method: str) -> None:
    """Refuse a method that is unknown or not installed.

    Raises
    ------
    UsageError
        Naming those there are, or the extra to install.
    """
    if method not in METHODS:
        raise UsageError(
            f"no embedding {method!r}; there are: {', '.join(METHODS)}",
            hint=near_names(method, METHODS),
        )
    if method == "umap":
        _umap_class()


def choose_rows(
    n_rows: int, n_points: int, *, always: Sequence[int] = (), seed: int = 0
) -> NDArray[np.int64]:
    """Choose rows: first `always`, then others at random, in rising order."""
    if n_rows <= n_points:
        return np.arange(n_rows, dtype=np.int64)
    first = np.unique(np.asarray(always, dtype=np.int64))[:n_points]
    others = np.setdiff1d(np.arange(n_rows, dtype=np.int64), first)
    drawn = np.random.default_rng(seed).choice(others, n_points - len(first), replace=False)
    return np.sort(np.concatenate([first, drawn]))


def _project(
    X: NDArray[np.float32], *, method: str, seed: int
) -> tuple[NDArray[np.float64], tuple[str, str]]:
    n_components = min(2 if method == "pca" else _INNER_DIMENSIONS, *X.shape)
    pca = PCA(n_components, svd_solver="randomized", random_state=seed)
    inner = pca.fit_transform(X / X.std())
    if method == "pca":
        points = np.zeros((len(X), 2))
        points[:, :n_components] = inner
        shares = [*np.nan_to_num(pca.explained_variance_ratio_), 0.0][:2]
        first, second = (
            f"principal component {number} ({share:.2%} of the variance)"
            for number, share in enumerate(shares, 1)
        )
        return points, (first, second)
    if method == "umap":
        machine = _umap_class()(random_state=seed, n_jobs=1, n_neighbors=min(15, len(X) - 1))
    else:
        perplexity = min(30.0, (len(X) - 1) / 3)
        init = "pca" if n_components >= 2 else "random"
        machine = TSNE(2, perplexity=perplexity, init=init, random_state=seed)
    with threadpool_limits(1, user_api="openmp"):  # t-SNE's threads wait for each other by spinning
        points = np.asarray(machine.fit_transform(inner), np.float64)
    name = METHODS[method]
    return points, (f"{name} 1", f"{name} 2")


def _umap_class() -> type:
    try:
        from umap import UMAP
    except ImportError as error:
        raise UsageError(
            "UMAP is not installed",
            hint="pip install 'cnnfeat[umap]', or take tsne or pca",
        ) from error
    return UMAP  # type: ignore[no-any-return]


def plot_embedding(
    embedding: Embedding,
    out: Path,
    *,
    labels: NDArray[np.int64] | None,
    classes: Sequence[str],
    title: str,
    dpi: float = 150,
) -> None:
    """Draw an embedding, a colour and a marker for each class.

    Parameters
    ----------
    embedding : Embedding
        The points.
    out : Path
        A `.png` or `.svg` file, replaced where it exists.
    labels : ndarray or None
        (n_points,) the class of each point, where known.
    classes : sequence of str
        Class names. Above 30 there is no legend, and colours and markers repeat.
    title : str
        What is shown; how many points of how many is added below it.
    dpi : float
        Dots per inch of a PNG.
    """
    with drawing(out, size=(8.5, 6.5), dpi=dpi) as figure:
        axes = figure.add_subplot()
        if labels is None:
            _scatter(axes, embedding.points, place=0, name=None)
        else:
            _draw_classes(figure, axes, embedding.points, labels, classes)
        axes.set_xlabel(embedding.axes[0])
        axes.set_ylabel(embedding.axes[1])
        if embedding.method != "pca":  # no unit, no direction
            axes.set_xticks([])
            axes.set_yticks([])
        drawn = f"{len(embedding.rows):,} of {embedding.n_rows:,} images"
        drawn += ", unlabelled" if labels is None else ""
        axes.set_title(fitted(f"{title}\n{drawn}", inches=4.5, size=10))


def _draw_classes(
    figure: Figure,
    axes: Axes,
    points: NDArray[np.float64],
    labels: NDArray[np.int64],
    classes: Sequence[str],
) -> None:
    present = np.unique(labels).tolist()
    for label in present:
        name = short(class_name(label, classes), limit=28)
        _scatter(axes, points[labels == label], place=label, name=name)
    if len(present) <= _IN_LEGEND:
        figure.legend(loc="outside right upper", title="class", markerscale=1.6)
        centres = np.array([np.median(points[labels == label], axis=0) for label in present])
        names = [short(class_name(label, classes), limit=16) for label in present]
        _name_clusters(figure, axes, centres, names)


def _name_clusters(
    figure: Figure, axes: Axes, centres: NDArray[np.float64], names: Sequence[str]
) -> None:
    """Write classes' names where most of their points are, none on another."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # said when drawn
        figure.draw_without_rendering()  # the axes' place on paper is known from here on
    axes.autoscale(False)
    inches = axes.transData + figure.dpi_scale_trans.inverted()
    room = axes.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    sizes = [(1.15 * text_width(name, size=_NAME_SIZE), _NAME_SIZE / 60) for name in names]
    places = spread_names(inches.transform(centres), np.array(sizes), low=room.y0, high=room.y1)
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for name, place in zip(names, places, strict=True):
        if place is not None:
            x, y = inches.inverted().transform(place)
            axes.text(
                x,
                y,
                name,
                ha="center",
                va="center",
                fontsize=_NAME_SIZE,
                fontweight="bold",
                path_effects=halo,
            )


def spread_names(
    centres: NDArray[np.float64], sizes: NDArray[np.float64], *, low: float, high: float
) -> list[tuple[float, float] | None]:
    """Move names up or down, no farther than they must, until none lies on another.

    Parameters
    ----------
    centres, sizes : ndarray
        (n_names, 2): where the middle of each shall be, and its width and height.
    low, high : float
        Between which all must stay.

    Returns
    -------
    list
        (x, y) of each; None where there is no room for it.
    """
    placed: list[tuple[float, float, float, float]] = []  # x, y, width, height
    found: list[tuple[float, float] | None] = []
    for (x, wish), (width, height) in zip(centres.tolist(), sizes.tolist(), strict=True):
        near = [
            (y, (height + other) / 2)
            for at, y, beside, other in placed
            if abs(x - at) < (width + beside) / 2
        ]
        inside = min(max(wish, low + height / 2), high - height / 2)
        ways = [inside, *(y + apart for y, apart in near), *(y - apart for y, apart in near)]
        free = [
            way
            for way in ways
            if low + height / 2 <= way <= high - height / 2
            and all(abs(way - y) >= 0.999 * apart for y, apart in near)
        ]
        best = min(free, key=lambda way: abs(way - wish), default=None)
        found.append(None if best is None else (x, best))
        if best is not None:
            placed.append((x, best, width, height))
    return found


def _scatter(axes: Axes, points: NDArray[np.float64], *, place: int, name: str | None) -> None:
    marker = CLASS_MARKERS[(place + place // len(CLASS_COLOURS)) % len(CLASS_MARKERS)]
    axes.scatter(
        points[:, 0],
        points[:, 1],
        s=(14 if len(points) < 2_000 else 9) * _LARGER.get(marker, 1),
        c=CLASS_COLOURS[place % len(CLASS_COLOURS)],
        marker=marker,
        linewidths=0.2,
        edgecolors="white",
        label=name,
        rasterized=True,
    )
