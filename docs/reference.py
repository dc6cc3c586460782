"""Writes the pages of the reference that the code itself has to say.

    python docs/reference.py

`scripts/docs` runs it before it builds the site. The command line comes from Click, the
configuration from the options' records, exit codes from the tree of errors, names from the
package: what is no longer there is no longer said.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import click

import cnnfeat
from cnnfeat import errors
from cnnfeat.cli import COMMANDS, cli
from cnnfeat.cli.manual import Command
from cnnfeat.knobs import fields_of, item_type, knob_of
from cnnfeat.options import RunOptions

PAGES = Path(__file__).parent / "pages" / "reference"
_GENERATED = "<!-- written by docs/reference.py -->\n\n"


def main() -> None:
    """Write all pages."""
    PAGES.mkdir(parents=True, exist_ok=True)
    for name, lines in (
        ("command-line", command_line()),
        ("configuration", configuration()),
        ("python", python()),
    ):
        text = _GENERATED + "\n".join(lines) + "\n"
        (PAGES / f"{name}.md").write_text(text, "utf-8")


def command_line() -> Iterator[str]:
    """All commands with their options, and the exit codes."""
    yield "# Command line\n"
    yield (
        "Data go to stdout, words and progress to stderr; `NO_COLOR` is honoured. A flag goes "
        "before the environment (`CNNFEAT_<COMMAND>_<OPTION>`, such as "
        "`CNNFEAT_EXTRACT_BATCH_SIZE`), that before the file of `--config` (or the argument of "
        "`run`), that before the default. An output that exists is refused without "
        "`--overwrite` (or `--resume`). An error's hint names ways on that the command has.\n"
    )
    yield from _table(
        ("command", ""), [(f"[`{n}`](#{n})", text) for n, (_, text) in COMMANDS.items()]
    )
    root = click.Context(cli, info_name="cnnfeat")
    for name in COMMANDS:
        yield from _command(typing.cast("click.Command", cli.get_command(root, name)), name, root)
    yield "## Exit codes\n"
    yield from _table(("code", "means"), exit_codes())


def _command(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    words = context.command_path.removeprefix("cnnfeat ")
    yield f"{'##' if parent.parent is None else '###'} {words}\n"
    yield f"```\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
    yield from (f"{paragraph}\n" for paragraph in _paragraphs(command.help or ""))
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            yield from _command(typing.cast("click.Command", found), inner, context)
        return
    if isinstance(command, Command):
        yield "```sh\n" + "\n".join(command.examples) + "\n```\n"
        for title, records in command.groups(context):
            yield from _table(
                (title.lower(), ""), [(_code(option), _cell(text)) for option, text in records]
            )


def _paragraphs(text: str) -> Iterator[str]:
    """A command's help as Markdown; what Click leaves as it is stays so."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            yield "```\n" + paragraph.removeprefix("\b\n") + "\n```"
        else:
            yield paragraph.replace("<", "&lt;")


def exit_codes() -> list[tuple[str, str]]:
    """What each exit code means, by the errors that have it."""
    meaning: dict[int, list[str]] = {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.search(r"(\w+Error)\b.*?\s(\d+)\s{2,}(\S.*)$", line):
            meaning.setdefault(int(found[2]), []).append(found[3])
    known = {str(code): "; ".join(words) for code, words in meaning.items()}
    return [
        ("0", "done"),
        ("1", "a bug in cnnfeat, with a traceback"),
        *sorted(known.items()),
        (str(errors.SKIPPED_EXIT_CODE), "done, with images left out"),
        ("130, 143", "Ctrl-C, SIGTERM"),
    ]


def configuration() -> Iterator[str]:
    """Every key of the TOML file that `run` and `--config` take."""
    yield "# Configuration\n"
    yield (
        "One TOML file says it all: `cnnfeat run my.toml`, or `--config my.toml` with any command. "
        "Every key has the default that stands here; what isn't changed can be left out.\n"
    )
    hints = typing.get_type_hints(RunOptions)
    for item in dataclasses.fields(RunOptions):
        yield from _record(hints[item.name], f"[{item.name}]")


def _record(record: type, name: str) -> Iterator[str]:
    yield f"## {name}\n"
    what = inspect.cleandoc(record.__doc__ or "").splitlines()[0].partition(": ")[2]
    yield _markdown(what[:1].upper() + what[1:]) + "\n"
    hints, rows, arrays = typing.get_type_hints(record), [], []
    for key, item in fields_of(record).items():
        inner = item_type(hints[key])
        if dataclasses.is_dataclass(inner):
            arrays.append((inner, f"[[{name[1:-1]}.{key}]]"))
            continue
        knob = knob_of(item)
        default = knob.shown or _toml(item.default)
        flag = knob.flag or f"--{key.replace('_', '-')}"
        limits = f"({knob.range})" if str(knob.range) else ""
        words = _cell(f"{knob.help} {limits}")
        rows.append((_code(key), _code(default), _code(flag) if knob.help else "", words))
    yield from _table(("key", "default", "flag", ""), rows)
    for inner, inside in arrays:
        yield from _record(typing.cast("type", inner), inside)


def _toml(value: object) -> str:
    """A default as TOML spells it; what has no value there is not given."""
    if value is None or value == ():
        return "not given"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return (
        f'"{value}"'
        if isinstance(value, str)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def python() -> Iterator[str]:
    """All public names, as their docstrings describe them."""
    yield "# Python\n"
    yield (
        "`import cnnfeat` costs nothing: TensorFlow and scikit-learn are loaded by what needs "
        "them. Mistakes raise `cnnfeat.CnnfeatError`, or what derives from it.\n"
    )
    tables = {kind: name for name, kind in typing.get_type_hints(RunOptions).items()}
    for name in cnnfeat.__all__:
        found = getattr(cnnfeat, name)
        table = (
            next((tables[kind] for kind in tables if issubclass(kind, found)), "")
            if inspect.isclass(found)
            else ""
        )
        if table:
            yield f"## {name}\n"
            yield (
                f"A record of [`[{table}]`](configuration.md#{table}): its keys are the arguments, "
                "by name.\n"
            )
        else:
            yield f"::: {found.__module__}.{found.__qualname__}\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "| " + " | ".join("---" for _ in head) + " |"
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""


def _code(text: str) -> str:
    return f"`{text}`"  # in which a table lets "|" be


def _cell(text: str) -> str:
    return _markdown(re.sub(r"\s+", " ", text).strip()).replace("|", "\\|")


def _markdown(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*").replace("[[", "&#91;[")


if __name__ == "__main__":
    main()
