"""``python -m pipelines evaluate``: the accuracy of trained weights, per class and against another model."""
