"""Hints that fit the command that failed: an option that it doesn't have is no way on.

A hint is written where an error is found out, for all commands that lead there. Its ways on stand
between semicolons; a way by an option that the failing command hasn't is left out. An option behind
`cnnfeat COMMAND` is that command's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import click

from cnnfeat import knobs
from cnnfeat.cli.flags import flag_word
from cnnfeat.options import RunOptions

_OPTION = re.compile(r"(?<![\w/-])(?:--[A-Za-z][\w-]*|-o)(?!\w)")
_BETWEEN = "; "


def fit_hint(hint: str, spelled: Mapping[str, str]) -> str:
    """Leave out the ways on that a command doesn't have, and spell its options as it does.

    Parameters
    ----------
    hint : str
        Ways on, with semicolons between.
    spelled : mapping of str to str
        What stands for each option there: itself, or a key of a file.
    """
    ways = []
    for way in hint.split(_BETWEEN):
        own, mark, others = way.partition("cnnfeat ")
        if all(option in spelled for option in _OPTION.findall(own)):
            ways.append(_OPTION.sub(lambda found: spelled[found[0]], own) + mark + others)
    return _BETWEEN.join(ways).removeprefix("or ")


def known_options(root: click.Command, words: Sequence[str]) -> dict[str, str]:
    """Say which options a typed command has, and the keys that its file has besides.

    Parameters
    ----------
    root : click.Command
        Of all commands.
    words : sequence of str
        What was typed.
    """
    command, ctx = root, click.Context(root)
    for word in words:
        found = command.get_command(ctx, word) if isinstance(command, click.Group) else None
        if found is None:
            break
        command = found
    options = [word for item in command.params for word in (*item.opts, *item.secondary_opts)]
    keys = (
        _file_keys()
        if any(
            isinstance(item, click.Argument) and item.name == "config" for item in command.params
        )
        else {}
    )
    return keys | {word: word for word in options if word.startswith("-")}


def _file_keys() -> dict[str, str]:
    """What a run's file calls the options of the stages; those of two tables are left out."""
    keys: dict[str, list[str]] = {}
    for table in dataclasses.fields(RunOptions):
        kind = type(table.default)
        for name, item in knobs.fields_of(kind).items():
            if knobs.knob_of(item).help:
                keys.setdefault(flag_word(kind, name), []).append(f"[{table.name}] {name}")
    return {word: names[0] for word, names in keys.items() if len(names) == 1}
