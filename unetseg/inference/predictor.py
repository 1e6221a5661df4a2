"""A trained model as a function of pictures. No Lightning, Hydra, albumentations or W&B.

    model = unetseg.load("runs/NAME")
    mask = model("picture.jpg")                  HxW uint8 classes, at the picture's own size
    proba = model.probability("picture.jpg")     HxWxC float32

Legend: H x W pixels, C classes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from unetseg.data.pictures import Picture, open_picture
from unetseg.data.tiling import GRID, OVERLAP, argmax, from_square, predict_scaled
from unetseg.data.transforms import fit_image
from unetseg.data.view import View
from unetseg.data.volumes import Volume, has_slices
from unetseg.errors import UserError
from unetseg.huggingface import PREFIX, fetch_model, is_model_folder
from unetseg.inference.engines import EXPORT, READERS, Engine, TorchEngine, load_exported
from unetseg.model import checkpoint
from unetseg.runs import artifact

LARGE = 16_000_000
"""Pixels above which a picture is predicted in tiles by default."""
TILE = 512
"""Side of these tiles."""
MOST = 200_000_000
"""The most pixels of a picture that is resized, for which all of it must be in memory."""


class Predictor:
    """Segments pictures of any size.

    Args:
        engine: the model.
        tile: None: pictures are predicted as the model was trained and scored: fitted into its square, and above 16
            megapixels in tiles of 512 pixels; or, where it was trained on crops, in tiles of a crop's side. A multiple
            of 32: pictures are predicted in tiles of this side, at their own resolution or the scale of the crops. 0:
            pictures are fitted into the square up to 200 megapixels.
        overlap: pixels over which neighbouring tiles are blended, at most half a tile; None: 64, or half a tile where
            that is less, as in evaluate.
        tta: test-time augmentation: the mean over the picture and its mirror image.
        batch_size: tiles, or pictures of a list, that the model gets at once.

    Raises:
        UserError: an argument isn't accepted.

    Examples:
        >>> from unetseg.model import Segmenter
        >>> model = Segmenter(classes=2, encoder="resnet18", weights=None).eval()
        >>> predictor = Predictor(TorchEngine(model, classes=("background", "pet"), view=View(64), device="cpu"))
        >>> predictor(np.zeros((48, 100, 3), np.uint8)).shape
        (48, 100)
    """

    def __init__(
        self,
        engine: Engine,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        tta: bool = False,
        batch_size: int = 4,
    ):
        if tile is not None and (tile < 0 or tile % GRID):
            raise UserError(
                f"tile={tile} is not accepted", accepted=f"a multiple of {GRID}, or 0", advice=f"tile={TILE}"
            )
        if tile == 0 and engine.view.crop is not None:
            raise UserError(
                "tile=0 with a model of crops, which has no square", advice=f"tile={engine.view.crop}, or no tile"
            )
        side = tile or engine.view.crop or TILE
        overlap = min(OVERLAP, side // 2) if overlap is None else overlap
        if not 0 <= overlap <= side // 2:
            raise UserError(f"overlap={overlap} is not accepted", accepted=f"0 to half a tile, {side // 2}")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} is not accepted", accepted="1 or more")
        self.engine, self.tile, self.overlap, self.tta, self.batch_size = engine, tile, overlap, tta, batch_size

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes 0, 1, ... of a mask."""
        return self.engine.classes

    @property
    def view(self) -> View:
        """How the model sees pictures, as in training."""
        return self.engine.view

    def __call__(self, image: Any) -> Any:
        """Return the class map, HxW uint8, of a picture, or a list of class maps for several pictures.

        Args:
            image: a path, a PIL image or an array, see `unetseg.data.pictures.open_picture`; or several of them: a list
                of these, or BxHxWx3. The path of a NIfTI volume or a TIFF of several pages gives SxHxW, axial slices
                from below, their rows from the front.

        Raises:
            UserError: a picture can't be read.
        """
        return self._predict_each(image, lambda bands: np.concatenate([argmax(band) for band in bands]))

    def probability(self, image: Any) -> Any:
        """Return the probabilities, HxWxC float32 in 0..1 that sum to 1 over C, of a picture, or a list for several."""
        return self._predict_each(image, lambda bands: np.concatenate(list(bands)))

    def bands(self, pictures: list[Picture]) -> Iterator[Iterator[np.ndarray]]:
        """Yield the probabilities of each picture in bands of rows from the top, hxWxC float32."""
        squashed = [picture for picture in pictures if not self._tile_side(picture)]
        whole = squashed if self.view.scale == 1 or self.view.crop is None else pictures
        shapes = [(picture.height, picture.width) for picture in whole]
        if any(max(height * width, math.prod(self.view.resized(height, width))) > MOST for height, width in shapes):
            how, advice = ("tile=0", f"tile={TILE}") if whole is squashed else ("data.scale", "smaller pieces of it")
            raise UserError(f"{how} with a picture of more than {MOST:,} pixels", advice=advice)
        squares: Iterator[np.ndarray] = iter(())
        if squashed:
            images = [fit_image(picture.rows(0, picture.height), self.view) for picture in squashed]
            squares = iter(self._predict(np.stack(images)))
        for picture in pictures:
            tile = self._tile_side(picture)
            if tile:
                sizes = {"tile": tile, "overlap": self.overlap, "batch_size": self.batch_size}
                yield predict_scaled(picture, self._predict, self.view, **sizes)
            else:
                yield from_square(next(squares), self.view, picture.height, picture.width)

    def _predict_each(self, image: Any, finish: Callable[[Iterator[np.ndarray]], np.ndarray]) -> Any:
        if isinstance(image, str | Path) and has_slices(path := Path(os.path.expanduser(image)), self.view):
            return np.stack([finish(bands) for one in Volume(path, self.view) for bands in self.bands([one])])
        if not isinstance(image, list | tuple) and not (isinstance(image, np.ndarray) and image.ndim == 4):
            return self._predict_each([image], finish)[0]
        results = []
        for first in range(0, len(image), self.batch_size):
            with ExitStack() as stack:
                pictures = [
                    stack.enter_context(open_picture(one, self.view)) for one in image[first : first + self.batch_size]
                ]
                results += [finish(bands) for bands in self.bands(pictures)]
        return results

    def _tile_side(self, picture: Picture) -> int:
        """Return the side of the tiles for a picture, 0 to fit it into the square."""
        if self.tile is not None or self.view.crop is not None:
            return self.tile or self.view.crop or 0
        return TILE if picture.height * picture.width > LARGE else 0

    def _predict(self, images: np.ndarray) -> np.ndarray:
        """Map BxHxWxD to BxCxHxW float32 probabilities; raise a UserError if the model returns anything else."""
        answer = self._check_answer(self.engine.probabilities(images), images.shape)
        if self.tta:
            mirrored = self._check_answer(self.engine.probabilities(images[:, :, ::-1]), images.shape)
            answer = (answer + mirrored[..., ::-1]) / 2
        return answer

    def _check_answer(self, answer: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        expected = (shape[0], len(self.classes), *shape[1:3])
        if answer.shape != expected or answer.dtype != np.float32:
            raise UserError(
                f"the model gives {answer.dtype} of shape {answer.shape}", accepted=f"float32 of shape {expected}"
            )
        if not np.isfinite(answer.sum()):
            raise UserError(
                "the model's probabilities are not numbers (NaN)",
                accepted="weights that are numbers",
                advice="another checkpoint; precision=float32",
            )
        return answer


def load(
    path: str | Path,
    *,
    device: str = "auto",
    precision: str = "float32",
    tile: int | None = None,
    overlap: int | None = None,
    tta: bool = False,
    batch_size: int = 4,
    runtime: str = "onnxruntime",
    trust: bool = False,
) -> Predictor:
    """Load a trained model as a function of pictures.

    Args:
        path: a checkpoint of unetseg.train, a run folder (its tested checkpoint), a file that unetseg.export wrote, a
            folder that unetseg.save_pretrained wrote, hf:USER/NAME or hf:USER/NAME@REVISION, such a folder on the
            Hugging Face hub, or wandb:ENTITY/PROJECT/NAME:ALIAS, a model that wandb.log_model=true has uploaded.
        device: "auto" (an accelerator if there is one), "cpu", "cuda", ...; an exported file runs where its runtime is.
        precision: float32 | bfloat16 (faster if the device supports it; probabilities change by some thousandths).
        tile: see Predictor, as for the next three.
        overlap: pixels over which tiles are blended.
        tta: average with the mirror image.
        batch_size: pictures or tiles at once.
        runtime: of an .onnx: onnxruntime | openvino (`pip install 'unetseg[openvino]'`), the faster one for a file that
            was exported with int8.
        trust: open a .pt2, which is a program, and import the classes of somebody's own that a checkpoint names: either
            may do whatever you may do on this machine. Only for files that you made yourself, or whose author you would
            let run programs here. Other files are data and need none.

    Raises:
        UserError: the file can't be read safely or is no model of unetseg; an option isn't accepted.
    """
    options: dict[str, Any] = {"tile": tile, "overlap": overlap, "tta": tta, "batch_size": batch_size}
    if str(path).startswith(artifact.PREFIX):
        path = artifact.fetch(str(path))
    elif str(path).startswith(PREFIX):
        path = fetch_model(str(path))
    path = Path(os.path.expanduser(path))
    if path.suffix in READERS:
        if device not in ("auto", "cpu"):
            raise UserError(
                f"{path} can't be put on {device}", accepted="auto or cpu: an exported file runs where its runtime does"
            )
        return Predictor(load_exported(path, trust=trust, runtime=runtime, precision=precision), **options)
    if runtime != "onnxruntime":
        raise UserError(
            f"runtime={runtime} with {path}, which runs in torch",
            accepted="an .onnx",
            advice=EXPORT.replace("RUN", str(path)),
        )
    read = checkpoint.load_pretrained if is_model_folder(path) else checkpoint.load
    model, hyper_parameters = read(path, trust=trust)
    data = hyper_parameters["data"]
    engine = TorchEngine(
        model,
        classes=tuple(hyper_parameters["classes"]),
        view=View.of(data),
        device=device,
        precision=precision,
    )
    return Predictor(engine, **options)
