"""The first tensor that is not finite is found in each phase, with the images that it belongs to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipelines.replay.finite import Finding, Watch, in_loss, in_weights
from pretrain.engine.backend import HeldSlice
from pretrain.objectives.protocol import MicroBatch


class Root(nn.Module):
    """Finite at 0, with an infinite gradient there."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


class Between(nn.Module):
    """Divides by zero in code between its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) / (x.sum(1, keepdim=True) != 0))


def watched(model: nn.Module, images: Tensor) -> Finding | None:
    watch = Watch(model)
    with watch.passes(len(images)):
        loss = model(images).sum()
        if torch.isfinite(loss):
            loss.backward()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return watch.found


def test_forward() -> None:
    images = torch.ones(3, 2)
    images[1] = 1e30
    first, second = nn.Linear(2, 2), nn.Linear(2, 4)
    model = nn.Sequential(first, nn.Sequential(second, nn.Linear(4, 2)))
    with torch.no_grad():
        second.weight.fill_(1e20)
        first.weight.fill_(1.0)
    assert watched(model, images) == Finding("forward", "output of 1.0", 4, 12, (1,))


def test_code_between_two_modules() -> None:
    images = torch.ones(3, 2)
    images[2] = 0
    assert watched(Between(), images) == Finding("forward", "input of last", 2, 6, (2,))


def test_backward() -> None:
    first = nn.Linear(2, 2, bias=False)
    model = nn.Sequential(first, Root())
    with torch.no_grad():
        first.weight.fill_(1.0)
    images = torch.ones(3, 2)
    images[0] = 0
    assert watched(model, images) == Finding("backward", "gradient of the output of 0", 2, 6, (0,))


def test_everything_finite() -> None:
    assert watched(nn.Linear(2, 2), torch.ones(3, 2)) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights(value: float) -> None:
    held = [HeldSlice(name, (2,), 0, {"master": torch.ones(2)}, (0, 2)) for name in ("a", "b")]
    assert in_weights(held) is None
    held[1].states["master"][1] = value
    assert in_weights(held) == Finding("weights", "b", 1, 2)


def test_the_loss() -> None:
    """The logarithm of a probability that is 0 for one image."""

    def objective(model: nn.Module, batch: MicroBatch) -> Tensor:
        return -model(batch.images).gather(1, batch.labels).log().mean()

    batch = MicroBatch(torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.2, 0.8]]), torch.tensor([[0], [1], [1]]))
    model = nn.Identity()
    found = in_loss(objective(model, batch), objective, model, batch)  # type: ignore[arg-type]
    assert found == Finding("loss", "the loss", 1, 1, (1,))
    assert in_loss(torch.ones(()), objective, model, batch) is None  # type: ignore[arg-type]
