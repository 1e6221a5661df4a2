"""What scripts/benchmark.py measures: a file for each measurement, and what they share."""
