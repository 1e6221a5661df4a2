"""What a model is worth: scores from counts of pixels, what its long skips contribute, and how sure that is."""
