"""What a command's help looks like: options in groups, in one order everywhere, and examples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

import click

F = TypeVar("F", bound=Callable[..., object])

# Options of several commands, where and in which order all of them show these. What stands in no
# group is what a command is about: a group of its own, in the order in which it is declared.
INPUT = (
    *("--config", "--set", "--features", "--svm", "--data", "--data-dir", "--labels"),
    *("--id-column", "--label-column", "--group-by", "--min-per-class", "--test-fraction"),
    *("--validation", "--max-pixels", "--resize", "--no-resize", "--fit", "--invert", "--on-error"),
)
NETWORK = (
    *("--model", "--signature", "--input", "--feed", "--weights", "--architecture", "--import"),
    *("--scale", "--trust-model"),
)
OUTPUT = ("--output", "--add", "--manifest", "--overwrite", "--dpi", "--csv", "--json")
RUNNING = (
    *("--resume", "--shard", "--dask", "--shards", "--shard-rows", "--batch-size", "--precision"),
    *("--device", "--engine", "--memory", "--timeout"),
    *("--quiet", "--verbose", "--no-progress", "--debug", "--help"),
)
WIDEST_TERM = 30  # characters of an option's names; of a longer one, the words start below it


class Command(click.Command):
    """A command whose help has groups and examples; see `command`."""

    own = "Options"
    examples: tuple[str, ...] = ()
    claims: Collection[str] = ()

    def groups(self, ctx: click.Context) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        """Each group's title, with its options and what is said of them."""
        listed = {"Input": INPUT, "Network": NETWORK, self.own: (), "Output": OUTPUT}
        listed["Running"] = RUNNING
        options = [item for item in self.get_params(ctx) if isinstance(item, click.Option)]
        homes = {word: title for title, words in listed.items() for word in words}
        homes |= dict.fromkeys(self.claims, self.own)
        for title, words in listed.items():
            members = [item for item in options if homes.get(_word(item), self.own) == title]
            if title != self.own:
                members.sort(key=lambda item: words.index(_word(item)))
            records = [item.get_help_record(ctx) for item in members]
            if any(records):
                yield title, [record for record in records if record is not None]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups, their words below each other."""
        groups = list(self.groups(ctx))
        terms = [term for _, records in groups for term, _ in records]
        width = min(max(map(len, terms)), WIDEST_TERM)
        for title, records in groups:
            with formatter.section(title):
                formatter.write_dl([(f"{term:<{width}}", text) for term, text in records])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the examples, as they are typed."""
        if self.examples:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {example}\n" for example in self.examples))


class CommandGroup(click.Group):
    """Commands of commands, of which a list says all of the first sentence."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list; words that don't fit wrap."""
        found = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = [(name, summary(one)) for name, one in found.items() if one is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def command(
    own: str,
    *examples: str,
    group: click.Group | None = None,
    name: str | None = None,
    claims: Collection[str] = (),
) -> Callable[[F], Command]:
    """Make a function a command, whose help ends with examples.

    Parameters
    ----------
    own : str
        What the group of the options is called that no other command has.
    examples : str
        Whole commands, as they are typed.
    group : click.Group, optional
        The command that this one is a command of.
    name : str, optional
        What is typed, where that is not the function's name.
    claims : collection of str
        Options that stand in the command's own group here, and elsewhere in another.
    """

    def decorate(function: F) -> Command:
        made: Command = click.command(name, cls=Command)(function)
        made.own, made.examples, made.claims = own, examples, claims
        if group is not None:
            group.add_command(made)
        return made

    return decorate


def summary(command: click.Command) -> str:
    """The first paragraph of a command's help, in one line."""
    return " ".join((command.help or "").split("\n\n")[0].split())


def _word(option: click.Option) -> str:
    """An option as it is typed, by the longest of its names."""
    return max(option.opts, key=len)
