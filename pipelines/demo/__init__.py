"""``python -m pipelines demo``: the main job on embedded real data."""
