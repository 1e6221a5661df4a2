"""Names that every part of the package may know, and how they are written."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
DENSENETS = ("densenet121", "densenet161", "densenet169", "densenet201")
EFFICIENTNETS = tuple(f"efficientnet-b{size}" for size in range(8))
ENCODERS = (
    *RESNETS,
    *("resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_32x16d"),
    *("resnext101_32x32d", "resnext101_32x48d"),
    *("dpn68", "dpn68b", "dpn92", "dpn98", "dpn107", "dpn131"),
    *(f"vgg{layers}{norm}" for layers in (11, 13, 16, 19) for norm in ("", "_bn")),
    *("senet154", "se_resnet50", "se_resnet101", "se_resnet152", "se_resnext50_32x4d", "se_resnext101_32x4d"),
    *DENSENETS,
    *("inceptionresnetv2", "inceptionv4"),
    *EFFICIENTNETS,
    *("mobilenet_v2", "xception"),
    *(f"timm-{name}" for name in (*EFFICIENTNETS, "efficientnet-b8", "efficientnet-l2")),
    *(f"timm-tf_efficientnet_lite{size}" for size in range(5)),
    *("timm-skresnet18", "timm-skresnet34", "timm-skresnext50_32x4d"),
    *(f"mit_b{size}" for size in range(6)),
    *(f"mobileone_s{size}" for size in range(5)),
)
"""The encoders of smp, by the names of its own table."""
TIMM = "tu-"
"""What stands before the name of a model of timm, where that is the encoder."""
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
"""The number formats that a training computes in, by Lightning's names."""
_OWN_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\(.*\))?", re.ASCII)
_TIMM_ENCODER = re.compile(r"tu-[A-Za-z0-9][A-Za-z0-9_.-]{0,98}")
FUSED = ("concat", "add", "attention", "multiply", "respath", "scse", "placebo", "shuffled", "none")
"""The kinds of long skips that a level can have."""
SKIPS = (*FUSED, "nested", "full", "channel", "permuted")
"""These, and those that are decoders of all levels."""
SHORT_SKIPS = ("add", "concat")
"""The ways of short skips; a ResNet's own is the first, a DenseNet's the second."""
FLOWS = ("both", "forward", "backward")
NOT_WITHHELD = {
    "multiply": "times zeros, nothing would be left of the deep path either, nor of its gradient",
    "respath": "each normalisation of its path, of zeros alone, would multiply the gradient that comes back by 316",
    "channel": "each normalisation of its tokens, of zeros alone, would multiply the gradient that comes back by 1,000",
}
"""The kinds of long skips that have no skip_flow=backward, each with the reason."""
SCALES = ("kappa", "learned")
"""The ways to scale what the long skips carry that have names."""
INITIALISATIONS = ("he", "glorot", "looks_linear")
"""The ways to draw a network's first weights."""
LOSSES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("dice", "bce", "bce_dice", "cross_entropy"), ()),
    "focal": ("gamma",),
    "tversky": ("alpha", "beta"),
    **dict.fromkeys(("jaccard", "lovasz"), ()),
    "soft_cross_entropy": ("smoothing",),
    "mcc": (),
}
"""The losses, each with the names of its parameters."""
PIXEL_LOSSES = ("bce", "bce_dice", "cross_entropy", "focal", "soft_cross_entropy")
"""Those that have a cost of each pixel, or a part that has."""
BINARY_LOSSES = ("bce", "bce_dice")
"""Those of two classes alone."""
AUGMENTATIONS = ("none", "light", "strong", "medical", "aerial")
NESTED = ("OneOf", "SomeOf", "RandomOrder", "Sequential")
"""The augmentations that have `transforms` of their own."""
AT_FUSIONS = ("similarity", "rank", "reuse", "spectra")
"""What `evaluate mechanism=...` measures where deep features and long skips meet."""
MECHANISMS = (*AT_FUSIONS, "landscape", "sharpness", "shattering", "hellinger", "oscillation")
"""These, and what it measures of the whole network."""
LEVELS = 4
"""Long skips of a U-Net with five encoder stages; level 1 is the finest (stride 2)."""
BOTTLENECK = "bottleneck"
AUXILIARY = "auxiliary"
EXITS = (*(f"level{level}" for level in range(1, LEVELS + 1)), BOTTLENECK)
"""Where features leave the encoder for the decoder: by the long skip of a level, or at its end. Heads on the encoder's
features are one exit more, AUXILIARY."""
ENCODER_ONLY = "encoder:"
"""Before what `model.weights` names: of that network the encoder alone."""
IGNORE = 255
"""The mask value that neither the loss nor a metric counts."""
IGNORED = "ignore"
"""The name under which `data.values` lists what is not counted."""
PET_CLASSES = {"pet": ("background", "pet"), "trimap": ("background", "pet", "boundary")}
"""The classes of a set in the layout of Oxford-IIIT Pet, by its `target`."""
MOST_CHANNELS = 128
"""Most channels of a picture: OpenCV has no more."""
LONGEST_CLASS = 500
"""Most letters of the name of a class of the user's own, with its arguments."""
OWN_CLASS = "package.module:Class of your own"
"""What such a name is called."""
LARGEST_SIZE = 8192
"""Largest side in pixels of the square that a model is trained on, so that no file makes us use all memory."""
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of controls, formats (such as a change of direction), stray bytes and line separators."""
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""What a spreadsheet takes for the beginning of a formula."""
PETS_ROOT = Path("data/oxford-iiit-pet")
"""Where `data=pets` looks, and downloads to, when `data.root` is null."""


def own_short_skips(encoder: str) -> str | None:
    """Return the way in which an encoder has short skips as it was published; None if it is neither of both."""
    return "add" if encoder in RESNETS else "concat" if encoder in DENSENETS else None


def why_not_withheld(skip: str, flow: str) -> str:
    """Return why a long skip of this kind can't have this flow; empty where it can."""
    return NOT_WITHHELD.get(skip, "") if flow == "backward" else ""


def why_not_looks_linear(
    encoder: str, short_skips: bool | str, skips: Sequence[str], scale: object, others: bool
) -> tuple[str, str]:
    """Return why a network can't begin as a linear one, and what to set instead; empty where it can.

    Args:
        encoder: its name.
        short_skips: as the option.
        skips: the kind of long skip of each level.
        scale: of the skips' features.
        others: whether there is a stem skip, or widths are scaled to a number of parameters.
    """
    if encoder not in RESNETS:
        return f"a ResNet ({', '.join(RESNETS)}); others have layers that are no plain convolutions", "encoder=resnet18"
    if short_skips not in (False, "concat"):
        return "short_skips=false or concat: an addition of what a ReLU has cut is no part of a linear network", (
            "short_skips=false"
        )
    if not {*skips} <= {"concat", "add", "shuffled", "none"}:
        return "skip=concat, add, shuffled or none: the others aren't linear in the features", "skip=concat"
    if scale == "learned":
        return "another skip_scale than learned, whose factors depend on the features", "skip_scale=1"
    if others:
        return "neither stem_skip nor match_parameters, whose widths don't fall into two mirrored halves", (
            "match_parameters=false model.stem_skip=false"
        )
    return "", ""


def is_encoder(name: object) -> bool:
    """Return whether this may be an encoder's name: smp's, or `tu-` and a name as timm's are, which it may not know.

    Names with a source before them, such as hf-hub:USER/NAME, are none: timm would fetch what they name.

    Examples:
        >>> is_encoder("mit_b0"), is_encoder("tu-convnext_atto.d2_in1k"), is_encoder("tu-hf-hub:user/name")
        (True, True, False)
    """
    return isinstance(name, str) and (name in ENCODERS or _TIMM_ENCODER.fullmatch(name) is not None)


def is_own(name: object) -> bool:
    """Return whether this names a class of the user's own: `package.module:Class`, or with arguments in brackets.

    Examples:
        >>> is_own("my_skips:Maximum"), is_own("my_skips:Gated(reduction=4)"), is_own("concat")
        (True, True, False)
    """
    return isinstance(name, str) and len(name) <= LONGEST_CLASS and _OWN_CLASS.fullmatch(name) is not None


def has_gradient(skip: str, flow: str) -> bool:
    """Return whether the whole gradient of a long skip comes back by it, so that there is something to multiply."""
    return skip not in ("placebo", "none") and flow == "both"


def has_features(skip: str, flow: str) -> bool:
    """Return whether a long skip carries the encoder's features, so that there is something to scale."""
    return skip not in ("placebo", "none") and flow != "backward"


def has_stem_skip(finest: str) -> bool:
    """Return whether there is a long skip of stride 1 of the kind that level 1 has."""
    return is_own(finest) or (finest in FUSED and finest != "none")


def nearest_first(wanted: str, names: Sequence[str]) -> list[str]:
    """Return the names, the most similar to `wanted` first; of two alike, the one with more letters in their place."""

    def likeness(name: str) -> tuple[float, int]:
        same_places = sum(a == b for a, b in zip(wanted, name, strict=False))
        return difflib.SequenceMatcher(None, wanted, name).ratio(), same_places

    return sorted(names, key=likeness, reverse=True)


def alike(per_level: Any) -> Any:
    """Return the one value of a list of LEVELS equal ones, which is another name of the same; others as they are.

    Examples:
        >>> alike([1.0, 1.0, 1.0, 1.0]), alike(["none", "add", "add", "add"]), alike("concat")
        (1.0, ['none', 'add', 'add', 'add'], 'concat')
    """
    is_one = isinstance(per_level, list) and len(per_level) == LEVELS and all(own == per_level[0] for own in per_level)
    return per_level[0] if is_one else per_level


def one_word(per_level: str | float | Sequence[str] | Sequence[float]) -> str:
    """Return a setting as one word: concat, 0.5, or none-concat-add-concat (finest first)."""
    entries = [per_level] if isinstance(per_level, str | float | int) else per_level
    return "-".join(entry if isinstance(entry, str) else f"{entry:.12g}" for entry in entries)


def class_names(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes 0, 1, ... by the data section of a run's options."""
    return tuple(data["classes"]) if "classes" in data else PET_CLASSES[data["target"]]


def view_text(data: Mapping[str, Any]) -> str:
    """Return how a model sees pictures by the data section of a run's options, in words.

    Examples:
        >>> view_text({"size": 256}), view_text({"size": 256, "crop": 128, "scale": 0.5})
        ('256 px', 'crops of 128 px at scale 0.5')
    """
    channels = "" if data.get("channels") in (None, 3) else f", {counted(data['channels'], 'channel')}"
    if data.get("crop") is None:
        return f"{data.get('size')} px{', padded' if data.get('fit') == 'pad' else ''}{channels}"
    scale = data.get("scale", 1)
    return f"crops of {data['crop']} px{'' if scale == 1 else f' at scale {scale}'}{channels}"


def shown(name: object) -> str:
    r"""Return a name in which controls of a terminal, invisible characters and bytes that are no UTF-8 are escaped.

    Examples:
        >>> shown("a\n0 unreadable\x1b[2J.png")
        'a\\n0 unreadable\\x1b[2J.png'
    """
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in UNSEEN else letter
        for letter in str(name)
    )


def cell(name: object) -> str:
    r"""Return a name for a cell of a CSV table: escaped as by `shown`, and no formula for a spreadsheet.

    A backslash is escaped as well, so that two names never become one.

    Examples:
        >>> print(cell("a\n"), cell(r"a\n"), cell("=1+1"))
        a\n a\\n '=1+1
    """
    text = shown(str(name).replace("\\", "\\\\"))
    return f"'{text}" if text.startswith(FORMULA) else text


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 run, 2 runs."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def minutes(seconds: float) -> str:
    """Return a duration as minutes and seconds: 4:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
