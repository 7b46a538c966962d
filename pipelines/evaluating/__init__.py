"""The steps of an evaluation: what a model said of every image, and the figures that follow from it."""
