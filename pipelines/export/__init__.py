"""``python -m pipelines export``: trained weights in the formats of other libraries, verified."""
