"""The space of a search: what is one, what is none, and which runs are checked before the first trial."""

import pytest

from unetseg.errors import UserError
from unetseg.options.compose import compose, runs_of
from unetseg.options.schema import Ablate
from unetseg.options.space import assignments, combinations, edges, is_search, space_of

optuna = pytest.importorskip("optuna")
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402


@pytest.mark.parametrize(("text", "distribution"), [
    ("optimizer.lr=tag(log,interval(1e-5,1e-2))", FloatDistribution(1e-5, 1e-2, log=True)),
    ("optimizer.lr=interval(0,1)", FloatDistribution(0.0, 1.0)),
    ("data.batch_size=int(interval(4,32))", IntDistribution(4, 32)),
    ("data.batch_size=int(tag(log,interval(4,32)))", IntDistribution(4, 32, log=True)),
    ("data.batch_size=range(4,33,4)", IntDistribution(4, 32, step=4)),
    ("optimizer.lr=range(0,1,0.5)", CategoricalDistribution(["0.0", "0.5"])),
    ("model.skip=concat,[none,add,add,add]", CategoricalDistribution(["concat", "[none,add,add,add]"])),
    ("early_stopping=null,3", CategoricalDistribution(["null", "3"])),
])  # fmt: skip
def test_hydras_sweeps_are_optunas_distributions(text, distribution):
    fixed, space, texts = space_of(["data=synthetic", text])
    key, _, value = text.partition("=")
    assert fixed == ["data=synthetic"]
    assert space == {key: distribution}
    assert texts == {key: value}


@pytest.mark.parametrize(("text", "reason"), [
    ("optimizer.lr=0.1", "has nothing to choose"),
    ("seed=0,1,2", "seed is not what a search chooses"),
    ("data.size=64,128", "data.size is not what"),
    ("name=a,b", "name is not what"),
    ("data=pets,synthetic", "data is a group of options"),
    ("optimizer.lr=interval(1,0.1)", "begins where it ends"),
    ("optimizer.lr=tag(log,interval(0,1))", "has no logarithm"),
    ("optimizer.lr=tag(uniform,interval(0,1))", "has the tag uniform"),
    ("model.skip=tag(log,choice(add,concat))", "has the tag log"),
    ("model.skip=shuffle(add,concat)", "is no space"),
    ("model.skip=glob(*)", "is no space"),
])  # fmt: skip
def test_what_is_no_space_is_refused(text, reason):
    with pytest.raises(UserError, match=reason) as refusal:
        space_of(["data=synthetic", text])
    assert "accepted:" in str(refusal.value)
    assert "try:" in str(refusal.value)


def test_the_edges_try_each_choice_and_both_ends_once():
    runs = edges(["seed=1", "optimizer.lr=interval(0.1,0.5)", "model.skip=concat,add,none"])
    assert runs == [
        ["seed=1", "optimizer.lr=0.1", "model.skip=concat"],
        ["seed=1", "optimizer.lr=0.5", "model.skip=concat"],
        ["seed=1", "optimizer.lr=0.1", "model.skip=add"],
        ["seed=1", "optimizer.lr=0.1", "model.skip=none"],
    ]


def test_the_combinations_of_a_finite_space_are_counted():
    finite = space_of(["model.skip=concat,add,none", "data.batch_size=range(4,17,4)"])[1]
    assert combinations(finite) == 12
    assert combinations(space_of(["model.skip=concat,add", "optimizer.lr=interval(0,1)"])[1]) == float("inf")


def test_a_trials_values_come_back_to_the_last_digit():
    lr = 0.0004043878009515106
    options = compose("ablate", Ablate, ["data=synthetic", *assignments({"optimizer.lr": lr, "trainer.max_epochs": 3})])
    assert options.optimizer.lr == lr
    assert options.trainer["max_epochs"] == 3


def test_a_search_has_trials_and_a_sweep_has_none():
    assert is_search(["search=optuna", "model.skip=concat,add"])
    assert not is_search(["search=null", "model.skip=concat,add"])
    for alone in ("search=optuna", "trials=5"):
        with pytest.raises(UserError, match="try: search=optuna trials=50"):
            compose("ablate", Ablate, ["data=synthetic", alone])
    with pytest.raises(UserError, match="try: search=optuna trials=50"):
        runs_of(["optimizer.lr=interval(0,1)"])
