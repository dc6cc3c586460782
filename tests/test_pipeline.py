"""The whole pipeline on digits: done once, and again only as far as something changed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_image

import cnnfeat.cli
from cnnfeat import pipeline
from cnnfeat.configfile import load_config, parse_config
from cnnfeat.data import open_source
from cnnfeat.errors import (
    CnnfeatError,
    ConfigError,
    Interrupted,
    LayerLookupError,
    OutputExistsError,
    UsageError,
)
from cnnfeat.extraction import Extraction, extract
from cnnfeat.network import load_network
from cnnfeat.options import (
    ArchitectureOptions,
    ConvOptions,
    DataOptions,
    ExtractOptions,
)
from cnnfeat.pipeline import open_images, run_pipeline
from cnnfeat.stages import StageBook, stamp

CONFIG = parse_config(
    {
        "data": {"source": "digits"},
        "network": {"conv": [{"filters": 4, "kernel_size": 3}], "dense": [{"units": 16}]},
        "train": {"epochs": 3, "learning_rate": 0.01},
        "extract": {"layer": ["conv1", "fc1"], "limit": 120},
        "svm": {"C": 0.1},
    }
)


def reused(result: pipeline.RunResult) -> list[str]:
    return [stage.name for stage in result.stages if stage.reused]


def test_a_result_shows_what_must_stand_beside_its_score():
    result = pipeline.RunResult(
        folder="artifacts",
        source="digits",
        network_accuracy=None,
        svm_accuracy=0.75,
        svm_accuracy_interval=(0.5, 0.9),
        svm_caveat="nobody knows",
        svm_score="score 75.00% of 8 validation rows; nobody knows",
        svm_layer="fc1",
        stages=(
            pipeline.StageOutcome("train", reused=True, elapsed_s=0.0),
            pipeline.StageOutcome("extract", reused=False, elapsed_s=1.0),
        ),
        files=(),
    )
    assert repr(result).splitlines() == [
        "RunResult in artifacts, of digits",
        "  network  accuracy unknown",
        "  SVM      on fc1: score 75.00% of 8 validation rows; nobody knows",
        "  stages   train kept, extract done",
    ]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("run") / "artifacts"
    return folder, run_pipeline(CONFIG, folder=folder)


def test_a_run_makes_everything_it_names(done):
    folder, result = done
    assert reused(result) == []
    assert [stage.name for stage in result.stages] == ["train", "extract", "svm", "report"]
    assert all(Path(path).is_file() for path in result.files)
    assert result.svm_layer == "fc1"  # the last one extracted
    card = json.loads((folder / "model.json").read_text("utf-8"))
    svm = json.loads((folder / "svm.json").read_text("utf-8"))
    assert (result.network_accuracy, result.svm_accuracy) == (
        card["test_accuracy"],
        svm["accuracy"],
    )
    low, high = result.svm_accuracy_interval
    assert low < result.svm_accuracy < high


def test_a_second_run_reuses_all_and_says_the_same(done):
    folder, result = done
    again = run_pipeline(CONFIG, folder=folder)
    assert reused(again) == ["train", "extract", "svm", "report"]
    assert again.svm_accuracy == result.svm_accuracy


def test_a_changed_machine_redoes_the_machine_and_the_report(done):
    folder, _ = done
    changed = dataclasses.replace(CONFIG, svm=dataclasses.replace(CONFIG.svm, C=0.5))
    assert reused(run_pipeline(changed, folder=folder)) == ["train", "extract"]


def test_a_lost_feature_file_is_made_again(done):
    folder, _ = done
    (folder / "features.h5").unlink()
    result = run_pipeline(CONFIG, folder=folder)
    assert reused(result) == ["train"]


def test_a_changed_network_redoes_all(done):
    folder, _ = done
    network = ArchitectureOptions(conv=(ConvOptions(filters=3, kernel_size=3),), dense=())
    extraction = dataclasses.replace(CONFIG.extract, layer=("conv1",))
    changed = dataclasses.replace(CONFIG, network=network, extract=extraction)
    result = run_pipeline(changed, folder=folder)
    assert reused(result) == []
    assert result.svm_layer == "conv1"


def test_a_strangers_file_is_not_replaced(tmp_path: Path):
    (tmp_path / "model.keras").write_text("precious", "utf-8")
    with pytest.raises(OutputExistsError, match=r"model\.keras exists and is not what"):
        run_pipeline(CONFIG, folder=tmp_path)
    assert (tmp_path / "model.keras").read_text("utf-8") == "precious"


@pytest.mark.parametrize("name", ["features.h5", "svm.json", "report.html"])
def test_a_strangers_file_is_refused_before_anything_is_trained(tmp_path: Path, name: str):
    (tmp_path / name).write_text("precious", "utf-8")
    with pytest.raises(OutputExistsError, match="exists and is not what an earlier run wrote"):
        run_pipeline(CONFIG, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"extract": {"layer": "conv3"}}, "no layer or tensor is called 'conv3'; it has 'image', "),
        ({"extract": {"layer": "block*"}}, r"no layer matches the pattern 'block\*'; the network "),
        ({"extract": {"layer": "flatten/Shape:0"}}, "isn't the images: "),
        ({"extract": {"layer": "fc1", "resize": 9}}, r"images of shape \(9, 9, 1\) don't fit"),
        ({"extract": {"layer": "fc1", "scale": "imagenet"}}, "--scale imagenet is for RGB"),
        ({"extract": {"layer": "fc1", "split": "validation"}}, "has no split 'validation'"),
        ({"svm": {"layer": "conv1"}}, "'conv1' isn't among the layers that are extracted: fc1"),
        ({"svm": {"class_weight": {"seven": 2}}}, "'seven', which is no class of these rows: 0, 1"),
    ],
)
def test_what_a_network_can_t_do_is_found_out_before_it_is_trained(
    tmp_path: Path, changed: dict[str, dict[str, object]], error: str
):
    plain = {"data": {"source": "digits"}, "train": {"epochs": 1}, "extract": {"layer": "fc1"}}
    config = parse_config({**plain, **changed})
    with pytest.raises(CnnfeatError, match=error):
        run_pipeline(config, folder=tmp_path)
    assert not (tmp_path / "model.keras").exists()


def test_the_machine_s_layer_is_looked_for_before_a_network_that_exists_runs(done, tmp_path: Path):
    model, _ = done
    asked = {
        "data": {"source": "digits"},
        "model": {"path": str(model / "model.keras")},
        "extract": {"layer": ["conv1", "fc1"], "batch_size": "auto"},
        "svm": {"layer": ["fc1", "conv2"]},
    }
    with pytest.raises(LayerLookupError, match="extracted: conv1, fc1") as caught:
        run_pipeline(parse_config(asked), folder=tmp_path)
    assert caught.value.hint == "did you mean 'conv1'?"
    assert not (tmp_path / "features.h5.partial").exists()


def test_an_interrupted_extraction_is_gone_on_with(done, tmp_path: Path, monkeypatch):
    """What an interrupted run left is picked up, not thrown away."""
    calls = iter([False, False, True])

    class Stopping:
        def __enter__(self):
            return lambda: next(calls, True)

        def __exit__(self, *exc_info: object):
            return None

    config = dataclasses.replace(CONFIG, extract=dataclasses.replace(CONFIG.extract, batch_size=64))
    with pytest.raises(Interrupted):
        run_pipeline(config, folder=tmp_path, stopping=Stopping)
    assert not (tmp_path / "features.h5").exists()
    resumed = []
    original = Extraction.run

    def spy(self, source, **how):
        resumed.append(how.get("resume", False))
        return original(self, source, **how)

    monkeypatch.setattr(Extraction, "run", spy)
    result = run_pipeline(config, folder=tmp_path)
    assert reused(result) == ["train"]
    assert resumed == [True]
    assert np.isfinite(result.svm_accuracy)


OUTPUTS = (
    "model.keras",
    "model.json",
    "features.h5",
    "svm.skops",
    "predictions.csv",
    "svm.json",
    "confusion.png",
    "report.html",
)


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.slow
def test_a_run_killed_at_any_output_is_gone_on_with(tmp_path: Path, monkeypatch):
    """In one folder, one after the other: the first run after a kill meets what that left."""
    renames = {name: getattr(os, name) for name in ("rename", "replace", "link")}
    fatal: list[str] = []

    def killing(name: str):
        def rename(source, target, **how):
            renames[name](source, target, **how)
            if Path(target).name in fatal:
                raise Killed

        return rename

    for name in renames:
        monkeypatch.setattr(os, name, killing(name))
    quick = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, epochs=1))
    for name in OUTPUTS:
        fatal[:] = [name]
        with pytest.raises(Killed):
            run_pipeline(quick, folder=tmp_path)
        assert (tmp_path / name).exists()
    fatal.clear()
    result = run_pipeline(quick, folder=tmp_path)
    assert all(Path(path).is_file() for path in result.files)
    assert reused(run_pipeline(quick, folder=tmp_path)) == ["train", "extract", "svm", "report"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_killed_at_any_output_is_gone_on_with(tmp_path: Path):
    (tmp_path / "c.toml").write_text(
        '[data]\nsource = "digits"\n[train]\nepochs = 1\n[extract]\nlayer = ["fc1"]\n', "utf-8"
    )
    command = [sys.executable, "-m", "cnnfeat", "run", "c.toml", "-o", "out", "-q"]
    for name in OUTPUTS:
        path = tmp_path / "out" / name
        before = stamp(path)
        process = subprocess.Popen(command, cwd=tmp_path)
        while stamp(path) == before and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        assert process.wait() != 0, f"ended before {name} was seen"
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "out" / "report.html").exists()


def test_a_strangers_file_is_refused_after_a_kill_too(tmp_path: Path):
    """Only what the killed stage was about to write is its own."""
    book = StageBook(tmp_path / "run.json")
    book.begin("train", [tmp_path / "model.keras", tmp_path / "model.json"])
    (tmp_path / "model.keras").write_text("half", "utf-8")
    (tmp_path / "features.h5").write_text("precious", "utf-8")
    with pytest.raises(OutputExistsError, match=r"features\.h5 exists and is not what"):
        run_pipeline(CONFIG, folder=tmp_path)
    assert (tmp_path / "features.h5").read_text("utf-8") == "precious"
    assert (tmp_path / "model.keras").read_text("utf-8") == "half"  # nothing was trained for it


@pytest.fixture
def pictures(tmp_path: Path, rng: np.random.Generator) -> Path:
    """30 pictures in two folders, dark and light, one of them damaged."""
    for number in range(30):
        kind = ("dark", "light")[number % 2]
        pixels = rng.integers(0, 100, (10, 12), np.uint8) + np.uint8(120 * (number % 2))
        path = tmp_path / "pictures" / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "pictures" / "dark" / "4.png").write_bytes(b"\x89PNG broken")
    return tmp_path / "pictures"


def test_a_run_on_a_network_that_exists_is_the_three_commands(
    pictures: Path, tmp_path: Path, monkeypatch, capfd
):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (None, 8, 8, 1), name="x")
        gain = tf.compat.v1.placeholder(tf.float32, (), name="gain")
        filters = tf.constant(np.linspace(-1, 1, 36, dtype="float32").reshape(3, 3, 1, 4))
        tf.multiply(tf.nn.conv2d(x, filters, 1, "SAME"), gain, name="out")
    tf.io.write_graph(graph, str(tmp_path), "net.pb", as_text=False)
    (tmp_path / "run.toml").write_text(
        """
        [data]
        source = "pictures"
        [model]
        path = "net.pb"
        feed = { gain = 2.5 }
        [extract]
        layer = "out"
        resize = 8
        on_error = "skip"
        scale = "symmetric"
        batch_size = 7
        [svm]
        C = 0.1
        """,
        "utf-8",
    )
    monkeypatch.chdir(tmp_path)

    def cli(*words: str) -> int:
        with pytest.raises(SystemExit) as caught:
            cnnfeat.cli.main(words)
        capfd.readouterr()
        return int(caught.value.code or 0)

    assert cli("run", "run.toml", "-o", "whole") == 6  # a picture was left out
    words = ["--model", "net.pb", "--feed", "gain=2.5", "--layer", "out", "--resize", "8"]
    words += ["--on-error", "skip", "--scale", "symmetric", "--batch-size", "7"]
    assert cli("extract", *words, "--data", "pictures", "-o", "steps/features.h5") == 6
    assert cli("svm", "steps/features.h5", "--C", "0.1", "-o", "steps") == 0
    assert cli("report", "--features", "steps/features.h5", "--svm", "steps/svm.json",
               "-o", "steps/report.html") == 0  # fmt: skip
    with h5py.File("whole/features.h5") as whole, h5py.File("steps/features.h5") as steps:
        assert set(whole["all"]) == set(steps["all"])
        for name in ("id", "label", "out"):
            one, other = whole[f"all/{name}"][()], steps[f"all/{name}"][()]
            assert one.tolist() == other.tolist() and one.dtype == other.dtype
        assert whole["all/out"].shape == (29, 8, 8, 4)
        assert dict(whole.attrs)["options"] == dict(steps.attrs)["options"]
    for name in ("predictions.csv", "confusion.png"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "steps" / name).read_bytes()
    assert not (tmp_path / "whole" / "model.keras").exists()
    assert cli("run", "run.toml", "-o", "whole") == 6
    (tmp_path / "net.pb").write_bytes((tmp_path / "net.pb").read_bytes() + b"")
    os.utime("net.pb", (1, 1))
    result = run_pipeline(load_config(Path("run.toml")), folder=Path("whole"))
    assert reused(result) == []  # the network's file has changed


def test_a_stranger_s_unfinished_extraction_is_not_thrown_away(done, tmp_path: Path):
    """One that this folder's runs did not begin is gone on with, or refused."""
    folder, _ = done
    run_pipeline(CONFIG, folder=folder)
    model = str(folder / "model.keras")
    with open_source("digits") as source, pytest.raises(Interrupted):
        asked = iter([False] * 3)
        extract(
            load_network(model),
            source,
            ExtractOptions(layer=("conv1",), batch_size=16),
            out=tmp_path / "features.h5",
            should_stop=lambda: next(asked, True),
        )
    kept = (tmp_path / "features.h5.partial").read_bytes()
    other = {"data": {"source": "digits"}, "model": {"path": model}, "svm": {"C": 0.1}}
    with pytest.raises(UsageError, match="was begun with another layer"):
        run_pipeline(parse_config({**other, "extract": {"layer": "fc1"}}), folder=tmp_path)
    assert (tmp_path / "features.h5.partial").read_bytes() == kept


def test_a_reading_of_no_model_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="path is missing"):
        run_pipeline(parse_config({"model": {"signature": "x"}}), folder=tmp_path)


def test_a_model_and_a_network_exclude_each_other():
    with pytest.raises(ConfigError, match=r"\[model\] path is a network that exists"):
        parse_config({"model": {"path": "net.pb"}, "network": {}})


@pytest.fixture
def trained_on(pictures: Path) -> SimpleNamespace:
    """What a card says of a training on those pictures, cropped to 6×8 and inverted."""
    with open_source(str(pictures)) as source:
        digest = source.fingerprint().digest
    data = {"source": str(pictures), "resize": [6, 8], "fit": "crop", "invert": True}
    return SimpleNamespace(
        config={"data": data},
        source={"fingerprint": digest},
        source_name=str(pictures),
        division=None,
    )


def opened(card: SimpleNamespace, **options: object) -> tuple[tuple[int, ...], dict[str, object]]:
    with open_images(DataOptions(**options), card) as source:
        said = {name: source.options[name] for name in ("resize", "fit", "invert")}
        return source.splits["all"].image_shape, said


def test_the_training_s_own_pictures_are_prepared_as_they_were(trained_on, pictures):
    prepared = (6, 8, 1), {"resize": [6, 8], "fit": "crop", "invert": True}
    assert opened(trained_on) == prepared
    assert opened(trained_on, source=str(pictures)) == prepared
    assert opened(trained_on, fit="pad") == (
        (6, 8, 1),
        {"resize": [6, 8], "fit": "pad", "invert": True},
    )
    other = (4, 4, 1), {"resize": [4, 4], "fit": None, "invert": True}
    assert opened(trained_on, resize=(4, 4)) == other
    assert opened(trained_on, source=str(pictures), resize=(4, 4)) == other


def test_other_pictures_are_left_as_they_are_unless_asked(trained_on, pictures):
    (pictures / "dark" / "2.png").unlink()
    plain = (10, 12, 1), {"resize": None, "fit": None, "invert": False}
    assert opened(trained_on, source=str(pictures)) == plain
    asked = (4, 4, 1), {"resize": [4, 4], "fit": "pad", "invert": False}
    assert opened(trained_on, source=str(pictures), resize=(4, 4), fit="pad") == asked
    assert opened(None, source=str(pictures)) == plain


@pytest.mark.slow
def test_a_folder_of_photographs_of_any_size(cnnfeat, tmp_path: Path):
    """Pieces of two photographs, in colour and grey, through all commands by one word: --resize."""
    photos, new = tmp_path / "photos", tmp_path / "new"
    for name in ("china", "flower"):
        whole = Image.fromarray(load_sample_image(f"{name}.jpg"))
        for folder, n in ((photos / name, 16), (new, 2)):
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(n):
                left, top = 30 * number, 40 * (number % 4) + 5 * (folder == new)
                piece = whole.crop((left, top, left + 90 + 7 * number, top + 120 - 4 * number))
                grey = number % 5 == 1
                (piece.convert("L") if grey else piece).save(folder / f"{name}{number}.png")
    (tmp_path / "run.toml").write_text(
        '[data]\nsource = "photos"\n[[network.conv]]\nfilters = 4\nkernel_size = 3\n'
        '[[network.dense]]\nunits = 8\n[train]\nepochs = 4\n[extract]\nlayer = "fc1"\n'
        "[svm]\nC = 0.1\n",
        "utf-8",
    )
    words = ["run", "run.toml", "--resize", "24x20", "--fit", "crop"]
    assert cnnfeat(*words, folder=tmp_path).returncode == 0
    folder = tmp_path / "artifacts"
    card = json.loads((folder / "model.json").read_text("utf-8"))
    assert card["image_shape"] == [24, 20, 3]
    fitted = {name: card["config"]["data"][name] for name in ("resize", "fit", "invert")}
    assert fitted == {"resize": [24, 20], "fit": "crop", "invert": False}
    done = cnnfeat("predict", *sorted(new.iterdir()), "--json")
    assert "brought to 24×20×3, as the network takes them (--fit crop)" in done.stderr
    assert [item["predicted"] for item in json.loads(done.stdout)] == ["china"] * 2 + ["flower"] * 2
    words = ["extract", "--layer", "fc1", "-o"]
    assert cnnfeat(*words, "again.h5", "--data", "photos").returncode == 0
    with h5py.File(folder / "features.h5") as whole, h5py.File(tmp_path / "again.h5") as again:
        for split in ("train", "test"):
            np.testing.assert_allclose(
                again[f"{split}/fc1"][:], whole[f"{split}/fc1"][:], atol=1e-5
            )
    for other, hint in (
        ([*words, "new.h5", "--data", "new"], "--resize 24x20 brings images to"),
        (["predict", "--no-resize", new / "china0.png"], "without --no-resize it is brought to"),
    ):
        done = cnnfeat(*other)
        assert (done.returncode, hint in done.stderr) == (4, True), done.stderr
