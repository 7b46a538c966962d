"""The Python API, described in docs/python.md: trained weights, streams of images, and trainings."""

from __future__ import annotations

from pipelines.python_api.evaluation_set import EvaluationSet
from pipelines.python_api.model import FeatureTable, Model, load
from pipelines.python_api.stream import ImageStream
from pipelines.python_api.training import Trainer, TrainingResult
from pipelines.weights.heads import Prediction

__all__ = ["EvaluationSet", "FeatureTable", "ImageStream", "Model", "Prediction", "Trainer", "TrainingResult", "load"]
