"""A trained model at work: as a function of pictures, as a file for other runtimes, as a page."""
