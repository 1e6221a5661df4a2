"""The U-Net: `SkipUnet` takes normalised images, `Segmenter` takes images as they come."""

from unetseg.model.segmenter import Segmenter
from unetseg.model.unet import SkipUnet

__all__ = ["Segmenter", "SkipUnet"]
