"""One self-contained page that shows everything a run made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cnnfeat.errors import CnnfeatError
from cnnfeat.files import check_output, replacing
from cnnfeat.progress import SILENT, Progress
from cnnfeat.report.album import Album, choose_rows
from cnnfeat.report.embedding import DEFAULT_POINTS, check_method, embed_layer
from cnnfeat.report.evidence import Artifacts, Evidence, open_evidence
from cnnfeat.report.exhibits import Exhibit, make_exhibits
from cnnfeat.report.rendering import Contents, render
from cnnfeat.report.sections import Scatter, make_scatter

_STEPS = 4  # opening, embedding, pictures, writing


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
    trust: bool = False,
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
    trust : bool
        Whether the model may run operations with side effects.
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
        with open_evidence(
            artifacts, data_dir=data_dir, trust=trust, progress=progress
        ) as evidence:
            missing, album = list(evidence.missing), Album(evidence)
            task.advance(note="points")
            scatter = _scatter(evidence, album, wish, missing)
            task.advance(note="filters and activations")
            exhibits = _exhibits(evidence, album, missing)
            task.advance(note="writing")
            page = Contents(evidence, album, scatter, exhibits, missing)
            with replacing(out) as partial:
                partial.write_text(render(page), "utf-8")
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
    file, predictions, svm = evidence.file, evidence.predictions, evidence.svm
    try:
        if wish.layer is None:  # the SVM's, or the file's last
            layer = file.find_layer(svm.best.layer) if svm else file.layers[-1]
        else:
            layer = file.find_layer(wish.layer)
        points = embed_layer(
            file,
            layer,
            split=evidence.split,
            method=wish.method,
            n_points=wish.n_points,
            always=predictions.rows[predictions.wrong].tolist() if predictions else [],
            seed=wish.seed,
        )
    except CnnfeatError as error:
        if wish.layer is not None:
            raise
        missing.append(f"No embedding: {error}.")
        return None
    return make_scatter(evidence, points, album)


def _exhibits(evidence: Evidence, album: Album, missing: list[str]) -> list[Exhibit]:
    """Put filters beside the activations they make."""
    rows = choose_rows(evidence.predictions, album.labels, evidence.file.n_rows(evidence.split))
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
