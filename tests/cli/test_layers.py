"""`cnnfeat layers`."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import keras
import pytest


@pytest.fixture
def run(cnnfeat):
    return functools.partial(cnnfeat, "layers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    image = keras.Input((8, 8, 1), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255, name="scale")(image)
    x = keras.layers.Conv2D(2, 3, name="conv1")(x)
    x = keras.layers.Flatten(name="flat")(x)
    path = tmp_path_factory.mktemp("model") / "model.keras"
    keras.Model(image, keras.layers.Dense(3, name="out")(x), name="net").save(path)
    return str(path)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> str:
    x = image = keras.Input((8, 8, 1), name="image")
    for number in range(15):
        y = keras.layers.Conv2D(1, 3, padding="same", name=f"conv{number}_a")(x)
        y = keras.layers.Conv2D(1, 3, padding="same", name=f"conv{number}_b")(y)
        x = keras.layers.Add(name=f"add{number}")([x, y])
    path = tmp_path_factory.mktemp("deep") / "deep.keras"
    keras.Model(image, x).save(path)
    return str(path)


def cells(out: str) -> list[list[str]]:
    return [line.split("  ") for line in out.splitlines() if line.strip()]


def first_words(out: str) -> list[str]:
    return [line.split()[0] for line in out.splitlines()[1:] if line.strip()]


def test_a_table(run, model: str) -> None:
    code, out, _ = run(model)
    assert code == 0
    assert "images go to 'image', (8, 8, 1) uint8" in out
    (line,) = [line for line in out.splitlines() if line.split()[:1] == ["conv1"]]
    for text in ("Conv2D", "(n, 6, 6, 2)", "72", "conv1/BiasAdd:0"):
        assert text in line
    assert "file" not in out


def test_the_size_of_the_file_for_the_models_own_data(run, model: str, tmp_path: Path) -> None:
    from cnnfeat.card import ModelCard, card_path, file_sha256, write_card

    copy = tmp_path / "model.keras"
    copy.write_bytes(Path(model).read_bytes())
    card = ModelCard(
        cnnfeat="0", tensorflow="0", keras="0", created="", config={}, source={}, classes=(),
        image_shape=(8, 8, 1), history=(), best_epoch=1, validation_accuracy=0.5,
        test_accuracy=0.5, n_train=900, n_validation=100, n_test=24, elapsed_s=1.0,
        model_sha256=file_sha256(copy),
    )  # fmt: skip
    write_card(card, card_path(copy))
    code, out, _ = run(str(copy))
    assert code == 0
    assert "1,024 images" in out
    (line,) = [line for line in out.splitlines() if line.split()[:1] == ["conv1"]]
    assert "288.0 KiB" in line  # 72 numbers of 4 bytes for each of 1,024 images


def test_json(run, model: str) -> None:
    code, out, err = run(model, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert [layer["name"] for layer in document["layers"]] == [
        "image", "scale", "conv1", "flat", "out",
    ]  # fmt: skip
    assert document["layers"][2] == {
        "name": "conv1",
        "kind": "Conv2D",
        "path": [],
        "tensor": "conv1/BiasAdd:0",
        "op": "BiasAdd",
        "dtype": "float32",
        "shape": [None, 6, 6, 2],
        "features": 72,
        "file_bytes": None,
    }
    assert document["input"]["image_shape"] == [8, 8, 1]
    assert document["format"] == "keras"


def test_every_tensor(run, model: str) -> None:
    code, out, _ = run(model, "--all")
    assert code == 0
    assert "conv1/convolution:0" in out


def test_a_long_network_shows_its_trunk(run, deep: str) -> None:
    code, out, err = run(deep)
    assert code == 0
    assert "add3" in out
    assert "conv3_a" not in out
    assert len(out.splitlines()) < 30
    assert re.search(r"^between these: \d+ layers; --match '\*\*' lists all", err, re.MULTILINE)
    assert "conv3_a" in run(deep, "--match", "**")[1]


def test_match_and_kind(run, deep: str) -> None:
    _, out, _ = run(deep, "--match", "conv3_*")
    assert [word for word in first_words(out) if word.startswith("conv")] == ["conv3_a", "conv3_b"]
    _, out, _ = run(deep, "--kind", "conv")
    assert "conv14_b" in out
    assert "add3" not in out
    code, _, err = run(deep, "--kind", "lstm")
    assert code == 4
    assert "no layer is of a kind 'lstm'" in err
    assert "Add, Conv2D, InputLayer" in err


def test_no_model_yet(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "there is no model artifacts/model.keras" in err
    assert "cnnfeat train" in err


def test_a_bad_pattern(run, model: str) -> None:
    code, _, err = run(model, "--match", "pool*")
    assert code == 4
    assert "no layer matches the pattern 'pool*'" in err


def test_options_of_reading(run, model: str) -> None:
    code, _, err = run(model, "--input", "nothing")
    assert code == 4
    assert "no input is called 'nothing'" in err
    code, _, err = run(model, "--feed", "nothing")
    assert code == 2
    assert "keep_prob=1.0" in err
