"""What help looks like, and that its examples are commands."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator

import click
import pytest

from cnnfeat.cli import COMMANDS, cli, manual


def leaves(group: click.Group, *before: str) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(click.Context(group)):
        found = group.get_command(click.Context(group), name)
        if isinstance(found, click.Group):
            yield from leaves(found, *before, name)
        else:
            yield " ".join([*before, name]), found


LEAVES = dict(leaves(cli))


def groups_of(name: str) -> dict[str, list[str]]:
    """The words of a command's options by group, as help writes them."""
    command = LEAVES[name]
    context = click.Context(command, info_name=name, help_option_names=["-h", "--help"])
    text = command.get_help(context)
    parts = re.split(r"^(\S.*):$", text, flags=re.MULTILINE)
    return {
        title: re.findall(r"^  (?:-\w, )?(--[\w-]+)", part, re.MULTILINE)
        for title, part in zip(parts[1::2], parts[2::2], strict=True)
        if title != "Examples"
    }


@pytest.mark.parametrize("name", LEAVES)
def test_options_stand_in_groups_of_one_order(name: str):
    own = LEAVES[name].own
    order = ["Input", "Network", own, "Output", "Running"]
    found = groups_of(name)
    assert list(found) == [title for title in order if title in found]
    assert own not in ("Input", "Network", "Output", "Running", "Options")
    given = [max(p.opts, key=len) for p in LEAVES[name].params if isinstance(p, click.Option)]
    assert sorted(itertools.chain(*found.values())) == sorted([*given, "--help"])


def test_an_option_stands_in_one_place_wherever_it_is():
    before: set[tuple[str, str]] = set()
    for name, command in LEAVES.items():
        for title, words in groups_of(name).items():
            if title != command.own:
                before |= set(itertools.combinations(words, 2))
    assert before
    assert {pair for pair in before if pair[::-1] in before} == set()


def test_the_groups_of_an_extraction():
    found = groups_of("extract")
    assert found["Input"][:4] == ["--config", "--set", "--data", "--data-dir"]
    assert found["Network"][0] == "--model"
    assert found["What to extract"][:3] == ["--layer", "--split", "--limit"]
    assert {"--overwrite", "--json"} < set(found["Output"])
    assert "--device" in found["Running"]
    assert found["Running"][-1] == "--help"
    assert {"--batch-size", "--epochs"} < set(groups_of("train")["Training"])


@pytest.mark.parametrize("name", LEAVES)
def test_help_ends_with_two_examples(name: str, cnnfeat):
    command = LEAVES[name]
    lines = cnnfeat(*name.split(), "--help", COLUMNS="80").stdout.splitlines()
    assert lines[-3:] == ["Examples:", *(f"  {one}" for one in command.examples)]
    assert max(map(len, lines)) <= 80
    for example in command.examples:
        words = shlex.split(example)
        assert words[: 1 + len(name.split())] == ["cnnfeat", *name.split()]
        rest = words[1 + len(name.split()) :]
        parser = command.make_parser(click.Context(command))
        values, _, _ = parser.parse_args(rest)  # raises where there is no such option
        assert len(values) >= sum(word.startswith("-") for word in set(rest))


def test_defaults_are_said_as_they_are(cnnfeat):
    said = " ".join(cnnfeat("extract", "--help").stdout.split())
    assert "[default: artifacts/features.h5]" in said
    assert "no-invert]" not in said


def test_lists_of_commands_are_whole(cnnfeat):
    said = cnnfeat("plot", "--help", COLUMNS="80").stdout
    assert "beside the layer's\n               filters.\n" in said
    assert set(COMMANDS) <= set(cnnfeat("--help").stdout.split())


def test_a_term_wider_than_its_column_has_its_words_below():
    @manual.command("Own", "cnnfeat it")
    @click.option("--" + "x" * 40, help="Words.")
    def it() -> None: ...

    text = it.get_help(click.Context(it, info_name="it"))
    assert f"  --{'x' * 40} TEXT\n{' ' * 34}Words.\n" in text
