"""`cnnfeat extract`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnnfeat.address import Address
from cnnfeat.cli import console, flags, manual
from cnnfeat.cli.option import Number, option
from cnnfeat.cli.session import (
    Settings,
    StopRequest,
    artifact,
    own_model,
    pass_settings,
    start_tensorflow,
    stop_on_signals,
    told_to_resume,
    typed,
)
from cnnfeat.errors import SKIPPED_EXIT_CODE, Interrupted, UsageError
from cnnfeat.knobs import fields_of
from cnnfeat.options import DataOptions, ExtractOptions, RunOptions
from cnnfeat.records import counted

if TYPE_CHECKING:
    from cnnfeat.cluster import ClusterOptions
    from cnnfeat.records import ExtractResult

_log = logging.getLogger("cnnfeat")


@manual.command(
    "What to extract",
    "cnnfeat extract --layer conv2 --layer fc1",
    "cnnfeat extract --model keras:MobileNetV2 --data photos/ --layer out_relu",
)
@flags.tables(
    "extract",
    "model",
    "data",
    only={"data": set(fields_of(DataOptions)) - set(fields_of(ExtractOptions))},
    shown={"source": "what the model was trained on, else auto"},
)
@flags.trust
@option(
    "--shard",
    metavar="NUMBER/OF",
    help="Only the rows of one of several shards, such as 3/20; -o then names their folder.",
)
@option(
    "--dask",
    "where",
    metavar="ADDRESS",
    help="Have all shards computed by a Dask cluster, and leave a set in the folder -o: the "
    "scheduler's address, or local[:N] for N processes of this machine.",
)
@option("--shards", type=Number(1), help="With --dask: how many shards.")
@option(
    "--shard-rows",
    type=Number(1),
    help="With --dask: shards of so many images, about; 50,000 by default.",
)
@flags.output(
    "features.h5",
    help="The feature file; of shards, the folder. An address, such as s3://bucket/name, too.",
    stored=True,
)
@flags.overwrite
@option("--resume", is_flag=True, help="Go on with an interrupted run.")
@option(
    "--add",
    is_flag=True,
    help="Add to the file or the set that is there: layers, or the images that the source has got.",
)
@flags.as_json
@flags.common
@pass_settings
def extract(
    settings: Settings,
    *,
    options: RunOptions,
    trust_model: bool,
    shard: str | None,
    where: str | None,
    shards: int | None,
    shard_rows: int | None,
    out: Path | Address,
    overwrite: bool,
    resume: bool,
    add: bool,
    as_json: bool,
) -> None:
    """Write activations of named layers into a feature file.

    One pass over the images computes all layers asked for, and nothing behind them. `cnnfeat
    layers` lists what there is. An interrupted run goes on with --resume. With --shard, several
    runs on any number of machines each compute some of the rows; cnnfeat merge joins their files.
    With --dask a cluster computes all of them; the same command goes on with what is there.
    """
    from cnnfeat.commands import check_extract
    from cnnfeat.commands import extract as extract_features
    from cnnfeat.extraction import IN_FLIGHT
    from cnnfeat.network.place import check_there

    said = flags.is_said(click.get_current_context(), "out")
    if (shard is not None or where is not None) and not said:
        out = artifact("features")
    if where is not None:
        if add:
            raise UsageError("--add computes here, and --dask on a cluster: give one of them")
        cluster = _cluster(where, shards, shard_rows, shard=shard, overwrite=overwrite)
        result = _on_cluster(settings, options, cluster, out=out, trust=trust_model)
        _finish(result, as_json, out=out)
        return
    if shards is not None or shard_rows is not None:
        raise UsageError("--shards and --shard-rows go with --dask; --shard 3/20 is one of twenty")
    # before TensorFlow takes seconds
    model = options.model.path or own_model("--model names another")
    check_there(model)
    check_extract(out, shard, overwrite=overwrite, resume=resume, add=add)
    if add and isinstance(out, Path) and options.extract.layer == ExtractOptions().layer:
        options = _with_layers_at(out, options)
    start_tensorflow(settings, n_calls=IN_FLIGHT, device=options.extract.device)
    result = extract_features(
        model,
        options.data,
        options.extraction,
        out=out,
        read=options.model,
        trust=trust_model,
        shard=shard,
        overwrite=overwrite,
        resume=resume,
        add=add,
        opened=lambda images: _log.info("data: %s", console.source_text(images)),
        stopping=_stopping,
        progress=console.progress(settings),
    )
    _finish(result, as_json, out=out, shard=shard)


def _finish(
    result: ExtractResult, as_json: bool, *, out: Path | Address, shard: str | None = None
) -> None:
    _show(result, as_json=as_json, following=_next(result, out, shard))
    if result.skipped:
        click.get_current_context().exit(SKIPPED_EXIT_CODE)


def _with_layers_at(out: Path, options: RunOptions) -> RunOptions:
    """Ask for the layers that are there where none is named."""
    from cnnfeat.extraction.existing import layers_at

    if flags.is_said(click.get_current_context(), flags.parameter("extract_options", "layer")):
        return options
    layers = layers_at(out) or options.extract.layer
    return dataclasses.replace(options, extract=dataclasses.replace(options.extract, layer=layers))


def _cluster(
    where: str, shards: int | None, shard_rows: int | None, *, shard: str | None, overwrite: bool
) -> ClusterOptions:
    from cnnfeat.cluster import ClusterOptions

    if shard is not None:
        raise UsageError("--dask has all shards computed, and --shard one: give one of them")
    if overwrite:
        raise UsageError(
            "--dask keeps the shards that are there, and --overwrite would not",
            hint="delete the folder, or name another one with -o",
        )
    return ClusterOptions(where, shards=shards, shard_rows=shard_rows)


def _on_cluster(
    settings: Settings,
    options: RunOptions,
    cluster: ClusterOptions,
    *,
    out: Path | Address,
    trust: bool,
) -> ExtractResult:
    from cnnfeat.cluster import extract_on_cluster
    from cnnfeat.extraction import IN_FLIGHT

    return extract_on_cluster(
        options.model.path or own_model("--model names another"),
        options.data,
        options.extraction,
        cluster=cluster,
        out=out,
        read=options.model,
        trust=trust,
        start=lambda: start_tensorflow(settings, n_calls=IN_FLIGHT, device=options.extract.device),
        opened=lambda images: _log.info("data: %s", console.source_text(images)),
        stopping=functools.partial(_stopping, goes_on_by=()),
        progress=console.progress(settings),
    )


@contextlib.contextmanager
def _stopping(goes_on_by: Sequence[str] = ("--resume",)) -> Iterator[StopRequest]:
    """Hear signals; say which command goes on, and exit with the signal's code."""
    with stop_on_signals() as stop:
        try:
            yield stop
        except Interrupted as error:
            raise told_to_resume(error, stop.signal_number, by=goes_on_by) from error


def _next(result: ExtractResult, out: Path | Address, shard: str | None) -> str:
    """What can be done with the features."""
    if shard is not None:
        return typed("merge", str(out))
    if not result.labelled:
        return typed("export", "--to", "npz", argument=out)
    return typed("svm", *(["--layer", "all"] if len(result.layers) > 1 else []), argument=out)


def _show(result: ExtractResult, *, as_json: bool, following: str) -> None:
    if as_json:
        console.show_json(dataclasses.asdict(result))
        return
    facts = [
        (split, counted(n, "row") + _left_out(len(result.skipped.get(split, ()))))
        for split, n in result.rows.items()
    ]
    facts += [
        (output.layer, f"{output.row_shape} for each image, {output.tensor}")
        for output in result.layers
    ]
    facts.append(("extracted in", f"{result.elapsed_s:.1f} s{_rate(result)}"))
    facts.append(("features", f"{result.path}, {console.size_text(result.size_bytes)}"))
    facts.append(("next", following))
    console.show_facts(facts)


def _rate(result: ExtractResult) -> str:
    """Say how fast images were computed, of those that were."""
    n = result.n_computed
    if n is None:
        return ""
    fewer = n < sum(result.rows.values()) + sum(map(len, result.skipped.values()))
    return f", {n / result.elapsed_s:,.0f} images/s" + (f" of {n:,} left" if fewer else "")


def _left_out(n: int) -> str:
    return f", {n:,} left out (listed in the file)" if n else ""
