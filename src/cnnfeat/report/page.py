"""One self-contained page that shows everything a run made."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cnnfeat import __version__
from cnnfeat.documents import printable
from cnnfeat.errors import CnnfeatError, FeatureFileError
from cnnfeat.features import FeatureTable
from cnnfeat.files import check_output, replacing
from cnnfeat.progress import SILENT, Progress
from cnnfeat.report.charts import plot_layers, plot_training
from cnnfeat.report.embedding import DEFAULT_POINTS, check_method, embed_layer
from cnnfeat.report.evidence import Artifacts, Evidence, open_evidence
from cnnfeat.report.exhibits import Exhibit, make_exhibits
from cnnfeat.report.figure import page_figure, short
from cnnfeat.report.sections import (
    MATRIX_CLASSES,
    MISTAKES,
    Album,
    Scatter,
    choose_examples,
    confusion_cells,
    confusion_rows,
    make_scatter,
    show_exhibit,
)
from cnnfeat.svm.evaluation import wilson_interval

_STEPS = 4  # opening, embedding, pictures, writing
_LYING_LETTERS = 4  # of longer names those over the confusion matrix stand upright
_ATTRIBUTES = {
    "source": "Images",
    "source_kind": "Kind of source",
    "source_fingerprint": "Fingerprint of the images",
    "source_fingerprint_method": "Fingerprint taken of",
    "network": "Network",
    "network_format": "Network's format",
    "network_sha256": "Network's SHA-256",
    "network_source": "Network trained on",
    "precision": "Computed in",
    "device": "Computed on",
    "engine": "Computed by",
    "cnnfeat": "cnnfeat",
    "tensorflow": "TensorFlow",
    "h5py": "h5py",
    "created": "Features made",
}


@dataclass(frozen=True, slots=True)
class ReportResult:
    """What a report shows."""

    path: Path
    size_bytes: int
    sections: tuple[str, ...]
    missing: tuple[str, ...]  # what could not be shown, and why
    elapsed_s: float


def write_report(
    artifacts: Artifacts | Path,
    out: Path,
    *,
    layer: str | None = None,
    embedding: str = "tsne",
    n_points: int = DEFAULT_POINTS,
    seed: int = 0,
    data_dir: Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> ReportResult:
    """Write `report.html`: one file that shows a run and loads nothing from elsewhere.

    Parameters
    ----------
    artifacts : Artifacts or Path
        Where the outputs of the stages lie; a folder with their default names. Only the feature
        file must be there. What else is missing is left out, and the page says so.
    out : Path
        The page.
    layer : str, optional
        Which layer's features are drawn as points; by default the SVM's.
    embedding : {"tsne", "pca", "umap"}
        How.
    n_points : int
        At most so many points: all mistakes, and a random choice of the other images.
    seed : int
        Of the choice and the embedding.
    data_dir : Path, optional
        Where named data sets lie.
    overwrite : bool
        Whether a page that exists may be replaced.
    progress : Progress
        Told of every step.

    Raises
    ------
    MissingInputError
        If there is no feature file.
    FeatureFileError
        If it is damaged.
    LayerLookupError
        If it holds no such layer.
    OutputExistsError
        If the page exists and may not be replaced.
    """
    started = time.monotonic()
    check_output(out, overwrite=overwrite)
    check_method(embedding)
    if isinstance(artifacts, Path):
        artifacts = Artifacts.in_folder(artifacts)
    wish = _Wish(layer, embedding, n_points, seed)
    with progress.task("report", total=_STEPS, unit="steps") as task:
        with open_evidence(artifacts, data_dir=data_dir, progress=progress) as evidence:
            missing, album = list(evidence.missing), Album(evidence)
            task.advance(note="points")
            scatter = _scatter(evidence, album, wish, missing)
            task.advance(note="filters and activations")
            exhibits = _exhibits(evidence, album, missing)
            task.advance(note="writing")
            page = Contents(evidence, album, scatter, exhibits, missing)
            with replacing(out) as partial:
                partial.write_text(printable(render(page)), "utf-8")
        task.advance()
    return ReportResult(
        out,
        out.stat().st_size,
        tuple(name for _, name in page.sections),
        tuple(missing),
        time.monotonic() - started,
    )


@dataclass(frozen=True, slots=True)
class _Wish:
    """Which features are drawn as points, and how."""

    layer: str | None
    method: str
    n_points: int
    seed: int


def _scatter(evidence: Evidence, album: Album, wish: _Wish, missing: list[str]) -> Scatter | None:
    """Place features in the plane."""
    predictions, table = evidence.predictions, FeatureTable([evidence.file])
    try:
        points = embed_layer(
            table,
            table.find_layer(wish.layer or evidence.machine_layer),
            split=evidence.split,
            method=wish.method,
            n_points=wish.n_points,
            always=predictions.rows[predictions.wrong].tolist() if predictions else [],
            seed=wish.seed,
        )
    except FeatureFileError:  # nothing else of it can be relied on
        raise
    except CnnfeatError as error:
        if wish.layer is not None:
            raise
        missing.append(f"No embedding: {error}.")
        return None
    return make_scatter(evidence, points, album)


def _exhibits(evidence: Evidence, album: Album, missing: list[str]) -> list[Exhibit]:
    """Put filters beside the activations they make."""
    rows = choose_examples(evidence.predictions, album.labels, evidence.file.n_rows(evidence.split))
    album.load(rows)
    try:
        exhibits = make_exhibits(
            evidence.file,
            network=evidence.network,
            pictures=evidence.pictures,
            split=evidence.split,
            rows=rows,
        )
    except CnnfeatError as error:
        missing.append(f"No filters beside features: {error}.")
        return []
    if not any(exhibit.maps for exhibit in exhibits):
        missing.append(
            "No activation maps: no layer of the feature file has shape (height, width, channels)."
        )
    return exhibits


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
        recorded = self.evidence.file.provenance.network_test_accuracy
        if recorded is not None:
            return recorded
        return self.evidence.card.test_accuracy if self.evidence.card else None

    @property
    def has_results(self) -> bool:
        """Whether there is an accuracy or a training curve to show."""
        card = self.evidence.card
        return bool(
            self.evidence.svm or self.network_accuracy is not None or (card and card.curves)
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
    svm, predictions, card = evidence.svm, evidence.predictions, evidence.card
    rows = confusion_rows(svm, predictions) if svm else {}
    wrong = predictions.rows[predictions.wrong].tolist() if predictions else []
    album.load([row for cell in rows.values() for row in cell] + wrong[:MISTAKES])
    network_accuracy = page.network_accuracy
    by_layer = by_epoch = None
    if svm:
        by_layer = page_figure(
            partial(plot_layers, svm.layers, network_accuracy=network_accuracy, on=svm.compared_on)
        )
    if card and card.curves:
        by_epoch = page_figure(partial(plot_training, card.curves))
    environment = Environment(
        loader=PackageLoader("cnnfeat.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = "{:.2%}".format
    style, script = (_text(name) for name in ("report.css", "report.js"))
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
        by_layer=by_layer,
        by_epoch=by_epoch,
        card=card,
        predictions=predictions,
        whole_matrix=svm is not None and len(svm.classes) <= MATRIX_CLASSES,
        upright=svm is not None and max(map(len, svm.classes)) > _LYING_LETTERS,
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
    source = short(Path(evidence.file.provenance.source or "images").name, limit=40)
    layers = ", ".join(evidence.file.layers[:4]) + (" …" if len(evidence.file.layers) > 4 else "")
    return f"{source}: features of {short(layers, limit=60)}"


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


def provenance(evidence: Evidence) -> list[tuple[str, str]]:
    """List what is known: (name, value)."""
    said, preprocessing = evidence.file.attributes, evidence.file.provenance.preprocessing
    facts = [(name, str(said[key])) for key, name in _ATTRIBUTES.items() if said.get(key)]
    done = [f"{key} {value}" for key, value in preprocessing.items() if value is not None]
    if done:
        facts.append(("Preprocessing", ", ".join(done)))
    counts = [
        f"{split} {evidence.file.n_rows(split):,}"
        + (f" ({len(skipped):,} left out)" if (skipped := evidence.file.skipped(split)) else "")
        for split in evidence.file.splits
    ]
    facts.append(("Rows", ", ".join(counts)))
    if evidence.card:
        card = evidence.card
        facts.append(
            (
                "Training",
                f"{card.epochs} epochs on {card.n_train:,} images, {card.n_validation:,} "
                f"held back; {card.elapsed_s:.0f} s",
            )
        )
    if evidence.svm:
        facts += _svm_facts(evidence)
    return facts


def _svm_facts(evidence: Evidence) -> list[tuple[str, str]]:
    svm = evidence.svm
    if svm is None:
        return []
    facts = [("SVM", f"{svm.kernel}, {svm.n_train:,} training rows, {svm.scored_rows}")]
    if svm.best.joined:
        facts.append(("SVM: joined of", svm.joined_words))
    said = {"caveat": svm.caveat, "note": svm.note}
    facts += [(f"SVM: {name}", words) for name, words in said.items() if words]
    settings = {
        "C": svm.best.C,
        "gamma": svm.best.gamma,
        "Scaling": svm.normalize,
        "PCA": svm.pca,
    }
    for name, value in settings.items():
        if value is not None:
            facts.append(
                (f"SVM: {name}", f"{value:.6g}" if isinstance(value, float) else str(value))
            )
    if svm.best.elapsed_s is not None:
        facts.append(("SVM: time", f"{svm.best.elapsed_s:.1f} s"))
    return facts
