"""The rule by which rows are held out."""

import numpy as np
import pytest

from cnnfeat.errors import DataError
from cnnfeat.parts import DivisionRule, hold_out, pack_parts, unpack_parts


def test_every_class_gives_its_share():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    held = hold_out(labels, 0.2, seed=0)
    assert [int(held[labels == k].sum()) for k in range(3)] == [20, 10, 2]


def test_two_rows_of_a_class_are_one_for_each_side():
    labels = np.array([0] * 50 + [1, 1])
    assert hold_out(labels, 0.01, seed=3)[50:].sum() == 1
    assert hold_out(labels, 0.9, seed=3)[50:].sum() == 1


def test_seed_decides_and_nothing_else():
    labels = np.arange(400) % 4
    first = hold_out(labels, 0.2, seed=1)
    np.testing.assert_array_equal(first, hold_out(labels, 0.2, seed=1))
    assert not np.array_equal(first, hold_out(labels, 0.2, seed=2))


def test_a_class_of_one_row_is_named():
    with pytest.raises(DataError, match="class 'lion' has 1 picture, and a division needs 2"):
        hold_out(np.array([0, 0, 1]), 0.2, seed=0, classes=("cat", "lion"))


@pytest.mark.parametrize("seed", range(10))
def test_groups_stay_together_and_classes_get_about_their_share(seed: int):
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, 60, 1_000)
    labels = np.where(generator.random(1_000) < 0.3, 1, 0)
    held = hold_out(labels, 0.2, seed=seed, groups=groups)
    assert not set(groups[held]) & set(groups[~held])
    for label in (0, 1):
        assert 0.12 < held[labels == label].mean() < 0.28


def test_a_rare_class_in_small_groups_is_on_both_sides():
    labels = np.array([0] * 90 + [1, 1])
    groups = np.array([*np.repeat(np.arange(9), 10), 100, 101])
    held = hold_out(labels, 0.2, seed=0, groups=groups)
    assert held[labels == 1].sum() == 1


def test_a_class_that_is_one_group_is_refused_with_its_number():
    labels, groups = np.repeat([0, 1], [6, 4]), np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    with pytest.raises(
        DataError, match="all 4 pictures of class 'b' are in 1 group, and a division needs 2"
    ):
        hold_out(labels, 0.2, seed=0, classes=("a", "b"), groups=groups)


def test_groups_that_can_not_be_divided_are_refused():
    labels, groups = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    assert hold_out(labels, 0.2, seed=0, groups=groups).sum() == 2
    crossed = np.array([0, 1, 1, 2, 2, 0])  # each pair of groups shares a class: any two hold one
    with pytest.raises(DataError, match="3 groups can't be divided"):
        hold_out(np.array([0, 0, 1, 1, 2, 2]), 0.3, seed=0, groups=crossed)


def test_the_rule_comes_back_from_json():
    rule = DivisionRule(0.2, None, seed=7, group_by="patient", min_per_class=3)
    assert DivisionRule.from_json(rule.to_json()) == rule


@pytest.mark.parametrize("n_samples", [0, 1, 60_000])
def test_parts_are_packed_and_read_back(n_samples: int):
    parts = np.random.default_rng(0).integers(0, 3, n_samples).astype(np.uint8)
    text = pack_parts(parts)
    np.testing.assert_array_equal(unpack_parts(text, n_samples=n_samples), parts)
    assert unpack_parts(text, n_samples=n_samples + 1) is None
    assert len(text) < 1_000 + n_samples // 2


def test_what_was_not_packed_here_is_unknown():
    for text in ("", "x", "AAAA", pack_parts(np.array([0, 7], np.uint8))):
        assert unpack_parts(text, n_samples=2) is None
    bomb = pack_parts(np.zeros(50_000_000, np.uint8))
    assert unpack_parts(bomb, n_samples=2) is None


def test_as_much_is_left_as_another_division_needs():
    labels = np.array([0] * 50 + [1] * 3)
    assert hold_out(labels, 0.9, seed=0, keep=2)[50:].sum() == 1
    with pytest.raises(DataError, match="class '1' has 3 pictures, and a division needs 4"):
        hold_out(labels, 0.2, seed=0, keep=3)


@pytest.mark.parametrize("seed", range(5))
def test_as_many_groups_are_left_as_another_division_needs(seed: int):
    labels = np.repeat([0, 1], [12, 90])
    groups = np.array([*([0] * 10), 1, 2, *np.repeat(np.arange(10, 19), 10)])
    held = hold_out(labels, 0.2, seed=seed, groups=groups, keep=2)
    assert len(set(groups[~held & (labels == 0)])) == 2
    both = hold_out(labels, 0.2, seed=seed, groups=groups)
    assert len(set(groups[~both & (labels == 0)])) == 1  # two small ones are nearer to a fifth
