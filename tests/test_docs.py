"""The README and the site: every command is accepted, every snippet runs, every link and option is there."""

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from fake_engine import save_untrained
from PIL import Image

from unetseg.options.choices import COMMANDS
from unetseg.options.command import OUR_FLAGS
from unetseg.options.compose import compose, compose_runs, experiment_axes, runs_of
from unetseg.options.schema import Ablate, Train
from unetseg.options.space import edges, is_search
from unetseg.options.validation import describe

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
SNIPPETS = {page: blocks for page, text in TEXTS.items() if (blocks := re.findall(r"```python\n(.*?)```", text, re.S))}


def commands() -> list[str]:
    """Return every command of ours, in blocks that are no text and within lines."""
    found = []
    for text in TEXTS.values():
        text = re.sub(r"```text\n.*?```", "", text, flags=re.S).replace("\\\n", " ")
        spans = re.findall(r"(?<!`)`(python -m unetseg\.\w+ [^`]+)`(?!`)", text)
        lines = [line.strip() for line in text.splitlines() if line.strip().startswith("python -m unetseg")]
        found += [" ".join(shlex.quote(word) for word in shlex.split(line, comments=True)) for line in [*spans, *lines]]
    return sorted(command for command in {*found} if "..." not in command)


@pytest.fixture(scope="module")
def desk(tmp_path_factory, drawn_set) -> Path:
    """A folder with what the pages speak of: runs/NAME with a checkpoint, a picture, an export, weights."""
    folder = tmp_path_factory.mktemp("desk")
    save_untrained(folder / "runs/NAME/checkpoints/best.ckpt")
    (folder / "runs/shift").mkdir()
    (folder / "runs/NAME/config.yaml").touch()
    (folder / "runs/NAME/metrics.csv").write_text("step,epoch,name,value\n1,0,val/iou,0.5\n")
    (folder / "runs/NAME/per_image.csv").write_text("name,group,iou,dice,boundary_iou\na,,0.5,0.6,0.2\n")
    (folder / "runs/NAME/summary.json").write_text('{"test/iou": 0.5}')
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "picture.jpg")
    for name in ("resnet50_imagenet.safetensors", "model.onnx"):
        (folder / name).touch()
    for name in ("config.json", "model.safetensors"):
        (folder / "folder").mkdir(exist_ok=True)
        (folder / "folder" / name).touch()
    return folder


@pytest.mark.parametrize("line", commands())
def test_every_command_is_accepted(line, desk, drawn_set, monkeypatch):
    monkeypatch.chdir(desk)
    _, _, module, *words = shlex.split(line)
    command = module.removeprefix("unetseg.")
    if command == "data":  # which takes a folder
        assert words == ["FOLDER"]
        return
    flags = {word for word in words if "=" not in word}
    assert flags <= OUR_FLAGS
    overrides = [
        re.sub("PETS|PICTURES|FOLDER", str(drawn_set), word).replace("experiment=NAME", "experiment=flow")
        for word in words
        if "=" in word
    ]
    if "data=hf" in overrides:  # whose classes are asked of the data set where they aren't given
        overrides.append("data.classes=[background,foreground]")
    schema = COMMANDS[command]
    if schema in (Train, Ablate):
        if is_search(overrides):
            jobs = edges(overrides)
        else:
            jobs = runs_of([*experiment_axes(command, schema, overrides), *overrides])
        assert len(compose_runs(command, schema, jobs)) == len(jobs)
    elif not flags:
        compose(command, schema, overrides)


@pytest.mark.parametrize("page", SNIPPETS)
def test_every_snippet_runs(page, desk, monkeypatch):
    import torch
    from segmentation_models_pytorch import Unet

    monkeypatch.chdir(desk)
    net = Unet("resnet18", encoder_weights=None)
    names = {
        "net": net,
        "optimizer": torch.optim.AdamW(net.parameters()),
        "criterion": torch.nn.functional.binary_cross_entropy_with_logits,
        "images": torch.rand(2, 3, 64, 64),
        "masks": torch.rand(2, 1, 64, 64).round(),
    }
    for number, block in enumerate(SNIPPETS[page], start=1):
        exec(compile(block, f"{page}, snippet {number}", "exec"), names)


def test_every_option_that_a_page_names_exists():
    known = {
        key
        for data in ("pets", "folder", "hf", "synthetic", "own")
        for key in describe(Train, {"data": {"name": data}})
    }
    for page, text in TEXTS.items():
        if page != "docs/changelog.md":
            for key in re.findall(
                r"(?<![/\w])(?!data\.yaml)((?:model|data|optimizer|wandb|trainer|gradients)\.[a-z_]+)(?=[=`])", text
            ):
                assert key in known, (page, key)


def test_every_link_leads_somewhere():
    for page, text in TEXTS.items():
        text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)|(?<=src=\")([^\"]+)", text):
            path = "".join(target)
            if not path.startswith("http"):
                assert ((ROOT / page).parent / path).exists(), (page, path)


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        name = str(page.relative_to(ROOT / "docs"))
        leads = TEXTS["docs/claims.md"] if name.startswith("claims/") else text
        assert name in leads, page


def test_the_tables_of_options_hold_every_option():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "scripts/site_hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = hooks.on_page_markdown(TEXTS["docs/options.md"])
    for name, schema in COMMANDS.items():
        for data in ("pets", "folder", "hf", "synthetic", "own") if name == "train" else ("pets",):
            for key in describe(schema, {"data": {"name": data}}):
                assert key.startswith("trainer.") or f"| `{key}` |" in page, (name, key)
    assert "| `checkpoint` | required |" in page
    assert hooks.NEW["0.2"] <= {key for key in re.findall(r"^\| `(.+?)` \|", page, re.M)}


def test_the_readme_is_a_screen():
    assert len(TEXTS["README.md"].splitlines()) <= 120
