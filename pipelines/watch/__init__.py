"""``python -m pipelines watch``: the live state of runs in the terminal."""
