"""``python -m pipelines probe``: few-shot, k-NN and logistic regression on frozen features."""
