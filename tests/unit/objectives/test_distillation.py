"""DeiT's loss against its published formula, written out here, and the frozen teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.loader import load_experiment
from pretrain.errors import ConfigError
from pretrain.objectives.distillation import Distillation
from pretrain.objectives.protocol import MicroBatch
from pretrain.objectives.registry import Context, build_objective
from pretrain.objectives.teacher import Teacher
from tests.unit.config.test_loader import MINIMAL
from tests.unit.objectives.batches import images, linear_model, settings_of

CLASSES, BATCH = 7, 6
LABELS = torch.arange(BATCH)[:, None]
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class TwoHeads(nn.Module):
    """Two dense layers on the same pixels; gives the mean of both heads unless asked for each."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.head_dist = linear_model(CLASSES, 0).head, linear_model(CLASSES, 5).head

    def forward(self, x: Tensor, drop_path: Tensor | None = None, *, separate_heads: bool = False) -> Tensor:
        both = torch.stack([self.head(x.flatten(1)), self.head_dist(x.flatten(1))], 1)
        return both if separate_heads else both.mean(1)


def teacher_logits(x: Tensor) -> Tensor:
    return 3.0 * linear_model(CLASSES, 9)(x).detach()


def published(
    class_logits: Tensor, dist_logits: Tensor, teacher: Tensor, kind: str, alpha: float, tau: float
) -> Tensor:
    """Equations 2 and 3 of the paper term by term, with the code's reductions, in double precision."""
    loss = torch.zeros((), dtype=torch.float64)
    student, dist_logits, target = (part.detach().double() for part in (class_logits, dist_logits, teacher))
    for row in range(BATCH):
        own = -student[row].log_softmax(0)[LABELS[row, 0]]
        if kind == "hard":
            theirs = -dist_logits[row].log_softmax(0)[int(target[row].argmax())]
        else:
            p, q = (target[row] / tau).softmax(0), (dist_logits[row] / tau).softmax(0)
            theirs = tau**2 * (p * (p.log() - q.log())).sum().item() / CLASSES
        loss = loss + (1 - alpha) * own + alpha * theirs
    return loss / BATCH


@pytest.mark.parametrize(("kind", "alpha", "tau"), [("hard", 0.5, 1.0), ("soft", 0.5, 1.0), ("soft", 0.1, 3.0)])
@pytest.mark.parametrize("two_heads", [True, False])
def test_the_published_formula(kind: Any, alpha: float, tau: float, two_heads: bool) -> None:
    model, x = TwoHeads(), images(BATCH)
    objective = Distillation(teacher_logits, kind=kind, alpha=alpha, tau=tau, two_heads=two_heads)
    class_logits, dist_logits = model(x, separate_heads=True).unbind(1) if two_heads else (model(x), model(x))
    expected = published(class_logits, dist_logits, teacher_logits(x), kind, alpha, tau)
    torch.testing.assert_close(objective(model, MicroBatch(x, LABELS)).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_papers_scale_of_the_divergence_is_the_codes_times_the_classes() -> None:
    model, x = TwoHeads(), images(BATCH)
    losses = [
        Distillation(teacher_logits, kind="soft", alpha=1.0, tau=3.0, kl_reduction=reduction)(
            model, MicroBatch(x, LABELS)
        )
        for reduction in ("mean", "sum_classes")
    ]
    torch.testing.assert_close(losses[1], CLASSES * losses[0])


def test_each_head_has_a_teacher_of_its_own() -> None:
    """The labels move the class head alone, the teacher the distillation head alone."""
    model, x = TwoHeads(), images(BATCH)
    for alpha, moved, still in ((0.0, model.head, model.head_dist), (1.0, model.head_dist, model.head)):
        model.zero_grad()
        Distillation(teacher_logits, alpha=alpha)(model, MicroBatch(x, LABELS)).backward()
        assert moved.weight.grad.abs().sum() > 0 and still.weight.grad.abs().sum() == 0


def test_mixed_targets_and_smoothing_reach_the_labels_term() -> None:
    model, x = TwoHeads(), images(BATCH)
    targets = torch.rand(BATCH, CLASSES).softmax(1)
    loss = Distillation(teacher_logits, alpha=0.0, label_smoothing=0.1)(model, MicroBatch(x, LABELS, targets=targets))
    logits = model(x, separate_heads=True)[:, 0]
    torch.testing.assert_close(loss, F.cross_entropy(logits, 0.9 * targets + 0.1 / CLASSES))


def test_the_teacher_sees_its_own_normalisation_and_has_no_gradient() -> None:
    net = linear_model(CLASSES)
    pixels = torch.rand(BATCH, 3, 4, 4)
    own = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def normalised(pair: tuple) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in pair)
        return (pixels - mean) / std

    given = Teacher(net, HALF, own)(normalised(HALF))
    torch.testing.assert_close(given, net(normalised(own)), rtol=1e-5, atol=1e-5)
    assert not given.requires_grad
    assert torch.equal(Teacher(net, HALF, HALF)(normalised(HALF)), net(normalised(HALF)))


def test_the_teacher_under_autocast_gives_fp32() -> None:
    net = linear_model(CLASSES)
    exact, rounded = (Teacher(net, HALF, HALF, autocast=flag)(images(3)) for flag in (False, True))
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0.05, atol=0.05)


def test_settings_arrive() -> None:
    config = settings_of(
        name="distillation", teacher="t", distillation="soft", alpha=0.1, tau=3.0, kl_reduction="sum_classes",
        label_smoothing=0.1,
    )  # fmt: skip
    built = build_objective(config, CLASSES, Context(teacher=teacher_logits, two_heads=True))
    assert built == Distillation(teacher_logits, "soft", 0.1, 3.0, "sum_classes", 0.1, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("name=distillation", "teacher: is missing"),
        (
            "name=softmax teacher=t",
            "teacher belongs to name: distillation, feature_distillation, token_distillation or "
            "feature_and_token_distillation; with softmax",
        ),
        ("name=sigmoid alpha=0.5", "alpha belongs to name: distillation"),
        ("name=distillation teacher=t tau=3.0", "tau belongs to distillation: soft"),
        ("name=feature_distillation teacher=t", "width"),
        ("name=feature_distillation width=8", "teacher: is missing"),
        ("name=feature_distillation teacher=t width=8", "model.head_init: zero; objective.name: feature_distillation"),
        ("name=feature_distillation teacher=t width=8 beta=0.5", "beta belongs to imitation: smooth_l1; with cosine"),
        ("name=token_distillation teacher=t width=8", "token_distillation needs model.head: patches"),
        ("name=feature_distillation teacher=t width=8 alpha=1", "alpha belongs to name: distillation; with feature"),
        ("name=distillation teacher=t binarise=true", "binarise belongs to name: sigmoid"),
        ("corrupted=0.4", "corrupted belongs to name: masked_patches"),
        (
            "name=masked_patches label_smoothing=0.1",
            "label_smoothing belongs to name: softmax, sigmoid or dis",
        ),
    ],
)
def test_settings_that_would_be_ignored_are_errors(tmp_path: Path, settings: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(MINIMAL)
    with pytest.raises(ConfigError, match=message):
        load_experiment(tmp_path / "x.yaml", overrides=[f"objective.{setting}" for setting in settings.split()])
