"""The use of a trained model: as a function of pictures, as a file for other runtimes, as a page."""
