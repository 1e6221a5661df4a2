"""A wrong option is told in one message, at once, with exit status 2; what conf/ ships is right."""

import shutil
import subprocess
import sys

import hydra
import pytest
import yaml
from conftest import ROOT, quick, timed

from unetseg.errors import UserError
from unetseg.names import nearest_first
from unetseg.options.command import check_flags
from unetseg.options.command_schema import Evaluate
from unetseg.options.compose import (
    compose,
    compose_config,
    compose_runs,
    experiment_axes,
    plain_values,
    runs_of,
    values_of,
)
from unetseg.options.schema import Train
from unetseg.options.settings import axes_of, differences, override, variant
from unetseg.options.trainer import trainer_arguments
from unetseg.options.validation import describe, validate

SYNTHETIC = ["data=synthetic"]


def message(*overrides: str) -> str:
    """Return what the user is told about wrong overrides."""
    with pytest.raises(UserError) as caught:
        compose("train", Train, [*SYNTHETIC, *overrides])
    return str(caught.value)


WRONG = [
    ("model.skip=bogus", "model.skip=bogus is not accepted", "or one per level, 4 in all", "try: model.skip="),
    ("model.skip=[none,concat]", "model.skip=[none,concat]", "4 in all, finest first", "[none,concat,concat,concat]"),
    ("model.skip=[none,concat,ad,add]", "[none,concat,ad,add]", "add, ", "try:"),
    ("model.skip_flow=up", "model.skip_flow=up", "both, forward, backward", "try: model.skip_flow="),
    ("model.skip_gradient=half", "model.skip_gradient=half", "a number of 0 or more", "try: model.skip_gradient=0.5"),
    ("model.skip_gradient=-0.5", "model.skip_gradient=-0.5", "a number of 0 or more", "try: model.skip_gradient=0.5"),
    ("model.skip_gradient=inf", "model.skip_gradient=inf", "a number of 0 or more", "try: model.skip_gradient=0.5"),
    ("model.skip_gradient=true", "model.skip_gradient=true", "a number of 0 or more", "try: model.skip_gradient=0.5"),
    ("model.skip_gradient=[0,1]", "model.skip_gradient=[0,1]", "4 in all, finest first", "model.skip_gradient=0.5"),
    ("model.skip={clas:concat}", "model.skip={clas:concat} is not accepted", "of your own", "try: model.skip=concat"),
    ("model.skip=full model.stem_skip=true", "options of model don't go together", "false", "model.stem_skip=false"),
    ("model.skip_gradient=0.5 model.skip=none", "model", "whose skip is placebo or none", "=[1,1,1,1]"),
    ("model.skip_gradient=0.5 model.skip_flow=backward", "model", "whose skip_flow is not both", "=[1,1,1,1]"),
    ("model.skip_gradient=0.5 model.skip=[none,add,concat,add]", "model", "skip_gradient=1 at", "=[1,0.5,0.5,0.5]"),
    (
        "model.skip_scale=kapa",
        "model.skip_scale=kapa",
        "kappa, learned, a number above 0",
        "try: model.skip_scale=kappa",
    ),
    ("model.skip_scale=0", "model.skip_scale=0", "a number above 0", "try: model.skip_scale=0.5"),
    ("model.skip_scale=[1,2]", "model.skip_scale=[1,2]", "4 in all, finest first", "try: model.skip_scale=0.5"),
    ("model.skip_scale=kappa model.skip=placebo", "model", "there are no features to multiply", "model.skip_scale=1"),
    ("model.skip_scale=0.5 model.skip_flow=[both,both,both,backward]", "model", "skip_scale=1 at", "=[0.5,0.5,0.5,1]"),
    ("model.encoder=resnet35", "model.encoder=resnet35", "accepted: resnet34, resnet50", "try: model.encoder=resnet34"),
    ("model.encoder=vgg15", "model.encoder=vgg15", "76 names", "try: model.encoder=vgg1"),
    ("model.encoder=convnext_tiny", "model.encoder=convnext_tiny", "or tu-NAME of a model of timm", "try:"),
    ("model.encoder=tu-hf-hub:a/b", "tu-hf-hub:a/b", "letters, digits, '_', '.' and '-'", "=tu-convnext_tiny"),
    ("model.short_skips=false model.encoder=mit_b0", "model", "is not defined", "try: model.encoder=resnet50"),
    ("model.initialisation=glorot model.encoder=vgg16", "model", "starts of their own", "model.encoder=resnet50"),
    ("model.weights=absent.pth", "model.weights=absent.pth", "imagenet, null, or the path", "model.weights=null"),
    ("model.weights=tests", "model.weights=tests", "a run folder", "model.weights=null"),
    ("model.weights=encoder:imagenet", "model.weights=encoder:imagenet", "encoder: before it", "model.weights=null"),
    ("model.weights=hf:name", "model.weights=hf:name", "hf:USER/NAME[@REVISION]", "model.weights=null"),
    ("model.freeze_encoder=0", "model.freeze_encoder=0", "1 or more", "model.freeze_encoder=true"),
    ("model.freeze_encoder=half", "model.freeze_encoder=half", "false, true, or", "model.freeze_encoder=true"),
    ("data.batch_size=-1", "data.batch_size=-1", "greater than or equal to 1", "try:"),
    ("data.size=abc", "data.size=abc", "a whole number, not a text", "try:"),
    ("seed=true", "seed=true", "a whole number, not true or false", "try:"),
    ("seed=3.0", "seed=3", "a whole number, not a decimal number", "try:"),
    ("seed='3'", "seed='3'", "a whole number, not a text", "try:"),
    ("optimizer.lr=true", "optimizer.lr=true", "a number, not true or false", "try:"),
    ("data.range=[0,true]", "data.range.1=true", "a number, not true or false", "try:"),
    ("compile=1", "compile=1", "true or false, not a whole number", "try:"),
    ("compile=yes", "compile=yes", "true or false, not a text", "try:"),
    ("name=true", "name=true", "a text, not true or false", "try:"),
    ("allow_changes=seed", "allow_changes=seed", "a list, not a text", "try:"),
    ("trainer.devices=true", "trainer.devices=True", "not true or false", "try: trainer.devices=1"),
    ("trainer.gradient_clip_val=true", "trainer", "not true or false", "try: trainer.gradient_clip_val=1"),
    ("trainer.detect_anomaly=1", "trainer", "true or false, not a whole number", "try: trainer.detect_anomaly=true"),
    ("data.similarity=1.5", "data.similarity=1.5", "less than or equal to 1", "try:"),
    ("data.validation=0.7", "data.validation=0.7", "every_10th, or a share", "try: data.validation=every_10th"),
    ("model.skp=none", "model.skp is not an option", "model.skip", "try: model.skip"),
    ("trainer.max_epoch=3", "trainer.max_epoch is not an option", "max_epochs", "try: trainer.max_epochs"),
    ("trainer.max_epochs=many", "trainer", "a whole number for trainer.max_epochs", "try: trainer.max_epochs=10"),
    ("loss=dise", "loss=dise", "accepted: dice, ", "try: loss=dice"),
    ("+nonsense=1", "nonsense is not an option", "accepted", "try:"),
    ("model.normalisation=none model.encoder=densenet121", "model", "resnet50", "try: model.encoder=resnet50"),
    ("model.short_skips=ad", "model.short_skips", "add", "try: model.short_skips=add"),
    ("name=a/b", "name=a/b", "plain folder name", "try: name=null"),
    ("optimizer.lr=nan", "optimizer.lr=nan", "finite", "try:"),
    ("model.skip", "model.skip", "KEY=VALUE", "try:"),
    ("output=a,b", "output=a,b may be the values of several runs", "output='a,b'", "try one of:"),
    ("experiment=nope", "experiment=nope", "skip_ablation", "try: experiment="),
    ("lr=1e-3", "lr is not an option", "accepted: optimizer.lr", "try: optimizer.lr=1e-3"),
    ("skip=none", "skip is not an option", "accepted: model.skip", "try: model.skip=none"),
    ("epochs=3", "epochs is not an option", "accepted: trainer.max_epochs", "try: trainer.max_epochs=3"),
    ("batch_size=8", "batch_size is not an option", "accepted: data.batch_size", "try: data.batch_size=8"),
    ("model.lr=0.1", "model.lr is not an option", "accepted: optimizer.lr", "try: optimizer.lr=0.1"),
    ("encodr=resnet18", "encodr is not an option", "accepted: model.encoder", "try: model.encoder=resnet18"),
    ("model=resnet50", "model=resnet50 is not accepted", "options of model: model.encoder, ", "try: model.encoder=..."),
    ("dataset=pets", "dataset is not an option", "accepted: data", "try: data=pets"),
    ("qqqq=1", "qqqq is not an option", "accepted", "try: --help"),
    (
        "data=/photos",
        "data=/photos is not accepted",
        "folder, hf, own, pets, synthetic",
        "data=folder data.root=/photos",
    ),
    ("trainer=gpuu", "trainer=gpuu is not accepted", "accepted: gpu, ", "try: trainer=gpu"),
]


@pytest.mark.parametrize(("override", "given", "accepted", "advice"), WRONG, ids=[case[0] for case in WRONG])
def test_a_wrong_option_is_named_with_what_is_accepted_and_what_to_try(override, given, accepted, advice):
    text = message(*override.split())
    assert given in text
    assert accepted in text
    assert advice in text


FLAGS = [
    (["--epochs", "3"], "--epochs is not a flag of train", "try: trainer.max_epochs=3"),
    (["--lr=1e-3", "model.skip=none"], "--lr is not a flag of train", "try: optimizer.lr=1e-3"),
    (["--batch-size", "8"], "--batch-size is not a flag of train", "try: data.batch_size=8"),
    (["--gpus", "--help"], "--gpus is not a flag of train", "try: trainer.devices=..."),
]


@pytest.mark.parametrize(("arguments", "problem", "advice"), FLAGS, ids=[case[1] for case in FLAGS])
def test_a_flag_of_another_program_is_told_with_the_option(arguments, problem, advice):
    with pytest.raises(UserError) as caught:
        check_flags("train", Train, arguments)
    text = str(caught.value)
    assert text.startswith(problem)
    assert "accepted: OPTION=VALUE, and --help, --version, --multirun" in text
    assert text.endswith(advice)


def test_flags_of_hydra_and_ours_are_taken():
    check_flags("train", Train, ["-m", "--cfg", "job", "--info=all", "--version", "model.skip=none"])


def test_all_that_is_wrong_is_told_at_once():
    text = message("model.skip=bogus", "data.batch_size=0")
    assert "model.skip=bogus" in text
    assert "data.batch_size=0" in text


@pytest.mark.parametrize(
    ("key", "one"),
    [("skip_scale", 1.0), ("skip_scale", 0.5), ("skip_gradient", 0.5), ("skip_flow", "forward"), ("skip", "add")],
)
def test_the_same_value_at_each_level_is_that_value(key, one):
    """Two names of one network would be two settings of a report, and neither would resume the other's run."""
    named, listed = (
        compose("train", Train, [*SYNTHETIC, f"model.{key}={value}"])
        for value in (f"{one:g}" if isinstance(one, float) else one, f"[{one},{one},{one},{one}]")
    )
    assert named == listed
    assert getattr(listed.model, key) == one
    recorded = listed.model_dump()
    recorded["model"] |= {key: [one] * 4}  # as a run of an earlier version has it
    assert differences(recorded, named.model_dump()) == []
    assert axes_of([recorded, named.model_dump()]) == {}
    assert variant(recorded["model"]) == variant(named.model.model_dump())


def test_a_dose_is_a_number_or_one_per_level_and_part_of_the_settings_name():
    for given, kept, name in (("1", 1.0, "concat"), ("0.25", 0.25, "concat dose 0.25"),
        ("2", 2.0, "concat dose 2"), ("[0,0.5,1,1]", [0, 0.5, 1, 1], "concat dose 0-0.5-1-1")):  # fmt: skip
        model = compose("train", Train, [*SYNTHETIC, f"model.skip_gradient={given}"]).model
        assert (model.skip_gradient, variant(model.model_dump())) == (kept, name)


def test_a_scale_is_a_name_a_number_or_one_per_level_and_part_of_the_settings_name():
    for given, kept, name in (("1.0", 1.0, "concat"), ("kappa", "kappa", "concat scale kappa"),
        ("learned", "learned", "concat scale learned"), ("0.7071", 0.7071, "concat scale 0.7071"),
        ("[1,0.5,2,1]", [1, 0.5, 2, 1], "concat scale 1-0.5-2-1")):  # fmt: skip
        model = compose("train", Train, [*SYNTHETIC, f"model.skip_scale={given}"]).model
        assert (model.skip_scale, variant(model.model_dump())) == (kept, name)
    model = compose("train", Train, [*SYNTHETIC, "model.skip=[none,add,add,add]", "model.skip_scale=learned"]).model
    assert model.skip_scale == "learned", "of the levels with features"


def test_a_skip_of_stride_1_is_part_of_the_settings_name():
    model = compose("train", Train, [*SYNTHETIC, "model.stem_skip=true"]).model
    assert variant(model.model_dump()) == "concat stem"


def test_a_run_that_is_older_than_an_option_keeps_its_name():
    newer = {"skip_gradient", "skip_scale", "stem_skip"}
    model = compose("train", Train, [*SYNTHETIC, "model.skip=add"]).model.model_dump(exclude=newer)
    assert variant(model) == "add"


def test_a_loss_for_two_classes_is_refused_for_three():
    assert "dice or cross_entropy with 3" in message("data.target=trimap", "loss=bce")


@pytest.mark.parametrize(
    "arguments",
    [
        ["model.skip=bogus"],
        ["data.root=/does/not/exist"],
        ["data=petz"],
        ["-m", *SYNTHETIC, "model.skip=concat,none,bogus"],
        ["data=folder"],
    ],
    ids=" ".join,
)
def test_the_command_fails_within_two_seconds_without_a_traceback(arguments, tmp_path):
    done, seconds = timed("unetseg.train", *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("unetseg.train: ")
    assert "try" in done.stderr
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"
    assert seconds < quick(), seconds


def test_imagenet_weights_without_a_network_are_refused_with_the_two_ways_on(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    command = [sys.executable, "-m", "unetseg.train", *SYNTHETIC, "model.weights=imagenet"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "model.weights=PATH" in done.stderr
    assert "model.weights=null" in done.stderr


def test_a_download_of_weights_that_breaks_off_is_told_with_the_two_ways_on(monkeypatch):
    from unetseg.training import build

    def broken(**_):
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(build, "Segmenter", broken)
    with pytest.raises(UserError, match=r"reset by peer(.|\n)*model.weights=PATH(.|\n)*model.weights=null"):
        build.make_module(compose("train", Train, [*SYNTHETIC, "model.weights=imagenet"]))


def test_compile_without_a_compiler_is_refused(monkeypatch):
    from unetseg.training import preflight

    monkeypatch.setenv("CXX", sys.executable)
    preflight.train(compose("train", Train, [*SYNTHETIC, "compile=true"]))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"no-such-compiler is not on the PATH(.|\n)*try: compile=false"):
        preflight.train(compose("train", Train, [*SYNTHETIC, "compile=true"]))


def test_absent_pets_without_a_network_are_refused_with_the_three_ways_on(tmp_path, monkeypatch):
    from unetseg.training import preflight

    monkeypatch.setattr(preflight, "answers", lambda address: False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        preflight.train(compose("train", Train, ["model.weights=null"]))
    for way in ("data/oxford-iiit-pet", "data.root=FOLDER", "data=synthetic"):
        assert way in str(caught.value)


def test_an_unknown_key_inside_an_experiment_file_is_refused(tmp_path, monkeypatch):
    import shutil

    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "conf/experiment/mine.yaml").write_text("# @package _global_\nmodel:\n  skipp: none\n")
    monkeypatch.setattr("unetseg.options.compose.CONF", tmp_path / "conf")
    assert "model.skipp is not an option" in message("experiment=mine")


def test_any_argument_of_the_trainer_can_be_given_without_a_plus():
    assert compose("train", Train, [*SYNTHETIC, "trainer.limit_train_batches=3"]).trainer["limit_train_batches"] == 3
    assert {"max_epochs", "strategy", "precision"} <= set(trainer_arguments())
    assert not {"self", "callbacks", "logger"} & set(trainer_arguments())


@pytest.mark.parametrize("path", ["runs/lr=1", "runs/epoch=1-step=20", "it's mine", "my runs/a=b", "(old)"])
def test_a_path_needs_no_quotes_of_hydras(path):
    quoted = path.replace("'", r"\'")
    for given in (f"output={path}", f"output='{quoted}'", f'output="{path}"'):
        assert compose("train", Train, [*SYNTHETIC, given]).output == path
        assert values_of([*SYNTHETIC, given]) == {"data": "synthetic", "output": path}


@pytest.mark.parametrize("path", ["läufe, a=b", 'the "last" run', "[old]"])
def test_what_one_process_tells_another_comes_back_as_it_was(path):
    assert compose("train", Train, [*SYNTHETIC, override("output", path)]).output == path


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_defaults():
    recipe = yaml.safe_load((ROOT / "conf/recipe/from_scratch.yaml").read_text())
    assert compose("train", Train, SYNTHETIC).model.encoder == recipe["model"]["encoder"]
    assert compose("train", Train, [*SYNTHETIC, "model.encoder=resnet34"]).model.encoder == "resnet34"


def test_the_cells_of_a_sweep_are_the_product_of_its_axes():
    cells = runs_of(["model.skip=concat,[none,add,add,add]", "seed=range(0,2)", "name=x"])
    assert cells == [
        ["model.skip=concat", "seed=0", "name=x"],
        ["model.skip=concat", "seed=1", "name=x"],
        ["model.skip=[none,add,add,add]", "seed=0", "name=x"],
        ["model.skip=[none,add,add,add]", "seed=1", "name=x"],
    ]


def test_an_experiment_brings_its_axes_and_the_user_sets_them_anew():
    def axes(*overrides):
        return experiment_axes("train", Train, [*SYNTHETIC, "experiment=skip_ablation", *overrides])

    assert axes() == ["model.skip=concat,add,none", "seed=0,1,2"]
    assert axes("model.skip=concat,none") == ["seed=0,1,2"]
    assert axes("seed=5", "model.skip=add") == []
    assert experiment_axes("train", Train, SYNTHETIC) == []


def test_two_equal_runs_in_a_sweep_are_refused():
    with pytest.raises(UserError, match=r"would be the same: model=\{skip:concat\} and model=\{skip:add\}\n"):
        compose_runs("train", Train, runs_of([*SYNTHETIC, "model={skip:concat},{skip:add}", "model.skip=none"]))


EXPERIMENTS = sorted((ROOT / "conf/experiment").glob("*.yaml"))


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder to work in, with the run that experiment=fine_tuning starts from."""
    best = tmp_path / "runs/drawn_animals/checkpoints/best.ckpt"
    best.parent.mkdir(parents=True)
    best.touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_composes_and_opens_with_purpose_command_duration_and_result(path, desk):
    head = path.read_text().partition("\ndefaults")[0]
    assert head.startswith("# @package _global_")
    for word in ("Purpose:", "Command:", "Duration:", "Result:", f"experiment={path.stem}"):
        assert word in head, word
    axes = experiment_axes("train", Train, [f"experiment={path.stem}"])
    runs = compose_runs("train", Train, runs_of([*axes, f"experiment={path.stem}"]))
    assert len({run.model.model_dump_json() for run in runs}) > 1


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_hydra_makes_the_same_runs_of_an_experiments_axes(path, desk):
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = [f"experiment={path.stem}"]
    overrides = [*experiment_axes("train", Train, given), *given]
    (hydras,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)
    composed = [[compose("train", Train, list(job)) for job in jobs] for jobs in (hydras, runs_of(overrides))]
    assert composed[0] == composed[1]


def test_there_are_experiments():
    assert EXPERIMENTS


@pytest.mark.parametrize("data", ["pets", "synthetic", "folder"])
def test_help_describes_every_option(data, tmp_path):
    options = {"data": {"name": data}}
    for schema in (Train, Evaluate):
        lines = describe(schema, options)
        assert len(lines) > 10
        assert all(lines.values()), [key for key, text in lines.items() if not text]


def test_help_takes_under_two_seconds_and_shows_values():
    done, seconds = timed("unetseg.train", "--help", *SYNTHETIC)
    assert seconds < quick(), seconds
    assert done.returncode == 0
    assert "model.encoder=resnet18" in done.stdout
    assert "python -m unetseg.train" in done.stdout


@pytest.mark.parametrize("door", ["evaluate", "report", "ablate"])
def test_help_needs_nothing_else(door):
    done, _ = timed(f"unetseg.{door}", "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m unetseg.{door}" in done.stdout


def test_an_option_without_a_default_is_asked_for_with_what_it_means():
    with pytest.raises(UserError, match=r"data\.root is not given\n  accepted: folder with images/ and masks/"):
        compose("train", Train, ["data=folder"])


def test_hydras_own_flags_work():
    done, _ = timed("unetseg.train", *SYNTHETIC, "--cfg", "job", "model.skip=none")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["model"]["skip"] == "none"


def test_a_list_of_equal_kinds_is_the_one_kind():
    for skip in ("nested", "add"):
        options = compose("train", Train, ["data=synthetic", f"model.skip=[{','.join([skip] * 4)}]"])
        assert options.model.skip == skip
    with pytest.raises(UserError, match="finest first"):
        compose("train", Train, ["data=synthetic", "model.skip=[nested,nested,nested,add]"])


def test_names_alike_come_first():
    assert nearest_first("densnet121", ("resnet18", "densenet201", "densenet121"))[:2] == ["densenet121", "densenet201"]


@pytest.mark.parametrize("option", ["data.size=16385", "data.workers=257", "seed=4294967296"])
def test_numbers_that_no_machine_takes_are_refused(option):
    with pytest.raises(UserError, match=option.partition("=")[0]):
        compose("train", Train, ["data=synthetic", option])


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("seed=3.0", r"seed=3\.0 is not accepted"),
        ("seed='3'", "seed='3' is not accepted"),
        ("model.dropout=0.5", "try: --help"),
        ("optimizer.foreach=true", "try: --help"),
        ("model.encodr=resnet18", r"try: model\.encoder=resnet18"),
        ("data.fold=1", "try: data=folder"),
    ],
)
def test_a_message_shows_what_was_given_and_advises_only_what_is_like_it(given, shown):
    with pytest.raises(UserError, match=shown):
        compose("train", Train, ["data=synthetic", given])


# --- single values are put into what Hydra has composed before


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=synthetic"],
        ["seed=3", "data=synthetic", "data.size=96"],
        ["data.size=96", "data=synthetic", "data.size=64"],
        ["data=synthetic", "trainer.max_epochs=3", "++trainer.limit_val_batches=0.5", "trainer.profiler=simple"],
        ["data=synthetic", "experiment=skip_ablation", "model.skip=[concat,none,add,concat]"],
        ["data=synthetic", "loss={dice:1,focal:0.5}", "optimizer.lr=1e-3", "model.skip=null"],
        ["data=synthetic", "loss=focal", "loss={dice:1}"],
        ["data=synthetic", "trainer=ddp", "trainer.devices=2"],
        ["data=folder", "data.root=there", "data.classes=[a,b]", "data.values={a:0,b:[1,2]}"],
        ["data=folder", "data.root='with, comma'", "output=runs/a=1", "name=1e3"],
        ["data=synthetic", "data.augment=[{name:HorizontalFlip,p:0.5}]", "model.weights=null"],
        ["data=synthetic", "output=runs/${seed}", "seed=7"],
        ["data=synthetic", "~early_stopping", "early_stopping=null"],
    ],
    ids=" ".join,
)
def test_options_are_what_hydra_composes(overrides):
    """It is asked anew here, where `compose` puts single values into what it has composed before."""

    def answer(made):
        try:
            return made().model_dump()
        except UserError as error:
            return str(error)

    def by_hydra():
        return validate(Train, plain_values(compose_config("train", Train, overrides), Train))

    once, again = (answer(lambda: compose("train", Train, overrides)) for _ in range(2))
    assert once == again == answer(by_hydra)


def test_hydra_is_asked_once_for_all_runs_of_a_sweep(monkeypatch):
    """A composition takes it a tenth of a second."""
    asked = []
    real = hydra.compose
    monkeypatch.setattr(hydra, "compose", lambda *args, **options: asked.append(args) or real(*args, **options))
    runs = [["data=synthetic", "wandb.project=own", f"seed={seed}"] for seed in range(300)]
    assert [options.seed for options in compose_runs("train", Train, runs)] == list(range(300))
    assert len(asked) <= 1


def test_a_file_of_conf_that_is_edited_in_between_is_read_anew(tmp_path, monkeypatch):
    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", conf)
    monkeypatch.setattr("unetseg.options.compose.CONF", conf)
    assert compose("train", Train, SYNTHETIC).seed == 0
    text = (conf / "train.yaml").read_text()
    assert "\nseed: 0" in text
    (conf / "train.yaml").write_text(text.replace("\nseed: 0", "\nseed: 5"))
    assert compose("train", Train, SYNTHETIC).seed == 5
