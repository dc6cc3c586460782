"""`--augment` as it is typed: a training, its picture, copies for a machine, averages."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cnnfeat.cli import flags
from cnnfeat.features import FeatureFile
from cnnfeat.options import AugmentOptions, RunOptions
from cnnfeat.parts import Part

CONFIG = """
[data]
source = "x.npz"
[network]
conv = [{ filters = 2, kernel_size = 3 }]
dense = [{ units = 4 }]
[train]
epochs = 2
[augment]
shift = 0.1
zoom = 0.1
"""
TRAINED = {"shift": 0.1, "elastic": 1.0}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("augmented")


@pytest.fixture
def trained(cnnfeat, kept: Path, monkeypatch) -> Callable:
    """Types commands where a network was trained with shift and elastic: `artifacts/`, x.npz."""
    monkeypatch.chdir(kept)
    if not Path("kept").exists():
        random = np.random.default_rng(7)
        images, labels = random.integers(0, 100, (90, 8, 8), np.uint8), np.arange(90) % 2
        images[labels == 1, :4] += 100
        np.savez("x.npz", images=images, labels=labels)
        Path("c.toml").write_text(CONFIG, "utf-8")
        words = ("--config", "c.toml", "--augment", "elastic=1", "--augment", "zoom=0")
        done = cnnfeat("train", *words)
        assert done.returncode == 0, done.stderr
        assert "images varied by     shift=0.1,elastic=1\n" in done.stdout
        shutil.copytree("artifacts", "kept")
    shutil.rmtree("artifacts", ignore_errors=True)
    shutil.copytree("kept", "artifacts")
    return cnnfeat


@pytest.fixture
def machine(trained) -> Callable:
    """Types commands where there is a machine on features of single pictures, too."""
    assert trained("extract", "--layer", "fc1").returncode == 0
    assert trained("svm", "--C", "1").returncode == 0
    return trained


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], {"shift": 0.1}),
        (["--augment", "rotation=12,shift=0.2"], {"rotation": 12.0, "shift": 0.2}),
        (["--augment", "rotation=12", "--augment", "flip=both"],
         {"rotation": 12.0, "shift": 0.1, "flip": "both"}),
    ],
    ids=["file", "one", "several"],
)  # fmt: skip
def test_the_flag_goes_before_the_file(tmp_path: Path, words: list[str], wanted: dict):
    import click

    kept: list[RunOptions] = []

    @click.command(context_settings={"auto_envvar_prefix": "CNNFEAT_IT"})
    @flags.tables("train")
    @flags.augment
    def it(options: RunOptions) -> None:
        kept.append(options)

    path = tmp_path / "c.toml"
    path.write_text("[augment]\nshift = 0.1\n", "utf-8")
    assert CliRunner().invoke(it, ["--config", str(path), *words]).exit_code == 0
    assert kept[0].augment == AugmentOptions(**wanted)


def test_a_mistake_is_a_usage_error(cnnfeat, tmp_path: Path):
    code, _, err = cnnfeat("train", "--augment", "rotate=3", folder=tmp_path)
    assert code == 2
    assert "--augment: unknown name 'rotate'" in err and "did you mean 'rotation'?" in err


def test_the_card_says_how_and_the_network_doesnt(trained):
    card = json.loads(Path("artifacts/model.json").read_text("utf-8"))
    said = card["config"]["augment"]
    assert {name: said[name] for name in ("shift", "elastic", "zoom")} == TRAINED | {"zoom": 0.0}
    code, out, _ = trained("layers", "artifacts/model.keras")
    assert code == 0 and "conv1" in out and "augment" not in out.lower()


def test_a_picture_shows_each_image_beside_what_becomes_of_it(trained):
    code, out, err = trained("plot", "augment", "--count", "3", "--variations", "4")
    assert code == 0, err
    assert out.strip() == "artifacts/augment.png"
    assert "images are varied by shift=0.1,elastic=1, as in the network's training" in err
    picture = np.asarray(Image.open("artifacts/augment.png").convert("L"))
    assert picture.shape == (round(150 * 3.6), round(150 * 6.0))
    assert len(np.unique(picture)) > 50


def test_copies_are_varied_as_in_the_training_and_only_train(trained):
    words = ("--layer", "fc1", "--augment-copies", "2")
    code, _, err = trained("extract", *words)
    assert code == 0, err
    assert "images are varied by shift=0.1,elastic=1, as in the network's training" in err
    with FeatureFile(Path("artifacts/features.h5")) as file:
        assert (file.n_rows("train"), file.n_rows("test")) == (3 * 72, 18)
        parts, fc1 = file.parts("train"), file.read("train", "fc1")
        assert np.count_nonzero(parts == Part.VALIDATION) == 3 * 8
        assert not np.array_equal(fc1[:72], fc1[72:144])
        assert file.ids("train")[72:73] == [file.ids("train")[0] + "~1"]
    code, out, err = trained("svm", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert (result["n_train"], result["n_test"]) == (3 * 72, 18)


def test_copies_are_rows_like_any_others(trained):
    """Another layer of them is added, and the pictures behind them are drawn."""
    assert trained("extract", "--layer", "fc1", "--augment-copies", "1").returncode == 0
    words = ("--layer", "conv1", "--augment-copies", "1", "--add")
    code, _, err = trained("extract", *words)
    assert code == 0, err
    asked = ("--layer", "fc1", "--layer", "conv1", "--augment-copies", "1", "-o", "both.h5")
    assert trained("extract", *asked, "--overwrite").returncode == 0
    with FeatureFile(Path("artifacts/features.h5")) as added, FeatureFile(Path("both.h5")) as both:
        assert added.layers == both.layers == ("fc1", "conv1")
        for layer in added.layers:
            np.testing.assert_array_equal(added.read("train", layer), both.read("train", layer))
    code, _, err = trained("extract", "--layer", "fc2", "--add")
    assert code == 2 and "another augment copies: 1, and now it is not given" in err
    code, _, err = trained("plot", "top", "--layer", "fc1", "--unit", "0", "--split", "train")
    assert code == 0, err
    assert Path("artifacts/top.png").stat().st_size > 10_000


def test_a_run_varies_copies_as_its_training(trained):
    more = "[extract]\nlayer = 'fc1'\naugment_copies = 1\n[svm]\nC = 1.0\n"
    Path("run.toml").write_text(CONFIG.replace("epochs = 2", "epochs = 1") + more, "utf-8")
    code, _, err = trained("run", "run.toml", "-o", "whole")
    assert code == 0, err
    with FeatureFile(Path("whole/features.h5")) as file:
        said = file.provenance.options["extract"]
        assert said["augment"] == {"shift": 0.1, "zoom": 0.1}
        assert file.n_rows("train") == 2 * 72


def test_averages_are_kept_and_done_again_for_new_pictures(trained):
    words = ("--layer", "fc1", "--average", "3", "--augment", "shift=0.2")
    assert trained("extract", *words).returncode == 0
    assert trained("svm", "--C", "1").returncode == 0
    by_file = trained("predict", "artifacts/features.h5", "--split", "test", "--scores", "--json")
    again = trained("predict", "x.npz", "--split", "test", "--scores", "--json")
    single = trained("predict", "x.npz", "--split", "test", "--scores", "--json", "--average", "1")
    scores = [
        np.array([list(row["scores"].values()) for row in json.loads(done.stdout)])
        for done in (by_file, again, single)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
    assert np.abs(scores[0] - scores[2]).max() > 1e-3


def test_the_mean_of_scores_is_that_of_features_where_a_machine_is_linear(trained):
    assert trained("extract", "--layer", "fc1").returncode == 0
    for kernel, same in (("linear", True), ("rbf", False)):
        words = ("--kernel", kernel, "--C", "1", "--normalize", "none", "--overwrite")
        assert trained("svm", *words).returncode == 0
        ask = ("predict", "x.npz", "--split", "test", "--scores", "--json", "--average", "4")
        scores = [
            np.array([list(row["scores"].values()) for row in json.loads(done.stdout)])
            for done in (trained(*ask), trained(*ask, "--average-scores"))
        ]
        assert np.allclose(*scores, atol=1e-4) == same


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.npz", "--average-scores"], "--average-scores says how means .* not over how many"),
        (["x.npz", "--augment", "shift=0.1"], "--augment says how means .* not over how many"),
        (["artifacts/features.h5", "--average", "2"], "--average is for pictures"),
    ],
    ids=["scores", "augment", "features"],
)
def test_what_cant_be_averaged_is_refused(machine, words: list[str], message: str):
    code, _, err = machine("predict", *words)
    assert code == 2
    assert re.search(message, err)


def test_features_that_are_other_means_are_told(machine):
    words = ("--layer", "fc1", "--average", "2", "-o", "means.h5", "--overwrite")
    assert machine("extract", *words).returncode == 0
    code, _, err = machine("predict", "means.h5", "--split", "test")
    assert code == 0
    assert "means.h5 holds means over other variations" in err and "trained on: 2, not none" in err


def test_what_a_machine_saw_of_pictures_is_known_where_it_had_copies_of_them(trained):
    assert trained("extract", "--layer", "fc1", "--augment-copies", "1").returncode == 0
    assert trained("svm", "--C", "1").returncode == 0
    for split, part in (("train", "fitted"), ("test", "unseen")):
        done = trained("predict", "x.npz", "--split", split, "--json")
        assert {row["machine_part"] for row in json.loads(done.stdout)} == {part}
