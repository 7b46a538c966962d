"""``python -m pipelines chain``: a chain of Slurm jobs, from images to a report."""
