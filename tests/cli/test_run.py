"""`cnnfeat run`: its flags go before its file, and a network that exists is one command."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from PIL import Image

from cnnfeat import pipeline
from cnnfeat.errors import Interrupted
from cnnfeat.options import DataOptions, ExtractOptions, ModelOptions, RunOptions, SvmOptions

FILE = """
[data]
source = "theirs"
labels = "y.csv"
[model]
path = "theirs.pb"
signature = "serving"
feed = { keep_prob = 1.0 }
[extract]
layer = ["conv1", "fc1"]
scale = "unit"
limit = 7
[svm]
layer = "fc1"
C = 0.1
"""


@pytest.fixture
def asked(cnnfeat, tmp_path, monkeypatch):
    """What a typed `run` asks of the pipeline."""
    kept: list[RunOptions] = []

    def run_pipeline(options: RunOptions, **how: object) -> None:
        kept.append(options)
        raise Interrupted("that is enough")

    monkeypatch.setattr(pipeline, "run_pipeline", run_pipeline)
    (tmp_path / "r.toml").write_text(FILE, "utf-8")

    def run(*words: str, **environment: str) -> RunOptions:
        done = cnnfeat("run", *words, folder=tmp_path, **environment)
        assert "that is enough" in done.stderr
        return kept.pop()

    return run


def test_without_words_it_is_the_default_run(asked):
    assert asked() == RunOptions(extract=ExtractOptions(layer=("conv2", "fc1")))


def test_a_file_says_all(asked):
    assert asked("r.toml") == RunOptions(
        data=DataOptions(source="theirs", labels="y.csv"),
        model=ModelOptions(path="theirs.pb", signature="serving", feed=(("keep_prob", 1.0),)),
        extract=ExtractOptions(layer=("conv1", "fc1"), scale="unit", limit=7),
        svm=SvmOptions(layer=("fc1",), C=0.1),
    )


def test_flag_environment_file_default(asked):
    words = ["r.toml", "--data", "mine", "--model", "keras:MobileNetV2", "--feed", "k=2"]
    found = asked(
        *words, CNNFEAT_RUN_DATA="other", CNNFEAT_RUN_SCALE="caffe", CNNFEAT_RUN_INPUT="x"
    )
    assert found.data == DataOptions(source="mine", labels="y.csv")
    assert found.model == ModelOptions(
        path="keras:MobileNetV2", signature="serving", input="x", feed=(("k", 2),)
    )
    assert found.extract == ExtractOptions(layer=("conv1", "fc1"), scale="caffe", limit=7)
    assert asked("--weights", "w.h5", "--model", "keras:VGG16").model.weights == "w.h5"


def test_one_flag_is_for_all_stages_that_have_it(asked, tmp_path):
    (tmp_path / "f.toml").write_text("[train]\ntest_fraction = 0.3\n", "utf-8")
    found = asked("f.toml")
    assert (found.train.test_fraction, found.svm.test_fraction) == (0.3, 0.2)
    found = asked("f.toml", "--test-fraction", "0.4")
    assert (found.train.test_fraction, found.svm.test_fraction) == (0.4, 0.4)


@pytest.mark.parametrize(
    ("words", "layers", "machine"),
    [
        ([], ("conv1", "fc1"), ("fc1",)),
        (["--layer", "fc1"], ("fc1",), ("fc1",)),
        (["--layer", "fc1", "--layer", "conv1"], ("fc1", "conv1"), ("fc1",)),
        (
            ["--layer", "conv1"],
            ("conv1",),
            (),
        ),  # the file's machine is for a layer that isn't there
        (["--layer", "a", "--layer", "b"], ("a", "b"), ()),
    ],
)
def test_layers_are_also_those_of_the_machine(asked, words, layers, machine):
    found = asked("r.toml", *words)
    assert (found.extract.layer, found.svm.layer) == (layers, machine)


def test_what_can_not_be_is_told_by_its_flag(cnnfeat, tmp_path):
    (tmp_path / "r.toml").write_text(FILE, "utf-8")
    for words, said in (
        (["--scale", "unti"], "--scale must be 'unit'"),
        (["--layer", ""], "--layer must name something"),
        (["no.toml"], "no configuration file no.toml"),
    ):
        done = cnnfeat("run", *words, folder=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr
    done = cnnfeat("run", "--weights", "w.h5")
    assert done.returncode == 2
    assert "names none: path is missing" in done.stderr
    assert "hint: --model or [model] path names one" in done.stderr


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    """24 colour pictures of two classes, dark and light, with names in labels.csv."""
    lines = ["image,kind"]
    for number in range(24):
        light = number % 2
        pixels = rng.integers(0, 120, (64, 64, 3), np.uint8) + np.uint8(130 * light)
        path = tmp_path / "photos" / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        lines.append(f"{number:03},{('dusk', 'noon')[light]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines), "utf-8")
    return tmp_path


@pytest.mark.slow
def test_transfer_is_one_command(cnnfeat, photos, monkeypatch):
    """Features, machine, report; nothing is trained; all is done again by `predict`."""
    keras.utils.set_random_seed(0)
    keras.applications.MobileNetV2(weights=None).save_weights(photos / "own.weights.h5")
    words = ["--model", "keras:MobileNetV2", "--weights", "own.weights.h5", "--data", "photos"]
    words += ["--labels", "labels.csv", "--layer", "global_average_pooling2d"]
    done = cnnfeat("run", *words, "--json", folder=photos)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [stage["name"] for stage in result["stages"]] == ["extract", "svm", "report"]
    assert result["svm_layer"] == "global_average_pooling2d"
    made = {path.name for path in (photos / "artifacts").iterdir()}
    assert {"features.h5", "svm.skops", "svm.json", "report.html", "run.json"} <= made
    assert "model.keras" not in made
    with h5py.File(photos / "artifacts" / "features.h5") as file:
        assert {name for split in file for name in file[split] if split != "classes"} >= {"label"}
        assert file["classes"].asstr()[:].tolist() == ["dusk", "noon"]
    again = cnnfeat("run", *words, "--json", folder=photos)
    assert all(stage["reused"] for stage in json.loads(again.stdout)["stages"])
    done = cnnfeat("predict", "photos/000.png", "photos/001.png", "--csv", folder=photos)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_weights_out_of_reach_are_exit_5_and_say_where_to_put_them(cnnfeat, photos, monkeypatch):
    """Keras raises a bare Exception where it can't download."""
    from keras.src.applications import mobilenet_v2
    from keras.src.backend import config

    monkeypatch.setattr(mobilenet_v2, "BASE_WEIGHT_PATH", "http://127.0.0.1:9/")
    monkeypatch.setattr(config, "_KERAS_DIR", str(photos / "home"))
    (photos / "home").mkdir()
    words = ["--data", "photos", "--labels", "labels.csv", "--layer", "out_relu"]
    done = cnnfeat(
        "run",
        "--model",
        "keras:MobileNetV2",
        *words,
        folder=photos,
        KERAS_HOME=str(photos / "home"),
    )
    assert done.returncode == 5
    assert "the weights of MobileNetV2 are not in" in done.stderr
    assert "http://127.0.0.1:9/mobilenet_v2_weights" in done.stderr
    assert f"into {photos / 'home' / 'models'}, or give it with --weights FILE" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
