"""`cnnfeat report`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from cnnfeat.cli import console, options
from cnnfeat.cli.settings import Settings, artifact, pass_settings
from cnnfeat.cli.startup import start_tensorflow

_PATH = click.Path(path_type=Path)


@click.command()
@click.option(
    "--features",
    type=_PATH,
    default=lambda: artifact("features.h5"),
    show_default="artifacts/features.h5",
    help="The feature file.",
)
@click.option(
    "--svm",
    type=_PATH,
    default=lambda: artifact("svm.json"),
    show_default="artifacts/svm.json",
    help="The SVM's result; predictions.csv lies beside it.",
)
@click.option(
    "--model",
    type=_PATH,
    default=lambda: artifact("model.keras"),
    show_default="artifacts/model.keras",
    help="The network.",
)
@click.option("--trust-model", is_flag=True, help="Run a model that does more than compute.")
@options.data_dir
@click.option("--layer", show_default="the SVM's", help="Whose features are drawn as points.")
@click.option(
    "--embedding",
    type=click.Choice(["tsne", "pca", "umap"]),
    default="tsne",
    show_default=True,
    help="How features become points; umap: pip install 'cnnfeat[umap]'.",
)
@click.option(
    "--points",
    type=click.IntRange(5, 20_000),
    default=2_000,
    show_default=True,
    help="At most so many: all mistakes, and other images chosen at random.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Fixes the choice and the layout.",
)
@options.output("report.html", help="The page.")
@options.overwrite
@options.as_json
@options.common
@pass_settings
def report(
    settings: Settings,
    *,
    features: Path,
    svm: Path,
    model: Path,
    trust_model: bool,
    data_dir: Path | None,
    layer: str | None,
    embedding: str,
    points: int,
    seed: int,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Put everything a run made on one HTML page.

    The page holds its pictures and numbers itself: it opens from disk, and nothing leaves it.
    What is missing (no SVM yet, images that have moved) is left out, and the page says so.
    """
    from cnnfeat.features import FeatureFile
    from cnnfeat.files import check_output

    check_output(out, overwrite=overwrite)
    FeatureFile(features).close()  # what is wrong with it is said before TensorFlow starts
    if model.exists():
        start_tensorflow(settings)
    from cnnfeat.report.evidence import Artifacts
    from cnnfeat.report.page import write_report

    result = write_report(
        Artifacts(model, features, svm, svm.with_name("predictions.csv")),
        out,
        layer=layer,
        embedding=embedding,
        n_points=points,
        seed=seed,
        data_dir=data_dir,
        trust=trust_model,
        overwrite=overwrite,
        progress=console.progress(settings),
    )
    for reason in result.missing:
        console.say(reason)
    if as_json:
        console.show_json({**dataclasses.asdict(result), "path": str(result.path)})
    else:
        console.show(f"{result.path} ({console.size_text(result.size_bytes)})")
