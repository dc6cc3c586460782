"""Options of the commands that open a network."""

from __future__ import annotations

import contextlib
import functools
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import click

from cnnfeat.cli.settings import artifact

if TYPE_CHECKING:
    from cnnfeat.network import Network

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Reading:
    """How a network is read."""

    signature: str | None
    input_name: str | None
    feeds: tuple[tuple[str, bool | int | float | str], ...]
    weights: str | None
    trust_model: bool

    def load(self, model: str) -> Network:
        """Open the network; see `cnnfeat.network.load_network`."""
        from cnnfeat.network import load_network

        return load_network(
            model,
            trust=self.trust_model,
            signature=self.signature,
            input_name=self.input_name,
            weights=self.weights,
            feeds=dict(self.feeds),
        )


class Feed(click.ParamType[tuple[str, "bool | int | float | str"]]):
    """`keep_prob=1.0`."""

    name = "NAME=VALUE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, bool | int | float | str]:
        """Split at the first `=`, and read the value as the simplest type it fits."""
        name, sign, text = str(value).partition("=")
        if not name or not sign:
            self.fail(f"{value!r} is no NAME=VALUE; try keep_prob=1.0", param, ctx)
        if text.lower() in ("true", "false"):
            return name, text.lower() == "true"
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return name, kind(text)
        return name, text


def _default() -> str:
    return str(artifact("model.keras"))


def argument(command: F) -> F:
    """Add the argument MODEL."""
    return click.argument("model", required=False, default=_default)(command)


def option(command: F) -> F:
    """Add --model."""
    return click.option(
        "--model",
        default=_default,
        show_default="artifacts/model.keras",
        help="A network: .keras, .h5, SavedModel, GraphDef, checkpoint, or keras:NAME.",
    )(command)


def reading(command: F) -> F:
    """Add the options that say how a network is read; the command gets them as `reading`."""

    @functools.wraps(command)
    def gathered(
        *args: object,
        signature: str | None,
        input_name: str | None,
        feeds: tuple[tuple[str, bool | int | float | str], ...],
        weights: str | None,
        trust_model: bool,
        **values: object,
    ) -> object:
        how = Reading(signature, input_name, feeds, weights, trust_model)
        return command(*args, reading=how, **values)

    wrapped: Callable[..., object] = gathered
    for option in reversed(_READING):
        wrapped = option(wrapped)
    return typing.cast("F", wrapped)


_READING = (
    click.option("--signature", help="Which signature of a SavedModel."),
    click.option("--input", "input_name", help="The input that takes the images."),
    click.option("--feed", "feeds", type=Feed(), multiple=True, help="A value for a placeholder."),
    click.option("--weights", help="For keras:NAME: imagenet, none, or a file."),
    click.option("--trust-model", is_flag=True, help="Run a model that does more than compute."),
)
