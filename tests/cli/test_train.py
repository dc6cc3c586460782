"""`cnnfeat train`, and `extract` of what was trained on: which rows the network has seen."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from cnnfeat.data import open_source
from cnnfeat.errors import Interrupted, NetworkError
from cnnfeat.features import FeatureFile
from cnnfeat.parts import Part, hold_out

NETWORK = """
[network]
conv = [{ filters = 2, kernel_size = 3 }]
dense = [{ units = 4 }]
[train]
epochs = 1
"""


@pytest.fixture
def run(cnnfeat, tmp_path: Path, monkeypatch) -> Callable:
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(NETWORK, "utf-8")
    return cnnfeat


@pytest.fixture
def train(run) -> Callable:
    return functools.partial(run, "train", "--config", "c.toml")


def two_classes() -> Path:
    """100 images of random pixels, of two classes, without splits."""
    images = np.random.default_rng(7).integers(0, 256, (100, 8, 8), np.uint8)
    np.savez("x.npz", images=images, labels=np.arange(100) % 2)
    return Path("x.npz")


@pytest.fixture
def npz(run) -> Path:
    return two_classes()


@pytest.mark.parametrize(
    ("changes", "n_calls"),
    [
        ({}, 2),
        ({"units = 4": "units = 4, batch_norm = true"}, 2),
        ({"units = 4": "units = 4, batch_norm = true", "epochs = 1": "batch_size = 32"}, 1),
    ],
    ids=["plain", "normed halves", "normed whole"],
)
@pytest.mark.parametrize("command", ["train", "run"])
def test_tensorflow_is_started_for_the_calls_of_a_training(
    run, npz, monkeypatch, *, command, changes, n_calls
):
    def started(_settings: object, *, n_calls: int, device: str = "auto") -> None:
        raise NetworkError(f"started for {n_calls}")

    module = import_module(f"cnnfeat.cli.{command}")
    monkeypatch.setattr(module, "start_tensorflow", started)
    text = NETWORK
    for before, after in changes.items():
        text = text.replace(before, after)
    Path("c.toml").write_text(text, "utf-8")
    config = ("--config", "c.toml") if command == "train" else ("c.toml",)
    code, _, err = run(command, *config, "--data", npz)
    assert code == 4
    assert f"started for {n_calls}" in err


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `trained`: a card says where its pictures lay."""
    return tmp_path_factory.mktemp("training")


@pytest.fixture
def trained(train, training: Path, monkeypatch) -> Path:
    """Where `train` was called on those images, with seed 2, and nothing since; x.npz."""
    monkeypatch.chdir(training)
    Path("c.toml").write_text(NETWORK, "utf-8")
    path = two_classes()
    shutil.rmtree("artifacts", ignore_errors=True)
    if not Path("kept").exists():
        done = train("--data", path, "--seed", "2")
        assert done.returncode == 0, done.stderr
        shutil.copytree("artifacts", "kept")
    shutil.copytree("kept", "artifacts", dirs_exist_ok=True)
    return path


def photos(folder: Path, sizes: dict[str, int], rng: np.random.Generator) -> Path:
    for name, n in sizes.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_it_says_how_the_source_was_divided(train, npz):
    code, out, _ = train("--data", npz, "--seed", "5", "--test-fraction", "0.3")
    assert code == 0
    assert "divided              30 images held out first, to test on" in out
    assert "(--test-fraction 0.3, --seed 5)" in out
    assert "of 8 images held back" in out
    assert "of 30 images that the network never saw" in out
    code, out, _ = train("--data", npz, "--json", "--overwrite")
    said = json.loads(out)
    assert (said["n_train"], said["n_validation"], said["n_test"]) == (72, 8, 20)
    assert said["division"]["test_fraction"] == 0.2 and said["division"]["validation"] == 0.1


def test_a_source_with_splits_is_kept_as_it_is(train, npz):
    with np.load(npz) as plain:
        x, y = plain["images"], plain["labels"]
    np.savez("x.npz", x_train=x[:60], y_train=y[:60], x_val=x[60:72], y_val=y[60:72],
             x_test=x[72:], y_test=y[72:])  # fmt: skip
    code, out, err = train("--data", "x.npz")
    assert code == 0
    assert "60 train and 12 validation and 28 test" in err
    assert "divided" not in out and "of 12 images of the split validation" in out


@pytest.mark.parametrize("given", ["0", "-0.1", "0.91", "nan", "some"])
def test_a_test_fraction_out_of_range_is_refused(train, npz, given):
    code, _, err = train("--data", npz, "--test-fraction", given)
    assert code == 2
    assert "--test-fraction must be" in err and "more than 0 and at most 0.9" in err


def test_a_class_of_one_picture_is_named_and_the_hint_works(train, run, rng):
    photos(Path("photos"), {"bus": 1, "cat": 10, "dog": 10}, rng)
    code, _, err = train("--data", "photos")
    assert code == 3
    assert "photos has 'bus': 1" in err and "--min-per-class 3" in err
    code, _, err = train("--data", "photos", "--min-per-class", "3")
    assert code == 0, err
    assert "left out: classes of fewer than 3 pictures in 'all': 'bus': 1" in err
    code, _out, err = run("extract", "--layer", "fc1")
    assert code == 0, err
    with FeatureFile(Path("artifacts/features.h5")) as file:
        assert {split: file.n_rows(split) for split in file.splits} == {"train": 16, "test": 4}
        assert not [name for split in file.splits for name in file.ids(split) if "bus" in name]


def test_a_group_that_is_a_whole_class_is_refused(train, rng):
    photos(Path("photos"), {"cat/7": 6, "dog/7": 2, "dog/8": 2, "dog/9": 2}, rng)
    code, _, err = train("--data", "photos", "--group-by", "folder")
    assert code == 3
    assert "all 6 pictures of class 'cat'" in err and "are in 1 by --group-by folder" in err


def test_a_column_that_is_not_there_is_refused(train, npz):
    Path("list.csv").write_text("path,label,patient\n1.png,a,x\n", "utf-8")
    code, _, err = train("--data", "list.csv", "--group-by", "person")
    assert code == 2
    assert "list.csv has no such column; it has: path, label, patient" in err
    code, _, err = train("--data", npz, "--group-by", "folder")
    assert code == 2 and "(npz) doesn't say what belongs together" in err


def test_extract_divides_as_the_training_did(run, trained):
    code, _out, err = run("extract", "--layer", "fc1")
    assert code == 0 and "warning" not in err
    held = hold_out(np.arange(100) % 2, 0.2, seed=2)
    inner = hold_out((np.arange(100) % 2)[~held], 0.1, seed=2)
    with FeatureFile(Path("artifacts/features.h5")) as file:
        assert file.splits == ("train", "test")
        assert file.ids("test") == [f"all/{row:05d}" for row in np.flatnonzero(held)]
        assert file.ids("train") == [f"all/{row:05d}" for row in np.flatnonzero(~held)]
        assert set(file.parts("test")) == {Part.UNSEEN}
        assert (file.parts("train") == Part.VALIDATION).tolist() == inner.tolist()
        assert (file.parts("train") == Part.FITTED).tolist() == (~inner).tolist()
        assert json.loads(file.attributes["division"])["seed"] == 2


def test_extract_by_name_of_what_was_trained_on_divides_it_too(train, run, rng):
    for name in ("cat", "dog"):
        for patient in range(5):
            photos(Path("photos"), {f"{name}/{patient}": 3}, rng)
    words = ["--data", "photos", "--group-by", "folder", "--validation", "0.3"]
    code, _, err = train(*words)
    assert code == 0, err
    code, _, err = run("extract", "--layer", "fc1", "--data", "photos", "-o", "f.h5")
    assert code == 0 and "warning" not in err, err
    with FeatureFile(Path("f.h5")) as file:
        train_groups, test_groups = set(file.groups("train")), set(file.groups("test"))
        assert len(train_groups | test_groups) == 5 and not train_groups & test_groups
        patients = {name.split("/")[1] for name in file.ids("test")}
        assert len(patients) == len(test_groups)


def test_what_the_network_has_seen_of_other_pictures_is_not_known(run, trained, rng):
    photos(Path("others"), {"a": 3, "b": 3}, rng)
    code, _, err = run("extract", "--layer", "fc1", "--data", "others")
    assert code == 0
    assert err.count("isn't known") == 1 and "the network was trained on" in err
    with FeatureFile(Path("artifacts/features.h5")) as file:
        assert file.splits == ("all",) and file.parts("all") is None


def test_a_source_that_has_changed_is_not_divided(run, trained):
    with np.load(trained) as plain:
        np.savez(trained, images=plain["images"][:-1], labels=plain["labels"][:-1])
    code, _, err = run("extract", "--layer", "fc1")
    assert code == 0
    assert "isn't known: it has changed since the network was trained on it" in err
    with FeatureFile(Path("artifacts/features.h5")) as file:
        assert file.splits == ("all",) and file.parts("all") is None


def test_a_card_without_a_division_works_and_it_is_said(run, trained):
    path = Path("artifacts/model.json")
    card = json.loads(path.read_text("utf-8"))
    del card["division"]
    path.write_text(json.dumps(card), "utf-8")
    code, _, err = run("extract", "--layer", "fc1")
    assert code == 0
    assert "the network's card is of an older cnnfeat" in err
    with FeatureFile(Path("artifacts/features.h5")) as file:
        assert file.splits == ("all",) and file.parts("all") is None


def test_pictures_behind_divided_rows_are_their_own(run, trained):
    """What the report and the plots look up again is the divided source."""
    from cnnfeat.data import open_data
    from cnnfeat.origin import recorded_data
    from cnnfeat.pictures import Pictures

    assert run("extract", "--layer", "fc1").returncode == 0
    with np.load(trained) as plain:
        images = plain["images"]
    with (
        FeatureFile(Path("artifacts/features.h5")) as file,
        open_data(recorded_data(file.provenance)) as source,
    ):
        found = Pictures(file, source)
        for row, name in enumerate(file.ids("test")):
            expected = images[int(name.removeprefix("all/"))]
            np.testing.assert_array_equal(found.one("test", row)[..., 0], expected)


def test_a_resumed_extraction_needs_the_same_division(run, trained):
    assert run("extract", "--layer", "fc1").returncode == 0
    path = Path("artifacts/model.json")
    card = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**card, "division": None}), "utf-8")
    code, _, err = run("extract", "--layer", "fc1", "--resume")
    assert code == 2 and "artifacts/features.h5" in err
    path.write_text(json.dumps(card), "utf-8")
    code, _, err = run("extract", "--layer", "fc1", "--resume")
    assert code == 0 and "is complete already" in err


@pytest.mark.slow
def test_run_and_the_three_commands_make_the_same(train, run, npz):
    Path("run.toml").write_text(
        NETWORK + 'seed = 3\n[extract]\nlayer = ["conv1", "fc1"]\n[svm]\nlayer = "fc1"\nC = 0.1\n',
        "utf-8",
    )
    code, _, err = run("run", "run.toml", "--data", npz, "--test-fraction", "0.25", "-o", "whole")
    assert code == 0, err
    train("--data", npz, "--seed", "3", "--test-fraction", "0.25")
    run("extract", "--layer", "conv1", "--layer", "fc1")
    run("svm", "--layer", "fc1", "--C", "0.1")
    with h5py.File("whole/features.h5") as one, h5py.File("artifacts/features.h5") as other:
        names = [f"{split}/{name}" for split in ("train", "test") for name in one[split]]
        assert {"train/part", "test/part", "train/fc1"} <= set(names)
        for name in names:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name][()], other[name][()])
        assert one.attrs["division"] == other.attrs["division"]
    for name in ("predictions.csv", "confusion.png"):
        assert Path("whole", name).read_bytes() == Path("artifacts", name).read_bytes()
    cards = [json.loads(Path(d, "model.json").read_text("utf-8")) for d in ("whole", "artifacts")]
    assert cards[0]["division"] == cards[1]["division"]
    assert cards[0]["test_accuracy"] == cards[1]["test_accuracy"]
    code, _, err = run("run", "run.toml", "--data", npz, "--test-fraction", "0.25", "-o", "whole")
    assert code == 0
    assert err.count("nothing has changed") == 4
    code, _, err = run("run", "run.toml", "--data", npz, "-o", "whole")
    assert code == 0
    assert "nothing has changed" not in err


def older_network(folder: Path, source: Path) -> None:
    """Save a network with a card of before sources were divided: all rows were trained on."""
    import keras

    folder.mkdir()
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), dtype="uint8", name="image")
    hidden = keras.layers.Dense(4, activation="relu", name="fc1")(
        keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))
    )
    keras.Model(image, keras.layers.Dense(2, name="fc2")(hidden)).save(folder / "model.keras")
    with open_source(str(source)) as images:
        name, fingerprint = images.name, images.fingerprint()
    card = {
        "format": "cnnfeat-model",
        "format_version": 1,
        "cnnfeat": "0.0.9",
        "tensorflow": "2.21.0",
        "keras": "3.15.1",
        "created": "2026-01-02T03:04:05+00:00",
        "config": {"data": {"source": str(source)}, "network": {}, "train": {"seed": 0}},
        "source": {"name": name, "kind": "npz", "fingerprint": fingerprint.digest,
                   "fingerprint_method": fingerprint.method},
        "classes": ["0", "1"],
        "image_shape": [8, 8, 1],
        "history": [{"epoch": 1, "loss": 0.7, "accuracy": 0.5, "val_loss": 0.7,
                     "val_accuracy": 0.5, "learning_rate": 0.002}],
        "best_epoch": 1,
        "validation_accuracy": 0.5,
        "test_accuracy": None,
        "n_train": 90,
        "n_validation": 10,
        "n_test": 0,
        "elapsed_s": 1.0,
        "model_sha256": hashlib.sha256((folder / "model.keras").read_bytes()).hexdigest(),
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(card), "utf-8")


def test_a_network_of_an_older_cnnfeat_goes_all_the_way(run, npz):
    """Its card keeps no division: everything works, and what isn't known is said everywhere."""
    unknown = "it is not known which rows the network was fitted to"
    older_network(Path("artifacts"), npz)
    code, out, _ = run("info", "artifacts/model.json")
    assert code == 0 and "90 images fitted to, 10 picked the epoch, 0 never seen" in out
    code, out, err = run("extract", "--layer", "fc1")
    assert code == 0, err
    assert "100 rows" in out
    assert "isn't known: the network's card is of an older cnnfeat" in err
    with FeatureFile(Path("artifacts/features.h5")) as file:
        assert (file.splits, file.parts("all")) == (("all",), None)
    code, out, err = run("svm", "--C", "0.1")
    assert code == 0, err
    assert f" {score(Path('artifacts'))} of 20 held-out rows" in out
    assert unknown in out and "accuracy" not in out
    code, out, _ = run("info", "artifacts/svm.json")
    assert code == 0 and unknown in out and "accuracy" not in out
    code, _, err = run("predict", "x.npz")
    assert code == 0, err
    assert "all: " in err and "of 20 right" in err and "of 80 right" in err
    assert err.count("what the network was fitted to isn't known") == 2
    code, _, err = run("predict", "artifacts/features.h5")
    assert err.count("what the network was fitted to isn't known") == 2
    code, _, err = run("report", "--embedding", "pca", "--points", "20")
    assert code == 0, err
    page = Path("artifacts/report.html").read_text("utf-8")
    assert f"score of 20 held-out rows; {unknown}" in page
    assert "accuracy of 20 held-out rows" not in page


def score(folder: Path) -> str:
    return f"{json.loads((folder / 'svm.json').read_text('utf-8'))['accuracy']:.2%}"


@pytest.fixture
def stop_at(monkeypatch) -> Callable:
    """Let an error come up at the beginning of an epoch, counted from 0."""
    from cnnfeat.network.descent import Steps

    epoch_of, made = Steps.epoch, []
    monkeypatch.setattr("cnnfeat.network.standing.SECONDS_BETWEEN", 0.0)

    def at(place: int, error: BaseException) -> list:
        def epoch(self, *args, **options):
            if len(made) == place:
                raise error
            made.append(0)
            return epoch_of(self, *args, **options)

        made.clear()
        monkeypatch.setattr(Steps, "epoch", epoch)
        return made

    return at


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(KeyboardInterrupt(), 130), (Interrupted("stopped by SIGTERM", signal_number=15), 143)],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_stopped_training_names_the_command_that_goes_on(
    train, run, npz, stop_at, *, error, exit_code
):
    Path("c.toml").write_text(NETWORK.replace("epochs = 1", "epochs = 3"), "utf-8")
    stop_at(2, error)
    code, _, err = train("--data", npz)
    assert code == exit_code
    assert "interrupted: stopped; artifacts/model.keras.training keeps 2 epochs\n" in err
    command = "cnnfeat train --config c.toml --data x.npz --resume"
    assert f"hint: {command} goes on from there" in err
    code, _, err = train("--data", npz)
    assert code == 2 and "artifacts/model.keras was begun and interrupted" in err
    made = stop_at(-1, error)
    code, out, err = run(*command.split()[1:])
    assert code == 0, err
    assert len(made) == 1 and "of 3" in out
    assert "artifacts/model.keras.training: goes on after 2 epochs\n" in err
    assert not Path("artifacts/model.keras.training").exists()
    code, out, err = run(*command.split()[1:])
    assert code == 0 and len(made) == 1 and "is complete already" in err and "of 3" in out


@pytest.mark.slow
def test_a_run_goes_on_with_its_training_by_itself(run, npz, stop_at):
    text = (
        NETWORK.replace("epochs = 1", "epochs = 3") + '[extract]\nlayer = "fc1"\n[svm]\nC = 0.1\n'
    )
    Path("c.toml").write_text(text, "utf-8")
    stop_at(2, KeyboardInterrupt())
    code, _, err = run("run", "c.toml", "--data", npz)
    assert code == 130 and "`cnnfeat run` does so by itself" in err
    made = stop_at(1, KeyboardInterrupt())
    code, _, err = run("run", "c.toml", "--data", npz)
    assert code == 0, err
    assert len(made) == 1
    stop_at(1, KeyboardInterrupt())
    Path("c.toml").write_text(text.replace("epochs = 3", "epochs = 2"), "utf-8")
    assert run("run", "c.toml", "--data", npz).returncode == 130
    made = stop_at(-1, KeyboardInterrupt())
    Path("c.toml").write_text(text.replace("epochs = 3", "epochs = 1"), "utf-8")
    code, _, err = run("run", "c.toml", "--data", npz)
    assert code == 0, err
    assert "starting over: " in err and "another epochs: 2, and now it is 1" in err
    assert len(made) == 1


@pytest.mark.slow
def test_a_committee_without_validation_goes_all_the_way(train, run, npz, monkeypatch):
    """Nobody picked an epoch, and there is no history but the members': it is said in words."""
    code, out, err = train("--data", npz, "--validation", "0", "--seeds", "3,1")
    assert code == 0, err
    assert (
        "none: no images were held back; the mean of 2 networks, after epochs 1 of 1, 1 of 1" in out
    )
    assert "seed 3 alone" in out and "seed 1 alone" in out
    code, out, _ = run("info", "artifacts/model.json")
    assert code == 0
    assert "seed 3: 1, the last kept; seed 1: 1, the last kept" in out
    assert (
        "validation none" in out and "80 images fitted to, 0 picked the epoch, 20 never seen" in out
    )
    code, out, err = run("layers")
    assert code == 0 and "seed3/fc1" in out and "seed1/conv1" in out, err
    monkeypatch.setattr("cnnfeat.cli.layers.SCREEN", 3)
    code, out, err = run("layers")
    for name in ("seed3", "seed1", "logits"):
        assert f"\n {name} " in out
    assert "seed3/fc1 " not in out and "between these: " in err
    code, out, err = run("extract", "--layer", "seed*/fc1")
    assert code == 0, err
    with FeatureFile(Path("artifacts/features.h5")) as file:
        assert file.layers == ("seed3.fc1", "seed1.fc1")
        assert set(file.parts("train")) == {Part.FITTED}
    code, out, err = run("svm", "--layer", "seed3.fc1", "--folds", "2")
    assert code == 0, err
    code, _, err = run("plot", "training", "-o", "training.png")
    assert code == 0, err
    code, _, err = run("report", "--embedding", "pca", "--points", "20")
    assert code == 0, err
    page = Path("artifacts/report.html").read_text("utf-8")
    assert page.count("No epoch was picked: the weights of the last one were kept.") == 2
    assert "Seed 3." in page and "Validation loss" not in page
    code, out, _ = train("--data", npz, "--seeds", "3,1", "--json", "--overwrite")
    document = json.loads(out)
    assert [one["seed"] for one in document["members"]] == [3, 1]
    assert document["best_epoch"] is None and document["validation_accuracy"] is not None
