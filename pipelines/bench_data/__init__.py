"""``python -m pipelines bench-data``: how many data processes a GPU needs."""
