"""Options that several commands share, and options made from the configuration's fields."""

from __future__ import annotations

import dataclasses
import logging
import types
import typing
from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path
from typing import Literal, TypeVar

import click

from cnnfeat import options as configuration
from cnnfeat.cli.settings import Settings, artifact
from cnnfeat.errors import UsageError
from cnnfeat.knobs import check_field

F = TypeVar("F", bound=Callable[..., object])

NO_DEFAULT = object()


def common(command: F) -> F:
    """Add -q, -v, --no-progress and --debug, and set logging up before the command runs."""
    options = [
        click.option(
            "-q",
            "--quiet",
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set("verbosity", -1),
            help="Say only warnings and errors.",
        ),
        click.option(
            "-v",
            "--verbose",
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set("verbosity", 1),
            help="Say more.",
        ),
        click.option(
            "--no-progress",
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set("progress", False),
            help="Draw no progress.",
        ),
        click.option(
            "--debug",
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set("debug", True),
            help="Show tracebacks of errors.",
        ),
    ]

    @click.pass_context
    def logged(ctx: click.Context, /, *args: object, **values: object) -> object:
        _start_logging(ctx.ensure_object(Settings).verbosity)
        return ctx.invoke(command, *args, **values)

    wrapped = update_wrapper(logged, command)
    for option in reversed(options):
        wrapped = option(wrapped)
    return typing.cast("F", wrapped)


def _set(name: str, value: object) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(ctx: click.Context, _param: click.Parameter, given: bool) -> None:
        if given:
            setattr(ctx.ensure_object(Settings), name, value)

    return callback


class _Handler(logging.Handler):
    """Log lines to stderr, above a progress bar where one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        from cnnfeat.cli.console import say

        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        say(prefix + record.getMessage())


def _start_logging(verbosity: int) -> None:
    logger = logging.getLogger("cnnfeat")
    logger.handlers = [_Handler()]
    logger.propagate = False
    levels = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}
    logger.setLevel(levels[verbosity])


as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")


def output(name: str, *, help: str) -> Callable[[F], F]:
    """`-o PATH`, by default the artifact called `name`."""
    return click.option(
        "-o",
        "--output",
        "out",
        type=click.Path(path_type=Path),
        default=lambda: artifact(name),
        show_default=f"artifacts/{name}",
        help=help,
    )


def data(command: F) -> F:
    """Add --data and --data-dir."""
    source = click.option(
        "--data",
        "source",
        metavar="SOURCE",
        default="auto",
        show_default=True,
        help="A name (cnnfeat data list), a folder, or a file of images; auto: MNIST, else digits.",
    )
    return source(data_dir(command))


def data_dir(command: F) -> F:
    """Add --data-dir."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        envvar=["CNNFEAT_DATA_DIR"],
        help="Where data sets are looked for first; then $CNNFEAT_DATA_DIR, then the user cache.",
    )(command)


def config_file(*tables: str) -> Callable[[F], F]:
    """`--config FILE`: its `tables`' keys become the defaults of the options of the same names."""

    def read(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
        if path is None:
            return
        document = configuration.read_toml(path)
        settings = ctx.ensure_object(Settings)
        settings.config = configuration.parse_config(document, where=str(path))
        defaults: dict[str, object] = dict(ctx.default_map or {})
        for name in ("data", *tables):
            table = document.get(name, {})
            keys = set(table) if isinstance(table, dict) else set()
            settings.config_keys[name] = keys
            record = getattr(settings.config, name)
            prefix = {"dir": "data_dir"} if name == "data" else {}
            defaults |= {prefix.get(key, key): getattr(record, key) for key in keys}
        ctx.default_map = defaults

    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=read,
        help="A TOML file with defaults for these options; see configs/.",
    )


class _FieldType(click.ParamType[object]):
    """A Click type that checks what one field of a config record would."""

    def __init__(self, record: type, name: str) -> None:
        self.record, self.field = record, name
        hint = typing.get_type_hints(record)[name]
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        self.choices = typing.get_args(hint) if union else (hint,)
        self.name = self._metavar()

    def _metavar(self) -> str:
        words = [
            w for c in self.choices if typing.get_origin(c) is Literal for w in typing.get_args(c)
        ]
        words += [{int: "INTEGER", float: "FLOAT"}[c] for c in self.choices if c in (int, float)]
        return "|".join(words) or "TEXT"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """Show the words and kinds of number allowed."""
        return f"[{self.name}]" if "|" in self.name else self.name

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Turn text into the field's type and check it."""
        if isinstance(value, str):
            value = self._number(value)
        label = param.opts[0] if param is not None else self.field
        if typing.get_origin(self.choices[0]) is tuple:
            return value
        try:
            return check_field(self.record, self.field, value, label=label)
        except UsageError as error:
            raise click.UsageError(
                f"{error}" + (f" ({error.hint})" if error.hint else ""), ctx=ctx
            ) from error

    def _number(self, text: str) -> object:
        for kind in (int, float):
            if kind in self.choices:
                try:
                    return kind(text)
                except ValueError:
                    continue
        return text


def setting(
    record: type,
    name: str,
    *flags: str,
    help: str,
    default: object = NO_DEFAULT,
) -> Callable[[F], F]:
    """Make an option of a config field: same name, type, range and default."""
    spec = {item.name: item for item in dataclasses.fields(record)}[name]
    value = spec.default if default is NO_DEFAULT else default
    multiple = isinstance(spec.default, tuple)
    return click.option(
        *(flags or ("--" + name.replace("_", "-"),)),
        name,
        type=_FieldType(record, name),
        default=value,
        multiple=multiple,
        help=help,
        show_default=value is not None and value != (),
    )
