"""How training pictures are augmented: presets by name, or a list of albumentations by name and arguments.

What moves a picture moves its mask in the same way, by nearest neighbour. What moves in from outside has the mean
colour, and is IGNORE in the mask.

Legend: H x W pixels of a picture, S side of a square or a crop, C channels.
"""

from __future__ import annotations

import inspect
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from unetseg.data.view import COLOUR, RGB, View
from unetseg.errors import UserError, first_line
from unetseg.names import IGNORE, NESTED, counted, nearest_first

Augment = bool | str | Sequence[str | Mapping[str, Any]]
"""data.augment: true (light), false (none), a name of PRESETS, or a list of NAME or {NAME: {ARGUMENT: VALUE}}."""
TURN = 15
"""Degrees by which `light` turns a picture at most, either way."""
SCALES = (0.8, 1.25)
BEND, WAVE = 0.012, 0.07
"""The standard deviation of an elastic deformation and the width of its waves, in sides of the picture."""
MOST_BENT = 0.036
"""How far a deformation moves a pixel, in sides: three standard deviations."""
OUTSIDE = ("metadata_key", "read_fn", "font_path", "cropping_bbox_key")
"""Arguments of transforms that need more than a picture and its mask."""
WITHHELD = ("mask", "mask_params", "mask_interpolation")
"""Arguments that a list can't give: functions or arrays, and how masks are resampled: always by nearest neighbour."""
RESIZING = ("CropAndPad", "RandomResizedCrop", "RandomSizedCrop")
"""Transforms that cut and enlarge; OpenCV's INTER_NEAREST would move the mask by half a pixel of the source."""
FILLED_BY_A_NUMBER = ("MaskDropout",)
"""Transforms whose `fill` is one number for all channels."""
TRIES = 3
"""Keys with which a transform of a list is tried before a training."""


class Recipe(NamedTuple):
    """The steps of an augmentation."""

    steps: Sequence[Any] = ()
    """albumentations' steps: from squares to squares, or from a crop with its surroundings to the crop."""
    margin: int = 0
    """Pixels on each side of a crop that may turn into it."""
    rescales: bool = False
    """Whether channels that are no colours get another brightness and contrast."""
    copies: bool = False
    """Whether the steps may write into the picture that they get."""


class Preset(NamedTuple):
    """The steps of a preset, before a crop is cut out."""

    moves: Sequence[Any]
    colours: Sequence[Any]
    reach: float
    """How many times as wide as a crop the part of the picture is at most that a moved crop shows."""


def reach(turn: float, least_scale: float) -> float:
    """Return how many times as wide as a square the one is that it shows turned by +-`turn` degrees and shrunk.

    Examples:
        >>> round(reach(15, 0.8), 2)
        1.53
    """
    return (math.cos(math.radians(turn)) + math.sin(math.radians(turn))) / least_scale


REACH = reach(TURN, SCALES[0])
"""Of `light`, and of a list: enough for any angle at a scale of 0.93 and more."""


def make_recipe(augment: Augment, view: View) -> Recipe:
    """Return the steps of an augmentation for a view.

    Raises:
        UserError: an entry of a list names no transform that can be used, or arguments that it doesn't take.
    """
    if augment is False or augment == "none":
        return Recipe()
    if isinstance(augment, bool | str):
        moves, colours, reached = PRESETS[augment if isinstance(augment, str) else "light"](view)
        colours = colours if view.channels == RGB else []
    else:
        steps = listed(augment, view)
        moving = [place for place, step in enumerate(steps, start=1) if any(map(_moves, _leaves([step])))]
        moves, colours = steps[: max(moving, default=0)], steps[max(moving, default=0) :]
        reached = REACH if moving else 1
    margin = math.ceil((reached - 1) / 2 * view.crop) + 1 if view.crop and reached > 1 else 0
    cut = [_library().CenterCrop(view.crop, view.crop)] if margin else []
    named = isinstance(augment, bool | str)
    return Recipe([*moves, *cut, *colours], margin, named and view.channels != RGB, not named)


def draw_from(steps: Sequence[Any], key: tuple[int, ...]) -> None:
    """Let albumentations' steps draw from one random generator that is seeded with the key, nested ones too.

    Compose.set_random_seed would give each step a generator of its own with the same seed: a picture that is flipped
    would always be moved and recoloured too.
    """
    rng = np.random.default_rng(key)
    for step in steps:
        step.set_random_state(rng, random.Random(int(rng.integers(2**63))))


def listed(entries: Sequence[str | Mapping[str, Any]], view: View) -> list[Any]:
    """Return the steps of a list of NAME or {NAME: {ARGUMENT: VALUE}}, built from albumentations' own classes alone.

    Raises:
        UserError: a name is none of a transform that can be used, or an argument is not accepted.
    """
    return [_step(entry, view) for entry in entries]


def check(entries: Sequence[str | Mapping[str, Any]], view: View, classes: int) -> None:
    """Raise a UserError that names the first transform of a list that can't augment pictures of a view.

    Each is applied to a picture of the view's size and channels, whether its probability says so or not.

    Args:
        entries: the list, as `listed` takes it.
        view: how the model sees pictures.
        classes: number of classes.
    """
    side = view.side + 2 * make_recipe(entries, view).margin
    rng = np.random.default_rng(0)
    values = [*range(classes), IGNORE]
    blocks = rng.choice(np.array(values, np.uint8), (side // 8 + 1, side // 8 + 1))
    mask = blocks.repeat(8, axis=0).repeat(8, axis=1)[:side, :side]
    image = rng.integers(0, 256, (side, side, RGB), np.uint8)
    if view.channels != RGB:
        image = rng.normal(0, 100, (side, side, view.channels)).astype(np.float32)
    for step in _leaves(listed(entries, view)):
        fault = _fault(step, image, mask, values)
        if fault:
            raise UserError(
                f"data.augment: {type(step).__name__} {fault}",
                accepted=f"transforms from {_shape_text(image)} to the same, and from {classes} classes to these",
                advice="the list without it, or one of " + ", ".join(f"data.augment={name}" for name in PRESETS),
            )


def _fault(step: Any, image: np.ndarray, mask: np.ndarray, values: Sequence[int]) -> str:
    """Return what is wrong with a transform's results; empty: nothing."""
    for number in range(TRIES):
        try:
            moved, classes = _applied(step, image, mask, (number,))
            again = _applied(step, image, mask, (number,))
        except Exception as error:  # of any kind, by a transform that this picture isn't for
            return f"fails on {_shape_text(image)}: {first_line(error)}"
        if moved.shape != image.shape or classes.shape != mask.shape:
            return f"makes {_shape_text(moved)} of {_shape_text(image)}"
        if moved.dtype != image.dtype or classes.dtype != mask.dtype:
            return f"makes {moved.dtype} of {image.dtype}"
        unknown = sorted({*np.unique(classes).tolist()} - {*values})
        if unknown:
            return f"gives pixels of the mask the value {unknown[0]}, which is no class"
        if (classes == IGNORE).all():
            return "leaves no pixel of the mask with a class"
        if image.dtype != np.uint8 and (not np.isfinite(moved).all() or (moved.min() >= 0 and moved.max() <= 1)):
            return "takes channels of 0 to 1, and cuts off what other values are stored"
        if not np.array_equal(moved, again[0]) or not np.array_equal(classes, again[1]):
            return "doesn't draw from the seed alone: a run could not be repeated"
    return ""


def _applied(step: Any, image: np.ndarray, mask: np.ndarray, key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return copies of a picture and a mask, changed by a transform whatever its probability."""
    draw_from([step], key)
    with np.errstate(all="ignore"):
        result = step(image=image.copy(), mask=mask.copy(), force_apply=True)
    return np.asarray(result["image"]), np.asarray(result["mask"])


def _shape_text(image: np.ndarray) -> str:
    height, width, *channels = image.shape
    return f"{height} x {width} pixels" + (f" of {counted(channels[0], 'channel')}" if channels else "")


def _step(entry: str | Mapping[str, Any], view: View) -> Any:
    """Return the transform of an entry, its gaps in the picture filled with the mean and ignored in the mask."""
    name, given = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
    kind, arguments = _kind(name), dict(given or {})
    known = [argument for argument in _arguments(kind) if argument not in WITHHELD]
    for argument in arguments:
        if argument not in known:
            nearest = nearest_first(str(argument), known)
            raise UserError(
                f"data.augment: {name} takes no argument {argument}",
                accepted=", ".join(nearest),
                advice=f"{{{name}:{{{nearest[0]}:...}}}}",
            )
    begun_by = next(base for base in kind.__mro__ if "__init__" in vars(base))
    has_checks = "InitSchema" in vars(begun_by)  # albumentations wraps the __init__ of such a class
    if not has_checks and not _is_probability(arguments.get("p", 1.0)):
        raise UserError(
            f"data.augment: {name} is not accepted with p={arguments['p']}", accepted="p from 0 to 1", advice="p=0.5"
        )
    if name in NESTED:
        arguments["transforms"] = listed(arguments["transforms"], view)
    elif has_checks:
        arguments["strict"] = True  # or what is not accepted becomes a default, with a warning
    if "fill_mask" in known:
        grey = round(sum(COLOUR) / RGB) if name in FILLED_BY_A_NUMBER else [*COLOUR]
        arguments = {"fill": grey if view.channels == RGB else 0, "fill_mask": IGNORE} | arguments
    if name in RESIZING:
        import cv2

        arguments["mask_interpolation"] = cv2.INTER_NEAREST_EXACT
    try:
        return kind(**arguments)
    except Exception as error:  # of any kind, by the transforms' own checks
        faults = error.__cause__.errors() if isinstance(error.__cause__, ValidationError) else []
        argument = next((str(fault["loc"][0]) for fault in faults if fault["loc"]), "")
        text = f"{argument}={arguments.get(argument, '')}" if argument else first_line(error)
        raise UserError(
            f"data.augment: {name} is not accepted with {text}",
            accepted="; ".join(dict.fromkeys(fault["msg"].removeprefix("Input should be ") for fault in faults))
            or f"arguments as in albumentations: {', '.join(known)}",
            advice=f"python -c 'import albumentations; help(albumentations.{name})'",
        ) from None


def _kind(name: str) -> type:
    """Return the class of a transform that a list may name."""
    kinds = _kinds()
    if name in kinds:
        return kinds[name]
    theirs = getattr(_library(), name, None) if name.isidentifier() else None
    why = "is not accepted"
    if inspect.isclass(theirs) and issubclass(theirs, _library().BasicTransform | _library().BaseCompose):
        why = "is not accepted: it takes functions, files, boxes or volumes, or changes a picture's type"
    nearest = nearest_first(name, [*kinds])
    raise UserError(
        f"data.augment: {name} {why}",
        accepted=f"transforms of albumentations: {', '.join(nearest[:8])}, ...",
        advice=nearest[0],
    )


@cache
def _kinds() -> dict[str, type]:
    """Return the transforms of albumentations that take a picture and a mask alone, by their names.

    They are classes of the module itself: a list, which may be a stranger's, can name nothing else.
    """
    library = _library()
    bases = (library.DualTransform, library.ImageOnlyTransform)
    kinds = {
        name: kind
        for name, kind in vars(library).items()
        if inspect.isclass(kind)
        and issubclass(kind, bases)
        and not issubclass(kind, library.Transform3D | library.Lambda)
        and kind not in bases
        and "BBox" not in name
        and not {*_arguments(kind)} & {*OUTSIDE}
    }
    return kinds | {name: getattr(library, name) for name in NESTED}


def _arguments(kind: type) -> list[str]:
    return [name for name in inspect.signature(kind.__init__).parameters if name != "self"]  # type: ignore[misc]


def _leaves(steps: Sequence[Any]) -> list[Any]:
    """Return the steps without those that have others in them, and these others."""
    nested = _library().BaseCompose
    return [leaf for step in steps for leaf in (_leaves(step.transforms) if isinstance(step, nested) else [step])]


def _is_probability(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value <= 1


def _moves(step: Any) -> bool:
    return isinstance(step, _library().DualTransform)


def _library() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or its import asks the network for a newer version
    import albumentations

    return albumentations


def _affine(
    view: View, scale: tuple[float, float], turn: float, shift: float, p: float, keep_ratio: bool = True
) -> Any:
    return _library().Affine(
        scale=scale,
        keep_ratio=keep_ratio,
        rotate=(-turn, turn),
        translate_percent=None if view.crop or not shift else (-shift, shift),  # a crop lies anywhere already
        fill=COLOUR if view.channels == RGB else 0,
        fill_mask=IGNORE,  # the default, 0, would teach that the frame is background
        p=p,
    )


def _light(view: View) -> Preset:
    """Flip, scale, rotation, translation and colours, all of them mild."""
    A = _library()
    moves = [A.HorizontalFlip(p=0.5), _affine(view, SCALES, TURN, 0.08, 0.8, keep_ratio=False)]
    return Preset(moves, [A.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (-0.03, 0.03), p=0.8)], REACH)


def _strong(view: View) -> Preset:
    """The same in larger amounts, grey pictures, and blur or noise."""
    A = _library()
    turn, scales = 30, (0.7, 1.4)
    moves = [A.HorizontalFlip(p=0.5), _affine(view, scales, turn, 0.1, 0.9)]
    colours = [
        A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.5, 1.5), (-0.05, 0.05), p=0.8),
        A.ToGray(p=0.05),
        A.OneOf([A.GaussianBlur(sigma_limit=(0.3, 1.2)), A.GaussNoise(std_range=(0.02, 0.06))], p=0.2),
    ]
    return Preset(moves, colours, reach(turn, scales[0]))


def _medical(view: View) -> Preset:
    """The square's symmetries, scale, rotation, elastic deformation, gamma, brightness and contrast; no hue.

    Simard, Steinkraus and Platt 2003 deform by Gaussian-filtered noise: uniform in -1..1 and filtered with sigma, its
    standard deviation is 1 / (2 sigma sqrt(3 pi)), by which the amount is divided.
    """
    A = _library()
    turn, scales = 15, (0.85, 1.2)
    sigma = WAVE * view.side
    bend = A.ElasticTransform(
        alpha=BEND * view.side * 2 * sigma * math.sqrt(3 * math.pi),
        sigma=sigma,
        fill=COLOUR if view.channels == RGB else 0,
        fill_mask=IGNORE,
        p=0.3,
    )
    colours = [A.RandomGamma((75, 135), p=0.5), A.RandomBrightnessContrast(0.15, 0.2, p=0.5)]
    return Preset(
        [A.D4(p=1), _affine(view, scales, turn, 0.05, 0.7), bend], colours, reach(turn, scales[0]) + 2 * MOST_BENT
    )


def _aerial(view: View) -> Preset:
    """The square's symmetries, a mild scale, and colours: the sun and the season, seen from above."""
    A = _library()
    scales = (0.85, 1.2)
    colours = [A.ColorJitter((0.75, 1.25), (0.75, 1.25), (0.75, 1.25), (-0.03, 0.03), p=0.8)]
    return Preset([A.D4(p=1), _affine(view, scales, 0, 0.05, 0.7)], colours, reach(0, scales[0]))


PRESETS: dict[str, Callable[[View], Preset]] = {
    "light": _light,
    "strong": _strong,
    "medical": _medical,
    "aerial": _aerial,
}
