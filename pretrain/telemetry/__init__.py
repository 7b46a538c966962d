"""Metrics, their sinks, and the terminal."""
