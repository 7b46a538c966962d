"""``python -m pipelines collect``: finished sweeps as one table beside the published results."""
