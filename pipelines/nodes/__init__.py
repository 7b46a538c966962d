"""Checks of a node before it trains, for the doctor and for the preflight of Slurm jobs."""
