"""Flags come from the options' records; a flag goes before the environment, that before a file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from cnnfeat.cli import cli, flags
from cnnfeat.cli.plot import plot
from cnnfeat.configfile import parse_config
from cnnfeat.options import (
    DataOptions,
    DenseOptions,
    ExtractOptions,
    ModelOptions,
    RunOptions,
    SvmOptions,
    TrainOptions,
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


def test_sizes_are_flags_and_keys_of_data_too():
    words = ["--resize", "8x9", "--fit", "pad", "--invert"]
    alone = given(words, "data").data
    assert (alone.resize, alone.fit, alone.invert) == ((8, 9), "pad", True)
    table = {"resize": "8x9", "fit": "pad", "invert": True}
    assert parse_config({"data": table}).data == alone


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


def test_class_weights_are_balanced_or_a_table(tmp_path):
    balanced, table = SvmOptions(class_weight="balanced"), (("a=b", 0.5), ("cat", 2.0))
    assert given(["--class-weight", "balanced"], "svm").svm == balanced
    assert given([], "svm", env={"CNNFEAT_IT_CLASS_WEIGHT": "balanced"}).svm == balanced
    assert parse_config({"svm": {"class_weight": "balanced"}}).svm == balanced
    words = ["--class-weight", "cat=2", "--class-weight", "a=b=0.5"]
    assert given(words, "svm").svm == SvmOptions(class_weight=table)
    toml = {"svm": {"class_weight": {"cat": 2, "a=b": 0.5}}}
    assert parse_config(toml).svm == SvmOptions(class_weight=table)
    path = tmp_path / "c.toml"
    tables = [("'balanced'", balanced), ("{cat = 2, 'a=b' = 0.5}", SvmOptions(class_weight=table))]
    for text, wanted in tables:
        path.write_text(f"[svm]\nclass_weight = {text}\n", "utf-8")
        assert given(["--config", str(path)], "svm").svm == wanted
    words = ["--config", str(path), "--class-weight", "balanced"]
    assert given(words, "svm").svm == balanced


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
        (["--resize", "99999x99999"], "too large; 100,000,000 pixels are the most"),
        (["--feed", "keep_prob"], "--feed: 'keep_prob' is no NAME=VALUE; try keep_prob=1.0"),
        (["--batch-size", "0"], "--batch-size must be at least 1 and at most 1048576, not 0"),
        (["--scale", "unti"], "'unit'"),
        (["--device", "tpu"], "--device: 'tpu' is no device; auto, cpu and gpu:0 are"),
        (["--device", "gpu:x"], "--device: 'gpu:x' is no device"),
        (["--memory", "1MiB"], "--memory: must be at least 64MiB, not 1MiB"),
        (["--grid", "1"], "--grid: needs at least 2 different values above 0, not 1"),
        (["--grid", "a,b"], "--grid: 'a,b' is no list of numbers; 0.01,0.1,1 is"),
        (["--C", "nan"], "--C must be more than 0"),
        (["--class-weight", "cat"], "'cat' is no NAME=VALUE; cat=2.0 is, and balanced stands"),
        (["--class-weight", "cat=0"], "'cat' takes a number above 0 and at most 1e9, not '0'"),
    ],
)
def test_a_mistake_names_the_flag_and_what_is_allowed(words, message):
    tables = (
        ("svm",)
        if words[0] in ("--memory", "--grid", "--C", "--class-weight")
        else ("extract", "model")
    )
    result = CliRunner().invoke(command(*tables)[0], words)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("word", "device"),
    [("auto", "auto"), ("CPU", "cpu"), ("gpu", "gpu:0"), ("gpu:1", "gpu:1"), ("gpu:01", "gpu:1")],
)
def test_a_device_has_one_name_however_it_is_spelled(word, device):
    assert given(["--device", word], "extract").extract.device == device


def test_a_mistake_in_the_environment_names_the_variable():
    for variable, value, said in [
        ("CNNFEAT_IT_BATCH_SIZE", "0", " must be at least 1 and at most 1048576, not 0"),
        ("CNNFEAT_IT_RESIZE", "8x8x8", ": '8x8x8' is no size"),
    ]:
        result = CliRunner().invoke(command("extract")[0], [], env={variable: value})
        assert result.exit_code == 2
        assert f"Error: {variable}{said}" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("words", "variable", "value", "said"),
    [
        (["plot", "top", "--unit", "1"], "CNNFEAT_PLOT_TOP_COUNT", "0", "must be at least 1"),
        (["svm"], "CNNFEAT_SVM_CV", "maybe", "'maybe' is not a valid boolean"),
    ],
)
def test_of_any_command(cnnfeat, words, variable, value, said):
    code, _, err = cnnfeat(*words, **{variable: value})
    assert code == 2
    assert f"invalid value for {variable}: {said}" in " ".join(err.split())


def test_a_switch_of_a_file_can_be_taken_back(tmp_path):
    (tmp_path / "c.toml").write_text("[svm]\ncv = true\n", "utf-8")
    words = ["--config", str(tmp_path / "c.toml")]
    assert given(words, "svm").svm.cv
    assert not given([*words, "--no-cv"], "svm").svm.cv
    assert not given(words, "svm", env={"CNNFEAT_IT_CV": "false"}).svm.cv


def _all_commands(group: click.Group) -> Iterator[click.Command]:
    for name in group.list_commands(click.Context(group)):
        found = group.get_command(click.Context(group), name)
        yield from _all_commands(found) if isinstance(found, click.Group) else [found]


def test_ranges_are_written_in_one_way():
    for found in _all_commands(cli):
        said = CliRunner().invoke(found, ["--help"]).output
        assert not re.search(r"x[<>]|[<>]=", said), found.name
    said = CliRunner().invoke(plot, ["top", "--help"]).output
    assert "at least 1 and at most 200" in " ".join(said.split())
    said = CliRunner().invoke(plot, ["top", "--unit", "1", "--count", "0"]).output
    assert "'--count': must be at least 1 and at most 200, not 0" in said


def test_help_says_default_and_range():
    said = " ".join(CliRunner().invoke(command("extract", "data")[0], ["--help"]).output.split())
    assert "at least 1 and at most 1048576" in said
    assert "default: 512, fewer if they are large" in said
    said = " ".join(CliRunner().invoke(command("train")[0], ["--help"]).output.split())
    assert "default: 0.002" in said


def test_an_override_goes_before_the_file_and_behind_flags(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[train]\nepochs = 3\nseed = 4\n[network]\nwidth = 0.5\n", "utf-8")
    words = ["--config", str(path), "--set", "train.epochs=7", "--set", "network.width = 2"]
    for typed in (words, [*words[2:], *words[:2]]):
        found = given(typed, "train")
        assert (found.train.epochs, found.train.seed, found.network.width) == (7, 4, 2.0)
    assert given([*words, "--epochs", "9"], "train").train.epochs == 9
    assert given(words, "train", env={"CNNFEAT_IT_EPOCHS": "8"}).train.epochs == 8
    assert given(["--set", "train.epochs=1", "--set", "train.epochs=2"], "train").train.epochs == 2


@pytest.mark.parametrize(
    ("text", "table", "key", "value"),
    [
        ("data.source=photos/a b", "data", "source", "photos/a b"),
        ("data.source='digits'", "data", "source", "digits"),
        ("data.resize=32x48", "data", "resize", (32, 48)),
        ("extract.layer=['conv1', 'fc1']", "extract", "layer", ("conv1", "fc1")),
        ("extract.layer=conv2+fc1", "extract", "layer", ("conv2+fc1",)),
        ("svm.C=auto", "svm", "C", "auto"),
        ("svm.class_weight.cat=2", "svm", "class_weight", (("cat", 2.0),)),
        ("train.ema=0.5", "train", "ema", 0.5),
        ("network.dense=[{units=3}]", "network", "dense", (DenseOptions(3),)),
        ("model.weights==x", "model", "weights", "=x"),
    ],
)
def test_an_override_is_a_value_of_toml_or_text(text, table, key, value):
    found = given(["--set", text], "data", "model", "train", "extract", "svm")
    assert getattr(getattr(found, table), key) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.epochs", "'train.epochs' is no TABLE.KEY=VALUE"),
        ("epochs=3", "'epochs=3' is no TABLE.KEY=VALUE"),
        (".epochs=3", "'.epochs=3' is no TABLE.KEY=VALUE"),
        ("train.epoch=3", "--set: unknown key 'epoch' in table [train]; it takes: epochs, "),
        ("trian.epochs=3", "--set: unknown key 'trian' in the file's top level; it takes: data, "),
        ("train.epochs=0", "--set: train.epochs must be at least 1 and at most 100000, not 0"),
        ("train.epochs=many", "--set: train.epochs must be a whole number (at least 1 and at most"),
        ("train.epochs.x=3", "--set: train.epochs must be a whole number"),
        ("train=3", "'train=3' is no TABLE.KEY=VALUE"),
        ("network.conv.filters=3", "--set: network.conv must be an array of tables"),
        ("model.path=", "--set: model.path must name a network, not be empty"),
    ],
)
def test_an_override_that_can_not_be_is_told(cnnfeat, text, said):
    code, _, err = cnnfeat("train", "--set", text)
    assert code == 2
    assert said in err.split("\nhint:")[0]


def test_an_override_of_a_run_without_a_file():
    seen: list[RunOptions] = []

    @click.command()
    @flags.tables("extract", whole=lambda: RunOptions(extract=ExtractOptions(layer=("a", "b"))))
    def it(options: RunOptions) -> None:
        seen.append(options)

    words = ["--set", "extract.limit=5", "--set", "svm.pca=2"]
    assert CliRunner().invoke(it, words).exit_code == 0
    assert seen[0].extract == ExtractOptions(layer=("a", "b"), limit=5)
    assert seen[0].svm.pca == 2
