"""Metrics on logits and on frozen features."""
