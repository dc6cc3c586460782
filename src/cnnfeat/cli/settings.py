"""What holds for every command of one invocation."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cnnfeat.options import RunOptions

ARTIFACTS_VARIABLE = "CNNFEAT_DIR"


@dataclass(slots=True)
class Settings:
    """Filled in by the options that every command has."""

    debug: bool = False
    verbosity: int = 0  # -1: warnings only, 0: normal, 1: everything
    progress: bool = True
    config: RunOptions | None = None  # of --config
    config_keys: dict[str, set[str]] = field(default_factory=dict)  # table: keys that it sets


pass_settings = click.make_pass_decorator(Settings, ensure=True)


def artifact(name: str) -> Path:
    """Where an artifact lies by default: `$CNNFEAT_DIR/name`, or `artifacts/name`."""
    return Path(os.environ.get(ARTIFACTS_VARIABLE) or "artifacts") / name
