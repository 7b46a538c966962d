"""Trained weights, loaded for use: their networks and heads, over all ranks, and results of transfers."""
