"""``python -m pipelines doctor``: checks the software and hardware of a machine."""
