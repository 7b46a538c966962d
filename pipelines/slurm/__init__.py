"""Decisions of a Slurm job before and after its step: number of ranks, preflight, requeue or exit. No torch."""
