"""``python -m pipelines pack``: images from any source, written as WebDataset shards with an index and a card."""
