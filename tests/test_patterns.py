"""Texts that mean several layers."""

from __future__ import annotations

import warnings

import pytest

from cnnfeat.patterns import is_pattern, match_names, split_side_by_side


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("conv2", ["conv2"]),
        ("conv2+fc1", ["conv2", "fc1"]),
        ("a+b", ["a+b"]),
        ("a+b+c", ["a+b", "c"]),
        ("c+a+b+a", ["c", "a+b", "a"]),
        ("a+", ["a", ""]),
        ("+", ["", ""]),
    ],
)
def test_a_text_is_split_outside_of_names(text, names):
    assert split_side_by_side(text, {"a+b"}.__contains__, longest=1) == names


def test_the_longest_name_is_meant():
    known = {"a+b", "a+b+c"}
    assert split_side_by_side("a+b+c+a+b", known.__contains__, longest=2) == ["a+b+c", "a+b"]


@pytest.mark.parametrize("text", ["conv*", "fc?", "conv[12]"])
def test_what_a_pattern_is(text):
    assert is_pattern(text)
    assert not is_pattern("conv2/relu:0")


@pytest.mark.parametrize("pattern", ["conv[2-1]", "[z-a]*"])
def test_a_range_that_runs_backwards_stands_for_itself(pattern):
    assert match_names(["conv1", "conv2", "z", pattern], pattern) == [pattern]


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("conv[[1]", ["conv1"]),
        ("conv[&&1]", ["conv1"]),
        ("conv[0--1]", ["conv1"]),
        ("[!f]*", ["conv1"]),
    ],
)
def test_brackets_hold_plain_characters_without_a_warning(pattern, matched):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert match_names(["conv1", "fc1"], pattern) == matched
