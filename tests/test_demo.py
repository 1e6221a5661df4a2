"""The demo: the mask is the predictor's, a tick switches a long skip off, and nothing is asked of the network."""

import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HANG, ROOT, timed
from PIL import Image

import unetseg
from unetseg.demo import check, free_port
from unetseg.errors import UserError
from unetseg.inference.demo_examples import draw_examples
from unetseg.inference.demo_page import NO_LEVELS, CutMasks, SwitchedModel, iou, page, score, sentence
from unetseg.inference.unet_drawing import draw_unet
from unetseg.model import Segmenter, checkpoint
from unetseg.names import IGNORE
from unetseg.options.command_schema import Demo
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.training import build

NARROW = [64, 32, 16, 16, 8]
PETS = ("background", "pet")


def picture(height: int = 90, width: int = 130) -> np.ndarray:
    """Return patches of colour, HxWx3 uint8."""
    patches = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return patches.repeat(8, 0).repeat(8, 1)[:height, :width]


def saved(path: Path, skip, target: str = "trimap", weights=None) -> Path:
    """Write a checkpoint of random weights whose batch normalisation has seen a picture; or of the given weights."""
    chosen = compose("train", Train, ["data=synthetic", "data.size=64", f"data.target={target}"])
    net = chosen.model.model_copy(update={"encoder": "resnet18", "skip": skip, "initialisation": "he"})
    known = build.hyper_parameters(chosen.model_copy(update={"model": net}))
    known["model"]["decoder_channels"] = NARROW  # for speed
    torch.manual_seed(0)
    model = Segmenter(weights=None, **known["model"])
    if weights is None:
        for _ in range(3):
            model(torch.from_numpy(picture(64, 64)).permute(2, 0, 1)[None].repeat(2, 1, 1, 1))
    else:
        model.load_state_dict(weights)
    state = {f"{checkpoint.PREFIX}{name}": value for name, value in model.state_dict().items()}
    torch.save({"hyper_parameters": known, "state_dict": state}, path)
    return path


def switched(path: Path) -> SwitchedModel:
    return SwitchedModel(*checkpoint.load(path))


@pytest.fixture(scope="module")
def add(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("add") / "best.ckpt", "add")


def test_with_every_level_on_the_mask_is_the_predictors(add):
    found = switched(add)(picture())
    assert np.array_equal(found.intact, unetseg.load(add)(picture()))
    assert found.intact.shape == (90, 130)
    assert len(np.unique(found.intact)) > 1
    assert found.changed_share() == 0
    assert found.iou(3) == 1


def test_a_large_picture_is_worked_on_in_tiles_as_the_predictor_does(add, monkeypatch):
    monkeypatch.setattr("unetseg.inference.predictor.LARGE", 10_000)
    found = switched(add)(picture(), [1])
    assert np.array_equal(found.intact, unetseg.load(add)(picture()))
    assert found.changed_share() > 0


def test_all_levels_off_in_an_add_model_is_the_none_model_with_its_weights(add, tmp_path):
    weights = {k: v for k, v in checkpoint.load(add)[0].state_dict().items() if "projection" not in k}
    none = unetseg.load(saved(tmp_path / "none.ckpt", "none", weights=weights))
    found = switched(add)(picture(), [1, 2, 3, 4])
    assert np.array_equal(found.without, none(picture()))
    assert found.changed_share() > 0


def test_the_encoder_runs_once_for_both_masks(add):
    model, known = checkpoint.load(add)
    calls = []
    model.net.encoder.register_forward_hook(lambda *_: calls.append(1))
    SwitchedModel(model, known)(picture(), [1, 2])
    assert calls == [1]


def test_only_levels_that_carry_features_can_be_switched_off(tmp_path):
    assert switched(saved(tmp_path / "a.ckpt", ["none", "concat", "placebo", "attention"])).levels == [2, 4]
    assert switched(saved(tmp_path / "b.ckpt", "none")).levels == []
    mixed = switched(saved(tmp_path / "c.ckpt", ["multiply", "concat", "none", "none"]))
    assert mixed.levels == [2], "a product with zeros would switch the deep path off"


def test_the_stem_skip_can_be_switched_off_by_its_own_kind():
    known = {"classes": PETS, "data": {"size": 64}}
    for skip, levels in ((["concat", *["multiply"] * 3], [0, 1]), (["multiply", *["concat"] * 3], [2, 3, 4])):
        model = Segmenter(classes=2, encoder="tu-test_resnet", weights=None, skip=skip, stem_skip=True)
        assert SwitchedModel(model, known).levels == levels


def test_what_changed_is_counted_said_and_drawn():
    intact = np.zeros((10, 20), np.uint8)
    intact[:, :10] = 1  # 100 pixels
    without = np.zeros((10, 20), np.uint8)
    without[:, 5:11] = 1  # 60, of which 50 are in both
    grey = np.full((10, 20, 3), 100, np.uint8)
    found = CutMasks(grey, intact, without)
    assert found.changed_share() == 60 / 200
    assert found.iou(2) == 50 / 110
    assert (
        sentence(found, [3, 1], PETS)
        == "Without levels 1 and 3, 30.00 % of the pixels changed; the IoU of the two masks is 0.455"
    )
    assert sentence(found, [2], PETS).startswith("Without level 2, 30.00 %")
    assert sentence(found, [], PETS) == "The mask is 50.0 % background, 50.0 % pet"
    first, second, changed = found.drawings()
    assert (first[:, 15] == 100).all()
    assert (second[:, 5:11] != 100).any(-1).all()
    lost, gained, same = changed[0, 0], changed[0, 10], changed[0, 15]
    assert lost[2] > lost[0]  # blue
    assert gained[0] > gained[2]  # red
    assert len(set(same)) == 1


def test_examples_are_drawn_with_the_truth_that_the_model_was_trained_for():
    for border, classes in (("pet", [0, 1]), ("ignore", [0, 1, IGNORE])):
        examples = draw_examples(PETS, border)
        assert len({example.name for example in examples}) == len(examples) >= 3
        for example in examples:
            assert example.picture.shape == (*example.truth.shape, 3)
            assert np.unique(example.truth).tolist() == classes
    assert np.unique(draw_examples(("background", "pet", "boundary"))[0].truth).tolist() == [0, 1, 2]


def test_no_truth_is_known_for_other_classes_and_the_examples_are_the_same_each_time():
    first, again = draw_examples(("background", "tumour")), draw_examples(PETS)
    assert all(example.truth is None for example in first)
    assert np.array_equal(first[0].picture, again[0].picture)


def test_an_example_is_scored_by_its_truth_where_that_counts():
    truth = np.array([[1, 1, 1, 1, 0, 0, 0, IGNORE]], np.uint8)
    intact = np.array([[1, 1, 1, 0, 0, 0, 0, 1]], np.uint8)  # 3 of 4 are found, and the last pixel doesn't count
    without = np.array([[1, 0, 0, 0, 1, 0, 0, 0]], np.uint8)  # 1 of 4 and another
    masks = CutMasks(np.zeros((1, 8, 3), np.uint8), intact, without)
    assert iou(truth, intact, 2) == 3 / 4
    assert score(masks, truth, [], 2) == "IoU with the truth: 0.750"
    assert score(masks, truth, [1], 2) == "IoU with the truth: 0.750, and 0.200 without the skips that are off"


def test_the_drawing_says_what_each_level_carries():
    drawn = draw_unet(["concat", "add", "none", "placebo"], carrying=[1, 2], off=[2])
    assert "aria-label='U-Net: level 1: concat, level 2: off, level 3: none, level 4: placebo, no features'" in drawn
    for state, count in (("carries", 1), ("off", 1), ("empty", 2)):
        assert drawn.count(f"<g class='{state}'>") == count
    assert "http" not in drawn


def test_a_picture_that_is_too_large_for_a_page_is_refused(add, monkeypatch):
    monkeypatch.setattr("unetseg.inference.demo_page.LARGEST", 10_000)
    with pytest.raises(UserError, match=r"11,700 pixels\n  accepted: at most 10,000"):
        switched(add)(picture())


def test_a_port_that_is_taken_is_refused_before_anything_is_loaded(add):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port={port} can't be had: .*\n  accepted: a free port\n  try: port=0"):
            free_port(port)
    assert free_port(0) > 0


def test_without_gradio_the_extra_is_named(add, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'unetseg\[demo\]'"):
        check(Demo(checkpoint=str(add), port=0, trust=False))


@pytest.mark.parametrize(("options", "said"), [
    (["checkpoint=nowhere"], "checkpoint=nowhere is not accepted"),
    (["checkpoint=.", "port=70000"], "port=70000"), (["checkpoint=.", "share=true"], "share")])  # fmt: skip
def test_a_wrong_option_ends_with_status_2_at_once(options, said):
    done, seconds = timed("unetseg.demo", *options)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert seconds < 5


# --- the page


@pytest.fixture
def server(add, tmp_path):
    """The process that serves a checkpoint's page, and its temporary folder."""
    pytest.importorskip("gradio")
    folder = tmp_path / "temporary"
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "unetseg.demo", f"checkpoint={add}"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a suite may run in the background
    ) as process:
        yield process, folder
        process.kill()


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium that logs what it asks for."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium or chromedriver is not here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
    user = f"user-data-dir={tmp_path / 'user'}"
    for flag in (*flags, "disable-component-update", "disable-sync", "window-size=1360,900", user):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


def until(browser, found, what: str):
    """Return the first true result of a function of the page, or fail after five minutes."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    ignored = [StaleElementReferenceException, IndexError]
    return WebDriverWait(browser, 300, 0.1, ignored).until(lambda _: found(), f"never came: {what}")


def all_of(browser, selector: str) -> list:
    return browser.find_elements("css selector", selector)


def said(browser) -> str:
    return browser.find_element("css selector", "#said").text


def size_of(browser, name: str) -> list[int] | None:
    """Return width and height of the picture that is shown under a name, None if there is none."""
    script = """const shown = document.querySelector(arguments[0]);
    return shown && shown.complete && shown.naturalWidth ? [shown.naturalWidth, shown.naturalHeight] : null"""
    return browser.execute_script(script, f"#{name} img")


def test_a_tick_in_a_real_browser_shows_what_a_long_skip_did(browser, server, add, tmp_path):
    from selenium.webdriver import ActionChains

    dropped = tmp_path / "patches.png"
    Image.fromarray(picture(180, 260)).save(dropped)
    process, temporary = server
    line = process.stdout.readline()
    assert re.match(r"http://127\.0\.0\.1:\d+/ ", line), line + process.stdout.read()
    address = line.split()[0]
    browser.get(address)
    drop = until(browser, lambda: all_of(browser, "#picture input[type=file]")[0], "the place to drop a picture")
    boxes = all_of(browser, "#off input[type=checkbox]")
    assert [box.accessible_name for box in boxes] == [f"level {level}, stride {2**level}" for level in (1, 2, 3, 4)]
    drop.send_keys(str(dropped))
    until(browser, lambda: said(browser).startswith("The mask is "), "the mask")
    until(browser, lambda: size_of(browser, "intact") == [260, 180], "the picture at its own size")
    assert size_of(browser, "without") is None

    ActionChains(browser).click(boxes[1]).perform()
    until(browser, lambda: said(browser).startswith("Without level 2, "), "the comparison")
    for name in ("intact", "without", "changed"):
        until(browser, lambda name=name: size_of(browser, name) == [260, 180], name)
    assert boxes[1].is_selected()
    model = switched(add)
    assert said(browser) == sentence(model(picture(180, 260), [2]), [2], model.classes) + "."
    time.sleep(0.5)  # pictures fade in
    screenshot = Path(os.environ.get("DEMO_SCREENSHOT", tmp_path / "demo.png"))
    screenshot.write_bytes(browser.get_screenshot_as_png())
    assert browser.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")

    ActionChains(browser).click(boxes[1]).perform()
    until(browser, lambda: said(browser).startswith("The mask is "), "the mask again")
    until(browser, lambda: size_of(browser, "without") is None, "the others to go")

    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)  # a phone
    example = draw_examples(model.classes)[0]
    browser.execute_script("arguments[0].click()", all_of(browser, "#examples button")[0])
    until(browser, lambda: "IoU with the truth: " in said(browser), "the score of an example")
    masks = model(example.picture)
    assert said(browser).splitlines()[-1] == score(masks, example.truth, [], len(model.classes)) + "."
    until(browser, lambda: size_of(browser, "truth") == [256, 256], "the truth")
    tops = [
        f"document.querySelector('#{part}').getBoundingClientRect().top" for part in ("given", "result", "controls")
    ]
    until(browser, lambda: abs(browser.execute_script(f"return {tops[1]}")) < 100, "the result on the screen")
    assert sorted(tops, key=lambda top: browser.execute_script(f"return {top}")) == tops
    assert browser.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")
    browser.execute_script("arguments[0].click()", boxes[0])
    until(browser, lambda: "level 1: off" in all_of(browser, "#unet svg")[0].text, "the drawing")
    until(browser, lambda: said(browser).startswith("Without level 1, "), "the comparison")
    browser.execute_script("arguments[0].click()", boxes[0])
    until(browser, lambda: said(browser).startswith("The mask is "), "the mask once more")

    (tmp_path / "damaged.jpg").write_bytes(b"no picture")
    until(browser, lambda: all_of(browser, "#picture button[aria-label='Clear']")[0], "a button to clear").click()
    drop = until(browser, lambda: all_of(browser, "#picture input[type=file]")[0], "the place to drop a picture")
    drop.send_keys(str(tmp_path / "damaged.jpg"))
    until(browser, lambda: said(browser).startswith("damaged.jpg can't be read as a picture"), "what is wrong")

    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 10
    assert [url for url in asked if url.startswith(("http", "ws")) and not url.startswith(address)] == []

    assert list(temporary.rglob("patches.png"))
    process.send_signal(signal.SIGINT)  # Ctrl-C
    rest, _ = process.communicate(timeout=HANG)
    assert process.returncode == 0
    assert rest.strip() == ""
    assert list(temporary.iterdir()) == []


def test_a_model_without_long_skips_shows_a_note_and_no_boxes(add, tmp_path):
    pytest.importorskip("gradio")
    for file, levels in ((saved(tmp_path / "none.ckpt", "none", target="pet"), []), (add, [1, 2, 3, 4])):
        model, known = checkpoint.load(file)
        parts = page(SwitchedModel(model, known), "none.ckpt", known).config["components"]
        boxes = next(part["props"] for part in parts if part["type"] == "checkboxgroup")
        assert boxes["visible"] == bool(levels)
        assert [level for _, level in boxes["choices"]] == levels
        assert any(NO_LEVELS in str(part["props"].get("value")) for part in parts) != bool(levels)
