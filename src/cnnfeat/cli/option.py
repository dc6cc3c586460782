"""An option of this command line: heard from the environment too, its default and range said."""

from __future__ import annotations

import functools
import os

import click
from click.core import ParameterSource

from cnnfeat.documents import Range


class Number(click.ParamType[float]):
    """A number of plain options, whose range is said as that of a record's field is."""

    def __init__(self, low: float | None = None, high: float | None = None) -> None:
        whole = all(isinstance(end, int | None) for end in (low, high))
        self.range = Range(low, high)
        self._plain: click.ParamType[int] | click.ParamType[float]
        self._plain = click.INT if whole else click.FLOAT
        self.name = self._plain.name

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read a number and hold it against the range."""
        number = self._plain.convert(value, param, ctx)
        if not self.range.allows(number):
            self.fail(f"must be {self.range}, not {number}", param, ctx)
        return number


class Heard(click.Option):
    """An option that the environment can set by its name as it is typed."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Look for CNNFEAT_<COMMAND>_<OPTION>, the option as it is typed."""
        found = super().resolve_envvar_value(ctx)
        if found is None and ctx.auto_envvar_prefix is not None:
            found = os.environ.get(variable_of(self, ctx.auto_envvar_prefix)) or None
        return found

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        """Say default and range; of a switch, that it is off needs no word."""
        extra = super().get_help_extra(ctx)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        elif self.is_flag and self.default is False:
            extra.pop("default", None)
        if isinstance(self.type, Number):
            extra["range"] = str(self.type.range)
        return extra


def variable_of(param: click.Parameter, prefix: str) -> str:
    """Name the variable that an option is heard from, as the option is typed."""
    word = max(param.opts, key=len).removeprefix("--").replace("-", "_").upper()
    return f"{prefix}_{word}"


def said_in(ctx: click.Context | None, param: click.Parameter | None) -> str | None:
    """Name the environment variable that a value came from, if it came from one."""
    if ctx is None or param is None or param.name is None:
        return None
    if ctx.get_parameter_source(param.name) is not ParameterSource.ENVIRONMENT:
        return None
    names = [param.envvar] if isinstance(param.envvar, str) else list(param.envvar or ())
    if ctx.auto_envvar_prefix is not None:
        names.append(f"{ctx.auto_envvar_prefix}_{param.name.upper()}")
        names.append(variable_of(param, ctx.auto_envvar_prefix))
    return next((name for name in names if os.environ.get(name)), None)


option = functools.partial(click.option, cls=Heard)
