"""``python -m pipelines report``: runs as one HTML file."""
