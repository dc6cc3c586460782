"""What a path on the command line may be: one of this machine, or an address in a store."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from cnnfeat.address import Address, is_address, place_of


class LocalPath(click.Path):
    """A path of this machine. An address is refused, of which folders would be made here."""

    def __init__(self, *, file_okay: bool = True) -> None:
        super().__init__(path_type=Path, file_okay=file_okay)

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Read a path, or `file://` and one."""
        place = _place(value)
        if isinstance(place, Address):
            return self._at(place, param, ctx)
        return Path(os.fsdecode(super().convert(str(place), param, ctx)))

    def _at(
        self, address: Address, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        self.fail(f"{address} lies in a store; a path of this machine is needed here", param, ctx)


class FeaturePath(LocalPath):
    """A feature file; of an address, the path of a copy that lasts as long as the command."""

    def _at(
        self, address: Address, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        from cnnfeat.transfer import incoming

        if ctx is None or ctx.resilient_parsing:  # nothing is fetched while a shell completes
            return super()._at(address, param, ctx)
        return ctx.with_resource(incoming(address))


class OutputPlace(click.ParamType[Path | Address]):
    """A path, or an address that something can be put at."""

    name = "path"

    def convert(
        self, value: object, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> Path | Address:
        """Read either."""
        return _place(value)

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer files."""
        return [CompletionItem(incomplete, type="file")]


def _place(value: object) -> Path | Address:
    text = str(value)
    return place_of(text) if isinstance(value, str) and is_address(text) else Path(text)
