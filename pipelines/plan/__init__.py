"""``python -m pipelines plan``: parameters, FLOPs, hours, memory, traffic, disk and cost of a config."""
