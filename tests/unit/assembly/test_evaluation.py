"""Which settings the loss of the probe batch is compared under."""

from __future__ import annotations

import pytest

from pretrain.assembly import evaluation
from pretrain.assembly.evaluation import settings_digest
from pretrain.engine.loading import FIRST_SAMPLES, Reading, judge
from tests.distributed.training import experiment


def test_a_checkpoint_of_other_evaluation_pixels_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that rounds a resize in another way resumes older runs: their probe batch is passed over, and named."""
    config = experiment()
    now = settings_digest(config)
    assert settings_digest(config) == now
    assert settings_digest(experiment(data__eval_transform={"resize": "resmall"})) != now
    monkeypatch.setattr(evaluation, "EVALUATION_PIXELS", 1)
    marker = {"probe_loss": 1.0, "probe_samples": list(FIRST_SAMPLES), "probe_settings": settings_digest(config)}
    marker |= {"precision": "fp32", "config_digest": "c"}
    reading = Reading(1.5, tuple(FIRST_SAMPLES), now)
    judged = judge(marker, reading, precision="fp32", config_digest="c")
    assert judged.error is None and "not compared: settings that decide its loss have changed" in (judged.warning or "")
    same = judge(marker | {"probe_settings": now}, reading, precision="fp32", config_digest="c")
    assert same.error is not None


def test_the_digest_is_that_of_older_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkpoint from before objectives were a discriminated union: softmax with the settings of the demo."""
    monkeypatch.setattr(evaluation, "EVALUATION_PIXELS", 2)  # its evaluation pixels
    transform = {"resize": "squash", "resize_filter": "bilinear_aa"}
    assert settings_digest(experiment(data__eval_transform=transform)) == "01257a753628f228441e94f894666476"
