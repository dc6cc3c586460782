"""`cnnfeat svm`, typed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cnnfeat.cli.svm import _show_confusion
from cnnfeat.features import write_arrays


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with artifacts/features.h5: two layers of real digits."""
    X, y = load_digits(return_X_y=True)
    X, y = X.astype(np.float32).reshape(-1, 8, 8), y.astype(np.int64)
    parts = {"train": slice(0, 500), "test": slice(500, 700)}
    (tmp_path / "artifacts").mkdir()
    write_arrays(
        tmp_path / "artifacts" / "features.h5",
        {split: {"whole": X[part], "half": X[part, :4]} for split, part in parts.items()},
        labels={split: y[part] for split, part in parts.items()},
        classes=[str(k) for k in range(10)],
        attributes={"network": "model.keras", "network_sha256": "ab", "network_test_accuracy": 0.9},
    )
    return tmp_path


@pytest.fixture
def cnnfeat(cnnfeat) -> Callable:
    """Type a command in a folder and expect an exit code."""

    def run(folder: Path, *args: str, code: int = 0, **environment: str):
        done = cnnfeat(*args, folder=folder, **environment)
        assert done.returncode == code, done.stderr
        return done

    return run


def test_default_run_writes_and_prints(cnnfeat, folder: Path):
    done = cnnfeat(folder, "svm", "--layer", "whole", "--C", "0.01")
    names = {path.name for path in (folder / "artifacts").iterdir()}
    assert names == {"features.h5", "svm.skops", "svm.json", "predictions.csv", "confusion.png"}
    document = json.loads((folder / "artifacts" / "svm.json").read_text("utf-8"))
    assert f"{document['accuracy']:.2%} of 200 test rows (95% interval" in done.stdout
    assert "the network itself  90.00%" in done.stdout
    assert "precision" in done.stdout
    assert done.stdout.splitlines()[-1] == "next: cnnfeat predict PICTURE"
    assert (folder / "artifacts" / "confusion.png").read_bytes()[:4] == b"\x89PNG"


def test_the_next_command_names_what_lies_elsewhere(cnnfeat, folder: Path):
    done = cnnfeat(folder, "svm", "--layer", "half", "--C", "0.01", "-o", "my machine")
    expected = "next: cnnfeat predict PICTURE --svm 'my machine/svm.skops'"
    assert done.stdout.splitlines()[-1] == expected


def test_names_too_wide_for_a_terminal_are_numbers_of_columns(monkeypatch, capsys):
    names = ["aeroplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship"]
    result = types.SimpleNamespace(classes=names, confusion=np.eye(9, dtype=np.int64) * 1_000)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    for width, numbered in [(70, True), (80, False), (120, False)]:
        monkeypatch.setenv("COLUMNS", str(width))
        _show_confusion(result)
        out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        heads = [str(k) for k in range(1, 10)] if numbered else names
        row = ["1", "aeroplane"] if numbered else ["aeroplane"]
        words = out.replace("─", "").split()
        assert words[:3] == ["true", "\\", "predicted"]
        assert words[3 : 13 + len(row) - 1] == [*heads, *row]
        assert words.count("1,000") == 9
        assert max(map(len, out.splitlines())) <= width


def test_json_is_the_document(cnnfeat, folder: Path):
    done = cnnfeat(folder, "svm", "--layer", "half", "--C", "0.01", "--json", "-o", "out")
    assert json.loads(done.stdout) == json.loads((folder / "out" / "svm.json").read_text("utf-8"))


def test_all_layers_are_compared(cnnfeat, folder: Path):
    done = cnnfeat(folder, "svm", "--layer", "all", "--grid", "0.001,0.01", "--folds", "3")
    assert "McNemar's p" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {"whole", "half"} <= {words[0] for words in lines if words}
    assert (folder / "artifacts" / "layers.png").exists()


def test_several_layers_and_none_named_lists_them(cnnfeat, folder: Path):
    done = cnnfeat(folder, "svm", code=2)
    error, hint = done.stderr.splitlines()
    assert error.endswith("features.h5 holds 2 layers: whole, half")
    assert hint == "hint: name one: --layer whole; or --layer all, which compares them"


def test_no_features_yet_names_the_command(cnnfeat, tmp_path: Path):
    done = cnnfeat(tmp_path, "svm", code=2)
    assert "cnnfeat extract" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_output_that_exists_is_refused(cnnfeat, folder: Path):
    old = folder / "artifacts" / "svm.json"
    old.write_text("old")
    done = cnnfeat(folder, "svm", "--layer", "half", "--C", "1", code=2)
    assert "--overwrite" in done.stderr
    assert old.read_text() == "old"
    cnnfeat(folder, "svm", "--layer", "half", "--C", "1", "--overwrite")
    assert old.read_text() != "old"


def test_a_file_that_is_not_there_is_said_before_outputs_that_are(cnnfeat, folder: Path):
    (folder / "artifacts" / "svm.json").write_text("old")
    done = cnnfeat(folder, "svm", "nope.h5", code=2)
    assert "nope.h5" in done.stderr and "exists" not in done.stderr
    cnnfeat(folder, "svm", "nope.h5", "-o", "elsewhere", code=2)
    assert not (folder / "elsewhere").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--C", "-1"], "--C must be more than 0"),
        (["--C", "0"], "--C must be more than 0"),
        (
            ["--C", "much"],
            "--C must be a number (more than 0 and at most 1e+09) or 'auto', not 'much'",
        ),
        (["--folds", "1"], "--folds must be at least 2"),
        (["--test-fraction", "0"], "--test-fraction must be more than 0"),
        (["--test-fraction", "1"], "at most 0.9, not 1"),
        (["--min-per-class", "0"], "--min-per-class must be at least 1"),
        (["--kernel", "sigmoid"], "'linear'"),
        (["--gamma", "0"], "--gamma must be more than 0"),
        (["--pca", "0"], "--pca must be at least 1"),
        (["--grid", "1"], "needs at least 2 different values above 0"),
        (["--grid", "1,-1"], "needs at least 2 different values above 0"),
        (["--grid", "a,b"], "no list of numbers"),
        (["--memory", "lots"], "no size"),
        (["--memory", "1MiB"], "at least 64MiB"),
        (["--layer", "whol9"], "whol"),
    ],
)
def test_options_out_of_range_say_what_is_allowed(
    cnnfeat, folder: Path, args: list[str], words: str
):
    code = 4 if args[0] == "--layer" else 2
    done = cnnfeat(folder, "svm", *args, code=code)
    assert words in done.stderr
    assert sorted(path.name for path in (folder / "artifacts").iterdir()) == ["features.h5"]


def seen_rows(folder: Path, *, n_odd: int = 40) -> Path:
    """Rows of two classes, all of them fitted to."""
    X = np.random.default_rng(0).standard_normal((80, 3)).astype(np.float32)
    y = np.where(np.arange(80) < n_odd, 1, 0)
    write_arrays(
        folder / "seen.h5",
        {"train": {"a": X}},
        labels={"train": y},
        parts={"train": np.ones(80, np.uint8)},
        classes=["cat", "dog"],
    )
    return folder / "seen.h5"


def test_a_score_of_seen_rows_is_called_none_but_a_score(cnnfeat, folder: Path):
    words = "the network was fitted to these rows: this is no accuracy on new pictures"
    done = cnnfeat(folder, "svm", str(seen_rows(folder)), "--C", "1", "-o", "out")
    assert "held-out rows (95% interval" in done.stdout
    assert words in " ".join(done.stdout.split())
    assert not re.search(r"^(balanced )?accuracy", done.stdout, re.MULTILINE)
    assert json.loads((folder / "out" / "svm.json").read_text("utf-8"))["caveat"] == words
    done = cnnfeat(folder, "svm", "seen.h5", "--C", "1", "--cv", "-o", "cv")
    assert "cross-validated score" in done.stdout
    assert words in " ".join(done.stdout.split())


def test_a_class_of_one_picture_exits_with_three_and_a_way_on(cnnfeat, folder: Path):
    done = cnnfeat(folder, "svm", str(seen_rows(folder, n_odd=1)), "--C", "1", "-o", "out", code=3)
    assert "class 'dog' has 1" in done.stderr


def test_bad_features_exit_with_three(cnnfeat, folder: Path):
    X = np.full((40, 3), np.nan, np.float32)
    path = folder / "nan.h5"
    write_arrays(path, {"train": {"a": X}}, labels={"train": np.arange(40) % 2}, classes=["x", "y"])
    assert "NaN, infinite or immense features" in cnnfeat(folder, "svm", "nan.h5", code=3).stderr


def test_environment_gives_defaults(cnnfeat, folder: Path):
    done = cnnfeat(
        folder, "svm", "--layer", "half", "--json", CNNFEAT_SVM_C="0.25", CNNFEAT_DIR="artifacts"
    )
    assert json.loads(done.stdout)["C"] == 0.25


def test_neither_tensorflow_nor_keras_is_loaded(folder: Path):
    code = (
        "import sys\n"
        "from cnnfeat.cli import main\n"
        "try:\n"
        "    main(['svm', '--layer', 'half', '--C', '1', '-q'])\n"
        "finally:\n"
        "    print([m for m in ('tensorflow', 'keras') if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr.strip() == "[]"


def _ticks(stat: Path) -> int:
    """Read how much a process has computed, all its threads together."""
    return sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13]))


@pytest.mark.slow
def test_ctrl_c_ends_the_search_for_c(tmp_path: Path):
    random = np.random.default_rng(0)
    y = np.arange(20_000) % 10
    X = random.standard_normal((20_000, 1_500)).astype(np.float32)
    write_arrays(
        tmp_path / "wide.h5",
        {"train": {"a": X}},
        labels={"train": y},
        classes=[str(k) for k in range(10)],
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnfeat", "svm", "wide.h5", "-o", "out"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    while "rows of 1,500 features" not in process.stderr.readline():
        assert process.poll() is None
    stat = Path(f"/proc/{process.pid}/stat")
    begun = _ticks(stat)
    while _ticks(stat) < begun + 1.5 * os.sysconf("SC_CLK_TCK"):  # into the search
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert "cross-validation" not in errors  # what is said when the search is over
    assert process.returncode == 130
    assert "nothing was written" in errors
    assert not (tmp_path / "out").exists()
