"""The whole pipeline on digits: done once, and again only as far as something changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cnnfeat import pipeline
from cnnfeat.errors import OutputExistsError
from cnnfeat.options import ArchitectureOptions, ConvOptions, RunOptions, parse_config
from cnnfeat.pipeline import run_pipeline

CONFIG = parse_config(
    {
        "data": {"source": "digits"},
        "network": {"conv": [{"filters": 4, "kernel_size": 3}], "dense": [{"units": 16}]},
        "train": {"epochs": 5, "learning_rate": 0.01},
        "extract": {"layer": ["conv1", "fc1"]},
        "svm": {"C": 0.1},
    }
)


def reused(result: pipeline.RunResult) -> list[str]:
    return [stage.name for stage in result.stages if stage.reused]


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
    changed = dataclasses.replace(CONFIG, network=network, extract=RunOptions().extract)
    changed = dataclasses.replace(
        changed, extract=dataclasses.replace(changed.extract, layer=("conv1",))
    )
    result = run_pipeline(changed, folder=folder)
    assert reused(result) == []
    assert result.svm_layer == "conv1"


def test_a_strangers_file_is_not_replaced(tmp_path: Path):
    (tmp_path / "model.keras").write_text("precious", "utf-8")
    with pytest.raises(OutputExistsError, match=r"model\.keras exists and is not what"):
        run_pipeline(CONFIG, folder=tmp_path)
    assert (tmp_path / "model.keras").read_text("utf-8") == "precious"


def test_an_interrupted_extraction_is_gone_on_with(done, tmp_path: Path, monkeypatch):
    """What an interrupted run left is picked up, not thrown away."""
    from cnnfeat.errors import Interrupted

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
    original = pipeline._extract_features

    def spy(run, network, out, *, resume):
        resumed.append(resume)
        return original(run, network, out, resume=resume)

    monkeypatch.setattr(pipeline, "_extract_features", spy)
    result = run_pipeline(config, folder=tmp_path)
    assert reused(result) == ["train"]
    assert resumed == [True]
    assert np.isfinite(result.svm_accuracy)
