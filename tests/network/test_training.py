"""Training on the bundled digits: what is written, what is refused, and that a seed fixes it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_digits, load_sample_image

from cnnfeat.card import read_card
from cnnfeat.data import open_data, open_source
from cnnfeat.divided import Pick, PickedSource, divide_source, redivide
from cnnfeat.errors import (
    DataError,
    Interrupted,
    NetworkError,
    OutputExistsError,
    StorageError,
    UsageError,
)
from cnnfeat.network import load_network
from cnnfeat.network.descent import Score, Steps
from cnnfeat.network.standing import Keeper
from cnnfeat.network.training import train
from cnnfeat.options import (
    ArchitectureOptions,
    AugmentOptions,
    ConvOptions,
    DataOptions,
    DenseOptions,
    RunOptions,
    TrainOptions,
)
from cnnfeat.parts import DivisionRule, Part, hold_out
from cnnfeat.records import Fingerprint, ImageTarget, SplitInfo

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


# ---- without validation, and several at once ---------------------------------------------------


def predicted(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Probabilities, in float64."""
    logits = model.predict(images, verbose=0).astype(float)
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    return chances / chances.sum(axis=1, keepdims=True)


def images_of(source: object, split: str) -> np.ndarray:
    return np.concatenate([batch.images for batch in source.batches(split, batch_size=1_000)])


def test_without_validation_all_rows_are_trained_on(digits, tmp_path: Path):
    out = tmp_path / "model.keras"
    config = RunOptions(train=TrainOptions(epochs=2, seed=1, validation=0.0))
    result = train(config, digits, out=out)
    assert (result.n_train, result.n_validation) == (digits.splits["train"].n_samples, 0)
    assert (result.best_epoch, result.validation_accuracy) == (None, None)
    assert read_card(out) == dataclasses.replace(
        result, config=read_card(out).config, division=read_card(out).division
    )
    again = redivide(digits, result.division)
    assert set(again.parts("train")) == {Part.FITTED}
    assert "none: all were trained on, after epoch 2 of 2" in repr(result)


def test_without_validation_a_split_for_it_is_left_alone(digits, tmp_path: Path):
    picked = PickedSource(
        digits,
        {
            "train": Pick("train", np.arange(300)),
            "validation": Pick("train", np.arange(300, 340)),
            "test": Pick("test"),
        },
    )
    config = RunOptions(train=TrainOptions(epochs=1, validation=0.0))
    result = train(config, picked, out=tmp_path / "model.keras")
    assert (result.n_train, result.n_validation) == (300, 0)
    assert set(redivide(picked, result.division).parts("validation")) == {Part.UNSEEN}


def test_without_validation_a_training_that_diverges_keeps_nothing(diverge, digits, tmp_path):
    diverge(1)
    config = RunOptions(train=TrainOptions(epochs=3, validation=0.0))
    with pytest.raises(NetworkError, match=r"has diverged: loss is nan after epoch 2"):
        train(config, digits, out=tmp_path / "model.keras")
    assert list(tmp_path.iterdir()) == []


SMALL = ArchitectureOptions(conv=(ConvOptions(4, 3),), dense=(DenseOptions(8),))
TOGETHER = RunOptions(network=SMALL, train=TrainOptions(epochs=2, seeds=(4, 1), ema=0.9))


@pytest.fixture(scope="module")
def committee(digits, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("committee") / "model.keras"
    return out, train(TOGETHER, digits, out=out)


def test_a_committee_answers_with_the_mean_of_its_members(committee, digits):
    out, result = committee
    model, images = keras.models.load_model(out), images_of(digits, "test")
    members = [predicted(model.get_layer(name), images) for name in ("seed4", "seed1")]
    mean = predicted(model, images)
    np.testing.assert_allclose(mean, np.mean(members, axis=0), rtol=1e-4, atol=1e-7)
    truth = digits.labels("test")
    assert result.test_accuracy == np.mean(mean.argmax(axis=1) == truth)
    for member, chances in zip(result.members, members, strict=True):
        assert member["test_accuracy"] == np.mean(chances.argmax(axis=1) == truth)
    assert not np.array_equal(*members)


def test_a_committees_logits_are_finite_where_probabilities_are_not(digits, committee):
    """Of images far from any other, float32 has no probability above 0 but for one class."""
    model = keras.models.load_model(committee[0])
    first, second = (model.get_layer(name) for name in ("seed4", "seed1"))
    for member in (first, second):
        kernel = member.get_layer("fc2").kernel
        kernel.assign(1e4 * kernel)
    logits = model.predict(images_of(digits, "test")[:50], verbose=0)
    assert np.isfinite(logits).all()


def test_the_card_of_a_committee_says_how_each_member_went(committee, digits):
    out, _ = committee
    card = read_card(out)
    assert [one["seed"] for one in card.members] == [4, 1]
    assert (card.history, card.best_epoch, card.epochs) == ((), None, 4)
    assert [len(one["history"]) for one in card.members] == [2, 2]
    for one in card.members:
        best = max(epoch["val_accuracy"] for epoch in one["history"])
        assert one["validation_accuracy"] == best
    assert card.elapsed_s == sum(one["elapsed_s"] for one in card.members)
    assert DivisionRule.from_json(card.division) == DivisionRule(None, 0.1, seed=4)
    rows = np.flatnonzero(redivide(digits, card.division).parts("train") == Part.VALIDATION)
    chances = predicted(keras.models.load_model(out), images_of(digits, "train")[rows])
    right = np.mean(chances.argmax(axis=1) == digits.labels("train")[rows])
    assert card.validation_accuracy == pytest.approx(right)
    assert "the mean of 2 networks, after epochs" in repr(card)


def test_a_member_is_what_its_seed_alone_makes(committee, digits, tmp_path: Path):
    """The division is that of the first seed, and so is the first member."""
    config = dataclasses.replace(
        TOGETHER, train=dataclasses.replace(TOGETHER.train, seeds=None, seed=4)
    )
    alone = train(config, digits, out=tmp_path / "model.keras")
    member = keras.models.load_model(committee[0]).get_layer("seed4").get_weights()
    weights = keras.models.load_model(tmp_path / "model.keras").get_weights()
    for a, b in zip(member, weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert committee[1].members[0]["test_accuracy"] == alone.test_accuracy


def test_layers_of_members_are_asked_for_by_name_and_pattern(committee, digits, agree):
    out, _ = committee
    model, images = keras.models.load_model(out), images_of(digits, "test")[:9]
    network = load_network(str(out))
    assert {layer.name for layer in network.find(["seed*/fc1"])} == {"seed4/fc1", "seed1/fc1"}
    wanted = {}
    for name in ("seed4", "seed1"):
        x = images
        for layer in model.get_layer(name).layers[1:-1]:
            x = layer(x)
        wanted[f"{name}/fc1"] = x
    agree(network, images, {**wanted, "logits": model(images)})


# ---- interrupted, and gone on with -------------------------------------------------------------


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch):
    """Stop at the beginning of an epoch, counted from 0; every epoch before is kept."""
    epoch_of = Steps.epoch
    monkeypatch.setattr("cnnfeat.network.standing.SECONDS_BETWEEN", 0.0)

    def at(place: int, error: BaseException | None = None) -> list[int]:
        made: list[int] = []

        def epoch(self: Steps, *args: object, **options: object) -> Score:
            if len(made) == place:
                raise error or KeyboardInterrupt
            made.append(len(made))
            return epoch_of(self, *args, **options)

        monkeypatch.setattr(Steps, "epoch", epoch)
        return made

    return at


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (keras.models.load_model(path).get_weights() for path in (one, other))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


DEEP = RunOptions(
    augment=AugmentOptions(shift=0.1, rotation=5),
    network=ArchitectureOptions(
        conv=(ConvOptions(4, 3, batch_norm=True, dropout=0.2, residual=1),),
        dense=(),
        pooling="average",
        weight_stddev="he",
    ),
    train=TrainOptions(
        epochs=3, seed=3, ema=0.9, warmup=0.3, weight_decay=0.01, label_smoothing=0.1
    ),
)
LAST = RunOptions(network=SMALL, train=TrainOptions(epochs=3, validation=0.0))


@pytest.mark.parametrize(
    ("config", "stop", "words"),
    [
        (QUICK, 3, "3 epochs"),
        pytest.param(DEEP, 1, "1 epoch", marks=pytest.mark.slow),
        (LAST, 2, "2 epochs"),
        pytest.param(TOGETHER, 1, "1 epoch", marks=pytest.mark.slow),
        pytest.param(TOGETHER, 2, "1 network", marks=pytest.mark.slow),
        (TOGETHER, 3, "1 network and 1 epoch of the next"),
    ],
    ids=["plain", "deep", "without validation", "first member", "between", "second member"],
)
def test_an_interrupted_training_comes_to_the_same(
    interrupt, digits, tmp_path: Path, *, config: RunOptions, stop: int, words: str
):
    out, begun = tmp_path / "model.keras", tmp_path / "model.keras.training"
    interrupt(stop)
    with pytest.raises(Interrupted, match=rf"stopped; .*\.training keeps {words}\n") as caught:
        train(config, digits, out=out)
    assert caught.value.exit_code == 130 and "--resume" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == [begun.name]
    made = interrupt(99)
    resumed = train(config, digits, out=out, resume=True)
    n_epochs = len(config.train.members) * config.train.epochs
    assert len(made) == n_epochs - stop
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.keras"]
    whole = train(config, digits, out=tmp_path / "whole.keras")
    assert_same_weights(out, tmp_path / "whole.keras")
    for name in ("best_epoch", "validation_accuracy", "test_accuracy", "division"):
        assert getattr(resumed, name) == getattr(whole, name)
    for one, other in zip(resumed.trainings, whole.trainings, strict=True):
        for epoch, same in zip(one["history"], other["history"], strict=True):
            assert epoch == pytest.approx(same, rel=1e-6)  # sums of losses are taken by calls


@pytest.mark.parametrize("config", [QUICK, LAST], ids=["validation", "without validation"])
def test_a_training_stopped_behind_its_last_epoch_only_has_to_be_scored(
    interrupt, digits, tmp_path: Path, config: RunOptions
):
    def batches(split: str, **options: object):
        if split == "test":
            raise KeyboardInterrupt
        return digits.batches(split, **options)

    interrupt(99)
    out, n_epochs = tmp_path / "model.keras", config.train.epochs
    with pytest.raises(Interrupted, match=rf"\.training keeps {n_epochs} epochs\n"):
        train(config, Altered(digits, batches=batches), out=out)
    made = interrupt(99)
    resumed = train(config, digits, out=out, resume=True)
    assert made == [] and len(resumed.history) == n_epochs
    whole = train(config, digits, out=tmp_path / "whole.keras")
    assert_same_weights(out, tmp_path / "whole.keras")
    assert resumed.test_accuracy == whole.test_accuracy


def test_a_member_that_ended_soon_after_the_last_writing_is_not_trained_again(
    interrupt, digits, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(Keeper, "finish", lambda self, one: self.finished.append(one))
    n_epochs, out = TOGETHER.train.epochs, tmp_path / "model.keras"
    interrupt(n_epochs)
    with pytest.raises(Interrupted, match=rf"\.training keeps {n_epochs} epochs\n"):
        train(TOGETHER, digits, out=out)
    made = interrupt(99)
    train(TOGETHER, digits, out=out, resume=True)
    assert len(made) == n_epochs
    train(TOGETHER, digits, out=tmp_path / "whole.keras")
    assert_same_weights(out, tmp_path / "whole.keras")


def test_a_terminated_training_says_so_and_a_short_one_leaves_nothing(
    interrupt, digits, tmp_path: Path, monkeypatch
):
    interrupt(1, Interrupted("stopped by SIGTERM", signal_number=15))
    with pytest.raises(Interrupted, match=r"keeps 1 epoch\n") as caught:
        train(LAST, digits, out=tmp_path / "model.keras")
    assert caught.value.exit_code == 143
    monkeypatch.setattr("cnnfeat.network.standing.SECONDS_BETWEEN", 30.0)
    (tmp_path / "model.keras.training").unlink()
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        train(LAST, digits, out=tmp_path / "model.keras")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def begun(interrupt, digits, tmp_path: Path) -> Path:
    """The file that an interrupted training of `LAST` leaves."""
    interrupt(1)
    with pytest.raises(Interrupted):
        train(LAST, digits, out=tmp_path / "model.keras")
    interrupt(99)
    return tmp_path / "model.keras.training"


def test_an_interrupted_training_is_neither_overwritten_nor_resumed_unasked(
    begun: Path, digits, tmp_path: Path
):
    with pytest.raises(OutputExistsError, match=r"was begun and interrupted: .*training holds"):
        train(LAST, digits, out=tmp_path / "model.keras")
    card = train(LAST, digits, out=tmp_path / "model.keras", overwrite=True)
    assert card.epochs == 3 and not begun.exists()


def test_a_training_of_other_settings_is_not_gone_on_with(begun: Path, digits, tmp_path: Path):
    def resume(source: object = digits, **options: object) -> None:
        how = dataclasses.replace(LAST.train, **options)
        train(
            dataclasses.replace(LAST, train=how), source, out=tmp_path / "model.keras", resume=True
        )

    for options, message in (
        ({"learning_rate": 0.5}, "begun with another learning rate: 0.002, and now it is 0.5"),
        ({"seeds": (1, 2)}, "begun with another seeds: not given, and now it is 1, 2"),
        ({"ema": 0.5}, "begun with another ema: 0.0, and now it is 0.5"),
    ):
        with pytest.raises(UsageError, match=message):
            resume(**options)
    other = Altered(digits, fingerprint=lambda: Fingerprint("other", "method"))
    with pytest.raises(UsageError, match=r"begun with another data fingerprint: .* is other"):
        resume(other)
    column = dataclasses.replace(LAST, data=DataOptions(label_column="other"))
    with pytest.raises(UsageError, match=r"another label column: not given, and now it is other"):
        train(column, digits, out=tmp_path / "model.keras", resume=True)
    assert begun.exists()


def rewritten(path: Path, change: Callable[[dict], None], arrays: bytes | None = None) -> None:
    """Change the record of what is kept, under a digest that is right."""
    _, head, rest = path.read_bytes().split(b"\n", 2)
    record = json.loads(head)
    change(record)
    body = json.dumps(record).encode() + b"\n" + (rest if arrays is None else arrays)
    path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def member(record: dict) -> dict:
    return record["members"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(format="other"), "format must be 'cnnfeat-training'"),
        (lambda record: record.update(members=3), "members must be a list, not 3"),
        (lambda record: member(record).update(elapsed_s=-1), "elapsed_s must be a number"),
        (lambda record: member(record).update(history=[]), "epochs are not numbered from 1"),
        (lambda record: member(record)["history"][0].update(epoch=2), "not numbered from 1"),
        (lambda record: member(record)["history"][0].pop("loss"), "epochs don't tell accuracy"),
        (
            lambda record: member(record)["arrays"][0].__setitem__(0, "object"),
            r"arrays\[0\]\[0\] must be .float32.",
        ),
        (
            lambda record: member(record)["arrays"][0].__setitem__(1, [9**20]),
            "more than this network",
        ),
        (lambda record: member(record)["arrays"][0][1].reverse(), "are not those of this network"),
        (lambda record: member(record)["arrays"].pop(), "bytes are not those that were written"),
        (lambda record: record["members"].append(member(record)), "ends too early"),
        (
            lambda record: member(record).update(
                history=[{**member(record)["history"][0], "epoch": number} for number in (1, 2)]
            ),
            "tells of 12 steps in 2 epochs",
        ),
        (
            lambda record: member(record).update(
                history=[{**member(record)["history"][0], "epoch": 1 + k} for k in range(4)]
            ),
            "tells of 4 epochs of 3",
        ),
    ],
    ids=range(13),
)
def test_a_record_that_cannot_be_is_refused(begun: Path, digits, tmp_path: Path, change, message):
    rewritten(begun, change)
    with pytest.raises(DataError, match=rf"training is not what .*{message}") as caught:
        train(LAST, digits, out=tmp_path / "model.keras", resume=True)
    assert "--overwrite" in caught.value.hint


def test_damage_is_found(begun: Path, digits, tmp_path: Path):
    def refused(content: bytes, message: str) -> None:
        begun.write_bytes(content)
        with pytest.raises(DataError, match=message):
            train(LAST, digits, out=tmp_path / "model.keras", resume=True)

    content = begun.read_bytes()
    refused(content[:-1], "ends too early")
    refused(content + b"\0", "bytes are not those that were written")
    refused(b"", "not what an interrupted training leaves")
    for place in (3, len(content) // 2, len(content) - 1):
        refused(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :], "written")
    _, _, arrays = content.split(b"\n", 2)
    rewritten(begun, lambda record: None, np.float32("nan").tobytes() + arrays[4:])
    refused(begun.read_bytes(), "weights that are no numbers")


def test_a_training_that_has_ended_is_complete_already(digits, tmp_path: Path, caplog):
    out = tmp_path / "model.keras"
    first = train(LAST, digits, out=out, resume=True)
    written = out.stat()
    with caplog.at_level("INFO", "cnnfeat"):
        again = train(LAST, digits, out=out, resume=True)
    assert "model.keras is complete already" in caplog.text
    assert again.model_sha256 == first.model_sha256 and out.stat() == written
    other = dataclasses.replace(LAST, train=dataclasses.replace(LAST.train, epochs=1))
    with pytest.raises(OutputExistsError, match="trained with another epochs: 3, and now it is 1"):
        train(other, digits, out=out, resume=True)
    out.with_suffix(".json").unlink()
    with pytest.raises(OutputExistsError, match="nothing says how it was trained"):
        train(LAST, digits, out=out, resume=True)


def test_a_disk_that_refuses_costs_what_is_kept_alone(
    interrupt, digits, tmp_path, monkeypatch, caplog
):
    def full(*_: object) -> None:
        raise StorageError("can't write: no space left")

    monkeypatch.setattr("cnnfeat.network.standing.write_standings", full)
    monkeypatch.setattr("cnnfeat.network.standing.SECONDS_BETWEEN", 0.0)
    card = train(LAST, digits, out=tmp_path / "model.keras")
    assert card.epochs == 3
    assert "how far the training is can't be kept: can't write: no space left" in caplog.text


def test_bfloat16_is_refused_where_the_processor_has_none(digits, tmp_path: Path, monkeypatch):
    config = RunOptions(network=SMALL, train=TrainOptions(epochs=1, precision="bfloat16"))
    monkeypatch.setattr("cnnfeat.network.runtime.has_bfloat16", lambda: False)
    with pytest.raises(NetworkError, match="bfloat16 needs a processor with AVX512-BF16 or AMX"):
        train(config, digits, out=tmp_path / "model.keras")
    monkeypatch.setattr("cnnfeat.network.runtime.has_bfloat16", lambda: True)
    card = train(config, digits, out=tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    assert {layer.compute_dtype for layer in model.get_layer("conv1").layers} == {"float32"}
    chances = predicted(model, images_of(digits, "test"))
    assert card.test_accuracy == np.mean(chances.argmax(axis=1) == digits.labels("test"))
