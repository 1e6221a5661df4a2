"""The evaluation of a model: scores from counts of pixels, the contribution of its long skips, and their statistics."""
