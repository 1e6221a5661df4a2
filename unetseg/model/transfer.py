"""The first weights of a network from a trained one: the whole where it fits, or the encoder alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from unetseg.errors import UserError
from unetseg.huggingface import PREFIX, fetch_model, is_model_folder
from unetseg.model import checkpoint, hub
from unetseg.model.encoders import normalisation_of
from unetseg.model.segmenter import Segmenter
from unetseg.model.unet import SkipUnet
from unetseg.model.weights import COUNTER, MatchedNames, first_convolution, for_channels, load_encoder
from unetseg.names import ENCODER_ONLY, one_word

MATCHED = "matched"
State = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A trained network, and what is known of its data.

    Attributes:
        net: in eval mode.
        classes: their names; None where they aren't stated.
        data: how it sees pictures, as `unetseg.data.view.View.of` takes it; None where it isn't stated.
    """

    net: SkipUnet
    classes: list[str] | None
    data: dict[str, Any] | None

    @classmethod
    def read(cls, path: Path, *, trust: bool = False) -> Source:
        """Read a run folder (its tested checkpoint), a checkpoint or a folder of save_pretrained, as data.

        With `trust` the classes of somebody's own that it names are imported.

        Raises:
            UserError: it can't be read safely, or is damaged.
        """
        if is_model_folder(path):
            known = hub.recorded_data(path) or {}
            return cls(SkipUnet.from_pretrained(path, trust=trust), known.get("classes"), known.get("data"))
        model, known = checkpoint.load(path, trust=trust)
        return cls(model.net, known["classes"], known["data"])


@dataclass(frozen=True)
class MatchedParts:
    """What of a network has got another one's weights, part by part.

    Examples:
        >>> print(MatchedParts({"encoder": "matched", "head": "random: other classes"}, ["skip: add there"]))
          encoder  matched
          head     random: other classes
          differs  skip: add there
    """

    parts: dict[str, str]
    """MATCHED, or why the part keeps its random start, by the part's name: encoder, decoder4 ... decoder0, head."""
    remarks: list[str]
    """What differs between the two networks or their data though the weights fit."""

    def __str__(self) -> str:
        rows = [*self.parts.items(), *(("differs", remark) for remark in self.remarks)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:{width}}  {text}" for name, text in rows)


def load_weights(
    model: Segmenter, address: str, classes: Sequence[str], *, strict: bool = True, trust: bool = False
) -> MatchedNames | MatchedParts:
    """Load what `model.weights` names, imagenet apart; what is drawn at random later is the same as without it.

    Args:
        model: changed in place. Its own mean and standard deviation stay.
        address: a .pth or .safetensors file of an encoder; a run folder, a checkpoint, a folder of save_pretrained or
            hf:USER/NAME[@REVISION]; of these, with `encoder:` before, the encoder alone.
        classes: names of the model's classes.
        strict: refuse the weights of another encoder; False takes those that fit.
        trust: import the classes of somebody's own that the file names.

    Returns:
        What matched: names of an encoder's file, otherwise parts.

    Raises:
        UserError: it can't be read, is of another encoder, or nothing of it fits.
    """
    place = address.removeprefix(ENCODER_ONLY)
    path = fetch_model(place) if place.startswith(PREFIX) else Path(os.path.expanduser(place))
    if path.suffix in (".pth", ".safetensors") and path.is_file():
        return load_encoder(model.net.encoder, path, strict=strict)
    with torch.random.fork_rng(devices=[]):
        source = Source.read(path, trust=trust)
    encoder_only = address != place
    fitting, parts = fit(source.net, model.net, encoder_only=encoder_only)
    matched = MatchedParts(parts, remarks(source, model, classes, encoder_only=encoder_only))
    anothers = strict and _another_encoder(source.net.encoder.state_dict(), model.net.encoder.state_dict())
    if anothers or not fitting:
        problem = "is of another encoder" if anothers else "fits no part of the network"
        encoder = cast(dict[str, Any], source.net.config)["encoder"]
        ways = [f"model.encoder={encoder}", "model.strict_weights=false, which takes what fits"]
        raise UserError(
            f"model.weights={address} {problem}:\n{matched}",
            accepted="a network with the same encoder; other classes, skips and channels may differ",
            advice=ways if anothers else ways[0],
        )
    model.net.load_state_dict(fitting, strict=False)
    return matched


def fit(source: SkipUnet, target: SkipUnet, *, encoder_only: bool) -> tuple[State, dict[str, str]]:
    """Return the weights of one network that another can take, by their names, and a word on each part.

    Of the encoder each weight that fits is taken; the first layer is adapted to the number of channels where it can be.
    A block of the decoder and the head are taken whole or not at all: a block whose first layer is random has no use
    for the others' weights.
    """
    fitting, parts = _fit_encoder(source.encoder.state_dict(), target.encoder.state_dict())
    theirs, ours = _blocks(source), _blocks(target)
    for part, own in ours.items():
        why = "the encoder alone is taken" if encoder_only else _why_not(theirs.get(part, {}), own)
        parts[part] = f"random: {why}" if why else MATCHED
        if not why:
            fitting |= theirs[part]
    return fitting, parts


def remarks(source: Source, model: Segmenter, classes: Sequence[str], *, encoder_only: bool) -> list[str]:
    """Return what differs between a trained network and the one that starts from it, though their weights may fit."""
    there, here = (cast(dict[str, Any], net.config) for net in (source.net, model.net))
    pairs = {name: (there[name], here[name]) for name in ("encoder", "short_skips", "normalisation")}
    if not encoder_only:
        for name in ("skip", "skip_flow", "skip_gradient", "skip_scale"):
            pairs[name] = (_per_level(getattr(source.net, name)), _per_level(getattr(model.net, name)))
        pairs["decoder"] = (source.net.own_decoder, model.net.own_decoder)
        pairs["stem_skip"] = (source.net.stem_skip, model.net.stem_skip)
        pairs["classes"] = (", ".join(source.classes or ["not stated"]), ", ".join(classes))
    pairs["channels"] = (there["in_channels"], here["in_channels"])
    lines = [f"{name}: {theirs} there, {own} here" for name, (theirs, own) in pairs.items() if theirs != own]
    for name, of_encoder in zip(("mean", "std"), normalisation_of(there["encoder"]), strict=True):
        values = (source.data or {}).get(name)
        if values is None and there["in_channels"] == 3:  # those of RGB where none are stated
            values = [255 * value for value in of_encoder]
        own = getattr(model, name).flatten()
        if values is None or len(values) != len(own) or not torch.allclose(own, torch.tensor(values).to(own)):
            shown = "not stated" if values is None else _numbers(values)
            lines.append(f"{name} of the channels: {shown} there, {_numbers(own.tolist())} here, which is kept")
    return lines


def _fit_encoder(theirs: State, ours: State) -> tuple[State, dict[str, str]]:
    stem = first_convolution(ours)
    channels = ours[stem].shape[1]
    word = MATCHED
    if stem in theirs and theirs[stem].shape != ours[stem].shape and theirs[stem].dim() == 4:
        theirs = theirs | {stem: for_channels(theirs[stem], channels)}
        word = f"{MATCHED}, its first layer adapted to {channels} channels"
    fitting = {name: value for name, value in theirs.items() if name in ours and value.shape == ours[name].shape}
    absent = [name for name in ours if name not in fitting and not name.endswith(COUNTER)]
    if absent == [stem]:
        word = f"{MATCHED}, but for its first layer: random, {_why_not({stem: theirs[stem]}, {stem: ours[stem]})}"
    elif absent:
        state = f"{len(fitting)} of {len(ours)} weights matched" if fitting else "random"
        word = f"{state}: {_why_not(theirs, ours)}"
    return {f"encoder.{name}": value for name, value in fitting.items()}, {"encoder": word}


def _another_encoder(theirs: State, ours: State) -> bool:
    """Return whether two encoders differ in more than the channels of their first layers."""
    shapes = [{name: value.shape for name, value in state.items()} for state in (theirs, ours)]
    for state in shapes:
        state.pop(first_convolution(ours), None)
    return shapes[0] != shapes[1]


def _blocks(net: SkipUnet) -> dict[str, State]:
    """Return the weights of each block of the decoder, coarsest first, and of the head, by their names in the net.

    VGG's centre comes before them. In a decoder of all levels a block is all that a level has; one of the user's own is
    one block.
    """
    decoder: Any = net.decoder
    if net.own_decoder is not None:
        modules: dict[str, list[nn.Module | None]] = {"decoder": [decoder]}
    else:
        levels = getattr(decoder, "by_level", None) or [[block] for block in decoder.blocks]
        modules = {"centre": [getattr(decoder, "center", None)]}
        modules |= {f"decoder{len(levels) - 1 - place}": own for place, own in enumerate(levels)}
    modules["head"] = [net.segmentation_head]
    name_of = {module: f"{name}." for name, module in net.named_modules()}
    state, blocks = net.state_dict(), dict[str, State]()
    for part, own in modules.items():
        prefixes = tuple(name_of[module] for module in own if module is not None)
        blocks[part] = {name: weight for name, weight in state.items() if name.startswith(prefixes)}
    return {part: weights for part, weights in blocks.items() if weights}


def _why_not(theirs: State, ours: State) -> str:
    """Return why weights don't fit; an empty text where they do."""
    others = [name for name in (*ours, *theirs) if (name in ours) != (name in theirs)]
    if others:
        place = "here" if others[0] in ours else "there"
        return f"other layers: {others[0]}{f' and {len(others) - 1} more' if len(others) > 1 else ''} {place} alone"
    shapes = {name: (theirs[name].shape, ours[name].shape) for name in ours if theirs[name].shape != ours[name].shape}
    if not shapes:
        return ""
    name, (there, here) = next(iter(shapes.items()))
    return f"other shape: {name} {_shape(there)} there, {_shape(here)} here"


def _per_level(values: Sequence[str] | Sequence[float]) -> str:
    return one_word(values if len({*values}) > 1 else values[0])


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"
