"""Commands are killed before each change they make to a folder, and typed once more.

What an earlier run wrote, or this one has finished, is whole then; nothing else is left at the end.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from cnnfeat.card import file_sha256, read_card
from cnnfeat.features import verify_file, write_arrays
from cnnfeat.result import read_result
from cnnfeat.stages import StageBook
from cnnfeat.svm import load_svm

KILLED = -9
LIGHT = ["cnnfeat.cli.svm", "cnnfeat.cli.export", "cnnfeat.svm", "cnnfeat.export", "PIL.Image"]
ALL = [*LIGHT, "cnnfeat.pipeline", "cnnfeat.report.page", "cnnfeat.network.network"]
SLOW = [pytest.mark.slow, pytest.mark.timeout(7200)]
CONFIG = """
[data]
source = "digits"
[train]
epochs = 1
[extract]
layer = ["fc1"]
[svm]
C = 0.01
"""


class Ended(NamedTuple):
    """How a command ended, and how many changes it made."""

    code: int
    text: str
    n_changes: int


class Killer:
    """Types commands in a folder, each in a process of its own."""

    def __init__(self, modules: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py")), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def type(self, words: list[str], folder: Path, *, at: int | None = None) -> Ended:
        """Run a command; kill it before its change number `at`."""
        command = {"words": words, "folder": str(folder), "at": at}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def light() -> Iterator[Killer]:
    """For commands without TensorFlow."""
    killer = Killer(LIGHT)
    yield killer
    killer.close()


@pytest.fixture(scope="module")
def heavy() -> Iterator[Killer]:
    """For all commands."""
    killer = Killer(ALL)
    yield killer
    killer.close()


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A feature file of two classes in an empty folder."""
    folder = tmp_path / "work"
    (folder / "tmp").mkdir(parents=True)
    labels = np.arange(60) % 2
    features = rng.normal(size=(60, 3)).astype("float32") + labels[:, np.newaxis] * 3
    write_arrays(
        folder / "f.h5",
        {"train": {"fc1": features[:40]}, "test": {"fc1": features[40:]}},
        labels={"train": labels[:40], "test": labels[40:]},
        classes=["a", "b"],
    )
    return folder


def read_npz(folder: Path) -> None:
    with np.load(folder / "o.npz") as arrays:
        assert len({name: arrays[name] for name in arrays.files}) == len(arrays.files) > 0


def read_csv(folder: Path) -> None:
    assert (folder / "o.csv").read_text("utf-8").count("\n") == 61


def read_machine(folder: Path) -> None:
    for name, read in (("svm.skops", load_svm), ("svm.json", read_result)):
        if (folder / name).exists():
            read(folder / name)
    if (folder / "confusion.png").exists():
        with Image.open(folder / "confusion.png") as picture:
            picture.load()
    if (folder / "predictions.csv").exists():
        assert (folder / "predictions.csv").read_text("utf-8").endswith("\n")


def read_network(folder: Path) -> None:
    model = folder / "model.keras"
    if model.exists():
        card = read_card(model, sha256=file_sha256(model))  # None: of the network before
        assert card is None or card.model_sha256 == file_sha256(model)


def read_page(folder: Path) -> None:
    assert (folder / "r.html").read_text("utf-8").rstrip().endswith("</html>")


def read_run(folder: Path) -> None:
    made = folder / "made"
    StageBook(made / "run.json")
    read_network(made)
    read_machine(made)
    if (made / "features.h5").exists():
        assert verify_file(made / "features.h5").damages == ()
    if (made / "report.html").exists():
        assert (made / "report.html").read_text("utf-8").rstrip().endswith("</html>")


class Case(NamedTuple):
    """A command, what it writes, and how that is read."""

    words: list[str]
    outputs: list[str]
    read: Callable[[Path], None]
    again: tuple[str, ...] = ("--overwrite",)


CASES = {
    "export npz": Case(["export", "f.h5", "--to", "npz", "-o", "o.npz"], ["o.npz"], read_npz),
    "export csv": Case(["export", "f.h5", "--to", "csv", "-o", "o.csv"], ["o.csv"], read_csv),
    "svm": Case(
        ["svm", "f.h5", "--C", "0.01", "-o", "."],
        ["svm.skops", "svm.json", "predictions.csv", "confusion.png"],
        read_machine,
    ),
    "train": Case(
        ["train", "--data", "digits", "--epochs", "1", "-o", "model.keras"],
        ["model.keras", "model.json"],
        read_network,
    ),
    "report": Case(["report", "--features", "f.h5", "-o", "r.html"], ["r.html"], read_page),
    "run": Case(["run", "run.toml", "-o", "made"], ["made"], read_run, ()),
}


def _hidden(folder: Path) -> list[Path]:
    """What lies hidden beside outputs; what lies in temporary folders goes with these."""
    found = [path for path in folder.rglob("*") if path.name.startswith(".")]
    return [path for path in found if not path.is_relative_to(folder / "tmp")]


def _kill(killer: Killer, case: Case, folder: Path, steps: list[int], chance: random.Random) -> int:
    """Kill the command before each of some changes; return how many of them it was killed at."""
    before = {path.name for path in folder.iterdir()}
    n_killed = 0
    for step in steps:
        began_anew = not any((folder / name).exists() for name in case.outputs)
        words = case.words + ([] if began_anew else list(case.again))
        whole = [name for name in case.outputs if (folder / name).exists()]
        ended = killer.type(words, folder, at=step)
        assert ended.code in (0, KILLED), ended.text
        n_killed += ended.code == KILLED
        assert all((folder / name).exists() for name in whole)  # an older one was not lost
        if all((folder / name).exists() for name in case.outputs):
            case.read(folder)
        left = _hidden(folder)
        ended = killer.type([*case.words, *case.again], folder)
        assert ended.code == 0, ended.text
        for path in left:
            assert f"{path.name} was left by a run that was killed; removed" in ended.text
        assert _hidden(folder) == []
        assert {path.name for path in folder.iterdir()} == before | set(case.outputs)
        assert list((folder / "tmp").glob("cnnfeat-*")) == []  # TensorFlow's and Keras's may be
        case.read(folder)
        if chance.random() < 0.3 or not case.again:  # else there would be nothing to do
            for name in case.outputs:
                _remove(folder / name)
    return n_killed


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _n_changes(killer: Killer, case: Case, folder: Path) -> int:
    ended = killer.type(case.words, folder)
    assert ended.code == 0, ended.text
    assert ended.n_changes > 3
    if not case.again:
        for name in case.outputs:
            _remove(folder / name)
    return ended.n_changes


@pytest.mark.parametrize(("name", "n_kills"), [("export npz", 2), ("svm", 1)])
def test_killed_commands_leave_whole_files(light, folder, name, n_kills):
    case, chance = CASES[name], random.Random(1)
    last = _n_changes(light, case, folder)
    steps = sorted(chance.sample(range(1, last + 1), min(n_kills, last)))
    assert _kill(light, case, folder, steps, chance) == len(steps)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", CASES)
def test_30_kills_leave_whole_files(heavy, folder, name):
    (folder / "run.toml").write_text(CONFIG)
    case, chance = CASES[name], random.Random(2)
    last = _n_changes(heavy, case, folder)
    steps = [chance.randrange(1, last + 1) for _ in range(30)]
    assert _kill(heavy, case, folder, steps, chance) >= 20
