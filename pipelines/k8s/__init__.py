"""Training on Kubernetes: the manifest of a JobSet, and the first process of each of its pods."""
