"""Trained weights, loaded for use: classifier, regressor, segmenter."""
