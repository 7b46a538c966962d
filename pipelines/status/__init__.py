"""``python -m pipelines status``: the state of a run."""
