"""Training on the bundled digits: what is written, what is refused, and that a seed fixes it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_digits, load_sample_image

from cnnfeat.card import read_card
from cnnfeat.data import open_data, open_source
from cnnfeat.divided import Pick, PickedSource, divide_source, redivide
from cnnfeat.errors import DataError, NetworkError, OutputExistsError, StorageError, UsageError
from cnnfeat.network.descent import Score, Steps
from cnnfeat.network.training import train
from cnnfeat.options import DataOptions, RunOptions, TrainOptions
from cnnfeat.parts import DivisionRule, Part, hold_out
from cnnfeat.records import ImageTarget, SplitInfo

QUICK = RunOptions(train=TrainOptions(epochs=4, seed=1))


class Altered:
    """A source with something about it changed."""

    def __init__(self, source: object, **changes: object) -> None:
        self._source, self._changes = source, changes

    def __getattr__(self, name: str) -> object:
        if name in self._changes:
            return self._changes[name]
        return getattr(self._source, name)


@pytest.fixture(scope="module")
def digits():
    with open_source("digits") as source:
        yield source


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("trained") / "model.keras"
    return out, train(QUICK, digits, out=out)


def test_the_model_loads_in_plain_keras_and_scores_what_was_said(trained, digits):
    out, result = trained
    model = keras.models.load_model(out)
    batches = list(digits.batches("test", batch_size=1_000))
    images = np.concatenate([batch.images for batch in batches])
    predicted = np.argmax(model.predict(images, verbose=0), axis=1)
    assert result.test_accuracy == np.mean(predicted == digits.labels("test"))
    assert result.test_accuracy > 0.5
    assert result.n_train + result.n_validation + result.n_test == len(load_digits().target)


def test_the_card_says_how_the_model_was_made(trained, digits):
    out, result = trained
    document = json.loads(out.with_suffix(".json").read_text("utf-8"))
    assert document["format"] == "cnnfeat-model"
    assert document["format_version"] == 1
    assert document["model_sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert document["config"]["train"]["seed"] == 1
    assert document["source"]["name"] == "digits"
    assert document["source"]["fingerprint"] == digits.fingerprint().digest
    assert document["image_shape"] == [8, 8, 1]
    assert document["test_accuracy"] == result.test_accuracy
    assert [record["epoch"] for record in document["history"]] == [1, 2, 3, 4]
    best = max(record["val_accuracy"] for record in document["history"])
    assert document["validation_accuracy"] == best
    assert document["keras"] == keras.__version__


def test_the_learning_rate_falls_along_a_cosine(trained):
    card = read_card(trained[0])
    rates = [record["learning_rate"] for record in card.history]
    cosine = 2e-3 * (1 + np.cos(np.pi * np.arange(4) / 4)) / 2
    np.testing.assert_allclose(rates, cosine, rtol=1e-5)


def test_a_seed_fixes_the_result(trained, digits, tmp_path: Path):
    again = train(QUICK, digits, out=tmp_path / "again.keras")
    assert again.test_accuracy == trained[1].test_accuracy
    first, second = (
        keras.models.load_model(path).get_weights()
        for path in (trained[0], tmp_path / "again.keras")
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_test_split_is_read_once_and_last(digits, tmp_path: Path):
    read = []

    def batches(split: str, **options: object):
        read.append(split)
        return digits.batches(split, **options)

    train(QUICK, Altered(digits, batches=batches), out=tmp_path / "model.keras")
    assert read == ["train", "test"]


def test_patience_stops_early(digits, tmp_path: Path):
    config = RunOptions(train=TrainOptions(epochs=60, learning_rate=10.0, patience=2))
    result = train(config, digits, out=tmp_path / "model.keras")
    assert result.epochs == result.best_epoch + 2 < 60


def test_rows_held_out_first_are_tested_on_and_never_seen(digits, tmp_path: Path):
    only = Altered(digits, splits={"train": digits.splits["train"]})
    result = train(QUICK, only, out=tmp_path / "model.keras")
    n = digits.splits["train"].n_samples
    assert result.n_train + result.n_validation + result.n_test == n
    assert 0.19 < result.n_test / n < 0.21
    again = divide_source(only, DivisionRule.from_json(result.division))
    rows = np.flatnonzero(hold_out(digits.labels("train"), 0.2, seed=1))
    assert again.labels("test").tolist() == digits.labels("train")[rows].tolist()
    model = keras.models.load_model(tmp_path / "model.keras")
    images = np.concatenate([batch.images for batch in digits.batches("train", batch_size=n)])
    right = np.argmax(model.predict(images[rows], verbose=0), axis=1) == again.labels("test")
    assert result.test_accuracy == np.mean(right)


def test_the_rows_held_back_are_those_of_earlier_versions(trained, digits):
    """By the rule as it stood in training.py before divisions were kept."""
    labels, generator, held = digits.labels("train"), np.random.default_rng(1), []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held.extend(rows[: max(1, round(0.1 * len(rows)))].tolist())
    divided = divide_source(digits, DivisionRule.from_json(trained[1].division))
    assert np.flatnonzero(divided.parts("train") == Part.VALIDATION).tolist() == sorted(held)
    assert np.flatnonzero(divided.parts("train") == Part.FITTED).tolist() == sorted(
        set(range(len(labels))) - set(held)
    )


def test_the_card_keeps_the_division(trained):
    card = read_card(trained[0])
    assert card.division == trained[1].division
    assert DivisionRule.from_json(card.division) == DivisionRule(None, 0.1, seed=1)


def test_a_validation_split_picks_the_epoch(digits, tmp_path: Path):
    picked = PickedSource(
        digits,
        {
            "train": Pick("train", np.arange(300)),
            "validation": Pick("train", np.arange(300, 340)),
            "test": Pick("test"),
        },
    )
    result = train(QUICK, picked, out=tmp_path / "model.keras")
    assert (result.n_train, result.n_validation, result.n_test) == (300, 40, 359)
    images = np.concatenate([b.images for b in picked.batches("validation", batch_size=40)])
    model = keras.models.load_model(tmp_path / "model.keras")
    right = np.argmax(model.predict(images, verbose=0), axis=1) == picked.labels("validation")
    assert result.validation_accuracy == pytest.approx(np.mean(right))


def test_nothing_but_a_test_split_is_refused(digits, tmp_path: Path):
    only = Altered(digits, splits={"test": digits.splits["test"]})
    with pytest.raises(DataError, match="digits has nothing to train on: all it has is test"):
        train(QUICK, only, out=tmp_path / "model.keras")


def test_groups_of_the_test_split_that_are_trained_on_are_said(digits, tmp_path: Path, caplog):
    groups = {name: np.arange(info.n_samples) // 10 for name, info in digits.splits.items()}
    train(QUICK, Altered(digits, groups=groups.get), out=tmp_path / "model.keras")
    assert "36 of 36 groups of 'test' are in 'train' too" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_stop_leaves_no_half_written_model(digits, tmp_path: Path, error: type[BaseException]):
    class Stopper:
        def task(self, label: str, **options: object):
            return self

        def __enter__(self):
            return self

        def __exit__(self, *exc_info: object):
            return None

        def advance(self, amount: float = 1, *, note: str = ""):
            raise error

    with pytest.raises(error):
        train(QUICK, digits, out=tmp_path / "model.keras", progress=Stopper())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_model_is_kept(digits, tmp_path: Path):
    for name in ("model.keras", "model.json"):
        (tmp_path / name).write_text("old", "utf-8")
        with pytest.raises(OutputExistsError, match=f"{name} exists"):
            train(QUICK, digits, out=tmp_path / "model.keras")
        assert (tmp_path / name).read_text("utf-8") == "old"
        (tmp_path / name).unlink()


def test_another_ending_is_refused(digits, tmp_path: Path):
    with pytest.raises(UsageError, match=r"ends in \.keras, not 'model\.h5'"):
        train(QUICK, digits, out=tmp_path / "model.h5")


def test_a_folder_that_cannot_be_written_is_found_before_training(digits):
    with pytest.raises(StorageError, match=r"can.t write /proc/self/model\.keras"):
        train(QUICK, digits, out=Path("/proc/self/model.keras"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "has no labels"),
        (np.zeros(1_438, np.int64), r"at least two classes, .* has \{'0': 1438\} in 'train'"),
        (np.eye(1, 1_438, 7, np.int64)[0], "each class needs 2 pictures .* digits has '1': 1"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(digits, tmp_path: Path, labels, message: str):
    altered = Altered(digits, labels=lambda split: labels)
    with pytest.raises(DataError, match=message):
        train(QUICK, altered, out=tmp_path / "model.keras")
    assert list(tmp_path.iterdir()) == []


def test_images_of_two_shapes_are_refused(digits, tmp_path: Path):
    def batches(split: str, **options: object):
        first, second, *_ = digits.batches(split, batch_size=100)
        yield first
        yield dataclasses.replace(second, images=second.images[:, :4])

    altered = Altered(digits, batches=batches)
    with pytest.raises(DataError, match="train/00100 is 4×8×1, the first is 8×8×1") as caught:
        train(QUICK, altered, out=tmp_path / "model.keras")
    assert "--resize 64x64" in caught.value.hint


def photographs(folder: Path, n: int = 10) -> Path:
    """Pieces of two photographs, each of another size, some of them grey."""
    for name in ("china", "flower"):
        whole = Image.fromarray(load_sample_image(f"{name}.jpg"))
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(n):
            left, top = 40 * number, 25 * (number % 5)
            piece = whole.crop((left, top, left + 90 + 7 * number, top + 120 - 5 * number))
            grey = number % 3 == 0
            (piece.convert("L") if grey else piece).save(folder / name / f"{number}.png")
    return folder


def test_pictures_of_any_size_and_colour_are_trained_on(tmp_path: Path, caplog):
    photos = photographs(tmp_path / "photos")
    with (
        open_source(str(photos)) as source,
        pytest.raises(DataError, match=r"\d.png is \d+×\d+×3, the first is \d+×\d+×3"),
    ):
        train(QUICK, source, out=tmp_path / "model.keras")
    data = DataOptions(source=str(photos), resize=(20, 24), fit="crop", invert=True)
    config = dataclasses.replace(QUICK, data=data)
    with open_data(data) as source, caplog.at_level("INFO", "cnnfeat"):
        train(config, source, out=tmp_path / "model.keras")
    assert "images: to 20×24×3 for the network; grey pictures among them become RGB" in caplog.text
    card = read_card(tmp_path / "model.keras")
    assert tuple(card.image_shape) == (20, 24, 3)
    kept = {name: card.config["data"][name] for name in ("resize", "fit", "invert")}
    assert kept == {"resize": [20, 24], "fit": "crop", "invert": True}
    with open_data(data) as source:
        again = redivide(source, card.division)
        (batch,) = again.batches("train", batch_size=99, target=ImageTarget(channels=3))
        fitted = batch.images[again.parts("train") == Part.FITTED] / 255
    for number, name in enumerate(batch.ids[:3]):
        picture = Image.open(photos / name).convert("RGB")
        cropped = ImageOps.fit(ImageOps.invert(picture), (24, 20), Image.Resampling.BILINEAR)
        difference = batch.images[number].astype(int) - np.asarray(cropped)
        assert np.abs(difference).max() <= 1  # grey is made RGB after it is resized
    assert card.pixels.mean == pytest.approx(fitted.mean())
    assert card.pixels.spread == pytest.approx(fitted.std())


def test_mean_and_spread_of_the_training_pixels_are_kept(trained, digits):
    out, result = trained
    images = next(digits.batches("train", batch_size=2_000)).images
    again = redivide(digits, result.division)
    pixels = images[again.parts("train") == Part.FITTED] / 255
    kept = read_card(out).pixels
    assert kept.mean == pytest.approx(pixels.mean())
    assert kept.spread == pytest.approx(pixels.std())


@pytest.fixture
def diverge(monkeypatch: pytest.MonkeyPatch):
    """Let the weights become immense in one epoch, counted from 0."""
    epoch_of = Steps.epoch

    def from_epoch(place: int) -> None:
        epochs = itertools.count()

        def epoch(self: Steps, *args: object, **options: object) -> Score:
            score = epoch_of(self, *args, **options)
            return Score(float("nan"), score.accuracy) if next(epochs) == place else score

        monkeypatch.setattr(Steps, "epoch", epoch)

    return from_epoch


def test_a_training_that_diverges_at_once_is_refused(diverge, digits, tmp_path):
    diverge(0)
    with pytest.raises(NetworkError, match=r"has diverged: loss is nan .* first epoch") as caught:
        train(QUICK, digits, out=tmp_path / "model.keras")
    assert "--learning-rate" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_diverges_later_keeps_what_was_best(diverge, digits, tmp_path, caplog):
    diverge(2)
    card = train(QUICK, digits, out=tmp_path / "model.keras")
    assert [one["epoch"] for one in card.history] == [1, 2]
    assert card.best_epoch in (1, 2)
    assert "the training has diverged, and ends: loss is nan and val_loss is" in caplog.text


def test_images_too_small_are_refused_before_training(digits, tmp_path: Path):
    small = SplitInfo("train", 1_438, (2, 2, 1), "uint8", True)
    splits = {"train": small, "test": digits.splits["test"]}
    with pytest.raises(NetworkError, match="too small"):
        train(QUICK, Altered(digits, splits=splits), out=tmp_path / "model.keras")


@pytest.mark.mnist
@pytest.mark.slow
@pytest.mark.timeout(7_200)  # a training of minutes, on a busy machine longer
def test_the_default_run_on_mnist_reaches_its_accuracy(data_dir: Path, tmp_path: Path):
    with open_source("mnist", data_dir=data_dir) as source:
        result = train(RunOptions(), source, out=tmp_path / "model.keras")
    assert result.test_accuracy >= 0.992
