"""What is typed next."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnnfeat.address import place_of
from cnnfeat.cli.extract import _next
from cnnfeat.cli.session import typed
from cnnfeat.records import ExtractResult, ProbeOutput


def test_what_lies_where_a_command_looks_for_it_needs_no_word(monkeypatch):
    default = Path("artifacts")
    assert typed("extract", "--layer", "fc1", model=default / "model.keras") == (
        "cnnfeat extract --layer fc1"
    )
    assert typed("svm", argument=default / "features.h5") == "cnnfeat svm"
    assert typed("svm", argument="my f.h5") == "cnnfeat svm 'my f.h5'"
    assert typed("predict", "P", svm=default / "x.skops") == (
        "cnnfeat predict P --svm artifacts/x.skops"
    )
    monkeypatch.setenv("CNNFEAT_DIR", "there")
    assert typed("svm", argument=default / "features.h5") == "cnnfeat svm artifacts/features.h5"
    assert typed("svm", argument="there/features.h5") == "cnnfeat svm"


FC1 = ProbeOutput("fc1", "fc1:0", "Relu", (6,), "float32", (6,), "float32", "none")


@pytest.mark.parametrize(
    ("layers", "labelled", "shard", "out", "said"),
    [
        (1, True, None, "artifacts/features.h5", "cnnfeat svm"),
        (2, True, None, "f.h5", "cnnfeat svm --layer all f.h5"),
        (2, False, None, "f.h5", "cnnfeat export --to npz f.h5"),
        (1, True, "3/20", "set", "cnnfeat merge set"),
        (1, True, None, "s3://bucket/f.h5", "cnnfeat svm s3://bucket/f.h5"),
    ],
)
def test_what_features_are_for(layers, labelled, shard, out, said):
    result = ExtractResult(out, {"all": 3}, (FC1,) * layers, 9, 1.0, labelled=labelled)
    assert _next(result, place_of(out), shard) == said
