"""`cnnfeat extract`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from cnnfeat.cli import console, model_options, options
from cnnfeat.cli.settings import Settings, pass_settings
from cnnfeat.cli.signals import StopRequest, stop_on_signals
from cnnfeat.cli.startup import start_tensorflow
from cnnfeat.errors import SKIPPED_EXIT_CODE, Interrupted
from cnnfeat.options import ExtractOptions, Pooling, Precision, ProbeOptions, Scale

if TYPE_CHECKING:
    from cnnfeat.network import Network
    from cnnfeat.progress import Progress
    from cnnfeat.records import ExtractResult, OnError, Source

_log = logging.getLogger("cnnfeat")


class _Size(click.ParamType[tuple[int, int]]):
    """`224x160`: height and width; `224`: both."""

    name = "HxW"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Read one or two numbers."""
        parts = str(value).lower().split("x")
        if len(parts) > 2 or not all(
            part.isdecimal() and 1 <= int(part) <= 65_536 for part in parts
        ):
            self.fail(f"{value!r} is no size; 224x160 is 224 high and 160 wide", param, ctx)
        return int(parts[0]), int(parts[-1])


@click.command()
@options.config_file("extract")
@options.setting(
    ExtractOptions,
    "layer",
    help="A layer, a tensor, or a pattern such as 'conv*'; may be repeated.",
)
@model_options.option
@click.option(
    "--data",
    "source",
    metavar="SOURCE",
    show_default="what the model was trained on, else auto",
    help="A name (cnnfeat data list), a folder, or a file of images.",
)
@options.data_dir
@options.setting(ExtractOptions, "split", help="Only this split; may be repeated.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many of each split.")
@options.setting(
    ExtractOptions,
    "batch_size",
    help="Images at a time; auto tries a few sizes.  [default: 512, fewer if they are large]",
)
@options.setting(ExtractOptions, "dtype", help="How activations are stored.")
@options.setting(ExtractOptions, "precision", help="How the network computes.")
@options.setting(ExtractOptions, "pool", help="What is done over an activation's image axes.")
@click.option(
    "--scale",
    type=click.Choice(["unit", "symmetric", "raw", "imagenet", "caffe"]),
    show_default="as the model's file says",
    help="How pixels are scaled before the network.",
)
@click.option("--resize", type=_Size(), help="Bring all images to one size, such as 224x224.")
@model_options.reading
@click.option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="Whether one bad image ends the run or is left out (then exit code 6).",
)
@click.option("--max-pixels", type=click.IntRange(min=1), help="Refuse larger images.")
@click.option("--labels", help="Where labels lie, for a source that doesn't say.")
@options.output("features.h5", help="The feature file.")
@options.overwrite
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@options.as_json
@options.common
@pass_settings
def extract(
    settings: Settings,
    *,
    layer: tuple[str, ...],
    model: str,
    source: str | None,
    data_dir: Path | None,
    split: tuple[str, ...],
    limit: int | None,
    batch_size: int | Literal["auto"] | None,
    dtype: str,
    precision: Precision,
    pool: Pooling,
    scale: Scale | None,
    resize: tuple[int, int] | None,
    reading: model_options.Reading,
    on_error: OnError,
    max_pixels: int | None,
    labels: str | None,
    out: Path,
    overwrite: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Write activations of named layers into a feature file.

    One pass over the images computes all layers asked for, and nothing behind them. `cnnfeat
    layers` lists what there is. An interrupted run goes on with --resume.
    """
    from cnnfeat.features import FeatureWriter

    FeatureWriter.check(out, overwrite=overwrite, resume=resume)
    from cnnfeat.extraction import IN_FLIGHT

    start_tensorflow(settings, n_calls=IN_FLIGHT)
    from cnnfeat.extractor import extract_features

    network = reading.load(model)
    network.find(layer)  # a mistyped name is known before any image is read
    progress = console.progress(settings)
    with (
        _open_source(
            network,
            source,
            data_dir=data_dir,
            labels=labels,
            max_pixels=max_pixels,
            progress=progress,
        ) as images,
        stop_on_signals() as stop,
        _resume_command(stop),
    ):
        _log.info("data: %s", console.source_text(images))
        result = extract_features(
            network,
            images,
            layers=layer,
            out=out,
            options=ProbeOptions(precision, pool, scale, resize),
            splits=split,
            limit=limit,
            batch_size=batch_size,
            dtype=dtype,
            overwrite=overwrite,
            resume=resume,
            on_error=on_error,
            should_stop=stop,
            progress=progress,
        )
    _show(result, as_json=as_json)
    if result.skipped:
        click.get_current_context().exit(SKIPPED_EXIT_CODE)


def _open_source(
    network: Network,
    spec: str | None,
    *,
    data_dir: Path | None,
    labels: str | None,
    max_pixels: int | None,
    progress: Progress,
) -> Source:
    """Open what was named, else what the model was trained on, else "auto"."""
    from cnnfeat.data import MAX_PIXELS, open_source

    card = network.card
    trained = {} if card is None else card.source
    if spec is None and data_dir is None and card is not None:
        data_dir = card.data_dir
    source = open_source(
        spec or str(trained.get("name", "auto")),
        data_dir=data_dir,
        labels=labels,
        max_pixels=max_pixels or MAX_PIXELS,
        progress=progress,
    )
    if spec is None and trained and trained.get("fingerprint") != source.fingerprint().digest:
        _log.warning("%s has changed since the model was trained on it", source.name)
    return source


@contextlib.contextmanager
def _resume_command(stop: StopRequest) -> Iterator[None]:
    """Say which command goes on, and exit with the signal's code."""
    try:
        yield
    except Interrupted as error:
        given = [word for word in sys.argv[1:] if word not in ("--overwrite", "--resume")]
        command = shlex.join(["cnnfeat", *given, "--resume"])
        raise Interrupted(
            error.message,
            signal_number=stop.signal_number or 2,
            hint=error.hint and f"{command} goes on from there",
        ) from error


def _show(result: ExtractResult, *, as_json: bool) -> None:
    if as_json:
        console.show_json(dataclasses.asdict(result))
        return
    n_rows = sum(result.rows.values())
    facts = [
        (split, f"{n:,} rows" + _left_out(len(result.skipped.get(split, ()))))
        for split, n in result.rows.items()
    ]
    facts += [
        (output.layer, f"{output.row_shape} for each image, {output.tensor}")
        for output in result.layers
    ]
    facts.append(
        ("extracted in", f"{result.elapsed_s:.1f} s, {n_rows / result.elapsed_s:,.0f} images/s")
    )
    facts.append(("features", f"{result.path}, {console.size_text(result.size_bytes)}"))
    console.show_facts(facts)


def _left_out(n: int) -> str:
    return f", {n:,} left out (listed in the file)" if n else ""
