"""What the demo's page shows: a picture's mask, the mask without some long skips, and what changed between them.

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

from unetseg.data.pictures import opened
from unetseg.errors import UserError
from unetseg.evaluation import overlays
from unetseg.evaluation.lesions import levels_to_cut
from unetseg.evaluation.metrics import COUNTS, scores
from unetseg.inference.engines import TorchEngine
from unetseg.inference.predictor import Predictor, argmax
from unetseg.model.segmenter import Segmenter, probabilities
from unetseg.names import one_word

if TYPE_CHECKING:
    import gradio as gr

LARGEST = 64_000_000
"""Pixels of a picture that the page takes: beyond that a browser shows it with difficulty."""
BAND = 512
"""Rows that are drawn at once, to spare memory."""

CUT = (
    "A long skip that is switched off carries zeros in place of the encoder's features, as in "
    "<code>unetseg.evaluate lesion=true</code> with cut “zero”. This shows what the trained model relies on; what a "
    "network could learn without that skip takes a training without it."
)
NO_LEVELS = "No long skip of this model carries features from the encoder, so there is none to switch off."
PICTURES = {
    "intact": "all long skips on",
    "without": "without those switched off",
    "changed": "what changed: blue lost, red gained",
}
CSS = """
h1 { font-size: 1.4rem; margin: 0 }
.say { font-size: 1.1rem; margin: 0; white-space: pre-line }
.note { font-size: 0.85rem; margin: 0; opacity: 0.8 }
.colour { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; margin: 0 0.35em 0 0.6em }
#off .wrap { flex-direction: column }
/* the label and the buttons would cover the picture */
#intact, #without, #changed { padding-top: 30px }
#intact .icon-button-wrapper, #without .icon-button-wrapper, #changed .icon-button-wrapper { top: -30px }
"""


class CutEngine(TorchEngine):
    """A Segmenter that answers twice, intact and with zeros in place of some levels' features.

    The encoder runs once. `probabilities` gives Bx2CxHxW, the intact model's C first; or BxCxHxW with nothing cut.

    Attributes:
        cut: levels that are cut, 1 the finest.
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
    """A picture and what the model makes of it, all of one size."""

    picture: np.ndarray
    """HxWx3 uint8."""
    intact: np.ndarray
    """HxW uint8 classes."""
    without: np.ndarray
    """HxW uint8 classes, without the levels that are off."""

    def changed(self) -> float:
        """Return the share of the pixels whose class differs."""
        return float((self.intact != self.without).mean())

    def iou(self, classes: int) -> float:
        """Return the IoU of the two masks as evaluate computes it, the intact one in place of the truth."""
        cells = np.zeros(classes**2, np.int64)
        for top in range(0, len(self.intact), BAND):
            pairs = self.intact[top : top + BAND].astype(np.intp) * classes + self.without[top : top + BAND]
            cells += np.bincount(pairs.ravel(), minlength=classes**2)
        table = cells.reshape(classes, classes)
        counts = np.zeros((classes, len(COUNTS)), np.int64)
        counts[:, :3] = np.stack([table.diagonal(), table.sum(0), table.sum(1)], axis=-1)
        return float(scores(torch.from_numpy(counts))["iou"])

    def drawings(self) -> Iterator[np.ndarray]:
        """Yield the picture with the intact mask, with the other one, and pale with the pixels that changed."""
        yield self._drawn(overlays.overlay, self.intact)
        yield self._drawn(overlays.overlay, self.without)
        yield self._drawn(overlays.errors, self.intact, self.without)

    def _drawn(self, draw: Callable[..., np.ndarray], *masks: np.ndarray) -> np.ndarray:
        bands = [slice(top, top + BAND) for top in range(0, len(self.picture), BAND)]
        return np.concatenate([draw(self.picture[band], *(mask[band] for mask in masks)) for band in bands])


class SwitchedModel:
    """A trained model whose long skips can be switched off.

    Args:
        model: in eval mode.
        known: its checkpoint's hyper-parameters.

    Attributes:
        classes: names of the C classes.
        levels: the levels that can be switched off, finest first.
    """

    def __init__(self, model: Segmenter, known: dict[str, Any]):
        self.classes = tuple(known["classes"])
        self.levels = levels_to_cut(model)
        self._model, self._size, self._range = model, known["data"]["size"], known["data"].get("range")

    def __call__(self, image: Any, off: Sequence[int] = ()) -> CutMasks:
        """Return what the model makes of a picture, as `unetseg.load` reads it, intact and without the levels `off`.

        Raises:
            UserError: the picture can't be read, or is too large for a page.
        """
        engine = CutEngine(self._model, classes=self.classes * (2 if off else 1), size=self._size)
        engine.cut = off
        count = len(self.classes)
        with opened(image, self._range) as picture:
            if picture.height * picture.width > LARGEST:
                raise UserError(
                    f"the picture has {picture.height * picture.width:,} pixels",
                    accepted=f"at most {LARGEST:,} on a page",
                    advice="python -m unetseg.predict overlay=true",
                )
            bands = next(Predictor(engine).bands([picture]))
            masks = [(argmax(band[..., :count]), argmax(band[..., -count:])) for band in bands]
            intact, without = (np.concatenate(parts) for parts in zip(*masks, strict=True))
            return CutMasks(picture.rows(0, picture.height), intact, without)


def sentence(masks: CutMasks, off: Sequence[int], classes: Sequence[str]) -> str:
    """Return what is to be said of the masks, in one sentence."""
    if not off:
        shares = 100 * np.bincount(masks.intact.ravel(), minlength=len(classes)) / masks.intact.size
        return "The mask is " + ", ".join(f"{share:.1f} % {name}" for name, share in zip(classes, shares, strict=True))
    *others, last = map(str, sorted(off))
    levels = f"levels {', '.join(others)} and {last}" if others else f"level {last}"
    changed, iou = 100 * masks.changed(), masks.iou(len(classes))
    return f"Without {levels}, {changed:.2f} % of the pixels changed; the IoU of the two masks is {iou:.3f}"


def saved(drawings: dict[str, np.ndarray], name: str) -> list[str]:
    """Write drawings, HxWx3 uint8, as NAME-PART.png where gradio keeps pictures, in a quarter of its own time."""
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR")))
    paths = {str(folder / f"{name}-{part}.png"): drawn for part, drawn in drawings.items()}
    for path, drawn in paths.items():
        cv2.imwrite(path, drawn[..., ::-1])
    return list(paths)


def page(model: SwitchedModel, checkpoint: str, known: dict[str, Any]) -> gr.Blocks:
    """Return the page, which is not served yet.

    Args:
        model: what the page shows.
        checkpoint: its path, as the user wrote it.
        known: its hyper-parameters.
    """
    import gradio as gr

    def show(file: str | None, off: Sequence[int] = ()) -> list[Any]:
        """Return the sentence and the three pictures, of which the last two are there when a level is off."""
        nothing = [None, gr.update(value=None, visible=False), gr.update(value=None, visible=False)]
        if file is None:
            return ["", *nothing]
        try:
            found = model(file, off)
        except UserError as error:
            text = html.escape(str(error).replace(file, Path(file).name))
            return [f"<p class='say'>{text}</p>", *nothing]
        parts = list(PICTURES) if off else ["intact"]
        paths = saved(dict(zip(parts, found.drawings(), strict=False)), Path(file).stem)
        shown = [gr.update(value=path, visible=True) for path in paths] if off else [*paths, *nothing[1:]]
        return [f"<p class='say'>{html.escape(sentence(found, off, model.classes))}.</p>", *shown]

    with gr.Blocks(title=f"unetseg: {checkpoint}", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(_head(checkpoint, known))
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                file = gr.File(label="Picture", height=140, elem_id="picture")
                off = gr.CheckboxGroup(
                    [(f"level {level}, stride {2**level}", level) for level in model.levels],
                    label="Long skips that are switched off",
                    visible=bool(model.levels),
                    elem_id="off",
                )
                gr.HTML(f"<p class='note'>{CUT if model.levels else NO_LEVELS}</p>")
            with gr.Column(scale=3):
                said = gr.HTML("<p class='say'>Drop a picture at the left.</p>", elem_id="said")
                with gr.Row():
                    pictures = [
                        gr.Image(
                            label=label,
                            interactive=False,
                            buttons=["download", "fullscreen"],
                            visible=name == "intact",
                            elem_id=name,
                        )
                        for name, label in PICTURES.items()
                    ]
        gr.on(
            [file.change, off.change],
            show,
            [file, off],
            [said, *pictures],
            trigger_mode="always_last",
            show_progress="minimal",
            api_visibility="private",
        )
    return blocks


def launch(blocks: gr.Blocks, host: str, port: int) -> str:
    """Serve the page in a thread and return its address. Fonts are the system's: nothing is asked of the network."""
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
    """Return the page's head, HTML: which model this is, and the colours of its classes."""
    model, data = known["model"], known["data"]
    colours = "".join(
        f"<span class='colour' style='background: rgb({red}, {green}, {blue})'></span>{html.escape(name)}"
        for name, (red, green, blue) in zip(known["classes"][1:], _colours(len(known["classes"])), strict=True)
    )
    made = f"{model['encoder']}, skip={one_word(model['skip'])}, {data['name']} at {data['size']} px"
    words = f"<code>{html.escape(checkpoint)}</code> · {html.escape(made)} · {colours}"
    return f"<h1>What does each long skip do?</h1><p>{words}</p>"


def _colours(classes: int) -> np.ndarray:
    """Return the colours of the classes 1, 2, ... in overlays.overlay, (C-1)x3."""
    row = np.arange(1, classes, dtype=np.uint8)[None]
    return overlays.overlay(np.zeros((*row.shape, 3), np.uint8), row, opacity=1)[0]
