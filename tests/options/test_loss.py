"""The loss as an option: a name, or a table of names and weights, in every place where options are written."""

import pytest
import yaml
from conftest import TINY

from unetseg.errors import UserError
from unetseg.options import recorded
from unetseg.options.call import overrides_of
from unetseg.options.compose import compose, compose_runs, runs_of
from unetseg.options.help import help_text
from unetseg.options.schema import Train
from unetseg.options.settings import axes_of, differences, run_name, setting_name
from unetseg.runs.wandb_run import flat_config

SYNTHETIC = "data=synthetic"
SUM = "loss={focal:0.5,dice:1}"


def options(*overrides: str) -> Train:
    return compose("train", Train, [SYNTHETIC, *overrides])


def message(*overrides: str) -> str:
    """Return what the user is told about wrong overrides."""
    with pytest.raises(UserError) as caught:
        options(*overrides)
    return str(caught.value)


GIVEN = [
    ("loss=lovasz", "lovasz"),
    (SUM, {"dice": 1.0, "focal": 0.5}),
    ("loss={mcc:1}", "mcc"),
    ("loss={mcc:2}", {"mcc": 2.0}),
    ("loss={focal:{weight:1}}", "focal"),
    ("loss={tversky:{alpha:0.3,beta:0.7}}", {"tversky": {"weight": 1.0, "alpha": 0.3, "beta": 0.7}}),
    ("loss={focal:{gamma:0},dice:2}", {"dice": 2.0, "focal": {"weight": 1.0, "gamma": 0.0}}),
]


@pytest.mark.parametrize(("override", "kept"), GIVEN, ids=[case[0] for case in GIVEN])
def test_a_table_is_kept_in_one_form_and_order(override, kept):
    loss = options(override).loss
    assert loss == kept
    assert isinstance(loss, str) or [*loss] == [*kept]


WRONG = [
    ("loss=focl", "loss=focl is not accepted", "accepted: focal, ", "try: loss=focal"),
    ("loss={focl:1}", "loss=focl is not a loss", "accepted: focal, ", "try: 'loss={focal:1}'"),
    ("loss={focal:{gama:1}}", "focal has no parameter gama", "accepted: gamma, weight", "'loss={focal:{gamma:1}}'"),
    ("loss={dice:{gamma:1}}", "dice has no parameter gamma", "accepted: weight", "'loss={dice:{weight:1}}'"),
    ("loss={dice:0}", "loss={dice:{weight:0}} is not accepted", "above 0 for weight", "weight:0.5"),
    ("loss={dice:true}", "loss={dice:{weight:true}} is not accepted", "above 0 for weight", "weight:0.5"),
    ("loss={focal:{gamma:-1}}", "loss={focal:{gamma:-1}} is not accepted", "from 0 for gamma", "gamma:0.5"),
    ("loss={tversky:{beta:0}}", "loss={tversky:{beta:0}} is not accepted", "above 0 for beta", "beta:0.5"),
    ("loss={soft_cross_entropy:{smoothing:1}}", "smoothing:1}} is not accepted", "below 1 for smoothing", "0.5"),
    ("loss=dice:1", "loss=dice:1 is not accepted", "in quotes", "try: 'loss={dice:1,focal:0.5}'"),
    ("loss={}", "loss", "a table of at least one of dice", "try: 'loss={dice:1,focal:0.5}'"),
    ("loss.dice=1", "loss.dice is not an option", "a table of names and weights", "try: loss=..."),
    ("class_weights=balance", "class_weights=balance is not", "null, balanced, or a number", "class_weights=balanced"),
    ("class_weights=[0,0]", "class_weights=[0,0] is not", "not all of them 0", "try: class_weights=balanced"),
    ("class_weights=[1,-1]", "class_weights=[1,-1] is not", "a number from 0", "try: class_weights=balanced"),
    ("class_weights=[1,2,3] loss=bce", "[1,2,3] for 2 classes", "each of background, pet", "class_weights=[1,1]"),
    ("class_weights=balanced", "does nothing to loss=dice", "bce, bce_dice, ", "try: class_weights=null"),
    (
        "class_weights=balanced loss={mcc:1,dice:1}",
        "does nothing to loss={dice:1,mcc:1}",
        "focal",
        "loss=cross_entropy",
    ),
    ("boundary_weight=0", "boundary_weight=0 is not", "above 0", "try: boundary_weight=10"),
    ("boundary_weight=10", "does nothing to loss=dice", "a table with one: bce", "try: boundary_weight=null"),
]


@pytest.mark.parametrize(("override", "given", "accepted", "advice"), WRONG, ids=[case[0] for case in WRONG])
def test_what_is_not_accepted_is_named_with_what_is_and_what_to_try(override, given, accepted, advice):
    text = message(*override.split())
    assert given in text
    assert accepted in text
    assert advice in text


def test_with_three_classes_all_losses_but_lovasz_have_weights_of_classes():
    three = "data.target=trimap"
    for loss in ("dice", "jaccard", "tversky", "mcc", "cross_entropy", "{lovasz:1,dice:1}"):
        assert options(three, f"loss={loss}", "class_weights=[1,2,3]").class_weights == [1, 2, 3]
    text = message(three, "loss=lovasz", "class_weights=balanced")
    assert "does nothing to loss=lovasz" in text
    assert "lovasz" not in text.splitlines()[1]
    assert "dice or cross_entropy with 3" in message(three, "loss={dice:1,bce:1}")


def test_a_table_is_one_value_of_a_sweep_with_a_name_for_people_and_folders():
    runs = [run.model_dump() for run in compose_runs("train", Train, runs_of([SYNTHETIC, f"loss=dice,{SUM[5:]}"]))]
    axes = axes_of(runs)
    assert axes == {"loss": ["dice", {"dice": 1.0, "focal": 0.5}]}
    assert [setting_name(run, axes)[1] for run in runs] == ["loss=dice", "loss=dice 1 + focal 0.5"]
    assert run_name(runs[1], axes) == "concat_loss=dice-1+focal-0.5_seed0"
    tversky = options("loss={tversky:{alpha:0.3,beta:0.7},dice:1}").model_dump()
    assert setting_name(tversky, axes)[1] == "loss=dice 1 + tversky 1 alpha 0.3 beta 0.7"


def test_two_tables_of_the_same_sum_are_one_run():
    with pytest.raises(UserError, match="two runs of the sweep would be the same"):
        compose_runs("train", Train, runs_of([SYNTHETIC, "loss={dice:1,focal:0.5},{focal:0.5,dice:1}"]))


def test_a_folder_with_a_table_in_its_name_needs_no_quotes(tmp_path):
    folder = tmp_path / "concat_loss=dice-1+tversky-1-alpha-0.3_seed0"
    folder.mkdir()
    (folder / "config.yaml").touch()
    assert options(f"resume={folder}").resume == str(folder)


def test_a_table_comes_back_from_the_config_of_a_run(tmp_path):
    before = compose("train", Train, [*TINY, SUM])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(before.model_dump(), sort_keys=False))
    known = recorded.read_training(tmp_path / "config.yaml")
    assert recorded.apply_overrides("train", Train, known, []) == before
    changed = recorded.apply_overrides("train", Train, known, ["loss={mcc:0.5}"])
    assert changed.loss == {"mcc": 0.5}
    assert len(differences(known, changed.model_dump())) == 1


def test_a_config_that_is_older_than_the_weights_has_none(tmp_path):
    older = compose("train", Train, list(TINY)).model_dump(exclude={"class_weights", "boundary_weight"})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(older))
    known = recorded.read_training(tmp_path / "config.yaml")
    assert (known["loss"], known["class_weights"], known["boundary_weight"]) == ("dice", None, None)


def test_a_table_is_given_in_python_help_and_wandb():
    keywords = {"loss": {"dice": 1, "tversky": {"alpha": 0.3}}, "class_weights": None}
    given = overrides_of([], keywords, "")
    assert options(*given).loss == {"dice": 1.0, "tversky": {"weight": 1.0, "alpha": 0.3}}
    assert flat_config(options(SUM))["loss"] == "dice 1 + focal 0.5"
    assert "loss={dice:1,focal:0.5}" in help_text("train", Train, options(SUM).model_dump(), "")
