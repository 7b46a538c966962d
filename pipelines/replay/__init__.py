"""``python -m pipelines replay``: reruns one step of a run and finds its first tensor that is not finite."""
