"""What the SVM stage really writes is what the report reads."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from cnnfeat.errors import FeatureFileError
from cnnfeat.features import FeatureFile
from cnnfeat.options import SvmOptions
from cnnfeat.report.evidence import read_predictions
from cnnfeat.report.page import write_report
from cnnfeat.result import read_result
from cnnfeat.svm import svm_stage


def test_the_stage_s_outputs_are_read(run, tmp_path):
    shutil.copy(run.folder / "features.h5", tmp_path)
    result = svm_stage(
        tmp_path / "features.h5", tmp_path, options=SvmOptions(layer=("all",), grid=(0.01, 0.1))
    )
    read = read_result(tmp_path / "svm.json")
    assert [score.layer for score in read.layers] == ["conv2", "fc1"]
    assert read.best.accuracy == result.accuracy
    assert read.mcnemar is not None
    with FeatureFile(tmp_path / "features.h5") as file:
        predictions = read_predictions(tmp_path / "predictions.csv", file=file, result=read)
    np.testing.assert_array_equal(predictions.labels, run.labels)
    assert np.mean(predictions.labels == predictions.predicted) == result.accuracy
    report = write_report(tmp_path, tmp_path / "report.html", embedding="pca")
    (said,) = report.missing  # the features have left their network behind
    assert said.startswith(f"No filters and no training curve: {tmp_path / 'features.h5'} names ")
    assert "which lies neither beside it nor in the current folder" in said
    assert "Mistakes" in report.sections
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "; cross-validated: accuracy in 5-fold cross-validation on " in page


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{id},{label},{label},nan", "line 2: damaged: the margin 'nan' is no number"),
        ("{id},{label},{label},inf", "line 2: damaged: the margin 'inf' is no number"),
        ("{id},{label},{label},much", "line 2: damaged: the margin 'much' is no number"),
        ("{id},{label},{label}", "line 2: damaged: the margin '' is no number"),
        ("{id},{label},zz,1", "line 2: damaged: predicted 'zz' is none of the machine's classes"),
        ("{id}", "line 2: damaged: label '' is none of the machine's classes"),
        ("{id},{label},{label},1\n{id},{label},{label},1", "damaged: it has '{id}' twice"),
        (None, "damaged: it has no predictions"),
    ],
)
def test_lines_that_are_no_predictions_are_named(run, tmp_path, line, words):
    path = tmp_path / "predictions.csv"
    header, first, *_ = run.folder.joinpath("predictions.csv").read_text("utf-8").splitlines()
    name, label, *_ = first.split(",")
    lines = [header] if line is None else [header, line.format(id=name, label=label)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    read = read_result(run.folder / "svm.json")
    with (
        FeatureFile(run.folder / "features.h5") as file,
        pytest.raises(FeatureFileError) as raised,
    ):
        read_predictions(path, file=file, result=read)
    assert raised.value.message.startswith(str(path))
    assert raised.value.message.endswith(words.format(id=name))
