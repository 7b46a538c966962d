"""``python -m pipelines verify``: reads shards to their end and indexes those that have no index."""
