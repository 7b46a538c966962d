"""``python -m pipelines goodput``: what the time of a run was spent on."""
