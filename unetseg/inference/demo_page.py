"""The demo's page: a picture's mask, the mask without some long skips, and the pixels that changed between them.

An example has a known mask as well, by which both are scored.

Legend: B pictures, C classes, H x W pixels of a picture.
"""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from unetseg.data.channels import displayed
from unetseg.data.colours import is_background, legend, overlay
from unetseg.data.pictures import open_picture
from unetseg.data.view import View
from unetseg.errors import UserError
from unetseg.evaluation import overlays
from unetseg.evaluation.lesions import levels_to_cut
from unetseg.evaluation.metrics import COUNTS, scores
from unetseg.inference.demo_examples import ExamplePicture
from unetseg.inference.engines import TorchEngine
from unetseg.inference.predictor import Predictor, argmax
from unetseg.inference.unet_drawing import draw_unet
from unetseg.model.segmenter import Segmenter, probabilities
from unetseg.names import IGNORE, LEVELS, one_word, view_text

if TYPE_CHECKING:
    import gradio as gr

LARGEST = 64_000_000
"""The most pixels of a picture on the page; browsers show larger ones with difficulty."""
BAND = 512
"""Rows that are drawn at once, to save memory."""

CUT = (
    "A long skip that is switched off carries zeros in place of the encoder's features, as in "
    "<code>unetseg.evaluate lesion=true</code> with cut “zero”. This shows what the trained model relies on; what a "
    "network could learn without that skip takes a training without it."
)
NO_LEVELS = (
    "No long skip of this model carries features from the encoder that zeros could stand for, so there is none to "
    "switch off."
)
PICTURES = {
    "intact": "all long skips on",
    "without": "without those switched off",
    "changed": "changed",
    "truth": "the truth",
}
CSS = """
#page { display: grid; grid-template: "given result" auto "controls result" 1fr / minmax(280px, 1fr) 3fr }
#given { grid-area: given } #result { grid-area: result } #controls { grid-area: controls }
@media (max-width: 700px) { #page { grid-template: "given" auto "result" auto "controls" auto / 100% } }
h1 { font-size: 1.4rem; margin: 0 }
h1 + p { overflow-wrap: anywhere }
.class { display: inline-block }
.say { font-size: 1.1rem; margin: 0; white-space: pre-line }
.note { font-size: 0.85rem; margin: 0; opacity: 0.8 }
.colour { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; margin: 0 0.35em 0 0.6em }
#off .wrap { flex-direction: column }
/* the label and the buttons would cover the picture */
.shown { padding-top: 30px }
.shown .icon-button-wrapper { top: -30px }
"""
TO_RESULT = "() => { if (innerWidth <= 700) document.querySelector('#result').scrollIntoView() }"
"""Brings the result onto a phone's screen, where it lies below the picture or above the switches."""


class CutEngine(TorchEngine):
    """A Segmenter that predicts twice: intact, and with zeros in place of some levels' features.

    The encoder runs once. `probabilities` returns Bx2CxHxW, the intact model's C first; or BxCxHxW if no level is cut.

    Attributes:
        cut: levels that are cut, 1 is the finest.

    Examples:
        >>> model = Segmenter(classes=2, encoder="resnet18", weights=None).eval()
        >>> engine = CutEngine(model, classes=("background", "pet") * 2, view=View(64), device="cpu")
        >>> engine.cut = [1, 2]
        >>> engine.probabilities(np.zeros((1, 64, 64, 3), np.uint8)).shape
        (1, 4, 64, 64)
    """

    cut: Sequence[int] = ()

    @torch.inference_mode()
    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Map BxHxWx3 uint8 RGB to Bx2CxHxW float32 in 0..1."""
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.device).permute(0, 3, 1, 2)
        features = list(self.model.net.encoder(self.model.normalise(batch)))
        answers = [self.model.net.decode(features)]
        if self.cut:
            without = [torch.zeros_like(f) if level in self.cut else f for level, f in enumerate(features)]
            answers.append(self.model.net.decode(without))
        return torch.cat([probabilities(logits) for logits in answers], dim=1).cpu().numpy()


@dataclass(frozen=True)
class CutMasks:
    """A picture and the model's two masks of it, all of one size.

    Examples:
        >>> mask = np.array([[0, 1], [1, 1]], np.uint8)
        >>> masks = CutMasks(np.zeros((2, 2, 3), np.uint8), intact=mask, without=np.ones_like(mask))
        >>> masks.changed_share(), masks.iou(classes=2)
        (0.25, 0.75)
    """

    picture: np.ndarray
    """HxWx3 uint8."""
    intact: np.ndarray
    """HxW uint8 classes."""
    without: np.ndarray
    """HxW uint8 classes, without the levels that are off."""
    background: bool = True
    """Whether class 0 is the background, which isn't drawn."""

    def changed_share(self) -> float:
        """Return the share of the pixels whose class differs."""
        return float((self.intact != self.without).mean())

    def iou(self, classes: int) -> float:
        """Return the IoU of the two masks, with the intact mask in place of the truth."""
        return iou(self.intact, self.without, classes)

    def drawings(self) -> Iterator[np.ndarray]:
        """Yield the picture with the intact mask, with the other mask, and with the pixels that changed."""
        yield self._draw_bands(overlay, self.intact)
        yield self._draw_bands(overlay, self.without)
        yield self._draw_bands(overlays.errors, self.intact, self.without)

    def drawing_of(self, truth: np.ndarray) -> np.ndarray:
        """Return the picture with the true mask, HxW uint8 classes."""
        return self._draw_bands(overlay, truth)

    def _draw_bands(self, draw: Callable[..., np.ndarray], *masks: np.ndarray) -> np.ndarray:
        drawings = []
        for top in range(0, len(self.picture), BAND):
            above = max(top - 1, 0)  # outlines reach a row further
            rows = slice(above, top + BAND + 1)
            drawing = draw(self.picture[rows], *(mask[rows] for mask in masks), background=self.background)
            drawings.append(drawing[top - above :][:BAND])
        return np.concatenate(drawings)


def iou(truth: np.ndarray, mask: np.ndarray, classes: int) -> float:
    """Return the IoU of a mask with the truth, both HxW uint8 classes, as evaluate computes it; IGNORE doesn't count.

    Examples:
        >>> iou(np.array([[1, 1, 0, IGNORE]], np.uint8), np.array([[1, 0, 0, 1]], np.uint8), classes=2)
        0.5
    """
    cells = np.zeros(classes**2, np.int64)
    for top in range(0, len(truth), BAND):
        band, predicted = truth[top : top + BAND], mask[top : top + BAND]
        counted = band != IGNORE
        pairs = band[counted].astype(np.intp) * classes + predicted[counted]
        cells += np.bincount(pairs, minlength=classes**2)
    confusion = cells.reshape(classes, classes)
    counts = np.zeros((classes, len(COUNTS)), np.int64)
    counts[:, :3] = np.stack([confusion.diagonal(), confusion.sum(0), confusion.sum(1)], axis=-1)
    return float(scores(torch.from_numpy(counts))["iou"])


class SwitchedModel:
    """A trained model whose long skips can be switched off.

    Args:
        model: in eval mode.
        known: the hyper-parameters of its checkpoint.

    Attributes:
        classes: names of the C classes.
        levels: the levels that can be switched off, finest first.

    Examples:
        >>> model = Segmenter(classes=2, encoder="resnet18", weights=None).eval()
        >>> switched = SwitchedModel(model, {"classes": ["background", "pet"], "data": {"size": 64}})
        >>> masks = switched(np.zeros((48, 80, 3), np.uint8), off=[1])
        >>> masks.without.shape
        (48, 80)
    """

    def __init__(self, model: Segmenter, known: dict[str, Any]):
        self.classes = tuple(known["classes"])
        fusions = model.net.fusion_of
        self.levels = [level for level in levels_to_cut(model) if fusions[level].is_whole_without]
        self._model, self._view = model, View.of(known["data"])

    def __call__(self, image: Any, off: Sequence[int] = ()) -> CutMasks:
        """Return the masks of a picture, which is read as by `unetseg.load`: intact and without the levels `off`.

        Raises:
            UserError: the picture can't be read, or is too large for a page.
        """
        engine = CutEngine(self._model, classes=self.classes * (2 if off else 1), view=self._view)
        engine.cut = off
        count = len(self.classes)
        with open_picture(image, self._view) as picture:
            if picture.height * picture.width > LARGEST:
                raise UserError(
                    f"the picture has {picture.height * picture.width:,} pixels",
                    accepted=f"at most {LARGEST:,} on a page",
                    advice="python -m unetseg.predict overlay=true",
                )
            bands = next(Predictor(engine).bands([picture]))
            masks = [(argmax(band[..., :count]), argmax(band[..., -count:])) for band in bands]
            intact, without = (np.concatenate(parts) for parts in zip(*masks, strict=True))
            shown = displayed(picture.rows(0, picture.height), self._view)
            return CutMasks(shown, intact, without, is_background(self.classes))


def sentence(masks: CutMasks, off: Sequence[int], classes: Sequence[str]) -> str:
    """Return one sentence on the masks: the share of each class, or how much changed without the levels `off`."""
    if not off:
        shares = 100 * np.bincount(masks.intact.ravel(), minlength=len(classes)) / masks.intact.size
        return "The mask is " + ", ".join(f"{share:.1f} % {name}" for name, share in zip(classes, shares, strict=True))
    *others, last = map(str, sorted(off))
    levels = f"levels {', '.join(others)} and {last}" if others else f"level {last}"
    changed, iou = 100 * masks.changed_share(), masks.iou(len(classes))
    return f"Without {levels}, {changed:.2f} % of the pixels changed; the IoU of the two masks is {iou:.3f}"


def score(masks: CutMasks, truth: np.ndarray, off: Sequence[int], classes: int) -> str:
    """Return one sentence on the IoU of the masks with the truth, HxW uint8 classes."""
    intact = f"IoU with the truth: {iou(truth, masks.intact, classes):.3f}"
    return f"{intact}, and {iou(truth, masks.without, classes):.3f} without the skips that are off" if off else intact


def changes(classes: Sequence[str]) -> str:
    """Return what the colours of the changed pixels mean, for the classes of the model."""
    words = {
        overlays.MISSED: "blue lost",
        overlays.INVENTED: "red gained",
        overlays.CONFUSED: "orange of another class",
    }
    return ": " + ", ".join(words[colour] for colour in overlays.kinds_of_errors(classes).values())


def save_drawings(drawings: dict[str, np.ndarray], name: str) -> list[str]:
    """Write drawings, HxWx3 uint8, as NAME-PART.png into gradio's folder, in a quarter of gradio's own time."""
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR")))
    paths = [str(folder / f"{name}-{part}.png") for part in drawings]
    for path, drawing in zip(paths, drawings.values(), strict=True):
        cv2.imwrite(path, drawing[..., ::-1])
    return paths


def page(
    model: SwitchedModel, checkpoint: str, known: dict[str, Any], examples: Sequence[ExamplePicture] = ()
) -> gr.Blocks:
    """Return the page; `launch` serves it.

    Args:
        model: the model of the page.
        checkpoint: its path, as the user wrote it.
        known: its hyper-parameters.
        examples: pictures that can be chosen by a click.
    """
    import gradio as gr

    kinds = known["model"]["skip"]
    skips = [kinds] * LEVELS if isinstance(kinds, str) else kinds
    colours = changes(model.classes)
    files = [save_drawings({"example": example.picture}, example.name)[0] for example in examples]

    def show(file: str | None, off: Sequence[int] = ()) -> list[Any]:
        """Return the sentences and the pictures; those that there are none of are hidden."""
        if file is None:
            return ["", *_images({})]
        try:
            masks = model(file, off)
        except UserError as error:
            text = html.escape(str(error).replace(file, Path(file).name))
            return [f"<p class='say'>{text}</p>", *_images({})]
        truth = next((e.truth for e in examples if np.array_equal(e.picture, masks.picture)), None)
        parts = list(PICTURES)[: 3 if off else 1]
        drawings = dict(zip(parts, masks.drawings(), strict=False))
        sentences = [sentence(masks, off, model.classes)]
        if truth is not None:
            drawings["truth"] = masks.drawing_of(truth)
            sentences.append(score(masks, truth, off, len(model.classes)))
        paths = dict(zip(drawings, save_drawings(drawings, Path(file).stem), strict=True))
        return ["".join(f"<p class='say'>{html.escape(text)}.</p>" for text in sentences), *_images(paths)]

    with gr.Blocks(title=f"unetseg: {checkpoint}", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(_head(checkpoint, known))
        with gr.Row(elem_id="page"):
            with gr.Column(elem_id="given"):
                file = gr.File(label="Picture", height=140, elem_id="picture")
                chosen = gr.Dataset(
                    label="Examples, drawn here",
                    components=[gr.Image(render=False)],
                    samples=[[path] for path in files],
                    type="index",
                    visible=bool(files),
                    elem_id="examples",
                )
            with gr.Column(elem_id="result"):
                answer = gr.HTML("<p class='say'>Choose an example, or drop a picture.</p>", elem_id="said")
                with gr.Row():
                    pictures = [
                        gr.Image(
                            label=f"{label}{colours}" if name == "changed" else label,
                            interactive=False,
                            buttons=["download", "fullscreen"],
                            visible=False,
                            min_width=260,
                            elem_id=name,
                            elem_classes="shown",
                        )
                        for name, label in PICTURES.items()
                    ]
            with gr.Column(elem_id="controls"):
                drawing = gr.HTML(draw_unet(skips, model.levels), elem_id="unet")
                off = gr.CheckboxGroup(
                    [(f"level {level}, stride {2**level}", level) for level in model.levels],
                    label="Long skips that are switched off",
                    visible=bool(model.levels),
                    elem_id="off",
                )
                gr.HTML(f"<p class='note'>{CUT if model.levels else NO_LEVELS}</p>")
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        chosen.click(lambda number: files[number], chosen, file, **quiet)
        off.change(lambda off: draw_unet(skips, model.levels, off), off, drawing, **quiet)
        gr.on(
            [file.change, off.change],
            show,
            [file, off],
            [answer, *pictures],
            trigger_mode="always_last",
            show_progress="minimal",
            api_visibility="private",
        ).then(None, js=TO_RESULT, api_visibility="private")
    return blocks


def _images(paths: dict[str, str]) -> list[Any]:
    """Return what the page's pictures become: those with a path are shown."""
    import gradio as gr

    return [gr.update(value=paths.get(name), visible=name in paths) for name in PICTURES]


def launch(blocks: gr.Blocks, host: str, port: int) -> str:
    """Serve the page in a thread and return its address. It uses the system's fonts, so that it needs no network."""
    import gradio as gr

    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        footer_links=[],
        prevent_thread_lock=True,
        quiet=True,
        theme=theme,
        css=CSS,
    )
    return address


def _head(checkpoint: str, known: dict[str, Any]) -> str:
    """Return the head of the page as HTML: the model and the colours of its classes."""
    model, data = known["model"], known["data"]
    colours = "".join(
        f"<span class='class'><span class='colour' style='background: rgb({red}, {green}, {blue})'></span>"
        f"{html.escape(name)}</span> "
        for name, (red, green, blue) in legend(known["classes"])
    )
    description = f"{model['encoder']}, skip={one_word(model['skip'])}, {data['name']}: {view_text(data)}"
    line = f"<code>{html.escape(checkpoint)}</code> · {html.escape(description)} · {colours}"
    return f"<h1>What does each long skip do?</h1><p>{line}</p>"
