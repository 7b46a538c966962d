"""Writes ``traces/deit_losses.npz``: losses of 30 steps of DeiT's and DeiT III's recipes, trained by timm.

Made with timm 1.0.31, torch 2.14.1 and torchvision 0.29.1. Run by hand from the repository's root, in an environment
with these: ``python -m tests.golden.make.deit_losses``.

The parts are those that DeiT's main.py puts together: timm's model, Mixup, losses (DeiT III: torch's BCE of binarised
targets), optimiser, cosine schedule by the epoch and ModelEma; torchvision's normalisation. DeiT III's FusedLAMB is
replaced by timm's Lamb. Random masks (drop path, erasing) are left out, rates are larger and the schedule shorter than
published. The rate of an epoch is set at its start, where main.py sets it at its end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import timm.data.mixup as timm_mixup
import torch
from PIL import Image
from timm.loss import SoftTargetCrossEntropy
from timm.models import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV2
from torchvision import transforms

from tests.golden.batches import BATCH, CLASSES, SIDE, STEPS, pictures_of

TARGET = Path(__file__).parent.parent / "traces" / "deit_losses.npz"
STEPS_PER_EPOCH, WARMUP_EPOCHS, EMA_DECAY = 6, 1, 0.9
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES: dict[str, Any] = {"img_size": SIDE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
# recipe → (arguments of the model, optimiser, its rate, label smoothing)
RECIPES: dict[str, tuple[dict[str, Any], str, float, float]] = {
    "deit": ({}, "adamw", 3e-3, 0.1),
    "deit3": ({"no_embed_class": True, "init_values": 0.1}, "lamb", 2e-2, 0.0),
}


def start(options: dict[str, Any]) -> VisionTransformer:
    """timm's model, with a number in every tensor that half precision can write."""
    model = VisionTransformer(num_classes=CLASSES, **SIZES, **options)
    random = np.random.RandomState(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.from_numpy(random.standard_normal(tuple(parameter.shape))).float() * 0.1
            scale = parameter.ndim == 1 and name.endswith(("weight", "gamma"))
            parameter.copy_((parameter + noise if scale else noise).half().float())
    return model


def train(recipe: str) -> dict[str, np.ndarray]:
    """The arrays of one recipe."""
    options, name, rate, smoothing = RECIPES[recipe]
    model, pixels = start(options), transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    arrays = {f"start/{key}": tensor.numpy().astype(np.float16) for key, tensor in model.state_dict().items()}
    optimizer = create_optimizer_v2(model, opt=name, lr=rate, weight_decay=0.05, eps=1e-8)
    epochs = STEPS // STEPS_PER_EPOCH
    schedule = CosineLRScheduler(optimizer, t_initial=epochs, lr_min=1e-5, warmup_t=WARMUP_EPOCHS, warmup_lr_init=1e-6)
    average, mixes = ModelEmaV2(model, decay=EMA_DECAY), []
    mixing = timm_mixup.Mixup(0.8, 1.0, label_smoothing=smoothing, num_classes=CLASSES)
    recorded = timm_mixup.cutmix_bbox_and_lam

    def recording(*args: Any, **kwargs: Any) -> Any:
        box, lam = recorded(*args, **kwargs)
        mixes.append([*map(int, box), float(lam)])
        return box, lam

    timm_mixup.cutmix_bbox_and_lam = recording
    np.random.seed(1)
    losses = []
    for step in range(STEPS):
        schedule.step(step // STEPS_PER_EPOCH)
        images, labels = pictures_of(step)
        batch = torch.stack([pixels(Image.fromarray(image)) for image in images])
        params = mixing._params_per_batch()
        mixing._params_per_batch = lambda params=params: params
        before = len(mixes)
        batch, targets = mixing(batch, torch.from_numpy(labels))
        del mixing._params_per_batch
        if len(mixes) == before:
            mixes.append([0, 0, 0, 0, float(params[0])])
        logits = model(batch)
        if recipe == "deit3":
            loss = torch.nn.BCEWithLogitsLoss()(logits, targets.gt(0.0).type(targets.dtype))
        else:
            loss = SoftTargetCrossEntropy()(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model)
        losses.append(loss.item())
    timm_mixup.cutmix_bbox_and_lam = recorded
    print(recipe, np.round(losses, 4), "cut", sum(mix[1] > 0 for mix in mixes))
    arrays |= {"losses": np.array(losses), "mixes": np.array(mixes)}
    arrays |= {"final": model.head.weight.detach().numpy(), "average": average.module.head.weight.detach().numpy()}
    return arrays


def main() -> None:
    """Writes the file again."""
    torch.manual_seed(0)
    made = {f"{recipe}/{key}": array for recipe in RECIPES for key, array in train(recipe).items()}
    np.savez_compressed(TARGET, **made)
    print(TARGET.stat().st_size, "bytes;", BATCH, "images a step")


if __name__ == "__main__":
    main()
