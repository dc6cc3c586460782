"""Pictures of artifacts, one function a kind: files in, one PNG or SVG out."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cnnfeat.card import card_path
from cnnfeat.errors import (
    CnnfeatError,
    FeatureFileError,
    LayerLookupError,
    MissingInputError,
    NetworkError,
    UsageError,
)
from cnnfeat.features import FeatureFile, FeatureTable
from cnnfeat.pictures import Pictures
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import class_name
from cnnfeat.report.charts import plot_confusion, plot_layers, plot_training
from cnnfeat.report.embedding import DEFAULT_POINTS, METHODS, embed_layer, plot_embedding
from cnnfeat.report.evidence import (
    Artifacts,
    of_another_network,
    open_pictures,
    read_predictions,
)
from cnnfeat.report.exhibits import computed_maps, filters_of, filters_or_none, stored_maps
from cnnfeat.report.gallery import mistake_images, plot_errors, plot_top
from cnnfeat.report.tiles import plot_activations, plot_filters
from cnnfeat.result import read_result

if TYPE_CHECKING:
    from cnnfeat.network import Network
    from cnnfeat.records import Array

logger = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class Canvas:
    """What a picture is made from, and where it goes."""

    artifacts: Artifacts
    out: Path  # ends in .png or .svg
    dpi: float = 150
    data_dir: Path | None = None  # where named data sets lie
    progress: Progress = SILENT


def draw_filters(canvas: Canvas, layer: str, *, by: str = "auto", channel: int = 0) -> None:
    """Draw a layer's filters; `by` and `channel` are those of `tiles.filter_tiles`.

    Raises
    ------
    NetworkError
        If the layer has no filters.
    """
    found, kernel = filters_of(canvas.artifacts.open_model(), layer, own=True)
    plot_filters(kernel, canvas.out, layer=found.name, by=by, channel=channel, dpi=canvas.dpi)


def draw_activations(canvas: Canvas, layer: str, *, image: str, split: str | None = None) -> None:
    """Draw an image, a layer's filters and its activation maps.

    The maps come from the feature file; those of a layer that isn't in it, from the network.

    Parameters
    ----------
    canvas : Canvas
        Inputs and output.
    layer : str
        A layer of the feature file or of the network.
    image : str
        A row number or an id.
    split : str, optional
        By default "test" where there is one, else the last.

    Raises
    ------
    DataError, NetworkError
        If the layer has no maps.
    UsageError
        If there is no such image.
    """
    with ExitStack() as stack:
        file = stack.enter_context(FeatureFile(canvas.artifacts.features))
        split = choose_split(file, split)
        row = find_row(file, split, image)
        pictures = _pictures_or_none(stack, file, canvas)
        network = _own_network(canvas.artifacts, file)
        activation, name = _maps(
            file, layer, split=split, row=row, network=network, pictures=pictures
        )
        plot_activations(
            pictures.one(split, row) if pictures else None,
            activation,
            canvas.out,
            layer=name,
            caption=_caption(file, split, row),
            kernel=filters_or_none(network, name),
            dpi=canvas.dpi,
        )


def _own_network(artifacts: Artifacts, file: FeatureFile) -> Network | None:
    """Open the network that features came from, where it is still there and the same."""
    if artifacts.find_model(file) is None:
        return None
    network = artifacts.open_model(file)
    if other := of_another_network(file, network):
        logger.warning("drawn without filters: %s", other)
        return None
    return network


def _maps(
    file: FeatureFile,
    layer: str,
    *,
    split: str,
    row: int,
    network: Network | None,
    pictures: Pictures | None,
) -> tuple[Array, str]:
    try:
        stored = file.layer(split, file.find_layer(layer)).layer
        return stored_maps(file, layer, split=split, rows=[row])[row], stored
    except LayerLookupError:
        if network is None or pictures is None:
            raise
    found = network.find([layer])[0]
    maps = computed_maps(network, found, file=file, pictures=pictures, split=split, rows=[row])
    return maps[row], found.name


def draw_top(
    canvas: Canvas, layer: str | None, *, unit: int, n_images: int, split: str | None = None
) -> None:
    """Draw the images that excite a unit of a layer most.

    Raises
    ------
    UsageError
        If there is no such unit.
    DataError
        If the images are not where they were.
    """
    with FeatureFile(canvas.artifacts.features) as file, _pictures(file, canvas) as pictures:
        plot_top(
            file,
            pictures,
            canvas.out,
            layer=file.find_layer(layer),
            split=choose_split(file, split),
            unit=unit,
            n_images=n_images,
            dpi=canvas.dpi,
        )


def draw_embedding(
    canvas: Canvas,
    layer: str | None,
    *,
    method: str = "tsne",
    n_points: int = DEFAULT_POINTS,
    seed: int = 0,
    split: str | None = None,
) -> None:
    """Draw features as points, coloured by class; see `embedding.embed_layer`."""
    with FeatureFile(canvas.artifacts.features) as file:
        split, table = choose_split(file, split), FeatureTable([file])
        embedding = embed_layer(
            table,
            table.find_layer(layer),
            split=split,
            method=method,
            n_points=n_points,
            seed=seed,
        )
        labels = file.labels(split)
        plot_embedding(
            embedding,
            canvas.out,
            labels=None if labels is None else labels[embedding.rows],
            classes=file.classes,
            title=f"{METHODS[method]} of {embedding.layer}, {_source(file)} {split}",
            dpi=canvas.dpi,
        )


def draw_confusion(canvas: Canvas) -> None:
    """Draw the confusion matrix of `svm.json`."""
    result = read_result(canvas.artifacts.svm)
    title = f"{result.kernel} SVM on {result.best.layer}: {result.scored_rows}"
    plot_confusion(
        result.confusion,
        result.classes,
        canvas.out,
        title=title[:1].upper() + title[1:],
        caveat=result.caveat,
        dpi=canvas.dpi,
    )


def draw_errors(canvas: Canvas, *, n_images: int) -> None:
    """Draw the SVM's surest mistakes.

    Raises
    ------
    DataError
        If it made none, or the images are not where they were.
    """
    result = read_result(canvas.artifacts.svm)
    with FeatureFile(canvas.artifacts.features) as file:
        predictions = read_predictions(canvas.artifacts.predictions, file=file, result=result)
        images = {}
        if len(predictions.wrong):
            with _pictures(file, canvas) as pictures:
                images = mistake_images(predictions, pictures, n_images=n_images)
        plot_errors(
            result,
            predictions,
            images,
            canvas.out,
            ids=file.ids(predictions.split),
            n_images=n_images,
            dpi=canvas.dpi,
        )


def draw_layers(canvas: Canvas) -> None:
    """Draw the scores of all layers that `svm.json` compares."""
    result = read_result(canvas.artifacts.svm)
    plot_layers(
        result.layers,
        canvas.out,
        network_accuracy=result.network_test_accuracy,
        on=result.compared_on,
        title=f"A {result.kernel} SVM by layer",
        dpi=canvas.dpi,
    )


def draw_training(canvas: Canvas) -> None:
    """Draw loss and accuracy by epoch, from the card beside the features' network.

    Raises
    ------
    MissingInputError
        If there is no card.
    FeatureFileError
        If it is damaged.
    """
    path = card_path(Path(canvas.artifacts.name_model()))
    if not path.exists():
        raise MissingInputError(
            f"no model card {path}",
            hint="cnnfeat train writes it beside the model; --model names another one",
        )
    try:
        card = canvas.artifacts.read_card()
    except NetworkError as error:
        raise FeatureFileError(f"{path}: not a model's card: {error}") from error
    if card is None:
        raise FeatureFileError(f"{path}: not a model's card, or of another model than is there")
    plot_training(
        card.curves,
        canvas.out,
        title=f"Training on {Path(card.source_name).name}: {card.n_train:,} images",
        dpi=canvas.dpi,
    )


def choose_split(file: FeatureFile, split: str | None) -> str:
    """Take the split asked for, else "test" where there is one, else the last.

    Raises
    ------
    UsageError
        If there is no such split.
    """
    if split is None:
        return "test" if "test" in file.splits else file.splits[-1]
    file.n_rows(split)
    return split


def find_row(file: FeatureFile, split: str, image: str) -> int:
    """Find an image by row number or id.

    Raises
    ------
    UsageError
        If there is none.
    """
    n_rows = file.n_rows(split)
    ids = file.ids(split)
    if image in ids:
        return ids.index(image)
    if image.isdecimal() and int(image) < n_rows:
        return int(image)
    raise UsageError(
        f"no image {image!r} in {split}: give a row, 0 to {n_rows - 1}, or an id such as "
        f"{ids[0] if ids else 'a file name'!r}"
    )


def _caption(file: FeatureFile, split: str, row: int) -> str:
    name = file.ids(split, start=row, stop=row + 1)[0]
    labels = file.labels(split)
    if labels is None:
        return name
    return f"{name} (class {class_name(int(labels[row]), file.classes)})"


def _source(file: FeatureFile) -> str:
    return Path(file.provenance.source).name


def _pictures(file: FeatureFile, canvas: Canvas) -> AbstractContextManager[Pictures]:
    return open_pictures(file, data_dir=canvas.data_dir, progress=canvas.progress)


def _pictures_or_none(stack: ExitStack, file: FeatureFile, canvas: Canvas) -> Pictures | None:
    try:
        return stack.enter_context(_pictures(file, canvas))
    except CnnfeatError as error:
        logger.warning("drawn without the image: %s", error)
        return None
