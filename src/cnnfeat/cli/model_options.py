"""Options of the commands that open a network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

import click

from cnnfeat.cli.settings import artifact

F = TypeVar("F", bound=Callable[..., object])
FORMATS = ".keras, .h5, SavedModel, GraphDef, checkpoint, or keras:NAME"


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


def argument(command: F) -> F:
    """Add the argument MODEL."""
    return click.argument("model", default=lambda: str(artifact("model.keras")), required=False)(
        command
    )


def reading(command: F) -> F:
    """Add the options that say how a network is read."""
    for option in reversed(
        (
            click.option("--signature", help="Which signature of a SavedModel."),
            click.option("--input", "input_name", help="The input that takes the images."),
            click.option(
                "--feed", "feeds", type=Feed(), multiple=True, help="A value for a placeholder."
            ),
            click.option("--weights", help="For keras:NAME: imagenet, none, or a file."),
            click.option(
                "--trust-model", is_flag=True, help="Run a model that does more than compute."
            ),
        )
    ):
        command = option(command)
    return command
