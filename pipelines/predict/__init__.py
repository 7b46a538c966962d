"""``python -m pipelines predict``: the most probable classes of images."""
