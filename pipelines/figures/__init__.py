"""``python -m pipelines figures``: filters, position embeddings and attention as pictures."""
