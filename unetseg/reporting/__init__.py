"""The report of an ablation: reads its runs, computes the numbers, and writes the document."""
