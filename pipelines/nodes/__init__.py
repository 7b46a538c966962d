"""Checks of the machines that train, for the doctor and for the preflight of Slurm jobs."""
