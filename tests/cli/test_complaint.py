"""What is wrong with a command is said in one way."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian", "error: there is no command trian\nhint: did you mean 'train'?"),
        ("nothing", "error: there is no command nothing\nhint: cnnfeat --help says what it takes"),
        ("plot filtrs", "error: there is no command filtrs\nhint: did you mean 'filters'?"),
        ("extract --layr x", "error: there is no option --layr\nhint: did you mean '--layer'"),
        ("svm --zzz", "error: there is no option --zzz\nhint: cnnfeat svm --help says what it"),
        (
            "data fetch",
            "error: missing argument 'NAME...'\nhint: cnnfeat data fetch --help says what it takes",
        ),
        (
            "export",
            "error: missing option '--to'. Choose from: npz, npy, csv, parquet, ",
        ),
        ("svm --C", "error: option '--C' requires an argument"),
        ("extract --limit x", "error: --limit must be a whole number (at least 1), not 'x'"),
        (
            "extract --scale unti",
            "error: --scale must be 'unit' or 'symmetric' or 'raw' or 'imagenet' or 'caffe', not "
            "'unti'\nhint: did you mean 'unit'?",
        ),
        ("plot top --unit x", "error: invalid value for '--unit': 'x' is not a valid integer"),
        ("svm --fol\x1bds 3", "error: there is no option --fol\\x1bds\n"),
    ],
    ids=lambda value: value.split("\n")[0].replace(" ", "_").replace("\x1b", ""),
)
def test_what_is_mistyped_is_told_as_everything_else(cnnfeat, words: str, said: str):
    code, out, err = cnnfeat(*words.split(" "))
    assert (code, out) == (2, "")
    assert err.startswith(said)
    assert "Usage" not in err
    assert "Error" not in err


def test_a_group_alone_says_what_it_takes(cnnfeat):
    code, _, err = cnnfeat("plot")
    assert code == 2
    assert err.startswith("Usage: cnnfeat plot")
    assert "Traceback" not in err
