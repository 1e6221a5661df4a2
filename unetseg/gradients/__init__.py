"""Gradient flow: where a U-Net's gradient comes from, read in any training loop; torch is all it takes."""

from unetseg.gradients.blocks import blocks_of
from unetseg.gradients.flow import GradientFlow, Record

__all__ = ["GradientFlow", "Record", "blocks_of"]
