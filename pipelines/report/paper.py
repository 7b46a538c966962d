"""Published results of the ViT paper, to stand beside a run's own.

Source: ViT (2010.11929), Table 2 (mean ± std of three runs; ImageNet at 512 px for L/16 and 518 for H/14) and Table 5
(ImageNet at 384 px).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# (model, pretrained on, data set) → text
TABLE_2 = {
    ("H/14", "jft300m", "imagenet"): "88.55 ± 0.04",
    ("L/16", "jft300m", "imagenet"): "87.76 ± 0.03",
    ("L/16", "i21k", "imagenet"): "85.30 ± 0.02",
    ("H/14", "jft300m", "cifar10"): "99.50 ± 0.06",
    ("L/16", "jft300m", "cifar10"): "99.42 ± 0.03",
    ("L/16", "i21k", "cifar10"): "99.15 ± 0.03",
    ("H/14", "jft300m", "cifar100"): "94.55 ± 0.04",
    ("L/16", "jft300m", "cifar100"): "93.90 ± 0.05",
    ("L/16", "i21k", "cifar100"): "93.25 ± 0.05",
    ("H/14", "jft300m", "pets"): "97.56 ± 0.03",
    ("L/16", "jft300m", "pets"): "97.32 ± 0.11",
    ("L/16", "i21k", "pets"): "94.67 ± 0.15",
    ("H/14", "jft300m", "flowers"): "99.68 ± 0.02",
    ("L/16", "jft300m", "flowers"): "99.74 ± 0.00",
    ("L/16", "i21k", "flowers"): "99.61 ± 0.02",
}
TABLE_5_IMAGENET_384 = {
    ("B/16", "i21k"): "83.97",
    ("B/32", "i21k"): "81.28",
    ("L/16", "i21k"): "85.15",
    ("L/32", "i21k"): "80.99",
    ("H/14", "i21k"): "85.13",
    ("B/16", "jft300m"): "84.15",
    ("B/32", "jft300m"): "80.73",
    ("L/16", "jft300m"): "87.12",
    ("L/32", "jft300m"): "84.37",
    ("H/14", "jft300m"): "88.04",
}
UPSTREAMS = {"jft300m": "jft300m", "i21k": "i21k", "imagenet21k": "i21k"}


def published(settings: Mapping[str, Any], source: str) -> str | None:
    """The paper's result for a transfer, or None where it has none.

    Args:
        settings: of the fine-tuning, by dotted key.
        source: what it started from; the upstream set is read from its name, as our configs name runs.
    """
    model = settings.get("model.variant")
    upstream = next((name for word, name in UPSTREAMS.items() if word in source.lower()), None)
    words = re.findall(r"[a-z0-9]+", f"{settings.get('data.shards')} {settings.get('name')}".lower())
    data = next((name for name in ("imagenet", "cifar100", "cifar10", "pets", "flowers") if name in words), None)
    if model is None or upstream is None or data is None:
        return None
    if data == "imagenet" and settings.get("model.img_size") == 384:
        text = TABLE_5_IMAGENET_384.get((model, upstream))
        return f"{text} (Table 5)" if text else None
    text = TABLE_2.get((model, upstream, data))
    return f"{text} (Table 2)" if text else None
