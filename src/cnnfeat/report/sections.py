"""What the page's sections show, made ready for its templates."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.pictures import sprite_sheet
from cnnfeat.records import class_name
from cnnfeat.report.embedding import METHODS, Embedding, spread_names
from cnnfeat.report.evidence import Evidence, Predictions
from cnnfeat.report.exhibits import Exhibit
from cnnfeat.report.figure import CLASS_COLOURS, data_uri, short, text_width
from cnnfeat.report.tiles import Sheet, channels_beside, filter_tiles, make_sheet, map_tiles
from cnnfeat.result import SvmResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cnnfeat.records import Array, Labels

THUMBNAIL_SIDE = 64  # pixels
MATRIX_CLASSES = 30  # up to which the confusion matrix is a table
IMAGES_IN_CELL = 12
MISTAKES = 120
CONFUSED_PAIRS = 60  # listed where there are too many classes for a table
SPRITE_SIDE = 32
TILES = 144  # of a layer's filters and maps that are drawn
TILE_SIDE = 32  # pixels of a map that are drawn; of larger ones every 2nd, 3rd ...
SCATTER_WIDTH, SCATTER_HEIGHT = 1000, 700
_SCATTER_MARGIN = 20
_NAMED_CLASSES = 40  # up to which clusters have names in the scatter plot
_NAME_HEIGHT = 48  # its letters' on a narrow screen, in its own unit; on a wide one they are less
COLOURS = len(CLASS_COLOURS)
_LEVELS = (0.0, 0.005, 0.02, 0.1, 0.5)  # shares of a row from which a cell gets darker


@dataclass(frozen=True, slots=True)
class Picture:
    """One image with what is known of it."""

    id: str
    uri: str | None  # None where the image isn't at hand
    true: str
    predicted: str
    margin: float | None

    @property
    def alt(self) -> str:
        """Say in words what the picture is."""
        if not self.true:
            return self.id
        if not self.predicted:
            return f"{self.id}: class {self.true}"
        return f"{self.id}: class {self.true}, predicted {self.predicted}"


class Album:
    """Makes pictures of rows, each image read and encoded once."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._split = evidence.split
        self._ids = evidence.file.ids(self._split)
        self.labels: Labels | None = evidence.file.labels(self._split)
        self._classes = evidence.file.classes
        self._place = (
            {int(row): place for place, row in enumerate(evidence.predictions.rows)}
            if evidence.predictions
            else {}
        )
        self._uris: dict[int, str] = {}

    def load(self, rows: Iterable[int]) -> None:
        """Read the images of rows that will be shown."""
        wanted = sorted(set(rows) - set(self._uris))
        if self._evidence.pictures and wanted:
            found = self._evidence.pictures.thumbnails(self._split, wanted, side=THUMBNAIL_SIDE)
            self._uris |= {row: data_uri(pixels) for row, pixels in found.items()}

    def picture(self, row: int) -> Picture:
        """Say what is known of a row."""
        true, predicted, margin = "", "", None
        if self.labels is not None:
            true = self.class_name(int(self.labels[row]))
        place = self._place.get(row)
        if place is not None and self._evidence.predictions and self._evidence.svm:
            predictions, names = self._evidence.predictions, self._evidence.svm.classes
            true = names[predictions.labels[place]]
            predicted = names[predictions.predicted[place]]
            margin = float(predictions.margins[place])
        return Picture(self._ids[row], self._uris.get(row), true, predicted, margin)

    def class_name(self, label: int) -> str:
        """Name a label; one without a name is its number."""
        return class_name(label, self._classes)


def choose_examples(
    predictions: Predictions | None, labels: Labels | None, n_rows: int
) -> list[int]:
    """Choose images to show activations of: three classes done right, and the surest mistake."""
    if predictions is None:
        if labels is None:
            return list(range(min(3, n_rows)))
        _, first = np.unique(labels, return_index=True)
        return [int(row) for row in np.sort(first)[:4]]
    right = np.flatnonzero(predictions.labels == predictions.predicted)
    _, first = np.unique(predictions.labels[right], return_index=True)
    chosen = predictions.rows[right[first[:3]]].tolist()
    return [*chosen, *predictions.rows[predictions.wrong[:1]].tolist()]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the confusion matrix."""

    row: int
    column: int
    count: int
    level: int  # 0 (none) to 5, how dark
    share: float  # of the true class
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Tiles:
    """A sheet of tiles on the page."""

    uri: str
    width: int  # pixels
    height: int
    n_tiles: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a layer makes of one image."""

    picture: Picture
    maps: Tiles


@dataclass(frozen=True, slots=True)
class ShownExhibit:
    """Filters and activations of one layer."""

    layer: str
    filters: Tiles | None
    kernel_shape: tuple[int, ...]
    map_shape: tuple[int, ...]
    by_largest: int  # so many channels of a filter, beside each other; 0: all of it is shown
    step: int  # draw one pixel in step × step of a map
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class PointClass:
    """The points of one class in the scatter plot."""

    name: str
    number: int
    colour: int
    square: bool
    path: str
    count: int
    name_at: tuple[float, float] | None  # None: it has no name, or there is no room

    @property
    def shown_name(self) -> str:
        """The name that is written among the points."""
        return short(self.name)


@dataclass(frozen=True, slots=True)
class Scatter:
    """The embedding on the page."""

    embedding: Embedding
    method: str
    classes: tuple[PointClass, ...]
    wrong_path: str
    n_wrong: int
    sprite: str | None
    data: Mapping[str, object]  # for the script


def confusion_rows(
    svm: SvmResult, predictions: Predictions | None
) -> dict[tuple[int, int], list[int]]:
    """Choose the images of each cell: sure mistakes first, of right ones the least sure."""
    if predictions is None:
        return {}
    cells: dict[tuple[int, int], list[int]] = {}
    sure = np.where(predictions.labels == predictions.predicted, -1, 1) * predictions.margins
    for place in np.argsort(-sure, kind="stable").tolist():
        key = (int(predictions.labels[place]), int(predictions.predicted[place]))
        rows = cells.setdefault(key, [])
        if len(rows) < IMAGES_IN_CELL:
            rows.append(int(predictions.rows[place]))
    if len(svm.classes) <= MATRIX_CLASSES:
        return cells
    pairs = {pair: rows for pair, rows in cells.items() if pair[0] != pair[1]}
    worst = sorted(pairs, key=lambda pair: -svm.confusion[pair])[:CONFUSED_PAIRS]
    return {pair: pairs[pair] for pair in worst}


def confusion_cells(
    svm: SvmResult, rows: Mapping[tuple[int, int], Sequence[int]], album: Album
) -> list[list[Cell]]:
    """Fill the confusion matrix; where it is too large, one row of the most confused pairs."""
    totals = np.maximum(svm.confusion.sum(axis=1), 1)

    def cell(row: int, column: int) -> Cell:
        count = int(svm.confusion[row, column])
        share = count / int(totals[row])
        return Cell(
            row,
            column,
            count,
            sum(share > level for level in _LEVELS),
            share,
            tuple(album.picture(place) for place in rows.get((row, column), ())),
        )

    n_classes = len(svm.classes)
    if n_classes <= MATRIX_CLASSES:
        return [[cell(row, column) for column in range(n_classes)] for row in range(n_classes)]
    off = svm.confusion.copy()
    np.fill_diagonal(off, 0)
    worst = np.argsort(-off, axis=None, kind="stable")[:CONFUSED_PAIRS]
    pairs = zip(*np.unravel_index(worst, off.shape), strict=True)
    return [[cell(int(row), int(column)) for row, column in pairs if off[row, column]]]


def show_exhibit(exhibit: Exhibit, album: Album) -> ShownExhibit:
    """Turn filters and activation maps into images."""
    tiles = None if exhibit.kernel is None else filter_tiles(exhibit.kernel)
    maps = next(iter(exhibit.maps.values()), None)
    step = 1 if maps is None else -(-max(maps.shape[:2]) // TILE_SIDE)
    return ShownExhibit(
        layer=exhibit.layer,
        filters=None if tiles is None else _tiles(make_sheet(tiles[:TILES])),
        kernel_shape=() if exhibit.kernel is None else exhibit.kernel.shape,
        map_shape=() if maps is None else maps.shape,
        by_largest=0 if exhibit.kernel is None else channels_beside(exhibit.kernel.shape[2]),
        step=step,
        answers=tuple(
            Answer(
                album.picture(row),
                _tiles(make_sheet(map_tiles(activation[::step, ::step, :TILES]))),
            )
            for row, activation in exhibit.maps.items()
        ),
    )


def _tiles(sheet: Sheet) -> Tiles:
    height, width = sheet.pixels.shape[:2]
    return Tiles(data_uri(sheet.pixels), width, height, sheet.n_tiles, sheet.low, sheet.high)


def make_scatter(evidence: Evidence, embedding: Embedding, album: Album) -> Scatter:
    """Lay the embedding out, with all the script needs to tell what a point is."""
    places = scatter_places(embedding.points)
    pictures = [album.picture(row) for row in embedding.rows.tolist()]
    labels = (
        np.zeros(len(places), np.int64) if album.labels is None else album.labels[embedding.rows]
    )
    wrong = np.array([bool(item.predicted) and item.true != item.predicted for item in pictures])
    sprite, cell = _sprite(evidence, embedding)
    return Scatter(
        embedding=embedding,
        method=METHODS[embedding.method],
        classes=_point_classes(places, labels, album),
        wrong_path=point_path(places[wrong]),
        n_wrong=int(wrong.sum()),
        sprite=sprite,
        data={
            "x": places[:, 0].tolist(),
            "y": places[:, 1].tolist(),
            "label": labels.tolist(),
            "id": [item.id for item in pictures],
            "true": [item.true for item in pictures],
            "predicted": [item.predicted for item in pictures],
            "margin": [None if item.margin is None else round(item.margin, 3) for item in pictures],
            "cell": cell,
            "columns": _columns(len(places)),
        },
    )


def _columns(n_points: int) -> int:
    return int(np.ceil(np.sqrt(n_points)))


def _point_classes(
    places: NDArray[np.float64], labels: NDArray[np.int64], album: Album
) -> tuple[PointClass, ...]:
    present = np.unique(labels).tolist()
    centres = np.array([np.median(places[labels == label], axis=0) for label in present])
    named = album.labels is not None and len(present) <= _NAMED_CLASSES
    names_at = _names_at(centres, [album.class_name(label) for label in present]) if named else []
    classes = []
    for label, name_at in itertools.zip_longest(present, names_at):
        own = places[labels == label]
        classes.append(
            PointClass(
                name="" if album.labels is None else album.class_name(label),
                number=label,
                colour=label % COLOURS,
                square=label // COLOURS % 2 == 1,
                path=point_path(own),
                count=len(own),
                name_at=name_at,
            )
        )
    return tuple(classes)


def _names_at(
    centres: NDArray[np.float64], names: Sequence[str]
) -> list[tuple[float, float] | None]:
    """Say where names of clusters stand, so that none lies on another."""
    widths = [72 * 1.15 * text_width(short(name), size=_NAME_HEIGHT) for name in names]
    sizes = np.array([(width, _NAME_HEIGHT) for width in widths])
    found = spread_names(centres, sizes, low=0, high=SCATTER_HEIGHT)
    return [None if place is None else (round(place[0], 1), round(place[1], 1)) for place in found]


def _sprite(evidence: Evidence, embedding: Embedding) -> tuple[str | None, int]:
    """Put the images of all points on one sheet."""
    if evidence.pictures is None:
        return None, 0
    rows = embedding.rows.tolist()
    found = evidence.pictures.thumbnails(embedding.split, rows, side=SPRITE_SIDE)
    cells: list[Array | None] = [found.get(row) for row in rows]
    side = max((max(cell.shape[:2]) for cell in cells if cell is not None), default=1)
    sheet = sprite_sheet([found.get(row) for row in rows], side=side, columns=_columns(len(rows)))
    return data_uri(sheet), side


def scatter_places(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit points into the scatter plot, a common scale for both axes, y upwards.

    Returns
    -------
    ndarray
        (n_points, 2), rounded to one decimal.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    size = np.array([SCATTER_WIDTH, SCATTER_HEIGHT], np.float64)
    width = np.where(high > low, high - low, 1.0)
    scale = ((size - 2 * _SCATTER_MARGIN) / width).min()
    centred = (points - (low + high) / 2) * scale * (1, -1)
    return np.asarray(np.round(centred + size / 2, 1))


def point_path(places: NDArray[np.float64]) -> str:
    """Draw points as one SVG path of strokes without length, which round caps make visible."""
    return "".join(f"M{x:g} {y:g}h0" for x, y in places.tolist())
