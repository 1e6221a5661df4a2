"""Saves a SkipUnet as a folder of the Hugging Face Hub: config.json, model.safetensors and a model card.

Where the network is smp.Unet, config.json has smp's arguments too, and smp.from_pretrained loads it. Any other network
gets a name for its encoder that smp refuses: smp would ignore the skip setting, and load the weights that fit.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from segmentation_models_pytorch.base.hub_mixin import SMPHubMixin

from unetseg import classes
from unetseg.errors import UserError, first_line
from unetseg.model import archive, arguments
from unetseg.model.encoders import normalisation_of
from unetseg.names import LEVELS, own_short_skips

ARGUMENTS_KEY = "_skip_unet"
"""Key of SkipUnet's arguments in config.json; smp ignores keys that begin with an underscore."""
DATA_KEY = "_unetseg"
"""Key of the classes and the data that `unetseg.save_pretrained` states, which a SkipUnet doesn't know."""
FOLDERS = "a folder or repository of SkipUnet.save_pretrained"
LARGEST_CONFIG = 2**20
"""Most bytes of a config.json that is read."""
HUB_ARGUMENTS = ("token", "revision", "cache_dir", "force_download", "local_files_only", "map_location")
"""Arguments of from_pretrained that aren't SkipUnet's."""
SMP_ARGUMENTS = {
    "encoder_depth": LEVELS + 1,
    "decoder_use_batchnorm": True,
    "decoder_use_norm": "batchnorm",
    "decoder_attention_type": None,
    "decoder_interpolation": "nearest",
    "activation": None,
    "aux_params": None,
}
"""Further arguments of an smp.Unet that is a SkipUnet; a folder that smp has saved has them."""

CARD = """---
{{ card_data }}
---
# {{ title }}

A U-Net for semantic segmentation, by unetseg.

| | |
| --- | --- |
| encoder | {{ arguments.encoder }} |
| long skips, finest first | {{ skip }} |
| what they let through | {{ skip_flow }} |
| factor on the gradient that they bring back | {{ skip_gradient }} |
| factor on the features that they carry | {{ skip_scale }} |
| a long skip of stride 1 | {{ stem_skip }} |
| short skips | {{ arguments.short_skips }} |
| output channels | {{ arguments.classes }} |
| data | {{ dataset }} |

## Scores
{{ metrics }}

## Use
```python
{{ example }}
```
Images are {{ images }}; H and W are free. The result is logits: {{ meaning }}.
"""


class HubFolder(SMPHubMixin):
    """save_pretrained, from_pretrained and push_to_hub of SkipUnet, by smp's mixin."""

    skip: list[str]
    skip_flow: list[str]
    skip_gradient: list[float]
    skip_scale: list[float | str]
    stem_skip: bool
    own_decoder: str | None

    def save_pretrained(self, save_directory: str | Path, **named: Any) -> str | None:
        """Write config.json, model.safetensors and, unless there is one, README.md, the model card.

        Args:
            save_directory: a folder, which is made.
            named: `dataset` (text) and `metrics` (scores by name) for the card; the rest as huggingface_hub takes it.
        """
        config = named.pop("config", None) or self.hub_config()
        card = {**(named.pop("model_card_kwargs", None) or {}), "preprocessing": config["_preprocessing"]}
        return super().save_pretrained(
            os.path.expanduser(save_directory), config=config, model_card_kwargs=card, **named
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, strict: bool = True, trust: bool = False, **named: Any
    ) -> Any:
        """Load the network of a folder or repository, in eval mode.

        Args:
            pretrained_model_name_or_path: what SkipUnet.save_pretrained has written, or smp has saved from it since.
            strict: refuse weights that don't fit; False loads those that do, and warns of the others.
            trust: import the classes of somebody's own that config.json names, see `unetseg.classes`.
            named: arguments of SkipUnet, which replace the folder's, or of huggingface_hub (token, revision,
                cache_dir, force_download, local_files_only), or map_location.

        Raises:
            UserError: it holds no SkipUnet, or is damaged, or its weights don't fit.
        """
        changes = {name: value for name, value in named.items() if name not in HUB_ARGUMENTS}
        hub_arguments = {name: value for name, value in named.items() if name in HUB_ARGUMENTS}
        pretrained_model_name_or_path = os.path.expanduser(pretrained_model_name_or_path)
        local = Path(pretrained_model_name_or_path, "config.json")
        try:
            if local.is_file() and local.stat().st_size > LARGEST_CONFIG:
                raise ValueError(f"config.json is larger than {LARGEST_CONFIG >> 20} MiB")
            if local.exists() and not local.is_file():
                raise ValueError("config.json is no file")
            return super().from_pretrained(
                pretrained_model_name_or_path, strict=strict, trust=trust, changes=changes, **hub_arguments
            )
        except UserError:
            raise
        except (ValueError, RecursionError, AttributeError) as error:  # of JSON, and of what is no mapping
            raise UserError(
                f"{pretrained_model_name_or_path} can't be loaded: {first_line(error)}", accepted=FOLDERS
            ) from None

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        config: dict[str, Any] | None,
        changes: dict[str, Any],
        strict: bool,
        trust: bool,
        map_location: str = "cpu",
        **named: Any,
    ) -> Any:
        """Build the network that config.json describes, with changes, and load its weights; huggingface_hub calls it.

        Arguments in `named` that huggingface_hub takes from config.json are not used.
        """
        stated = {name: v for name, v in recorded_arguments(model_id, config or {}).items() if name not in changes}
        classes.admit(arguments.own_classes(stated), Path(model_id, "config.json"), trust)
        net = cls(**stated, **changes)
        file = Path(model_id, "model.safetensors")
        if not Path(model_id).is_dir():
            hub_arguments = {name: named[name] for name in HUB_ARGUMENTS if name in named}
            file = Path(hf_hub_download(model_id, file.name, **hub_arguments))
        if not file.is_file():
            raise UserError(f"{model_id} holds no {file.name}", accepted=FOLDERS)
        try:
            state = archive.state_dict(file)
            archive.check_finite(state)
        except Exception as error:  # safetensors has an error of its own
            raise UserError(f"{file} can't be read: {first_line(error)}", accepted=FOLDERS) from None
        own = net.state_dict()
        fitting = {name for name in own.keys() & state.keys() if own[name].shape == state[name].shape}
        places = {own[name].data_ptr() for name in fitting}
        tied = {name for name in own.keys() - state.keys() if own[name].data_ptr() in places}  # the file has them once
        others = sorted((own.keys() | state.keys()) - fitting - tied)
        if others:
            problem = f"{len(others)} of the weights of {model_id} don't fit the network: {', '.join(others[:4])}"
            if strict:
                raise UserError(
                    problem + (f", which was given {', '.join(changes)}" if changes else ""),
                    accepted="the arguments that it was saved with",
                    advice="strict=False, which takes the weights that fit",
                )
            warnings.warn(f"{problem}; they are left as they were made", stacklevel=4)
        net.load_state_dict({name: state[name] for name in fitting}, strict=False)
        return net.to(map_location).eval()

    def hub_config(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> dict[str, Any]:
        """Return config.json: the arguments of SkipUnet, and those of smp.Unet, which fit where the network is one.

        Args:
            mean: of each channel in the images' values, of RGB in 0..255; None: the encoder's own where it is of RGB.
            std: of each channel, likewise.
        """
        recorded = {**self.config, "weights": None}  # the weights are in the folder
        preprocessing: dict[str, Any] = {"input_space": "RGB", "input_range": [0, 1]}  # smp's words
        if recorded["in_channels"] != 3:
            preprocessing = {"input_space": None, "input_range": None, "mean": mean, "std": std}
        elif mean is None or std is None:
            preprocessing |= zip(("mean", "std"), normalisation_of(recorded["encoder"]), strict=True)
        else:
            preprocessing |= {"mean": [value / 255 for value in mean], "std": [value / 255 for value in std]}
        return {
            "_model_class": "Unet" if self.is_smp_unet else "SkipUnet",
            "_preprocessing": preprocessing,
            ARGUMENTS_KEY: recorded,
            "encoder_name": recorded["encoder"] + (" of unetseg.model.SkipUnet" if not self.is_smp_unet else ""),
            "encoder_weights": None,
            "decoder_channels": recorded["decoder_channels"],
            "in_channels": recorded["in_channels"],
            "classes": recorded["classes"],
        }

    @property
    def is_smp_unet(self) -> bool:
        """Whether smp.Unet is the same network."""
        own = self.config["short_skips"] in (True, own_short_skips(self.config["encoder"]))
        plain = own and self.config["normalisation"] == "batch"
        untouched = self.skip_gradient == [1.0] * LEVELS and self.skip_scale == [1.0] * LEVELS
        whole = self.skip_flow == ["both"] * LEVELS and untouched
        plain = plain and self.own_decoder is None and not self.stem_skip
        return plain and whole and self.skip == ["concat"] * LEVELS

    def generate_model_card(
        self,
        *,
        dataset: str | None = None,
        metrics: dict[str, Any] | None = None,
        preprocessing: dict[str, Any] | None = None,
        **_: Any,
    ) -> ModelCard:
        config = self.hub_config()
        given, seen = config[ARGUMENTS_KEY], preprocessing or config["_preprocessing"]
        values = "RGB, of values in 0..1" if seen["input_range"] else "of the values that files hold"
        less = f"less the mean {seen['mean']} over {seen['std']}" if seen["mean"] else "normalised as in the training"
        theirs = 'import segmentation_models_pytorch as smp\n\nmodel = smp.from_pretrained("FOLDER or REPOSITORY")'
        ours = 'from unetseg.model import SkipUnet\n\nmodel = SkipUnet.from_pretrained("FOLDER or REPOSITORY")'
        if arguments.own_classes(given):
            ours = ours.replace('REPOSITORY"', 'REPOSITORY", trust=True')
        return ModelCard.from_template(
            card_data=ModelCardData(
                library_name="segmentation-models-pytorch" if self.is_smp_unet else "unetseg",
                tags=["unetseg", "semantic-segmentation", "pytorch"],
                pipeline_tag="image-segmentation",
            ),
            template_str=CARD,
            title=f"U-Net, {given['encoder']}, {', '.join(dict.fromkeys(self.skip))} skips",
            arguments=given,
            skip=", ".join(self.skip),
            skip_flow=", ".join(self.skip_flow),
            skip_gradient=", ".join(f"{dose:g}" for dose in self.skip_gradient),
            skip_scale=", ".join(scale if isinstance(scale, str) else f"{scale:g}" for scale in self.skip_scale),
            stem_skip=self.stem_skip,
            dataset=dataset or "not stated",
            metrics=f"```json\n{json.dumps(metrics, indent=2)}\n```" if metrics else "Not stated.",
            images=f"Bx{given['in_channels']}xHxW {values} {less}, as unetseg trains",
            example=f"{theirs}\n\n# or\n{ours}" if self.is_smp_unet else ours,
            meaning="that of class 1 against class 0" if given["classes"] == 1 else "one channel a class",
        )


def recorded_arguments(model_id: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return SkipUnet's arguments in a config.json; where smp has saved it since, by the values of smp.Unet's.

    Raises:
        UserError: SkipUnet.save_pretrained has not written it, or smp has made it another network.
    """
    if ARGUMENTS_KEY not in config:
        raise UserError(
            f"{model_id} holds no SkipUnet",
            accepted=FOLDERS,
            advice="smp.from_pretrained, and SkipUnet.load_state_dict with its state_dict()",
        )
    try:
        recorded = config[ARGUMENTS_KEY]
        arguments.check(recorded, arguments.NET)
        if config.get("_model_class") == "Unet":
            smp_names = {name: name for name in ("decoder_channels", "in_channels", "classes")}
            smp_names["encoder"] = "encoder_name"
            recorded = recorded | {ours: config[theirs] for ours, theirs in smp_names.items() if theirs in config}
            arguments.check(recorded, arguments.NET)
            for name, needed in SMP_ARGUMENTS.items():
                if config.get(name, needed) != needed:
                    raise ValueError(f"{name}={config[name]!r} is nothing that a SkipUnet has")
    except ValueError as error:
        raise UserError(f"{model_id} holds no SkipUnet: {error}", accepted=FOLDERS) from None
    return recorded


def recorded_data(folder: Path) -> dict[str, Any] | None:
    """Return the names of the classes and the data that the config.json of a folder states; None where it states none.

    Raises:
        UserError: they are not as `unetseg.save_pretrained` writes them.
    """
    file = folder / "config.json"
    try:
        if file.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"config.json is larger than {LARGEST_CONFIG >> 20} MiB")
        config = json.loads(file.read_text(encoding="utf-8"))
        known = config.get(DATA_KEY)
        if known is None:
            return None
        names, data = known["classes"], known["data"]
        outputs = config[ARGUMENTS_KEY]["classes"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("its classes are no names")
        if len(names) != (outputs if outputs > 1 else 2):
            raise ValueError(f"{len(names)} names of classes for {outputs} outputs")
        arguments.check_view(data)
        if (data.get("channels") or 3) != config[ARGUMENTS_KEY]["in_channels"]:
            raise ValueError("its model and its data have different numbers of channels")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder} can't be loaded: {first_line(error)}", accepted=FOLDERS) from None
    return {"classes": names, "data": data}
