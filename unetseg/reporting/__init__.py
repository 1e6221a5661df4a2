"""The report of an ablation: what its runs hold, what of it is shown, and how that is written."""
