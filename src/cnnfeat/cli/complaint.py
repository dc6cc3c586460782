"""What is wrong, said in one way whoever finds it out: this program, Click, or the system."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cnnfeat.cli.console import visible
from cnnfeat.cli.hints import fit_hint, known_options
from cnnfeat.cli.option import said_in
from cnnfeat.errors import CnnfeatError, Interrupted, UsageError, near_names


def show_error(error: CnnfeatError, words: Sequence[str], *, root: click.Command) -> None:
    """Say on stderr what went wrong, and what to do about it in the command that was typed."""
    hint = fit_hint(error.hint, known_options(root, words)) if error.hint else ""
    label = "interrupted" if isinstance(error, Interrupted) else "error"
    click.echo(f"{label}: {visible(str(error), lines=True)}", err=True)
    if hint:
        click.echo(f"hint: {visible(hint, lines=True)}", err=True)


def mistyped(error: click.ClickException) -> UsageError:
    """What Click has against the words of a command."""
    if isinstance(error.__cause__, UsageError):  # of a value, by the record that it is for
        return error.__cause__
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"cnnfeat {_typed(context)}--help says what it takes" if context is not None else ""
    if isinstance(error, click.NoSuchOption):
        near = near_names(error.option_name, error.possibilities or ())
        return UsageError(f"there is no option {error.option_name}", hint=near or hint)
    if isinstance(error, click.NoSuchCommand):
        group = context.command if context is not None else None
        known = group.list_commands(context) if isinstance(group, click.Group) and context else ()
        near = near_names(error.command_name, known)
        return UsageError(f"there is no command {error.command_name}", hint=near or hint)
    if isinstance(error, click.BadParameter) and error.param_hint is None:
        error.param_hint = said_in(error.ctx, error.param)
    text = " ".join(error.format_message().split()).removesuffix(".")
    if text[1:2].islower():
        text = text[0].lower() + text[1:]
    return UsageError(text, hint=hint)


def _typed(context: click.Context) -> str:
    """The words of a command behind the program's name, with a space behind them."""
    return "".join(f"{word} " for word in context.command_path.split()[1:])
