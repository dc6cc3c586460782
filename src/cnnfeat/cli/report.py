"""`cnnfeat report`."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import click

from cnnfeat.cli import completion, console, flags, manual
from cnnfeat.cli.option import Number, option
from cnnfeat.cli.session import Settings, pass_settings, start_tensorflow
from cnnfeat.errors import UntrustedModelError
from cnnfeat.options import ReadOptions


@manual.command(
    "What to draw",
    "cnnfeat report",
    "cnnfeat report --layer fc1 --embedding pca -o report.html",
)
@flags.input_file("--features", "features.h5", help="The feature file.")
@flags.input_file("--svm", "svm.json", help="The SVM's result; predictions.csv lies beside it.")
@option(
    "--model",
    shell_complete=completion.files,
    show_default="the features' own",
    help="The network.",
)
@flags.reading
@flags.data_dir
@option(
    "--layer",
    shell_complete=completion.layers_of_features,
    show_default="the SVM's",
    help="Whose features are drawn as points.",
)
@option(
    "--embedding",
    type=click.Choice(["tsne", "pca", "umap"]),
    default="tsne",
    show_default=True,
    help="How features become points; umap: pip install 'cnnfeat[umap]'.",
)
@option(
    "--points",
    type=Number(5, 20_000),
    default=2_000,
    show_default=True,
    help="At most so many: all mistakes, and other images chosen at random.",
)
@option(
    "--seed",
    type=Number(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Fixes the choice and the layout.",
)
@flags.output("report.html", help="The page.")
@flags.overwrite
@flags.as_json
@flags.common
@pass_settings
def report(
    settings: Settings,
    *,
    features: Path,
    svm: Path,
    model: str | None,
    read: ReadOptions,
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

    FeatureFile(features).close()  # what is wrong with it is said before TensorFlow starts
    check_output(out, overwrite=overwrite)
    from cnnfeat.report.evidence import Artifacts
    from cnnfeat.report.page import write_report

    artifacts = Artifacts(
        model=model,
        features=features,
        svm=svm,
        predictions=svm.with_name("predictions.csv"),
        read=read,
        trust=trust_model,
    )
    with contextlib.suppress(UntrustedModelError):  # said on the page
        if artifacts.find_model() is not None:
            start_tensorflow(settings)
    result = write_report(
        artifacts,
        out,
        layer=layer,
        embedding=embedding,
        n_points=points,
        seed=seed,
        data_dir=data_dir,
        overwrite=overwrite,
        progress=console.progress(settings),
    )
    for reason in result.missing:
        console.say(reason)
    if as_json:
        console.show_json({**dataclasses.asdict(result), "path": str(result.path)})
    else:
        size = console.size_text(result.size_bytes)
        console.show(f"{result.path} ({size}): opens in any browser")
