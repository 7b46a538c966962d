"""The names under which a run reports, each with its unit and meaning. A name that is not here is a bug."""

from __future__ import annotations

METRICS: dict[str, str] = {
    "loss": "mean training loss of the step over all ranks",
    "lr": "learning rate of the step",
    "grad_norm": "global norm of the gradient before clipping",
    "images_per_s": "images per second over all devices, since the last line",
    "data_wait": "share of the time since the last line that the slowest rank waited for data, 0-1",
    "step_s": "seconds per step since the last line, mean",
    "skipped_updates": "updates skipped so far because the loss or the gradient was not finite",
    "bad_samples": "samples replaced so far because they could not be read or decoded",
    "batch_digest": "order-free checksum of the global batch's (sample, slot) pairs: equal for equal batches",
    "epoch": "passes over the training set",
    "samples": "samples drawn so far",
    "memory_gib": "largest memory in use on rank 0: of the GPU, or of the process on a CPU",
    "top1": "share of the images whose highest logit is one of their labels",
    "top5": "share of the images with a label among their five highest logits",
    "num_samples": "images evaluated",
    "seconds": "duration of the event",
}


def checked(values: dict[str, float]) -> dict[str, float]:
    """The values themselves, once every name is known; ``set/top1`` is the metric ``top1`` of a named set."""
    unknown = [name for name in values if name.rsplit("/", 1)[-1] not in METRICS]
    assert not unknown, f"register {unknown} in pretrain/telemetry/metrics.py"
    return values
