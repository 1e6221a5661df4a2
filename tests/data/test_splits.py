"""Splits that nothing says: by ratios, groups, folds and classes."""

import itertools
from collections import Counter

import numpy as np
import pytest

from unetseg.data.splits import SPLITS, Drawing
from unetseg.errors import UserError

NAMES = [f"p{patient}_s{number}" for patient in range(20) for number in range(patient % 4 + 1)]
BY_PATIENT = "{group}_s*"


def patients(names):
    return {name.partition("_")[0] for name in names}


def test_a_group_is_in_one_split_alone_and_shares_are_kept():
    split = Drawing(group=BY_PATIENT).split(NAMES, {})
    assert sorted(itertools.chain(*split.values())) == sorted(NAMES)
    parts = [patients(split[name]) for name in SPLITS]
    assert not (parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2])
    assert [round(len(split[name]) / len(NAMES), 1) for name in SPLITS] == pytest.approx([0.7, 0.15, 0.15], abs=0.051)


def test_another_seed_draws_other_groups_and_the_same_seed_the_same():
    first, again, other = (Drawing(group=BY_PATIENT, seed=seed).split(NAMES, {}) for seed in (0, 0, 1))
    assert first == again != other


def test_the_folds_hold_every_picture_once_and_whole_groups():
    folds = [Drawing(group=BY_PATIENT, folds=5, fold=fold).split(NAMES, {}) for fold in range(5)]
    assert Counter(name for fold in folds for name in fold["test"]) == Counter(NAMES)
    for fold in folds:
        assert sorted(itertools.chain(*fold.values())) == sorted(NAMES)
        assert not patients(fold["test"]) & patients([*fold["train"], *fold["val"]])
        assert fold["val"]


def test_folds_without_groups_differ_in_size_by_one_at_most():
    sizes = [len(Drawing(folds=4, fold=fold).split(NAMES, {})["test"]) for fold in range(4)]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("group", [None, BY_PATIENT])
def test_a_rare_class_is_in_every_split_when_stratified(group):
    names = [f"p{i}_s{j}" for i in range(60) for j in range(2)]
    rare = {f"p{i}_s{j}" for i in range(0, 60, 10) for j in range(2)}
    classes = {name: frozenset({0, 1} | ({2} if name in rare else set())) for name in names}
    for seed in range(20):
        split = Drawing(ratios=(0.5, 0.25, 0.25), seed=seed, group=group).split(names, {}, classes)
        counts = np.array([len(rare & set(split[name])) for name in SPLITS])
        assert abs(counts - [6, 3, 3]).max() <= 1
        assert abs(np.array([len(split[name]) for name in SPLITS]) - [60, 30, 30]).max() <= 2


def test_splits_that_are_given_stay_and_the_others_are_drawn_from_train():
    given = {name: "test" for name in NAMES[:10]} | {name: "train" for name in NAMES[10:]}
    split = Drawing().split(NAMES, given)
    assert split["test"] == NAMES[:10]
    assert sorted(split["train"] + split["val"]) == sorted(NAMES[10:])
    assert len(split["val"]) == round(len(NAMES[10:]) * 0.15 / 0.85)


def test_a_name_that_does_not_fit_the_groups_is_told():
    with pytest.raises(UserError, match=r"picture x doesn't fit data\.group"):
        Drawing(group=BY_PATIENT).split([*NAMES, "x"], {})


def test_the_shortest_group_that_fits_is_meant():
    drawing = Drawing(group="{group}_*")
    assert drawing.group_of("a_b_c") == "a"
    assert Drawing(group="{group}/*").group_of("a/b/c") == "a"
    assert Drawing(group="*_{group}").group_of("x_9") == "9"


def test_as_many_groups_as_splits_are_one_in_each():
    names = [f"p{patient}_{number}" for patient in range(3) for number in range(9)]
    splits = Drawing(group="{group}_*").split(names, {})
    assert sorted(map(len, splits.values())) == [9, 9, 9]
