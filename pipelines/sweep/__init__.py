"""``python -m pipelines sweep``: a fine-tuning grid, chosen on the dev split."""
