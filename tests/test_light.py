"""What goes without TensorFlow, and what is said where it doesn't."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from cnnfeat.features import write_arrays

_ROOT = Path(__file__).parents[1]
_WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

sys.meta_path.insert(0, Missing())
from cnnfeat.cli import main

for words in sys.argv[1:]:
    try:
        main(words.split())
    except SystemExit as done:
        print("exit", done.code)
"""


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    """Two classes apart from each other, with a test split."""
    path = tmp_path_factory.mktemp("light") / "features.h5"
    chance = np.random.default_rng(0)
    labels = np.arange(60) % 2
    rows = (chance.normal(size=(60, 4)) + 6 * labels[:, None]).astype(np.float32)
    write_arrays(
        path,
        {"train": {"fc1": rows[:40]}, "test": {"fc1": rows[40:]}},
        labels={"train": labels[:40], "test": labels[40:]},
        classes=("a", "b"),
    )
    return path


def without(folder: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _WITHOUT, *commands],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_machines_are_trained_and_asked(features) -> None:
    done = without(
        features.parent,
        "svm features.h5 -o out",
        "predict features.h5 --svm out/svm.skops --split test",
        "info features.h5",
        "verify features.h5",
        "export features.h5 --to npz -o arrays.npz",
    )
    assert done.stdout.count("exit 0") == 5, done.stderr
    assert "100.00% of 20 test rows" in done.stdout
    with np.load(features.parent / "arrays.npz") as arrays:
        assert len(arrays.files) > 0


def test_what_needs_it_says_so(tmp_path) -> None:
    (tmp_path / "x.keras").write_bytes(b"")
    done = without(tmp_path, "train --data digits", "layers x.keras", "run")
    assert done.stdout.count("exit 4") == 3
    said = "error: this needs tensorflow, which is not installed here"
    assert done.stderr.count(said) == 3
    assert done.stderr.count("hint: pip install cnnfeat brings TensorFlow") == 3
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_an_environment_without_tensorflow(features, tmp_path) -> None:
    """The light way, as a page of the documentation has it; pip reaches a package index for it."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    folder = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    listed = Path(folder.strip()) / "cnnfeat" / "requirements-light.txt"
    for words in (["--no-deps", str(_ROOT)], ["-r", str(listed)]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *words], check=True)
    there = {path.name for path in Path(folder.strip()).iterdir()}
    assert not {"tensorflow", "keras"} & there

    program = """
from cnnfeat import FeatureFile, LinearSVM

with FeatureFile("features.h5") as file:
    svm = LinearSVM(C=1.0).fit(file.read("train", "fc1"), file.labels("train"))
    print(svm.score(file.read("test", "fc1"), file.labels("test")))
"""
    said = {}
    for words in (
        ["-c", program],
        ["-m", "cnnfeat", "svm", "features.h5", "-o", "light"],
        ["-m", "cnnfeat", "predict", "features.h5", "--svm", "light/svm.skops", "--split", "test"],
        ["-m", "cnnfeat", "verify", "features.h5"],
        ["-m", "cnnfeat", "export", "features.h5", "--to", "csv", "-o", "light.csv"],
    ):
        done = subprocess.run(
            [python, *words], cwd=features.parent, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        said[words[-1]] = done.stdout
    assert said[program] == "1.0\n"
    assert "100.00% of 20 test rows" in said["light"]


def test_the_light_list_is_all_that_is_needed_but_tensorflow() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (_ROOT / "src" / "cnnfeat" / "requirements-light.txt").read_text("utf-8").splitlines()
    listed = {str(Requirement(line)) for line in lines if not line.startswith("#")}
    needed = {str(one) for one in map(Requirement, project["dependencies"])}
    left_out = {one for one in needed if Requirement(one).name in ("tensorflow", "keras")}
    assert listed == needed - left_out
    assert len(left_out) == 2
