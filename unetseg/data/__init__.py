"""Pictures and masks from files to batches of uint8."""
