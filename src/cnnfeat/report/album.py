"""Pictures of rows, and what is known of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.report.encoding import data_uri
from cnnfeat.report.evidence import Evidence
from cnnfeat.report.results import Predictions

if TYPE_CHECKING:
    from cnnfeat.records import Labels

THUMBNAIL_SIDE = 64


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
        return self._classes[label] if 0 <= label < len(self._classes) else str(label)


def choose_rows(predictions: Predictions | None, labels: Labels | None, n_rows: int) -> list[int]:
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
