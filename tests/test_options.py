"""TOML in, records out; every mistake named."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from cnnfeat.configfile import load_config, parse_config
from cnnfeat.errors import ConfigError, MissingInputError
from cnnfeat.knobs import checked, fields_of, result_options
from cnnfeat.options import (
    ArchitectureOptions,
    AugmentOptions,
    ConvOptions,
    DenseOptions,
    ExtractOptions,
    RunOptions,
    SvmOptions,
    TrainOptions,
    parse_augment,
)

CONFIGS = Path(__file__).parents[1] / "configs"


def parse(text: str) -> RunOptions:
    return parse_config(tomllib.loads(text), where="my.toml")


def test_an_empty_file_is_the_default_run():
    assert parse("") == RunOptions()


def test_the_default_network_is_the_seed_network():
    network = RunOptions().network
    assert [(c.filters, c.kernel_size, c.pool_size) for c in network.conv] == [
        (16, 5, 2),
        (36, 5, 2),
    ]
    assert [layer.units for layer in network.dense] == [128]
    assert (network.weight_stddev, network.bias) == (0.05, 0.05)


def test_mnist_toml_says_what_the_defaults_are():
    config = load_config(CONFIGS / "mnist.toml")
    assert config.network == RunOptions().network
    assert config.train == RunOptions().train
    assert config.augment == RunOptions().augment
    assert config.data.source == "mnist"


@pytest.mark.parametrize("kind", [ArchitectureOptions, ConvOptions, DenseOptions, TrainOptions])
def test_mnist_toml_says_what_every_key_of_a_training_is(kind):
    text = (CONFIGS / "mnist.toml").read_text("utf-8")
    said = set(re.findall(r"^(?:# )?\[*(?:network\.)?(\w+)(?: =|\])", text, re.MULTILINE))
    assert fields_of(kind).keys() <= said


def test_every_config_in_the_repository_is_valid():
    paths = sorted(CONFIGS.glob("*.toml"))
    assert {path.stem for path in paths} >= {"mnist", "digits"}
    for path in paths:
        assert isinstance(load_config(path), RunOptions)


def test_tables_and_arrays_of_tables_become_records():
    config = parse(
        """
        [train]
        epochs = 3
        learning_rate = 1
        [[network.conv]]
        filters = 8
        batch_norm = true
        [[network.dense]]
        units = 5
        dropout = 0.25
        [svm]
        C = 2
        layer = "fc1"
        """
    )
    assert config.train == TrainOptions(epochs=3, learning_rate=1.0)
    assert config.network.conv == (ConvOptions(filters=8, batch_norm=True),)
    assert config.network.dense == (DenseOptions(units=5, dropout=0.25),)
    assert config.svm == SvmOptions(C=2.0, layer=("fc1",))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[train]\nepoch = 1", r"my.toml: unknown key 'epoch' in table \[train\]", "'epochs'"),
        ("[trian]\nepochs = 1", "unknown key 'trian' in the file's top level", "'train'"),
        ("[[network.conv]]\nfilter = 1", r"unknown key 'filter' in table \[netw", "'filters'"),
        ("[train]\nepochs = 0", "train.epochs must be at least 1", ""),
        ("[train]\nepochs = 1.5", "train.epochs must be a whole number", ""),
        ("[train]\nepochs = true", "train.epochs must be a whole number .* not True", ""),
        ("[train]\nlearning_rate = nan", "train.learning_rate must be more than 0", ""),
        ("[train]\nbatch_size = 0", "at least 1 and at most 1048576, not 0", ""),
        ("[train]\nseed = -1", "at least 0 and at most 4294967295, not -1", ""),
        ("[train]\nvalidation = 0.9", "train.validation must be at least 0 and at most 0.5", ""),
        ("[svm]\nC = -1", "svm.C must be more than 0", ""),
        ("[svm]\nC = 'aut'", "svm.C must be a number .* or 'auto', not 'aut'", "'auto'"),
        ("[svm]\nkernel = 'rbff'", "svm.kernel must be 'linear' or 'rbf'", "'rbf'"),
        ("[extract]\nlayer = [1]", "extract.layer must be text or a list of texts", ""),
        ("[extract]\nlayer = []", "extract.layer must name something, not ", ""),
        ("[svm]\nlayer = ''", "svm.layer must name something, not ''", ""),
        ("[svm]\ngamma = inf", "svm.gamma must be more than 0 and at most 1e.09, not inf", ""),
        ("[model]\npath = ''", "my.toml: model.path must name a network, not be empty", ""),
        ("[network]\nfilters = 3", "unknown key .filters.", "filters stands in [[network.conv]]"),
        ("[network]\ndropout = 0.5", "unknown key", "[[network.conv]] or [[network.dense]]"),
        ("[extract]\nfeed = {}", "unknown key .feed.", "feed stands in [model]"),
        ("[model]\ntrust_model = true", "unknown key 'trust_model'", "--trust-model"),
        ("train = 1", r"\[train\] must be a table, not 1", ""),
        ("[network]\nconv = 1", r"network.conv must be an array of tables, \[\[netw", ""),
        ("[augment]\nrotate = 3", r"unknown key .rotate. in table \[augment\]", "'rotation'"),
        ("[augment]\nrotation = 181", "augment.rotation must be .* at most 180, not 181", ""),
        ("[augment]\nflip = 'left'", "augment.flip must be 'none' or 'horizontal'", ""),
        ("[extract]\naugment = 'shift'", "extract.augment: .* is no NAME=VALUE", ""),
        ("[extract]\naugment_copies = 0", "extract.augment_copies must be .*at least 1", ""),
        ("[[network.conv]]\nbatch_norm = 1", "network.conv.batch_norm must be true or false", ""),
    ],
)  # fmt: skip
def test_a_mistake_names_table_key_and_what_is_allowed(text: str, message: str, hint: str):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(text)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_no_file_and_no_toml_are_told_apart(tmp_path: Path):
    with pytest.raises(MissingInputError, match=r"no configuration file .*absent\.toml"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("[train", "utf-8")
    with pytest.raises(ConfigError, match=r"bad\.toml: not TOML"):
        load_config(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.toml: can't be read as UTF-8"):
        load_config(tmp_path / "binary.toml")


def test_layers_is_another_word_for_layer_in_python():
    given = ExtractOptions(layers=["conv1", "fc1"], limit=3)
    assert given == ExtractOptions(layer=("conv1", "fc1"), limit=3)
    assert ExtractOptions(layers="fc1").layer == ("fc1",)
    assert dataclasses.replace(given, layer=("fc2",), limit=4).layer == ("fc2",)
    assert dataclasses.replace(given, limit=4).layer == ("conv1", "fc1")
    assert checked(given) == given
    with pytest.raises(ConfigError, match="layer must name something"):
        checked(ExtractOptions(layers=[]))
    # and nowhere else: one option, one name
    assert "layers" not in fields_of(ExtractOptions)
    assert "layers" not in result_options(given)
    with pytest.raises(ConfigError, match="unknown key 'layers'") as caught:
        parse("[extract]\nlayers = ['fc1']")
    assert "did you mean 'layer'?" in caught.value.hint


@pytest.mark.parametrize(
    "said",
    [
        "rotation=12,shift=0.1,flip=both",
        ["rotation=12", "shift=0.1", " flip=both"],
        {"rotation": 12, "shift": 0.1, "flip": "both"},
        (("rotation", 12.0), ("shift", 0.1), ("flip", "both")),
    ],
    ids=["one", "several", "table", "pairs"],
)
def test_ways_to_vary_images_are_words_or_a_table(said: object):
    wanted = AugmentOptions(rotation=12.0, shift=0.1, flip="both")
    assert parse_augment(said) == wanted
    assert parse_augment(str(wanted)) == wanted
    assert parse_augment([]) == AugmentOptions()


def test_what_is_said_of_augmentation_goes_before_what_was_said():
    before = AugmentOptions(rotation=5, zoom=0.1)
    assert parse_augment("rotation=0", over=before) == AugmentOptions(zoom=0.1)


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        ("rotate=3", "--augment: unknown name 'rotate'; it takes: rotation, shift", "'rotation'"),
        ("rotation", "--augment: 'rotation' is no NAME=VALUE; rotation=12,shift=0.1 is", ""),
        ("shift=2", "--augment: shift must be at least 0 and at most 1, not 2", ""),
        ("shift=nan", "--augment: shift must be at least 0", ""),
        ("elastic_grid=1e9", "--augment: elastic_grid must be a whole number", ""),
        ("flip=up", "--augment: flip must be 'none' or 'horizontal'", ""),
        ("", "--augment: '' is no NAME=VALUE", ""),
        ("rotation=0", "--augment: rotation=0.0 varies nothing; rotation=12,shift=0.1 does", ""),
        ("fill=black,elastic_grid=4", "--augment: fill=black,elastic_grid=4 varies nothing", ""),
    ],
    ids=lambda value: value if value.startswith("-") else None,
)
def test_a_mistake_in_augment_is_named(said: str, message: str, hint: str):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_augment(said, label="--augment")
    assert hint in caught.value.hint


def test_an_extraction_varies_images_as_the_run_does_unless_it_says_how():
    asked = "[augment]\nshift = 0.1\n[extract]\n"
    assert parse(asked).extraction == ExtractOptions()
    copies = parse(asked + "augment_copies = 2").extraction
    assert copies == ExtractOptions(augment_copies=2, augment=(("shift", 0.1),))
    own = parse(asked + "average = 2\naugment = {rotation = 3}").extraction
    assert own.augment == (("rotation", 3.0),)
    unvaried = parse("[augment]\nfill = 'black'\n[extract]\naugment_copies = 2")
    assert unvaried.extraction.augment == ()  # so they are varied a little


@pytest.mark.parametrize(
    ("given", "seeds"), [("0,1,2", (0, 1, 2)), ([5], (5,)), ((0, 4294967295), (0, 2**32 - 1))]
)
def test_seeds_are_a_list_of_different_numbers(given, seeds):
    options = checked(TrainOptions(seeds=given))
    assert options.seeds == options.members == seeds
    assert TrainOptions(seed=7).members == (7,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "'' is no list of whole numbers; 0,1,2 is"),
        ("1,-2", "'1,-2' is no list of whole numbers"),
        ("1,²", "is no list of whole numbers"),
        ("[]", "is no list of whole numbers"),
        ([], r"takes 1 to 100 different numbers of at most 4294967295, not \[\]"),
        ("1,2,1", "takes 1 to 100 different numbers of at most 4294967295, not 1,2,1"),
        ("4294967296", "not 4294967296"),
        ("9" * 10_000, "not 9999"),
        (list(range(101)), "takes 1 to 100 different numbers"),
    ],
    ids=range(9),
)
def test_what_is_no_list_of_seeds_is_refused(given, message: str):
    with pytest.raises(ConfigError, match=message):
        parse_config({"train": {"seeds": given}})


def test_a_seed_beside_seeds_is_refused():
    assert parse("[train]\nseed = 0\nseeds = [3, 4]\n").train.members == (3, 4)
    with pytest.raises(ConfigError, match="seed = 7 is of one network, and seeds of several"):
        parse("[train]\nseed = 7\nseeds = [3, 4]\n")


def test_patience_without_validation_is_refused():
    with pytest.raises(ConfigError, match="waits for a gain in validation, and validation is 0"):
        parse("[train]\npatience = 3\nvalidation = 0\n")
