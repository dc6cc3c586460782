"""The README says what there is: every command, every option it uses, every exit code."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import pytest

from cnnfeat import errors
from cnnfeat.cli import COMMANDS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")


def command_lines() -> list[str]:
    """Find all `cnnfeat ...` in code blocks and between backquotes."""
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines = [line.removeprefix("$ ") for line in lines]
    lines += re.findall(r"`(cnnfeat [^`]+)`", TEXT)
    return [line.split("#")[0] for line in lines if line.startswith("cnnfeat ")]


def load(name: str) -> click.Command:
    module, attribute = COMMANDS[name][0].split(":")
    return getattr(import_module(f"cnnfeat.cli.{module}"), attribute)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_table(name: str):
    assert re.search(rf"^\|.*`cnnfeat {name}\b", TEXT, re.MULTILINE)


@pytest.mark.parametrize("line", sorted(set(command_lines())))
def test_every_command_line_is_one(line: str):
    words = [word for word in shlex.split(line.replace("…", "")) if word]
    if words[1].startswith(("--", "<")):  # of cnnfeat itself, or a placeholder
        return
    command = load(words[1])
    if isinstance(command, click.Group):
        assert len(words) < 3 or words[2].isupper() or words[2] in command.commands
        return
    known = {option for param in command.params for option in param.opts} | {"--help"}
    for word in words[2:]:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{words[1]} has no option {word}"


def test_every_exit_code_is_in_the_table():
    codes = {errors.SKIPPED_EXIT_CODE, 0, 130, 143}
    todo = [errors.CnnfeatError]
    while todo:
        error = todo.pop()
        codes.add(error.exit_code)
        todo.extend(error.__subclasses__())
    table = TEXT.split("| exit code |")[1].split("\n\n")[0]
    for code in codes:
        assert re.search(rf"\b{code}\b", table)


def test_the_two_commands_come_first():
    assert TEXT.index("./scripts/quickstart") < TEXT.index("./scripts/test") < TEXT.index("\n## ")
    for name in ("quickstart", "test"):
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111


def test_the_house_names_every_room():
    house = TEXT.split("src/cnnfeat/\n")[1].split("```")[0]
    rooms = {
        path.name if path.suffix else f"{path.name}/"
        for path in (ROOT / "src" / "cnnfeat").iterdir()
        if not path.name.startswith("__")
    }
    assert {room for room in rooms if room not in house} == set()
