"""``python -m pipelines dedup``: finds near-duplicates of test images in a training set."""
