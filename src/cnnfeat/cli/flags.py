"""Options that several commands share, and those that are made from the options records."""

from __future__ import annotations

import dataclasses
import functools
import logging
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import update_wrapper
from pathlib import Path
from typing import Literal, TypeVar

import click
from click.core import ParameterSource

from cnnfeat import knobs
from cnnfeat.cli import completion
from cnnfeat.cli.option import Heard, Number, option, said_in
from cnnfeat.cli.patience import waiting
from cnnfeat.cli.places import FeaturePath, LocalPath, OutputPlace
from cnnfeat.cli.session import Settings, artifact
from cnnfeat.configfile import load_config, parse_config, parse_override
from cnnfeat.errors import UsageError
from cnnfeat.options import DataOptions, ReadOptions, RunOptions, parse_augment

F = TypeVar("F", bound=Callable[..., object])


_COMMON: tuple[tuple[tuple[str, ...], str, object, str], ...] = (
    (("-q", "--quiet"), "verbosity", -1, "Say only warnings and errors."),
    (("-v", "--verbose"), "verbosity", 1, "Say more."),
    (("--no-progress",), "progress", False, "Draw no progress."),
    (("--debug",), "debug", True, "Show tracebacks of errors."),
)  # words, the setting that each changes, to what, help


def common(command: F) -> F:
    """Add -q, -v, --no-progress and --debug, and set logging up before the command runs."""

    @click.pass_context
    def logged(ctx: click.Context, /, *args: object, **values: object) -> object:
        _start_logging(ctx.ensure_object(Settings).verbosity)
        return ctx.invoke(command, *args, **values)

    wrapped = update_wrapper(logged, command)
    for words, name, value, text in reversed(_COMMON):
        wrapped = option(
            *words,
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set(name, value),
            help=text,
        )(wrapped)
    return typing.cast("F", wrapped)


def _set(name: str, value: object) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(ctx: click.Context, _param: click.Parameter, given: bool) -> None:
        if given:
            setattr(ctx.ensure_object(Settings), name, value)

    return callback


class _Handler(logging.Handler):
    """Log lines to stderr, above a progress bar where one is drawn; what is known already, once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        from cnnfeat.cli.console import say

        text = record.getMessage()
        warns = record.levelno >= logging.WARNING
        if warns or text not in self._said:
            say(f"warning: {text}" if warns else text)
        self._said.add(text)


def _start_logging(verbosity: int) -> None:
    logger = logging.getLogger("cnnfeat")
    logger.handlers = [_Handler()]
    logger.propagate = False
    levels = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}
    logger.setLevel(levels[verbosity])
    # It tells of its font cache, on a machine that is slow to make one.
    others = logging.WARNING if verbosity > 0 else logging.ERROR
    logging.getLogger("matplotlib").setLevel(others)


as_json = option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
overwrite = option("--overwrite", is_flag=True, help="Replace outputs that exist.")


def trust(command: F) -> F:
    """Add --trust-model and --timeout: what a network of strangers may do, and for how long."""

    @click.pass_context
    def patient(ctx: click.Context, /, *args: object, timeout: float, **values: object) -> object:
        with waiting(timeout, ctx):
            return ctx.invoke(command, *args, **values)

    wrapped = update_wrapper(patient, command)
    wrapped = option(
        "--timeout",
        type=Number(0.0),
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="How long opening the network, or its first images, may take; 0: without end.",
    )(wrapped)
    text = "Run a model that does more than compute."
    return typing.cast("F", option("--trust-model", is_flag=True, help=text)(wrapped))


def output(name: str, *, help: str, stored: bool = False) -> Callable[[F], F]:
    """`-o PATH`, by default the artifact called `name`; an address too, if it can be `stored`."""
    return option(
        "-o",
        "--output",
        "out",
        type=OutputPlace() if stored else LocalPath(),
        default=lambda: artifact(name),
        show_default=f"artifacts/{name}",
        help=help,
    )


def input_file(flag: str, name: str, *, help: str) -> Callable[[F], F]:
    """Add an option that names a file, by default the artifact called `name`."""
    return option(
        flag,
        type=FeaturePath() if name.endswith(".h5") else LocalPath(),
        default=lambda: artifact(name),
        show_default=f"artifacts/{name}",
        help=help,
    )


def data_dir(command: F) -> F:
    """Add --data-dir alone, for commands that take no other of the data's options."""
    knob = knobs.knob_of(knobs.fields_of(DataOptions)["dir"])
    return option(
        knob.flag,
        "data_dir",
        type=LocalPath(),
        envvar=[knob.env],
        help=knob.help,
    )(command)


def record(
    kind: type,
    name: str,
    *,
    only: Collection[str] | None = None,
    shown: Mapping[str, str] | None = None,
) -> Callable[[F], F]:
    """Add a flag for each field of an options record; the command gets the record as `name`.

    Parameters
    ----------
    kind : type
        The record.
    name : str
        The command's parameter.
    only : collection of str, optional
        The fields that get flags here; the others are at their defaults.
    shown : mapping, optional
        What help says of a field's default, where this command has another one.
    """
    fields = _flagged(kind) if only is None else list(only)

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def gathered(*args: object, **values: object) -> object:
            chosen = {field: values.pop(parameter(name, field)) for field in fields}
            return command(*args, **values, **{name: kind(**chosen)})

        wrapped: Callable[..., object] = gathered
        for field in reversed(fields):
            wrapped = _flag(kind, name, field, shown=(shown or {}).get(field))(wrapped)
        return typing.cast("F", wrapped)

    return decorate


def tables(
    *names: str,
    only: Mapping[str, Collection[str]] | None = None,
    shown: Mapping[str, str] | None = None,
    whole: Callable[[], RunOptions] | None = None,
) -> Callable[[F], F]:
    """Add the flags of some of a run's tables, and a file whose keys become their defaults.

    The command gets all as `options`, a `RunOptions`: what has no flag is as the file says. A flag
    that several tables have is one flag, and sets the field in all of them.

    Parameters
    ----------
    names : str
        The tables.
    only : mapping of str to collection of str, optional
        The fields of a table that get flags here; of a table that isn't named there, all.
    shown : mapping, optional
        What help says of a field's default, where this command has another one.
    whole : callable, optional
        Makes the run that there is where no file is given. With it the file is the command's
        argument CONFIG, not the value of --config.
    """
    kinds = {item.name: type(item.default) for item in dataclasses.fields(RunOptions)}
    fields = {
        name: [f for f in _flagged(kinds[name]) if f in (only or {}).get(name, (f,))]
        for name in names
    }
    makers: dict[str, tuple[str, str]] = {}  # flag: the first table and field that has it
    for name in names:
        for field in fields[name]:
            makers.setdefault(flag_word(kinds[name], field), (name, field))

    def decorate(command: F) -> F:
        @click.pass_context
        def merged(ctx: click.Context, /, *args: object, **values: object) -> object:
            base = ctx.ensure_object(Settings).config or RunOptions()
            given = {name: values.pop(f"{name}_options") for name in names}

            def value(name: str, field: str) -> object:
                maker = table, source = makers[flag_word(kinds[name], field)]
                if maker == (name, field) or is_said(ctx, parameter(f"{table}_options", source)):
                    return getattr(given[table], source)
                return getattr(getattr(base, name), field)

            said = {
                name: dataclasses.replace(
                    getattr(base, name), **{field: value(name, field) for field in fields[name]}
                )
                for name in names
            }
            return ctx.invoke(command, *args, options=dataclasses.replace(base, **said), **values)

        wrapped: Callable[..., object] = update_wrapper(merged, command)
        for name in reversed(names):
            own = [field for field in fields[name] if (name, field) in makers.values()]
            wrapped = record(kinds[name], f"{name}_options", only=own, shown=shown)(wrapped)
        return typing.cast("F", _config_file(fields, whole)(wrapped))

    return decorate


def augment(command: F) -> F:
    """Add --augment: what it says goes before what the table `augment` of `options` says."""

    @functools.wraps(command)
    def said(
        *args: object, options: RunOptions, augment: tuple[str, ...], **values: object
    ) -> object:
        varied = parse_augment(augment, over=options.augment, label="--augment")
        return command(*args, options=dataclasses.replace(options, augment=varied), **values)

    return typing.cast(
        "F",
        option(
            "--augment",
            multiple=True,
            metavar="NAME=VALUE,...",
            help="Vary images at random: rotation (degrees), shift, zoom, crop (fractions), "
            "elastic (pixels), flip, brightness, contrast (fractions), such as "
            "rotation=12,shift=0.1; may be repeated.",
        )(said),
    )


def is_said(ctx: click.Context, parameter: str) -> bool:
    """Whether a parameter's value is from the command line or the environment."""
    said = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return ctx.get_parameter_source(parameter) in said


def reading(command: F) -> F:
    """Add the flags that say how a network is read, and --trust-model.

    The command gets them as `read`, a `ReadOptions`, and `trust_model`.
    """
    return record(ReadOptions, "read")(trust(command))


def _flagged(kind: type) -> list[str]:
    return [name for name, item in knobs.fields_of(kind).items() if knobs.knob_of(item).help]


def parameter(name: str, field: str) -> str:
    """Name the parameter that a field of a record, or of a table's, is to Click."""
    return f"{name}__{field}"


def flag_word(kind: type, field: str) -> str:
    """A field's flag, as it is typed."""
    return knobs.knob_of(knobs.fields_of(kind)[field]).flag or "--" + field.replace("_", "-")


class _Flag(Heard):
    """An option made from a record's field."""

    knob: knobs.Knob
    shown: str

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        """Say default and range."""
        extra = super().get_help_extra(ctx)
        if self.shown:
            extra["default"] = self.shown
        if str(self.knob.range):
            extra["range"] = str(self.knob.range)
        return extra


def _flag(kind: type, name: str, field: str, *, shown: str | None) -> Callable[[F], F]:
    item = knobs.fields_of(kind)[field]
    knob = knobs.knob_of(item)
    hint = typing.get_type_hints(kind)[field]
    flag = flag_word(kind, field)

    def convert(ctx: click.Context, param: click.Parameter, value: object) -> object:
        if value is None or value is item.default:
            return item.default
        if isinstance(value, str):
            value = knobs.from_text(kind, field, value)
        try:
            return knobs.check_field(kind, field, value, label=said_in(ctx, param) or param.opts[0])
        except UsageError as error:
            raise click.UsageError(str(error), ctx=ctx) from error

    def decorate(command: F) -> F:
        made = option(
            f"{flag}/--no-{flag[2:]}" if hint is bool else flag,
            parameter(name, field),
            cls=_Flag,
            type=click.BOOL if hint is bool else click.UNPROCESSED,
            is_flag=hint is bool,
            default=item.default,
            multiple=isinstance(item.default, tuple),
            metavar=None if hint is bool else knob.metavar or _metavar(hint),
            envvar=[knob.env] if knob.env else None,
            callback=convert,
            help=knob.help,
            show_default=item.default not in (None, ()),
            shell_complete=completion.of_field(kind, field, flag),
        )(command)
        own = made.__click_params__[-1]  # type: ignore[attr-defined]
        own.knob, own.shown = knob, shown if shown is not None else knob.shown
        return made

    return decorate


def _metavar(hint: object) -> str:
    choices = knobs.alternatives(hint)
    words = [w for c in choices if typing.get_origin(c) is Literal for w in typing.get_args(c)]
    words += [{int: "INTEGER", float: "FLOAT"}[c] for c in choices if c in (int, float)]
    text = "|".join(words) or "TEXT"
    return f"[{text}]" if "|" in text else text


def _config_file(
    fields: Mapping[str, Collection[str]], whole: Callable[[], RunOptions] | None
) -> Callable[[F], F]:
    """Read a file, and overrides, whose values of these fields become the defaults of their flags.

    Click hands on what is typed in its order, and an override may stand before the file.
    """

    def read(ctx: click.Context, param: click.Parameter, value: object) -> None:
        said: dict[str | None, object] = ctx.meta.setdefault(__name__, {})
        said[param.name] = value
        if len(said) == _N_SOURCES:
            config = _config(said["config"], said["overrides"], whole)
            ctx.ensure_object(Settings).config = config
            ctx.default_map = {**(ctx.default_map or {}), **dict(_defaults(config, fields))}

    def decorate(command: F) -> F:
        overridden = option(
            "--set",
            "overrides",
            multiple=True,
            metavar="TABLE.KEY=VALUE",
            is_eager=True,
            expose_value=False,
            callback=read,
            help="A key of the file with another value, such as train.epochs=3; may be repeated.",
        )(command)
        if whole is not None:
            return click.argument(
                "config",
                type=LocalPath(),
                required=False,
                is_eager=True,
                expose_value=False,
                callback=read,
            )(overridden)
        return option(
            "--config",
            type=LocalPath(),
            is_eager=True,
            expose_value=False,
            callback=read,
            help="A TOML file with defaults for these options; see configs/.",
        )(overridden)

    return decorate


_N_SOURCES = 2  # of a configuration: the file, and overrides


def _config(path: object, overrides: object, whole: Callable[[], RunOptions] | None) -> RunOptions:
    if isinstance(path, Path):
        config = load_config(path)
    else:
        config = RunOptions() if whole is None else whole()
    for text in typing.cast("tuple[str, ...]", overrides):
        config = parse_config(parse_override(text), where="--set", over=config)
    return config


def _defaults(
    config: RunOptions, fields: Mapping[str, Collection[str]]
) -> Iterator[tuple[str, object]]:
    """Yield what isn't at its own default, by the parameter that it is the default of."""
    for name, chosen in fields.items():
        table = getattr(config, name)
        for field in chosen:
            value, default = getattr(table, field), knobs.fields_of(table)[field].default
            if isinstance(value, str) and isinstance(default, tuple):
                value = (value,)  # a word where there may be several
            if value != default:
                yield parameter(f"{name}_options", field), value
