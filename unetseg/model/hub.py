"""Saving a SkipUnet as a folder of the Hugging Face Hub: config.json, model.safetensors and a model card.

Where the network is smp.Unet, the folder says so in smp's own words, and smp.from_pretrained loads it too. Any other
carries a name for its encoder that smp refuses: smp would ignore the skip setting, and fill what fits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from segmentation_models_pytorch.base.hub_mixin import SMPHubMixin

from unetseg.errors import UserError
from unetseg.model.encoders import MEAN, STD
from unetseg.names import LEVELS

OURS = "_skip_unet"
"""Key of SkipUnet's arguments in config.json; smp passes over keys that begin with an underscore."""

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
| short skips | {{ arguments.short_skips }} |
| output channels | {{ arguments.classes }} |
| data | {{ dataset }} |

## Scores
{{ metrics }}

## Use
```python
{{ example }}
```
Images are Bx3xHxW RGB, of values in 0..1 less the mean {{ preprocessing.mean }} over {{ preprocessing.std }}, as
unetseg trains; H and W are free. The result is logits: {{ meaning }}.
"""


class HubFolder(SMPHubMixin):
    """save_pretrained, from_pretrained and push_to_hub of SkipUnet, by smp's mixin."""

    skip: list[str]
    skip_flow: list[str]

    def save_pretrained(self, save_directory: str | Path, **named: Any) -> str | None:
        """Write config.json, model.safetensors and, unless there is one, README.md, the model card.

        Args:
            save_directory: a folder, which is made.
            named: `dataset` (text) and `metrics` (scores by name) for the card; the rest as huggingface_hub takes it.
        """
        return super().save_pretrained(save_directory, **{"config": self.hub_config(), **named})

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: dict[str, Any] | None, strict: bool = True, **named: Any
    ) -> Any:
        """Build the network that config.json describes and load its weights; huggingface_hub calls it.

        Raises:
            UserError: the folder is not one that SkipUnet.save_pretrained has written.
        """
        if OURS not in (config or {}):
            raise UserError(
                f"{model_id} holds no SkipUnet",
                accepted="a folder or repository of SkipUnet.save_pretrained",
                advice="smp.from_pretrained, and SkipUnet.load_state_dict with its state_dict()",
            )
        arguments = {**named, **config[OURS]}  # type: ignore[index]
        return super()._from_pretrained(model_id=model_id, strict=strict, **arguments)

    def hub_config(self) -> dict[str, Any]:
        """Return config.json: the arguments of smp.Unet where the network is one, and in any case SkipUnet's."""
        arguments = {**self.config, "weights": None}  # they are in the folder
        preprocessing = {"input_space": "RGB", "input_range": [0, 1], "mean": MEAN, "std": STD}  # smp's words
        return {
            "_model_class": "Unet" if self.is_smp_unet else "SkipUnet",
            "_preprocessing": preprocessing,
            OURS: arguments,
            "encoder_name": arguments["encoder"] + (" of unetseg.model.SkipUnet" if not self.is_smp_unet else ""),
            "encoder_weights": None,
            "decoder_channels": arguments["decoder_channels"],
            "in_channels": arguments["in_channels"],
            "classes": arguments["classes"],
        }

    @property
    def is_smp_unet(self) -> bool:
        """Whether smp.Unet is the same network."""
        plain = self.config["short_skips"] and self.config["normalisation"] == "batch"
        return plain and self.skip == ["concat"] * LEVELS and self.skip_flow == ["both"] * LEVELS

    def generate_model_card(
        self, *, dataset: str | None = None, metrics: dict[str, Any] | None = None, **_: Any
    ) -> ModelCard:
        """Return the model card."""
        config = self.hub_config()
        arguments = config[OURS]
        theirs = 'import segmentation_models_pytorch as smp\n\nmodel = smp.from_pretrained("FOLDER or REPOSITORY")'
        ours = 'from unetseg.model import SkipUnet\n\nmodel = SkipUnet.from_pretrained("FOLDER or REPOSITORY")'
        return ModelCard.from_template(
            card_data=ModelCardData(
                library_name="segmentation-models-pytorch" if self.is_smp_unet else "unetseg",
                tags=["unetseg", "semantic-segmentation", "pytorch"],
                pipeline_tag="image-segmentation",
            ),
            template_str=CARD,
            title=f"U-Net, {arguments['encoder']}, {', '.join(dict.fromkeys(self.skip))} skips",
            arguments=arguments,
            skip=", ".join(self.skip),
            skip_flow=", ".join(self.skip_flow),
            dataset=dataset or "not stated",
            metrics=f"```json\n{json.dumps(metrics, indent=2)}\n```" if metrics else "Not stated.",
            preprocessing=config["_preprocessing"],
            example=f"{theirs}\n\n# or\n{ours}" if self.is_smp_unet else ours,
            meaning="that of class 1 against class 0" if arguments["classes"] == 1 else "one channel a class",
        )
