"""What a shell offers behind Tab: layers of the file that is named, sources, words, paths.

Nothing is run or fetched for it: names come from what files say of themselves.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeAlias

import click
from click.shell_completion import CompletionItem

from cnnfeat import knobs
from cnnfeat.cli.session import artifact
from cnnfeat.errors import CnnfeatError

Complete: TypeAlias = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

# Parameters that name what has layers.
_MODELS = ("model_options__path", "model", "models")
_FEATURES = ("features",)


def offer(words: Iterable[str]) -> Complete:
    """Offer some words."""
    known = tuple(words)

    def complete(
        _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return _matching(known, incomplete)

    return complete


def files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer what the shell knows of files."""
    return [CompletionItem(incomplete, type="file")]


def sources(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the sources known by name, and files."""
    from cnnfeat.data import list_sources

    names = ["auto", *(source.name for source in list_sources())]
    return [*_matching(names, incomplete), *files(ctx, param, incomplete)]


def layers_of_model(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the layers of the network that is named, or lies where `cnnfeat train` puts it."""
    return _layers(_named(ctx, _MODELS, "model.keras"), incomplete)


def layers_of_features(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the layers of the feature file that is named, and what a + joins."""
    if ctx.args:  # Click leaves arguments there where an option still lacks its value
        return _layers(Path(ctx.args[0]), incomplete)
    return _layers(_named(ctx, _FEATURES, "features.h5"), incomplete)


def of_field(kind: type, field: str, flag: str) -> Complete | None:
    """Say what is offered for a field of an options record."""
    hint = typing.get_type_hints(kind)[field]
    words = [
        word
        for choice in knobs.alternatives(hint)
        if typing.get_origin(choice) is Literal
        for word in typing.get_args(choice)
    ]
    if flag == "--layer":
        return layers_of_features if kind.__name__ == "SvmOptions" else layers_of_model
    return offer(words) if words else _BY_FLAG.get(flag)


_BY_FLAG: dict[str, Complete] = {
    "--data": sources,
    **dict.fromkeys(("--model", "--data-dir", "--labels", "--weights", "--import"), files),
    "--architecture": files,
}


def _named(ctx: click.Context, names: Iterable[str], otherwise: str) -> Path:
    """The file that was typed for one of the parameters, the first of several."""
    for name in names:
        value = ctx.params.get(name)
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, str | Path):
            return Path(value)
    return artifact(otherwise)


def _layers(path: Path, incomplete: str) -> list[CompletionItem]:
    from cnnfeat.artifact import layer_names

    before, plus, last = incomplete.rpartition("+")
    try:
        names = layer_names(path)
    except (CnnfeatError, OSError):  # there is nothing to offer, and no place to say why
        return []
    return _matching([f"{before}{plus}{name}" for name in names], before + plus + last)


def _matching(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]
