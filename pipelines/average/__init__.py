"""``python -m pipelines average``: the mean of several weights."""
