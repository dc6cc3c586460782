"""`cnnfeat plot KIND`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import click

from cnnfeat.cli import completion, console, flags, manual
from cnnfeat.cli.option import Number, option
from cnnfeat.cli.session import Settings, artifact, own_model
from cnnfeat.options import ReadOptions, RunOptions

if TYPE_CHECKING:
    from cnnfeat.report.plots import Canvas

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class _Input:
    """An artifact a picture is made from."""

    flag: str
    name: str
    help: str


_FEATURES = _Input("--features", "features.h5", "The feature file.")
_SVM = _Input("--svm", "svm.json", "The SVM's result; predictions.csv lies beside it.")

_model = option(
    "--model",
    shell_complete=completion.files,
    show_default="the features' own, else artifacts/model.keras",
    help="The network.",
)
_stored_layer = option(
    "--layer",
    shell_complete=completion.layers_of_features,
    show_default="the only one",
    help="A layer of the feature file.",
)
_split = option("--split", show_default="test, else the last", help="Which rows.")


def _drawing(
    kind: str, *inputs: _Input, network: bool = False, card: bool = False, pictures: bool = False
) -> Callable[[F], F]:
    """Add the options of every picture, and hand the command a `Canvas`."""

    def decorate(command: F) -> F:
        @click.pass_context
        def drawn(ctx: click.Context, /, **values: object) -> None:
            canvas = _canvas(ctx.ensure_object(Settings), values)
            ctx.invoke(command, canvas, **values)
            console.show(str(canvas.out))

        wrapped = update_wrapper(drawn, command)
        choices = [flags.input_file(item.flag, item.name, help=item.help) for item in inputs]
        if network:
            choices += [_model, flags.reading]
        if card:
            choices.append(_model)
        if pictures:
            choices.append(flags.data_dir)
        choices += [
            flags.output(f"{kind}.png", help="The picture: .png or .svg."),
            option(
                "--dpi",
                type=Number(10.0, 2_400.0),
                default=150,
                show_default=True,
                help="Dots per inch of a PNG.",
            ),
            flags.overwrite,
            flags.common,
        ]
        for choice in reversed(choices):
            wrapped = choice(wrapped)
        return cast("F", wrapped)

    return decorate


def _canvas(settings: Settings, values: dict[str, object]) -> Canvas:
    """Take the shared options out of `values`, and check the output before any long work."""
    from cnnfeat.features import FeatureFile
    from cnnfeat.files import check_output
    from cnnfeat.network.place import check_there
    from cnnfeat.report.evidence import Artifacts
    from cnnfeat.report.figure import check_picture
    from cnnfeat.report.plots import Canvas

    def path(name: str, default: str) -> Path:
        return cast("Path", values.pop(name, None) or artifact(default))

    svm, features = path("svm", "svm.json"), path("features", "features.h5")
    if features != artifact("features.h5"):
        FeatureFile(features).close()  # only those that nobody named may be missing
    opens, model = "trust_model" in values, cast("str | None", values.pop("model", None))
    if opens and model is not None:
        check_there(model)
    artifacts = Artifacts(
        model=model,
        features=features,
        svm=svm,
        predictions=svm.with_name("predictions.csv"),
        read=cast("ReadOptions", values.pop("read", ReadOptions())),
        trust=bool(values.pop("trust_model", False)),
    )
    out = cast("Path", values.pop("out"))
    check_picture(out)
    check_output(out, overwrite=bool(values.pop("overwrite")))
    return Canvas(
        artifacts,
        out,
        dpi=cast("float", values.pop("dpi")),
        data_dir=cast("Path | None", values.pop("data_dir", None)),
        progress=console.progress(settings),
    )


def _start_tensorflow(canvas: Canvas) -> None:
    """Start it in silence, where there is a model to open."""
    from cnnfeat.cli.session import start_tensorflow

    if canvas.artifacts.model is None and not canvas.artifacts.features.exists():
        own_model("--model names another")
    if canvas.artifacts.find_model() is not None:
        start_tensorflow(click.get_current_context().ensure_object(Settings))


@click.group(cls=manual.CommandGroup)
def plot() -> None:
    """Draw what a run made, as PNG or SVG.

    \b
    cnnfeat plot filters --layer conv1
    cnnfeat plot activations --layer conv2 --image 7 -o maps.svg
    """


@manual.command(
    "What to draw",
    "cnnfeat plot filters --layer conv1",
    "cnnfeat plot filters --model photos.keras --layer conv2 --by channel -o f.svg",
    group=plot,
)
@option(
    "--layer",
    required=True,
    shell_complete=completion.layers_of_model,
    help="A convolution, or a block with one.",
)
@option(
    "--by",
    type=click.Choice(["auto", "largest", "norm", "channel"]),
    default="auto",
    show_default=True,
    help="What a tile shows where a filter has several input channels; largest: the four of "
    "the largest L2 norm; auto: colours for 3 channels, else the largest.",
)
@option("--channel", type=int, default=0, show_default=True, help="Which one, with --by channel.")
@_drawing("filters", _FEATURES, network=True)
def filters(canvas: Canvas, *, layer: str, by: str, channel: int) -> None:
    """Draw a layer's weights, one tile a filter."""
    from cnnfeat.report.plots import draw_filters

    _start_tensorflow(canvas)
    draw_filters(canvas, layer, by=by, channel=channel)


@manual.command(
    "What to draw",
    "cnnfeat plot activations --layer conv2",
    "cnnfeat plot activations --layer conv2 --image 7 --split test -o maps.svg",
    group=plot,
)
@option(
    "--layer",
    required=True,
    shell_complete=completion.layers_of_model,
    help="A layer with maps: (height, width, channels).",
)
@option("--image", default="0", show_default=True, help="A row number, or an id.")
@_split
@_drawing("activations", _FEATURES, network=True, pictures=True)
def activations(canvas: Canvas, *, layer: str, image: str, split: str | None) -> None:
    """Draw an image and what a layer makes of it, beside the layer's filters.

    Filters are weights, the same for every image. Activations are features, each image's own.
    """
    from cnnfeat.report.plots import draw_activations

    _start_tensorflow(canvas)
    draw_activations(canvas, layer, image=image, split=split)


@manual.command(
    "What to draw",
    "cnnfeat plot top --layer conv2 --unit 3",
    "cnnfeat plot top --layer fc1 --unit 100 --count 48 --split train",
    group=plot,
)
@_stored_layer
@option(
    "--unit", type=int, required=True, help="A channel of a convolution, or a place in a vector."
)
@option(
    "--count",
    type=Number(1, 200),
    default=24,
    show_default=True,
    help="Images.",
)
@_split
@_drawing("top", _FEATURES, pictures=True)
def top(canvas: Canvas, *, layer: str | None, unit: int, count: int, split: str | None) -> None:
    """Draw the images that excite one unit of a layer most."""
    from cnnfeat.report.plots import draw_top

    draw_top(canvas, layer, unit=unit, n_images=count, split=split)


@manual.command(
    "What to draw",
    "cnnfeat plot embedding --layer fc1",
    "cnnfeat plot embedding --layer conv2 --method pca --points 500",
    group=plot,
)
@_stored_layer
@option(
    "--method",
    type=click.Choice(["tsne", "pca", "umap"]),
    default="tsne",
    show_default=True,
    help="umap: pip install 'cnnfeat[umap]'.",
)
@option(
    "--points",
    type=Number(5),
    default=2_000,
    show_default=True,
    help="At most so many images, chosen at random.",
)
@option(
    "--seed",
    type=Number(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Fixes the choice and the layout.",
)
@_split
@_drawing("embedding", _FEATURES)
def embedding(
    canvas: Canvas, *, layer: str | None, method: str, points: int, seed: int, split: str | None
) -> None:
    """Draw features as points, coloured by class."""
    from cnnfeat.report.plots import draw_embedding

    draw_embedding(canvas, layer, method=method, n_points=points, seed=seed, split=split)


@manual.command(
    "What to draw",
    "cnnfeat plot confusion --overwrite",
    "cnnfeat plot confusion --svm machines/svm.json -o confusion.svg",
    group=plot,
)
@_drawing("confusion", _SVM)
def confusion(canvas: Canvas) -> None:
    """Draw which class is taken for which."""
    from cnnfeat.report.plots import draw_confusion

    draw_confusion(canvas)


@manual.command(
    "What to draw",
    "cnnfeat plot errors",
    "cnnfeat plot errors --count 100 --dpi 300",
    group=plot,
)
@option(
    "--count",
    type=Number(1, 200),
    default=48,
    show_default=True,
    help="Images.",
)
@_drawing("errors", _SVM, _FEATURES, pictures=True)
def errors(canvas: Canvas, *, count: int) -> None:
    """Draw the misclassified images, the surest mistakes first."""
    from cnnfeat.report.plots import draw_errors

    draw_errors(canvas, n_images=count)


@manual.command(
    "What to draw",
    "cnnfeat plot layers --overwrite",
    "cnnfeat plot layers --svm machines/svm.json -o layers.svg",
    group=plot,
)
@_drawing("layers", _SVM)
def layers(canvas: Canvas) -> None:
    """Draw the SVM's accuracy by layer, beside the network's own."""
    from cnnfeat.report.plots import draw_layers

    draw_layers(canvas)


@manual.command(
    "What to draw",
    "cnnfeat plot training",
    "cnnfeat plot training --model photos.keras -o training.svg",
    group=plot,
)
@_drawing("training", _FEATURES, card=True)
def training(canvas: Canvas) -> None:
    """Draw loss and accuracy by epoch."""
    from cnnfeat.report.plots import draw_training

    draw_training(canvas)


@manual.command(
    "What to draw",
    "cnnfeat plot augment --data digits --augment rotation=12,shift=0.1",
    "cnnfeat plot augment --count 3 --variations 12",
    group=plot,
)
@flags.tables("data", shown={"source": "what the model was trained on, else auto"})
@flags.augment
@option(
    "--count",
    type=Number(1, 100),
    default=6,
    show_default=True,
    help="Images.",
)
@option(
    "--variations",
    type=Number(1, 50),
    default=8,
    show_default=True,
    help="Of each image.",
)
@option(
    "--seed",
    type=Number(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Fixes what is drawn by chance.",
)
@_drawing("augment", _FEATURES, card=True)
def augment(canvas: Canvas, *, options: RunOptions, count: int, variations: int, seed: int) -> None:
    """Draw images as augmentation varies them, each beside itself.

    Without --augment: as in the training of the network, where its card tells.
    """
    from cnnfeat.cli.session import start_tensorflow
    from cnnfeat.extraction.varying import choose_augment
    from cnnfeat.pipeline import open_images
    from cnnfeat.report.variations import draw_variations

    card = canvas.artifacts.read_card()
    varied, why = choose_augment(options.augment.given, card)
    with open_images(options.data, card, progress=canvas.progress) as images:
        console.say(f"data: {console.source_text(images)}")
        console.say(f"images are varied by {varied}, {why}")
        start_tensorflow(click.get_current_context().ensure_object(Settings))
        draw_variations(
            images,
            varied,
            canvas.out,
            n_images=count,
            n_variations=variations,
            seed=seed,
            dpi=canvas.dpi,
        )
