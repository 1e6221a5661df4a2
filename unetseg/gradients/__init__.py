"""Gradient flow: where a U-Net's gradient comes from, read in any training loop; torch is all it takes."""

from unetseg.gradients.flow import GradientFlow, Record, blocks_of

__all__ = ["GradientFlow", "Record", "blocks_of"]
