"""Flags come from the options' records; a flag goes before the environment, that before a file."""

from __future__ import annotations

import dataclasses

import click
import pytest
from click.testing import CliRunner

from cnnfeat.cli import flags
from cnnfeat.options import (
    DataOptions,
    ExtractOptions,
    ModelOptions,
    RunOptions,
    SvmOptions,
    TrainOptions,
    parse_config,
)

TABLES = {
    "data": DataOptions,
    "model": ModelOptions,
    "train": TrainOptions,
    "extract": ExtractOptions,
    "svm": SvmOptions,
}


def command(*tables: str) -> tuple[click.Command, list[RunOptions]]:
    """A command that keeps the options it is handed."""
    kept: list[RunOptions] = []

    @click.command(context_settings={"auto_envvar_prefix": "CNNFEAT_IT"})
    @flags.tables(*tables)
    def it(options: RunOptions) -> None:
        kept.append(options)

    return it, kept


def given(words: list[str], *tables: str, env: dict[str, str] | None = None) -> RunOptions:
    made, kept = command(*tables)
    result = CliRunner().invoke(made, words, env=env)
    assert result.exit_code == 0, result.output
    return kept[0]


@pytest.mark.parametrize("table", TABLES)
def test_without_flags_all_is_the_default(table):
    assert given([], table) == RunOptions()


@pytest.mark.parametrize("table", TABLES)
def test_every_field_has_a_flag_and_a_key(table):
    known = {param.name for param in command(table)[0].params}
    for item in dataclasses.fields(TABLES[table]):
        assert f"{table}_options__{item.name}" in known
    with pytest.raises(Exception, match=f"unknown key 'nothing' in table .{table}."):
        parse_config({table: {"nothing": 1}})


@pytest.mark.parametrize(
    ("words", "toml", "expected"),
    [
        (["--resize", "224x160"], {"extract": {"resize": "224x160"}}, {"resize": (224, 160)}),
        (["--resize", "224"], {"extract": {"resize": 224}}, {"resize": (224, 224)}),
        (["--resize", "3x4"], {"extract": {"resize": [3, 4]}}, {"resize": (3, 4)}),
        (["--layer", "a", "--layer", "b"], {"extract": {"layer": ["a", "b"]}}, {"layer": ("a", "b")}),  # noqa: E501
        (["--batch-size", "auto"], {"extract": {"batch_size": "auto"}}, {"batch_size": "auto"}),
        (["--on-error", "skip"], {"extract": {"on_error": "skip"}}, {"on_error": "skip"}),
        (["--limit", "7"], {"extract": {"limit": 7}}, {"limit": 7}),
        (["--scale", "caffe"], {"extract": {"scale": "caffe"}}, {"scale": "caffe"}),
    ],
)  # fmt: skip
def test_a_flag_and_a_key_mean_the_same(words, toml, expected):
    by_flag, by_key = given(words, "extract").extract, parse_config(toml).extract
    assert by_flag == by_key == ExtractOptions(**expected)


def test_feeds_are_told_apart_by_their_simplest_type():
    words = ["--feed", "keep_prob=1.0", "--feed", "is_training=false", "--feed", "n=3"]
    wanted = (("is_training", False), ("keep_prob", 1.0), ("n", 3))
    assert given(words, "model").model.feed == wanted
    table = {"feed": {"keep_prob": 1.0, "is_training": False, "n": 3}}
    assert parse_config({"model": table}).model.feed == wanted
    table = {"feed": ["keep_prob=1.0", "is_training=false", "n=3"]}
    assert parse_config({"model": table}).model.feed == wanted


def test_the_svm_s_own_kinds_of_value():
    words = ["--memory", "512MiB", "--grid", "0.1,1", "--cv", "--C", "2"]
    wanted = SvmOptions(memory=512 * 2**20, grid=(0.1, 1.0), cv=True, C=2.0)
    assert given(words, "svm").svm == wanted
    table = {"memory": "512MiB", "grid": [0.1, 1], "cv": True, "C": 2}
    assert parse_config({"svm": table}).svm == wanted


def test_flag_environment_file_default(tmp_path):
    (tmp_path / "c.toml").write_text("[extract]\nlimit = 3\ndtype = 'float16'\n", "utf-8")
    words = ["--config", str(tmp_path / "c.toml")]
    env = {"CNNFEAT_IT_LIMIT": "4"}
    assert given(words, "extract").extract == ExtractOptions(limit=3, dtype="float16")
    assert given(words, "extract", env=env).extract.limit == 4
    assert given([*words, "--limit", "5"], "extract", env=env).extract.limit == 5
    env = {"CNNFEAT_IT_DATA": "digits", "CNNFEAT_IT_BATCH_SIZE": "auto", "CNNFEAT_IT_LAYER": "a b"}
    found = given([], "data", "extract", env=env)
    assert (found.data.source, found.extract.batch_size) == ("digits", "auto")
    assert found.extract.layer == ("a", "b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resize", "8x8x8"], "--resize: '8x8x8' is no size; 224x160 is 224 high"),
        (["--resize", "0"], "--resize: '0' is no size"),
        (["--feed", "keep_prob"], "--feed: 'keep_prob' is no NAME=VALUE; try keep_prob=1.0"),
        (["--batch-size", "0"], "--batch-size must be at least 1 and at most 1048576, not 0"),
        (["--scale", "unti"], "'unit'"),
        (["--memory", "1MiB"], "--memory: must be at least 64MiB, not 1MiB"),
        (["--grid", "1"], "--grid: needs at least 2 different values above 0, not 1"),
        (["--grid", "a,b"], "--grid: 'a,b' is no list of numbers; 0.01,0.1,1 is"),
        (["--C", "nan"], "--C must be more than 0"),
    ],
)
def test_a_mistake_names_the_flag_and_what_is_allowed(words, message):
    tables = ("svm",) if words[0] in ("--memory", "--grid", "--C") else ("extract", "model")
    result = CliRunner().invoke(command(*tables)[0], words)
    assert result.exit_code == 2
    assert message in result.output


def test_help_says_default_and_range():
    said = " ".join(CliRunner().invoke(command("extract", "data")[0], ["--help"]).output.split())
    assert "at least 1 and at most 1048576" in said
    assert "default: 512, fewer if they are large" in said
    said = " ".join(CliRunner().invoke(command("train")[0], ["--help"]).output.split())
    assert "default: 0.002" in said
