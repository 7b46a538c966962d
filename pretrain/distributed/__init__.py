"""Ranks, process groups, collectives and the watchdog."""
