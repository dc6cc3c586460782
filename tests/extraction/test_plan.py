"""What an extraction writes down of itself comes from the options' records, whatever they hold."""

from __future__ import annotations

import dataclasses
import json

import click
import h5py
import pytest
from click.testing import CliRunner

from cnnfeat import configfile
from cnnfeat.cli import flags
from cnnfeat.errors import ConfigError, Interrupted, UsageError
from cnnfeat.extraction import extract
from cnnfeat.knobs import option
from cnnfeat.options import ExtractOptions, RunOptions


@pytest.fixture
def extended(monkeypatch: pytest.MonkeyPatch) -> type:
    """ExtractOptions with one more field, wherever they are looked for."""
    tint = ("tint", str, option("none", "A colour to lay over all images."))
    kind = dataclasses.make_dataclass("Extended", [tint], bases=(ExtractOptions,), frozen=True)
    whole = dataclasses.make_dataclass(
        "Whole", [("extract", kind, kind())], bases=(RunOptions,), frozen=True
    )
    monkeypatch.setattr(configfile, "RunOptions", whole)
    monkeypatch.setattr(flags, "RunOptions", whole)
    return kind


def test_a_new_field_is_a_flag_with_its_help_and_default(extended):
    @click.command()
    @flags.tables("extract")
    def command(options: RunOptions) -> None:
        click.echo(f"tint is {options.extract.tint}")

    said = CliRunner().invoke(command, ["--help"]).output
    assert "--tint TEXT" in said and "A colour to lay over" in said and "default: none" in said
    assert CliRunner().invoke(command, ["--tint", "red"]).output == "tint is red\n"


def test_a_new_field_is_a_toml_key(extended, tmp_path):
    assert configfile.parse_config({"extract": {"tint": "red"}}).extract.tint == "red"
    with pytest.raises(ConfigError, match=r"extract\.tint must be text, not 7"):
        configfile.parse_config({"extract": {"tint": 7}})


def test_a_new_field_is_compared_on_resume_and_kept_in_the_file(extended, work, tmp_path):
    def run(tint: str, **how: object) -> None:
        extract(
            work.CountingNetwork(),
            work.CountingSource({"train": 130}),
            extended(batch_size=16, tint=tint),
            out=tmp_path / "f.h5",
            **how,
        )

    asked = iter([False] * 5)
    with pytest.raises(Interrupted):
        run("red", should_stop=lambda: next(asked, True))
    with pytest.raises(UsageError, match="begun with another tint: red, and now it is blue"):
        run("blue", resume=True)
    run("red", resume=True)
    with h5py.File(tmp_path / "f.h5") as file:
        assert json.loads(file.attrs["options"])["extract"]["tint"] == "red"


def test_a_field_that_changes_nothing_is_not_compared(work, tmp_path):
    slower = option(1, "How long to wait.", changes_result=False)
    kind = dataclasses.make_dataclass(
        "Patient", [("patience_s", int, slower)], bases=(ExtractOptions,), frozen=True
    )
    asked = iter([False] * 5)
    for patience_s, stop in ((1, lambda: next(asked, True)), (2, None)):
        try:
            extract(
                work.CountingNetwork(),
                work.CountingSource({"train": 130}),
                kind(batch_size=16, patience_s=patience_s),
                out=tmp_path / "f.h5",
                resume=stop is None,
                should_stop=stop,
            )
        except Interrupted:
            assert stop is not None
    with h5py.File(tmp_path / "f.h5") as file:
        assert "patience_s" not in json.loads(file.attrs["options"])["extract"]


def test_each_layer_s_name_is_looked_up_once(work, tmp_path):
    network = work.CountingNetwork()
    extract(
        network,
        work.CountingSource({"train": 20}),
        ExtractOptions(layer=("a", "b")),
        out=tmp_path / "f.h5",
    )
    assert network.asked == [("a", "b")]
