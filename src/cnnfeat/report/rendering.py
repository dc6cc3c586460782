"""From what is shown to HTML: templates, and the policy that keeps the page to itself."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cnnfeat import __version__
from cnnfeat.report.album import Album
from cnnfeat.report.charts import LineChart, interval_bars, line_chart
from cnnfeat.report.evidence import Evidence
from cnnfeat.report.exhibits import Exhibit
from cnnfeat.report.figure import short
from cnnfeat.report.provenance import provenance
from cnnfeat.report.sections import (
    MATRIX_CLASSES,
    MISTAKES,
    Scatter,
    confusion_cells,
    confusion_rows,
    show_exhibit,
)
from cnnfeat.svm.evaluation import wilson_interval


@dataclass(frozen=True, slots=True)
class Contents:
    """What the page shows."""

    evidence: Evidence
    album: Album
    scatter: Scatter | None
    exhibits: Sequence[Exhibit]
    missing: Sequence[str]

    @property
    def network_accuracy(self) -> float | None:
        """The network's own test accuracy, 0 to 1, where it is recorded."""
        recorded = self.evidence.file.attributes.get("network_test_accuracy")
        if isinstance(recorded, int | float) and math.isfinite(recorded):
            return float(recorded)
        return self.evidence.card.test_accuracy if self.evidence.card else None

    @property
    def has_results(self) -> bool:
        """Whether there is an accuracy or a training curve to show."""
        card = self.evidence.card
        return bool(
            self.evidence.svm or self.network_accuracy is not None or (card and card.history)
        )

    @property
    def sections(self) -> list[tuple[str, str]]:
        """Its sections: (anchor, name)."""
        shown = [
            ("results", "Results", self.has_results),
            ("confusion", "Confusions", self.evidence.svm),
            ("errors", "Mistakes", self.evidence.predictions),
            ("filters", "Filters and features", self.exhibits),
            ("embedding", "Features as points", self.scatter),
            ("provenance", "Where this comes from", True),
        ]
        return [(anchor, name) for anchor, name, there in shown if there]


def render(page: Contents) -> str:
    """Write the page as HTML."""
    evidence, album = page.evidence, page.album
    svm, predictions = evidence.svm, evidence.predictions
    rows = confusion_rows(svm, predictions) if svm else {}
    wrong = predictions.rows[predictions.wrong].tolist() if predictions else []
    album.load([row for cell in rows.values() for row in cell] + wrong[:MISTAKES])
    network_accuracy = page.network_accuracy
    bars, network_at = (
        interval_bars(svm.layers, network_accuracy=network_accuracy) if svm else ([], None)
    )
    environment = Environment(
        loader=PackageLoader("cnnfeat.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{share:.2%}".replace(
        "%", "\N{NO-BREAK SPACE}%"
    )
    style, script = (_text(name) for name in ("report.css", "report.js"))
    card = evidence.card
    return environment.get_template("report.html.j2").render(
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        title=_title(evidence),
        features_path=str(evidence.file.path),
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        contents=page.sections,
        has_results=page.has_results,
        missing=page.missing,
        svm=svm,
        network_accuracy=network_accuracy,
        network_interval=_network_interval(evidence, network_accuracy),
        bars=bars,
        network_at=network_at,
        card=card,
        training=_training_charts(card.history) if card and card.history else (),
        predictions=predictions,
        whole_matrix=svm is not None and len(svm.classes) <= MATRIX_CLASSES,
        has_pictures=bool(rows),
        cells=confusion_cells(svm, rows, album) if svm else [],
        n_mistakes=len(wrong),
        mistakes=[album.picture(row) for row in wrong[:MISTAKES]],
        exhibits=[show_exhibit(exhibit, album) for exhibit in page.exhibits],
        scatter=page.scatter,
        provenance=provenance(evidence),
        stored=[
            (split, evidence.file.layer(split, name))
            for split in evidence.file.splits
            for name in evidence.file.layers
        ],
    )


def _title(evidence: Evidence) -> str:
    source = short(Path(str(evidence.file.attributes.get("source", "images"))).name, limit=40)
    layers = ", ".join(evidence.file.layers[:4]) + (" …" if len(evidence.file.layers) > 4 else "")
    return f"{source}: features of {short(layers, limit=60)}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}\N{NO-BREAK SPACE}%"


def _text(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """Allow the page its own style, its own script and its own pictures, and no request at all."""
    return (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; "
        f"script-src {_digest(script)}; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _network_interval(evidence: Evidence, accuracy: float | None) -> tuple[float, float] | None:
    card = evidence.card
    if card is None or accuracy is None or not card.n_test:
        return None
    return wilson_interval(round(accuracy * card.n_test), card.n_test)


def _training_charts(history: Sequence[Mapping[str, float]]) -> tuple[LineChart, ...]:
    epochs = [record["epoch"] for record in history]

    def lines(key: str) -> dict[str, list[float]]:
        return {
            "training": [record[key] for record in history],
            "validation": [record[f"val_{key}"] for record in history],
        }

    return (
        line_chart("Loss", epochs, lines("loss")),
        line_chart("Accuracy", epochs, lines("accuracy"), percent=True),
    )
